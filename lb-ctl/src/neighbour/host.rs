//! What the kernel's tables say of interfaces, routes, neighbours and
//! addresses, by rtnetlink(7).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use lb_common::vlan::Tag;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, CacheInfo,
};
use netlink_packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, VlanProtocol,
    XdpAttached,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use rtnetlink::MulticastGroup;

use crate::model::status::XdpMode;

/// Access to the kernel's tables.
///
/// One socket carries one listing at a time, so whoever lists things
/// independently of others opens a `Host` of its own.
#[derive(Clone, Debug)]
pub struct Host {
    netlink: rtnetlink::Handle,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address, if it is an Ethernet interface.
    pub mac: Option<[u8; 6]>,
    /// Whether it is up and has a carrier.
    pub is_running: bool,
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// Index of the interface that it stands on: a VLAN's, a macvlan's.
    pub lower: Option<u32>,
    /// Index of the bond or bridge that it is a part of.
    pub controller: Option<u32>,
    /// The tag that a VLAN device adds to what the lower one sends.
    pub vlan: Option<Tag>,
    /// How an XDP program is attached, if one is.
    pub xdp: Option<XdpMode>,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address, if that is known and has not been given up.
    pub mac: Option<[u8; 6]>,
    /// Whether that has been confirmed of late.
    pub is_fresh: bool,
    /// Whether the kernel has asked for it in vain.
    pub has_failed: bool,
}

/// The way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface.
    pub interface: u32,
    /// The router; without one the address is on the segment.
    pub gateway: Option<IpAddr>,
    /// The address is this host's own.
    pub is_local: bool,
    /// The address of this host that the kernel would send from.
    pub source: Option<IpAddr>,
    /// MTU of the route, if it is less than the interface's; bytes.
    pub mtu: Option<u32>,
}

/// An address that an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// Index of the interface.
    pub interface: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of its prefix in bits.
    pub prefix: u8,
}

/// The neighbour tables, by interface and address.
pub type Neighbours = HashMap<(u32, IpAddr), Neighbour>;

impl Host {
    /// Opens a netlink socket in the present network namespace.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open() -> Result<Self> {
        let (connection, netlink, _) =
            rtnetlink::new_connection().context("opening a netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { netlink })
    }

    /// A stream that yields whenever interfaces, addresses, routes or
    /// neighbours have changed.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn changes() -> Result<impl Stream<Item = ()> + Unpin> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
        .context("subscribing to netlink notifications")?;
        tokio::spawn(connection);
        Ok(messages.map(|_| ()))
    }

    /// All interfaces by index.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn interfaces(&self) -> Result<BTreeMap<u32, Interface>> {
        let messages: Vec<LinkMessage> = self
            .netlink
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .context("listing interfaces")?;
        Ok(messages.iter().filter_map(interface).collect())
    }

    /// The neighbour tables of both IP versions.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn neighbours(&self) -> Result<Neighbours> {
        let mut neighbours = Neighbours::new();
        let mut messages = self.netlink.neighbours().get().execute();
        while let Some(message) = messages.try_next().await.context("listing neighbours")? {
            let header = &message.header;
            let is_known = matches!(
                header.state,
                NeighbourState::Reachable
                    | NeighbourState::Permanent
                    | NeighbourState::Noarp
                    | NeighbourState::Stale
                    | NeighbourState::Delay
                    | NeighbourState::Probe
            );
            let is_fresh = matches!(
                header.state,
                NeighbourState::Reachable
                    | NeighbourState::Permanent
                    | NeighbourState::Noarp
                    // Being confirmed: there is nothing to ask for.
                    | NeighbourState::Delay
                    | NeighbourState::Probe
                    | NeighbourState::Incomplete
            );
            let mut address = None;
            let mut mac = None;
            for attribute in &message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                        address = Some(IpAddr::V4(*v4));
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                        address = Some(IpAddr::V6(*v6));
                    }
                    NeighbourAttribute::LinkLayerAddress(bytes) => {
                        mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
                    }
                    _ => {}
                }
            }
            if let Some(address) = address {
                let neighbour = Neighbour {
                    mac: mac.filter(|_| is_known),
                    is_fresh,
                    has_failed: header.state == NeighbourState::Failed,
                };
                neighbours.insert((header.ifindex, address), neighbour);
            }
        }
        Ok(neighbours)
    }

    /// The way to an address as the kernel would choose it; `None` if there
    /// is none.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn route(&self, address: IpAddr) -> Result<Option<Route>> {
        let mut request = RouteMessage::default();
        let destination = RouteAddress::from(address);
        (
            request.header.address_family,
            request.header.destination_prefix_length,
        ) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        request
            .attributes
            .push(RouteAttribute::Destination(destination));
        let mut replies = Box::pin(self.netlink.route().get(request).execute());
        match replies.try_next().await {
            Ok(reply) => Ok(reply.as_ref().and_then(route)),
            // ENETUNREACH, EHOSTUNREACH and their like: there is no way.
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("asking for the route to {address}")),
        }
    }

    /// Makes the kernel resolve or confirm a neighbour, as if a packet were
    /// sent to it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn ask_for_neighbour(&self, interface: u32, address: IpAddr) -> Result<()> {
        self.netlink
            .neighbours()
            .add(interface, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
            .with_context(|| format!("asking for neighbour {address}"))
    }

    /// The addresses of all interfaces.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn addresses(&self) -> Result<Vec<InterfaceAddress>> {
        let mut messages = self.netlink.address().get().execute();
        let mut addresses = Vec::new();
        while let Some(message) = messages.try_next().await.context("listing addresses")? {
            let mut local = None;
            let mut address = None;
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(ip) => local = Some(*ip),
                    AddressAttribute::Address(ip) => address = Some(*ip),
                    _ => {}
                }
            }
            if let Some(ip) = local.or(address) {
                addresses.push(InterfaceAddress {
                    interface: message.header.index,
                    ip,
                    prefix: message.header.prefix_len,
                });
            }
        }
        Ok(addresses)
    }

    /// Adds an address as /32 or /128.
    ///
    /// IPv6 without duplicate address detection: a thief must be found out,
    /// not yielded to. And deprecated (RFC 4862, section 5.5.4), so that the
    /// director's own connections do not use it: a backend that holds the VIP
    /// as well would answer itself.
    ///
    /// # Errors
    /// If the kernel refuses; that it is there already is no error.
    pub async fn add_address(&self, interface: u32, address: IpAddr) -> Result<()> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let mut request = self.netlink.address().add(interface, address, prefix);
        if address.is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_preferred = 0;
            lifetime.ifa_valid = u32::MAX;
            message
                .attributes
                .push(AddressAttribute::CacheInfo(lifetime));
        }
        match request.replace().execute().await {
            Ok(()) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("adding the address {address}")),
        }
    }

    /// Removes an address that [`Self::add_address`] added.
    ///
    /// # Errors
    /// If the kernel refuses; that it is gone already is no error.
    pub async fn remove_address(&self, interface: u32, address: IpAddr) -> Result<()> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let mut messages = self
            .netlink
            .address()
            .get()
            .set_link_index_filter(interface)
            .execute();
        while let Some(message) = messages.try_next().await.context("listing addresses")? {
            let is_it = message.attributes.iter().any(|attribute| {
                matches!(attribute, AddressAttribute::Local(ip) | AddressAttribute::Address(ip) if *ip == address)
            });
            if is_it && message.header.prefix_len == prefix && message.header.index == interface {
                return self
                    .netlink
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .with_context(|| format!("removing the address {address}"));
            }
        }
        Ok(())
    }
}

fn interface(message: &LinkMessage) -> Option<(u32, Interface)> {
    let mut interface = Interface {
        is_running: message
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::Running),
        ..Interface::default()
    };
    let mut is_lower_elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(mac) => interface.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Link(lower) => interface.lower = Some(*lower),
            LinkAttribute::Controller(controller) => interface.controller = Some(*controller),
            LinkAttribute::LinkNetNsId(_) => is_lower_elsewhere = true,
            LinkAttribute::LinkInfo(info) => interface.vlan = vlan_tag(info),
            LinkAttribute::Xdp(parts) => {
                interface.xdp = parts.iter().find_map(|part| match part {
                    LinkXdp::Attached(XdpAttached::Driver | XdpAttached::Hardware) => {
                        Some(XdpMode::Native)
                    }
                    LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(XdpMode::Generic),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // The index of an interface in another network namespace.
    if is_lower_elsewhere {
        interface.lower = None;
    }
    (!interface.name.is_empty()).then_some((message.header.index, interface))
}

/// The tag of a VLAN device.
fn vlan_tag(info: &[LinkInfo]) -> Option<Tag> {
    let settings = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(settings)) => Some(settings),
        _ => None,
    })?;
    let id = settings.iter().find_map(|setting| match setting {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })?;
    let protocol = settings.iter().find_map(|setting| match setting {
        InfoVlan::Protocol(protocol) => Some(*protocol),
        _ => None,
    });
    Some(Tag::new(
        u16::from(protocol.unwrap_or(VlanProtocol::Ieee8021Q)),
        id,
    ))
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut interface = None;
    let mut gateway = None;
    let mut source = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => gateway = Some(IpAddr::V6(*v6)),
            // An IPv4 route by way of an IPv6 router, RFC 5549.
            RouteAttribute::Via(RouteVia::Inet(v4)) => gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => source = Some(IpAddr::V4(*v4)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => source = Some(IpAddr::V6(*v6)),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let is_usable = matches!(message.header.kind, RouteType::Unicast | RouteType::Local);
    Some(Route {
        interface: interface.filter(|_| is_usable)?,
        gateway,
        is_local: message.header.kind == RouteType::Local,
        source,
        mtu,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_of_the_other_ip_version_is_a_router() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        let router: IpAddr = "2001:db8::1".parse().unwrap();
        message.attributes = vec![RouteAttribute::Oif(2), RouteAttribute::Via(router.into())];
        let route = route(&message).unwrap();
        assert_eq!((route.interface, route.gateway), (2, Some(router)));
    }
}
