//! A packet in a buffer and tables in memory, for tests and fuzzers.

use std::cell::{Cell, RefCell};
use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

use lb_common::Address;
use lb_common::backend::Backend;
use lb_common::counters::{BackendCounters, DropReason, IcmpBudget};
use lb_common::flow::FlowValue;
use lb_common::fragment::FragmentTrace;
use lb_common::nat::{NatBackend, NatForward, NatReverse, PoolPort, RouterAddresses};
use lb_common::ring::{RingBlock, Slot};
use lb_common::service::{LocalMacKey, ServiceValue};
use lb_common::settings::Settings;
use lb_common::vip::VipValue;
use lb_common::vlan::Vlan;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::checksum::Sum;
use crate::family::{Family, V4, V6};
use crate::packet::{Packet, Untagged};
use crate::tables::{FamilyTables, Insertion, Route, RouteQuery, Scratch, Tables};

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

    /// The same packet without room in front, as some drivers leave it.
    #[must_use]
    pub fn without_headroom(mut self) -> Self {
        self.buffer.drain(..self.start);
        self.start = 0;
        self
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
        (start + crate::headers::ETHERNET_LENGTH <= self.buffer.len()).then(|| self.start = start)
    }

    fn adjust_tail(&mut self, delta: i32) -> Option<()> {
        let end = self.buffer.len().checked_add_signed(delta as isize)?;
        let fits = end >= self.start + crate::headers::ETHERNET_LENGTH;
        fits.then(|| self.buffer.resize(end, 0))
    }
}

impl Untagged for HostPacket {
    fn set_interface(&mut self, interface: u32) {
        self.interface = interface;
    }
}

/// Tables in memory.
#[derive(Default)]
pub struct HostTables {
    /// The settings.
    pub settings: Settings,
    /// What there is for IPv4.
    pub v4: FamilyMaps<V4>,
    /// What there is for IPv6.
    pub v6: FamilyMaps<V6>,
    /// VIPs.
    pub vips: HashMap<Address, VipValue>,
    /// MAC addresses of the director.
    pub local_macs: HashSet<LocalMacKey>,
    /// Addresses of the director.
    pub local_addresses: HashSet<Address>,
    /// Addresses of the director, by interface.
    pub routers: HashMap<u32, RouterAddresses>,
    /// Interfaces to which packets can be redirected.
    pub interfaces: HashSet<u32>,
    /// VLANs by the index of their device.
    pub vlans: HashMap<u32, Vlan>,
    /// The way to a destination, and the largest packet in bytes that it
    /// carries; without it always [`Route::Host`].
    pub routes: Option<Routes>,
    /// Addresses of the pool, by number.
    pub pool: HashMap<u16, Address>,
    /// Rings.
    pub rings: Vec<RingBlock>,
    /// Backend entries.
    pub backends: Vec<Backend>,
    /// See [`Tables::direct_seen`].
    pub direct_seen: Cell<u32>,
    /// The clock.
    pub now: Cell<u32>,
    /// What is left of this second's ICMP errors.
    pub icmp_budget: Cell<IcmpBudget>,
    /// Counters of backends that got packets.
    pub counters: RefCell<BTreeMap<u32, BackendCounters>>,
    /// Counters of drop reasons that occurred.
    pub drops: RefCell<BTreeMap<DropReason, u64>>,
}

/// See [`HostTables::routes`].
pub type Routes = Box<dyn Fn(&Address) -> (Route, u16)>;

/// Tables of one IP version.
pub struct FamilyMaps<F: Family> {
    /// Services.
    pub services: HashMap<F::ServiceKey, ServiceValue>,
    /// NAT backends.
    pub nat_backends: HashMap<F::ServiceKey, NatBackend>,
    /// The flow table.
    pub flows: RefCell<HashMap<F::FlowKey, FlowValue>>,
    /// Traces of packets in fragments.
    pub fragments: RefCell<HashMap<F::FlowKey, FragmentTrace<F::Address>>>,
    /// Full NAT's forward table.
    pub nat_forward: RefCell<HashMap<F::FlowKey, NatForward<F::Address>>>,
    /// NAT's reverse table.
    pub nat_reverse: RefCell<HashMap<F::FlowKey, NatReverse<F::Address>>>,
    /// Entries that each of these two has room for.
    pub nat_table_size: usize,
    /// Free ports of the pool.
    pub ports: RefCell<VecDeque<PoolPort>>,
}

impl Tables for HostTables {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn is_vip(&self, address: &Address) -> bool {
        self.vips.contains_key(address)
    }

    fn vip(&self, address: &Address) -> Option<VipValue> {
        self.vips.get(address).copied()
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

    fn uncount_forwarded(&self, backend: u32, bytes: u16, new_flow: bool) {
        let mut counters = self.counters.borrow_mut();
        let Entry::Occupied(mut counters) = counters.entry(backend) else {
            return;
        };
        let counts = counters.get_mut();
        counts.packets -= 1;
        counts.bytes -= u64::from(bytes);
        counts.flows -= u64::from(new_flow);
        if *counts == BackendCounters::default() {
            counters.remove();
        }
    }

    fn count_reply(&self, backend: u32, bytes: u16) {
        let mut counters = self.counters.borrow_mut();
        let counters = counters.entry(backend).or_default();
        counters.reply_packets += 1;
        counters.reply_bytes += u64::from(bytes);
    }

    fn count_drop(&self, reason: DropReason) {
        *self.drops.borrow_mut().entry(reason).or_default() += 1;
    }

    fn is_local_address(&self, address: &Address) -> bool {
        self.local_addresses.contains(address)
    }

    fn router(&self, interface: u32) -> Option<RouterAddresses> {
        self.routers.get(&interface).copied()
    }

    fn can_redirect(&self, interface: u32) -> bool {
        self.interfaces.contains(&interface)
    }

    fn vlan_device(&self, vlan: &Vlan) -> Option<u32> {
        let mut vlans = self.vlans.iter();
        vlans.find(|(_, v)| *v == vlan).map(|(&device, _)| device)
    }

    fn vlan(&self, device: u32) -> Option<Vlan> {
        self.vlans.get(&device).copied()
    }

    fn pool_address(&self, index: u16) -> Option<Address> {
        self.pool.get(&index).copied()
    }

    fn direct_seen(&self) -> u32 {
        self.direct_seen.get()
    }

    fn note_direct(&self, now: u32) {
        self.direct_seen.set(now);
    }
}

macro_rules! family_tables {
    ($family:ident, $field:ident) => {
        impl FamilyTables<$family> for HostTables {
            fn service(&self, key: &<$family as Family>::ServiceKey) -> Option<&ServiceValue> {
                self.$field.services.get(key)
            }

            fn flow<const NOTED: bool>(
                &self,
                key: &<$family as Family>::FlowKey,
                now: u32,
                valid: impl Fn(&FlowValue) -> bool,
            ) -> u32 {
                let mut flows = self.$field.flows.borrow_mut();
                match flows.get_mut(key) {
                    Some(value) if valid(value) => {
                        value.last_seen = now;
                        value.backend
                    }
                    _ => 0,
                }
            }

            fn record(&self, key: &<$family as Family>::FlowKey, value: &FlowValue) {
                self.$field.flows.borrow_mut().insert(*key, *value);
            }

            fn see_direct(&self, key: &<$family as Family>::FlowKey, now: u32) -> bool {
                let mut flows = self.$field.flows.borrow_mut();
                let flow = flows.get_mut(key);
                flow.map(|flow| flow.last_seen = now).is_some()
            }

            fn record_direct(&self, key: &<$family as Family>::FlowKey, now: u32) {
                let mut flows = self.$field.flows.borrow_mut();
                flows.insert(*key, FlowValue::direct(now));
            }

            fn forget_direct(&self, key: &<$family as Family>::FlowKey) {
                self.$field.flows.borrow_mut().remove(key);
            }

            fn with_scratch<R>(&self, then: impl FnOnce(&mut Scratch<$family>) -> R) -> Option<R> {
                Some(then(&mut Scratch::default()))
            }

            fn fragment(
                &self,
                key: &<$family as Family>::FlowKey,
            ) -> Option<FragmentTrace<<$family as Family>::Address>> {
                self.$field.fragments.borrow().get(key).copied()
            }

            fn trace_fragment(
                &self,
                key: &<$family as Family>::FlowKey,
                trace: &FragmentTrace<<$family as Family>::Address>,
            ) {
                self.$field.fragments.borrow_mut().insert(*key, *trace);
            }

            fn nat_backend(&self, key: &<$family as Family>::ServiceKey) -> Option<NatBackend> {
                self.$field.nat_backends.get(key).copied()
            }

            fn nat_forward<R>(
                &self,
                key: &<$family as Family>::FlowKey,
                look: impl FnOnce(&mut NatForward<<$family as Family>::Address>) -> R,
            ) -> Option<R> {
                Some(look(self.$field.nat_forward.borrow_mut().get_mut(key)?))
            }

            fn nat_reverse<R>(
                &self,
                key: &<$family as Family>::FlowKey,
                look: impl FnOnce(&mut NatReverse<<$family as Family>::Address>) -> R,
            ) -> Option<R> {
                Some(look(self.$field.nat_reverse.borrow_mut().get_mut(key)?))
            }

            fn insert_nat_forward(
                &self,
                key: &<$family as Family>::FlowKey,
                value: &NatForward<<$family as Family>::Address>,
                replace: bool,
            ) -> Insertion {
                let mut table = self.$field.nat_forward.borrow_mut();
                insert(&mut table, self.$field.nat_table_size, key, value, replace)
            }

            fn insert_nat_reverse(
                &self,
                key: &<$family as Family>::FlowKey,
                value: &NatReverse<<$family as Family>::Address>,
            ) -> Insertion {
                let mut table = self.$field.nat_reverse.borrow_mut();
                insert(&mut table, self.$field.nat_table_size, key, value, false)
            }

            fn remove_nat_reverse(&self, key: &<$family as Family>::FlowKey) {
                self.$field.nat_reverse.borrow_mut().remove(key);
            }

            fn take_port(&self) -> Option<PoolPort> {
                self.$field.ports.borrow_mut().pop_front()
            }

            fn return_port(&self, port: PoolPort) {
                self.$field.ports.borrow_mut().push_back(port);
            }

            fn route(&self, packet: &RouteQuery<$family>) -> Route {
                let destination = <$family as Family>::to_common(&packet.destination);
                match self.routes.as_ref().map(|routes| routes(&destination)) {
                    Some((_, mtu)) if packet.length > mtu => Route::TooBig(mtu),
                    Some((route, _)) => route,
                    None => Route::Host,
                }
            }
        }
    };
}
family_tables!(V4, v4);
family_tables!(V6, v6);

fn insert<K: Copy + Eq + Hash, V: Copy>(
    table: &mut HashMap<K, V>,
    size: usize,
    key: &K,
    value: &V,
    replace: bool,
) -> Insertion {
    let exists = table.contains_key(key);
    if exists && !replace {
        return Insertion::Exists;
    }
    if !exists && table.len() >= size {
        return Insertion::Full;
    }
    table.insert(*key, *value);
    Insertion::Done
}

impl<F: Family> Default for FamilyMaps<F> {
    fn default() -> Self {
        Self {
            services: HashMap::new(),
            nat_backends: HashMap::new(),
            flows: RefCell::default(),
            fragments: RefCell::default(),
            nat_forward: RefCell::default(),
            nat_reverse: RefCell::default(),
            nat_table_size: usize::MAX,
            ports: RefCell::default(),
        }
    }
}
