//! Who puts VIPs on the director, and who makes them known.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::Mac;
use integration::capture::Capture;
use integration::packets::{Arp, Ndp, NdpKind, PacketSocket};
use integration::talk::Protocol;
use integration::topology::{DrLab, Family, INTERFACE};
use serde_json::{Value, json};

use super::{FAMILIES, LONG, serve, talk};

/// A service that goes takes its VIP along, unless another needs it.
#[test]
fn a_vip_goes_with_its_last_service() -> anyhow::Result<()> {
    let mut lab = DrLab::new("vips", 1)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab)?;
    let wait = |what: &str, family: Family, has: bool| {
        lab.wait_status(what, LONG, |_| {
            lab.director_has(family.vip()).ok() == Some(has)
        })
    };
    for family in FAMILIES {
        wait("the VIP to come", family, true)?;
        let api = lab.api();
        api.delete(&format!("/v1/services/tcp-{family}"))?.ok()?;
        talk(&lab.client, Protocol::Udp, family, 5)?;
        ensure!(lab.director_has(family.vip())?);
        api.delete(&format!("/v1/services/udp-{family}"))?.ok()?;
        wait("the VIP to go", family, false)?;
    }
    Ok(())
}

#[test]
fn the_operator_can_keep_the_vips_to_himself() -> anyhow::Result<()> {
    let mut lab = DrLab::new("operator", 1)?;
    let ear = PacketSocket::open(&lab.client, INTERFACE)?;
    lab.start_director(&["--vip-address", "operator"])?;
    let _echoes = serve(&lab)?;
    let here = |status: &Value, vip: IpAddr| {
        let mut vips = status["vips"].as_array().into_iter().flatten();
        let vip = vips.find(|known| known["address"] == vip.to_string().as_str());
        vip.map(|vip| vip["interfaces"].clone())
    };
    for family in FAMILIES {
        let (vip, nowhere) = (family.vip(), Some(json!([])));
        lab.wait_status("the VIP to be known", LONG, |s| here(s, vip) == nowhere)?;
        ensure!(!lab.director_has(vip)?, "lb-ctl has added {vip}");
    }
    // Another director may have it.
    ensure!(lab.status()?["warnings"] == json!([]));
    // A routing daemon brings the packets: here the client's routes do.
    lab.client
        .run("ip", ["route", "add", "203.0.113.10", "via", "203.0.113.2"])?;
    let via = ["route", "add", "2001:db8:0:1::10", "via", "2001:db8:0:1::2"];
    lab.client.run("ip", via)?;
    for family in FAMILIES {
        talk(&lab.client, Protocol::Tcp, family, 10)?.ensure_steady("by a route")?;
    }
    // The operator's own address is seen, and stays.
    for (family, prefix) in [(Family::V4, 32), (Family::V6, 128)] {
        let vip = family.vip();
        lab.director.add_address("lo", &format!("{vip}/{prefix}"))?;
        let on_lo = Some(json!(["lo"]));
        lab.wait_status("the VIP to be seen", LONG, |s| here(s, vip) == on_lo)?;
    }
    lab.down()?;
    for family in FAMILIES {
        ensure!(lab.director_has(family.vip())?, "an address is gone");
    }
    // Nothing was announced meanwhile.
    let announced = ear.receive_where(Duration::ZERO, |frame| {
        announces(frame, Family::V4)
            .or_else(|| announces(frame, Family::V6))
            .filter(|mac| *mac == lab.director_mac)
    })?;
    ensure!(announced.is_none(), "announced by {announced:?}");
    Ok(())
}

/// The MAC address for which a frame announces a VIP.
fn announces(frame: &[u8], family: Family) -> Option<Mac> {
    match family.vip() {
        IpAddr::V4(vip) => Arp::parse(frame)
            .filter(|arp| arp.is_gratuitous() && arp.sender_ip == vip)
            .map(|arp| arp.sender_mac),
        IpAddr::V6(vip) => {
            let ndp = Ndp::parse(frame).filter(|ndp| ndp.target == vip)?;
            let unsolicited = matches!(
                ndp.kind,
                NdpKind::Advertisement {
                    solicited: false,
                    ..
                }
            );
            ndp.link_layer
                .filter(|_| unsolicited && ndp.destination.is_multicast())
        }
    }
}

/// A VIP is made known when it comes, and again when the interface was down
/// or has another MAC address.
#[test]
fn a_managed_vip_is_announced() -> anyhow::Result<()> {
    let mut lab = DrLab::new("announce", 0)?;
    let ear = PacketSocket::open(&lab.client, INTERFACE)?;
    let hears = |family: Family, mac: Mac| -> anyhow::Result<()> {
        let is_it = |frame: &[u8]| announces(frame, family).filter(|m| *m == mac);
        let heard = ear.receive_where(LONG, is_it)?;
        heard.with_context(|| format!("no announcement of {} by {mac}", family.vip()))?;
        Ok(())
    };
    lab.start_director(&[])?;
    for family in FAMILIES {
        let service = lab.plain_service("web", family, Protocol::Tcp, 80, &[]);
        lab.api()
            .put(&format!("/v1/services/{}", "web"), &service)?
            .ok()?;
        hears(family, lab.director_mac)?;
        lab.api().delete("/v1/services/web")?.ok()?;
    }
    // A client that had another idea learns better, without asking.
    for family in FAMILIES {
        let other = "02:00:00:00:00:77";
        let vip = family.vip().to_string();
        let wrong = [
            "neighbour",
            "replace",
            &vip,
            "lladdr",
            other,
            "dev",
            INTERFACE,
            "nud",
            "stale",
        ];
        lab.client.run("ip", wrong)?;
        let service = lab.plain_service("web", family, Protocol::Tcp, 80, &[]);
        lab.api().put("/v1/services/web", &service)?.ok()?;
        lab.wait_status("the client to know better", LONG, |_| {
            lab.vip_owner(family).ok().as_deref() == Some("director")
        })?;
        lab.api().delete("/v1/services/web")?.ok()?;
    }
    Ok(())
}

/// Clients of a director that is shut down may have their flows carried on by
/// another one: it must not reset them.
#[test]
fn down_resets_no_flow() -> anyhow::Result<()> {
    let mut lab = DrLab::new("noreset", 2)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab)?;
    let talk = talk(&lab.client, Protocol::Tcp, Family::V4, 200)?;
    talk.round("before")?;
    let resets = Capture::start(
        &lab.lab,
        &lab.client,
        INTERFACE,
        "src host 203.0.113.10 and tcp[13] & 4 != 0",
    )?;
    lab.down()?;
    let resets = resets.finish()?;
    ensure!(resets.is_empty(), "{} flows were reset", resets.len());
    Ok(())
}
