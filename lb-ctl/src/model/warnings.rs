use super::Mode;
use super::status::{BackendState, PoolStatus, ServiceStatus, Status, XdpMode};

impl Status {
    /// What an operator should look at, as far as it follows from the rest of
    /// the status; worst first.
    pub fn derive_warnings(&self) -> Vec<String> {
        let thieves = self.vips.iter().flat_map(|vip| {
            vip.thieves.iter().map(|thief| {
                format!(
                    "the VIP {} is answered for by {} on {}, so traffic bypasses this director: \
                     run `lb-agent check --vip {0}` on the host with that MAC",
                    vip.address, thief.mac, thief.interface
                )
            })
        });
        let absent = self.vips.iter().filter(|vip| vip.managed);
        let absent = absent.filter(|vip| vip.interfaces.is_empty()).map(|vip| {
            format!(
                "the VIP {} is on no interface of this director",
                vip.address
            )
        });
        let generic = self
            .interfaces
            .iter()
            .filter(|interface| interface.xdp == XdpMode::Generic)
            .map(|interface| {
                let note = interface.note.as_deref();
                let note = note.unwrap_or("every packet takes the slow way through the kernel");
                format!("{} runs in generic XDP mode: {note}", interface.name)
            });
        let pools = self.nat.iter().flat_map(|nat| &nat.pools);
        let pools = pools.filter_map(tight);
        let services = self.services.iter();
        thieves
            .chain(absent)
            .chain(pools)
            .chain(services.clone().filter_map(idle))
            .chain(services.flat_map(failing))
            .chain(generic)
            .collect()
    }
}

/// A pool that is about to run out of ports.
fn tight(pool: &PoolStatus) -> Option<String> {
    const MUCH: f64 = 0.8;
    (pool.share >= MUCH).then(|| {
        format!(
            "{:.0}% of the IPv{} ports for full NAT are taken ({} of {}): when there are none, new \
             flows are dropped. Name more addresses in settings.nat_pool, or shorten \
             settings.nat_timeouts",
            pool.share * 100.0,
            pool.version,
            pool.used,
            pool.ports
        )
    })
}

/// A service that forwards nothing.
fn idle(service: &ServiceStatus) -> Option<String> {
    (service.ring.slots == 0).then(|| {
        let why = if service.backends.is_empty() {
            format!(
                "it has no backends, add one with `lb-ctl backend add {} ADDRESS`",
                service.name
            )
        } else {
            "none of its backends can be scheduled".to_owned()
        };
        format!("the service {} serves nobody: {why}", service.name)
    })
}

/// The backends of a service that should get flows and do not.
fn failing(service: &ServiceStatus) -> impl Iterator<Item = String> {
    service.backends.iter().filter_map(|backend| {
        let address = backend.address;
        let what = match backend.state {
            BackendState::Down => "is down",
            BackendState::Unresolved if service.mode == Mode::Nat => "has no route",
            BackendState::Unresolved => "does not answer ARP or NDP",
            BackendState::Active | BackendState::Draining | BackendState::Removed => return None,
        };
        let reason = backend.reason.as_deref().unwrap_or("no reason known");
        Some(format!(
            "{}: backend {address} {what}: {reason}",
            service.name
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::super::status::{FlowTableStatus, NatStatus, Thief, VipStatus};
    use super::*;
    use crate::memory::MemoryEngine;
    use crate::model::{Config, text};
    use crate::reconcile::Engine;

    #[test]
    fn the_worst_comes_first_and_health_is_silent() {
        let config: Config = text::from_json_value(serde_json::json!({"services": [
            {"name": "empty", "vip": "203.0.113.11", "port": 80, "protocol": "tcp", "mode": "dr"},
            {"name": "web", "vip": "203.0.113.10", "port": 80, "protocol": "tcp", "mode": "dr",
             "backends": [{"address": "203.0.113.21"}, {"address": "203.0.113.22"}]}]}))
        .unwrap();
        let mut status = Status {
            version: String::new(),
            abi_version: 1,
            revision: String::new(),
            started_at: 0,
            warnings: Vec::new(),
            interfaces: Vec::new(),
            services: MemoryEngine::default().status(&config).services,
            vips: Vec::new(),
            drops: Vec::new(),
            flow_table: FlowTableStatus::default(),
            nat: None,
        };
        let healthy = status.derive_warnings();
        assert_eq!(healthy.len(), 1, "{healthy:?}");
        assert!(healthy[0].contains("lb-ctl backend add empty"));
        let backend = &mut status.services[1].backends[0];
        backend.state = BackendState::Down;
        backend.reason = Some("connection refused".to_owned());
        status.vips.push(VipStatus {
            address: "203.0.113.10".parse().unwrap(),
            interfaces: vec!["eth0".to_owned()],
            managed: true,
            thieves: vec![Thief {
                mac: "02:00:00:00:00:01".to_owned(),
                interface: "eth0".to_owned(),
                first_seen: 0,
                last_seen: 0,
            }],
        });
        let warnings = status.derive_warnings();
        assert!(warnings[0].contains("answered for by 02:00:00:00:00:01 on eth0"));
        assert_eq!(
            warnings[2],
            "web: backend 203.0.113.21 is down: connection refused"
        );
        assert_eq!(warnings.len(), 3);
        let pool = |used| NatStatus {
            pools: vec![PoolStatus {
                version: 4,
                addresses: vec!["203.0.113.3".parse().unwrap()],
                ports: 100,
                used,
                share: used as f64 / 100.0,
            }],
            ..NatStatus::default()
        };
        status.nat = Some(pool(79));
        assert_eq!(status.derive_warnings().len(), 3);
        status.nat = Some(pool(80));
        assert!(status.derive_warnings()[1].contains("80% of the IPv4 ports"));
    }
}
