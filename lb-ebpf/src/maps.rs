//! Every BPF map of the director. What the stages see of them is in
//! [`crate::kernel_tables`].
//!
//! User space sets the sizes that depend on the installation when it loads
//! the program; those given here are for the smallest one. Hash maps whose
//! size is a limit, not an expectation, take memory as they are filled.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LruHashMap, PerCpuArray, ProgramArray, Queue};
use lb_common::backend::Backend;
use lb_common::counters::{BackendCounters, DROP_REASONS, IcmpBudget};
use lb_common::flow::{FlowKeyV4, FlowKeyV6, FlowValue};
use lb_common::fragment::{FragmentTrace, MAX_TRACES};
use lb_common::limits::{
    DEFAULT_FLOW_TABLE_SIZE, DEFAULT_MAX_BACKENDS, DEFAULT_NAT_TABLE_SIZE, MAX_INTERFACES,
    MAX_LOCAL_ADDRESSES, MAX_SERVICES, MAX_VLANS, ring_blocks,
};
use lb_common::nat::{
    MAX_POOL_ADDRESSES, NatBackend, NatForward, NatReverse, PoolPort, RouterAddresses,
};
use lb_common::ring::RingBlock;
use lb_common::service::{LocalMacKey, ServiceKeyV4, ServiceKeyV6, VipKey};
use lb_common::service_table::{
    INDEX_BLOCKS, IndexBlock, SERVICE_ENTRIES, ServiceEntryV4, ServiceEntryV6,
};
use lb_common::settings::Settings;
use lb_common::vip::VipValue;
use lb_common::vlan::Vlan;
use lb_common::{Address, program};
use lb_ebpf::family::{V4, V6};
use lb_ebpf::recent::{Note, PLACES};
use lb_ebpf::tables::Scratch;
use lb_ebpf::tag::Frame;

/// [`Settings`], one value.
#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);

/// IPv4 services. Mappable for the same reason as [`BACKENDS`].
#[map]
pub static SERVICES_V4: Array<ServiceEntryV4> = Array::pinned(SERVICE_ENTRIES, BPF_F_MMAPABLE);

/// IPv6 services; likewise.
#[map]
pub static SERVICES_V6: Array<ServiceEntryV6> = Array::pinned(SERVICE_ENTRIES, BPF_F_MMAPABLE);

/// Where IPv4 services are.
#[map]
pub static SERVICE_INDEX_V4: Array<IndexBlock> = Array::pinned(INDEX_BLOCKS, 0);

/// Where IPv6 services are.
#[map]
pub static SERVICE_INDEX_V6: Array<IndexBlock> = Array::pinned(INDEX_BLOCKS, 0);

/// VIPs of all services.
#[map]
pub static VIPS: HashMap<VipKey, VipValue> = HashMap::pinned(2 * MAX_SERVICES, BPF_F_NO_PREALLOC);

/// MAC addresses of the director.
#[map]
pub static LOCAL_MACS: HashMap<LocalMacKey, u32> =
    HashMap::pinned(4 * MAX_INTERFACES + MAX_VLANS, BPF_F_NO_PREALLOC);

/// The rings of all services.
#[map]
pub static RINGS: Array<RingBlock> = Array::pinned(ring_blocks(DEFAULT_MAX_BACKENDS), 0);

/// Backend entries; entry 0 stays empty. Nobody maps them into memory, but only
/// so does the kernel begin with a page: otherwise each entry would lie in two
/// cache lines.
#[map]
pub static BACKENDS: Array<Backend> = Array::pinned(DEFAULT_MAX_BACKENDS, BPF_F_MMAPABLE);

/// Counters of the backend entry with the same index.
#[map]
pub static COUNTERS: PerCpuArray<BackendCounters> = PerCpuArray::pinned(DEFAULT_MAX_BACKENDS, 0);

/// Packets dropped, by [`DropReason`].
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DROP_REASONS, 0);

/// How many ICMP errors this CPU may still send.
#[map]
pub static ICMP_BUDGET: PerCpuArray<IcmpBudget> = PerCpuArray::pinned(1, 0);

/// The IPv4 flow table.
#[map]
pub static FLOWS_V4: LruHashMap<FlowKeyV4, FlowValue> =
    LruHashMap::pinned(DEFAULT_FLOW_TABLE_SIZE, 0);

/// The IPv6 flow table.
#[map]
pub static FLOWS_V6: LruHashMap<FlowKeyV6, FlowValue> =
    LruHashMap::pinned(DEFAULT_FLOW_TABLE_SIZE, 0);

/// What [`FLOWS_V4`] has just said. Pinned, as [`FRAME`] is.
#[map]
pub static RECENT_V4: Array<Note<2>> = Array::pinned(PLACES, 0);

/// What [`FLOWS_V6`] has just said.
#[map]
pub static RECENT_V6: Array<Note<5>> = Array::pinned(PLACES, 0);

/// See [`FamilyTables::with_scratch`].
#[map]
pub static SCRATCH_V4: PerCpuArray<Scratch<V4>> = PerCpuArray::with_max_entries(1, 0);

/// The same for IPv6.
#[map]
pub static SCRATCH_V6: PerCpuArray<Scratch<V6>> = PerCpuArray::with_max_entries(1, 0);

/// Traces of IPv4 packets in fragments.
#[map]
pub static FRAGMENTS_V4: LruHashMap<FlowKeyV4, FragmentTrace<u32>> =
    LruHashMap::pinned(MAX_TRACES, 0);

/// Traces of IPv6 packets in fragments.
#[map]
pub static FRAGMENTS_V6: LruHashMap<FlowKeyV6, FragmentTrace<Address>> =
    LruHashMap::pinned(MAX_TRACES, 0);

/// NAT backends by IPv4 address and port.
#[map]
pub static NAT_BACKENDS_V4: HashMap<ServiceKeyV4, NatBackend> =
    HashMap::pinned(DEFAULT_MAX_BACKENDS, BPF_F_NO_PREALLOC);

/// NAT backends by IPv6 address and port.
#[map]
pub static NAT_BACKENDS_V6: HashMap<ServiceKeyV6, NatBackend> =
    HashMap::pinned(DEFAULT_MAX_BACKENDS, BPF_F_NO_PREALLOC);

/// Full NAT: translated IPv4 flows as the client has them.
#[map]
pub static NAT_FORWARD_V4: HashMap<FlowKeyV4, NatForward<u32>> =
    HashMap::pinned(DEFAULT_NAT_TABLE_SIZE, BPF_F_NO_PREALLOC);

/// Full NAT: translated IPv6 flows as the client has them.
#[map]
pub static NAT_FORWARD_V6: HashMap<FlowKeyV6, NatForward<Address>> =
    HashMap::pinned(DEFAULT_NAT_TABLE_SIZE, BPF_F_NO_PREALLOC);

/// Translated IPv4 flows as the backend has them.
#[map]
pub static NAT_REVERSE_V4: HashMap<FlowKeyV4, NatReverse<u32>> =
    HashMap::pinned(DEFAULT_NAT_TABLE_SIZE, BPF_F_NO_PREALLOC);

/// Translated IPv6 flows as the backend has them.
#[map]
pub static NAT_REVERSE_V6: HashMap<FlowKeyV6, NatReverse<Address>> =
    HashMap::pinned(DEFAULT_NAT_TABLE_SIZE, BPF_F_NO_PREALLOC);

/// Addresses of the pool, by their number; zero if there is none.
#[map]
pub static POOL: Array<Address> = Array::pinned(MAX_POOL_ADDRESSES, 0);

/// Free ports of IPv4 addresses of the pool, the one free for longest first.
#[map]
pub static POOL_PORTS_V4: Queue<PoolPort> = Queue::pinned(DEFAULT_NAT_TABLE_SIZE, 0);

/// Free ports of IPv6 addresses of the pool.
#[map]
pub static POOL_PORTS_V6: Queue<PoolPort> = Queue::pinned(DEFAULT_NAT_TABLE_SIZE, 0);

/// Addresses that the director has itself; the value counts nothing.
#[map]
pub static LOCAL_ADDRESSES: HashMap<VipKey, u32> =
    HashMap::pinned(MAX_LOCAL_ADDRESSES, BPF_F_NO_PREALLOC);

/// The director's own addresses, by index of the interface.
#[map]
pub static ROUTERS: HashMap<u32, RouterAddresses> =
    HashMap::pinned(MAX_INTERFACES + MAX_VLANS, BPF_F_NO_PREALLOC);

/// When somebody last spoke to a NAT backend past every VIP.
#[map]
pub static DIRECT_SEEN: Array<u32> = Array::pinned(1, 0);

/// VLAN devices by what is on the wire.
#[map]
pub static VLAN_DEVICES: HashMap<Vlan, u32> = HashMap::pinned(MAX_VLANS, BPF_F_NO_PREALLOC);

/// VLANs by index of their device.
#[map]
pub static VLANS: HashMap<u32, Vlan> = HashMap::pinned(MAX_VLANS, BPF_F_NO_PREALLOC);

/// How the packet at hand came and leaves, from one program to the next. Pinned,
/// because while programs are replaced one of before may call one of those.
#[map]
pub static FRAME: PerCpuArray<Frame> = PerCpuArray::pinned(1, 0);

/// The programs that packets are handed to.
#[map]
pub static PROGRAMS: ProgramArray = ProgramArray::pinned(program::COUNT, 0);

/// Interfaces that packets may be redirected to, by their own index.
#[map]
pub static INTERFACES: DevMapHash = DevMapHash::pinned(MAX_INTERFACES, 0);

/// How the packet at hand came; `None` does not happen.
#[inline(always)]
pub fn frame() -> Option<Frame> {
    FRAME.get(0).copied()
}

/// Says so to the programs that the packet is handed to.
#[inline(always)]
pub fn set_frame(frame: Frame) {
    if let Some(place) = FRAME.get_ptr_mut(0) {
        // SAFETY: the value is this CPU's own, and XDP programs on one CPU do
        // not interrupt each other.
        unsafe { *place = frame }
    }
}
