//! What was found on the host: the input of every decision.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::arp::{ALL, Key, Setting, effective};
use crate::tunnel::device::Device;
use crate::tunnel::programs::Programs;
use crate::tunnel::status::Path;
use crate::vip::{Held, LOOPBACK, Vip};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Whether its frames have Ethernet headers.
    pub is_ethernet: bool,
    /// What kind of virtual device it is: `ipip`, `veth`, ….
    pub kind: Option<String>,
    /// The XDP program on it.
    pub xdp: Option<Xdp>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// The kernel's number for it.
    pub program: u32,
    /// Whether it runs after the driver instead of in it.
    pub generic: bool,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Network address.
    pub destination: IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// Names of the interfaces it leads to; several if it is multipath.
    pub interfaces: Vec<String>,
    /// Metric; lower is preferred.
    pub metric: u32,
}

/// What was found on the host.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Interfaces.
    pub links: Vec<Link>,
    /// Addresses, all of them.
    pub addresses: Vec<Held>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// Addresses for which the host answers on behalf of others (proxy ARP
    /// and proxy NDP entries), with the interface's name.
    pub proxies: Vec<(IpAddr, String)>,
    /// The sysctls of `all` and of every interface.
    pub sysctls: BTreeMap<Key, i32>,
    /// Whether `net.ipv6.conf.lo.disable_ipv6` is set.
    pub ipv6_disabled: bool,
    /// Tunnel devices that the kernel has or can load.
    pub devices: BTreeSet<Device>,
    /// Our programs; looked at only in TUN mode.
    pub programs: Option<Programs>,
    /// The ways to the directors; looked at only in TUN mode.
    pub paths: Vec<Path>,
}

impl Facts {
    /// The interface of that name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Names of all interfaces but `lo`.
    pub fn outer_interfaces(&self) -> impl Iterator<Item = &str> {
        let names = self.links.iter().map(|link| link.name.as_str());
        names.filter(|name| *name != LOOPBACK)
    }

    /// The VIP as a backend should hold it: on `lo`, with all bits.
    pub fn held(&self, vip: Vip) -> Option<&Held> {
        self.addresses.iter().find(|held| is_right(held, vip))
    }

    /// The VIP where it should not be: on another interface, or with another
    /// prefix length.
    pub fn misplaced(&self, vip: Vip) -> impl Iterator<Item = &Held> {
        let same = self
            .addresses
            .iter()
            .filter(move |held| held.address == vip.address());
        same.filter(move |held| !is_right(held, vip))
    }

    /// The value that the kernel uses for `setting` on `interface`, 0 if
    /// there is no such interface.
    pub fn effective(&self, interface: &str, setting: Setting) -> i32 {
        let value = |name| self.sysctls.get(&Key::new(name, setting)).copied();
        effective(
            value(ALL).unwrap_or_default(),
            value(interface).unwrap_or_default(),
        )
    }
}

fn is_right(held: &Held, vip: Vip) -> bool {
    held.address == vip.address() && held.prefix == vip.prefix() && held.interface == LOOPBACK
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::vip::Scope;

    /// A host with `lo` and the given interfaces, every sysctl 0.
    pub fn host(interfaces: &[&str]) -> Facts {
        let mut facts = Facts::default();
        for (index, name) in (1..).zip([LOOPBACK].iter().chain(interfaces)) {
            facts.links.push(Link {
                index,
                name: (*name).to_owned(),
                up: true,
                mtu: 1500,
                is_ethernet: *name != LOOPBACK,
                kind: None,
                xdp: None,
            });
            set(&mut facts, name, 0, 0);
        }
        set(&mut facts, ALL, 0, 0);
        facts
    }

    /// Sets both sysctls of an interface.
    pub fn set(facts: &mut Facts, interface: &str, ignore: i32, announce: i32) {
        let sysctls = &mut facts.sysctls;
        sysctls.insert(Key::new(interface, Setting::ArpIgnore), ignore);
        sysctls.insert(Key::new(interface, Setting::ArpAnnounce), announce);
    }

    /// Puts `address/prefix` on an interface.
    pub fn hold(facts: &mut Facts, address: &str, prefix: u8, interface: &str) {
        facts.addresses.push(Held {
            address: address.parse().unwrap(),
            prefix,
            interface: interface.to_owned(),
            scope: Scope::GLOBAL,
        });
    }

    /// Parses VIPs.
    pub fn vips(texts: &[&str]) -> Vec<Vip> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }
}
