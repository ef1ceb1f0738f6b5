//! Services in NAT mode of every shape: on all ports, several before one
//! server, made on the command line, changed in place.
//!
//! Needs root, and `lb-ctl` built: `cargo xtask build-ebpf && cargo build -p
//! lb-ctl -p lb-agent`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use integration::talk::{Echo, Pace, Protocol, Talkers};
use integration::topology::{Family, Nat, Site};
use serde_json::json;

const FLOWS: usize = 30;
const PORT: u16 = 7000;

/// More patient than a slow machine is slow: what is lost is lost.
const PACE: Pace = Pace {
    every: Duration::from_millis(250),
    patience: Duration::from_secs(4),
};

fn talk(site: &Site, protocol: Protocol, family: Family, port: u16) -> anyhow::Result<Talkers> {
    let vip = SocketAddr::new(family.vip(), port);
    Talkers::start(&site.client, protocol, vip, FLOWS, PACE)
}

/// A service on port 0 has all ports, and its servers are asked at the port
/// that the client asked at.
fn every_port_is_served(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    const PORTS: [u16; 3] = [1, 7000, 65_535];
    let mut site = Site::nat(name, nat, 2)?;
    site.start_director(&[])?;
    let mut echoes = Vec::new();
    for backend in &site.backends {
        let addresses = PORTS.map(|port| SocketAddr::new(backend.address(family), port));
        echoes.push(Echo::start(&backend.host, &addresses)?);
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let name = protocol.name();
        let mut service = site.plain_service(name, family, protocol, 0, &[0, 1]);
        let backends = site.backends.iter();
        service["backends"] = backends
            .map(|backend| json!({"address": backend.address(family)}))
            .collect();
        site.put_service(&service)?;
        for port in PORTS {
            let talk = talk(&site, protocol, family, port)?;
            talk.round("on a port of all")?;
            talk.ensure_steady("on a port of all")?;
            let shares = talk.by_backend();
            ensure!(shares.len() == 2, "not all backends served: {shares:?}");
        }
    }
    site.ensure_checksums_right()
}

#[test]
fn every_port_is_served_gateway_v4() -> anyhow::Result<()> {
    every_port_is_served("natzero4", Nat::GATEWAY, Family::V4)
}

#[test]
fn every_port_is_served_gateway_v6() -> anyhow::Result<()> {
    every_port_is_served("natzero6", Nat::GATEWAY, Family::V6)
}

#[test]
fn every_port_is_served_full_v4() -> anyhow::Result<()> {
    every_port_is_served("fullzero4", Nat::FULL, Family::V4)
}

#[test]
fn every_port_is_served_full_v6() -> anyhow::Result<()> {
    every_port_is_served("fullzero6", Nat::FULL, Family::V6)
}

/// Several services before the same servers: each answer comes from the port
/// that was asked, also when the second service comes while the first one's
/// flows talk, and goes. Each has client ports of its own: two flows from one
/// port to one server would be one to it, and the second is refused.
fn servers_are_shared(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    let mut site = Site::nat(name, nat, 2)?;
    site.start_director(&[])?;
    let echoes = (0..2).map(|i| site.start_echo(i, family, PORT));
    let _echoes = echoes.collect::<anyhow::Result<Vec<_>>>()?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let first = site.plain_service("first", family, protocol, PORT, &[0, 1]);
        site.put_service(&first)?;
        let talk = |ports: &str, port| {
            let range = "net.ipv4.ip_local_port_range";
            site.client.set_sysctl(range, ports)?;
            talk(&site, protocol, family, port)
        };
        let of_first = talk("20000 29999", PORT)?;
        let mut second = first.clone();
        second["name"] = json!("second");
        second["port"] = json!(PORT + 1);
        site.put_service(&second)?;
        of_first.round("beside a second service")?;
        let of_second = talk("30000 39999", PORT + 1)?;
        let more_of_first = talk("40000 49999", PORT)?;
        for talk in [&of_first, &of_second, &more_of_first] {
            talk.round("before shared servers")?;
        }
        of_second.ensure_steady("before shared servers")?;
        drop(of_second);
        site.api().delete("/v1/services/second")?.ok()?;
        for talk in [&of_first, &more_of_first] {
            talk.round("after the second service has gone")?;
            talk.ensure_steady("at the end")?;
        }
        drop((of_first, more_of_first));
        site.api().delete("/v1/services/first")?.ok()?;
    }
    site.ensure_checksums_right()
}

#[test]
fn servers_are_shared_gateway_v4() -> anyhow::Result<()> {
    servers_are_shared("natshare4", Nat::GATEWAY, Family::V4)
}

#[test]
fn servers_are_shared_gateway_v6() -> anyhow::Result<()> {
    servers_are_shared("natshare6", Nat::GATEWAY, Family::V6)
}

#[test]
fn servers_are_shared_full_v4() -> anyhow::Result<()> {
    servers_are_shared("fullshare4", Nat::FULL, Family::V4)
}

/// `lb-ctl service add … --full-nat`, and the whole state in a file.
#[test]
fn made_on_the_command_line() -> anyhow::Result<()> {
    let family = Family::V4;
    let mut site = Site::nat("natcli", Nat::FULL, 1)?;
    site.start_director(&[])?;
    let _echo = site.start_echo(0, family, PORT)?;
    let (vip, backend) = (family.vip().to_string(), site.backend_name(family, PORT, 0));
    let port = PORT.to_string();
    let add = ["service", "add", "talk", "--vip", &vip, "--port", &port];
    let nat = ["--protocol", "tcp", "--mode", "nat", "--full-nat"];
    site.lb_ctl(&[&add[..], &nat].concat())?;
    site.lb_ctl(&["backend", "add", "talk", &backend])?;
    site.wait_backend("talk", &backend, "active", Duration::from_secs(10))?;
    talk(&site, Protocol::Tcp, family, PORT)?.ensure_steady("as made by hand")?;
    let text = site.lb_ctl(&["service", "get", "talk"])?;
    ensure!(text.contains("full"), "not shown: {text}");
    let exported = site.lb_ctl(&["export"])?;
    ensure!(
        exported.contains("full_nat") && exported.contains("nat_pool"),
        "{exported}"
    );
    Ok(())
}
