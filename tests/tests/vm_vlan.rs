//! A director on a trunk, on Debian's kernels: clients in a VLAN, backends in a
//! VLAN within another, and a network card that would take the tags off.
//!
//! Needs what `cargo xtask setup` brings, and `lb-ctl` and `lb-agent` built:
//! `cargo xtask build-ebpf && cargo build -p lb-ctl -p lb-agent`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::Host;
use integration::agent::Agent;
use integration::talk::{Echo, Pace, Protocol, Talkers};
use integration::topology::{Family, INTERFACE, Site};
use integration::vm::{Builder, Kernel, in_vm};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(300);
/// Enough that each of two backends gets one, but for once in a billion times.
const FLOWS: usize = 32;
/// Port of the service in each mode.
const DR: u16 = 7000;
const NAT: u16 = 7001;
const TUN: u16 = 7002;

/// The clients' VLAN.
const CLIENTS: &str = "eth0.10";
/// The backends' VLAN, within [`OUTER`].
const BACKENDS: &str = "eth0.20.30";
const OUTER: &str = "eth0.20";

/// Address of a host in the backends' VLAN.
fn inner(family: Family, number: u8) -> String {
    match family {
        Family::V4 => format!("192.0.2.{number}"),
        Family::V6 => format!("2001:db8:0:30::{number}"),
    }
}

#[test]
fn a_director_on_a_trunk_on_6_1() {
    on(Kernel::V6_1, "a_director_on_a_trunk_on_6_1");
}

#[test]
fn a_director_on_a_trunk_on_6_12() {
    on(Kernel::V6_12, "a_director_on_a_trunk_on_6_12");
}

fn on(kernel: Kernel, test: &str) {
    let configure = |vm: Builder| vm.module("8021q");
    in_vm(kernel, test, LONG, configure, || {
        if let Err(e) = trunk() {
            panic!("{e:#}");
        }
    });
}

fn trunk() -> anyhow::Result<()> {
    let mut site = Site::new("trunk", 2)?;
    keep_tags_in_frames(&site)?;
    let (client, director) = (site.client.clone(), site.director.clone());
    into_clients_vlan(&client, 100)?;
    into_clients_vlan(&director, 2)?;
    into_backends_vlan(&director, 2)?;
    let mut echoes = Vec::new();
    for (i, backend) in site.backends.iter().enumerate() {
        into_clients_vlan(&backend.host, 21 + i as u8)?;
        into_backends_vlan(&backend.host, 21 + i as u8)?;
        let vips = format!("{},{}", Family::V4.vip(), Family::V6.vip());
        let apply = ["apply", "--vip", &vips, "--interface", CLIENTS];
        let applied = Agent::new(&site.lab, &backend.host)?.call(&apply)?;
        ensure!(applied.code == 0, "{applied:?}");
        for family in [Family::V4, Family::V6] {
            let rip: std::net::IpAddr = inner(family, 21 + i as u8).parse()?;
            let addresses = [
                SocketAddr::new(family.vip(), DR),
                SocketAddr::new(family.vip(), TUN),
                SocketAddr::new(rip, DR),
                SocketAddr::new(rip, NAT),
            ];
            echoes.push(Echo::start(&backend.host, &addresses)?);
        }
    }
    ensure!(strips(&director)?, "the card cannot take tags off");
    site.start_director(&["--xdp-mode", "native"])?;

    for family in [Family::V4, Family::V6] {
        put(&site, "dr", family, DR)?;
        served(&site, "dr", family, DR).context("DR")?;
    }
    // The device comes back with another index.
    director.run("ip", ["link", "delete", "dev", OUTER])?;
    let is_gone = |status: &Value| status["backends"][0]["state"] != "active";
    site.wait_service("dr-4", "to have lost its VLAN", LONG, is_gone)?;
    into_backends_vlan(&director, 2)?;
    // With this one the VIPs go, and come back to it.
    director.run("ip", ["link", "delete", "dev", CLIENTS])?;
    let are_held_by = |interface: &str| {
        let expected = json!([interface]);
        move |status: &Value| {
            let mut vips = status["vips"].as_array().into_iter().flatten();
            vips.all(|vip| vip["interfaces"] == expected)
        }
    };
    site.wait_status("VIPs on the trunk", LONG, are_held_by(INTERFACE))?;
    into_clients_vlan(&director, 2)?;
    site.wait_status("VIPs in the VLAN", LONG, are_held_by(CLIENTS))?;
    for family in [Family::V4, Family::V6] {
        served(&site, "dr", family, DR).context("DR after the VLANs came back")?;
    }
    ensure!(!strips(&director)?, "the card takes tags off");
    ensure_no_warnings(&site)?;

    for backend in &site.backends {
        decapsulate(&site, &backend.host)?;
    }
    for family in [Family::V4, Family::V6] {
        put(&site, "tun", family, TUN)?;
        served(&site, "tun", family, TUN).context("TUN")?;
        served(&site, "dr", family, DR).context("DR beside TUN")?;
    }

    // The director is the backends' gateway.
    for backend in &site.backends {
        for (family, version) in [(Family::V4, "-4"), (Family::V6, "-6")] {
            let client = client_address(family);
            let route = [version, "route", "add", client, "via", &inner(family, 2)];
            backend.host.run("ip", route)?;
        }
    }
    for family in [Family::V4, Family::V6] {
        put(&site, "nat", family, NAT)?;
        served(&site, "nat", family, NAT).context("NAT")?;
    }
    let forwards = "net/ipv4/conf/eth0.20.30/forwarding";
    ensure!(director.sysctl(forwards)? == "1");
    ensure_no_warnings(&site)?;

    site.down()?;
    ensure!(strips(&director)?, "what was turned off is not on again");
    ensure!(director.sysctl(forwards)? == "0");
    Ok(())
}

/// Virtual cards would hand tags over beside the frames, from one to the other
/// and through the switch, where no XDP program sees them.
fn keep_tags_in_frames(site: &Site) -> anyhow::Result<()> {
    let off = |host: &Host, card: &str| {
        let features = ["tx-vlan-hw-insert", "off", "tx-vlan-stag-hw-insert", "off"];
        host.run("ethtool", [&["-K", card][..], &features].concat())
    };
    for port in site.segment.ports() {
        off(site.segment.switch(), &port)?;
    }
    let backends = site.backends.iter().map(|b| &b.host);
    for host in backends.chain([&site.client, &site.director]) {
        off(host, INTERFACE)?;
        // Addresses belong into VLANs.
        host.run("ip", ["address", "flush", "dev", INTERFACE])?;
    }
    Ok(())
}

fn into_clients_vlan(host: &Host, number: u8) -> anyhow::Result<()> {
    add_vlan(host, INTERFACE, CLIENTS, &["id", "10"])?;
    host.add_address(CLIENTS, &format!("203.0.113.{number}/24"))?;
    host.add_address(CLIENTS, &format!("2001:db8:0:1::{number}/64"))
}

fn into_backends_vlan(host: &Host, number: u8) -> anyhow::Result<()> {
    let kind = ["protocol", "802.1ad", "id", "20"];
    add_vlan(host, INTERFACE, OUTER, &kind)?;
    add_vlan(host, OUTER, BACKENDS, &["id", "30"])?;
    host.add_address(BACKENDS, &format!("{}/24", inner(Family::V4, number)))?;
    host.add_address(BACKENDS, &format!("{}/64", inner(Family::V6, number)))
}

fn add_vlan(host: &Host, lower: &str, name: &str, kind: &[&str]) -> anyhow::Result<()> {
    let add = ["link", "add", "link", lower, "name", name, "type", "vlan"];
    host.run("ip", [&add[..], kind].concat())?;
    // The kernel would put off checksums to a card that does not do them.
    host.run("ethtool", ["-K", name, "tx", "off"])?;
    host.run("ip", ["link", "set", "dev", name, "up"]).map(drop)
}

/// Has a backend take packets out of the director's tunnel, in their VLAN.
fn decapsulate(site: &Site, host: &Host) -> anyhow::Result<()> {
    let vips = format!("{},{}", Family::V4.vip(), Family::V6.vip());
    let directors = [Family::V4, Family::V6].map(|family| inner(family, 2));
    let bpffs = site.lab.bpffs().join(host.name());
    let bpffs = bpffs.to_str().context("lab path is not UTF-8")?;
    let mode = ["apply", "--mode", "tun", "--bpffs", bpffs, "--vip", &vips];
    let interfaces = ["--interface", CLIENTS, "--interface", BACKENDS];
    let directors = ["--director", &directors.join(",")];
    let applied =
        Agent::new(&site.lab, host)?.call(&[&mode[..], &interfaces, &directors].concat())?;
    ensure!(applied.code == 0, "{applied:?}");
    Ok(())
}

/// Whether the director's card takes off tags before XDP sees them.
fn strips(director: &Host) -> anyhow::Result<bool> {
    let text = director.run("ethtool", ["-k", INTERFACE])?;
    Ok(text
        .lines()
        .any(|line| line.trim() == "rx-vlan-offload: on"))
}

const fn client_address(family: Family) -> &'static str {
    match family {
        Family::V4 => "203.0.113.100",
        Family::V6 => "2001:db8:0:1::100",
    }
}

fn name(mode: &str, family: Family) -> String {
    let version = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    format!("{mode}-{version}")
}

/// PUTs a service in this mode, whose backends are known by their addresses in
/// their VLAN.
fn put(site: &Site, mode: &str, family: Family, port: u16) -> anyhow::Result<()> {
    let backend = |number| match mode {
        "nat" => SocketAddr::new(inner(family, number).parse().unwrap(), port).to_string(),
        _ => inner(family, number),
    };
    let name = name(mode, family);
    let service = json!({
        "name": name, "vip": family.vip(), "port": port, "protocol": "tcp", "mode": mode,
        "backends": [{"address": backend(21)}, {"address": backend(22)}],
    });
    let reply = site.api().put(&format!("/v1/services/{name}"), &service)?;
    reply.ok()?;
    Ok(())
}

/// Clients are served by all backends, and the packet path has seen it.
fn served(site: &Site, mode: &str, family: Family, port: u16) -> anyhow::Result<()> {
    let name = name(mode, family);
    let is_active = |status: &Value| {
        let mut backends = status["backends"].as_array().into_iter().flatten();
        backends.all(|backend| backend["state"] == "active")
    };
    site.wait_service(&name, "all backends active", LONG, is_active)?;
    let vip = SocketAddr::new(family.vip(), port);
    let talk = Talkers::start(&site.client, Protocol::Tcp, vip, FLOWS, Pace::CALM)?;
    talk.ensure_steady("in VLANs")?;
    let shares = talk.by_backend();
    ensure!(shares.len() == 2, "{shares:?}");
    let status = site.service_status(&name)?;
    let forwarded = status["packets"].as_u64().unwrap_or(0);
    ensure!(forwarded >= 3 * FLOWS as u64, "{status}");
    Ok(())
}

fn ensure_no_warnings(site: &Site) -> anyhow::Result<()> {
    let status = site.status()?;
    let warnings = status["warnings"].as_array().context("no warnings")?;
    ensure!(warnings.is_empty(), "{warnings:?}");
    Ok(())
}
