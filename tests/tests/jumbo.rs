//! Jumbo frames on real interfaces: with an MTU of 9000 a driver hands XDP a
//! frame in several buffers.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use anyhow::ensure;
use integration::Host;
use integration::topology::{Family, INTERFACE, Mode, Nat, Place, Router, Site};

const MTU: &str = "9000";
const BYTES: u64 = 20_000_000;

/// What a client sends arrives whole, in fewer packets than frames of 1,500
/// bytes could carry.
fn transfers(mut site: Site) -> anyhow::Result<()> {
    let segments = [
        Some(&site.segment),
        site.routed.as_ref().map(|r| &r.clients),
    ];
    for segment in segments.into_iter().flatten() {
        for port in segment.ports() {
            enlarge(segment.switch(), &port)?;
        }
        enlarge(segment.switch(), "br0")?;
    }
    let backends = site.backends.iter().map(|backend| &backend.host);
    for host in backends.chain([&site.client, &site.director]) {
        enlarge(host, INTERFACE)?;
    }
    if let Some(routed) = &site.routed {
        for interface in [Router::TO_CLIENTS, Router::TO_DIRECTOR] {
            enlarge(&routed.router.host, interface)?;
        }
    }
    site.start_director(&["--xdp-mode", "native"])?;
    for family in [Family::V4, Family::V6] {
        if site.mode() == Mode::Dr {
            for i in 0..site.backends.len() {
                site.agent_apply(i)?;
            }
        }
        let name = format!("web-{family}").to_lowercase();
        let mut service = site.service(&name, family, &[0]);
        service["name"] = name.as_str().into();
        site.put_service(&service)?;
        site.upload(family, BYTES)?;
        let status = site.service_status(&name)?;
        let (packets, bytes) = (&status["packets"], &status["bytes"]);
        let (packets, bytes) = (packets.as_u64().unwrap_or(0), bytes.as_u64().unwrap_or(0));
        ensure!(bytes > BYTES, "{status}");
        // Also those that only acknowledge are counted.
        ensure!(bytes / packets > 4000, "{bytes} bytes in {packets} packets");
        site.download(family, BYTES)?;
    }
    Ok(())
}

fn enlarge(host: &Host, interface: &str) -> anyhow::Result<()> {
    let set = ["link", "set", "dev", interface, "mtu", MTU];
    host.run("ip", set).map(drop)
}

#[test]
fn in_dr_mode() -> anyhow::Result<()> {
    transfers(Site::new("jumbodr", 1)?)
}

#[test]
fn in_nat_mode() -> anyhow::Result<()> {
    transfers(Site::nat(
        "jumbonat",
        Nat::GATEWAY.at(Place::BesideDirector),
        1,
    )?)
}
