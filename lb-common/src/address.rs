use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::abi;

/// An IPv4 or IPv6 address in 16 bytes, network byte order.
///
/// IPv4 addresses are stored in the IPv4-mapped form `::ffff:a.b.c.d`
/// (RFC 4291, section 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address {
    /// Four words as they stand in memory: network byte order.
    pub words: [u32; 4],
}
abi!(Address, size = 16, align = 4);

impl Address {
    /// The third word of every IPv4-mapped address, network byte order.
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// Makes the IPv4-mapped form of an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self {
            words: [0, 0, Self::MAPPED, word],
        }
    }

    /// The IPv4 address in network byte order; meaningful only if
    /// [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    /// Whether this is an IPv4-mapped address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == Self::MAPPED
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let v6 = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let octets = v6.octets();
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self { words }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            return Self::V4(Ipv4Addr::from(address.v4_word().to_ne_bytes()));
        }
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address.words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Self::V6(Ipv6Addr::from(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["203.0.113.10", "2001:db8::1", "::", "0.0.0.0"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
    }
}
