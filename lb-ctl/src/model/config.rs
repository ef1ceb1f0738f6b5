use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    /// Seconds without a packet after which a recorded TCP flow is forgotten.
    #[schema(default = 900)]
    pub tcp_idle_timeout: u32,
    /// Seconds without a packet after which a recorded UDP flow is forgotten.
    #[schema(default = 300)]
    pub udp_idle_timeout: u32,
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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hash_key: String::new(),
            tcp_idle_timeout: 900,
            udp_idle_timeout: 300,
            tunnel_sources: Vec::new(),
        }
    }
}
