//! The kernel's side: maps and program. Only this module knows aya.
//!
//! [`Dataplane`] is what the control loop needs of it; [`fake::Fake`] is one
//! in memory.

mod clock;
mod drop_log;
pub mod fake;
#[cfg(any(test, feature = "host"))]
pub mod host;
mod kernel;
mod loader;
mod maps;
mod nat;
mod round;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::Address;
use lb_common::backend::Backend;
use lb_common::counters::{BackendCounters, DropReason};
use lb_common::flow::FlowValue;
use lb_common::nat::{NatBackend, RouterAddresses};
use lb_common::ring::{RingBlock, Slot};
use lb_common::service::{LocalMacKey, ServiceKeyV4, ServiceKeyV6, ServiceValue};
use lb_common::settings::Settings;
use lb_common::vip::VipValue;
use lb_common::vlan::Vlan;

pub use kernel::Kernel;
pub use loader::{Attachment, LoadError, LoadOptions, XdpPolicy, load, unload};
pub use nat::{NatFlow, NatTable};

/// VIP, protocol and port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The VIP.
    pub vip: IpAddr,
    /// Port in host byte order; 0 stands for every port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl From<ServiceKeyV4> for ServiceKey {
    fn from(key: ServiceKeyV4) -> Self {
        Self {
            vip: Address::from_v4_word(key.vip()).into(),
            port: key.port(),
            protocol: key.protocol(),
        }
    }
}

impl From<ServiceKeyV6> for ServiceKey {
    fn from(key: ServiceKeyV6) -> Self {
        Self {
            vip: key.vip().into(),
            port: key.port(),
            protocol: key.protocol(),
        }
    }
}

/// One write to the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Replaces a backend entry.
    PutBackend(u32, Backend),
    /// Sets a backend entry's counters to 0.
    ResetCounters(u32),
    /// Writes blocks of the ring map, from this one on.
    WriteRing(u32, Vec<RingBlock>),
    /// Adds or replaces a service: the moment at which a ring takes effect.
    PutService(ServiceKey, ServiceValue),
    /// Removes a service.
    RemoveService(ServiceKey),
    /// Adds or replaces a VIP.
    PutVip(IpAddr, VipValue),
    /// Removes a VIP.
    RemoveVip(IpAddr),
    /// Adds to the director's MAC addresses.
    AddLocalMac(LocalMacKey),
    /// Removes from the director's MAC addresses.
    RemoveLocalMac(LocalMacKey),
    /// Allows redirection to the interface with this index.
    AddInterface(u32),
    /// Forbids it.
    RemoveInterface(u32),
    /// Adds the VLAN of the device with this index.
    PutVlan(u32, Vlan),
    /// Removes it.
    RemoveVlan(u32, Vlan),
    /// Adds or replaces a NAT backend; the key is its own address and port.
    PutNatBackend(ServiceKey, NatBackend),
    /// Removes a NAT backend.
    RemoveNatBackend(ServiceKey),
    /// Adds to the director's own addresses.
    AddLocalAddress(IpAddr),
    /// Removes from the director's own addresses.
    RemoveLocalAddress(IpAddr),
    /// Sets the addresses from which ICMP errors on an interface are sent.
    PutRouter(u32, RouterAddresses),
    /// Forgets them.
    RemoveRouter(u32),
    /// Sets an address of the pool for full NAT.
    PutPoolAddress(u16, Option<IpAddr>),
    /// Replaces the settings.
    PutSettings(Settings),
}

/// What the maps hold, but for counters and flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// The services with the slots of their rings. If a slot is moving, the
    /// second vector holds every slot's old backend.
    pub services: BTreeMap<ServiceKey, (ServiceValue, Vec<Slot>, Vec<Slot>)>,
    /// Backend entries that are not free, and free ones that have been used.
    pub backends: BTreeMap<u32, Backend>,
    /// VIPs, and what becomes of packets for them that are for no service.
    pub vips: BTreeMap<IpAddr, VipValue>,
    /// MAC addresses of the director.
    pub local_macs: BTreeSet<(u32, [u8; 6])>,
    /// Interfaces to which packets can be redirected.
    pub interfaces: BTreeSet<u32>,
    /// VLANs by the index of their device.
    pub vlans: BTreeMap<u32, Vlan>,
    /// NAT backends by their own address and port.
    pub nat_backends: BTreeMap<ServiceKey, NatBackend>,
    /// The director's own addresses.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Addresses from which ICMP errors are sent, by interface.
    pub routers: BTreeMap<u32, RouterAddresses>,
    /// Addresses of the pool by number.
    pub pool: BTreeMap<u16, IpAddr>,
    /// The settings.
    pub settings: Settings,
}

/// Sizes of the maps, as they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Backend entries, counting the unused entry 0.
    pub backends: u32,
    /// Ring blocks.
    pub ring_blocks: u32,
    /// Entries of each flow table.
    pub flows: u32,
    /// Translated flows of each IP version.
    pub nat: u32,
}

/// A recorded flow, as far as the control loop cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedFlow {
    /// VIP, protocol and port of the flow: of a service, or of one on port 0.
    pub key: ServiceKey,
    /// What is recorded.
    pub value: FlowValue,
    /// It is a translated flow, whose hash is not known.
    pub is_translated: bool,
}

/// What the control loop needs of the kernel's side.
pub trait Dataplane: Send + 'static {
    /// Sizes of the maps.
    fn capacity(&self) -> Capacity;

    /// Reads all maps but counters and flows.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn dump(&self) -> anyhow::Result<Dump>;

    /// Writes to a map.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing has been written but perhaps part
    /// of a ring that no service refers to.
    fn apply(&mut self, op: &Op) -> anyhow::Result<()>;

    /// Sums a backend entry's counters over the CPUs.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn counters(&self, backend: u32) -> anyhow::Result<BackendCounters>;

    /// Sums a drop reason's counter over the CPUs.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn drops(&self, reason: DropReason) -> anyhow::Result<u64>;

    /// The flow tables, for another thread to read.
    fn flows(&self) -> Arc<dyn FlowTable>;

    /// The tables of translated flows, for another thread to look after.
    fn nat(&self) -> Arc<dyn NatTable>;

    /// [`lb_common::flow::seconds`] of the clock that the packet path uses.
    fn now(&self) -> u32;

    /// The same, for another thread to read.
    fn clock(&self) -> Box<dyn Fn() -> u32 + Send>;

    /// Interfaces on which the program runs.
    fn attachments(&self) -> Vec<Attachment>;
}

/// The flow tables.
pub trait FlowTable: Send + Sync {
    /// Calls `visit` for each recorded flow. Returns the number of IPv4 and
    /// IPv6 flows.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn scan(&self, visit: &mut dyn FnMut(RecordedFlow)) -> anyhow::Result<(u64, u64)>;
}
