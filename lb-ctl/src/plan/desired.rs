//! What is desired of the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::nat::RouterAddresses;
use lb_common::vlan::Vlan;

use crate::dataplane::ServiceKey;

/// What the maps should hold.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// The services.
    pub services: BTreeMap<ServiceKey, DesiredService>,
    /// MAC addresses of the director, by interface.
    pub local_macs: BTreeSet<(u32, [u8; 6])>,
    /// Interfaces to which packets can be redirected.
    pub interfaces: BTreeSet<u32>,
    /// VLANs by the index of their device.
    pub vlans: BTreeMap<u32, Vlan>,
    /// The director's own addresses.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Addresses from which ICMP errors are sent, by interface.
    pub routers: BTreeMap<u32, RouterAddresses>,
    /// Addresses that stand for clients' in full NAT.
    pub pool: BTreeSet<IpAddr>,
    /// Whether the program runs in generic mode.
    pub generic: bool,
    /// What becomes of packets for a VIP of protocols that no service can have:
    /// one of [`lb_common::vip::other_protocols`].
    pub other_protocols: u8,
}

/// A service as it should be.
#[derive(Clone, Debug)]
pub struct DesiredService {
    /// Key of the flow hash.
    pub hash_key: u64,
    /// Seconds after which a recorded flow is forgotten; also how long a slot
    /// keeps moving.
    pub idle_timeout: u32,
    /// Of its backends in NAT mode.
    pub nat: Nat,
    /// Who is to answer pings of its VIP: one of [`lb_common::vip::ping`].
    pub ping: u8,
    /// The backends, and those that are no longer wanted but have entries.
    pub backends: Vec<DesiredBackend>,
}

/// What is translated of a NAT service's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nat {
    /// The destination: the director is the backends' gateway.
    #[default]
    Gateway,
    /// The source as well.
    Full,
}

/// A backend as it should be.
#[derive(Clone, Debug)]
pub struct DesiredBackend {
    /// RIP.
    pub address: IpAddr,
    /// In NAT mode the port, host byte order; otherwise 0.
    pub port: u16,
    /// One of [`lb_common::backend::mode`].
    pub mode: u8,
    /// Share of new flows; 0 drains.
    pub weight: u32,
    /// In TUN mode the outer source address, and how many of its lowest bits
    /// vary from flow to flow.
    pub tunnel_source: Option<(IpAddr, u8)>,
    /// Not wanted any more: its entry goes when its last flow has.
    pub removed: bool,
    /// Whether packets can reach it.
    pub condition: Condition,
}

/// Whether packets can reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// They can, by this next hop.
    Up(NextHop),
    /// The health check says that it is dead.
    Down,
    /// Its next hop is not known, or not any more. Its flows are still sent
    /// where they were sent last: the neighbour may only be slow to answer.
    Unresolved,
    /// Its next hop has not been looked up yet, as after a restart: it stays
    /// what it is.
    Pending,
}

/// How to reach a backend on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the interface.
    pub interface: u32,
    /// MAC of the next hop.
    pub mac: [u8; 6],
    /// MAC of the interface.
    pub source_mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// The address of this host that packets are sent from.
    pub source: Option<IpAddr>,
}

impl Desired {
    pub(super) fn has_removed(&self) -> bool {
        let services = self.services.values();
        services.flat_map(|s| &s.backends).any(|b| b.removed)
    }
}
