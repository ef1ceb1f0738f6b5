//! Services as the suite wants them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use integration::talk::Protocol;
use integration::topology::{Family, Site};
use serde_json::{Value, json};

use crate::crowd::Line;
use crate::random::Random;

/// What is added to a service's port for that of its servers in NAT mode.
pub const SHIFT: u16 = 8000;
/// Ports of the services that are there from the beginning, by their kind.
const PORTS: u16 = 7000;
/// Ports of those that come later.
const MORE_PORTS: u16 = 7010;
/// How many of those there are at a time.
const MORE: u16 = 6;
/// Flows to a service that is there from the beginning, and to another.
const FLOWS: usize = 10;
const MORE_FLOWS: usize = 6;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// How packets reach the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Dr,
    Tun,
    Gateway,
    Full,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Dr, Self::Tun, Self::Gateway, Self::Full];

    const fn name(self) -> &'static str {
        match self {
            Self::Dr => "dr",
            Self::Tun => "tun",
            Self::Gateway => "nat",
            Self::Full => "full",
        }
    }

    const fn mode(self) -> &'static str {
        match self {
            Self::Dr => "dr",
            Self::Tun => "tun",
            Self::Gateway | Self::Full => "nat",
        }
    }
}

/// All services by name.
pub type Services = BTreeMap<String, Service>;

/// A service as it shall be.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub kind: Kind,
    pub family: Family,
    /// Of the backends' addresses.
    pub backends_family: Family,
    pub protocol: Protocol,
    pub port: u16,
    pub is_checked: bool,
    /// Index and weight of the hosts.
    pub members: BTreeMap<usize, u32>,
}

impl Service {
    fn new(random: &mut Random, kind: Kind, family: Family, protocol: Protocol, port: u16) -> Self {
        let backends_family = match kind {
            Kind::Tun if random.one_in(2) => FAMILIES[random.below(2)],
            _ => family,
        };
        Self {
            kind,
            family,
            backends_family,
            protocol,
            port,
            is_checked: !random.one_in(4),
            members: BTreeMap::new(),
        }
    }

    /// Those that are there from the beginning: every kind, IP version and
    /// protocol.
    pub fn first(random: &mut Random, hosts: &[usize]) -> Services {
        let mut services = Services::new();
        for (kind, port) in Kind::ALL.into_iter().zip(PORTS..) {
            for (family, version) in FAMILIES.into_iter().zip([4, 6]) {
                for protocol in PROTOCOLS {
                    let name = format!("{}-{}{version}", kind.name(), protocol.name());
                    let mut service = Self::new(random, kind, family, protocol, port);
                    service.populate(random, hosts);
                    services.insert(name, service);
                }
            }
        }
        services
    }

    /// One more, if there may be more.
    pub fn another(random: &mut Random, there: &Services) -> Option<(String, Self)> {
        let free = |number: &u16| !there.contains_key(&format!("more{number}"));
        let free: Vec<u16> = (0..MORE).filter(free).collect();
        let number = random.pick(&free)?;
        let kind = random.pick(&Kind::ALL)?;
        let (family, protocol) = (FAMILIES[random.below(2)], PROTOCOLS[random.below(2)]);
        let service = Self::new(random, kind, family, protocol, MORE_PORTS + number);
        Some((format!("more{number}"), service))
    }

    /// Gives it one to four of these hosts, with any weights.
    pub fn populate(&mut self, random: &mut Random, hosts: &[usize]) {
        self.members.clear();
        for _ in 0..=random.below(4) {
            if let Some(host) = random.pick(hosts) {
                self.members.insert(host, 1 + random.below(4) as u32);
            }
        }
    }

    /// Hosts that get new flows.
    pub fn weighted(&self) -> impl Iterator<Item = usize> {
        let weighted = self.members.iter().filter(|(_, weight)| **weight > 0);
        weighted.map(|(host, _)| *host)
    }

    /// Every port on which servers have to listen, on the VIPs and RIPs.
    pub fn ports() -> impl Iterator<Item = u16> {
        (PORTS..PORTS + Kind::ALL.len() as u16).chain(MORE_PORTS..MORE_PORTS + MORE)
    }

    /// A host as the service knows it.
    pub fn address(&self, site: &Site, host: usize) -> String {
        let ip = site.backends[host].address(self.backends_family);
        match self.kind {
            Kind::Dr | Kind::Tun => ip.to_string(),
            Kind::Gateway | Kind::Full => SocketAddr::new(ip, self.port + SHIFT).to_string(),
        }
    }

    /// Where a backend is in the API.
    pub fn path(&self, name: &str, site: &Site, host: usize) -> String {
        let address = self.address(site, host);
        let address = address.replace('[', "%5B").replace(']', "%5D");
        format!("/v1/services/{name}/backends/{address}")
    }

    /// As the API has it.
    pub fn to_json(&self, name: &str, site: &Site) -> Value {
        let backends = self
            .members
            .iter()
            .map(|(&host, weight)| json!({"address": self.address(site, host), "weight": weight}));
        let mut service = json!({
            "name": name, "vip": self.family.vip(), "port": self.port,
            "protocol": self.protocol.name(), "mode": self.kind.mode(), "scheduler": "mh",
            "backends": backends.collect::<Value>(),
        });
        if self.kind == Kind::Full {
            service["full_nat"] = json!(true);
        }
        if self.is_checked {
            // More patient than a busy machine is slow: the living are not to
            // be taken for dead.
            service["health_check"] = json!({
                "type": "tcp", "interval_ms": 800, "timeout_ms": 800, "rise": 1, "fall": 3,
            });
        }
        service
    }

    /// As clients have it.
    pub fn line(&self, name: &str) -> Line {
        Line {
            service: name.to_owned(),
            protocol: self.protocol,
            server: SocketAddr::new(self.family.vip(), self.port),
            flows: if self.port < MORE_PORTS {
                FLOWS
            } else {
                MORE_FLOWS
            },
        }
    }
}

/// Names, addresses and weights, to compare what is with what shall be.
pub type Outline = BTreeMap<String, BTreeMap<String, u64>>;

/// The outline of a desired state.
pub fn outline(config: &Value) -> Outline {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let backend = |b: &Value| (text(&b["address"]), b["weight"].as_u64().unwrap_or(1));
    let services = list(&config["services"]).into_iter();
    services
        .map(|s| {
            let backends = list(&s["backends"]);
            (text(&s["name"]), backends.iter().map(backend).collect())
        })
        .collect()
}
