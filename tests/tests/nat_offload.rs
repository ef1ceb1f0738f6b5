//! NAT of packets whose checksums nobody has finished yet, as those of local
//! sockets are on veth pairs unless told otherwise. In generic mode the kernel
//! finishes them after the program, in native mode nobody else does.
//!
//! Needs root, and `lb-ctl` built: `cargo xtask build-ebpf && cargo build -p
//! lb-ctl -p lb-agent`.

use std::net::SocketAddr;
use std::time::Duration;

use integration::talk::{Pace, Protocol, Talkers};
use integration::topology::{Family, Nat, Scene, Site};

const BYTES: u64 = 20_000_000;
const FLOWS: usize = 40;
/// A port of a UDP service whose backends have no server.
const SILENT: u16 = 7001;

/// More patient than a slow machine is slow: what is lost is lost.
const PACE: Pace = Pace {
    every: Duration::from_millis(250),
    patience: Duration::from_secs(4),
};

fn all_is_well(name: &str, nat: Nat, family: Family, xdp_mode: &str) -> anyhow::Result<()> {
    let mut site = Site::nat(name, nat, 2)?;
    site.leave_checksums_open()?;
    site.start_director(&["--xdp-mode", xdp_mode])?;
    let mut echoes = Vec::new();
    for i in 0..2 {
        echoes.push(site.start_echo(i, family, Scene::PORT)?);
    }
    for (name, protocol, port) in [
        ("web", Protocol::Tcp, 80),
        ("talk", Protocol::Tcp, Scene::PORT),
        ("ask", Protocol::Udp, Scene::PORT),
        ("silent", Protocol::Udp, SILENT),
    ] {
        let service = site.plain_service(name, family, protocol, port, &[0, 1]);
        site.put_service(&service)?;
    }
    let vip = SocketAddr::new(family.vip(), Scene::PORT);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let talk = Talkers::start(&site.client, protocol, vip, FLOWS, PACE)?;
        talk.round("with open checksums")?;
        talk.ensure_steady("with open checksums")?;
    }
    site.ensure_refused(family, SILENT)?;
    site.upload(family, BYTES)?;
    site.download(family, BYTES)?;
    site.ensure_checksums_right()
}

#[test]
fn open_checksums_native_gateway_v4() -> anyhow::Result<()> {
    all_is_well("natgate4", Nat::GATEWAY, Family::V4, "native")
}

#[test]
fn open_checksums_native_gateway_v6() -> anyhow::Result<()> {
    all_is_well("natgate6", Nat::GATEWAY, Family::V6, "native")
}

#[test]
fn open_checksums_native_full_v4() -> anyhow::Result<()> {
    all_is_well("natfull4", Nat::FULL, Family::V4, "native")
}

#[test]
fn open_checksums_native_full_v6() -> anyhow::Result<()> {
    all_is_well("natfull6", Nat::FULL, Family::V6, "native")
}

#[test]
fn open_checksums_generic_gateway_v4() -> anyhow::Result<()> {
    all_is_well("gengate4", Nat::GATEWAY, Family::V4, "generic")
}

#[test]
fn open_checksums_generic_gateway_v6() -> anyhow::Result<()> {
    all_is_well("gengate6", Nat::GATEWAY, Family::V6, "generic")
}

#[test]
fn open_checksums_generic_full_v4() -> anyhow::Result<()> {
    all_is_well("genfull4", Nat::FULL, Family::V4, "generic")
}

#[test]
fn open_checksums_generic_full_v6() -> anyhow::Result<()> {
    all_is_well("genfull6", Nat::FULL, Family::V6, "generic")
}
