//! What `apply` and `undo` say they did, and that they do what they say.

use serde_json::json;

use crate::bench::{Bench, VIPS};

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
