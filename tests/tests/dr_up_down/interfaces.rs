//! Interfaces that go down, come back, or are replaced under a director.

use anyhow::{Context, ensure};
use integration::talk::Protocol;
use integration::topology::{DrLab, Family, INTERFACE};
use nix::sys::signal::Signal;

use super::{FAMILIES, LONG, serve, talk};

/// The kernel takes IPv6 addresses from an interface that goes down. lb-ctl
/// puts its VIPs there again, and makes them known.
#[test]
fn an_interface_that_was_down_serves_again() -> anyhow::Result<()> {
    let mut lab = DrLab::new("updown", 2)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab)?;
    for family in FAMILIES {
        talk(&lab.client, Protocol::Tcp, family, 10)?;
    }
    let link = ["link", "set", "dev", INTERFACE];
    lab.director.run("ip", link.iter().chain(&["down"]))?;
    lab.wait_status("a warning", LONG, |status| {
        let warnings = status["warnings"].to_string();
        warnings.contains("interface eth0 is down")
    })?;
    lab.director.run("ip", link.iter().chain(&["up"]))?;
    // The director's own address is the operator's to put back.
    let own = ["address", "replace", "2001:db8:0:1::2/64", "dev", INTERFACE];
    lab.director.run("ip", own.iter().chain(&["nodad"]))?;
    lab.wait_status("no warnings", LONG, |status| {
        status["warnings"].as_array().is_some_and(Vec::is_empty)
    })?;
    for family in FAMILIES {
        ensure!(lab.director_has(family.vip())?, "{}", family.vip());
        let talk = talk(&lab.client, Protocol::Tcp, family, 20)?;
        ensure!(talk.by_backend().len() == 2, "{:?}", talk.by_backend());
        talk.ensure_steady("after the interface was down")?;
    }
    Ok(())
}

/// Another interface under the same name: lb-ctl says that its own is gone,
/// and the next `up` takes the new one.
#[test]
fn an_interface_that_was_replaced_needs_another_up() -> anyhow::Result<()> {
    let mut lab = DrLab::new("replaced", 1)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab)?;
    for family in FAMILIES {
        // So that the client has an idea of where the VIP is.
        talk(&lab.client, Protocol::Udp, family, 10)?;
    }
    let before = lab.director.link(INTERFACE)?["ifindex"].as_u64();
    let link = ["link", "del", "dev", INTERFACE];
    lab.director.run("ip", link)?;
    lab.wait_status("a warning", LONG, |status| {
        let warnings = status["warnings"].to_string();
        warnings.contains("interface eth0 is gone")
    })?;
    let addresses = ["203.0.113.2/24", "2001:db8:0:1::2/64"];
    lab.director_mac = lab.director.attach(&lab.segment, INTERFACE, &addresses)?;
    let after = lab.director.link(INTERFACE)?["ifindex"].as_u64();
    ensure!(before != after, "the same interface");
    ensure!(lab.xdp()?.is_none());
    lab.end_director(Signal::SIGTERM)?;
    lab.start_director(&[])?;
    ensure!(lab.xdp()?.is_some_and(|(mode, _)| mode == "native"));
    for family in FAMILIES {
        lab.wait_status("the client to know the new interface", LONG, |_| {
            lab.vip_owner(family).ok().as_deref() == Some("director")
        })?;
        // The kernel may have begun to ask before the switch let it.
        let service = format!("udp-{family}");
        lab.wait_service(&service, "active", LONG, |status| {
            status["backends"][0]["state"] == "active"
        })?;
        let talk = talk(&lab.client, Protocol::Udp, family, 10)?;
        talk.ensure_steady("through the new interface")?;
    }
    let index = before.context("an index")?;
    let old = lab.director_bpffs().join(format!("link-{index}"));
    ensure!(!old.exists(), "{} is left", old.display());
    lab.down()?;
    super::ensure_clean(&lab)
}

/// An operator who removes a VIP by hand gets it back.
#[test]
fn a_managed_vip_that_is_removed_by_hand_comes_back() -> anyhow::Result<()> {
    let mut lab = DrLab::new("vipback", 1)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab)?;
    for (family, prefix) in [(Family::V4, 32), (Family::V6, 128)] {
        let vip = family.vip();
        let is_there = || lab.director_has(vip).ok() == Some(true);
        lab.wait_status("the VIP", LONG, |_| is_there())?;
        let address = format!("{vip}/{prefix}");
        let removal = ["address", "del", &address, "dev", INTERFACE];
        lab.director.run("ip", removal)?;
        lab.wait_status("the VIP to come back", LONG, |_| is_there())?;
    }
    Ok(())
}
