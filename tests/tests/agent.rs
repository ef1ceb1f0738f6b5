//! `lb-agent` on a host: what it changes, restores, finds and puts back.
//!
//! Needs root, and `lb-agent` built: `cargo build -p lb-agent`.

use std::fs;
use std::time::Duration;

use integration::agent::Agent;
use integration::{Host, Lab, Process, Segment, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const VIPS: &str = "203.0.113.10,2001:db8:0:1::10";

/// A backend with eth0 and eth1 on a segment.
struct Bench {
    agent: Agent,
    host: Host,
    segment: Segment,
    lab: Lab,
}

impl Bench {
    fn new(name: &str) -> anyhow::Result<Self> {
        let lab = Lab::new(name)?;
        let segment = lab.segment("lan")?;
        let host = lab.host("b1")?;
        let agent = Agent::new(&lab, &host)?;
        let bench = Self {
            agent,
            host,
            segment,
            lab,
        };
        bench.attach_eth0()?;
        bench
            .host
            .attach(&bench.segment, "eth1", &["192.0.2.21/24"])?;
        Ok(bench)
    }

    fn attach_eth0(&self) -> anyhow::Result<()> {
        let addresses = ["203.0.113.21/24", "2001:db8:0:1::21/64"];
        self.host
            .attach(&self.segment, "eth0", &addresses)
            .map(drop)
    }

    /// Sets a sysctl: `all.arp_ignore`.
    fn set(&self, key: &str, value: i32) -> anyhow::Result<()> {
        self.host.set_sysctl(&format!("net.ipv4.conf.{key}"), value)
    }

    fn get(&self, key: &str) -> anyhow::Result<String> {
        self.host.sysctl(&format!("net.ipv4.conf.{key}"))
    }

    fn ip(&self, args: &str) -> anyhow::Result<String> {
        self.host.run("ip", args.split_whitespace())
    }

    /// Every ARP sysctl, and every address with prefix length and scope.
    fn snapshot(&self) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        let links: Value = serde_json::from_str(&self.ip("-json address show")?)?;
        let links = links.as_array().cloned().unwrap_or_default();
        for link in &links {
            let name = link["ifname"].as_str().unwrap_or_default();
            for address in link["addr_info"].as_array().into_iter().flatten() {
                let [local, prefix, scope] =
                    ["local", "prefixlen", "scope"].map(|key| address[key].to_string());
                lines.push(format!("{name} {local}/{prefix} {scope}"));
            }
        }
        let names = links.iter().filter_map(|link| link["ifname"].as_str());
        for name in ["all", "default"].into_iter().chain(names) {
            for key in ["arp_ignore", "arp_announce"] {
                let key = format!("{name}.{key}");
                lines.push(format!("{key} = {}", self.get(&key)?));
            }
        }
        lines.sort();
        Ok(lines)
    }

    /// Whether `lo` holds this, such as `203.0.113.10/32`.
    fn lo_holds(&self, address: &str) -> anyhow::Result<bool> {
        let text = self.ip("-oneline address show dev lo")?;
        Ok(text.split_whitespace().any(|word| word == address))
    }

    /// Starts `run` and waits until it watches.
    fn run(&self, args: &[&str]) -> anyhow::Result<Process> {
        let process = self.agent.run(args)?;
        eventually("lb-agent to watch", SOON, || {
            let log = process.log();
            log.contains("watching").then_some(()).ok_or(log)
        });
        Ok(process)
    }
}

/// The commands that `check` prints.
#[track_caller]
fn fixes(bench: &Bench, args: &[&str]) -> Vec<String> {
    let args: Vec<&str> = ["check"].iter().chain(args).copied().collect();
    let answer = bench.agent.call(&[&args[..], &["--json"]].concat());
    let answer = answer.expect("lb-agent can be called");
    let report: Value = serde_json::from_str(&answer.stdout).expect("check prints JSON");
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    assert_eq!(
        answer.code,
        if findings.is_empty() { 0 } else { 2 },
        "{answer:?}"
    );
    assert_eq!(report["changed"], false);
    findings
        .iter()
        .map(|finding| {
            assert!(finding["problem"].as_str().is_some_and(|p| !p.is_empty()));
            assert!(finding["kind"].is_string());
            finding["fix"].as_str().expect("a fix").to_owned()
        })
        .collect()
}

#[test]
fn undo_restores_exactly_what_apply_found() -> anyhow::Result<()> {
    let bench = Bench::new("ag-exact")?;
    for (key, value) in [
        ("all.arp_announce", 1),
        ("lo.arp_ignore", 7),
        ("eth0.arp_ignore", 3),
        ("eth0.arp_announce", 3),
        // Defeats whatever `all` says.
        ("eth1.arp_ignore", 4),
    ] {
        bench.set(key, value)?;
    }
    bench.ip("address add 203.0.113.12/32 dev lo")?;
    bench.ip("address add 203.0.113.13/32 dev lo scope host")?;
    let before = bench.snapshot()?;

    let vips = format!("{VIPS},203.0.113.12");
    let report = bench
        .agent
        .json(&["apply", "--vip", &vips, "--interface", "eth0"], 0);
    assert_eq!(report["changed"], true, "{report}");
    for (key, value) in [
        ("all.arp_ignore", "1"),
        ("all.arp_announce", "2"),
        ("lo.arp_ignore", "1"),
        ("lo.arp_announce", "2"),
        ("eth0.arp_ignore", "1"),
        ("eth0.arp_announce", "2"),
        ("eth1.arp_ignore", "1"),
        ("eth1.arp_announce", "0"),
    ] {
        assert_eq!(bench.get(key)?, value, "{key}");
    }
    for vip in ["203.0.113.10/32", "203.0.113.12/32", "2001:db8:0:1::10/128"] {
        assert!(bench.lo_holds(vip)?, "{vip}");
    }

    // Applying again, and something else's meddling, change nothing of it.
    bench.set("eth0.arp_ignore", 0)?;
    bench
        .agent
        .json(&["apply", "--vip", &vips, "--interface", "eth0"], 0);
    bench.set("all.arp_announce", 0)?;
    let report = bench.agent.json(&["undo"], 0);
    assert_eq!(report["changed"], true, "{report}");
    assert_eq!(bench.snapshot()?, before);
    assert_eq!(bench.agent.state(), None);

    let report = bench.agent.json(&["undo"], 0);
    assert_eq!(
        (&report["changed"], &report["changes"]),
        (&json!(false), &json!([]))
    );
    Ok(())
}

#[test]
fn a_second_apply_changes_nothing_and_a_dry_run_neither() -> anyhow::Result<()> {
    let bench = Bench::new("ag-idem")?;
    let before = bench.snapshot()?;
    let dry = bench.agent.json(&["apply", "--vip", VIPS, "--dry-run"], 0);
    assert_eq!(dry["changed"], true);
    assert_eq!(dry["dry_run"], true);
    assert_eq!(bench.snapshot()?, before);
    assert!(
        !bench.agent.state_dir().exists(),
        "a dry run writes nothing"
    );

    let first = bench.agent.json(&["apply", "--vip", VIPS], 0);
    assert_eq!(first["changes"], dry["changes"], "the dry run foretold it");
    let (applied, state) = (bench.snapshot()?, bench.agent.state());
    assert!(state.is_some());

    let second = bench.agent.json(&["apply", "--vip", VIPS], 0);
    assert_eq!(second["changed"], false, "{second}");
    assert_eq!(second["changes"], json!([]));
    assert_eq!(
        (bench.snapshot()?, bench.agent.state()),
        (applied.clone(), state.clone())
    );

    let dry = bench.agent.json(&["undo", "--dry-run"], 0);
    assert_eq!(dry["changed"], true);
    assert_eq!((bench.snapshot()?, bench.agent.state()), (applied, state));
    let undone = bench.agent.json(&["undo"], 0);
    assert_eq!(undone["changes"], dry["changes"]);
    assert_eq!(bench.snapshot()?, before);
    Ok(())
}

#[test]
fn the_json_is_what_configuration_management_reads() -> anyhow::Result<()> {
    let bench = Bench::new("ag-json")?;
    for key in ["lo.arp_ignore", "eth0.arp_ignore"] {
        bench.set(key, 1)?;
    }
    for key in ["all.arp_announce", "lo.arp_announce", "eth0.arp_announce"] {
        bench.set(key, 2)?;
    }
    let report = bench.agent.json(
        &["apply", "--vip", "203.0.113.10", "--interface", "eth0"],
        0,
    );
    assert_eq!(
        report,
        json!({
            "command": "apply", "changed": true, "dry_run": false,
            "vips": ["203.0.113.10"], "interfaces": ["eth0"],
            "changes": [
                {"kind": "sysctl", "name": "net.ipv4.conf.all.arp_ignore", "from": 0, "to": 1},
                {"kind": "address", "name": "203.0.113.10/32 dev lo", "from": "absent", "to": "present"},
            ],
            "findings": [], "notes": [],
        })
    );
    let report = bench.agent.json(
        &["apply", "--vip", "203.0.113.10", "--interface", "eth7"],
        1,
    );
    assert_eq!(report["changed"], false);
    let error = report["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("no interface eth7") && error.contains("eth0, eth1"),
        "{report}"
    );

    // 2 is what `check` says when something is wrong, and nothing else.
    for args in [
        &["apply", "--vip", "203.0.113.10/32"][..],
        &["apply", "--vip", "127.0.0.1"],
        &["apply", "--frobnicate"],
        &["check", "--config", "/nonexistent"],
        &["run", "--dry-run", "--vip", "203.0.113.10"],
        &[],
    ] {
        let answer = bench.agent.call(args)?;
        assert_eq!(answer.code, 1, "{args:?}: {answer:?}");
        assert!(!answer.stderr.is_empty(), "{args:?}");
    }
    assert_eq!(bench.agent.call(&["--version"])?.code, 0);
    Ok(())
}

#[test]
fn the_interface_is_the_one_that_leads_to_the_vip() -> anyhow::Result<()> {
    let bench = Bench::new("ag-iface")?;
    let interfaces = |vip: &str| {
        let report = bench.agent.json(&["apply", "--dry-run", "--vip", vip], 0);
        report["interfaces"].clone()
    };
    assert_eq!(interfaces("203.0.113.10"), json!(["eth0"]));
    assert_eq!(interfaces("192.0.2.10"), json!(["eth1"]));
    assert_eq!(
        interfaces("203.0.113.10,192.0.2.10"),
        json!(["eth0", "eth1"])
    );
    assert_eq!(interfaces("2001:db8:0:1::10"), json!([]));
    let report = bench.agent.json(&["apply", "--vip", "198.51.100.10"], 1);
    assert!(
        report["error"]
            .as_str()
            .is_some_and(|e| e.contains("--interface")),
        "{report}"
    );
    bench.ip("route add default via 192.0.2.1")?;
    assert_eq!(interfaces("198.51.100.10"), json!(["eth1"]));
    Ok(())
}

#[test]
fn a_later_apply_takes_back_what_is_no_longer_wanted() -> anyhow::Result<()> {
    let bench = Bench::new("ag-fewer")?;
    bench.ip("address add 203.0.113.12/32 dev lo")?;
    let before = bench.snapshot()?;
    let config = bench.lab.dir().join("agent.toml");
    fs::write(
        &config,
        "vips = [\"203.0.113.10\", \"203.0.113.11\", \"203.0.113.12\", \"2001:db8:0:1::10\"]\n\
         interfaces = [\"eth0\"]\n",
    )?;
    let config = ["--config", config.to_str().unwrap_or_default()];
    bench.agent.json(&[&["apply"][..], &config].concat(), 0);

    // A flag overrides the list in the file as a whole.
    let report = bench.agent.json(
        &[&["apply", "--vip", "203.0.113.11"][..], &config].concat(),
        0,
    );
    assert_eq!(report["vips"], json!(["203.0.113.11"]));
    assert!(!bench.lo_holds("203.0.113.10/32")?);
    assert!(!bench.lo_holds("2001:db8:0:1::10/128")?);
    assert!(bench.lo_holds("203.0.113.11/32")?);
    assert!(bench.lo_holds("203.0.113.12/32")?, "it was there before");

    // Without options `check` judges by what was applied, with them by what is configured.
    assert_eq!(fixes(&bench, &[]), [""; 0]);
    assert!(fixes(&bench, &config).contains(&"lb-agent apply".to_owned()));

    bench.agent.json(&["undo"], 0);
    assert_eq!(bench.snapshot()?, before);
    Ok(())
}

/// What is wrong, and what `check` says to type. Typing it mends it.
#[test]
fn check_names_each_wrong_thing_and_the_command_that_mends_it() -> anyhow::Result<()> {
    let bench = Bench::new("ag-check")?;
    #[rustfmt::skip]
    let breakages: [(&str, &[&str]); 12] = [
        ("sysctl -w net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.eth0.arp_ignore=0",
            &["sysctl -w net.ipv4.conf.all.arp_ignore=1", "sysctl -w net.ipv4.conf.eth0.arp_ignore=1"]),
        ("sysctl -w net.ipv4.conf.eth0.arp_ignore=3",
            &["sysctl -w net.ipv4.conf.eth0.arp_ignore=1"]),
        ("sysctl -w net.ipv4.conf.eth1.arp_announce=5",
            &["sysctl -w net.ipv4.conf.eth1.arp_announce=2"]),
        ("sysctl -w net.ipv4.conf.lo.arp_ignore=0",
            &["sysctl -w net.ipv4.conf.lo.arp_ignore=1"]),
        ("ip address del 203.0.113.10/32 dev lo",
            &["ip address add 203.0.113.10/32 dev lo scope host"]),
        ("ip address del 2001:db8:0:1::10/128 dev lo",
            &["ip address add 2001:db8:0:1::10/128 dev lo"]),
        ("ip address add 203.0.113.10/24 dev eth0",
            &["ip address del 203.0.113.10/24 dev eth0"]),
        ("ip address add 203.0.113.10/24 dev lo",
            &["ip address del 203.0.113.10/24 dev lo"]),
        ("ip address add 2001:db8:0:1::10/64 dev eth1 nodad",
            &["ip address del 2001:db8:0:1::10/64 dev eth1"]),
        ("ip address del 2001:db8:0:1::10/128 dev lo && ip address add 2001:db8:0:1::10/64 dev lo",
            &["ip address del 2001:db8:0:1::10/64 dev lo", "ip address add 2001:db8:0:1::10/128 dev lo"]),
        ("ip neighbour add proxy 2001:db8:0:1::10 dev eth0",
            &["ip neighbour del proxy 2001:db8:0:1::10 dev eth0"]),
        ("ip link set dev lo down",
            &["ip link set dev lo up", "ip address add 2001:db8:0:1::10/128 dev lo"]),
    ];
    bench
        .agent
        .json(&["apply", "--vip", VIPS, "--interface", "eth0"], 0);
    assert_eq!(fixes(&bench, &[]), [""; 0]);
    for (breakage, expected) in breakages {
        bench.host.run("sh", ["-c", breakage])?;
        let told = fixes(&bench, &[]);
        assert_eq!(told, expected, "{breakage}");
        for fix in told {
            bench.host.run("sh", ["-c", &fix])?;
        }
        assert_eq!(fixes(&bench, &[]), [""; 0], "after mending {breakage}");
    }
    // To a person it says the same.
    bench.ip("address del 203.0.113.10/32 dev lo")?;
    let answer = bench.agent.call(&["check"])?;
    assert_eq!(answer.code, 2);
    assert!(
        answer
            .stdout
            .contains("ip address add 203.0.113.10/32 dev lo"),
        "{answer:?}"
    );
    Ok(())
}

#[test]
fn check_tells_a_fresh_host_all_it_needs() -> anyhow::Result<()> {
    let bench = Bench::new("ag-fresh")?;
    let before = bench.snapshot()?;
    let told = fixes(&bench, &["--vip", VIPS]);
    assert_eq!(
        told,
        [
            "sysctl -w net.ipv4.conf.all.arp_ignore=1",
            "sysctl -w net.ipv4.conf.all.arp_announce=2",
            "ip address add 203.0.113.10/32 dev lo scope host",
            "ip address add 2001:db8:0:1::10/128 dev lo",
        ]
    );
    assert_eq!(bench.snapshot()?, before, "check changes nothing");
    for fix in told {
        bench.host.run("sh", ["-c", &fix])?;
    }
    assert_eq!(fixes(&bench, &["--vip", VIPS]), [""; 0]);
    // Nothing applied and nothing named: nothing to judge by.
    let report = bench.agent.json(&["check"], 1);
    assert!(
        report["error"]
            .as_str()
            .is_some_and(|e| e.contains("--vip")),
        "{report}"
    );
    Ok(())
}

/// What is not `lb-agent`'s to change and would defeat it.
#[test]
fn apply_refuses_where_the_vip_would_be_stolen_all_the_same() -> anyhow::Result<()> {
    let bench = Bench::new("ag-refuse")?;
    for (breakage, mend) in [
        (
            "ip address add 203.0.113.10/24 dev eth0",
            "ip address del 203.0.113.10/24 dev eth0",
        ),
        (
            "ip address add 203.0.113.10/24 dev lo",
            "ip address del 203.0.113.10/24 dev lo",
        ),
        ("ip link set dev lo down", "ip link set dev lo up"),
        (
            "sysctl -w net.ipv6.conf.lo.disable_ipv6=1",
            "sysctl -w net.ipv6.conf.lo.disable_ipv6=0",
        ),
    ] {
        bench.host.run("sh", ["-c", breakage])?;
        let before = bench.snapshot()?;
        let report = bench.agent.json(&["apply", "--vip", VIPS], 1);
        assert_eq!(report["changed"], false);
        let error = report["error"].as_str().unwrap_or_default();
        assert!(error.contains(mend), "{breakage}: {report}");
        assert_eq!(bench.snapshot()?, before, "{breakage}");
        assert_eq!(bench.agent.state(), None);
        bench.host.run("sh", ["-c", mend])?;
    }
    bench.agent.json(&["apply", "--vip", VIPS], 0);
    Ok(())
}

/// After a reboot the sysctls are the kernel's, addresses are gone, and maybe
/// an interface too; the state file is still there.
#[test]
fn undo_restores_what_is_left_after_half_of_it_is_lost() -> anyhow::Result<()> {
    let bench = Bench::new("ag-half")?;
    bench.set("all.arp_announce", 1)?;
    bench.set("eth1.arp_ignore", 4)?;
    bench.ip("address add 203.0.113.12/32 dev lo")?;
    let before = bench.snapshot()?;
    let apply = [
        "apply",
        "--vip",
        "203.0.113.10,203.0.113.12",
        "--interface",
        "eth0",
    ];
    bench.agent.json(&apply, 0);

    for key in ["all.arp_ignore", "all.arp_announce", "eth1.arp_ignore"] {
        bench.set(key, 0)?;
    }
    bench.ip("address del 203.0.113.10/32 dev lo")?;
    bench.ip("address del 203.0.113.12/32 dev lo")?;
    bench.ip("link del dev eth0")?;

    let report = bench.agent.json(&["undo"], 0);
    let notes = report["notes"].to_string();
    assert!(notes.contains("eth0 is gone"), "{report}");
    assert_eq!(bench.agent.state(), None);
    let after = bench.snapshot()?;
    let expected = before.iter().filter(|line| !line.starts_with("eth0"));
    assert_eq!(after, expected.cloned().collect::<Vec<_>>());
    Ok(())
}

/// A reboot, and then the boot's own `apply`: what was found the first time
/// is what counts.
#[test]
fn apply_after_a_reboot_keeps_what_the_first_one_found() -> anyhow::Result<()> {
    let bench = Bench::new("ag-boot")?;
    bench.set("eth0.arp_ignore", 3)?;
    let before = bench.snapshot()?;
    bench
        .agent
        .json(&["apply", "--vip", VIPS, "--interface", "eth0"], 0);
    for name in ["all", "lo", "eth0"] {
        bench.set(&format!("{name}.arp_ignore"), 0)?;
        bench.set(&format!("{name}.arp_announce"), 0)?;
    }
    bench.ip("address del 203.0.113.10/32 dev lo")?;
    let report = bench
        .agent
        .json(&["apply", "--vip", VIPS, "--interface", "eth0"], 0);
    assert_eq!(
        report["changes"].as_array().map(Vec::len),
        Some(7),
        "{report}"
    );
    bench.agent.json(&["undo"], 0);
    assert_eq!(bench.snapshot()?, before);
    Ok(())
}

/// A state file that cannot be read is a reason to stop, not to forget what
/// was found.
#[test]
fn a_broken_state_file_stops_everything() -> anyhow::Result<()> {
    let bench = Bench::new("ag-broken")?;
    fs::create_dir_all(bench.agent.state_dir())?;
    fs::write(
        bench.agent.state_dir().join("state.json"),
        "{\"version\": 1",
    )?;
    let before = bench.snapshot()?;
    for command in ["apply", "check", "undo", "run"] {
        let report = bench.agent.json(&[command, "--vip", VIPS], 1);
        assert!(
            report["error"]
                .as_str()
                .is_some_and(|e| e.contains("state.json")),
            "{report}"
        );
    }
    assert_eq!(bench.snapshot()?, before);
    Ok(())
}

#[test]
fn run_puts_back_what_drifts_and_leaves_it_when_stopped() -> anyhow::Result<()> {
    let bench = Bench::new("ag-run")?;
    let before = bench.snapshot()?;
    let run = bench.run(&["--vip", VIPS, "--interface", "eth0"])?;
    let applied = bench.snapshot()?;
    for breakage in [
        "sysctl -w net.ipv4.conf.all.arp_ignore=0",
        "sysctl -w net.ipv4.conf.eth0.arp_announce=0",
        "sysctl -w net.ipv4.conf.eth0.arp_ignore=3",
        "ip address del 203.0.113.10/32 dev lo",
        "ip address del 2001:db8:0:1::10/128 dev lo",
    ] {
        bench.host.run("sh", ["-c", breakage])?;
        eventually(&format!("repair after {breakage}"), SOON, || {
            let now = bench.snapshot().map_err(|e| format!("{e:#}"))?;
            (now == applied).then_some(()).ok_or(format!("{now:?}"))
        });
    }
    for repair in [
        "put back net.ipv4.conf.all.arp_ignore: 0 -> 1",
        "put back 203.0.113.10/32 dev lo: absent -> present",
        "put back 2001:db8:0:1::10/128 dev lo: absent -> present",
    ] {
        eventually(repair, SOON, || run.log().contains(repair));
    }

    // A thief that is not its to remove is named, once.
    bench.ip("address add 203.0.113.10/24 dev eth1")?;
    let fix = "ip address del 203.0.113.10/24 dev eth1";
    eventually("the thief to be named", SOON, || run.log().contains(fix));
    bench.host.run("sh", ["-c", fix])?;
    eventually("its end to be noticed", SOON, || {
        run.log().contains("no longer so")
    });

    run.kill(Signal::SIGTERM)?;
    assert!(run.wait_exit(SOON)?.success(), "{}", run.log());
    assert_eq!(bench.snapshot()?, applied, "stopping undoes nothing");
    bench.agent.json(&["undo"], 0);
    assert_eq!(bench.snapshot()?, before);
    Ok(())
}

#[test]
fn run_looks_after_an_interface_that_goes_and_comes_back() -> anyhow::Result<()> {
    let bench = Bench::new("ag-flap")?;
    let run = bench.run(&["--vip", VIPS, "--interface", "eth0"])?;
    for round in 0..3 {
        bench.ip("link del dev eth0")?;
        eventually("its absence to be told", SOON, || {
            run.log().matches("there is no interface eth0").count() > round * 2
        });
        bench.attach_eth0()?;
        for (key, value) in [("eth0.arp_ignore", "1"), ("eth0.arp_announce", "2")] {
            eventually(key, SOON, || {
                let now = bench.get(key).map_err(|e| format!("{e:#}"))?;
                (now == value).then_some(()).ok_or(now)
            });
        }
        eventually("its return to be told", SOON, || {
            run.log().matches("there is no interface eth0").count() == round * 2 + 2
        });
    }
    assert_eq!(fixes(&bench, &[]), [""; 0]);
    assert!(run.is_running(), "{}", run.log());
    run.kill(Signal::SIGINT)?;
    assert!(run.wait_exit(SOON)?.success(), "{}", run.log());
    Ok(())
}

/// `run` holds what the state file says, so other calls of `lb-agent` need
/// not fight it.
#[test]
fn run_follows_a_later_apply_and_ends_with_undo() -> anyhow::Result<()> {
    let bench = Bench::new("ag-follow")?;
    let before = bench.snapshot()?;
    // The interface may come later than the agent.
    bench.ip("link set dev eth0 down")?;
    bench.ip("link set dev eth0 name lan0")?;
    let run = bench.run(&["--vip", "203.0.113.10", "--interface", "eth0"])?;
    bench.ip("link set dev lan0 name eth0")?;
    eventually("eth0 to be protected", SOON, || {
        bench.get("eth0.arp_ignore").is_ok_and(|value| value == "1")
    });
    bench.agent.json(
        &["apply", "--vip", "203.0.113.11", "--interface", "eth0"],
        0,
    );
    bench.ip("address del 203.0.113.11/32 dev lo")?;
    eventually("the new VIP to be put back", SOON, || {
        bench.lo_holds("203.0.113.11/32").unwrap_or(false)
    });
    assert!(
        !bench.lo_holds("203.0.113.10/32")?,
        "the old one stays away"
    );

    bench.agent.json(&["undo"], 0);
    assert!(run.wait_exit(SOON)?.success(), "{}", run.log());
    bench.ip("link set dev eth0 up")?;
    // IPv6 addresses of eth0 went with its being down.
    let after = bench.snapshot()?;
    let kept = |line: &&String| !line.starts_with("eth0 ");
    assert_eq!(
        after.iter().filter(kept).collect::<Vec<_>>(),
        before.iter().filter(kept).collect::<Vec<_>>()
    );
    Ok(())
}
