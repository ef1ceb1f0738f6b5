//! What the programs in the kernel are told.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::facts::Facts;
use crate::prefix::Prefix;
use crate::state::Want;
use crate::tunnel::device::Device;
use crate::tunnel::{Decapsulate, Mss, Tunnel};

/// Bytes of an IP and a TCP header without options.
const HEADERS_V4: u32 = 40;
const HEADERS_V6: u32 = 60;

/// The content of the programs' maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Identifies the object that the programs are from.
    pub build: u32,
    /// Whether a device of the kernel takes packets out of their outer
    /// packets; else the program does.
    pub only_filters: bool,
    /// Largest MSS for IPv4 VIPs; 0 for no limit.
    pub mss_v4: u16,
    /// The same for IPv6 VIPs.
    pub mss_v6: u16,
    /// Where encapsulated packets are accepted from.
    pub directors: BTreeSet<Prefix>,
    /// What they may be for, inside.
    pub vips: BTreeSet<IpAddr>,
    /// What they may be for, outside: this host's own addresses.
    pub locals: BTreeSet<IpAddr>,
}

impl Contents {
    /// What `want` and the host's addresses and MTUs come to.
    pub fn wanted(facts: &Facts, want: &Want, tunnel: &Tunnel) -> Self {
        let (mss_v4, mss_v6) = limits(facts, want, tunnel);
        let vips: BTreeSet<IpAddr> = want.vips.iter().map(|vip| vip.address()).collect();
        let locals = facts.addresses.iter();
        // The kernel gives its tunnel devices addresses of their own making. Not
        // so lo: routed hosts have their address there.
        let inside = Device::EACH.map(Device::name);
        let outside = |name: &str| !inside.contains(&name);
        let locals = locals.filter(|held| outside(&held.interface));
        let locals = locals.map(|held| held.address);
        Self {
            build: super::programs::build(),
            only_filters: tunnel.decapsulate == Decapsulate::Kernel,
            mss_v4,
            mss_v6,
            directors: tunnel.directors.iter().copied().collect(),
            locals: locals
                .filter(|address| is_routable(address) && !vips.contains(address))
                .collect(),
            vips,
        }
    }
}

fn limits(facts: &Facts, want: &Want, tunnel: &Tunnel) -> (u16, u16) {
    match tunnel.mss {
        Mss::Off => (0, 0),
        Mss::At(bytes) => (bytes, bytes),
        Mss::Auto => {
            let links = want.interfaces.iter().filter_map(|name| facts.link(name));
            // Ethernet's, until the interface is there.
            let mtu = links.map(|link| link.mtu).min().unwrap_or(1500);
            let fit = |headers: u32| {
                let bytes = mtu.saturating_sub(tunnel.overhead() + headers);
                u16::try_from(bytes).unwrap_or(u16::MAX)
            };
            (fit(HEADERS_V4), fit(HEADERS_V6))
        }
    }
}

fn is_routable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback(),
    }
}

/// In one line, for reports.
impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: ToString>(items: &BTreeSet<T>) -> String {
            let items: Vec<String> = items.iter().map(ToString::to_string).collect();
            items.join(",")
        }
        let role = if self.only_filters { "kernel" } else { "xdp" };
        write!(
            f,
            "{role} mss {}/{} directors {} vips {} addresses {}",
            self.mss_v4,
            self.mss_v6,
            list(&self.directors),
            list(&self.vips),
            list(&self.locals)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::testing::{hold, host, vips};
    use crate::tunnel::testing::tunnel;

    #[test]
    fn the_mss_leaves_room_for_the_outer_header() {
        let mut facts = host(&["eth0", "eth1"]);
        hold(&mut facts, "203.0.113.10", 32, "lo");
        hold(&mut facts, "127.0.0.1", 8, "lo");
        hold(&mut facts, "192.0.2.21", 32, "lo");
        hold(&mut facts, "198.51.100.21", 24, "eth0");
        hold(&mut facts, "fe80::1", 64, "eth0");
        hold(&mut facts, "2001:db8::21", 64, "eth1");
        hold(&mut facts, "::198.51.100.21", 96, "lbtun64");
        let mut want = Want {
            vips: vips(&["203.0.113.10"]),
            interfaces: vec!["eth0".to_owned()],
            tunnel: None,
        };
        let mss = |facts: &Facts, want: &Want, directors: &[&str]| {
            let wanted = tunnel(Decapsulate::Xdp, directors);
            let contents = Contents::wanted(facts, want, &wanted);
            (contents.mss_v4, contents.mss_v6)
        };
        assert_eq!(mss(&facts, &want, &["192.0.2.2"]), (1440, 1420));
        assert_eq!(
            mss(&facts, &want, &["192.0.2.2", "2001:db8::2"]),
            (1420, 1400)
        );
        facts.links[2].mtu = 1400;
        assert_eq!(mss(&facts, &want, &["192.0.2.2"]), (1440, 1420));
        want.interfaces.push("eth1".to_owned());
        assert_eq!(mss(&facts, &want, &["192.0.2.2"]), (1340, 1320));
        let mut fixed = tunnel(Decapsulate::Kernel, &["192.0.2.2"]);
        fixed.mss = Mss::At(1300);
        let contents = Contents::wanted(&facts, &want, &fixed);
        assert_eq!((contents.mss_v4, contents.mss_v6), (1300, 1300));
        assert!(contents.only_filters);
        let locals: Vec<String> = contents.locals.iter().map(ToString::to_string).collect();
        assert_eq!(locals, ["192.0.2.21", "198.51.100.21", "2001:db8::21"]);
    }
}
