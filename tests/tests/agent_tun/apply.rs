//! What `apply` changes and `undo` takes back, and where they refuse.

use std::fs;

use integration::{XdpAction, paths};
use serde_json::{Value, json};

use crate::bench::{Bench, director};

#[test]
fn undo_leaves_nothing_of_it() -> anyhow::Result<()> {
    let bench = Bench::new("at-undo")?;
    for (key, value) in [("all.rp_filter", 1), ("eth0.rp_filter", 1)] {
        bench
            .host
            .set_sysctl(&format!("net.ipv4.conf.{key}"), value)?;
    }
    let before = bench.snapshot()?;
    let dry = bench.apply(&["--dry-run"]);
    assert_eq!(bench.snapshot()?, before, "a dry run changes nothing");

    let report = bench.apply(&[]);
    assert_eq!(report["changes"], dry["changes"], "the dry run foretold it");
    let kinds = |report: &Value| {
        let changes = report["changes"].as_array().cloned().unwrap_or_default();
        let kinds = changes.iter().map(|change| change["kind"].to_string());
        kinds.collect::<Vec<_>>()
    };
    for kind in ["\"sysctl\"", "\"programs\"", "\"program\"", "\"address\""] {
        assert!(kinds(&report).iter().any(|k| k == kind), "{kind}: {report}");
    }
    assert_eq!(bench.host.sysctl("net.ipv4.conf.eth0.rp_filter")?, "2");
    assert_eq!(
        bench.host.sysctl("net.ipv4.conf.all.rp_filter")?,
        "1",
        "the greater counts"
    );
    assert!(!bench.host.link("eth0")?["xdp"].is_null());
    assert_eq!(bench.pins(), bench.all_pins()?);
    let applied = bench.snapshot()?;

    let report = bench.apply(&[]);
    assert_eq!(report["changed"], false, "{report}");
    let report = bench.json(&["check"], 0);
    assert_eq!(report["findings"], json!([]), "{report}");
    assert_eq!(bench.snapshot()?, applied);

    let dry = bench.json(&["undo", "--dry-run"], 0);
    assert_eq!(bench.snapshot()?, applied);
    let report = bench.json(&["undo"], 0);
    assert_eq!(report["changes"], dry["changes"]);
    assert_eq!(bench.snapshot()?, before);
    assert!(!bench.bpffs().exists());
    assert_eq!(bench.json(&["undo"], 0)["changed"], false);
    Ok(())
}

#[test]
fn a_later_apply_changes_only_what_differs() -> anyhow::Result<()> {
    let bench = Bench::new("at-later")?;
    let before = bench.snapshot()?;
    bench.apply(&[]);
    let program = bench.host.link("eth0")?["xdp"].clone();
    let names = |report: &Value| -> Vec<String> {
        let changes = report["changes"].as_array().cloned().unwrap_or_default();
        let names = changes.iter().filter_map(|change| change["name"].as_str());
        names.map(str::to_owned).collect()
    };
    let report = bench.apply(&["--director", "192.0.2.0/24"]);
    assert_eq!(names(&report), ["tunnel settings"], "{report}");
    let report = bench.apply(&["--mss", "off"]);
    assert_eq!(
        names(&report),
        ["tunnel settings", "lb_mss on eth0"],
        "{report}"
    );

    // DR mode needs none of it; VIPs and ARP stay as they are.
    let report = bench.json(&["apply", "--vip", "203.0.113.10,2001:db8:2::10"], 0);
    assert!(
        names(&report).contains(&"lb_decapsulate on eth0".to_owned()),
        "{report}"
    );
    assert!(bench.host.link("eth0")?["xdp"].is_null(), "{program}");
    assert_eq!(bench.pins(), [""; 0]);
    bench.json(&["undo"], 0);
    assert_eq!(bench.snapshot()?, before);
    Ok(())
}

#[test]
fn refusals_say_what_to_do_and_change_nothing() -> anyhow::Result<()> {
    let bench = Bench::new("at-refuse")?;
    let before = bench.snapshot()?;
    let error = |report: &Value| report["error"].as_str().unwrap_or_default().to_owned();

    let report = bench.json(&["apply", "--mode", "tun", "--vip", "203.0.113.10"], 1);
    assert!(error(&report).contains("--director"), "{report}");
    let director = director(4).to_string();
    let report = bench.json(
        &["apply", "--vip", "203.0.113.10", "--director", &director],
        1,
    );
    assert!(error(&report).contains("--mode tun"), "{report}");
    // This kernel has no tunnel devices: `auto` falls back, `kernel` cannot.
    let report = bench.call("apply", &["--decapsulate", "kernel"], 1);
    assert!(error(&report).contains("modprobe ipip"), "{report}");
    let report = bench.apply(&["--dry-run"]);
    assert!(
        report["notes"].to_string().contains("no module ipip"),
        "{report}"
    );
    let elsewhere = bench.lab.dir().join("elsewhere").display().to_string();
    let args = ["apply", "--mode", "tun", "--vip", "203.0.113.10"];
    let args = [&args[..], &["--director", &director, "--bpffs", &elsewhere]].concat();
    let report = bench.json(&args, 1);
    assert!(error(&report).contains("mount -t bpf"), "{report}");
    assert_eq!(bench.snapshot()?, before);

    let pass = bench.lab.xdp_program(XdpAction::Pass)?;
    bench.ip(&format!(
        "link set dev eth0 xdpdrv pinned {}",
        pass.display()
    ))?;
    let report = bench.call("apply", &[], 1);
    assert!(
        error(&report).contains("ip link set dev eth0 xdp off"),
        "{report}"
    );
    bench.ip("link set dev eth0 xdp off")?;
    assert_eq!(bench.snapshot()?, before);
    bench.apply(&[]);
    Ok(())
}

#[test]
fn the_configuration_file_says_the_same() -> anyhow::Result<()> {
    let bench = Bench::new("at-config")?;
    let config = bench.lab.dir().join("agent.toml");
    let text = format!(
        "mode = \"tun\"\nvips = [\"203.0.113.10\"]\ndirectors = [\"192.0.2.0/24\"]\n\
         decapsulate = \"xdp\"\nmss = 1350\nbpffs = \"{}\"\n",
        bench.bpffs().display()
    );
    fs::write(&config, text)?;
    let config = config.to_str().unwrap_or_default();
    let report = bench.json(&["apply", "--config", config], 0);
    assert_eq!(
        report["tunnel"],
        json!({
            "directors": ["192.0.2.0/24"], "decapsulate": "xdp", "mss": 1350,
            "bpffs": bench.bpffs(),
        })
    );
    assert_eq!(
        report["interfaces"],
        json!(["eth0"]),
        "by the route to the director"
    );
    assert_eq!(
        bench.json(&["check", "--config", config], 0)["findings"],
        json!([])
    );
    Ok(())
}

/// The capabilities that the unit file grants are enough, here and at a restart.
#[test]
fn the_units_capabilities_are_enough() -> anyhow::Result<()> {
    let unit = include_str!("../../../lb-agent/deploy/lb-agent.service");
    let granted = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .expect("a bounding set");
    let granted: Vec<String> = granted
        .split(' ')
        .map(|name| name.to_lowercase().replace("cap_", "+"))
        .collect();
    let granted = format!("-all,{}", granted.join(","));
    let bench = Bench::new("at-unit")?;
    for _ in 0..2 {
        let mut command = bench.host.command("setpriv");
        command.args(["--no-new-privs", "--bounding-set", &granted]);
        command.args(["--inh-caps", &granted]);
        command.arg(paths::binary("lb-agent")?).arg("apply");
        command.args(bench.options());
        command.arg("--state").arg(bench.agent.state_dir());
        integration::run(&mut command)?;
        assert_eq!(bench.fixes(), [""; 0]);
    }
    Ok(())
}
