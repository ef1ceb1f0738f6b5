//! Keys and values of the service tables.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Address, Mac, abi};

/// Key of an IPv4 service: one word, so that it is compared as one.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKeyV4 {
    /// VIP, port, protocol and a zero byte.
    word: u64,
}
abi!(ServiceKeyV4, size = 8, align = 8);

impl ServiceKeyV4 {
    /// Makes a key; `port` is in host byte order.
    pub fn new(vip: Ipv4Addr, port: u16, protocol: u8) -> Self {
        Self::from_packet(u32::from_ne_bytes(vip.octets()), port.to_be(), protocol)
    }

    /// Makes a key of VIP and port in network byte order.
    #[inline(always)]
    pub const fn from_packet(vip: u32, port: u16, protocol: u8) -> Self {
        Self {
            word: vip as u64 | (port as u64) << 32 | (protocol as u64) << 48,
        }
    }

    /// All of it.
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        self.word
    }

    /// VIP, network byte order.
    pub const fn vip(&self) -> u32 {
        self.word as u32
    }

    /// Port in host byte order; 0 stands for every port.
    pub const fn port(&self) -> u16 {
        u16::from_be((self.word >> 32) as u16)
    }

    /// IP protocol number.
    pub const fn protocol(&self) -> u8 {
        (self.word >> 48) as u8
    }
}

/// Key of an IPv6 service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceKeyV6 {
    vip: Address,
    /// Port, protocol and zeros.
    rest: u64,
}
abi!(ServiceKeyV6, size = 24, align = 8);

impl ServiceKeyV6 {
    /// Makes a key; `port` is in host byte order.
    pub fn new(vip: Ipv6Addr, port: u16, protocol: u8) -> Self {
        Self::from_packet(IpAddr::V6(vip).into(), port.to_be(), protocol)
    }

    /// Makes a key of VIP and port in network byte order.
    #[inline(always)]
    pub const fn from_packet(vip: Address, port: u16, protocol: u8) -> Self {
        Self {
            vip,
            rest: port as u64 | (protocol as u64) << 16,
        }
    }

    /// All of it but the VIP.
    #[inline(always)]
    pub const fn rest(&self) -> u64 {
        self.rest
    }

    /// The VIP.
    #[inline(always)]
    pub const fn vip(&self) -> Address {
        self.vip
    }

    /// Port in host byte order; 0 stands for every port.
    pub const fn port(&self) -> u16 {
        u16::from_be(self.rest as u16)
    }

    /// IP protocol number.
    pub const fn protocol(&self) -> u8 {
        (self.rest >> 16) as u8
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
    /// Of [`flags`].
    pub flags: u32,
}
abi!(ServiceValue, size = 32, align = 8);

/// What is special about a service.
pub mod flags {
    /// Full NAT: the source is translated too.
    pub const FULL_NAT: u32 = 1;
    /// NAT whose flows have entries in the reverse table.
    pub const TRACKED: u32 = 2;
    /// NAT of any kind.
    pub const NAT: u32 = 4;
}

/// Key of the map of all VIPs. Only packets for which ports do not decide are
/// looked up in it: fragments, what is cut short, pings and other protocols.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VipKey {
    /// The VIP.
    pub vip: Address,
}
abi!(VipKey, size = 16, align = 8);

/// Key of the set of MAC addresses that are the director's own.
///
/// XDP also sees frames that are for another host (a promiscuous interface, a
/// switch that floods). Only those for the director are its to forward.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalMacKey {
    /// The MAC address.
    pub mac: Mac,
    /// Index of the interface on which frames for `mac` are ours.
    pub interface: u32,
    /// Zero.
    pub padding: u32,
}
abi!(LocalMacKey, size = 16, align = 8);

impl LocalMacKey {
    /// Makes a key.
    #[inline(always)]
    pub const fn new(interface: u32, mac: Mac) -> Self {
        Self {
            mac,
            interface,
            padding: 0,
        }
    }
}
