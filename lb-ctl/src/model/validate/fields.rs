//! What a single object must be by itself. Fields are as seen from the object.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::nat::MAX_POOL_ADDRESSES;

use super::{MAX_HASH_KEY, within};
use crate::model::{
    Backend, BackendAddress, CheckType, HealthCheck, Mode, NatPorts, Ping, Problem, Protocol,
    Scheduler, Service, Settings,
};

impl Settings {
    pub(super) fn validate(&self) -> Result<(), Problem> {
        if self.hash_key.len() > MAX_HASH_KEY {
            let detail = format!("a hash key has at most {MAX_HASH_KEY} bytes");
            return Err(Problem::invalid("hash_key", detail));
        }
        for (field, seconds) in [
            ("tcp_idle_timeout", self.tcp_idle_timeout),
            ("udp_idle_timeout", self.udp_idle_timeout),
        ] {
            range(field, seconds, 1, 7 * 24 * 3600, "seconds")?;
        }
        for (i, prefix) in self.tunnel_sources.iter().enumerate() {
            let field = format!("tunnel_sources[{i}]");
            usable(&field, "a tunnel source", prefix.network())?;
            let is_same_version = |other: &IpNet| other.addr().is_ipv4() == prefix.addr().is_ipv4();
            if self.tunnel_sources[..i].iter().any(is_same_version) {
                let detail = "there is a prefix of this IP version already: one each is enough";
                return Err(Problem::invalid(field, detail));
            }
        }
        self.validate_nat()
    }

    fn validate_nat(&self) -> Result<(), Problem> {
        if self.nat_pool.len() > MAX_POOL_ADDRESSES as usize {
            let detail = format!("a pool has at most {MAX_POOL_ADDRESSES} addresses");
            return Err(Problem::invalid("nat_pool", detail));
        }
        for (i, &address) in self.nat_pool.iter().enumerate() {
            let field = format!("nat_pool[{i}]");
            usable(&field, "an address of the pool", address)?;
            if self.nat_pool[..i].contains(&address) {
                let detail = format!("{address} is in the pool already");
                return Err(Problem::invalid(field, detail));
            }
        }
        let NatPorts { first, last } = self.nat_ports;
        if first == 0 || last < first {
            let detail = format!("the ports from {first} to {last} are none: see first and last");
            return Err(Problem::invalid("nat_ports", detail));
        }
        let timeouts = &self.nat_timeouts;
        for (field, seconds) in [
            ("nat_timeouts.syn", timeouts.syn),
            ("nat_timeouts.established", timeouts.established),
            ("nat_timeouts.fin", timeouts.fin),
            ("nat_timeouts.closed", timeouts.closed),
            ("nat_timeouts.udp", timeouts.udp),
        ] {
            range(field, seconds, 1, 7 * 24 * 3600, "seconds")?;
        }
        Ok(())
    }
}

impl Service {
    pub(super) fn validate(&self) -> Result<(), Problem> {
        usable("vip", "a VIP", self.vip)?;
        if self.full_nat && self.mode != Mode::Nat {
            let detail = format!("only a service in nat mode has this, not in {}", self.mode);
            return Err(Problem::invalid("full_nat", detail));
        }
        if self.full_nat && self.protocol == Protocol::Sctp {
            let detail =
                "the ports of SCTP are not translated: use nat without full_nat, dr or tun";
            return Err(Problem::invalid("full_nat", detail));
        }
        if self.ping == Ping::Forward && self.mode == Mode::Nat {
            let detail = "in nat mode the backends do not hold the VIP, so none can answer for \
                          it: use answer, or host, or another mode";
            return Err(Problem::invalid("ping", detail));
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
            (Mode::Nat, Some(_)) if service.port == 0 => Some(format!(
                "the service is for every port, and each stays what it is: write {ip}"
            )),
            (Mode::Nat, None) if service.port != 0 => Some(format!(
                "in nat mode a backend has a port: write {}",
                BackendAddress {
                    ip,
                    port: Some(8080)
                }
            )),
            (Mode::Nat, Some(port))
                if service.protocol == Protocol::Sctp && port != service.port =>
            {
                Some(format!(
                    "the ports of SCTP are not translated: write {}",
                    BackendAddress {
                        ip,
                        port: Some(service.port)
                    }
                ))
            }
            (Mode::Nat, Some(0)) => Some("a backend's port is not 0".to_owned()),
            (Mode::Dr | Mode::Tun, Some(_)) => Some(format!(
                "in {} mode a backend has no port, it keeps the service's: write {ip}",
                service.mode
            )),
            _ if service.mode != Mode::Tun && ip.is_ipv4() != service.vip.is_ipv4() => {
                Some(format!(
                    "in {} mode backend and VIP ({}) must be of the same IP version",
                    service.mode, service.vip
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
