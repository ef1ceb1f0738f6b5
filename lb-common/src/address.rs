use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::abi;

/// An IPv4 or IPv6 address in 16 bytes, network byte order.
///
/// IPv4 addresses are stored in the IPv4-mapped form `::ffff:a.b.c.d`
/// (RFC 4291, section 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address {
    /// Two words as they stand in memory: network byte order.
    pub words: [u64; 2],
}
abi!(Address, size = 16, align = 8);

impl Address {
    /// The third quarter of every IPv4-mapped address.
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// Makes the IPv4-mapped form of an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self {
            words: [0, Self::MAPPED as u64 | (word as u64) << 32],
        }
    }

    /// The IPv4 address in network byte order; meaningful only if
    /// [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        (self.words[1] >> 32) as u32
    }

    /// Whether this is an IPv4-mapped address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] as u32 == Self::MAPPED
    }

    /// The address whose lowest bits are those of `self` or of `bits`, which
    /// is in host byte order.
    #[inline(always)]
    pub const fn or_low_bits(self, bits: u32) -> Self {
        Self {
            words: [self.words[0], self.words[1] | (bits.to_be() as u64) << 32],
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let v6 = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let [high, low] = [v6.to_bits() >> 64, v6.to_bits()];
        Self {
            words: [(high as u64).to_be(), (low as u64).to_be()],
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            return Self::V4(Ipv4Addr::from(address.v4_word().to_ne_bytes()));
        }
        let [high, low] = address.words.map(|word| u128::from(u64::from_be(word)));
        Self::V6(Ipv6Addr::from_bits(high << 64 | low))
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
            assert_eq!(Address::from(address).is_v4(), address.is_ipv4());
        }
    }

    #[test]
    fn low_bits_are_the_last_of_the_address() {
        for (base, expected) in [("192.0.2.0", "192.0.2.171"), ("2001:db8::", "2001:db8::ab")] {
            let base: IpAddr = base.parse().unwrap();
            let spread = Address::from(base).or_low_bits(0xab);
            assert_eq!(IpAddr::from(spread), expected.parse::<IpAddr>().unwrap());
        }
    }
}
