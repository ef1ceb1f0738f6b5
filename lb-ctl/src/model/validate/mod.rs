//! Checks that need nothing but the desired state itself.

mod fields;

use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::limits::MAX_SERVICES;

use super::{BackendAddress, Config, Kind, Problem, ServiceName};

/// Longest hash key in bytes.
pub const MAX_HASH_KEY: usize = 256;

/// The part of the desired state that a request speaks of; problems name
/// their field as seen from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Config,
    /// One service.
    Service(ServiceName),
    /// One backend of a service.
    Backend(ServiceName, BackendAddress),
}

impl Scope {
    /// Makes a problem that was found in `config` name its field as seen from
    /// here.
    pub fn narrow(&self, config: &Config, problem: Problem) -> Problem {
        let (name, address) = match self {
            Self::Config => return problem,
            Self::Service(name) => (name, None),
            Self::Backend(name, address) => (name, Some(address)),
        };
        // The last of its name: a duplicate that is being added stands last.
        let Some(i) = config.services.iter().rposition(|s| s.name == *name) else {
            return problem;
        };
        let Some(address) = address else {
            return problem.relative_to(&service_path(i));
        };
        let backends = &config.services[i].backends;
        match backends.iter().rposition(|b| b.address == *address) {
            Some(j) => problem.relative_to(&backend_path(i, j)),
            None => problem.relative_to(&service_path(i)),
        }
    }
}

/// Path of a service within the desired state.
pub(crate) fn service_path(i: usize) -> String {
    format!("services[{i}]")
}

/// Path of a backend within the desired state.
pub(crate) fn backend_path(i: usize, j: usize) -> String {
    format!("services[{i}].backends[{j}]")
}

impl Config {
    /// Checks everything that can be checked without looking at the host.
    ///
    /// # Errors
    /// The first problem found, its field as seen from the whole desired state.
    pub fn validate(&self) -> Result<(), Problem> {
        self.settings
            .validate()
            .map_err(|problem| within("settings", problem))?;
        for (i, service) in self.services.iter().enumerate() {
            service
                .validate()
                .map_err(|problem| within(&service_path(i), problem))?;
        }
        self.validate_unique()?;
        self.validate_vips_are_no_backends()?;
        self.validate_pool()?;
        for is_ipv4 in [true, false] {
            let n = self.services.iter().filter(|s| s.vip.is_ipv4() == is_ipv4);
            if n.count() > MAX_SERVICES as usize {
                let version = if is_ipv4 { "IPv4" } else { "IPv6" };
                let detail = format!("there is room for {MAX_SERVICES} {version} services");
                return Err(Problem::new(Kind::Full, detail).at("services"));
            }
        }
        Ok(())
    }

    fn validate_unique(&self) -> Result<(), Problem> {
        let mut names = HashMap::new();
        let mut keys = HashMap::new();
        for (i, service) in self.services.iter().enumerate() {
            if let Some(first) = names.insert(&service.name, i) {
                let detail = format!("there is a service {} already", service.name);
                return Err(Problem::new(Kind::Conflict, detail)
                    .at(format!("services[{i}].name"))
                    .and(format!("services[{first}].name")));
            }
            let key = (service.vip, service.protocol, service.port);
            if let Some(first) = keys.insert(key, i) {
                let other = &self.services[first].name;
                let (vip, protocol, port) = key;
                let detail = format!(
                    "{vip} {protocol} port {port} belongs to the service {other} already: \
                     change one of them, or remove {other}"
                );
                return Err(Problem::new(Kind::Conflict, detail)
                    .at(format!("services[{i}].vip"))
                    .and(format!("services[{first}].vip")));
            }
        }
        Ok(())
    }

    /// The pool has an address wherever one is needed, and none that packets
    /// for something else are sent to.
    fn validate_pool(&self) -> Result<(), Problem> {
        let pool = &self.settings.nat_pool;
        for (i, service) in self.services.iter().enumerate() {
            if let Some(j) = pool.iter().position(|address| *address == service.vip) {
                let detail = format!(
                    "{} is the VIP of the service {}: the pool needs an address of its own",
                    service.vip, service.name
                );
                return Err(Problem::invalid(format!("settings.nat_pool[{j}]"), detail)
                    .and(format!("{}.vip", service_path(i))));
            }
            let is_used = |address: &IpAddr| address.is_ipv4() == service.vip.is_ipv4();
            if service.full_nat && !pool.iter().any(is_used) {
                let version = if service.vip.is_ipv4() {
                    "IPv4"
                } else {
                    "IPv6"
                };
                let detail = format!(
                    "full NAT needs an {version} address to send from, and settings.nat_pool has \
                     none: name one that nobody else uses, lb-ctl adds it to the interface"
                );
                return Err(
                    Problem::invalid(format!("{}.full_nat", service_path(i)), detail)
                        .and("settings.nat_pool".to_owned()),
                );
            }
        }
        Ok(())
    }

    /// A VIP lives on the director, so packets for it never reach a backend
    /// that has the same address, whichever service the backend is in.
    fn validate_vips_are_no_backends(&self) -> Result<(), Problem> {
        let vips: HashMap<IpAddr, usize> = self
            .services
            .iter()
            .enumerate()
            .map(|(i, service)| (service.vip, i))
            .collect();
        for (i, service) in self.services.iter().enumerate() {
            for (j, backend) in service.backends.iter().enumerate() {
                let Some(owner) = vips.get(&backend.address.ip) else {
                    continue;
                };
                let detail = format!(
                    "{} is the VIP of the service {}: a backend needs an address of its own (RIP)",
                    backend.address.ip, self.services[*owner].name
                );
                return Err(
                    Problem::invalid(format!("{}.address", backend_path(i, j)), detail)
                        .and(format!("services[{owner}].vip")),
                );
            }
        }
        Ok(())
    }
}

/// Puts the path of the enclosing object before the problem's field.
fn within(path: &str, mut problem: Problem) -> Problem {
    for field in [&mut problem.field, &mut problem.other_field]
        .into_iter()
        .flatten()
    {
        *field = format!("{path}.{field}");
    }
    problem
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::text;

    fn valid() -> Value {
        json!({"services": [
            {"name": "web", "vip": "203.0.113.10", "port": 80, "protocol": "tcp", "mode": "dr",
             "health_check": {"type": "http"},
             "backends": [{"address": "203.0.113.21"}, {"address": "203.0.113.22", "weight": 0}]},
            {"name": "dns", "vip": "2001:db8::10", "port": 53, "protocol": "udp", "mode": "dr",
             "backends": [{"address": "2001:db8::21"}]},
        ]})
    }

    /// The problem that setting the value at a JSON pointer makes.
    fn problem(pointer: &str, value: Value) -> Problem {
        let mut config = valid();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = config.pointer_mut(parent).unwrap();
        match parent {
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
            _ => parent[key] = value,
        }
        let config: Config = text::from_json_value(config).unwrap();
        config.validate().unwrap_err()
    }

    #[test]
    fn what_is_valid_passes() {
        let config: Config = text::from_json_value(valid()).unwrap();
        config.validate().unwrap();
        Config::default().validate().unwrap();
    }

    #[test]
    fn what_cannot_be_is_refused_and_named() {
        let service = |name: &str, port: u16| json!({"name": name, "vip": "203.0.113.10", "port": port, "protocol": "tcp", "mode": "dr"});
        let cases = [
            ("vip", json!("0.0.0.0"), "vip", "unspecified"),
            ("vip", json!("224.0.0.1"), "vip", "multicast"),
            ("vip", json!("127.0.0.1"), "vip", "loopback"),
            ("vip", json!("255.255.255.255"), "vip", "broadcast"),
            ("vip", json!("::ffff:203.0.113.10"), "vip", "IPv4 address"),
            ("vip", json!("fe80::1"), "vip", "link-local"),
            (
                "vip",
                json!("203.0.113.21"),
                "backends[0].address",
                "VIP of the service web",
            ),
            (
                "vip",
                json!("2001:db8::9"),
                "backends[0].address",
                "same IP version",
            ),
            ("mode", json!("nat"), "backends[0].address", "has a port"),
            ("full_nat", json!(true), "full_nat", "nat mode"),
            ("scheduler", json!("wlc"), "scheduler", "not available"),
            (
                "backends/1/address",
                json!("203.0.113.21"),
                "backends[1].address",
                "already",
            ),
            (
                "backends/1/address",
                json!("203.0.113.22:80"),
                "backends[1].address",
                "no port",
            ),
            (
                "backends/1/address",
                json!("0.0.0.0"),
                "backends[1].address",
                "unspecified",
            ),
            (
                "health_check/interval_ms",
                json!(49),
                "health_check.interval_ms",
                "50",
            ),
            (
                "health_check/timeout_ms",
                json!(0),
                "health_check.timeout_ms",
                "1 to 2000 ms",
            ),
            ("health_check/rise", json!(0), "health_check.rise", "from 1"),
            ("health_check/fall", json!(0), "health_check.fall", "from 1"),
            ("health_check/port", json!(0), "health_check.port", "not 0"),
            (
                "health_check/path",
                json!("x"),
                "health_check.path",
                "begins with",
            ),
            (
                "health_check/host",
                json!("a b"),
                "health_check.host",
                "without spaces",
            ),
            (
                "health_check/expect_status",
                json!([]),
                "health_check.expect_status",
                "codes",
            ),
            (
                "health_check/expect_body",
                json!(""),
                "health_check.expect_body",
                "empty",
            ),
            (
                "health_check",
                json!({"type": "tcp", "path": "/"}),
                "health_check.path",
                "http",
            ),
            ("port", json!(0), "health_check.port", "must be given"),
        ];
        for (pointer, value, field, reason) in cases {
            let problem = problem(&format!("/services/0/{pointer}"), value);
            assert!((400..500).contains(&problem.status()));
            assert_eq!(problem.field.unwrap(), format!("services[0].{field}"));
            assert!(problem.detail.contains(reason), "{}", problem.detail);
        }
        let other = problem("/services/1", service("other", 80));
        assert_eq!(
            (other.status(), other.field.unwrap().as_str()),
            (409, "services[1].vip")
        );
        let same = problem("/services/1", service("web", 81));
        assert_eq!(
            (same.status(), same.field.unwrap().as_str()),
            (409, "services[1].name")
        );
        let idle = problem("/settings", json!({"tcp_idle_timeout": 0}));
        assert_eq!(idle.field.unwrap(), "settings.tcp_idle_timeout");
    }

    #[test]
    fn a_vip_may_not_be_a_backend_of_another_service() {
        let problem = problem("/services/1/vip", json!("203.0.113.21"));
        // IP versions differ first; give it a backend of its own version.
        assert!(problem.detail.contains("same IP version"));
        let mut config: Config = text::from_json_value(valid()).unwrap();
        config.services[1].vip = "203.0.113.22".parse().unwrap();
        config.services[1].backends.clear();
        let problem = config.validate().unwrap_err();
        assert_eq!(
            problem.field.as_deref(),
            Some("services[0].backends[1].address")
        );
        let scope = Scope::Service("dns".parse().unwrap());
        assert_eq!(scope.narrow(&config, problem).field.unwrap(), "vip");
    }
}
