//! Next hops: they follow what happens on the segments, within a second.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use integration::agent::Agent;
use integration::packets::{Arp, Ethernet, Ndp, PacketSocket, Udp};
use integration::talk::{Echo, Pace, Protocol, Talkers};
use integration::topology::{DrLab, Family, INTERFACE};
use integration::{Host, Mac, Segment, try_eventually};
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

/// A backend that goes away for good is no longer scheduled.
#[test]
fn a_backend_that_goes_away_is_not_scheduled() -> anyhow::Result<()> {
    let mut lab = DrLab::new("away", 2)?;
    // The kernel gives a neighbour up sooner.
    for (key, value) in [("base_reachable_time_ms", 1000), ("retrans_time_ms", 100)] {
        for version in ["ipv4", "ipv6"] {
            let key = format!("net.{version}.neigh.{INTERFACE}.{key}");
            lab.director.set_sysctl(&key, value)?;
        }
    }
    lab.start_director(&[])?;
    let _echoes = serve(&lab, &[0, 1])?;
    let host = &lab.backends[1].host;
    host.run("ip", ["link", "set", "dev", INTERFACE, "down"])?;
    for family in FAMILIES {
        let address = lab.backends[1].address(family);
        lab.wait_backend_state(&name(family), address, "unresolved", LONG)?;
        let alone = talk(&lab.client, family, 30)?.by_backend();
        ensure!(alone.keys().eq(["b1"]), "{alone:?}");
    }
    Ok(())
}

/// A second segment behind the director's eth1, and the client on it as well:
/// answers from there need no router.
struct TwoSegments {
    lab: DrLab,
    second: Segment,
}

impl TwoSegments {
    fn new(name: &str, backends: u8) -> anyhow::Result<Self> {
        let lab = DrLab::new(name, backends)?;
        let second = lab.lab.segment("lan2")?;
        for (host, number) in [(&lab.director, 2), (&lab.client, 100)] {
            let addresses = second_addresses(number);
            host.attach(&second, "eth1", &addresses.each_ref().map(String::as_str))?;
        }
        // A segment is not answered for on the other.
        for host in [&lab.director, &lab.client] {
            host.set_sysctl("net.ipv4.conf.all.arp_ignore", 1)?;
        }
        Ok(Self { lab, second })
    }

    /// Attaches a host there and shows it the way to the client.
    fn attach(&self, host: &Host, ifname: &str, number: u8) -> anyhow::Result<Mac> {
        let addresses = second_addresses(number);
        let addresses = addresses.each_ref().map(String::as_str);
        let mac = host.attach(&self.second, ifname, &addresses)?;
        for (to, via) in [
            ("203.0.113.100", "198.51.100.100"),
            ("2001:db8:0:1::100", "2001:db8:0:2::100"),
        ] {
            host.run("ip", ["route", "replace", to, "via", via, "dev", ifname])?;
        }
        Ok(mac)
    }
}

/// Addresses on the second segment.
fn second_addresses(number: u8) -> [String; 2] {
    [
        format!("198.51.100.{number}/24"),
        format!("2001:db8:0:2::{number}/64"),
    ]
}

fn second_address(family: Family, number: u8) -> IpAddr {
    let [v4, v6] = second_addresses(number);
    let text = match family {
        Family::V4 => v4,
        Family::V6 => v6,
    };
    let (address, _) = text.split_once('/').expect("a prefix");
    address.parse().expect("an address")
}

/// One backend on the director's own segment, one behind its other interface.
fn packets_are_redirected(name_of_lab: &str, both: bool) -> anyhow::Result<()> {
    let TwoSegments { mut lab, second } = TwoSegments::new(name_of_lab, 1)?;
    let scene = |lab: DrLab| TwoSegments {
        lab,
        second: second.clone(),
    };
    let far = lab.lab.host("far")?;
    let more: &[&str] = if both { &["--interface", "eth1"] } else { &[] };
    lab.start_director(more)?;
    let two = scene(lab);
    let mac = two.attach(&far, INTERFACE, 21)?;
    let lab = &two.lab;
    let agent = Agent::new(&lab.lab, &far)?;
    let vips = format!("{},{}", Family::V4.vip(), Family::V6.vip());
    agent.json(&["apply", "--vip", &vips, "--interface", INTERFACE], 0);
    let vips = FAMILIES.map(|family| SocketAddr::new(family.vip(), PORT));
    let _far = Echo::start(&far, &vips)?;
    let _near = serve(lab, &[0])?;
    for (to, via) in [
        ("198.51.100.100", "203.0.113.100"),
        ("2001:db8:0:2::100", "2001:db8:0:1::100"),
    ] {
        let near = &lab.backends[0].host;
        near.run("ip", ["route", "add", to, "via", via, "dev", INTERFACE])?;
    }
    for family in FAMILIES {
        let address = second_address(family, 21);
        let path = format!("/v1/services/{}/backends", name(family));
        lab.api().post(&path, &json!({"address": address}))?.ok()?;
        wait_next_hop(lab, family, address, mac, "eth1", LONG)?;
        let talk = talk(&lab.client, family, 40)?;
        let seen = talk.by_backend();
        ensure!(seen.keys().eq(["b1", "far"]), "{seen:?}");
        talk.round("through two segments")?;
        talk.ensure_steady("through two segments")?;
        if both {
            // Clients on the second segment: the other way round.
            let vip = family.vip().to_string();
            let director = second_address(family, 2).to_string();
            let via = ["route", "replace", &vip, "via", &director, "dev", "eth1"];
            lab.client.run("ip", via)?;
            let talk = self::talk(&lab.client, family, 40)?;
            let seen = talk.by_backend();
            ensure!(seen.keys().eq(["b1", "far"]), "{seen:?}");
            talk.ensure_steady("from the second segment")?;
            lab.client.run("ip", ["route", "del", &vip])?;
        }
    }
    let drops = lab.status()?["drops"].take();
    let dropped = drops.as_array().into_iter().flatten();
    ensure!(dropped.clone().all(|d| d["count"] == 0), "{drops}");
    Ok(())
}

#[test]
fn packets_are_redirected_to_another_interface() -> anyhow::Result<()> {
    packets_are_redirected("redirect", false)
}

#[test]
fn packets_are_redirected_between_two_interfaces() -> anyhow::Result<()> {
    packets_are_redirected("redirect2", true)
}

/// An interface that is no longer named loses the program.
#[test]
fn an_interface_that_is_no_longer_named_is_left() -> anyhow::Result<()> {
    let TwoSegments { mut lab, .. } = TwoSegments::new("unname", 0)?;
    let has_program = |lab: &DrLab, ifname: &str| {
        let link = lab.director.link(ifname);
        link.map(|link| !link["xdp"]["prog"].is_null())
    };
    lab.start_director(&["--interface", "eth1"])?;
    ensure!(lab.status()?["interfaces"].as_array().map(Vec::len) == Some(2));
    ensure!(has_program(&lab, "eth0")? && has_program(&lab, "eth1")?);
    lab.end_director(nix::sys::signal::Signal::SIGTERM)?;
    ensure!(has_program(&lab, "eth0")? && has_program(&lab, "eth1")?);
    lab.start_director(&[])?;
    ensure!(has_program(&lab, "eth0")? && !has_program(&lab, "eth1")?);
    ensure!(lab.status()?["interfaces"].as_array().map(Vec::len) == Some(1));
    lab.down()?;
    ensure!(!has_program(&lab, "eth0")?);
    Ok(())
}

/// A backend moves to the other segment with its address, and back.
#[test]
fn a_backend_that_moves_to_another_segment_is_followed() -> anyhow::Result<()> {
    let mut two = TwoSegments::new("moves", 1)?;
    two.lab.start_director(&[])?;
    let _echo = serve(&two.lab, &[0])?;
    let lab = &two.lab;
    let host = &lab.backends[0].host;
    let talks = FAMILIES.map(|family| talk(&lab.client, family, 10));
    let talks = talks.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mac = two.attach(host, "eth1", 21)?;
    for ifname in ["eth0", "eth1"] {
        host.set_sysctl(&format!("net.ipv4.conf.{ifname}.arp_ignore"), 1)?;
    }
    for (family, talk) in FAMILIES.into_iter().zip(&talks) {
        let rip = lab.backends[0].address(family);
        let (whole, segment) = match family {
            Family::V4 => (32, 24),
            Family::V6 => (128, 64),
        };
        let there = format!("{rip}/{whole}");
        let here = format!("{rip}/{segment}");
        host.run("ip", ["address", "del", &here, "dev", "eth0"])?;
        host.add_address("eth1", &there)?;
        let director = &lab.director;
        director.run("ip", ["route", "add", &there, "dev", "eth1"])?;
        wait_next_hop(lab, family, rip, mac, "eth1", A_SECOND)?;
        talk.round("from the other segment")?;

        host.run("ip", ["address", "del", &there, "dev", "eth1"])?;
        host.add_address("eth0", &here)?;
        director.run("ip", ["route", "del", &there, "dev", "eth1"])?;
        let mac = lab.backends[0].mac;
        wait_next_hop(lab, family, rip, mac, "eth0", A_SECOND)?;
        talk.round("back on the first segment")?;
        talk.ensure_steady("after two moves")?;
    }
    Ok(())
}

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
