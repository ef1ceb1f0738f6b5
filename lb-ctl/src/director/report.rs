//! What a director says of itself.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use lb_common::backend::{Backend, mode};
use lb_common::counters::{BackendCounters, DropReason};

use super::surroundings::reach;
use super::{Director, key, mode_number, uses_nat};
use crate::dataplane::{Dataplane, ServiceKey};
use crate::model::status::{
    BackendState, BackendStatus, DropStatus, FlowTableStatus, HealthStatus, InterfaceStatus,
    NatStatus, NextHop, PoolStatus, RingStatus, ServiceStatus, XdpMode,
};
use crate::model::{BackendAddress, Config, Mode, Service};
use crate::neighbour::{Resolution, Snapshot, vlan};
use crate::plan::RingSummary;
use crate::reconcile::EngineStatus;

/// Gathers everything.
pub fn status<D: Dataplane>(director: &Director<D>, config: &Config) -> EngineStatus {
    let snapshot = director.resolver.snapshot();
    let mut warnings: Vec<String> = Vec::new();
    if let Some(trouble) = &director.trouble {
        warnings.push(format!("the maps are not what they should be: {trouble}"));
    }
    let interfaces = interfaces(director, &snapshot, &mut warnings);
    let (vips, vip_warnings) = director.keeper.status();
    warnings.extend(vip_warnings);
    warnings.extend(director.router.problems());
    warnings.extend(director.offload.problems());
    let entries = director.state.all_entries();
    let services: Vec<ServiceStatus> = config
        .services
        .iter()
        .map(|s| service(director, s, &entries, &snapshot))
        .collect();
    for service in &services {
        let is_active = |b: &BackendStatus| b.state == BackendState::Active;
        // Without any slots it follows from the status.
        if service.ring.slots > 0 && !service.backends.iter().any(is_active) {
            warnings.push(format!(
                "service {} has no backend that gets new flows: they are dropped",
                service.name
            ));
        }
    }
    let recorded = director.scanner.entries();
    EngineStatus {
        warnings,
        interfaces,
        services,
        vips,
        drops: drops(director),
        flow_table: FlowTableStatus {
            ipv4_entries: recorded.map(|(v4, _)| v4),
            ipv6_entries: recorded.map(|(_, v6)| v6),
            capacity: u64::from(director.dataplane.capacity().flows),
        },
        nat: uses_nat(config).then(|| nat(director, config)),
    }
}

fn nat<D: Dataplane>(director: &Director<D>, config: &Config) -> NatStatus {
    let found = director.collector.found();
    let settings = &config.settings;
    let ports = u64::from(settings.nat_ports.last - settings.nat_ports.first) + 1;
    let pool = |version: u8| {
        let is_of = |address: &&IpAddr| address.is_ipv4() == (version == 4);
        let addresses: Vec<IpAddr> = settings.nat_pool.iter().filter(is_of).copied().collect();
        let ports = ports * addresses.len() as u64;
        let used = found.taken[usize::from(version == 6)];
        (!addresses.is_empty()).then(|| PoolStatus {
            version,
            addresses,
            ports,
            used,
            share: used as f64 / ports as f64,
        })
    };
    NatStatus {
        ipv4_flows: found.flows[0],
        ipv6_flows: found.flows[1],
        capacity: u64::from(director.dataplane.capacity().nat),
        pools: [4, 6].into_iter().filter_map(pool).collect(),
    }
}

fn interfaces<D: Dataplane>(
    director: &Director<D>,
    snapshot: &Snapshot,
    warnings: &mut Vec<String>,
) -> Vec<InterfaceStatus> {
    let mut statuses = Vec::new();
    for attachment in director.dataplane.attachments() {
        let name = attachment.name;
        let Some(interface) = snapshot.interfaces.get(&attachment.index) else {
            warnings.push(format!(
                "interface {name} is gone, and the program with it: start lb-ctl up again"
            ));
            continue;
        };
        if !interface.is_running {
            warnings.push(format!(
                "interface {name} is down: see `ip link show {name}`"
            ));
        }
        let Some(xdp) = interface.xdp else {
            warnings.push(format!(
                "no XDP program runs on {name} any more: somebody detached it; start lb-ctl up again"
            ));
            continue;
        };
        let note = (xdp == XdpMode::Generic).then(|| {
            let why = attachment.generic_because;
            let why = why.unwrap_or_else(|| "attached so by an earlier lb-ctl up".to_owned());
            format!("an skb is allocated for every packet, which costs most of the speed ({why})")
        });
        statuses.push(InterfaceStatus {
            name: interface.name.clone(),
            index: attachment.index,
            xdp,
            note,
        });
    }
    statuses
}

fn drops<D: Dataplane>(director: &Director<D>) -> Vec<DropStatus> {
    DropReason::ALL
        .iter()
        .map(|&reason| DropStatus {
            reason: reason.name().to_owned(),
            count: director.dataplane.drops(reason).unwrap_or_default(),
            meaning: reason.meaning().to_owned(),
        })
        .collect()
}

fn service<D: Dataplane>(
    director: &Director<D>,
    service: &Service,
    all_entries: &HashMap<ServiceKey, Vec<(u32, &Backend)>>,
    snapshot: &Snapshot,
) -> ServiceStatus {
    let key = key(service);
    let ring = director.state.ring_summary(&key).unwrap_or_default();
    let entries: HashMap<BackendAddress, u32> = all_entries
        .get(&key)
        .into_iter()
        .flatten()
        .map(|&(id, entry)| {
            let ip: IpAddr = entry.address.into();
            let port = Some(u16::from_be(entry.port)).filter(|&port| port != 0);
            (BackendAddress { ip, port }, id)
        })
        .collect();
    let desired = service.backends.iter().map(|b| (b.address, Some(b.weight)));
    let mut leaving: Vec<_> = entries
        .keys()
        .filter(|address| service.backend(address).is_none())
        .map(|&address| (address, None))
        .collect();
    leaving.sort();
    let backends: Vec<BackendStatus> = desired
        .chain(leaving)
        .map(|(address, weight)| {
            let id = entries.get(&address).copied();
            backend(director, service, address, weight, id, &ring, snapshot)
        })
        .collect();
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
        ring: RingStatus {
            slots: ring.settled + ring.moving + ring.pinned,
            generation: ring.generation,
            settled: ring.settled,
            moving: ring.moving,
            pinned: ring.pinned,
        },
        mtu: backends.iter().filter_map(|b| b.mtu).min(),
        notes: notes(&backends)
            .into_iter()
            .chain(redirection(&backends, &ports(director, snapshot)))
            .collect(),
        packets: backends.iter().map(|b| b.packets).sum(),
        bytes: backends.iter().map(|b| b.bytes).sum(),
        flows: backends.iter().map(|b| b.flows).sum(),
        backends,
    }
}

/// A backend; without a weight it is no longer desired.
fn backend<D: Dataplane>(
    director: &Director<D>,
    service: &Service,
    address: BackendAddress,
    weight: Option<u32>,
    id: Option<u32>,
    ring: &RingSummary,
    snapshot: &Snapshot,
) -> BackendStatus {
    let health = director.health.status(&(service.name.clone(), address));
    let reach = reach(service.mode, address.ip, snapshot, &director.attached);
    let (state, reason) = state(weight, health.as_ref(), reach.err());
    let slots = ring.settled + ring.moving + ring.pinned;
    let owned = id.and_then(|id| ring.owned.get(&id)).copied();
    let counters: BackendCounters = id
        .and_then(|id| director.dataplane.counters(id).ok())
        .unwrap_or_default();
    BackendStatus {
        address,
        weight: weight.unwrap_or(0),
        state,
        reason,
        share: f64::from(owned.unwrap_or(0)) / f64::from(slots.max(1)),
        health,
        next_hop: next_hop(address.ip, snapshot),
        mtu: (service.mode == Mode::Tun)
            .then(|| usable_mtu(address.ip, snapshot))
            .flatten(),
        packets: counters.packets,
        bytes: counters.bytes,
        flows: counters.flows,
        reply_packets: counters.reply_packets,
        reply_bytes: counters.reply_bytes,
    }
}

fn state(
    weight: Option<u32>,
    health: Option<&HealthStatus>,
    unreachable: Option<String>,
) -> (BackendState, Option<String>) {
    if let Some(health) = health.filter(|health| !health.up) {
        let reason = health.last_error.clone();
        let reason = reason.unwrap_or_else(|| "its first probe is still out".to_owned());
        return (BackendState::Down, Some(reason));
    }
    match (weight, unreachable) {
        (None, why) => (BackendState::Removed, why),
        (Some(_), Some(why)) => (BackendState::Unresolved, Some(why)),
        (Some(0), None) => (BackendState::Draining, None),
        (Some(_), None) => (BackendState::Active, None),
    }
}

fn next_hop(address: IpAddr, snapshot: &Snapshot) -> Option<NextHop> {
    match snapshot.resolutions.get(&address)? {
        Resolution::Known(next_hop, _) => Some(NextHop {
            mac: next_hop.mac.map(|byte| format!("{byte:02x}")).join(":"),
            interface: snapshot.interfaces.get(&next_hop.interface)?.name.clone(),
        }),
        Resolution::Unknown(_) | Resolution::Silent(_) => None,
    }
}

/// The largest packet that fits into the path to a backend once it is
/// encapsulated.
fn usable_mtu(address: IpAddr, snapshot: &Snapshot) -> Option<u16> {
    match snapshot.resolutions.get(&address)? {
        Resolution::Known(next_hop, _) => Some(next_hop.mtu.saturating_sub(overhead(address))),
        Resolution::Unknown(_) | Resolution::Silent(_) => None,
    }
}

/// Bytes of the outer header to a backend.
const fn overhead(address: IpAddr) -> u16 {
    mode::overhead(mode_number(Mode::Tun, address))
}

/// Names of the interfaces on which the program runs, and of their VLANs.
fn ports<D: Dataplane>(director: &Director<D>, snapshot: &Snapshot) -> BTreeSet<String> {
    vlan::ports(&snapshot.interfaces, &director.attached)
        .iter()
        .filter_map(|index| Some(snapshot.interfaces.get(index)?.name.clone()))
        .collect()
}

/// What to know of a service with backends behind interfaces on which the
/// program does not run. The kernel hands packets over to a driver after the
/// program has ended: what the driver refuses is lost and no drop reason's.
fn redirection(backends: &[BackendStatus], attached: &BTreeSet<String>) -> Option<String> {
    let next_hops = backends.iter().filter_map(|b| b.next_hop.as_ref());
    let others: BTreeSet<&str> = next_hops
        .map(|next_hop| next_hop.interface.as_str())
        .filter(|name| !attached.contains(*name))
        .collect();
    if others.is_empty() {
        return None;
    }
    let others = Vec::from_iter(others);
    Some(format!(
        "packets leave by {}, where lb-ctl is not attached: some drivers send what XDP redirects to \
         them only while they run an XDP program, others (bridges) never. If \
         nothing arrives at the backends, start lb-ctl up with --interface {} as well",
        others.join(", "),
        others.join(" --interface ")
    ))
}

/// What to know of a service in `tun` mode.
fn notes(backends: &[BackendStatus]) -> Vec<String> {
    /// Full-size packets of clients on Ethernet.
    const FULL: u16 = 1500;
    let tight = |b: &&BackendStatus| b.mtu.is_some_and(|mtu| mtu < FULL);
    let Some(backend) = backends.iter().filter(tight).min_by_key(|b| b.mtu) else {
        return Vec::new();
    };
    let needed = FULL + overhead(backend.address.ip);
    vec![format!(
        "packets of more than {} bytes do not fit into the path to {} once they are encapsulated; \
         clients' TCP is told by ICMP and by the MSS that lb-agent lowers on the backends. To carry \
         full-size packets of {FULL} bytes, raise the MTU of the path from director to backends \
         to {needed}",
        backend.mtu.unwrap_or_default(),
        backend.address
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(interface: &str) -> BackendStatus {
        let next_hop = NextHop {
            mac: "02:00:00:00:00:15".to_owned(),
            interface: interface.to_owned(),
        };
        BackendStatus {
            address: "203.0.113.21".parse().unwrap(),
            weight: 1,
            state: BackendState::Active,
            reason: None,
            share: 1.0,
            health: None,
            next_hop: Some(next_hop),
            mtu: None,
            packets: 0,
            bytes: 0,
            flows: 0,
            reply_packets: 0,
            reply_bytes: 0,
        }
    }

    #[test]
    fn interfaces_without_the_program_are_named() {
        let attached = BTreeSet::from(["eth0".to_owned()]);
        assert_eq!(redirection(&[behind("eth0")], &attached), None);
        let backends = ["eth0", "eth1", "eth1", "eth2"].map(behind);
        let note = redirection(&backends, &attached).unwrap();
        assert!(note.contains("leave by eth1, eth2,"), "{note}");
        assert!(note.contains("--interface eth1 --interface eth2"), "{note}");
    }
}
