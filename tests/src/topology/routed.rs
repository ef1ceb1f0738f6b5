//! Routers between the client, the director and the backends.

use super::{Family, INTERFACE, Mode, Net};
use crate::{Host, Lab, Mac, Segment};

/// Number of the first router's addresses.
const FIRST: u8 = 1;
/// Number of the second router's addresses.
const SECOND: u8 = 3;

/// The segments beside the director's, and who forwards between them all.
#[derive(Debug)]
pub struct Routed {
    /// 203.0.113.1, 198.51.100.1, 192.0.2.1 and likewise in IPv6: everybody's
    /// default gateway.
    pub router: Router,
    /// Another one between the director and the backends, in a lab in NAT mode
    /// that has one.
    pub second: Option<Router>,
    /// The segment of the client.
    pub clients: Segment,
    /// The segment of the backends; in NAT mode they need not be on it.
    pub backends: Segment,
}

/// A router. Its interfaces have the names of the segments behind them.
#[derive(Debug)]
pub struct Router {
    /// The host.
    pub host: Host,
    number: u8,
}

impl Router {
    /// Its interface on the director's segment.
    pub const TO_DIRECTOR: &str = "directors";
    /// Its interface on the clients' segment.
    pub const TO_CLIENTS: &str = "clients";
    /// Its interface on the backends' segment.
    pub const TO_BACKENDS: &str = "backends";
    /// All its interfaces; the second router has no way to the clients, and in
    /// NAT mode the first has none to the backends.
    pub const INTERFACES: [&str; 3] = [Self::TO_DIRECTOR, Self::TO_CLIENTS, Self::TO_BACKENDS];

    /// Its address on a network.
    pub fn address(&self, net: Net, family: Family) -> std::net::IpAddr {
        net.address(family, self.number)
    }

    fn new(lab: &Lab, name: &str, number: u8) -> anyhow::Result<Self> {
        let host = lab.host(name)?;
        host.set_sysctl("net.ipv4.ip_forward", 1)?;
        host.set_sysctl("net.ipv6.conf.all.forwarding", 1)?;
        Ok(Self { host, number })
    }

    fn attach(&self, segment: &Segment, ifname: &str, net: Net) -> anyhow::Result<()> {
        attach(&self.host, segment, ifname, net, self.number)?;
        Ok(())
    }
}

impl Routed {
    /// The router, on the director's segment, the clients' and in TUN mode the
    /// backends'.
    pub(super) fn new(lab: &Lab, directors: &Segment, mode: Mode) -> anyhow::Result<Self> {
        let clients = lab.segment("clients")?;
        let backends = lab.segment("backends")?;
        let router = Router::new(lab, "router", FIRST)?;
        router.attach(directors, Router::TO_DIRECTOR, Net::Director)?;
        router.attach(&clients, Router::TO_CLIENTS, Net::Clients)?;
        if mode == Mode::Tun {
            router.attach(&backends, Router::TO_BACKENDS, Net::Backends)?;
        }
        Ok(Self {
            router,
            second: None,
            clients,
            backends,
        })
    }

    /// Another router between director and backends, over which no route leads
    /// yet: 203.0.113.3, 192.0.2.3 and likewise in IPv6.
    pub(super) fn add_router(&self, lab: &Lab, directors: &Segment) -> anyhow::Result<Router> {
        let router = Router::new(lab, "router2", SECOND)?;
        router.attach(directors, Router::TO_DIRECTOR, Net::Director)?;
        router.attach(&self.backends, Router::TO_BACKENDS, Net::Backends)?;
        Ok(router)
    }

    /// Connects a host that reaches all else through the router.
    pub(super) fn attach(&self, host: &Host, net: Net, number: u8) -> anyhow::Result<Mac> {
        let segment = match net {
            Net::Clients => &self.clients,
            Net::Backends | Net::Director => &self.backends,
        };
        let mac = attach(host, segment, INTERFACE, net, number)?;
        self.set_default_gateway(host, net)?;
        Ok(mac)
    }

    /// Routes all else of a host through the router; of a backend through the
    /// second one if there is one.
    pub(super) fn set_default_gateway(&self, host: &Host, net: Net) -> anyhow::Result<()> {
        let router = match (&self.second, net) {
            (Some(second), Net::Backends) => second,
            _ => &self.router,
        };
        set_default_gateway(host, net, router.number)
    }
}

/// Routes all else of a host through who has this number in its network.
pub(super) fn set_default_gateway(host: &Host, net: Net, number: u8) -> anyhow::Result<()> {
    for family in [Family::V4, Family::V6] {
        let gateway = net.address(family, number).to_string();
        host.run("ip", ["route", "add", "default", "via", &gateway])?;
    }
    Ok(())
}

/// Connects a host that neither merges nor postpones parting what it sends:
/// where packets are measured, they are as they are on a wire.
pub(super) fn attach(
    host: &Host,
    segment: &Segment,
    ifname: &str,
    net: Net,
    number: u8,
) -> anyhow::Result<Mac> {
    let v4 = net.with_length(Family::V4, number);
    let v6 = net.with_length(Family::V6, number);
    let mac = host.attach(segment, ifname, &[&v4, &v6])?;
    host.run("ethtool", ["-K", ifname, "gro", "off", "gso", "off"])?;
    Ok(mac)
}
