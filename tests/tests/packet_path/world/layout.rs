//! Who is in the world, and where.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use integration::{Host, Mac};
use lb_common::backend::mode;
use lb_common::vip::ping;
use lb_common::vlan::Tag;
use lb_ctl::dataplane::ServiceKey;
use lb_ctl::plan::{Condition, DesiredBackend, NextHop};

/// MAC of the director's first interface.
pub const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x01];
/// MAC of the director's second interface.
pub const SECOND_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x02];
/// A MAC of the director's first interface that no backend entry names, as
/// VRRP makes one.
pub const VIRTUAL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x03];

/// MAC of a backend's next hop.
pub const fn backend_mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0xbe, n]
}

/// The VIPs of the world, by what is special about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vip {
    /// TCP 80 and SCTP 2905 on backend 1, UDP 53 on backend 2.
    Plain,
    /// Every TCP port, on backend 3.
    AnyPort,
    /// TCP 80 on backend 4, which is behind the second interface.
    Behind,
    /// TCP 80 without backends.
    Empty,
    /// TCP 80 on backend 5, which is dead.
    Dead,
    /// TCP 80 moving from backend 6 to backend 7; UDP 53 likewise.
    Moving,
    /// TCP 80 spread over backends 8 to 10.
    Spread,
    /// A VIP of no service.
    None,
    /// TUN: TCP 80 on backend 11, which is IPv4.
    TunV4,
    /// TUN: TCP 80 on backend 12, which is IPv6.
    TunV6,
    /// TUN: TCP 80 on backend 13, which is IPv4, with sources spread over 8 bits.
    TunSpread,
    /// NAT, the director being the gateway: TCP 80 and UDP 53 on backend 14,
    /// there on ports 8080 and 5353.
    Gateway,
    /// Full NAT: TCP 80 and UDP 53 on backend 15, likewise.
    Full,
    /// NAT: TCP 80 on port 8080 of backend 16, which [`Self::Shared`] has too.
    /// Other protocols are dropped, for this VIP alone.
    Sharing,
    /// See [`Self::Sharing`].
    Shared,
    /// NAT: every UDP port, on backend 17, behind the second interface.
    AllPorts,
    /// TCP 80 on backend 18, in the VLAN [`ONE_TAG`].
    OneTag,
    /// TCP 80 on backend 19, in the VLAN [`TWO_TAGS`].
    TwoTags,
    /// TUN: TCP 80 on backend 20, which is IPv4 and in the VLAN [`ELSEWHERE`].
    TunInVlan,
    /// NAT: TCP 80 on port 8080 of backend 21, in the VLAN [`ONE_TAG`].
    NatInVlan,
}

/// A VLAN on the first interface.
pub const ONE_TAG: [Tag; 2] = [Tag::new(0x8100, 10), Tag::NONE];
/// A VLAN within another on the first interface.
pub const TWO_TAGS: [Tag; 2] = [Tag::new(0x88a8, 20), Tag::new(0x8100, 30)];
/// A VLAN on the second interface.
pub const ELSEWHERE: [Tag; 2] = [Tag::new(0x8100, 40), Tag::NONE];

impl Vip {
    /// The address of IP version 4 or 6.
    pub fn address(self, version: u8) -> IpAddr {
        let last = self as u16 + 10;
        match version {
            4 => Ipv4Addr::new(203, 0, 113, last as u8).into(),
            _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0x10, 0, 0, 0, last).into(),
        }
    }

    /// Who answers its pings.
    pub const fn ping(self) -> u8 {
        match self {
            Self::AnyPort | Self::TunV6 | Self::Full => ping::ANSWER,
            Self::Spread | Self::Behind | Self::Empty | Self::Dead | Self::Moving | Self::TunV4 => {
                ping::FORWARD
            }
            _ => ping::HOST,
        }
    }

    /// Where a service of this VIP is in the maps.
    pub fn key(self, version: u8, port: u16, protocol: u8) -> ServiceKey {
        ServiceKey {
            vip: self.address(version),
            port,
            protocol,
        }
    }
}

/// MTU of the path to every backend but those of [`Vip::Spread`].
pub const MTU: u16 = 1500;

/// MTU of the path to those.
const JUMBO_MTU: u16 = 9000;

/// MTU of the path to the client at the narrow end.
pub const NARROW: u16 = 1000;

/// MAC of the router to all clients.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// Ports of each address of the pool.
pub const POOL_PORTS: std::ops::Range<u16> = 20_000..20_600;

/// The pool's address of an IP version.
pub fn pool_address(version: u8) -> IpAddr {
    match version {
        4 => Ipv4Addr::new(203, 0, 113, 3).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0x10, 0, 0, 0, 3).into(),
    }
}

/// The director's own address.
pub fn own_address(version: u8) -> IpAddr {
    match version {
        4 => Ipv4Addr::new(203, 0, 113, 2).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0x10, 0, 0, 0, 2).into(),
    }
}

/// Port of a NAT backend for a service's.
pub const fn backend_port(port: u16) -> u16 {
    match port {
        80 => 8080,
        53 => 5353,
        other => other,
    }
}

/// A client's address: the usual one, or the one behind a narrow link.
pub fn client_address(version: u8, narrow: bool) -> IpAddr {
    let last = if narrow { 8 } else { 7 };
    match version {
        4 => Ipv4Addr::new(198, 51, 100, last).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, u16::from(last)).into(),
    }
}

/// Names of the interfaces that stand for VLAN devices.
pub const VLAN_DEVICES: [&str; 3] = ["vlan10", "vlan20.30", "vlan40"];

/// The router to all clients.
pub const ROUTERS: [&str; 2] = ["203.0.113.1", "2001:db8:0:10::1"];

/// Makes the host one that forwards, with routes to the clients.
pub fn router(host: &Host) {
    let run = |words: &str| host.run("ip", words.split(' ')).unwrap();
    run("-6 address add 2001:db8:0:10::2/64 dev eth0 nodad");
    let mac = Mac(ROUTER_MAC).to_string();
    let prefixes = [
        ["198.51.100.0/24", "198.51.100.8"],
        ["2001:db8:c::/64", "2001:db8:c::8"],
    ];
    for (router, prefix) in ROUTERS.into_iter().zip(prefixes) {
        let version = if router.contains(':') { "-6" } else { "-4" };
        run(&format!(
            "{version} neigh replace {router} lladdr {mac} nud permanent dev eth0"
        ));
        let [all, narrow] = prefix;
        run(&format!("{version} route add {all} via {router} dev eth0"));
        run(&format!(
            "{version} route add {narrow} via {router} dev eth0 mtu lock {NARROW}"
        ));
    }
    // Clients behind a router in a VLAN.
    for [version, router, prefix] in [
        ["-4", "192.0.2.1", "192.0.2.0/24"],
        ["-6", "2001:db8:e::1", "2001:db8:e::/64"],
    ] {
        run(&format!(
            "{version} neigh replace {router} lladdr {mac} nud permanent dev vlan10"
        ));
        run(&format!("{version} route add {router} dev vlan10"));
        run(&format!(
            "{version} route add {prefix} via {router} dev vlan10"
        ));
    }
    for key in ["ipv4/conf/eth0", "ipv4/conf/vlan10", "ipv6/conf/all"] {
        let path = format!("/proc/sys/net/{key}/forwarding");
        std::fs::write(path, "1").unwrap();
    }
}

/// Address of a backend; those of TUN have a version of their own.
pub fn backend_address(version: u8, n: u8) -> IpAddr {
    match (version, n) {
        (_, 11 | 13 | 20) | (4, 1..=10 | 14..) => Ipv4Addr::new(203, 0, 113, 100 + n).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0x10, 0, 0, 1, u16::from(n)).into(),
    }
}

/// Outer source for a backend.
pub fn tunnel_source(n: u8) -> Option<(IpAddr, u8)> {
    match n {
        11 | 20 => Some((Ipv4Addr::new(203, 0, 113, 2).into(), 0)),
        12 => Some((Ipv6Addr::new(0x2001, 0xdb8, 0, 0x10, 0, 0, 0, 2).into(), 0)),
        13 => Some((Ipv4Addr::new(192, 0, 2, 0).into(), 8)),
        _ => None,
    }
}

/// Indices of interfaces.
pub struct NextHops {
    /// The two interfaces.
    pub interfaces: [u32; 2],
    /// The VLAN devices.
    pub vlans: [u32; 3],
}

/// A backend, by its number.
pub fn backend(version: u8, n: u8, next_hops: &NextHops) -> DesiredBackend {
    let NextHops { interfaces, vlans } = next_hops;
    let next_hop = NextHop {
        interface: match n {
            4 | 17 => interfaces[1],
            18 | 21 => vlans[0],
            19 => vlans[1],
            20 => vlans[2],
            _ => interfaces[0],
        },
        mac: backend_mac(n),
        source_mac: if matches!(n, 4 | 17 | 20) {
            SECOND_MAC
        } else {
            DIRECTOR_MAC
        },
        mtu: if matches!(n, 8..=10) { JUMBO_MTU } else { MTU },
        source: None,
    };
    DesiredBackend {
        address: backend_address(version, n),
        port: 0,
        mode: match n {
            0..=10 | 18 | 19 => mode::DR,
            11 | 13 | 20 => mode::TUN_V4,
            12 => mode::TUN_V6,
            _ => mode::NAT,
        },
        weight: 1,
        tunnel_source: tunnel_source(n),
        removed: false,
        condition: Condition::Up(next_hop),
    }
}
