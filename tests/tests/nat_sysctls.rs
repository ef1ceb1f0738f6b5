//! What forwarding needs is set on the director while there are services in
//! NAT mode, and no longer.
//!
//! Needs root, and `lb-ctl` built: `cargo xtask build-ebpf && cargo build -p
//! lb-ctl -p lb-agent`.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::packets::{Ethernet, PacketSocket, ethertype};
use integration::talk::Protocol;
use integration::topology::{Family, INTERFACE, Nat, Router, Site};
use integration::{Mac, try_eventually};
use nix::sys::signal::Signal;

const LONG: Duration = Duration::from_secs(10);
const SERVICE: &str = "/v1/services/web";
/// What is set, for IPv4 and for IPv6.
const NAMES: [(&str, &[&str]); 2] = [
    (
        "ipv4",
        &["forwarding", "accept_local", "rp_filter", "send_redirects"],
    ),
    ("ipv6", &["forwarding", "accept_ra"]),
];

type Values = BTreeMap<String, String>;

/// Everything on the director that could have been set, on all interfaces.
fn values(site: &Site) -> anyhow::Result<Values> {
    site.director.in_namespace(|| {
        let mut values = Values::new();
        for (version, names) in NAMES {
            let directory = format!("/proc/sys/net/{version}/conf");
            for interface in fs::read_dir(&directory)? {
                let interface = interface?.file_name();
                for name in names {
                    let path = format!("{directory}/{}/{name}", interface.display());
                    let value = fs::read_to_string(&path).with_context(|| path.clone())?;
                    values.insert(path, value.trim().to_owned());
                }
            }
        }
        Ok(values)
    })
}

/// A director that is used to nothing of it, and differs from interface to
/// interface.
fn site(name: &str) -> anyhow::Result<Site> {
    let site = Site::nat(name, Nat::GATEWAY, 1)?;
    for (sysctl, value) in [
        ("net.ipv4.conf.all.rp_filter", 1),
        ("net.ipv4.conf.eth0.rp_filter", 2),
        ("net.ipv4.conf.all.send_redirects", 1),
        ("net.ipv4.conf.eth1.send_redirects", 0),
        ("net.ipv6.conf.eth0.accept_ra", 1),
        ("net.ipv6.conf.lo.forwarding", 1),
    ] {
        site.director.set_sysctl(sysctl, value)?;
    }
    Ok(site)
}

fn put_service(site: &Site) -> anyhow::Result<()> {
    let service = site.plain_service("web", Family::V4, Protocol::Tcp, 80, &[0]);
    site.put_service(&service)
}

fn ensure_set(site: &Site) -> anyhow::Result<()> {
    let mut wanted = vec![
        ("net.ipv4.conf.all.send_redirects", "0"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv6.conf.eth0.accept_ra", "2"),
        ("net.ipv6.conf.eth1.accept_ra", "0"),
    ];
    for interface in ["eth0", "eth1"] {
        for (name, value) in [
            ("forwarding", "1"),
            ("accept_local", "1"),
            ("rp_filter", "2"),
            ("send_redirects", "0"),
        ] {
            let key = format!("net.ipv4.conf.{interface}.{name}");
            let found = site.director.sysctl(&key)?;
            ensure!(found == value, "{key} is {found}");
        }
    }
    wanted.retain(|(key, value)| site.director.sysctl(key).ok().as_deref() != Some(value));
    ensure!(wanted.is_empty(), "not so: {wanted:?}");
    Ok(())
}

fn ensure_as_before(site: &Site, before: &Values) -> anyhow::Result<()> {
    let now = values(site)?;
    let differs = |(path, value): &(&String, &String)| before.get(*path) != Some(value);
    let different: Vec<_> = now.iter().filter(differs).collect();
    ensure!(different.is_empty(), "not as before: {different:?}");
    Ok(())
}

#[test]
fn set_while_there_are_services_in_nat_mode() -> anyhow::Result<()> {
    let mut site = site("sysctls")?;
    let before = values(&site)?;
    site.start_director(&[])?;
    ensure_as_before(&site, &before).context("without services")?;
    put_service(&site)?;
    ensure_set(&site)?;
    site.api().delete(SERVICE)?.ok()?;
    ensure_as_before(&site, &before).context("without the service")?;

    put_service(&site)?;
    site.end_director(Signal::SIGTERM)?;
    ensure_set(&site).context("packets are still forwarded")?;
    site.start_director(&[])?;
    ensure_set(&site)?;
    site.down()?;
    ensure_as_before(&site, &before).context("after lb-ctl down")
}

#[test]
fn put_back_after_a_crash() -> anyhow::Result<()> {
    let mut site = site("sysctlcrash")?;
    let before = values(&site)?;
    for _ in 0..2 {
        site.start_director(&[])?;
        put_service(&site)?;
        site.end_director(Signal::SIGKILL)?;
        ensure_set(&site)?;
    }
    site.start_director(&[])?;
    site.api().delete(SERVICE)?.ok()?;
    ensure_as_before(&site, &before).context("by the one after the killed")?;

    put_service(&site)?;
    site.end_director(Signal::SIGKILL)?;
    site.down()?;
    ensure_as_before(&site, &before).context("by lb-ctl down")
}

#[test]
fn changes_by_others_are_told_and_left_alone() -> anyhow::Result<()> {
    const CHANGED: &str = "net/ipv4/conf/eth1/forwarding";
    let mut site = site("sysctldrift")?;
    let before = values(&site)?;
    site.start_director(&[])?;
    put_service(&site)?;
    let tells =
        |status: &serde_json::Value| status.to_string().contains(&format!("{CHANGED} is 0"));
    ensure!(!tells(&site.status()?));
    site.director.set_sysctl(CHANGED, 0)?;
    site.wait_status("the change to be told", LONG, tells)?;
    site.director.set_sysctl(CHANGED, 1)?;
    site.wait_status("nothing to be told", LONG, |status| !tells(status))?;
    site.director
        .set_sysctl("net.ipv4.conf.eth1.rp_filter", 0)?;
    site.api().delete(SERVICE)?.ok()?;
    let found = site.director.sysctl("net.ipv4.conf.eth1.rp_filter")?;
    ensure!(found == "0", "put back to {found}");
    ensure_as_before(&site, &before)
}

/// A route that another router has announced is not lost when this host
/// becomes one itself.
#[test]
fn an_announced_route_stays() -> anyhow::Result<()> {
    let mut site = site("sysctlra")?;
    let announced = |site: &Site| {
        let routes = ["-6", "route", "show", "default", "proto", "ra"];
        site.director.run("ip", routes)
    };
    let announce = |site: &Site| -> anyhow::Result<()> {
        let router = &site.router()?.host;
        let socket = PacketSocket::open(router, Router::TO_DIRECTOR)?;
        socket.send(&advertisement(router.mac(Router::TO_DIRECTOR)?))
    };
    announce(&site)?;
    try_eventually("the route to be announced", LONG, || {
        announced(&site).is_ok_and(|routes| routes.contains(INTERFACE))
    })?;
    site.start_director(&[])?;
    put_service(&site)?;
    ensure_set(&site)?;
    ensure!(announced(&site)?.contains(INTERFACE), "the route is lost");
    // Nor does it only outlive the change.
    let flush = ["-6", "route", "flush", "proto", "ra"];
    site.director.run("ip", flush)?;
    announce(&site)?;
    try_eventually("the route to be announced again", LONG, || {
        announced(&site).is_ok_and(|routes| routes.contains(INTERFACE))
    })?;
    site.api().delete(SERVICE)?.ok()?;
    ensure!(announced(&site)?.contains(INTERFACE), "the route is lost");
    Ok(())
}

/// A router advertisement (RFC 4861, section 4.2) that makes its sender a
/// default router for half an hour.
fn advertisement(mac: Mac) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    const HOP_LIMIT: u8 = 255;
    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let lifetime = 1800_u16.to_be_bytes();
    let mut message = vec![134, 0, 0, 0, 64, 0, lifetime[0], lifetime[1]];
    // No times; then the source link-layer address.
    message.extend([0; 8]);
    message.extend([1, 1]);
    message.extend(mac.0);
    let mut sum = u32::from(ICMPV6) + message.len() as u32;
    let addresses = [source.octets(), all_nodes.octets()].concat();
    for word in addresses.chunks(2).chain(message.chunks(2)) {
        sum += u32::from(word[0]) << 8 | u32::from(word[1]);
    }
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, HOP_LIMIT];
    packet.extend(addresses);
    packet.extend(message);
    Ethernet {
        destination: Mac([0x33, 0x33, 0, 0, 0, 1]),
        source: mac,
        ethertype: ethertype::IPV6,
    }
    .frame(&packet)
}
