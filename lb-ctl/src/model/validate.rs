//! Checks that need nothing but the desired state itself.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::limits::MAX_SERVICES;

use super::{
    Backend, BackendAddress, CheckType, Config, HealthCheck, Kind, Mode, Problem, Scheduler,
    Service, ServiceName, Settings,
};

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
        self.settings.validate()?;
        for (i, service) in self.services.iter().enumerate() {
            service
                .validate()
                .map_err(|problem| within(&service_path(i), problem))?;
        }
        self.validate_unique()?;
        self.validate_vips_are_no_backends()?;
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

impl Settings {
    fn validate(&self) -> Result<(), Problem> {
        if self.hash_key.len() > MAX_HASH_KEY {
            let detail = format!("a hash key has at most {MAX_HASH_KEY} bytes");
            return Err(Problem::invalid("settings.hash_key", detail));
        }
        for (field, seconds) in [
            ("settings.tcp_idle_timeout", self.tcp_idle_timeout),
            ("settings.udp_idle_timeout", self.udp_idle_timeout),
        ] {
            range(field, seconds, 1, 7 * 24 * 3600, "seconds")?;
        }
        Ok(())
    }
}

impl Service {
    /// Checks a service by itself; fields as seen from the service.
    fn validate(&self) -> Result<(), Problem> {
        usable("vip", "a VIP", self.vip)?;
        if self.mode != Mode::Dr {
            let detail = format!(
                "mode {} is not available in this version: use dr",
                self.mode
            );
            return Err(Problem::invalid("mode", detail));
        }
        if self.scheduler != Scheduler::Mh {
            let detail = format!(
                "scheduler {} is not available in this version: use mh",
                self.scheduler
            );
            return Err(Problem::invalid("scheduler", detail));
        }
        let mut addresses = HashMap::new();
        for (j, backend) in self.backends.iter().enumerate() {
            let path = format!("backends[{j}]");
            backend
                .validate(self)
                .map_err(|problem| within(&path, problem))?;
            if addresses.insert(backend.address, j).is_some() {
                let detail = format!(
                    "the service {} has a backend {} already",
                    self.name, backend.address
                );
                return Err(Problem::invalid(format!("{path}.address"), detail));
            }
        }
        if let Some(check) = &self.health_check {
            check
                .validate(self.port)
                .map_err(|problem| within("health_check", problem))?;
        }
        Ok(())
    }
}

impl Backend {
    fn validate(&self, service: &Service) -> Result<(), Problem> {
        let BackendAddress { ip, port } = self.address;
        usable("address", "a backend's address", ip)?;
        let detail = match (service.mode, port) {
            (Mode::Nat, None) => Some(format!(
                "in nat mode a backend has a port: write {}",
                BackendAddress {
                    ip,
                    port: Some(8080)
                }
            )),
            (Mode::Nat, Some(0)) => Some("a backend's port is not 0".to_owned()),
            (Mode::Dr | Mode::Tun, Some(_)) => Some(format!(
                "in {} mode a backend has no port, it keeps the service's: write {ip}",
                service.mode
            )),
            _ if service.mode == Mode::Dr && ip.is_ipv4() != service.vip.is_ipv4() => {
                Some(format!(
                    "in dr mode backend and VIP ({}) must be of the same IP version",
                    service.vip
                ))
            }
            _ => None,
        };
        if let Some(detail) = detail {
            return Err(Problem::invalid("address", detail));
        }
        range("weight", self.weight, 0, Self::MAX_WEIGHT, "")
    }
}

impl HealthCheck {
    fn validate(&self, service_port: u16) -> Result<(), Problem> {
        let wrong = |field: &str, detail: &str| Err(Problem::invalid(field, detail));
        match self.port {
            Some(0) => return wrong("port", "a port to probe is not 0"),
            None if service_port == 0 => {
                return wrong(
                    "port",
                    "the service is for every port, so the port to probe must be given",
                );
            }
            _ => {}
        }
        range("interval_ms", self.interval_ms, 50, 3_600_000, "ms")?;
        // A probe that outlasts the interval would delay the verdict beyond
        // interval x fall + timeout.
        if let Some(timeout) = self.timeout_ms {
            range(
                "timeout_ms",
                timeout,
                1,
                self.interval_ms,
                "ms (the interval)",
            )?;
        }
        range("rise", self.rise, 1, 100, "")?;
        range("fall", self.fall, 1, 100, "")?;
        if self.r#type != CheckType::Http {
            for (field, given) in [
                ("path", self.path.is_some()),
                ("host", self.host.is_some()),
                ("expect_status", self.expect_status.is_some()),
                ("expect_body", self.expect_body.is_some()),
            ] {
                if given {
                    return wrong(field, "only a check of type \"http\" has this field");
                }
            }
        }
        let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if let Some(path) = &self.path
            && !(path.starts_with('/') && printable(path) && path.len() <= 2048)
        {
            return wrong(
                "path",
                "a path begins with \"/\" and has no spaces; percent-encode what is not ASCII",
            );
        }
        if let Some(host) = &self.host
            && !(printable(host) && (1..=255).contains(&host.len()))
        {
            return wrong("host", "a host is a name or an address, without spaces");
        }
        if let Some(status) = &self.expect_status
            && (status.is_empty() || status.iter().any(|code| !(100..600).contains(code)))
        {
            return wrong("expect_status", "give one or more codes from 100 to 599");
        }
        if self.expect_body.as_ref().is_some_and(String::is_empty) {
            return wrong(
                "expect_body",
                "an empty text is in every body: leave it out",
            );
        }
        Ok(())
    }
}

/// Refuses addresses that no host on a network can have.
fn usable(field: &str, what: &str, ip: IpAddr) -> Result<(), Problem> {
    let reason = match ip {
        _ if ip.is_unspecified() => "the unspecified address",
        _ if ip.is_multicast() => "a multicast address",
        _ if ip.is_loopback() => "a loopback address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address in IPv6 form",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        _ => return Ok(()),
    };
    let detail = format!("{ip} is {reason}, which cannot be {what}");
    Err(Problem::invalid(field, detail))
}

fn range(field: &str, value: u32, min: u32, max: u32, unit: &str) -> Result<(), Problem> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let unit = if unit.is_empty() {
        String::new()
    } else {
        format!(" {unit}")
    };
    let detail = format!("must be from {min} to {max}{unit}, not {value}");
    Err(Problem::invalid(field, detail))
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
            ("mode", json!("tun"), "mode", "not available"),
            ("mode", json!("nat"), "mode", "not available"),
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
