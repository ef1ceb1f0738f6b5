//! The backend entry: all that the rewrite of a packet needs, in one cache line.

use crate::{Address, Mac, abi};

/// Entry of the backend map. Entry 0 is never used.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// The first twelve bytes of the Ethernet header: MAC of the next hop,
    /// then that of the interface the packet leaves by. As words, because
    /// compilers copy an array of bytes byte by byte.
    pub macs: [u32; 3],
    /// Index of the interface the packet leaves by.
    pub interface: u32,
    /// RIP: the backend's own address.
    pub address: Address,
    /// In TUN mode the outer source address. Its lowest
    /// [`Self::source_spread`] bits are taken from the flow hash.
    pub source: Address,
    /// In NAT mode the backend's port, network byte order.
    pub port: u16,
    /// Largest packet of a client in bytes that the path to the backend
    /// carries: in TUN mode without the outer header.
    pub mtu: u16,
    /// One of the [`mode`] constants.
    pub mode: u8,
    /// One of the [`state`] constants.
    pub state: u8,
    /// In TUN mode the number of low bits of the outer source address that
    /// differ from flow to flow, at most 16.
    pub source_spread: u8,
    /// Zero.
    pub padding: u8,
    /// Rises when the backend dies or the entry is given to another backend.
    /// A recorded flow of another generation counts as not recorded.
    pub generation: u32,
    /// [`crate::service::ServiceValue::id`] of the service it belongs to.
    pub service: u32,
}
abi!(Backend, size = 64, align = 64);

impl Backend {
    /// Sets the MAC of the next hop and that of the interface.
    pub fn set_macs(&mut self, next_hop: [u8; 6], source: [u8; 6]) {
        let [a, b, c, d, e, f] = next_hop;
        let [g, h, i, j, k, l] = source;
        self.macs = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
    }

    /// MAC of the next hop.
    pub const fn next_hop_mac(&self) -> Mac {
        Mac::from_parts(self.macs[0], self.macs[1] as u16)
    }

    /// MAC of the interface the packet leaves by.
    #[inline(always)]
    pub const fn source_mac(&self) -> Mac {
        Mac((self.macs[1] >> 16) as u64 | (self.macs[2] as u64) << 16)
    }
}

/// Forwarding modes.
pub mod mode {
    /// VS/DR: rewrite the MAC addresses.
    pub const DR: u8 = 1;
    /// VS/TUN: encapsulate in IPv4, to a backend with such an address.
    pub const TUN_V4: u8 = 2;
    /// VS/NAT: rewrite addresses and ports.
    pub const NAT: u8 = 3;
    /// VS/TUN: encapsulate in IPv6.
    pub const TUN_V6: u8 = 4;

    /// Bytes of the outer header.
    pub const fn overhead(mode: u8) -> u16 {
        match mode {
            TUN_V4 => 20,
            TUN_V6 => 40,
            _ => 0,
        }
    }
}

/// States of a backend entry.
pub mod state {
    /// The entry belongs to nobody.
    pub const FREE: u8 = 0;
    /// Packets may be forwarded to it. Whether it gets new flows is for the
    /// ring to say: a draining backend is alive and in no slot.
    pub const ALIVE: u8 = 1;
    /// Nothing is forwarded to it; its recorded flows count as not recorded.
    pub const DEAD: u8 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_stand_side_by_side() {
        let (next_hop, source) = ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]);
        let mut backend = Backend::default();
        backend.set_macs(next_hop, source);
        assert_eq!(backend.next_hop_mac(), Mac::from(next_hop));
        assert_eq!(backend.source_mac(), Mac::from(source));
        let bytes = backend.macs.map(u32::to_ne_bytes).concat();
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }
}
