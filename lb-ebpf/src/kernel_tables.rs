//! The director's maps, as the stages see them.

use core::array::from_fn;
use core::hint::black_box;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::XdpContext;
use lb_common::Address;
use lb_common::backend::Backend;
use lb_common::counters::DropReason;
use lb_common::flow::FlowValue;
use lb_common::fragment::FragmentTrace;
use lb_common::nat::{NatBackend, NatForward, NatReverse, PoolPort, RouterAddresses};
use lb_common::ring::{SLOTS_PER_BLOCK, Slot};
use lb_common::service::{LocalMacKey, ServiceValue, VipKey};
use lb_common::service_table::{BUCKETS_PER_BLOCK, InTable, IndexBlock, MAX_CHAIN, ServiceEntry};
use lb_common::settings::Settings;
use lb_common::vip::VipValue;
use lb_common::vlan::Vlan;
use lb_ebpf::family::{Family, V4, V6};
use lb_ebpf::recent::{self, Note, Noted};
use lb_ebpf::tables::{FamilyTables, Insertion, Route, RouteQuery, Scratch, Tables};

use crate::maps::{
    BACKENDS, COUNTERS, DIRECT_SEEN, DROPS, FLOWS_V4, FLOWS_V6, FRAGMENTS_V4, FRAGMENTS_V6,
    ICMP_BUDGET, INTERFACES, LOCAL_ADDRESSES, LOCAL_MACS, NAT_BACKENDS_V4, NAT_BACKENDS_V6,
    NAT_FORWARD_V4, NAT_FORWARD_V6, NAT_REVERSE_V4, NAT_REVERSE_V6, POOL, POOL_PORTS_V4,
    POOL_PORTS_V6, RECENT_V4, RECENT_V6, RINGS, ROUTERS, SCRATCH_V4, SCRATCH_V6, SERVICE_INDEX_V4,
    SERVICE_INDEX_V6, SERVICES_V4, SERVICES_V6, SETTINGS, VIPS, VLAN_DEVICES, VLANS,
};
use crate::{clock, fib};

/// The maps, as seen by the program that runs on this packet.
pub struct Maps<'a>(pub &'a XdpContext);

impl Tables for Maps<'_> {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn is_vip(&self, address: &Address) -> bool {
        VIPS.get_ptr(VipKey { vip: *address }).is_some()
    }

    #[inline(always)]
    fn vip(&self, address: &Address) -> Option<VipValue> {
        // SAFETY: the value is copied at once, and replaced as a whole.
        unsafe { VIPS.get(VipKey { vip: *address }) }.copied()
    }

    #[inline(always)]
    fn is_local_mac(&self, key: &LocalMacKey) -> bool {
        LOCAL_MACS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn slot(&self, block: u32, index: u32) -> Option<Slot> {
        let block = RINGS.get(block)?;
        Some(block.slots[(index % SLOTS_PER_BLOCK) as usize])
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        BACKENDS.get(id)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        clock::now()
    }

    #[inline(always)]
    fn may_send_icmp(&self) -> bool {
        match ICMP_BUDGET.get_ptr_mut(0) {
            // SAFETY: the value is this CPU's own, and XDP programs on one
            // CPU do not interrupt each other.
            Some(budget) => unsafe { (*budget).take(self.now()) },
            None => false,
        }
    }

    #[inline(always)]
    fn count_forwarded(&self, backend: u32, bytes: u16, new_flow: bool) {
        if let Some(counters) = COUNTERS.get_ptr_mut(backend) {
            // SAFETY: the value is this CPU's own, and XDP programs on one
            // CPU do not interrupt each other.
            unsafe {
                (*counters).packets += 1;
                (*counters).bytes += u64::from(bytes);
                if new_flow {
                    (*counters).flows += 1;
                }
            }
        }
    }

    #[inline(always)]
    fn uncount_forwarded(&self, backend: u32, bytes: u16, new_flow: bool) {
        if let Some(counters) = COUNTERS.get_ptr_mut(backend) {
            // SAFETY: as above.
            unsafe {
                (*counters).packets -= 1;
                (*counters).bytes -= u64::from(bytes);
                if new_flow {
                    (*counters).flows -= 1;
                }
            }
        }
    }

    #[inline(always)]
    fn count_reply(&self, backend: u32, bytes: u16) {
        if let Some(counters) = COUNTERS.get_ptr_mut(backend) {
            // SAFETY: as above.
            unsafe {
                (*counters).reply_packets += 1;
                (*counters).reply_bytes += u64::from(bytes);
            }
        }
    }

    #[inline(always)]
    fn count_drop(&self, reason: DropReason) {
        if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
            // SAFETY: as above.
            unsafe { *count += 1 }
        }
    }

    #[inline(always)]
    fn is_local_address(&self, address: &Address) -> bool {
        LOCAL_ADDRESSES.get_ptr(VipKey { vip: *address }).is_some()
    }

    #[inline(always)]
    fn router(&self, interface: u32) -> Option<RouterAddresses> {
        // SAFETY: the value is copied at once, and is changed only when the
        // host's addresses are.
        unsafe { ROUTERS.get(interface) }.copied()
    }

    #[inline(always)]
    fn can_redirect(&self, interface: u32) -> bool {
        INTERFACES.get_ifindex(interface).is_some()
    }

    #[inline(always)]
    fn vlan_device(&self, vlan: &Vlan) -> Option<u32> {
        // SAFETY: the value is copied at once, and is one word.
        unsafe { VLAN_DEVICES.get(vlan) }.copied()
    }

    #[inline(always)]
    fn vlan(&self, device: u32) -> Option<Vlan> {
        // SAFETY: the value is copied at once, and the VLAN of a device never
        // changes.
        unsafe { VLANS.get(device) }.copied()
    }

    #[inline(always)]
    fn pool_address(&self, index: u16) -> Option<Address> {
        let address = *POOL.get(u32::from(index))?;
        (address != Address::default()).then_some(address)
    }

    #[inline(always)]
    fn direct_seen(&self) -> u32 {
        DIRECT_SEEN.get(0).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn note_direct(&self, now: u32) {
        if let Some(last) = DIRECT_SEEN.get_ptr_mut(0) {
            // SAFETY: a word is written whole; CPUs that write at the same
            // time write the same second.
            unsafe { *last = now }
        }
    }
}

macro_rules! family_tables {
    (
        $family:ident, $services:ident, $service_index:ident, $recent:ident, $flows:ident, $scratch:ident, $fragments:ident, $nat_backends:ident, $nat_forward:ident,
        $nat_reverse:ident, $ports:ident, $route:path
    ) => {
        impl FamilyTables<$family> for Maps<'_> {
            #[inline(always)]
            fn service(&self, key: &<$family as Family>::ServiceKey) -> Option<&ServiceValue> {
                find_service(&$service_index, &$services, key)
            }

            #[inline(always)]
            fn flow<const NOTED: bool>(
                &self,
                key: &<$family as Family>::FlowKey,
                now: u32,
                valid: impl Fn(&FlowValue) -> bool,
            ) -> u32 {
                if NOTED {
                    let noted = look(&$recent, &key.words());
                    let value = FlowValue {
                        backend: noted.backend,
                        generation: noted.generation,
                        last_seen: now,
                        hash: 0,
                    };
                    if noted.backend != 0 && valid(&value) {
                        return noted.backend;
                    }
                }
                let Some(place) = $flows.get_ptr_mut(key) else {
                    return 0;
                };
                // SAFETY: a map value stays readable until the program ends.
                let value = unsafe { *place };
                if !valid(&value) {
                    return 0;
                }
                see(place, now);
                if NOTED {
                    note(&$recent, &key.words(), &value);
                }
                value.backend
            }

            // Insertion fails only if the LRU list has nothing left to evict.
            // Then the flow goes unrecorded, and its slot decides.
            #[inline(always)]
            fn record(&self, key: &<$family as Family>::FlowKey, value: &FlowValue) {
                if $flows.insert(key, value, u64::from(BPF_ANY)).is_ok() {
                    note(&$recent, &key.words(), value);
                }
            }

            #[inline(always)]
            fn see_direct(&self, key: &<$family as Family>::FlowKey, now: u32) -> bool {
                match $flows.get_ptr_mut(key) {
                    Some(place) => {
                        see(place, now);
                        true
                    }
                    None => false,
                }
            }

            #[inline(always)]
            fn record_direct(&self, key: &<$family as Family>::FlowKey, now: u32) {
                let _ = $flows.insert(key, &FlowValue::direct(now), u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn forget_direct(&self, key: &<$family as Family>::FlowKey) {
                // That there is none is what is wanted.
                let _ = $flows.remove(key);
            }

            #[inline(always)]
            fn with_scratch<R>(&self, then: impl FnOnce(&mut Scratch<$family>) -> R) -> Option<R> {
                let place = $scratch.get_ptr_mut(0)?;
                // SAFETY: the value is this CPU's own, XDP programs on one CPU
                // do not interrupt each other, and it is either zero or what
                // was written to it as such.
                Some(then(unsafe { &mut *place }))
            }

            #[inline(always)]
            fn fragment(
                &self,
                key: &<$family as Family>::FlowKey,
            ) -> Option<FragmentTrace<<$family as Family>::Address>> {
                // SAFETY: the value is copied at once, and written once.
                unsafe { $fragments.get(key) }.copied()
            }

            #[inline(always)]
            fn trace_fragment(
                &self,
                key: &<$family as Family>::FlowKey,
                trace: &FragmentTrace<<$family as Family>::Address>,
            ) {
                let _ = $fragments.insert(key, trace, u64::from(BPF_ANY));
            }

            #[inline(always)]
            fn nat_backend(&self, key: &<$family as Family>::ServiceKey) -> Option<NatBackend> {
                // SAFETY: the value is copied at once.
                unsafe { $nat_backends.get(key) }.copied()
            }

            #[inline(always)]
            fn nat_forward<R>(
                &self,
                key: &<$family as Family>::FlowKey,
                look: impl FnOnce(&mut NatForward<<$family as Family>::Address>) -> R,
            ) -> Option<R> {
                let value = $nat_forward.get_ptr_mut(key)?;
                // SAFETY: a map value stays readable until the program ends.
                // Other CPUs may write the same words, each whole.
                Some(look(unsafe { &mut *value }))
            }

            #[inline(always)]
            fn nat_reverse<R>(
                &self,
                key: &<$family as Family>::FlowKey,
                look: impl FnOnce(&mut NatReverse<<$family as Family>::Address>) -> R,
            ) -> Option<R> {
                let value = $nat_reverse.get_ptr_mut(key)?;
                // SAFETY: as above.
                Some(look(unsafe { &mut *value }))
            }

            #[inline(always)]
            fn insert_nat_forward(
                &self,
                key: &<$family as Family>::FlowKey,
                value: &NatForward<<$family as Family>::Address>,
                replace: bool,
            ) -> Insertion {
                let flags = if replace { BPF_ANY } else { BPF_NOEXIST };
                insertion($nat_forward.insert(key, value, u64::from(flags)))
            }

            #[inline(always)]
            fn insert_nat_reverse(
                &self,
                key: &<$family as Family>::FlowKey,
                value: &NatReverse<<$family as Family>::Address>,
            ) -> Insertion {
                insertion($nat_reverse.insert(key, value, u64::from(BPF_NOEXIST)))
            }

            #[inline(always)]
            fn remove_nat_reverse(&self, key: &<$family as Family>::FlowKey) {
                // That there is none is what is wanted.
                let _ = $nat_reverse.remove(key);
            }

            #[inline(always)]
            fn take_port(&self) -> Option<PoolPort> {
                $ports.pop().ok().flatten()
            }

            #[inline(always)]
            fn return_port(&self, port: PoolPort) {
                // There is room: it has just been taken.
                let _ = $ports.push(port, 0);
            }

            #[inline(always)]
            fn route(&self, packet: &RouteQuery<$family>) -> Route {
                $route(self.0.as_ptr(), packet)
            }
        }
    };
}
family_tables!(
    V4,
    SERVICES_V4,
    SERVICE_INDEX_V4,
    RECENT_V4,
    FLOWS_V4,
    SCRATCH_V4,
    FRAGMENTS_V4,
    NAT_BACKENDS_V4,
    NAT_FORWARD_V4,
    NAT_REVERSE_V4,
    POOL_PORTS_V4,
    fib::route_v4
);
family_tables!(
    V6,
    SERVICES_V6,
    SERVICE_INDEX_V6,
    RECENT_V6,
    FLOWS_V6,
    SCRATCH_V6,
    FRAGMENTS_V6,
    NAT_BACKENDS_V6,
    NAT_FORWARD_V6,
    NAT_REVERSE_V6,
    POOL_PORTS_V6,
    fib::route_v6
);

/// The service with this key, in the tables of its IP version. Its entry may be
/// given to another service while this packet is under way: then the stages
/// notice that the backend is not of the service that they began with.
#[inline(always)]
fn find_service<K: InTable, const PADDING: usize>(
    index: &'static Array<IndexBlock>,
    entries: &'static Array<ServiceEntry<K, PADDING>>,
    key: &K,
) -> Option<&'static ServiceValue> {
    let bucket = key.bucket();
    let first = &index.get(bucket.block)?.first;
    let mut number = first[(bucket.place % BUCKETS_PER_BLOCK) as usize];
    let mut left = u64::from(MAX_CHAIN);
    while number != 0 && left != 0 {
        let entry = entries.get(number)?;
        if entry.key == *key {
            return Some(&entry.value);
        }
        number = entry.next;
        // Compilers would write the loop out. They do not see through this; the
        // verifier does, of a whole word.
        left = black_box(left - 1);
    }
    None
}

#[inline(always)]
fn insertion(result: Result<(), i32>) -> Insertion {
    const EEXIST: i32 = -17;
    match result {
        Ok(()) => Insertion::Done,
        Err(EEXIST) => Insertion::Exists,
        Err(_) => Insertion::Full,
    }
}

#[inline(always)]
fn see(place: *mut FlowValue, now: u32) {
    // SAFETY: a map value stays writable until the program ends. Other CPUs
    // write this word too, whole and never earlier than a second ago.
    let last_seen = unsafe { &mut (*place).last_seen };
    // Once a second, so that the cache line is not fought over.
    if *last_seen != now {
        *last_seen = now;
    }
}

#[inline(always)]
fn look<const WORDS: usize>(notes: &'static Array<Note<WORDS>>, key: &[u64; WORDS]) -> Noted {
    let Some(place) = notes.get_ptr(recent::place(key)) else {
        return Noted::NOTHING;
    };
    // SAFETY: a map value stays readable until the program ends. What others
    // write meanwhile a note can tell. Volatile, so that each word is read once.
    let note = unsafe {
        Note {
            value: (&raw const (*place).value).read_volatile(),
            mixed: from_fn(|i| (&raw const (*place).mixed[i]).read_volatile()),
        }
    };
    note.look(key, recent::moment(clock::tick()))
}

#[inline(always)]
fn note<const WORDS: usize>(
    notes: &'static Array<Note<WORDS>>,
    key: &[u64; WORDS],
    value: &FlowValue,
) {
    let Some(place) = notes.get_ptr_mut(recent::place(key)) else {
        return;
    };
    let noted = Noted {
        backend: value.backend,
        generation: value.generation,
    };
    let note = Note::new(key, recent::moment(clock::tick()), noted);
    // SAFETY: a map value stays writable until the program ends. Word by word: as
    // a whole it would be put together on the stack.
    unsafe {
        (&raw mut (*place).value).write_volatile(note.value);
        for (i, word) in note.mixed.into_iter().enumerate() {
            (&raw mut (*place).mixed[i]).write_volatile(word);
        }
    }
}
