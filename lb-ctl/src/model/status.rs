//! What is observed: the answers of `GET`, `lb-ctl status` and the metrics.
//!
//! Points in time are seconds since 1970 (Unix time).

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::service::is_false;
use super::{BackendAddress, HealthCheck, Mode, Ping, Protocol, Scheduler, ServiceName};

/// Now, in seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// Everything that is observed on a director.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of `lb-ctl`.
    pub version: String,
    /// Version of the layout of the maps.
    pub abi_version: u32,
    /// Etag of the desired state.
    pub revision: String,
    /// When this `lb-ctl up` started, Unix time.
    pub started_at: u64,
    /// What an operator should look at, worst first.
    pub warnings: Vec<String>,
    /// Interfaces on which the XDP program runs.
    pub interfaces: Vec<InterfaceStatus>,
    /// The services and their backends.
    pub services: Vec<ServiceStatus>,
    /// The VIPs and who answers for them.
    pub vips: Vec<VipStatus>,
    /// Packets dropped since the maps were made, one entry a reason.
    pub drops: Vec<DropStatus>,
    /// The flow tables.
    pub flow_table: FlowTableStatus,
    /// Translated flows, if there is a service in `nat` mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatStatus>,
}

/// What is counted: the answer of `GET /v1/stats`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// The services.
    pub services: Vec<ServiceStats>,
    /// Packets dropped since the maps were made, one entry a reason.
    pub drops: Vec<DropStatus>,
    /// The flow tables.
    pub flow_table: FlowTableStatus,
    /// Translated flows, if there is a service in `nat` mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatStatus>,
}

/// What is counted for a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStats {
    /// Name of the service.
    #[schema(value_type = String)]
    pub name: ServiceName,
    /// Sums over the backends.
    pub total: Counters,
    /// The backends.
    pub backends: Vec<BackendStats>,
}

/// What is counted for a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendStats {
    /// Address of the backend.
    #[schema(value_type = String)]
    pub address: BackendAddress,
    /// The figures.
    pub counters: Counters,
}

/// Packets, bytes and flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Flows begun: TCP SYNs forwarded, UDP flows recorded.
    pub flows: u64,
    /// In `nat` mode, packets from backends that were translated back.
    #[serde(default)]
    pub reply_packets: u64,
    /// Their bytes, from the IP header on.
    #[serde(default)]
    pub reply_bytes: u64,
}

impl std::iter::Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |a, b| Self {
            packets: a.packets + b.packets,
            bytes: a.bytes + b.bytes,
            flows: a.flows + b.flows,
            reply_packets: a.reply_packets + b.reply_packets,
            reply_bytes: a.reply_bytes + b.reply_bytes,
        })
    }
}

impl From<&Status> for Stats {
    fn from(status: &Status) -> Self {
        let backend = |backend: &BackendStatus| BackendStats {
            address: backend.address,
            counters: backend.counters(),
        };
        let service = |service: &ServiceStatus| ServiceStats {
            name: service.name.clone(),
            total: service.backends.iter().map(BackendStatus::counters).sum(),
            backends: service.backends.iter().map(backend).collect(),
        };
        Self {
            services: status.services.iter().map(service).collect(),
            drops: status.drops.clone(),
            flow_table: status.flow_table.clone(),
            nat: status.nat.clone(),
        }
    }
}

/// An interface on which the XDP program runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStatus {
    /// Name.
    pub name: String,
    /// Index.
    pub index: u32,
    /// How the program is attached.
    pub xdp: XdpMode,
    /// Why it is so and what that costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's stack: works everywhere, much slower.
    Generic,
}

/// A service as it is: what is desired of it, and what is observed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// Unique name.
    #[schema(value_type = String)]
    pub name: ServiceName,
    /// Address that clients speak to.
    #[schema(value_type = String)]
    pub vip: IpAddr,
    /// Port that clients speak to; 0 stands for every port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// How packets reach a backend.
    pub mode: Mode,
    /// In `nat` mode, whether the source is translated as well.
    #[serde(default, skip_serializing_if = "is_false")]
    pub full_nat: bool,
    /// How a new flow gets its backend.
    pub scheduler: Scheduler,
    /// Who is to answer pings of the VIP, as far as this service is concerned.
    #[serde(default, skip_serializing_if = "Ping::is_default")]
    pub ping: Ping,
    /// How to find out whether a backend is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// The Maglev ring.
    pub ring: RingStatus,
    /// In `tun` mode, the largest packet from a client, bytes from the IP
    /// header on, that fits into the paths to all backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// What an operator should know of the service although it works.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The real servers, including removed ones that finish their flows.
    pub backends: Vec<BackendStatus>,
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Flows begun.
    pub flows: u64,
}

/// The Maglev ring of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RingStatus {
    /// Number of slots; 0 if no backend can be scheduled.
    pub slots: u32,
    /// Counts the rings that the service has had.
    pub generation: u32,
    /// Slots that send everything to their backend.
    pub settled: u32,
    /// Slots that are moving from one backend to another.
    pub moving: u32,
    /// Slots that have moved and still have flows elsewhere.
    pub pinned: u32,
}

/// A backend as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendStatus {
    /// RIP, in `nat` mode with the port.
    #[schema(value_type = String)]
    pub address: BackendAddress,
    /// Desired weight.
    pub weight: u32,
    /// Whether it gets flows.
    pub state: BackendState,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Part of the ring's slots that it owns, 0 to 1.
    pub share: f64,
    /// What the health check says, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
    /// Where its packets are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<NextHop>,
    /// In `tun` mode, the largest packet from a client, bytes from the IP
    /// header on, that fits into the path to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Flows begun.
    pub flows: u64,
    /// In `nat` mode, packets from the backend that were translated back.
    #[serde(default)]
    pub reply_packets: u64,
    /// Their bytes, from the IP header on.
    #[serde(default)]
    pub reply_bytes: u64,
}

impl BackendStatus {
    /// Packets, bytes and flows.
    pub const fn counters(&self) -> Counters {
        Counters {
            packets: self.packets,
            bytes: self.bytes,
            flows: self.flows,
            reply_packets: self.reply_packets,
            reply_bytes: self.reply_bytes,
        }
    }
}

/// Whether a backend gets flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// It gets new flows.
    Active,
    /// Weight 0: it keeps the flows it has.
    Draining,
    /// No longer desired: it finishes the flows it has.
    Removed,
    /// The health check failed.
    Down,
    /// The next hop is not known.
    Unresolved,
}

impl BackendState {
    /// The name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Removed => "removed",
            Self::Down => "down",
            Self::Unresolved => "unresolved",
        }
    }
}

/// What the health check says of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthStatus {
    /// Whether the backend counts as up.
    pub up: bool,
    /// Since when, Unix time.
    pub since: u64,
    /// What the last failed probe met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Where the packets of a backend are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NextHop {
    /// MAC address, as `02:00:5e:10:00:01`.
    pub mac: String,
    /// Name of the interface.
    pub interface: String,
}

/// A VIP and who answers for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VipStatus {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Interfaces of this director that hold it.
    pub interfaces: Vec<String>,
    /// Whether `lb-ctl` put it there.
    pub managed: bool,
    /// Others that answer for it: each takes traffic away from the director.
    pub thieves: Vec<Thief>,
}

/// A host that answers ARP or NDP for a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Thief {
    /// Its MAC address.
    pub mac: String,
    /// Interface on which it was heard.
    pub interface: String,
    /// When it was heard first, Unix time.
    pub first_seen: u64,
    /// When it was heard last, Unix time.
    pub last_seen: u64,
}

/// Packets dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DropStatus {
    /// Name of the drop reason.
    pub reason: String,
    /// Packets.
    pub count: u64,
    /// What it means.
    pub meaning: String,
}

/// The flow tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowTableStatus {
    /// Recorded IPv4 flows, if they have been counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4_entries: Option<u64>,
    /// Recorded IPv6 flows, if they have been counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_entries: Option<u64>,
    /// Entries for which each table has room.
    pub capacity: u64,
}

/// Translated flows and the pool of full NAT.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NatStatus {
    /// IPv4 flows that have an entry.
    pub ipv4_flows: u64,
    /// IPv6 flows that have an entry.
    pub ipv6_flows: u64,
    /// Flows of each IP version for which there is room.
    pub capacity: u64,
    /// The pool, by IP version.
    pub pools: Vec<PoolStatus>,
}

/// The pool's addresses of one IP version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// IP version, 4 or 6.
    pub version: u8,
    /// The addresses.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// Ports of all of them together.
    pub ports: u64,
    /// Ports that flows have taken.
    pub used: u64,
    /// The part of the ports that flows have taken, 0 to 1.
    pub share: f64,
}
