//! The tables of a backend in memory, for tests and fuzzers.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};

use lb_common::Address;
use lb_common::tunnel::{Counter, DropReason, TunnelSettings};

use super::{Segment, Tables};
use crate::checksum::Sum;
use crate::host::HostPacket;
use crate::packet::Packet;

/// Tables in memory.
#[derive(Clone, Debug, Default)]
pub struct BackendTables {
    /// The settings.
    pub settings: TunnelSettings,
    /// Prefixes of the directors: address and prefix length; an IPv4 prefix
    /// counts its 96 leading bits too.
    pub directors: Vec<(Address, u32)>,
    /// VIPs.
    pub vips: HashSet<Address>,
    /// The backend's other addresses.
    pub locals: HashSet<Address>,
    /// Counters that moved.
    pub counters: RefCell<BTreeMap<Counter, u64>>,
    /// Drop reasons that occurred.
    pub drops: RefCell<BTreeMap<DropReason, u64>>,
}

impl Tables for BackendTables {
    fn settings(&self) -> TunnelSettings {
        self.settings
    }

    fn is_director(&self, address: &Address) -> bool {
        let bits = |address: &Address| {
            let words = address.words.map(u64::from_be);
            words.iter().fold(0_u128, |b, w| b << 64 | u128::from(*w))
        };
        self.directors.iter().any(|(prefix, length)| {
            (bits(prefix) ^ bits(address)).leading_zeros().min(128) >= *length
        })
    }

    fn is_vip(&self, address: &Address) -> bool {
        self.vips.contains(address)
    }

    fn is_local(&self, address: &Address) -> bool {
        self.locals.contains(address)
    }

    fn count(&self, counter: Counter) {
        *self.counters.borrow_mut().entry(counter).or_default() += 1;
    }

    fn count_drop(&self, reason: DropReason) {
        *self.drops.borrow_mut().entry(reason).or_default() += 1;
    }
}

impl Segment for HostPacket {
    fn replace_checksum(&mut self, offset: usize, from: u16, to: u16) -> Option<()> {
        let old = u16::from_ne_bytes(self.read::<[u8; 2]>(offset)?);
        let sum = Sum::new().add_u16(!old).add_u16(!from).add_u16(to);
        self.write(offset, sum.finish().to_ne_bytes())
    }
}
