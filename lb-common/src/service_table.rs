//! The tables in which the packet path finds services.
//!
//! Each IP version has an array of entries, one for each service, and a hash
//! table of their numbers: a bucket holds the number of one entry, which names
//! the next of the same bucket. A BPF hash map would do the same, but looking
//! something up in it is several functions of the kernel, and most of what a
//! packet costs: in an array it is a handful of instructions of the program.
//!
//! # Changes
//! A reader on another CPU always finds the service, as it was or as it is. To
//! add or replace one an unused entry is written, which nobody can reach, then
//! the one word that leads to it; to remove one that word alone. What was taken
//! out stays as it is, for readers that are still there, until its entry is used
//! again: [`SPARES`] see to it that this takes many other changes.

use crate::flow::MULTIPLIERS;
use crate::limits::MAX_SERVICES;
use crate::service::{ServiceKeyV4, ServiceKeyV6, ServiceValue};
use crate::{Address, abi};

/// Entries beyond those that services take.
const SPARES: u32 = 1023;

/// Entries of a table. Number 0 is nobody's: it stands for none.
pub const SERVICE_ENTRIES: u32 = 1 + MAX_SERVICES + SPARES;

/// Services of one bucket at most: few, because the verifier follows each step.
/// There are sixteen times as many buckets as services at most, so that one
/// more than this in any bucket of a full table is a matter of 2 in 100,000.
pub const MAX_CHAIN: u32 = 5;

const BUCKET_BITS: u32 = 18;
const BUCKETS: u32 = 1 << BUCKET_BITS;
const _: () = assert!(BUCKETS == 16 * MAX_SERVICES);

/// Buckets of one value of the index.
pub const BUCKETS_PER_BLOCK: u32 = 256;

/// Values of the index.
pub const INDEX_BLOCKS: u32 = BUCKETS / BUCKETS_PER_BLOCK;

/// One value of the index.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexBlock {
    /// Number of each bucket's first entry; 0 if there is none.
    pub first: [u32; BUCKETS_PER_BLOCK as usize],
}
abi!(IndexBlock, size = 1024, align = 64);

impl Default for IndexBlock {
    fn default() -> Self {
        let first = [0; BUCKETS_PER_BLOCK as usize];
        Self { first }
    }
}

/// A service, in one cache line. `PADDING` fills it up.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceEntry<K, const PADDING: usize> {
    /// The service.
    pub value: ServiceValue,
    /// Its VIP, port and protocol.
    pub key: K,
    /// Number of the next entry in the same bucket; 0 if there is none.
    pub next: u32,
    /// Zeros.
    pub padding: [u32; PADDING],
}

/// Words that fill up the entry of an IPv4 service.
pub const PADDING_V4: usize = 5;

/// Words that fill up the entry of an IPv6 service.
pub const PADDING_V6: usize = 1;

/// An IPv4 service.
pub type ServiceEntryV4 = ServiceEntry<ServiceKeyV4, PADDING_V4>;
abi!(ServiceEntryV4, size = 64, align = 64);

/// An IPv6 service.
pub type ServiceEntryV6 = ServiceEntry<ServiceKeyV6, PADDING_V6>;
abi!(ServiceEntryV6, size = 64, align = 64);

impl<K, const PADDING: usize> ServiceEntry<K, PADDING> {
    /// The entry of a service, in front of the one with the number `next`.
    pub const fn new(key: K, value: ServiceValue, next: u32) -> Self {
        Self {
            value,
            key,
            next,
            padding: [0; PADDING],
        }
    }
}

/// Where a key is in an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its block.
    pub block: u32,
    /// Its place there: below [`BUCKETS_PER_BLOCK`].
    pub place: u32,
}

/// A key that has a place in an index.
pub trait InTable: Copy + Eq {
    /// The place.
    fn bucket(&self) -> Bucket;
}

impl InTable for ServiceKeyV4 {
    #[inline(always)]
    fn bucket(&self) -> Bucket {
        of_hash(self.word().wrapping_mul(MULTIPLIERS[2]))
    }
}

impl InTable for ServiceKeyV6 {
    #[inline(always)]
    fn bucket(&self) -> Bucket {
        let (Address { words: [high, low] }, rest) = (self.vip(), self.rest());
        // Three products that do not wait for each other.
        let hash = high
            .wrapping_mul(MULTIPLIERS[0])
            .wrapping_add(low.wrapping_mul(MULTIPLIERS[1]))
            .wrapping_add(rest.wrapping_mul(MULTIPLIERS[2]));
        of_hash(hash)
    }
}

/// The upper bits of a product depend on all bits of the key. No seed: whose
/// keys are in the table is for the operator to say, not for who sends packets.
#[inline(always)]
const fn of_hash(hash: u64) -> Bucket {
    const PLACE_BITS: u32 = BUCKETS_PER_BLOCK.trailing_zeros();
    let bucket = (hash >> (u64::BITS - BUCKET_BITS)) as u32;
    Bucket {
        block: bucket >> PLACE_BITS,
        place: bucket % BUCKETS_PER_BLOCK,
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::collections::HashMap;

    use super::*;
    use crate::protocol::{TCP, UDP};

    /// Ways in which operators fill a table: VIPs in a row, ports in a row, both.
    fn plans() -> impl Iterator<Item = Vec<(u32, u16, u8)>> {
        let protocols = [TCP, UDP];
        (0..=14).flat_map(move |port_bits| {
            protocols.map(|protocol| {
                let services = 0..MAX_SERVICES;
                let of = |n: u32| {
                    let port = n & ((1 << port_bits) - 1);
                    (n >> port_bits, 80 + port as u16, protocol)
                };
                services.map(of).collect()
            })
        })
    }

    fn longest_chain<K: InTable>(keys: impl Iterator<Item = K>) -> u32 {
        let mut lengths = HashMap::new();
        for key in keys {
            let Bucket { block, place } = key.bucket();
            assert!(block < INDEX_BLOCKS && place < BUCKETS_PER_BLOCK);
            *lengths.entry((block, place)).or_insert(0) += 1;
        }
        lengths.into_values().max().unwrap_or(0)
    }

    #[test]
    fn no_bucket_gets_long_however_orderly_the_services_are() {
        for plan in plans() {
            let first = u32::from(Ipv4Addr::new(10, 0, 0, 1));
            let v4 = |&(vip, port, protocol): &(u32, u16, u8)| {
                ServiceKeyV4::new(Ipv4Addr::from(first + vip), port, protocol)
            };
            assert!(longest_chain(plan.iter().map(v4)) < MAX_CHAIN);
            let first = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
            // In a row in one network, and one in each of as many networks.
            for shift in [0, 64] {
                let v6 = |&(vip, port, protocol): &(u32, u16, u8)| {
                    let vip = Ipv6Addr::from(first + (u128::from(vip) << shift));
                    ServiceKeyV6::new(vip, port, protocol)
                };
                assert!(longest_chain(plan.iter().map(v6)) < MAX_CHAIN);
            }
        }
    }
}
