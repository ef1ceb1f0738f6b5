//! Reading interfaces, addresses and routes, and changing addresses.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context, anyhow};
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle};
use rtnetlink::{Handle, LinkIp6Tnl, LinkIpIp, LinkSit, LinkUnspec, RouteMessageBuilder};

use crate::facts::{Facts, Link, Route, Xdp};
use crate::prefix::Prefix;
use crate::tunnel::device::Device;
use crate::tunnel::programs::FILTER_PRIORITY;
use crate::tunnel::status::Path;
use crate::vip::{Held, Scope};

const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EADDRNOTAVAIL: i32 = 99;

/// Everything of [`Facts`] that netlink tells.
pub async fn read(handle: &Handle) -> anyhow::Result<Facts> {
    let links: Vec<Link> = handle
        .link()
        .get()
        .execute()
        .try_filter_map(|message| async move { Ok(link(&message)) })
        .try_collect()
        .await
        .context("cannot list the interfaces")?;
    let names: HashMap<u32, String> = links
        .iter()
        .map(|link| (link.index, link.name.clone()))
        .collect();
    Ok(Facts {
        addresses: addresses(handle, &names).await?,
        routes: routes(handle, &names).await?,
        proxies: proxies(handle, &names).await?,
        links,
        ..Facts::default()
    })
}

/// Index of the interface of that name, if there is one.
pub async fn index(handle: &Handle, name: &str) -> anyhow::Result<Option<u32>> {
    Ok(find(handle, name).await?.map(|link| link.index))
}

/// The interface of that name, if there is one.
pub async fn find(handle: &Handle, name: &str) -> anyhow::Result<Option<Link>> {
    let mut links = Box::pin(handle.link().get().match_name(name).execute());
    match links.try_next().await {
        Ok(message) => Ok(message.as_ref().and_then(link)),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -ENODEV => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot look up the interface {name}")),
    }
}

/// Adds an address. That it is there already is no error.
pub async fn add(handle: &Handle, index: u32, held: &Held) -> anyhow::Result<()> {
    let mut request = handle.address().add(index, held.address, held.prefix);
    let header = &mut request.message_mut().header;
    header.scope = held.scope.0.into();
    // Nothing to detect on `lo`, and nobody to wait for.
    header.flags |= AddressHeaderFlags::Nodad;
    ignoring(request.execute().await, EEXIST).with_context(|| format!("cannot add {held}"))
}

/// Removes an address. That it is gone already is no error.
pub async fn remove(handle: &Handle, index: u32, held: &Held) -> anyhow::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = match held.address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = held.prefix;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(held.address),
        AddressAttribute::Address(held.address),
    ];
    let result = handle.address().del(message).execute().await;
    ignoring(result, EADDRNOTAVAIL).with_context(|| format!("cannot remove {held}"))
}

/// Makes a tunnel device that takes packets from anybody. One that is there
/// already is no error.
pub async fn add_device(
    handle: &Handle,
    device: Device,
    parent: Option<u32>,
) -> anyhow::Result<()> {
    let name = device.name();
    let message = match device {
        Device::Ipip => LinkIpIp::new(name).collect_metadata(true).build(),
        Device::Ip6Tnl => LinkIp6Tnl::new(name).collect_metadata(true).build(),
        Device::Sit => LinkSit::new(name).dev(parent.unwrap_or_default()).build(),
    };
    let result = handle.link().add(message).execute().await;
    ignoring(result, EEXIST).with_context(|| {
        format!(
            "cannot make the tunnel device {name} (type {}, module {})",
            device.kind(),
            device.module()
        )
    })
}

/// Sets an interface up.
pub async fn set_up(handle: &Handle, name: &str) -> anyhow::Result<()> {
    let message = LinkUnspec::new_with_name(name).up().build();
    let result = handle.link().set(message).execute().await;
    result.with_context(|| format!("cannot set {name} up"))
}

/// Removes a tunnel device.
pub async fn remove_device(handle: &Handle, index: u32, device: Device) -> anyhow::Result<()> {
    let result = handle.link().del(index).execute().await;
    ignoring(result, ENODEV)
        .with_context(|| format!("cannot remove the tunnel device {}", device.name()))
}

/// Whether an interface has our filter on its way out, where there is no tcx.
pub async fn has_filter(handle: &Handle, index: u32) -> anyhow::Result<bool> {
    let mut filters = handle.traffic_filter(i32::try_from(index)?);
    let mut messages = Box::pin(filters.get().egress().execute());
    while let Ok(Some(message)) = messages.try_next().await {
        let is_bpf =
            |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "bpf");
        let priority = message.header.info >> 16;
        if priority == u32::from(FILTER_PRIORITY) && message.attributes.iter().any(is_bpf) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes the place for filters from an interface if none is left there.
pub async fn remove_empty_clsact(handle: &Handle, index: u32) -> anyhow::Result<()> {
    let index = i32::try_from(index)?;
    for is_egress in [false, true] {
        let mut filters = handle.traffic_filter(index);
        let request = if is_egress {
            filters.get().egress()
        } else {
            filters.get().ingress()
        };
        let mut messages = Box::pin(request.execute());
        if let Ok(Some(_)) = messages.try_next().await {
            return Ok(());
        }
    }
    let mut request = handle.qdisc().del(index);
    request.message_mut().header.parent = TcHandle::CLSACT;
    // That it is gone already, with the interface, is no error.
    let _ = request.execute().await;
    Ok(())
}

/// The way to a director. That there is none is no error.
pub async fn path(handle: &Handle, director: Prefix, links: &[Link]) -> Path {
    let mut path = Path {
        director,
        interface: None,
        mtu: None,
    };
    let request = match director.first_host() {
        IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(v4, 32)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(v6, 128)
            .build(),
    };
    let mut answers = Box::pin(handle.route().get(request).execute());
    let Ok(Some(answer)) = answers.try_next().await else {
        return path;
    };
    let mut known = None;
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => {
                let link = links.iter().find(|link| link.index == *index);
                path.interface = link.map(|link| link.name.clone());
                path.mtu = link.map(|link| link.mtu);
            }
            RouteAttribute::Metrics(metrics) => {
                known = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if let (Some(mtu), Some(known)) = (path.mtu, known) {
        path.mtu = Some(mtu.min(known));
    }
    path
}

async fn addresses(handle: &Handle, names: &HashMap<u32, String>) -> anyhow::Result<Vec<Held>> {
    let messages: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .context("cannot list the addresses")?;
    Ok(messages.iter().filter_map(|m| held(m, names)).collect())
}

async fn routes(handle: &Handle, names: &HashMap<u32, String>) -> anyhow::Result<Vec<Route>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let messages: Vec<RouteMessage> = handle
            .route()
            .get(request)
            .execute()
            .try_collect()
            .await
            .context("cannot list the routes")?;
        found.extend(messages.iter().filter_map(|m| route(m, names)));
    }
    Ok(found)
}

async fn proxies(
    handle: &Handle,
    names: &HashMap<u32, String>,
) -> anyhow::Result<Vec<(IpAddr, String)>> {
    let mut found = Vec::new();
    let mut messages = Box::pin(handle.neighbours().get().proxies().execute());
    while let Some(message) = messages
        .try_next()
        .await
        .context("cannot list the proxy entries")?
    {
        let Some(name) = names.get(&message.header.ifindex) else {
            continue;
        };
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    found.push((IpAddr::V4(*v4), name.clone()));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    found.push((IpAddr::V6(*v6), name.clone()));
                }
                _ => {}
            }
        }
    }
    Ok(found)
}

fn link(message: &LinkMessage) -> Option<Link> {
    let name = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some(Link {
        index: message.header.index,
        name,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: message
            .attributes
            .iter()
            .find_map(|a| match a {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
            .unwrap_or_default(),
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        kind: message.attributes.iter().find_map(kind),
        xdp: message.attributes.iter().find_map(xdp),
    })
}

fn kind(attribute: &LinkAttribute) -> Option<String> {
    let LinkAttribute::LinkInfo(infos) = attribute else {
        return None;
    };
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

fn xdp(attribute: &LinkAttribute) -> Option<Xdp> {
    let LinkAttribute::Xdp(parts) = attribute else {
        return None;
    };
    let is_generic = |part: &LinkXdp| matches!(part, LinkXdp::Attached(XdpAttached::SocketBuffer));
    let program = parts.iter().find_map(|part| match part {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    })?;
    Some(Xdp {
        program,
        generic: parts.iter().any(is_generic),
    })
}

fn held(message: &AddressMessage, names: &HashMap<u32, String>) -> Option<Held> {
    let (mut own, mut other) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => own = Some(*address),
            // The peer's, where there is one: then `Local` is given too.
            AddressAttribute::Address(address) => other = Some(*address),
            _ => {}
        }
    }
    Some(Held {
        address: own.or(other)?,
        prefix: message.header.prefix_len,
        interface: names.get(&message.header.index)?.clone(),
        scope: Scope(message.header.scope.into()),
    })
}

fn route(message: &RouteMessage, names: &HashMap<u32, String>) -> Option<Route> {
    let mut table = u32::from(message.header.table);
    let mut metric = 0;
    let mut indices = Vec::new();
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => indices.push(*index),
            RouteAttribute::MultiPath(hops) => {
                indices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => destination = IpAddr::V4(*v4),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => destination = IpAddr::V6(*v6),
            _ => {}
        }
    }
    let mut interfaces: Vec<String> = indices
        .iter()
        .filter_map(|index| names.get(index).cloned())
        .collect();
    interfaces.dedup();
    let ours = table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && message.header.kind == RouteType::Unicast
        && !interfaces.is_empty();
    ours.then_some(Route {
        destination,
        prefix: message.header.destination_prefix_length,
        interfaces,
        metric,
    })
}

fn ignoring(result: Result<(), rtnetlink::Error>, code: i32) -> anyhow::Result<()> {
    match result {
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -code => Ok(()),
        Err(rtnetlink::Error::NetlinkError(e)) => Err(anyhow!(e.to_io())),
        Err(e) => Err(anyhow!(e)),
        Ok(()) => Ok(()),
    }
}
