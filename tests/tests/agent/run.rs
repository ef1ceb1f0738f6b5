//! `run` watches.

use integration::eventually;
use nix::sys::signal::Signal;

use crate::bench::{Bench, SOON, VIPS, fixes};

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
