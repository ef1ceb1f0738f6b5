//! Next hops: they follow what happens on the segments, within a second.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

mod foreign;
mod lost;
mod segments;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::packets::{Arp, Ndp, PacketSocket};
use integration::talk::{Echo, Pace, Protocol, Talkers};
use integration::topology::{DrLab, Family, INTERFACE};
use integration::{Host, Mac};
use serde_json::{Value, json};

const PORT: u16 = 7000;
const LONG: Duration = Duration::from_secs(20);
/// What the kernel has learnt is in the maps within a second; some more for
/// a slow machine.
const A_SECOND: Duration = Duration::from_secs(3);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn talk(client: &Host, family: Family, count: usize) -> anyhow::Result<Talkers> {
    let vip = SocketAddr::new(family.vip(), PORT);
    Talkers::start(client, Protocol::Tcp, vip, count, Pace::CALM)
}

fn name(family: Family) -> String {
    format!("talk-{family}")
}

/// One service for each family on these backends, which serve it.
fn serve(lab: &DrLab, backends: &[usize]) -> anyhow::Result<Vec<Echo>> {
    let mut echoes = Vec::new();
    for &i in backends {
        echoes.push(echo(lab, i)?);
    }
    for family in FAMILIES {
        let service = lab.plain_service(&name(family), family, Protocol::Tcp, PORT, backends);
        lab.put_service(&service)?;
    }
    Ok(echoes)
}

/// An echo server on a backend, for the VIPs of both families.
fn echo(lab: &DrLab, i: usize) -> anyhow::Result<Echo> {
    lab.agent_apply(i)?;
    let vips = FAMILIES.map(|family| SocketAddr::new(family.vip(), PORT));
    Echo::start(&lab.backends[i].host, &vips)
}

/// A service's backend, as the API shows it.
fn backend(status: &Value, address: IpAddr) -> Value {
    let mut backends = status["backends"].as_array().into_iter().flatten();
    let address = address.to_string();
    let found = backends.find(|b| b["address"] == address.as_str());
    found.cloned().unwrap_or(Value::Null)
}

fn wait_next_hop(
    lab: &DrLab,
    family: Family,
    address: IpAddr,
    mac: Mac,
    interface: &str,
    deadline: Duration,
) -> anyhow::Result<()> {
    let expected = json!({"mac": mac.to_string(), "interface": interface});
    let what = format!("{address} by {expected}");
    lab.wait_service(&name(family), &what, deadline, |status| {
        let backend = backend(status, address);
        backend["next_hop"] == expected && backend["state"] == "active"
    })?;
    Ok(())
}

/// Says so to the whole segment.
fn announce(host: &Host, mac: Mac, address: IpAddr) -> anyhow::Result<()> {
    let frame = match address {
        IpAddr::V4(v4) => Arp::gratuitous(mac, v4).to_frame(),
        IpAddr::V6(v6) => Ndp::unsolicited(mac, v6).to_multicast_frame(mac),
    };
    PacketSocket::open(host, INTERFACE)?.send(&frame)
}

/// A backend gets another MAC address and says so: it is followed at once,
/// and its connections go on.
#[test]
fn a_new_mac_address_is_followed() -> anyhow::Result<()> {
    let mut lab = DrLab::new("newmac", 2)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab, &[0, 1])?;
    let talks = FAMILIES.map(|family| talk(&lab.client, family, 20));
    let talks = talks.into_iter().collect::<Result<Vec<_>, _>>()?;
    let host = &lab.backends[0].host;
    for number in [0x51, 0x52] {
        let mac = Mac([2, 0, 0, 0, 0, number]);
        // Up all the time, and so it keeps its IPv6 address.
        let text = mac.to_string();
        host.run("ip", ["link", "set", "dev", INTERFACE, "address", &text])?;
        for family in FAMILIES {
            let address = lab.backends[0].address(family);
            announce(host, mac, address)?;
            wait_next_hop(&lab, family, address, mac, INTERFACE, A_SECOND)?;
        }
        for talk in &talks {
            talk.round("after the MAC address has changed")?;
        }
    }
    for talk in &talks {
        talk.ensure_steady("after two other MAC addresses")?;
    }
    Ok(())
}

/// The director itself gets another MAC address.
#[test]
fn the_director_follows_its_own_mac_address() -> anyhow::Result<()> {
    let mut lab = DrLab::new("ownmac", 2)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab, &[0, 1])?;
    let talks = FAMILIES.map(|family| talk(&lab.client, family, 20));
    let talks = talks.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mac = Mac([2, 0, 0, 0, 0, 0x53]);
    let text = mac.to_string();
    lab.director
        .run("ip", ["link", "set", "dev", INTERFACE, "address", &text])?;
    lab.director_mac = mac;
    for (family, talk) in FAMILIES.into_iter().zip(&talks) {
        lab.wait_status("the client to know the new MAC address", LONG, |_| {
            lab.vip_owner(family).ok().as_deref() == Some("director")
        })?;
        talk.round("with the director's new MAC address")?;
        talk.ensure_steady("with the director's new MAC address")?;
    }
    Ok(())
}

/// A backend that is not there yet is shown so, gets nothing, and joins when
/// it comes.
#[test]
fn a_backend_that_comes_up_later_joins_then() -> anyhow::Result<()> {
    let mut lab = DrLab::new("later", 2)?;
    let host = lab.backends[1].host.clone();
    host.run("ip", ["link", "set", "dev", INTERFACE, "down"])?;
    lab.start_director(&[])?;
    let _first = serve(&lab, &[0])?;
    for family in FAMILIES {
        let late = lab.backends[1].address(family);
        let path = format!("/v1/services/{}/backends", name(family));
        let start = Instant::now();
        lab.api().post(&path, &json!({"address": late}))?.ok()?;
        ensure!(start.elapsed() < A_SECOND, "{:?}", start.elapsed());
        let status = lab.service_status(&name(family))?;
        let shown = backend(&status, late);
        ensure!(shown["state"] == "unresolved", "{shown}");
        ensure!(shown["share"] == 0.0, "{shown}");
        ensure!(shown.get("next_hop").is_none(), "{shown}");
        let protocol = match family {
            Family::V4 => "ARP",
            Family::V6 => "NDP",
        };
        let why = format!("{late} does not answer {protocol} on {INTERFACE}");
        ensure!(shown["reason"] == why.as_str(), "{shown}");
        let warnings = lab.status()?["warnings"].to_string();
        ensure!(warnings.contains(&why), "{warnings}");
        ensure!(lab.lb_ctl(&["status"])?.contains(&why));
        let alone = talk(&lab.client, family, 30)?.by_backend();
        ensure!(alone.keys().eq(["b1"]), "{alone:?}");
    }
    host.run("ip", ["link", "set", "dev", INTERFACE, "up"])?;
    // The link took its IPv6 address along.
    let late = lab.backends[1].address(Family::V6);
    host.run(
        "ip",
        [
            "address",
            "replace",
            &format!("{late}/64"),
            "dev",
            INTERFACE,
            "nodad",
        ],
    )?;
    let _second = echo(&lab, 1)?;
    for family in FAMILIES {
        let late = &lab.backends[1];
        wait_next_hop(
            &lab,
            family,
            late.address(family),
            late.mac,
            INTERFACE,
            LONG,
        )?;
        let both = talk(&lab.client, family, 30)?.by_backend();
        ensure!(both.keys().eq(["b1", "b2"]), "{both:?}");
    }
    Ok(())
}
