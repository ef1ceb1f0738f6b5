//! Every BPF map of the director, and the stages' view of them.
//!
//! User space sets the sizes that depend on the installation when it loads
//! the program; those given here are for the smallest one.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LruHashMap, PerCpuArray};
use lb_common::Address;
use lb_common::backend::Backend;
use lb_common::counters::{BackendCounters, DROP_REASONS, DropReason, IcmpBudget};
use lb_common::flow::{self, FlowKeyV4, FlowKeyV6, FlowValue};
use lb_common::limits::{
    DEFAULT_FLOW_TABLE_SIZE, DEFAULT_MAX_BACKENDS, MAX_INTERFACES, MAX_SERVICES, ring_blocks,
};
use lb_common::ring::{RingBlock, SLOTS_PER_BLOCK, Slot};
use lb_common::service::{LocalMacKey, ServiceKeyV4, ServiceKeyV6, ServiceValue, VipKey};
use lb_common::settings::Settings;
use lb_ebpf::tables::Tables;

/// [`Settings`], one value.
#[map]
static SETTINGS: Array<Settings> = Array::pinned(1, 0);

/// IPv4 services.
#[map]
static SERVICES_V4: HashMap<ServiceKeyV4, ServiceValue> = HashMap::pinned(MAX_SERVICES, 0);

/// IPv6 services.
#[map]
static SERVICES_V6: HashMap<ServiceKeyV6, ServiceValue> = HashMap::pinned(MAX_SERVICES, 0);

/// VIPs of all services; the value counts nothing.
#[map]
static VIPS: HashMap<VipKey, u32> = HashMap::pinned(2 * MAX_SERVICES, 0);

/// MAC addresses of the director.
#[map]
static LOCAL_MACS: HashMap<LocalMacKey, u32> = HashMap::pinned(4 * MAX_INTERFACES, 0);

/// The rings of all services.
#[map]
static RINGS: Array<RingBlock> = Array::pinned(ring_blocks(DEFAULT_MAX_BACKENDS), 0);

/// Backend entries; entry 0 stays empty.
#[map]
static BACKENDS: Array<Backend> = Array::pinned(DEFAULT_MAX_BACKENDS, 0);

/// Counters of the backend entry with the same index.
#[map]
static COUNTERS: PerCpuArray<BackendCounters> = PerCpuArray::pinned(DEFAULT_MAX_BACKENDS, 0);

/// Packets dropped, by [`DropReason`].
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DROP_REASONS, 0);

/// How many ICMP errors this CPU may still send.
#[map]
static ICMP_BUDGET: PerCpuArray<IcmpBudget> = PerCpuArray::pinned(1, 0);

/// The IPv4 flow table.
#[map]
static FLOWS_V4: LruHashMap<FlowKeyV4, FlowValue> = LruHashMap::pinned(DEFAULT_FLOW_TABLE_SIZE, 0);

/// The IPv6 flow table.
#[map]
static FLOWS_V6: LruHashMap<FlowKeyV6, FlowValue> = LruHashMap::pinned(DEFAULT_FLOW_TABLE_SIZE, 0);

/// Interfaces that packets may be redirected to, by their own index.
#[map]
pub static INTERFACES: DevMapHash = DevMapHash::pinned(MAX_INTERFACES, 0);

/// The maps above.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<ServiceValue> {
        // SAFETY: the value is copied at once; should it be replaced twice in
        // between, the stages notice that ring and service do not match.
        unsafe { SERVICES_V4.get(key) }.copied()
    }

    #[inline(always)]
    fn service_v6(&self, key: &ServiceKeyV6) -> Option<ServiceValue> {
        // SAFETY: as for IPv4.
        unsafe { SERVICES_V6.get(key) }.copied()
    }

    #[inline(always)]
    fn has_port_zero_services(&self) -> bool {
        SETTINGS.get(0).is_some_and(|s| s.port_zero_services != 0)
    }

    #[inline(always)]
    fn is_vip(&self, address: &Address) -> bool {
        VIPS.get_ptr(VipKey { vip: *address }).is_some()
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
        // The coarse clock is read from memory, and a tick is fine enough.
        // SAFETY: the helper has no preconditions.
        flow::seconds(unsafe { bpf_ktime_get_coarse_ns() })
    }

    #[inline(always)]
    fn flow_v4(
        &self,
        key: &FlowKeyV4,
        now: u32,
        valid: impl FnOnce(&FlowValue) -> bool,
    ) -> Option<u32> {
        see(FLOWS_V4.get_ptr_mut(key)?, now, valid)
    }

    #[inline(always)]
    fn flow_v6(
        &self,
        key: &FlowKeyV6,
        now: u32,
        valid: impl FnOnce(&FlowValue) -> bool,
    ) -> Option<u32> {
        see(FLOWS_V6.get_ptr_mut(key)?, now, valid)
    }

    // Insertion fails only if the LRU list has nothing left to evict. Then
    // the flow goes unrecorded, and its slot decides.
    #[inline(always)]
    fn record_v4(&self, key: &FlowKeyV4, value: &FlowValue) {
        let _ = FLOWS_V4.insert(key, value, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn record_v6(&self, key: &FlowKeyV6, value: &FlowValue) {
        let _ = FLOWS_V6.insert(key, value, u64::from(BPF_ANY));
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
                (*counters).flows += u64::from(new_flow);
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
}

#[inline(always)]
fn see(value: *mut FlowValue, now: u32, valid: impl FnOnce(&FlowValue) -> bool) -> Option<u32> {
    // SAFETY: a map value stays readable until the program ends. Other CPUs
    // write `last_seen` too, whole and never earlier than a second ago.
    unsafe {
        let copy = *value;
        if !valid(&copy) {
            return None;
        }
        // Once a second, so that the cache line is not fought over.
        if copy.last_seen != now {
            (*value).last_seen = now;
        }
        Some(copy.backend)
    }
}
