//! The same client does the same things with a service of IPVS in NAT mode and
//! with one of ours, in the same lab, and can tell them apart by one thing: to
//! who traces the way, the director shows an address of its own, as a router
//! does (RFC 1812, section 4.3.2.4), where IPVS shows the VIP twice.
//!
//! Needs what `cargo xtask setup` brings, and `lb-ctl` built: `cargo xtask
//! build-ebpf && cargo build -p lb-ctl -p lb-agent`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::talk::{Pace, Protocol, Talkers};
use integration::topology::{Family, INTERFACE, Nat, Net, Site};
use integration::vm::{Builder, Kernel, in_vm};

const LONG: Duration = Duration::from_secs(540);
const BYTES: u64 = 5_000_000;
/// Enough that each of two backends gets one, but for once in a billion times.
const FLOWS: usize = 32;
/// Port of a service that talks, and of one whose backends have no server.
const TALK: u16 = 7000;
const SILENT: u16 = 7001;

/// More patient than a slow machine is slow: what is lost is lost.
const PACE: Pace = Pace {
    every: Duration::from_millis(500),
    patience: Duration::from_secs(10),
};

#[test]
fn ours_is_as_ipvs_on_6_1() {
    on(Kernel::V6_1, "ours_is_as_ipvs_on_6_1");
}

#[test]
fn ours_is_as_ipvs_on_6_12() {
    on(Kernel::V6_12, "ours_is_as_ipvs_on_6_12");
}

fn on(kernel: Kernel, test: &str) {
    let configure = |vm: Builder| vm.module("ip_vs").module("ip_vs_mh").program("ipvsadm");
    in_vm(kernel, test, LONG, configure, || {
        if let Err(e) = compare() {
            panic!("{e:#}");
        }
    });
}

fn compare() -> anyhow::Result<()> {
    let mut site = Site::nat("compare", Nat::GATEWAY, 2)?;
    let mut echoes = Vec::new();
    for i in 0..site.backends.len() {
        for family in [Family::V4, Family::V6] {
            echoes.push(site.start_echo(i, family, TALK)?);
        }
    }
    let theirs = {
        let _ipvs = Ipvs::start(&site)?;
        visit(&site).context("with IPVS")?
    };
    site.start_director(&["--xdp-mode", "native"])?;
    for family in [Family::V4, Family::V6] {
        let named = |name: &str| format!("{name}-{}", family.to_string().to_lowercase());
        let of = |name: &str, protocol, port| {
            site.plain_service(&named(name), family, protocol, port, &[0, 1])
        };
        site.put_service(&of("web", Protocol::Tcp, 80))?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            site.put_service(&of(protocol.name(), protocol, TALK))?;
        }
        site.put_service(&of("silent", Protocol::Udp, SILENT))?;
    }
    let ours = visit(&site).context("with ours")?;
    ensure!(ours.len() == theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        ensure!((ours.family, ours.kind) == (theirs.family, theirs.kind));
        let expected = [ours.router(), ours.vip(), ours.vip()];
        ensure!(theirs.hops == expected, "IPVS: {theirs:?}");
        let director = site.director_address(ours.family);
        let expected = [ours.router(), director, ours.vip()];
        ensure!(ours.hops == expected, "ours: {ours:?}");
    }
    Ok(())
}

/// IPVS on the director, with what it needs there. Dropping it ends that.
struct Ipvs<'a>(&'a Site);

impl<'a> Ipvs<'a> {
    const SYSCTLS: [&'static str; 2] = [
        "net.ipv4.conf.all.forwarding",
        "net.ipv6.conf.all.forwarding",
    ];

    fn start(site: &'a Site) -> anyhow::Result<Self> {
        let this = Self(site);
        for sysctl in Self::SYSCTLS {
            site.director.set_sysctl(sysctl, 1)?;
        }
        for family in [Family::V4, Family::V6] {
            site.director
                .add_address(INTERFACE, &vip_with_length(family))?;
            for (option, port) in [("-t", 80), ("-t", TALK), ("-u", TALK), ("-u", SILENT)] {
                let vip = SocketAddr::new(family.vip(), port).to_string();
                site.director
                    .run("ipvsadm", ["-A", option, &vip, "-s", "mh", "-b", "mh-port"])?;
                for i in 0..site.backends.len() {
                    let rip = site.backend_name(family, port, i);
                    site.director
                        .run("ipvsadm", ["-a", option, &vip, "-r", &rip, "-m"])?;
                }
            }
        }
        Ok(this)
    }

    fn stop(&self) -> anyhow::Result<()> {
        let director = &self.0.director;
        director.run("ipvsadm", ["-C"])?;
        for family in [Family::V4, Family::V6] {
            let vip = vip_with_length(family);
            director.run("ip", ["address", "delete", &vip, "dev", INTERFACE])?;
        }
        for sysctl in Self::SYSCTLS {
            director.set_sysctl(sysctl, 0)?;
        }
        Ok(())
    }
}

impl Drop for Ipvs<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.stop() {
            eprintln!("cannot end IPVS: {e:#}");
        }
    }
}

fn vip_with_length(family: Family) -> String {
    let length = match family {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    format!("{}/{length}", family.vip())
}

/// Whom the client saw on the way.
#[derive(Debug)]
struct Seen {
    family: Family,
    kind: &'static str,
    hops: Vec<IpAddr>,
}

impl Seen {
    fn router(&self) -> IpAddr {
        Net::Clients.address(self.family, 1)
    }

    fn vip(&self) -> IpAddr {
        self.family.vip()
    }
}

/// Does everything, which must succeed, and returns what may differ.
fn visit(site: &Site) -> anyhow::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for family in [Family::V4, Family::V6] {
        let pages = site.pages(family, FLOWS)?;
        ensure!(pages.len() == 2, "only {pages:?} served {family}");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            talk(site, family, protocol)
                .with_context(|| format!("{family}, {}", protocol.name()))?;
        }
        site.upload(family, BYTES)?;
        site.download(family, BYTES)?;
        site.ensure_refused(family, SILENT)?;
        for (kind, port) in [("-T", 80), ("-U", SILENT)] {
            let hops = site.hops(family, &[kind, "-p", &port.to_string()])?;
            seen.push(Seen { family, kind, hops });
        }
    }
    site.ensure_checksums_right()?;
    eprintln!("{seen:?}");
    Ok(seen)
}

fn talk(site: &Site, family: Family, protocol: Protocol) -> anyhow::Result<()> {
    let vip = SocketAddr::new(family.vip(), TALK);
    let talk = Talkers::start(&site.client, protocol, vip, FLOWS, PACE)?;
    talk.round("through the VIP")?;
    talk.ensure_steady("through the VIP")?;
    let shares = talk.by_backend();
    ensure!(shares.len() == 2, "not all backends served: {shares:?}");
    Ok(())
}
