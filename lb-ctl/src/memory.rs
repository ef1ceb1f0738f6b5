//! An engine without a packet path, for tests of what stands above it.

use std::collections::HashSet;
use std::net::IpAddr;

use crate::model::status::{BackendState, BackendStatus, DropStatus, RingStatus, ServiceStatus};
use crate::model::{Backend, Config, Kind, Problem, Service};
use crate::reconcile::{Engine, EngineStatus, HostFacts, OnLink};

/// Accepts everything and forwards nothing.
#[derive(Clone, Debug)]
pub struct MemoryEngine {
    /// Addresses that are behind a router.
    pub off_link: HashSet<IpAddr>,
    /// Addresses of the host itself.
    pub local: HashSet<IpAddr>,
    /// Backends for which there is room.
    pub max_backends: usize,
    /// Desired states applied so far.
    pub applied: u64,
    /// What the status says of drops.
    pub drops: Vec<DropStatus>,
}

impl Default for MemoryEngine {
    fn default() -> Self {
        Self {
            off_link: HashSet::new(),
            local: HashSet::new(),
            max_backends: usize::MAX,
            applied: 0,
            drops: Vec::new(),
        }
    }
}

impl HostFacts for MemoryEngine {
    fn on_link(&self, address: IpAddr) -> OnLink {
        if self.off_link.contains(&address) {
            return OnLink::No;
        }
        OnLink::Yes {
            interface: "memory0".to_owned(),
        }
    }

    fn local(&self, address: IpAddr) -> bool {
        self.local.contains(&address)
    }
}

impl Engine for MemoryEngine {
    fn check(&self, config: &Config) -> Result<(), Problem> {
        let backends: usize = config.services.iter().map(|s| s.backends.len()).sum();
        if backends > self.max_backends {
            let detail = format!("there is room for {} backends", self.max_backends);
            return Err(Problem::new(Kind::Full, detail).at("services"));
        }
        Ok(())
    }

    fn apply(&mut self, _config: &Config) -> anyhow::Result<()> {
        self.applied += 1;
        Ok(())
    }

    fn status(&mut self, config: &Config) -> EngineStatus {
        EngineStatus {
            services: config.services.iter().map(service_status).collect(),
            drops: self.drops.clone(),
            ..EngineStatus::default()
        }
    }
}

fn service_status(service: &Service) -> ServiceStatus {
    let weights: u32 = service.backends.iter().map(|b| b.weight).sum();
    let backend = |backend: &Backend| BackendStatus {
        address: backend.address,
        weight: backend.weight,
        state: if backend.weight == 0 {
            BackendState::Draining
        } else {
            BackendState::Active
        },
        reason: None,
        share: f64::from(backend.weight) / f64::from(weights.max(1)),
        health: None,
        next_hop: None,
        mtu: None,
        packets: 0,
        bytes: 0,
        flows: 0,
        reply_packets: 0,
        reply_bytes: 0,
    };
    ServiceStatus {
        name: service.name.clone(),
        vip: service.vip,
        port: service.port,
        protocol: service.protocol,
        mode: service.mode,
        full_nat: service.full_nat,
        scheduler: service.scheduler,
        ping: service.ping,
        health_check: service.health_check.clone(),
        mtu: None,
        notes: Vec::new(),
        ring: RingStatus {
            slots: weights,
            settled: weights,
            ..RingStatus::default()
        },
        backends: service.backends.iter().map(backend).collect(),
        packets: 0,
        bytes: 0,
        flows: 0,
    }
}
