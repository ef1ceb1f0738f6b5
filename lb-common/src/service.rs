//! Keys and values of the service maps.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Address, abi};

/// Key of the IPv4 service map: 8 bytes, so that its hash is one round.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKeyV4 {
    /// VIP, network byte order.
    pub vip: u32,
    /// Destination port, network byte order; 0 stands for every port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub padding: u8,
}
abi!(ServiceKeyV4, size = 8, align = 4);

impl ServiceKeyV4 {
    /// Makes a key; `port` is in host byte order.
    pub fn new(vip: Ipv4Addr, port: u16, protocol: u8) -> Self {
        Self {
            vip: u32::from_ne_bytes(vip.octets()),
            port: port.to_be(),
            protocol,
            padding: 0,
        }
    }
}

/// Key of the IPv6 service map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKeyV6 {
    /// VIP, network byte order.
    pub vip: Address,
    /// Destination port, network byte order; 0 stands for every port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub padding: u8,
}
abi!(ServiceKeyV6, size = 20, align = 4);

impl ServiceKeyV6 {
    /// Makes a key; `port` is in host byte order.
    pub fn new(vip: Ipv6Addr, port: u16, protocol: u8) -> Self {
        Self {
            vip: IpAddr::V6(vip).into(),
            port: port.to_be(),
            protocol,
            padding: 0,
        }
    }
}

/// What the packet path knows of a service.
///
/// A new ring is published by writing its slots to unused blocks and then
/// replacing this value: one update, so no packet sees half a ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceValue {
    /// Key of the flow hash. Directors with the same key choose alike.
    pub hash_key: u64,
    /// First 64-byte block of the ring in the ring map.
    pub ring_offset: u32,
    /// Number of slots of the ring; 0 if the service has no schedulable backend.
    pub slots: u32,
    /// Identity of the service on this director; [`crate::backend::Backend`] refers to it.
    pub id: u32,
    /// Counts the rings that this service has had.
    pub generation: u32,
    /// Seconds without a packet after which a recorded flow is forgotten.
    pub idle_timeout: u32,
    /// Zero.
    pub padding: u32,
}
abi!(ServiceValue, size = 32, align = 8);

/// Key of the map of all VIPs. Only packets that are neither TCP nor UDP with
/// readable ports are looked up in it: ICMP and fragments.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VipKey {
    /// The VIP.
    pub vip: Address,
}
abi!(VipKey, size = 16, align = 4);

/// Key of the set of MAC addresses that are the director's own.
///
/// XDP also sees frames that are for another host (a promiscuous interface, a
/// switch that floods). Only those for the director are its to forward.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalMacKey {
    /// Index of the interface on which frames for `mac` are ours.
    pub interface: u32,
    /// The MAC address.
    pub mac: [u8; 6],
    /// Zero.
    pub padding: u16,
}
abi!(LocalMacKey, size = 12, align = 4);
