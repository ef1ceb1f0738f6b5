//! Backends behind another interface of the director.

use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use integration::agent::Agent;
use integration::talk::Echo;
use integration::topology::{DrLab, Family, INTERFACE};
use integration::{Host, Mac, Segment, eventually};
use serde_json::json;

use super::{A_SECOND, FAMILIES, LONG, PORT, name, serve, talk, wait_next_hop};

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
    ensure!(has_program(&lab, "eth0")?);
    // The kernel ends what is no longer pinned in its own time.
    let is_left = |lab: &DrLab, ifname: &str| has_program(lab, ifname).ok() == Some(false);
    eventually("eth1 to be left", LONG, || is_left(&lab, "eth1"));
    ensure!(lab.status()?["interfaces"].as_array().map(Vec::len) == Some(1));
    lab.down()?;
    eventually("eth0 to be left", LONG, || is_left(&lab, "eth0"));
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
