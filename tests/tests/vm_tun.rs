//! What the director encapsulates is what the kernel's own tunnel devices
//! expect, on Debian's kernels: every pairing of IP versions, decapsulated by
//! `ipip`, `sit` and `ip6tnl` devices as anybody makes them by hand, bound to
//! the addresses of both ends.
//!
//! Needs what `cargo xtask setup` brings, and `lb-ctl` and `lb-agent` built:
//! `cargo xtask build-ebpf && cargo build -p lb-ctl -p lb-agent`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::talk::{Echo, Pace, Protocol, Talkers};
use integration::topology::{Backend, Family, Site};
use integration::vm::{Builder, Kernel, in_vm};

const LONG: Duration = Duration::from_secs(300);
/// Enough that each of two backends gets one, but for once in a billion times.
const FLOWS: usize = 32;

/// An IP version in another, the device that undoes it, and a port of its own.
struct Pairing {
    inner: Family,
    outer: Family,
    device: &'static str,
    port: u16,
}

const PAIRINGS: [Pairing; 4] = [
    Pairing {
        inner: Family::V4,
        outer: Family::V4,
        device: "by-ipip",
        port: 7044,
    },
    Pairing {
        inner: Family::V6,
        outer: Family::V4,
        device: "by-sit",
        port: 7064,
    },
    Pairing {
        inner: Family::V4,
        outer: Family::V6,
        device: "by-ip6tnl",
        port: 7046,
    },
    Pairing {
        inner: Family::V6,
        outer: Family::V6,
        device: "by-ip6tnl",
        port: 7066,
    },
];

#[test]
fn kernel_devices_decapsulate_on_6_1() {
    on(Kernel::V6_1, "kernel_devices_decapsulate_on_6_1");
}

#[test]
fn kernel_devices_decapsulate_on_6_12() {
    on(Kernel::V6_12, "kernel_devices_decapsulate_on_6_12");
}

fn on(kernel: Kernel, test: &str) {
    let modules = |vm: Builder| vm.module("ipip").module("sit").module("ip6_tunnel");
    in_vm(kernel, test, LONG, modules, || {
        if let Err(e) = every_pairing() {
            panic!("{e:#}");
        }
    });
}

fn every_pairing() -> anyhow::Result<()> {
    let mut site = Site::tun("devices", 2)?;
    site.start_director(&["--xdp-mode", "native"])?;
    let mut echoes = Vec::new();
    for backend in &site.backends {
        make_devices(&site, backend)?;
        let addresses = PAIRINGS.map(|p| SocketAddr::new(p.inner.vip(), p.port));
        echoes.push(Echo::start(&backend.host, &addresses)?);
    }
    for pairing in &PAIRINGS {
        flows_arrive(&site, pairing)
            .with_context(|| format!("{} in {}", pairing.inner, pairing.outer))?;
    }
    Ok(())
}

/// The VIPs and the devices, without any help of `lb-agent`.
fn make_devices(site: &Site, backend: &Backend) -> anyhow::Result<()> {
    let host = &backend.host;
    for family in [Family::V4, Family::V6] {
        host.add_address("lo", &format!("{}/{}", family.vip(), host_bits(family)))?;
    }
    for (device, kind, outer) in [
        ("by-ipip", "ipip", Family::V4),
        ("by-sit", "sit", Family::V4),
        ("by-ip6tnl", "ip6tnl mode any", Family::V6),
    ] {
        let (local, remote) = (backend.address(outer), site.director_address(outer));
        let words = format!("link add {device} type {kind} local {local} remote {remote}");
        host.run("ip", words.split(' '))?;
        host.run("ip", ["link", "set", "dev", device, "up"])?;
    }
    Ok(())
}

fn host_bits(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

fn flows_arrive(site: &Site, pairing: &Pairing) -> anyhow::Result<()> {
    let Pairing {
        inner,
        outer,
        device,
        port,
    } = *pairing;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let name = format!("{}-{port}", protocol.name());
        let mut service = site.plain_service(&name, inner, protocol, port, &[0, 1]);
        let across = site.service_across(&name, inner, outer, &[0, 1]);
        service["backends"] = across["backends"].clone();
        site.put_service(&service)?;
        let before = received(site, device)?;
        let vip = SocketAddr::new(inner.vip(), port);
        let talk = Talkers::start(&site.client, protocol, vip, FLOWS, Pace::CALM)?;
        talk.round("through the kernel's device")?;
        talk.ensure_steady("through the kernel's device")?;
        let shares = talk.by_backend();
        ensure!(shares.len() == 2, "not all backends served: {shares:?}");
        let after = received(site, device)?;
        // A question of each flow at least, and all of them came this way.
        let moved = after - before;
        ensure!(
            moved >= FLOWS as u64,
            "only {moved} packets by {device} for {FLOWS} flows"
        );
    }
    Ok(())
}

/// Packets that came out of all backends' devices of this name.
fn received(site: &Site, device: &str) -> anyhow::Result<u64> {
    let mut sum = 0;
    for backend in &site.backends {
        let text = backend
            .host
            .run("ip", ["-json", "-stats", "link", "show", "dev", device])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let packets = links[0]["stats64"]["rx"]["packets"].as_u64();
        sum += packets.with_context(|| format!("no figures in {text}"))?;
    }
    Ok(sum)
}
