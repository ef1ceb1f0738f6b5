//! Frames that are not addressed to the director.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::packets::{Ethernet, PacketSocket, Udp};
use integration::talk::Protocol;
use integration::topology::{DrLab, Family, INTERFACE};
use integration::{Mac, try_eventually};
use serde_json::json;

use super::{FAMILIES, LONG, PORT, name};

/// A frame for the VIP that is addressed to another host is no business of
/// the director's, whatever the state of its slot.
#[test]
fn a_frame_for_another_mac_address_is_not_touched() -> anyhow::Result<()> {
    let mut lab = DrLab::new("foreign", 2)?;
    lab.start_director(&[])?;
    // Nobody has it: the switch floods it to all.
    let nobody = Mac([2, 0, 0, 0, 0, 0x99]);
    let client_mac = lab.client.mac(INTERFACE)?;
    let socket = PacketSocket::open(&lab.client, INTERFACE)?;
    for family in FAMILIES {
        let service = lab.plain_service(&name(family), family, Protocol::Udp, PORT, &[0]);
        lab.put_service(&service)?;
        // With the second backend, half of the slots are moving.
        for (round, backends) in [(1, 1), (2, 2)] {
            if round == 2 {
                let path = format!("/v1/services/{}/backends", name(family));
                let second = lab.backends[1].address(family);
                lab.api().post(&path, &json!({"address": second}))?.ok()?;
                let moving = lab.service_status(&name(family))?["ring"]["moving"].as_u64();
                ensure!(moving > Some(0), "no slot is moving");
            }
            let ears = lab.backends[..backends].iter();
            let ears = ears.map(|b| PacketSocket::open(&b.host, INTERFACE));
            let ears = ears.collect::<anyhow::Result<Vec<_>>>()?;
            let before = lab.service_status(&name(family))?["packets"].as_u64();
            let before = before.context("packets")?;
            let frame = |port: u16, to: Mac| {
                let udp = Udp {
                    source: client_address(family),
                    destination: family.vip(),
                    source_port: port,
                    destination_port: PORT,
                    payload: port.to_be_bytes().to_vec(),
                };
                udp.to_frame(client_mac, to)
            };
            let ports = 10_000..10_050;
            for port in ports.clone() {
                socket.send(&frame(port, nobody))?;
            }
            // These are the director's: after them all others have come.
            for port in ports.clone() {
                socket.send(&frame(port, lab.director_mac))?;
            }
            let mut seen = Seen::default();
            try_eventually("all frames to arrive", LONG, || {
                for (ear, backend) in ears.iter().zip(&lab.backends) {
                    let moment = Duration::from_millis(20);
                    let heard = ear.receive_where(moment, |frame| {
                        let (ethernet, _) = Ethernet::parse(frame)?;
                        if is_for(frame, family) {
                            seen.note(&ethernet, nobody, backend.mac);
                        }
                        None::<()>
                    });
                    heard.map_err(|e| format!("{e:#}"))?;
                }
                let all = seen.flooded >= backends * ports.len() && seen.forwarded >= ports.len();
                all.then_some(()).ok_or_else(|| format!("{seen:?}"))
            })?;
            let expected = Seen {
                flooded: backends * ports.len(),
                forwarded: ports.len(),
                sources: [client_mac, lab.director_mac].into(),
            };
            ensure!(seen == expected, "{seen:?}");
            let after = lab.service_status(&name(family))?["packets"].as_u64();
            ensure!(after == Some(before + ports.len() as u64), "{after:?}");
        }
    }
    Ok(())
}

/// Frames that backends have seen.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// For nobody.
    flooded: usize,
    /// For the backend.
    forwarded: usize,
    /// Who sent them.
    sources: BTreeSet<Mac>,
}

impl Seen {
    fn note(&mut self, ethernet: &Ethernet, nobody: Mac, backend: Mac) {
        self.flooded += usize::from(ethernet.destination == nobody);
        self.forwarded += usize::from(ethernet.destination == backend);
        self.sources.insert(ethernet.source);
    }
}

fn client_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => "203.0.113.100".parse().expect("an address"),
        Family::V6 => "2001:db8:0:1::100".parse().expect("an address"),
    }
}

/// Whether a frame is UDP for the service.
fn is_for(frame: &[u8], family: Family) -> bool {
    let (protocol, destination, port) = match family {
        Family::V4 => (23, 30..34, 36..38),
        Family::V6 => (20, 38..54, 56..58),
    };
    let vip = match family.vip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    frame.get(protocol) == Some(&17)
        && frame.get(destination) == Some(&vip[..])
        && frame.get(port) == Some(&PORT.to_be_bytes())
}
