//! What `apply` found comes back, whatever happened in between.

use std::fs;

use integration::paths;
use serde_json::{Value, json};

use crate::bench::{Bench, VIPS, fixes};

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
    let told = fixes(&bench, &config);
    let whole = format!("lb-agent apply {}", config.join(" "));
    assert!(told.iter().any(|fix| fix.starts_with(&whole)), "{told:?}");

    bench.agent.json(&["undo"], 0);
    assert_eq!(bench.snapshot()?, before);
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

/// Without CAP_NET_ADMIN root may set sysctls and not add addresses: `apply`
/// stops half-way, and has remembered enough to go back.
#[test]
fn a_failure_half_way_is_told_and_can_be_undone() -> anyhow::Result<()> {
    let bench = Bench::new("ag-fail")?;
    bench.set("eth0.arp_announce", 1)?;
    let before = bench.snapshot()?;
    let mut command = bench.host.command("setpriv");
    command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]);
    command.arg(paths::binary("lb-agent")?);
    command.args(["apply", "--json", "--vip", VIPS, "--interface", "eth0"]);
    command.arg("--state").arg(bench.agent.state_dir());
    let output = command.output()?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["changed"], true, "{report}");
    assert_eq!(report["changes"].as_array().map(Vec::len), Some(6));
    let error = report["error"].as_str().unwrap_or_default();
    assert!(error.contains("203.0.113.10/32 dev lo"), "{report}");
    let stderr = String::from_utf8(output.stderr)?;
    assert!(stderr.contains("takes root"), "{stderr}");

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
