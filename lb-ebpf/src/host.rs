//! A packet in a buffer and tables in memory, for tests and fuzzers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};

use lb_common::Address;
use lb_common::backend::Backend;
use lb_common::counters::{BackendCounters, DropReason, IcmpBudget};
use lb_common::flow::{FlowKeyV4, FlowKeyV6, FlowValue};
use lb_common::ring::{RingBlock, Slot};
use lb_common::service::{LocalMacKey, ServiceKeyV4, ServiceKeyV6, ServiceValue};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::checksum::Sum;
use crate::packet::Packet;
use crate::tables::Tables;

/// A packet in a buffer, with as much room in front as XDP drivers leave.
#[derive(Clone, Debug)]
pub struct HostPacket {
    buffer: Vec<u8>,
    start: usize,
    interface: u32,
}

impl HostPacket {
    const HEADROOM: usize = 256;

    /// A packet of these bytes, received by the interface with this index.
    pub fn new(bytes: &[u8], interface: u32) -> Self {
        let mut buffer = vec![0; Self::HEADROOM];
        buffer.extend_from_slice(bytes);
        Self {
            buffer,
            start: Self::HEADROOM,
            interface,
        }
    }

    /// The packet as it is now.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

impl Packet for HostPacket {
    fn len(&self) -> usize {
        self.bytes().len()
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn read<T: FromBytes>(&self, offset: usize) -> Option<T> {
        let bytes = self.bytes().get(offset..)?;
        T::read_from_prefix(bytes).ok().map(|(value, _)| value)
    }

    fn sum<const N: usize>(&self, offset: usize) -> Option<Sum> {
        let bytes = self.bytes().get(offset..offset + N)?;
        let words = bytes.chunks_exact(8).filter_map(|c| c.try_into().ok());
        Some(words.map(u64::from_ne_bytes).fold(Sum::new(), Sum::add_u64))
    }

    fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()> {
        let bytes = self.buffer[self.start..].get_mut(offset..)?;
        value.write_to_prefix(bytes).ok()
    }

    fn adjust_head(&mut self, delta: i32) -> Option<()> {
        let start = self.start.checked_add_signed(delta as isize)?;
        // The kernel leaves at least an Ethernet header.
        (start + crate::parse::ETHERNET_LENGTH <= self.buffer.len()).then(|| self.start = start)
    }

    fn adjust_tail(&mut self, delta: i32) -> Option<()> {
        let end = self.buffer.len().checked_add_signed(delta as isize)?;
        let fits = end >= self.start + crate::parse::ETHERNET_LENGTH;
        fits.then(|| self.buffer.resize(end, 0))
    }
}

/// Tables in memory.
#[derive(Clone, Debug, Default)]
pub struct HostTables {
    /// IPv4 services.
    pub services_v4: HashMap<ServiceKeyV4, ServiceValue>,
    /// IPv6 services.
    pub services_v6: HashMap<ServiceKeyV6, ServiceValue>,
    /// VIPs.
    pub vips: HashSet<Address>,
    /// MAC addresses of the director.
    pub local_macs: HashSet<LocalMacKey>,
    /// Rings.
    pub rings: Vec<RingBlock>,
    /// Backend entries.
    pub backends: Vec<Backend>,
    /// IPv4 flow table.
    pub flows_v4: RefCell<HashMap<FlowKeyV4, FlowValue>>,
    /// IPv6 flow table.
    pub flows_v6: RefCell<HashMap<FlowKeyV6, FlowValue>>,
    /// The clock.
    pub now: Cell<u32>,
    /// What is left of this second's ICMP errors.
    pub icmp_budget: Cell<IcmpBudget>,
    /// Counters of backends that got packets.
    pub counters: RefCell<BTreeMap<u32, BackendCounters>>,
    /// Counters of drop reasons that occurred.
    pub drops: RefCell<BTreeMap<DropReason, u64>>,
}

impl Tables for HostTables {
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<ServiceValue> {
        self.services_v4.get(key).copied()
    }

    fn service_v6(&self, key: &ServiceKeyV6) -> Option<ServiceValue> {
        self.services_v6.get(key).copied()
    }

    fn has_port_zero_services(&self) -> bool {
        self.services_v4.keys().any(|key| key.port() == 0)
            || self.services_v6.keys().any(|key| key.port() == 0)
    }

    fn is_vip(&self, address: &Address) -> bool {
        self.vips.contains(address)
    }

    fn is_local_mac(&self, key: &LocalMacKey) -> bool {
        self.local_macs.contains(key)
    }

    fn slot(&self, block: u32, index: u32) -> Option<Slot> {
        let block = self.rings.get(block as usize)?;
        block.slots.get(index as usize).copied()
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(id as usize)
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn flow_v4(
        &self,
        key: &FlowKeyV4,
        now: u32,
        valid: impl FnOnce(&FlowValue) -> bool,
    ) -> Option<u32> {
        see(self.flows_v4.borrow_mut().get_mut(key)?, now, valid)
    }

    fn flow_v6(
        &self,
        key: &FlowKeyV6,
        now: u32,
        valid: impl FnOnce(&FlowValue) -> bool,
    ) -> Option<u32> {
        see(self.flows_v6.borrow_mut().get_mut(key)?, now, valid)
    }

    fn record_v4(&self, key: &FlowKeyV4, value: &FlowValue) {
        self.flows_v4.borrow_mut().insert(*key, *value);
    }

    fn record_v6(&self, key: &FlowKeyV6, value: &FlowValue) {
        self.flows_v6.borrow_mut().insert(*key, *value);
    }

    fn may_send_icmp(&self) -> bool {
        let mut budget = self.icmp_budget.get();
        let may = budget.take(self.now());
        self.icmp_budget.set(budget);
        may
    }

    fn count_forwarded(&self, backend: u32, bytes: u16, new_flow: bool) {
        let mut counters = self.counters.borrow_mut();
        let counters = counters.entry(backend).or_default();
        counters.packets += 1;
        counters.bytes += u64::from(bytes);
        counters.flows += u64::from(new_flow);
    }

    fn count_drop(&self, reason: DropReason) {
        *self.drops.borrow_mut().entry(reason).or_default() += 1;
    }
}

fn see(value: &mut FlowValue, now: u32, valid: impl FnOnce(&FlowValue) -> bool) -> Option<u32> {
    valid(value).then(|| {
        value.last_seen = now;
        value.backend
    })
}
