//! Drivers that cannot run XDP programs.

use anyhow::{Context, ensure};
use integration::talk::Protocol;
use integration::topology::{DrLab, INTERFACE};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{FAMILIES, ensure_clean, ensure_said, refused, serve, talk};

/// A macvlan's driver runs no XDP program: generic mode forwards all the same,
/// and nobody can say that he was not told.
#[test]
fn without_native_xdp_it_runs_in_generic_mode_and_says_so() -> anyhow::Result<()> {
    let mut lab = DrLab::new("generic", 2)?;
    let director = &lab.director;
    let ip = |args: &str| director.run("ip", args.split(' ')).map(drop);
    // The lower interface must not answer ARP for the upper one's addresses.
    director.set_sysctl("net.ipv4.conf.all.arp_ignore", 1)?;
    ip("link set dev eth0 down")?;
    ip("link set dev eth0 name lower")?;
    ip("address flush dev lower")?;
    ip("link set dev lower up")?;
    ip("link add link lower name eth0 type macvlan mode bridge")?;
    director.run("ethtool", ["-K", INTERFACE, "tx", "off"])?;
    ip("link set dev eth0 up")?;
    for address in ["203.0.113.2/24", "2001:db8:0:1::2/64"] {
        director.add_address(INTERFACE, address)?;
    }
    lab.director_mac = lab.director.mac(INTERFACE)?;

    let mut native = lab.up_command()?;
    native.args(["--interface", INTERFACE, "--xdp-mode", "native"]);
    let said = refused(&lab, native, "native")?;
    ensure_said(&said, &["driver of eth0", "--xdp-mode generic"])?;
    ensure!(lab.xdp()?.is_none());

    lab.start_director(&[])?;
    ensure!(lab.xdp()?.is_some_and(|(mode, _)| mode == "generic"));
    let log = lab.lb_ctl.as_ref().context("lb-ctl runs")?.log();
    ensure_said(&log, &["WARN", "GENERIC MODE", "most of the speed"])?;
    let _echoes = serve(&lab)?;
    for family in FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let talk = talk(&lab.client, protocol, family, 40)?;
            ensure!(talk.by_backend().len() == 2, "{:?}", talk.by_backend());
            talk.round("in generic mode")?;
            talk.ensure_steady("in generic mode")?;
        }
    }
    let is_told_once = |status: &Value| -> anyhow::Result<()> {
        let interface = &status["interfaces"][0];
        ensure!(interface["xdp"] == "generic", "{interface}");
        ensure!(
            interface["note"].as_str().is_some_and(|n| !n.is_empty()),
            "{interface}"
        );
        let warnings = status["warnings"].as_array().context("warnings")?;
        let generic = |w: &&Value| w.as_str().is_some_and(|w| w.contains("generic"));
        let told = warnings.iter().filter(generic).count();
        ensure!(told == 1, "told {told} times: {warnings:?}");
        Ok(())
    };
    is_told_once(&lab.status()?)?;
    ensure_said(&lab.lb_ctl(&["status"])?, &["eth0 (GENERIC)"])?;
    // The next one adopts it and says so too.
    lab.end_director(Signal::SIGKILL)?;
    lab.start_director(&[])?;
    is_told_once(&lab.status()?)?;
    lab.down()?;
    ensure_clean(&lab)
}
