//! The director tells who else answers for a VIP, as it happens, and stops
//! telling when nobody does.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::time::Duration;

use anyhow::{Context, ensure};
use integration::eventually;
use integration::packets::{Arp, PacketSocket};
use integration::talk::Protocol;
use integration::topology::{DrLab, Family, INTERFACE};
use serde_json::{Value, json};

/// A theft is told within this time.
const SOON: Duration = Duration::from_secs(8);
/// And forgotten within this: longer than the director remembers.
const LATER: Duration = Duration::from_secs(25);

fn scene(name: &str) -> anyhow::Result<DrLab> {
    let mut lab = DrLab::new(name, 2)?;
    lab.start_director(&[])?;
    for family in [Family::V4, Family::V6] {
        let service =
            lab.plain_service(&format!("web-{family}"), family, Protocol::Tcp, 80, &[0, 1]);
        lab.put_service(&service)?;
    }
    for family in [Family::V4, Family::V6] {
        lab.wait_status("the VIP on the director", SOON, |_| {
            lab.director_has(family.vip()).ok() == Some(true)
        })?;
    }
    ensure!(thieves(&lab.status()?, Family::V4).is_empty());
    ensure!(thieves(&lab.status()?, Family::V6).is_empty());
    Ok(lab)
}

/// MAC addresses of those that take a VIP.
fn thieves(status: &Value, family: Family) -> Vec<String> {
    let vip = family.vip().to_string();
    let vips = status["vips"].as_array().into_iter().flatten();
    vips.filter(|v| v["address"] == vip.as_str())
        .flat_map(|v| v["thieves"].as_array().into_iter().flatten())
        .filter_map(|thief| Some(thief["mac"].as_str()?.to_owned()))
        .collect()
}

fn is_told(lab: &DrLab, family: Family, thief: usize) -> anyhow::Result<()> {
    let mac = lab.backends[thief].mac.to_string();
    let expected = [mac.clone()];
    let status = lab.wait_status("the thief to be told", SOON, |status| {
        thieves(status, family) == expected
    })?;
    let vip = status["vips"].as_array().into_iter().flatten();
    let mut vip = vip.filter(|v| v["address"] == family.vip().to_string().as_str());
    let thief = &vip.next().context("no VIP")?["thieves"][0];
    ensure!(thief["interface"] == INTERFACE, "{thief}");
    ensure!(
        thief["last_seen"].as_u64() >= thief["first_seen"].as_u64(),
        "{thief}"
    );

    // One thing to look at, one warning, and it comes first.
    let warnings = status["warnings"].as_array().context("warnings")?;
    let (vip, mac) = (family.vip().to_string(), mac.as_str());
    let of_it = |w: &&Value| {
        w.as_str()
            .is_some_and(|w| w.contains(&vip) && w.contains(mac) && w.contains("lb-agent check"))
    };
    let told = warnings.iter().filter(of_it).count();
    ensure!(told == 1, "told {told} times: {warnings:?}");
    ensure!(warnings.iter().take(1).all(|w| of_it(&w)), "{warnings:?}");

    let text = lab.lb_ctl(&["status"])?;
    for word in [vip.as_str(), mac] {
        ensure!(text.contains(word), "{word} is missing in:\n{text}");
    }
    let log = lab.lb_ctl.as_ref().context("lb-ctl runs")?.log();
    ensure!(log.contains("WARN") && log.contains(mac), "{log}");
    Ok(())
}

fn is_forgotten(lab: &DrLab, family: Family) -> anyhow::Result<()> {
    lab.wait_status("the thief to be forgotten", LATER, |status| {
        thieves(status, family).is_empty()
    })?;
    Ok(())
}

/// A backend that holds the VIP on lo and knows nothing of ARP.
#[test]
fn an_arp_thief_is_told_until_lb_agent_ends_it() -> anyhow::Result<()> {
    let lab = scene("thief4")?;
    let thief = &lab.backends[0].host;
    thief.add_address("lo", &format!("{}/32", Family::V4.vip()))?;
    is_told(&lab, Family::V4, 0)?;
    ensure!(thieves(&lab.status()?, Family::V6).is_empty());
    lab.agent_apply(0)?;
    is_forgotten(&lab, Family::V4)?;
    // And it is told again.
    lab.agent(0, "undo", &[])?;
    thief.set_sysctl("net.ipv4.conf.all.arp_ignore", 0)?;
    let vip = format!("{}/32", Family::V4.vip());
    thief.run("ip", ["address", "replace", &vip, "dev", "lo"])?;
    is_told(&lab, Family::V4, 0)
}

/// Two thieves at once, told both.
#[test]
fn every_thief_is_told() -> anyhow::Result<()> {
    let lab = scene("thieves")?;
    for backend in &lab.backends {
        let vip = format!("{}/32", Family::V4.vip());
        backend.host.add_address("lo", &vip)?;
    }
    let mut expected: Vec<String> = lab.backends.iter().map(|b| b.mac.to_string()).collect();
    expected.sort();
    lab.wait_status("both thieves to be told", SOON, |status| {
        let mut seen = thieves(status, Family::V4);
        seen.sort();
        seen == expected
    })?;
    Ok(())
}

/// IPv6: an address on lo is not answered for, one on eth0 is.
#[test]
fn an_ndp_thief_is_told_until_the_vip_is_taken_from_it() -> anyhow::Result<()> {
    let lab = scene("thief6")?;
    let thief = &lab.backends[1].host;
    let vip = format!("{}/128", Family::V6.vip());
    thief.add_address(INTERFACE, &vip)?;
    is_told(&lab, Family::V6, 1)?;
    ensure!(thieves(&lab.status()?, Family::V4).is_empty());
    thief.run("ip", ["address", "del", &vip, "dev", INTERFACE])?;
    is_forgotten(&lab, Family::V6)?;
    // Where lb-agent holds it, it is no theft.
    lab.agent_apply(1)?;
    let vip = Family::V6.vip().to_string();
    let stays_quiet = || thieves(&lab.status().unwrap_or(json!(null)), Family::V6).is_empty();
    eventually("the backend to hold the VIP", SOON, || {
        thief
            .run("ip", ["-6", "address", "show", "dev", "lo"])
            .is_ok_and(|t| t.contains(&vip))
    });
    ensure!(stays_quiet());
    Ok(())
}

/// Whose VIPs the operator moves about stands by while another director has
/// one; when it has the VIP itself, that is theft.
#[test]
fn a_director_that_stands_by_is_not_robbed() -> anyhow::Result<()> {
    let mut lab = DrLab::new("standby", 2)?;
    let ear = PacketSocket::open(&lab.director, INTERFACE)?;
    lab.start_director(&["--vip-address", "operator"])?;
    let service = lab.plain_service("web", Family::V4, Protocol::Tcp, 80, &[0, 1]);
    lab.put_service(&service)?;
    let (other, vip) = (&lab.backends[0], Family::V4.vip());
    let own = format!("{vip}/32");
    other.host.add_address("lo", &own)?;
    // Probes are a second apart: the first answer has been heard when the
    // second comes.
    for _ in 0..2 {
        let answer = ear.receive_where(SOON, |frame| {
            Arp::parse(frame).filter(|arp| arp.sender_ip == vip && arp.sender_mac == other.mac)
        })?;
        ensure!(answer.is_some(), "nobody answers for {vip}");
    }
    ensure!(thieves(&lab.status()?, Family::V4).is_empty());
    lab.director.add_address("lo", &own)?;
    is_told(&lab, Family::V4, 0)?;
    lab.director
        .run("ip", ["address", "del", &own, "dev", "lo"])?;
    is_forgotten(&lab, Family::V4)
}

/// What was told goes when the VIP's last service does.
#[test]
fn a_thief_of_what_is_no_vip_is_none() -> anyhow::Result<()> {
    let lab = scene("nothief")?;
    let thief = &lab.backends[0].host;
    thief.add_address("lo", &format!("{}/32", Family::V4.vip()))?;
    is_told(&lab, Family::V4, 0)?;
    lab.api()
        .delete(&format!("/v1/services/web-{}", Family::V4))?
        .ok()?;
    let status = lab.status()?;
    ensure!(thieves(&status, Family::V4).is_empty(), "{status}");
    let mac = lab.backends[0].mac.to_string();
    ensure!(!status["warnings"].to_string().contains(&mac), "{status}");
    Ok(())
}
