//! What is wrong, and the command that mends it.

use integration::paths;

use crate::bench::{Bench, VIPS, fixes};

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

/// What `apply` mends, `check` says in full: as it was asked, or as was applied.
#[test]
fn check_says_what_to_apply_in_full() -> anyhow::Result<()> {
    let bench = Bench::new("ag-full")?;
    let one = "203.0.113.10";
    bench
        .agent
        .json(&["apply", "--vip", VIPS, "--interface", "eth0"], 0);
    let state = bench.agent.state_dir().display().to_string();
    let told = fixes(&bench, &["--interface", "eth9"]);
    let expected = format!("lb-agent apply --interface eth0 --vip {VIPS} --state {state}");
    assert_eq!(told, [expected]);
    let told = fixes(&bench, &["--vip", one]);
    assert_eq!(
        told,
        [format!("lb-agent apply --vip {one} --state {state}")]
    );
    let agent = paths::binary("lb-agent")?;
    let typed = told[0].replacen("lb-agent", &agent.display().to_string(), 1);
    bench.host.run("sh", ["-c", &typed])?;
    assert_eq!(fixes(&bench, &["--vip", one]), [""; 0]);
    // All or nothing.
    let report = bench.agent.json(&["undo", "--vip", "203.0.113.11"], 1);
    let error = report["error"].as_str().unwrap_or_default();
    assert!(
        error.contains(&format!("lb-agent apply --vip {one}")),
        "{report}"
    );
    assert!(bench.lo_holds(&format!("{one}/32"))?);
    bench.agent.json(&["undo", "--vip", one], 0);
    assert!(!bench.lo_holds(&format!("{one}/32"))?);
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
