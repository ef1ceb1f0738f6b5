//! The flow table's keys and values, and the flow hash.

use crate::service::{ServiceKeyV4, ServiceKeyV6};
use crate::{Address, abi};

/// Key of the IPv4 flow table: a 5-tuple.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKeyV4 {
    /// CIP and VIP.
    addresses: u64,
    /// The client's port, the service's port, protocol, zeros.
    rest: u64,
}
abi!(FlowKeyV4, size = 16, align = 8);

impl FlowKeyV4 {
    /// Makes a key; all as it stands in the packet, `ports` the client's
    /// first.
    #[inline(always)]
    pub const fn from_packet(client: u32, vip: u32, ports: u32, protocol: u8) -> Self {
        Self {
            addresses: client as u64 | (vip as u64) << 32,
            rest: ports as u64 | (protocol as u64) << 32,
        }
    }

    /// All of it.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        [self.addresses, self.rest]
    }

    /// What [`Self::from_packet`] has put together.
    pub const fn parts(&self) -> (u32, u32, u32, u8) {
        let (client, vip) = (self.addresses as u32, (self.addresses >> 32) as u32);
        (client, vip, self.rest as u32, (self.rest >> 32) as u8)
    }

    /// The service that the flow is of, if it is not one on port 0.
    pub const fn service(&self) -> ServiceKeyV4 {
        let vip = (self.addresses >> 32) as u32;
        let port = (self.rest >> 16) as u16;
        ServiceKeyV4::from_packet(vip, port, (self.rest >> 32) as u8)
    }
}

/// Key of the IPv6 flow table: a 5-tuple.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKeyV6 {
    client: Address,
    vip: Address,
    /// The client's port, the service's port, protocol, zeros.
    rest: u64,
}
abi!(FlowKeyV6, size = 40, align = 8);

impl FlowKeyV6 {
    /// Makes a key; all as it stands in the packet, `ports` the client's
    /// first.
    #[inline(always)]
    pub const fn from_packet(client: Address, vip: Address, ports: u32, protocol: u8) -> Self {
        Self {
            client,
            vip,
            rest: ports as u64 | (protocol as u64) << 32,
        }
    }

    /// All of it.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 5] {
        let [[a, b], [c, d]] = [self.client.words, self.vip.words];
        [a, b, c, d, self.rest]
    }

    /// What [`Self::from_packet`] has put together.
    pub const fn parts(&self) -> (Address, Address, u32, u8) {
        (
            self.client,
            self.vip,
            self.rest as u32,
            (self.rest >> 32) as u8,
        )
    }

    /// The service that the flow is of, if it is not one on port 0.
    pub const fn service(&self) -> ServiceKeyV6 {
        let port = (self.rest >> 16) as u16;
        ServiceKeyV6::from_packet(self.vip, port, (self.rest >> 32) as u8)
    }
}

/// What is recorded of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowValue {
    /// Index of the backend entry.
    pub backend: u32,
    /// Generation of that entry when the flow was recorded.
    pub generation: u32,
    /// Time of the last packet, see [`seconds`].
    pub last_seen: u32,
    /// The flow's hash, so that user space can tell which slot it is in.
    pub hash: u32,
}
abi!(FlowValue, size = 16, align = 4);

impl FlowValue {
    /// Of a flow between a client and a NAT backend, past every VIP.
    #[inline(always)]
    pub const fn direct(now: u32) -> Self {
        Self {
            backend: 0,
            generation: 0,
            last_seen: now,
            hash: 0,
        }
    }
}

/// Seconds of the packet path's clock, which counts ticks of the kernel:
/// nanoseconds shifted rather than divided, so one of these "seconds" lasts
/// 1.07 s.
#[inline(always)]
pub const fn seconds(nanoseconds: u64) -> u32 {
    (nanoseconds >> 30) as u32
}

/// Whether a flow last seen at `last_seen` has been idle for longer than
/// `idle_timeout` at `now`. All in [`seconds`].
#[inline(always)]
pub const fn is_idle(last_seen: u32, now: u32, idle_timeout: u32) -> bool {
    // Signed: another CPU may have stored a time later than our `now`.
    (now.wrapping_sub(last_seen) as i32) > idle_timeout as i32
}

/// The keyed hash that decides a flow's slot. Only its upper 32 bits are used.
///
/// `addresses` are folded to 64 bits, `ports` is client port and service port
/// as they stand in the packet. Three multiplications with xor-shifts between
/// them, the scheme of the MurmurHash3 finaliser.
#[inline(always)]
pub const fn hash(key: u64, addresses: u64, ports: u32) -> u32 {
    let mut h = (addresses ^ key).wrapping_mul(MULTIPLIERS[0]);
    h ^= h >> 32;
    h = (h ^ ports as u64 ^ key).wrapping_mul(MULTIPLIERS[1]);
    h ^= h >> 29;
    (h.wrapping_mul(MULTIPLIERS[2]) >> 32) as u32
}

/// Hash of an IPv4 flow. Arguments as they stand in the packet.
#[inline(always)]
pub const fn hash_v4(key: u64, client: u32, vip: u32, ports: u32) -> u32 {
    // As both stand side by side in the header.
    hash(key, (client as u64) | (vip as u64) << 32, ports)
}

/// Hash of an IPv6 flow. Arguments as they stand in the packet. Not of the VIP:
/// each has a ring of its own, so slots of different VIPs may well be chosen
/// alike, and what only the client decides is read once.
#[inline(always)]
pub const fn hash_v6(key: u64, client: &Address, ports: u32) -> u32 {
    // Two products that do not wait for each other; the rounds of `hash` mix.
    let high = (client.words[0] ^ key).wrapping_mul(MULTIPLIERS[2]);
    let low = (client.words[1] ^ key.rotate_left(17)).wrapping_mul(MULTIPLIERS[1]);
    hash(key, high ^ low.rotate_left(29), ports)
}

/// Odd constants that spread what they are multiplied with: the golden ratio's
/// fraction, then MurmurHash3's finaliser's two.
pub const MULTIPLIERS: [u64; 3] = [
    0x9E37_79B9_7F4A_7C15,
    0xFF51_AFD7_ED55_8CCD,
    0xC4CE_B9FE_1A85_EC53,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Directors of different versions must choose alike, or flows break when a
    /// fleet is upgraded. Change these values only on purpose.
    #[test]
    fn hashes_stay_what_they_are() {
        let client = u32::from_ne_bytes([198, 51, 100, 7]);
        let vip = u32::from_ne_bytes([203, 0, 113, 10]);
        let key = 0x0123_4567_89ab_cdef;
        let address = |last| Address {
            words: [u64::from_ne_bytes([0x20, 1, 0xd, 0xb8, 0, 0, 0, 1]), last],
        };
        let hashes = [
            hash_v4(key, client, vip, 0x5000_409c),
            hash_v6(key, &address(7), 0x5000_409c),
        ];
        assert_eq!(hashes, [2_010_184_003, 2_870_779_995]);
    }

    /// Sequential clients and ports, the least random traffic there is, must
    /// spread evenly: chi-squared over 256 buckets.
    #[test]
    fn sequential_flows_spread_evenly() {
        const BUCKETS: usize = 256;
        const FLOWS: u32 = 256 * 400;
        for key in [0, 1, 0x0123_4567_89ab_cdef] {
            let mut counts = [0_u32; BUCKETS];
            for flow in 0..FLOWS {
                let client = (0x0a00_0000 + flow / 64).to_be();
                let ports = u32::from((1024 + flow % 64) as u16) | 0x5000_0000;
                let h = hash_v4(key, client, 0x0a71_00cb, ports);
                counts[crate::ring::slot_index(h, BUCKETS as u32) as usize] += 1;
            }
            let expected = f64::from(FLOWS) / BUCKETS as f64;
            let chi2: f64 = counts
                .iter()
                .map(|&n| (f64::from(n) - expected).powi(2) / expected)
                .sum();
            // 255 degrees of freedom: mean 255, standard deviation 22.6.
            assert!(chi2 < 255.0 + 6.0 * 22.6, "key {key:x}: chi2 {chi2}");
        }
    }

    #[test]
    fn every_part_of_an_ipv6_flow_counts() {
        let client = Address { words: [1, 2] };
        let base = hash_v6(9, &client, 10);
        for i in 0..2 {
            let mut other = client;
            other.words[i] ^= 1;
            assert_ne!(hash_v6(9, &other, 10), base);
        }
        assert_ne!(hash_v6(8, &client, 10), base);
        assert_ne!(hash_v6(9, &client, 11), base);
    }

    #[test]
    fn idle_is_told_across_the_wrap_and_backwards() {
        assert!(!is_idle(10, 20, 10));
        assert!(is_idle(10, 21, 10));
        assert!(!is_idle(21, 20, 10));
        assert!(is_idle(u32::MAX, 10, 10));
    }
}
