//! The kernel's own tunnel devices.
//!
//! Each takes packets from anybody; whom to let in is the filter program's to
//! say. `external` lets a device live beside the kernel's fallback device and
//! beside tunnels of others, who keep what is addressed to them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::state::Want;
use crate::tunnel::Tunnel;
use crate::vip::{Held, Scope};

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// IPv4 in IPv4.
    Ipip,
    /// IPv6 in IPv4.
    Sit,
    /// Both in IPv6.
    Ip6Tnl,
}

impl Device {
    /// All kinds.
    pub const EACH: [Self; 3] = [Self::Ipip, Self::Sit, Self::Ip6Tnl];

    /// The interface's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "lbtun4",
            Self::Sit => "lbtun64",
            Self::Ip6Tnl => "lbtun6",
        }
    }

    /// What `ip link add … type` calls it.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Sit => "sit",
            Self::Ip6Tnl => "ip6tnl",
        }
    }

    /// The kernel module that has it.
    pub const fn module(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Sit => "sit",
            Self::Ip6Tnl => "ip6_tunnel",
        }
    }

    /// Whether IPv4 packets come out of it, which `rp_filter` judges.
    pub const fn carries_ipv4(self) -> bool {
        !matches!(self, Self::Sit)
    }

    /// An address for it, if IPv4 packets come out of it: what comes from an
    /// interface without any passes no reverse path filter, however loose.
    /// This one is of the loopback network, so this host's already.
    pub fn address(self) -> Option<Held> {
        let last = match self {
            Self::Ipip => 4,
            Self::Ip6Tnl => 6,
            Self::Sit => return None,
        };
        Some(Held {
            address: Ipv4Addr::new(127, 0, 0, last).into(),
            prefix: 32,
            interface: self.name().to_owned(),
            scope: Scope::HOST,
        })
    }

    /// The commands that make it. `sit` knows no `external`; bound to an
    /// interface it does not collide with the fallback device sit0.
    pub fn command(self, interface: &str) -> String {
        let (name, kind) = (self.name(), self.kind());
        let how = match self {
            Self::Sit => format!("dev {interface}"),
            _ => "external".to_owned(),
        };
        let address = match self.address() {
            Some(held) => format!(" && ip address add {held} scope host"),
            None => String::new(),
        };
        format!("ip link add {name} type {kind} {how}{address} && ip link set dev {name} up")
    }

    /// Whether the running kernel has it, loaded or not.
    pub fn is_available(self) -> bool {
        let module = self.module();
        if Path::new("/sys/module").join(module).exists() {
            return true;
        }
        let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else {
            return false;
        };
        let modules = Path::new("/lib/modules").join(release.trim());
        ["modules.dep", "modules.builtin"].iter().any(|list| {
            let text = fs::read_to_string(modules.join(list)).unwrap_or_default();
            lists(&text, module)
        })
    }
}

/// Whether a list of paths, each up to the first colon, names a module.
fn lists(text: &str, module: &str) -> bool {
    let paths = text.lines().filter_map(|line| line.split(':').next());
    paths
        .filter_map(|path| path.rsplit('/').next()?.split(".ko").next())
        .any(|name| name.replace('-', "_") == module)
}

/// The devices for the pairings of directors' and VIPs' IP versions.
pub fn needed(want: &Want, tunnel: &Tunnel) -> Vec<Device> {
    let outer = |v4| tunnel.directors.iter().any(|prefix| prefix.is_ipv4() == v4);
    let inner = |v4| want.vips.iter().any(|vip| vip.is_ipv4() == v4);
    let is_needed = |device: &Device| match device {
        Device::Ipip => outer(true) && inner(true),
        Device::Sit => outer(true) && inner(false),
        Device::Ip6Tnl => outer(false),
    };
    Device::EACH.into_iter().filter(is_needed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::testing::vips;
    use crate::tunnel::Decapsulate;
    use crate::tunnel::testing::tunnel;

    #[test]
    fn a_device_for_each_pairing() {
        let needed = |texts: &[&str], directors: &[&str]| {
            let want = Want {
                vips: vips(texts),
                ..Want::default()
            };
            needed(&want, &tunnel(Decapsulate::Kernel, directors))
        };
        let (v4, v6) = (["203.0.113.10"], ["2001:db8::10"]);
        assert_eq!(needed(&v4, &["192.0.2.2"]), [Device::Ipip]);
        assert_eq!(needed(&v6, &["192.0.2.2"]), [Device::Sit]);
        assert_eq!(needed(&v4, &["2001:db8::2"]), [Device::Ip6Tnl]);
        assert_eq!(needed(&v6, &["2001:db8::2"]), [Device::Ip6Tnl]);
        let both = ["203.0.113.10", "2001:db8::10"];
        assert_eq!(needed(&both, &["192.0.2.2", "2001:db8::2"]), Device::EACH);
    }

    #[test]
    fn modules_are_found_in_depmods_lists() {
        let list = "kernel/net/ipv4/ipip.ko.xz: kernel/net/ipv4/tunnel4.ko.xz\n\
                    kernel/net/ipv6/ip6_tunnel.ko: kernel/net/ipv6/tunnel6.ko\n";
        assert!(lists(list, "ipip") && lists(list, "ip6_tunnel"));
        assert!(!lists(list, "sit") && !lists(list, "tunnel4"));
        assert!(lists("kernel/net/ipv6/sit.ko\n", "sit"));
    }
}
