//! What `check` names and `run` puts back.

use std::net::{SocketAddr, UdpSocket};

use integration::{eventually, paths};
use nix::sys::signal::Signal;

use crate::bench::{Bench, SOON, client, director, vip};
use crate::packet::{address, encapsulated, udp};

#[test]
fn check_names_each_wrong_thing_and_its_command_mends_it() -> anyhow::Result<()> {
    let bench = Bench::new("at-check")?;
    bench.apply(&[]);
    assert_eq!(bench.fixes(), [""; 0]);
    let pins = bench.bpffs();
    let pins = pins.display();
    for breakage in [
        "sysctl -w net.ipv4.conf.eth0.rp_filter=1".to_owned(),
        "sysctl -w net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.all.rp_filter=1".to_owned(),
        format!("rm {pins}/arriving-*"),
        bench.detach_leaving(),
        format!("rm -r {pins}/*"),
        "ip address add 198.51.100.22/24 dev eth0".to_owned(),
        "ip link set dev eth0 mtu 1400".to_owned(),
        "ip address del 203.0.113.10/32 dev lo".to_owned(),
    ] {
        bench.host.run("sh", ["-c", &breakage])?;
        let fixes = bench.fixes();
        assert!(!fixes.is_empty(), "{breakage}");
        let mut fixes = fixes;
        fixes.dedup();
        for fix in fixes {
            // As it would be typed: by its full path, with this state.
            let agent = paths::binary("lb-agent")?;
            let state = bench.agent.state_dir().display();
            let typed = fix.replacen(
                "lb-agent apply",
                &format!("{} apply --state {state}", agent.display()),
                1,
            );
            bench.host.run("sh", ["-c", &typed])?;
        }
        assert_eq!(bench.fixes(), [""; 0], "after mending {breakage}");
    }
    Ok(())
}

#[test]
fn run_puts_back_what_drifts() -> anyhow::Result<()> {
    let bench = Bench::new("at-run")?;
    let before = bench.snapshot()?;
    let run = bench.run()?;
    let pins = bench.bpffs();
    let pins = pins.display();
    let all_pins = bench.all_pins()?;
    for breakage in [
        "sysctl -w net.ipv4.conf.eth0.rp_filter=1".to_owned(),
        format!("rm {pins}/arriving-*"),
        bench.detach_leaving(),
        format!("rm -r {pins}/*"),
    ] {
        bench.host.run("sh", ["-c", &breakage])?;
        eventually(&format!("repair after {breakage}"), SOON, || {
            let fixes = bench.fixes();
            (fixes.is_empty() && bench.pins() == all_pins)
                .then_some(())
                .ok_or(fixes)
        });
    }
    // An address that comes later is one that directors may send to.
    bench.ip("address add 198.51.100.22/24 dev eth0")?;
    let server = bench
        .host
        .in_namespace(|| UdpSocket::bind(SocketAddr::new(vip(4), 53)))?;
    let mut text = [0; 100];
    server.set_nonblocking(true)?;
    eventually("a packet to the new address", SOON, || {
        let packet = udp(client(4), vip(4), 10);
        let packet = encapsulated(director(4), address(4, 1, 22), 0, &packet);
        bench.send(&packet).map_err(|e| format!("{e:#}"))?;
        server.recv_from(&mut text).map_err(|e| e.to_string())
    });

    // The interface goes, and another of its name comes.
    bench.ip("link del dev eth0")?;
    bench.attach_eth0()?;
    eventually("programs on the new eth0", SOON, || {
        let fixes = bench.fixes();
        fixes.is_empty().then_some(()).ok_or(fixes)
    });
    eventually("a packet by the new eth0", SOON, || {
        let packet = udp(client(4), vip(4), 10);
        bench
            .send_inside(director(4), &packet)
            .map_err(|e| format!("{e:#}"))?;
        server.recv_from(&mut text).map_err(|e| e.to_string())
    });

    run.kill(Signal::SIGTERM)?;
    assert!(run.wait_exit(SOON)?.success(), "{}", run.log());
    let count = bench.number("counters", "decapsulated");
    bench.send_inside(director(4), &udp(client(4), vip(4), 10))?;
    eventually("a packet without the agent", SOON, || {
        bench.number("counters", "decapsulated") == count + 1
    });
    bench.json(&["undo"], 0);
    let now = bench.snapshot()?;
    // The new interface has another MAC and so another link-local address.
    let is_kept = |line: &&String| !line.contains("fe80::");
    assert!(
        now.iter().filter(is_kept).eq(before.iter().filter(is_kept)),
        "{now:?} is not {before:?}"
    );
    Ok(())
}
