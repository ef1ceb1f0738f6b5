use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::nat::Timeouts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::service::named;
use super::{Service, ServiceName};

/// The whole desired state of a director.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What concerns all services.
    #[serde(default)]
    pub settings: Settings,
    /// The services, unique by name and by VIP, protocol and port.
    #[serde(default)]
    pub services: Vec<Service>,
}

impl Config {
    /// The service with this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.iter().find(|s| s.name == *name)
    }

    /// The service with this name.
    pub fn service_mut(&mut self, name: &ServiceName) -> Option<&mut Service> {
        self.services.iter_mut().find(|s| s.name == *name)
    }

    /// Brings services and backends into one order, so that equal desired
    /// states are equal values, files and etags.
    pub fn normalise(&mut self) {
        self.settings.nat_pool.sort();
        self.services.sort_by(|a, b| a.name.cmp(&b.name));
        for service in &mut self.services {
            service.backends.sort_by_key(|b| b.address);
        }
    }
}

/// What concerns all services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Key of the flow hash. Directors of one fleet must share it, and nobody
    /// else should know it.
    pub hash_key: String,
    /// Seconds without a packet after which a recorded TCP flow or SCTP
    /// association is forgotten.
    #[schema(default = 900)]
    pub tcp_idle_timeout: u32,
    /// Seconds without a packet after which a recorded UDP flow is forgotten.
    #[schema(default = 300)]
    pub udp_idle_timeout: u32,
    /// What becomes of packets for a VIP that are neither TCP, UDP, SCTP nor
    /// ICMP.
    #[serde(skip_serializing_if = "OtherProtocols::is_default")]
    pub other_protocols: OtherProtocols,
    /// In `tun` mode, prefixes from which the outer source address of a flow
    /// is taken, one for each IP version at most: so that routers and the
    /// backends' receive queues spread flows. The backends must accept packets
    /// from all of the prefix, and filters on the way must let them through.
    /// Of a larger prefix the lowest 16 bits vary. Without one the source is
    /// the director's own address; with one, routers' ICMP errors go to these
    /// addresses, so unless they are routed to the director it does not learn
    /// of path MTUs beyond its own route.
    #[schema(value_type = Vec<String>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tunnel_sources: Vec<IpNet>,
    /// Addresses that stand for clients' in services with `full_nat`, of each
    /// IP version that such services have. Every address serves as many flows
    /// at a time as it has ports. `lb-ctl` puts them on the interface as it
    /// does VIPs.
    #[schema(value_type = Vec<String>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nat_pool: Vec<IpAddr>,
    /// Ports of these addresses that are used.
    pub nat_ports: NatPorts,
    /// When a translated flow is over.
    pub nat_timeouts: NatTimeouts,
}

named! {
    /// What becomes of packets of other protocols than services can have.
    #[derive(Default)]
    OtherProtocols {
        /// They are for the director's own stack.
        #[default]
        Host = "host",
        /// They are dropped, and counted as `other_protocol`.
        Drop = "drop",
    }
}

impl OtherProtocols {
    /// As the packet path has it.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Host => lb_common::vip::other_protocols::HOST,
            Self::Drop => lb_common::vip::other_protocols::DROP,
        }
    }

    /// Whether nothing is set.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Ports of the pool for full NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NatPorts {
    /// The first.
    #[schema(default = 1024)]
    pub first: u16,
    /// The last.
    #[schema(default = 65535)]
    pub last: u16,
}

impl Default for NatPorts {
    fn default() -> Self {
        Self {
            first: 1024,
            last: u16::MAX,
        }
    }
}

/// Seconds without a packet after which a translated flow that has an entry is
/// over, by its state. The defaults are IPVS's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NatTimeouts {
    /// TCP whose handshake is not complete.
    #[schema(default = 60)]
    pub syn: u32,
    /// TCP that is established.
    #[schema(default = 900)]
    pub established: u32,
    /// TCP of which one side or both have sent FIN.
    #[schema(default = 120)]
    pub fin: u32,
    /// TCP that was reset.
    #[schema(default = 10)]
    pub closed: u32,
    /// UDP.
    #[schema(default = 300)]
    pub udp: u32,
}

impl Default for NatTimeouts {
    fn default() -> Self {
        let Timeouts {
            syn,
            established,
            fin,
            closed,
            udp,
        } = Timeouts::IPVS;
        Self {
            syn,
            established,
            fin,
            closed,
            udp,
        }
    }
}

impl From<NatTimeouts> for Timeouts {
    fn from(timeouts: NatTimeouts) -> Self {
        Self {
            syn: timeouts.syn,
            established: timeouts.established,
            fin: timeouts.fin,
            closed: timeouts.closed,
            udp: timeouts.udp,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hash_key: String::new(),
            tcp_idle_timeout: 900,
            udp_idle_timeout: 300,
            other_protocols: OtherProtocols::default(),
            tunnel_sources: Vec::new(),
            nat_pool: Vec::new(),
            nat_ports: NatPorts::default(),
            nat_timeouts: NatTimeouts::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ping, text};

    /// What an earlier version has saved, and what it can read if nothing that
    /// it does not know is wished for.
    #[test]
    fn what_says_nothing_of_pings_leaves_them_to_the_host() {
        let saved = serde_json::json!({
            "settings": {"hash_key": "k"},
            "services": [
                {"name": "web", "vip": "203.0.113.10", "port": 80, "protocol": "tcp", "mode": "dr"}],
        });
        let config: Config = text::from_json_value(saved).unwrap();
        assert_eq!(config.services[0].ping, Ping::Host);
        assert_eq!(config.settings.other_protocols, OtherProtocols::Host);
        let written = serde_json::to_string(&config).unwrap();
        assert!(!written.contains("ping") && !written.contains("other_protocols"));
    }
}
