//! The maps as the stages see them.

use lb_common::Address;
use lb_common::backend::Backend;
use lb_common::counters::DropReason;
use lb_common::flow::FlowValue;
use lb_common::fragment::FragmentTrace;
use lb_common::nat::{NatBackend, NatForward, NatReverse, PoolPort, RouterAddresses};
use lb_common::ring::Slot;
use lb_common::service::{LocalMacKey, ServiceValue};
use lb_common::settings::Settings;
use lb_common::vip::VipValue;
use lb_common::vlan::Vlan;

use crate::family::Family;
use crate::nat::Job;
use crate::packet_info::PacketInfo;

/// What the stages look up and record. In the kernel these are BPF maps.
pub trait Tables {
    /// The settings.
    fn settings(&self) -> Option<&Settings>;
    /// Whether any service has this VIP.
    fn is_vip(&self, address: &Address) -> bool;
    /// What becomes of packets for this VIP that are for no service of it;
    /// `None` if it is no VIP.
    fn vip(&self, address: &Address) -> Option<VipValue>;
    /// Whether frames for this MAC address are the director's.
    fn is_local_mac(&self, key: &LocalMacKey) -> bool;
    /// Slot `index` of the block numbered `block`.
    fn slot(&self, block: u32, index: u32) -> Option<Slot>;
    /// The backend entry with this index.
    fn backend(&self, id: u32) -> Option<&Backend>;

    /// [`lb_common::flow::seconds`].
    fn now(&self) -> u32;

    /// Whether one more ICMP error may be sent now; counts it.
    fn may_send_icmp(&self) -> bool;
    /// Adds a packet of `bytes` to the backend's counters.
    fn count_forwarded(&self, backend: u32, bytes: u16, new_flow: bool);
    /// Takes it back.
    fn uncount_forwarded(&self, backend: u32, bytes: u16, new_flow: bool);
    /// Adds a reply of `bytes` to the backend's counters.
    fn count_reply(&self, backend: u32, bytes: u16);
    /// Adds one to the reason's counter.
    fn count_drop(&self, reason: DropReason);

    /// Whether this address is the director's own.
    fn is_local_address(&self, address: &Address) -> bool;
    /// The director's own addresses on an interface.
    fn router(&self, interface: u32) -> Option<RouterAddresses>;
    /// Whether packets can be redirected to this interface.
    fn can_redirect(&self, interface: u32) -> bool;
    /// Index of the VLAN device that receives frames like these.
    fn vlan_device(&self, vlan: &Vlan) -> Option<u32>;
    /// The frames that leave by the interface with this index, if it is a VLAN
    /// device.
    fn vlan(&self, device: u32) -> Option<Vlan>;
    /// The pool's address with this number.
    fn pool_address(&self, index: u16) -> Option<Address>;
    /// When a client's packet to a backend, past every VIP, was last seen; 0
    /// for never.
    fn direct_seen(&self) -> u32;
    /// Notes that one was seen at `now`.
    fn note_direct(&self, now: u32);
}

/// The maps of one IP version.
pub trait FamilyTables<F: Family> {
    /// The service with exactly this key.
    fn service(&self, key: &F::ServiceKey) -> Option<&ServiceValue>;

    /// The backend of a recorded flow for which `valid` holds; marks the flow
    /// as seen at `now`. 0 if there is none: the value of an `Option` compilers
    /// read before they know that there is one, which the verifier does not let
    /// pass. `NOTED` asks [`crate::recent`] first, for which not every program
    /// has room on its stack.
    fn flow<const NOTED: bool>(
        &self,
        key: &F::FlowKey,
        now: u32,
        valid: impl Fn(&FlowValue) -> bool,
    ) -> u32;
    /// Records a flow. Failure is not told: a flow that is not recorded goes
    /// where its slot says.
    fn record(&self, key: &F::FlowKey, value: &FlowValue);

    /// Whether a flow past every VIP is recorded, between a client and a NAT
    /// backend; marks it as seen at `now`.
    fn see_direct(&self, key: &F::FlowKey, now: u32) -> bool;
    /// Records it. Failure is not told.
    fn record_direct(&self, key: &F::FlowKey, now: u32);
    /// Forgets it, if it is recorded.
    fn forget_direct(&self, key: &F::FlowKey);

    /// Calls `then` with a place in a map, of which it may keep nothing. What
    /// comes from there the verifier knows nothing of: so it has one way to
    /// follow after each stage, not one for each way through it. `None` if
    /// there is no such place, which does not happen.
    fn with_scratch<R>(&self, then: impl FnOnce(&mut Scratch<F>) -> R) -> Option<R>;

    /// What the first fragment of a packet has left.
    fn fragment(&self, key: &F::FlowKey) -> Option<FragmentTrace<F::Address>>;
    /// Leaves it. Failure is not told: the other fragments are dropped.
    fn trace_fragment(&self, key: &F::FlowKey, trace: &FragmentTrace<F::Address>);

    /// The NAT backend with exactly this key.
    fn nat_backend(&self, key: &F::ServiceKey) -> Option<NatBackend>;
    /// Reads or changes an entry of the forward table.
    fn nat_forward<R>(
        &self,
        key: &F::FlowKey,
        look: impl FnOnce(&mut NatForward<F::Address>) -> R,
    ) -> Option<R>;
    /// Reads or changes an entry of the reverse table.
    fn nat_reverse<R>(
        &self,
        key: &F::FlowKey,
        look: impl FnOnce(&mut NatReverse<F::Address>) -> R,
    ) -> Option<R>;
    /// Adds an entry to the forward table; with `replace` in place of another.
    fn insert_nat_forward(
        &self,
        key: &F::FlowKey,
        value: &NatForward<F::Address>,
        replace: bool,
    ) -> Insertion;
    /// Adds an entry to the reverse table.
    fn insert_nat_reverse(&self, key: &F::FlowKey, value: &NatReverse<F::Address>) -> Insertion;
    /// Removes an entry from the reverse table.
    fn remove_nat_reverse(&self, key: &F::FlowKey);
    /// Takes a free port out of the pool.
    fn take_port(&self) -> Option<PoolPort>;
    /// Gives it back unused.
    fn return_port(&self, port: PoolPort);

    /// The way that the kernel's tables have for a packet.
    fn route(&self, packet: &RouteQuery<F>) -> Route;
}

/// What is made out about a packet, stage by stage. It holds that of the packet
/// before until it is written.
pub struct Scratch<F: Family> {
    /// By the parser.
    pub info: PacketInfo<F>,
    /// By the stages of NAT.
    pub job: Job<F>,
}

impl<F: Family> Default for Scratch<F> {
    fn default() -> Self {
        let info = PacketInfo::default();
        let job = Job::new(&info);
        Self { info, job }
    }
}

/// What became of an attempt to add an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insertion {
    /// It was added.
    Done,
    /// There is one already; it was left alone.
    Exists,
    /// The table is full.
    Full,
}

/// A packet that looks for its way. Addresses and ports as they will stand in
/// it.
pub struct RouteQuery<F: Family> {
    /// Source address.
    pub source: F::Address,
    /// Destination address.
    pub destination: F::Address,
    /// Source port, then destination port.
    pub ports: [u16; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes from the IP header on.
    pub length: u16,
    /// Index of the interface that received it.
    pub interface: u32,
}

/// The kernel's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// By this interface, with these MAC addresses as [`Backend::macs`] has
    /// them.
    Via {
        /// Index of the interface.
        interface: u32,
        /// Of the next hop, then of the interface.
        macs: [u32; 3],
    },
    /// There is one, but only the kernel itself can send by it: the neighbour
    /// is not resolved, or the interface is not plain Ethernet.
    Host,
    /// The packet is larger than this many bytes, which is what fits.
    TooBig(u16),
    /// There is none.
    Unreachable,
    /// The interface that received the packet does not forward.
    Disabled,
}
