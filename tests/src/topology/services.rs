//! Services as the API has them, and how their backends are.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Family, Mode, Site};
use crate::talk::Protocol;
use crate::try_eventually;

impl Site {
    /// Body of `PUT /v1/services/NAME`: a service on the VIP's port 80 with
    /// these backends, weight 1, and a quick HTTP health check.
    pub fn service(&self, name: &str, family: Family, backends: &[usize]) -> Value {
        self.service_across(name, family, family, backends)
    }

    /// The same with backends that are known by an address of perhaps another
    /// IP version than the VIP's.
    pub fn service_across(
        &self,
        name: &str,
        family: Family,
        backends_family: Family,
        backends: &[usize],
    ) -> Value {
        let mut service = self.plain_service(name, family, Protocol::Tcp, 80, backends);
        service["backends"] = self.backends_of(backends_family, 80, backends);
        service["health_check"] = json!({
            "type": "http", "path": "/",
            "interval_ms": 500, "timeout_ms": 500, "rise": 2, "fall": 2,
        });
        service
    }

    /// The same on another port, or for UDP, without a health check.
    pub fn plain_service(
        &self,
        name: &str,
        family: Family,
        protocol: Protocol,
        port: u16,
        backends: &[usize],
    ) -> Value {
        let mut service = json!({
            "name": name, "vip": family.vip(), "port": port, "protocol": protocol.name(),
            "mode": self.mode().name(), "scheduler": "mh",
            "backends": self.backends_of(family, port, backends),
        });
        if let Mode::Nat(nat) = self.mode() {
            service["full_nat"] = json!(nat.full);
        }
        service
    }

    /// The backends of a service on this port, each of weight 1.
    pub fn backends_of(&self, family: Family, port: u16, backends: &[usize]) -> Value {
        let backends = backends.iter();
        backends
            .map(|&i| json!({"address": self.backend_name(family, port, i), "weight": 1}))
            .collect()
    }

    /// A backend as a service on this port knows it: by its address, in NAT
    /// mode with its server's port.
    pub fn backend_name(&self, family: Family, port: u16, index: usize) -> String {
        let address = self.backends[index].address(family);
        match self.mode() {
            Mode::Nat(_) => SocketAddr::new(address, self.server_port(port)).to_string(),
            Mode::Dr | Mode::Tun => address.to_string(),
        }
    }

    /// Waits until a service's backend is in a state such as `active` or
    /// `down`, as `GET /v1/services/NAME` tells it.
    pub fn wait_backend_state(
        &self,
        service: &str,
        address: IpAddr,
        state: &str,
        deadline: Duration,
    ) -> anyhow::Result<()> {
        self.wait_backend(service, &address.to_string(), state, deadline)
    }

    /// The same for a backend by its name, see [`Self::backend_name`].
    pub fn wait_backend(
        &self,
        service: &str,
        backend: &str,
        state: &str,
        deadline: Duration,
    ) -> anyhow::Result<()> {
        let api = self.api();
        let what = format!("backend {backend} of service {service} to be {state}");
        try_eventually(&what, deadline, || {
            let reply = api.get(&format!("/v1/services/{service}"));
            let document = reply
                .and_then(|r| r.ok()?.json())
                .map_err(|e| format!("{e:#}"))?;
            let backends = document["backends"].as_array().ok_or("no backends")?;
            match backends.iter().find(|b| b["address"] == backend) {
                Some(backend) if backend["state"] == state => Ok(()),
                Some(backend) => Err(backend.to_string()),
                None => Err(format!("not in {document}")),
            }
        })
    }
}
