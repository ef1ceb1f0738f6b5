//! A service that talks: what suites of flows begin with.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{Family, Site};
use crate::talk::{Echo, Pace, Protocol, Talkers};

/// How long a change may take to be seen.
const LONG: Duration = Duration::from_secs(30);

/// A director with one service, whose backends say who they are.
#[derive(Debug)]
pub struct Scene {
    /// Taken out when it shall end.
    pub echoes: Vec<Option<Echo>>,
    /// The lab.
    pub site: Site,
    family: Family,
    backends_family: Family,
    protocol: Protocol,
}

impl Scene {
    /// Name of the service.
    pub const SERVICE: &str = "talk";
    /// Its port.
    pub const PORT: u16 = 7000;

    /// Starts director and servers in a lab and creates the service with all
    /// its backends, which are known by their addresses of `backends_family`.
    pub fn new(
        mut site: Site,
        protocol: Protocol,
        family: Family,
        backends_family: Family,
    ) -> anyhow::Result<Self> {
        site.start_director(&[])?;
        let mut this = Self {
            echoes: Vec::new(),
            site,
            family,
            backends_family,
            protocol,
        };
        for i in 0..this.site.backends.len() {
            let echo = this.start_echo(i)?;
            this.echoes.push(Some(echo));
        }
        this.site.put_service(&this.service())?;
        Ok(this)
    }

    /// Body of the service with all backends.
    pub fn service(&self) -> Value {
        let backends: Vec<usize> = (0..self.site.backends.len()).collect();
        let (name, family) = (Self::SERVICE, self.family);
        let mut service =
            self.site
                .plain_service(name, family, self.protocol, Self::PORT, &backends);
        service["backends"] = self
            .site
            .backends_of(self.backends_family, Self::PORT, &backends);
        service
    }

    /// Opens flows from the client.
    pub fn talk(&self, count: usize) -> anyhow::Result<Talkers> {
        let vip = SocketAddr::new(self.family.vip(), Self::PORT);
        Talkers::start(&self.site.client, self.protocol, vip, count, Pace::CALM)
    }

    /// Adds a backend more and waits until it gets new flows.
    pub fn add(&mut self) -> anyhow::Result<()> {
        let i = self.site.add_backend()?;
        let echo = self.start_echo(i)?;
        self.echoes.push(Some(echo));
        let backend = json!({"address": self.name(i)});
        let path = format!("/v1/services/{}/backends", Self::SERVICE);
        self.site.api().post(&path, &backend)?.ok()?;
        self.is(i, "active")
    }

    /// Changes the weight of a backend.
    pub fn set_weight(&self, i: usize, weight: u32) -> anyhow::Result<()> {
        let weight = json!({"weight": weight});
        self.site.api().patch(&self.path(i), &weight)?.ok()?;
        Ok(())
    }

    /// Removes a backend.
    pub fn remove(&self, i: usize) -> anyhow::Result<()> {
        self.site.api().delete(&self.path(i))?.ok()?;
        Ok(())
    }

    /// Waits until a backend is in a state.
    pub fn is(&self, i: usize, state: &str) -> anyhow::Result<()> {
        self.site
            .wait_backend(Self::SERVICE, &self.name(i), state, LONG)
    }

    /// New flows succeed, and none goes to this backend.
    pub fn ensure_new_ones_avoid(&self, i: usize) -> anyhow::Result<()> {
        let new = self.talk(30)?.by_backend();
        ensure!(!new.contains_key(self.site.backends[i].name()), "{new:?}");
        Ok(())
    }

    /// Waits until the service's usable MTU is as it shall be.
    pub fn wait_mtu(&self, mtu: u16) -> anyhow::Result<()> {
        let what = format!("an MTU of {mtu}");
        self.site
            .wait_service(Self::SERVICE, &what, LONG, |status| {
                let mut backends = status["backends"].as_array().into_iter().flatten();
                status["mtu"] == mtu && backends.all(|b| b["mtu"] == mtu)
            })
            .context("the MTU is not followed")?;
        Ok(())
    }

    fn start_echo(&self, i: usize) -> anyhow::Result<Echo> {
        self.site.start_echo(i, self.family, Self::PORT)
    }

    fn path(&self, i: usize) -> String {
        format!("/v1/services/{}/backends/{}", Self::SERVICE, self.name(i))
    }

    /// The backend's name in the service.
    fn name(&self, i: usize) -> String {
        self.site.backend_name(self.backends_family, Self::PORT, i)
    }
}
