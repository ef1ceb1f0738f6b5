//! What a lab in NAT mode has besides: who leads replies back to the director.

use std::net::IpAddr;

use anyhow::ensure;
use serde_json::json;

use super::{Family, INTERFACE, Mode, Net, Routed, Router, Site, routed};
use crate::{Host, Lab, Mac, Segment};

/// Number of the director's addresses on the backends' segment.
const DIRECTOR: u8 = 2;
/// Number of the pool's addresses.
const POOL: u8 = 4;
/// What is added to a service's port for that of its servers.
const SHIFT: u16 = 8000;

/// A lab in NAT mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat {
    /// Whether the source is translated too. Then nothing leads the backends
    /// to the clients; otherwise their default route leads to the director.
    pub full: bool,
    /// Where the backends are.
    pub place: Place,
}

/// Where the backends are in NAT mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a segment of their own, on which the director has its second
    /// interface.
    BehindDirector,
    /// On the director's segment, where it has its only interface.
    BesideDirector,
    /// Behind a second router on the director's segment, where the director
    /// has its only interface. Unless the source is translated, all else that
    /// this router has goes to the director.
    BehindRouter,
}

impl Nat {
    /// The director is the backends' gateway, with two interfaces.
    pub const GATEWAY: Self = Self {
        full: false,
        place: Place::BehindDirector,
    };

    /// Full NAT, with two interfaces.
    pub const FULL: Self = Self {
        full: true,
        place: Place::BehindDirector,
    };

    /// The same with backends elsewhere.
    pub const fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// The network in which the backends are.
    pub(super) const fn net(self) -> Net {
        match self.place {
            Place::BesideDirector => Net::Director,
            Place::BehindDirector | Place::BehindRouter => Net::Backends,
        }
    }

    /// The address that the director asks the backends from in full NAT: in
    /// their network, unless that is behind the router.
    pub fn pool(self, family: Family) -> IpAddr {
        match self.place {
            Place::BehindDirector => Net::Backends.address(family, POOL),
            Place::BesideDirector | Place::BehindRouter => Net::Director.address(family, POOL),
        }
    }

    /// Names of the director's interfaces.
    pub const fn interfaces(self) -> &'static [&'static str] {
        match self.place {
            Place::BehindDirector => &[INTERFACE, Site::TO_BACKENDS],
            Place::BesideDirector | Place::BehindRouter => &[INTERFACE],
        }
    }

    /// Connects the director to the backends, and sees to it that what they
    /// send comes its way.
    pub(super) fn connect(
        self,
        lab: &Lab,
        director: &Host,
        segment: &Segment,
        routed: &mut Routed,
    ) -> anyhow::Result<()> {
        match self.place {
            Place::BehindDirector => {
                let (ifname, net) = (Site::TO_BACKENDS, Net::Backends);
                routed::attach(director, &routed.backends, ifname, net, DIRECTOR)?;
            }
            Place::BesideDirector => return Ok(()),
            Place::BehindRouter => {
                let second = routed.add_router(lab, segment)?;
                if !self.full {
                    routed::set_default_gateway(&second.host, Net::Director, DIRECTOR)?;
                }
                let via = |family| second.address(Net::Director, family);
                route_to_backends(director, via)?;
                routed.second = Some(second);
            }
        }
        let via = |family| Net::Director.address(family, DIRECTOR);
        route_to_backends(&routed.router.host, via)
    }

    /// Connects a backend.
    pub(super) fn attach(
        self,
        host: &Host,
        directors: &Segment,
        routed: &Routed,
        number: u8,
    ) -> anyhow::Result<Mac> {
        let net = self.net();
        let segment = match self.place {
            Place::BehindRouter => return routed.attach(host, net, number),
            Place::BehindDirector => &routed.backends,
            Place::BesideDirector => directors,
        };
        let mac = routed::attach(host, segment, INTERFACE, net, number)?;
        if !self.full {
            routed::set_default_gateway(host, net, DIRECTOR)?;
        }
        Ok(mac)
    }
}

fn route_to_backends(host: &Host, via: impl Fn(Family) -> IpAddr) -> anyhow::Result<()> {
    for family in [Family::V4, Family::V6] {
        let (prefix, via) = (Net::Backends.prefix(family), via(family).to_string());
        host.run("ip", ["route", "add", &prefix, "via", &via])?;
    }
    Ok(())
}

impl Site {
    /// The director's interface on the backends' segment, in NAT mode.
    pub const TO_BACKENDS: &str = "eth1";

    /// A lab in NAT mode, otherwise as [`Site::new`].
    pub fn nat(name: &str, nat: Nat, backends: u8) -> anyhow::Result<Self> {
        Self::build(Lab::new(name)?, Mode::Nat(nat), backends)
    }

    /// The port at which servers listen for what comes to a service's port: in
    /// NAT mode another one.
    pub fn server_port(&self, port: u16) -> u16 {
        match self.mode() {
            Mode::Nat(_) => port + SHIFT,
            Mode::Dr | Mode::Tun => port,
        }
    }

    /// Names of the director's interfaces on which its program is to run.
    pub fn interfaces(&self) -> &'static [&'static str] {
        match self.mode() {
            Mode::Nat(nat) => nat.interfaces(),
            Mode::Dr | Mode::Tun => &[INTERFACE],
        }
    }

    /// Gives the director of a lab with full NAT its pool, unless it has one.
    ///
    /// # Errors
    /// When the director does not take it.
    pub(super) fn ensure_pool(&self) -> anyhow::Result<()> {
        let Mode::Nat(nat @ Nat { full: true, .. }) = self.mode() else {
            return Ok(());
        };
        let mut config = self.api().get("/v1/config")?.ok()?.json()?;
        let pool = &mut config["settings"]["nat_pool"];
        if pool.as_array().is_none_or(Vec::is_empty) {
            *pool = json!([nat.pool(Family::V4), nat.pool(Family::V6)]);
            self.api().put("/v1/config", &config)?.ok()?;
        }
        Ok(())
    }

    /// Leaves it to the receiver of a frame whether its checksums are finished,
    /// as veth pairs do unless told otherwise.
    ///
    /// # Errors
    /// When an interface does not have it so.
    pub fn leave_checksums_open(&self) -> anyhow::Result<()> {
        let mut hosts = vec![(&self.client, INTERFACE), (&self.director, INTERFACE)];
        hosts.extend(self.backends.iter().map(|b| (&b.host, INTERFACE)));
        if let Ok(router) = self.router() {
            hosts.extend([Router::TO_DIRECTOR, Router::TO_CLIENTS].map(|i| (&router.host, i)));
        }
        let more = self.interfaces().iter().skip(1);
        hosts.extend(more.map(|ifname| (&self.director, *ifname)));
        for (host, ifname) in hosts {
            host.run("ethtool", ["-K", ifname, "tx", "on"])?;
            let features = host.run("ethtool", ["--show-features", ifname])?;
            ensure!(
                features.contains("tx-checksum-ip-generic: on"),
                "{} {ifname}: {features}",
                host.name()
            );
        }
        Ok(())
    }
}
