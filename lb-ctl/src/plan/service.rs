//! Plans one service: its backends' entries, then its ring.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use lb_common::backend::{Backend, mode, state};
use lb_common::ring as abi_ring;
use lb_common::service::ServiceValue;

use super::ring::Ring;
use super::{
    Condition, DesiredBackend, DesiredService, Full, Ops, ScanResult, ServiceState, State,
    free_entry,
};
use crate::dataplane::{Op, ServiceKey};
use crate::maglev::{self, Candidate};

/// Looks entries up by what they are of, and finds free ones.
pub(super) struct Index {
    by_identity: HashMap<(u32, IpAddr, u16), u32>,
    free: BTreeSet<u32>,
    service_ids: BTreeSet<u32>,
}

impl Index {
    pub(super) fn of(state: &State) -> Self {
        let mut free: BTreeSet<u32> = (1..state.capacity.backends).collect();
        let mut by_identity = HashMap::new();
        let services: BTreeSet<u32> = state.services.values().map(|s| s.value.id).collect();
        let mut service_ids = services.clone();
        for (&id, entry) in &state.backends {
            if entry.state == state::FREE {
                continue;
            }
            free.remove(&id);
            // Entries whose service is gone are about to be freed: neither they
            // nor that service's id may be taken for those of a new one.
            service_ids.insert(entry.service);
            if services.contains(&entry.service) {
                let port = u16::from_be(entry.port);
                by_identity.insert((entry.service, entry.address.into(), port), id);
            }
        }
        Self {
            by_identity,
            free,
            service_ids,
        }
    }

    fn new_service_id(&mut self) -> u32 {
        let id = self.service_ids.last().map_or(1, |last| last + 1);
        self.service_ids.insert(id);
        id
    }
}

pub(super) fn plan_service(
    state: &mut State,
    index: &mut Index,
    key: &ServiceKey,
    (desired, flags): (&DesiredService, u32),
    scan: Option<&ScanResult>,
    ops: &mut Ops,
    now: u32,
) -> Result<(), Full> {
    let same_version = |other: &&ServiceKey| other.vip.is_ipv4() == key.vip.is_ipv4();
    if !state.services.contains_key(key)
        && state.services.keys().filter(same_version).count()
            >= lb_common::limits::MAX_SERVICES as usize
    {
        return Err(Full::Services(lb_common::limits::MAX_SERVICES));
    }
    let mut service = state
        .services
        .remove(key)
        .unwrap_or_else(|| ServiceState::new(index.new_service_id()));
    let published = service.value;
    service.value.hash_key = desired.hash_key;
    service.value.idle_timeout = desired.idle_timeout;
    service.value.flags = flags;

    let scheduled = plan_entries(state, index, &service, desired, ops);
    let wanted = desired.backends.iter().filter(|b| !b.removed);
    let mut slots = maglev::ring_size(wanted.map(|b| b.weight));
    if slots == 0 && !desired.backends.is_empty() {
        // The last backends are leaving: the ring remembers their flows.
        slots = service.ring.slots().len() as u32;
    }
    let target_of = (
        scheduled
            .iter()
            .map(|s| (s.id, s.candidate.weight))
            .collect(),
        slots,
    );
    let is_current = service.target_of.as_ref() == Some(&target_of);
    if !(is_current && service.ring.is_settled()) {
        let target = if is_current {
            // Whatever its state, a slot names the owner that it was given.
            service.ring.owners(slots)
        } else {
            target(&scheduled, slots)
        };
        service.target_of = Some(target_of);
        let backends = &state.backends;
        let alive = |id: u32| backends.get(&id).is_some_and(|b| b.state == state::ALIVE);
        let busy = scan.and_then(|s| s.busy(key, published.generation));
        let ring = service.ring.step(
            &target,
            &alive,
            busy,
            now,
            now.wrapping_add(desired.idle_timeout),
        );
        if ring.is_published_like(&service.ring) {
            service.ring = ring;
        } else {
            publish_ring(state, &mut service, ring, ops, now);
        }
    }
    if service.value != published {
        ops.publish.push(Op::PutService(*key, service.value));
    }
    free_finished(state, index, &service, desired, key, scan, ops);
    state.services.insert(*key, service);
    Ok(())
}

/// A backend that gets new flows.
struct Scheduled {
    id: u32,
    candidate: Candidate,
}

/// Brings the entries of a service's backends up to date and returns those
/// that are to be in the ring, in the order of their identity.
fn plan_entries(
    state: &mut State,
    index: &mut Index,
    service: &ServiceState,
    desired: &DesiredService,
    ops: &mut Ops,
) -> Vec<Scheduled> {
    let mut scheduled = Vec::new();
    for backend in &desired.backends {
        let identity = (service.value.id, backend.address, backend.port);
        let id = match index.by_identity.get(&identity) {
            Some(&id) => id,
            None if backend.removed => continue,
            None => {
                let Some(id) = index.free.pop_first() else {
                    ops.deferred = Some(Full::Backends(state.capacity.backends - 1));
                    continue;
                };
                index.by_identity.insert(identity, id);
                ops.before.push(Op::ResetCounters(id));
                id
            }
        };
        let before = state.backends.get(&id).copied().unwrap_or_default();
        let after = entry(&before, service.value.id, backend);
        if after != before {
            state.backends.insert(id, after);
            let list = if after.state == state::ALIVE {
                &mut ops.before
            } else {
                &mut ops.after
            };
            list.push(Op::PutBackend(id, after));
        }
        let is_reachable = match backend.condition {
            Condition::Up(_) => true,
            Condition::Pending => after.state == state::ALIVE,
            Condition::Down | Condition::Unresolved => false,
        };
        if is_reachable && backend.weight > 0 && !backend.removed {
            scheduled.push(Scheduled {
                id,
                candidate: Candidate {
                    identity: maglev_identity(backend),
                    weight: backend.weight,
                },
            });
        }
    }
    scheduled.sort_by_key(|s| s.candidate);
    scheduled
}

/// The entry that a backend should have, given the one that it has.
fn entry(before: &Backend, service: u32, backend: &DesiredBackend) -> Backend {
    let mut entry = Backend {
        address: backend.address.into(),
        port: backend.port.to_be(),
        mode: backend.mode,
        service,
        ..*before
    };
    if let Some((source, spread)) = backend.tunnel_source {
        entry.source = source.into();
        entry.source_spread = spread;
    }
    match backend.condition {
        Condition::Up(next_hop) => {
            entry.state = state::ALIVE;
            entry.interface = next_hop.interface;
            entry.set_macs(next_hop.mac, next_hop.source_mac);
            entry.mtu = next_hop.mtu.saturating_sub(mode::overhead(backend.mode));
        }
        Condition::Unresolved | Condition::Pending if before.state == state::ALIVE => {}
        Condition::Unresolved | Condition::Pending | Condition::Down => {
            entry.state = state::DEAD;
        }
    }
    if before.state == state::ALIVE && entry.state == state::DEAD {
        entry.generation = before.generation.wrapping_add(1);
    }
    entry
}

fn maglev_identity(backend: &DesiredBackend) -> [u8; 18] {
    let address = match backend.address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut identity = [0; 18];
    identity[..16].copy_from_slice(&address.octets());
    identity[16..].copy_from_slice(&backend.port.to_be_bytes());
    identity
}

/// The entry that should own each slot, 0 for nobody.
fn target(scheduled: &[Scheduled], slots: u32) -> Vec<u32> {
    if slots == 0 {
        return Vec::new();
    }
    let candidates: Vec<_> = scheduled.iter().map(|s| s.candidate).collect();
    maglev::build(&candidates, slots)
        .into_iter()
        .map(|owner| owner.map_or(0, |i| scheduled[i as usize].id))
        .collect()
}

/// Writes a ring to fresh blocks and refers the service to it, if there is room.
fn publish_ring(
    state: &mut State,
    service: &mut ServiceState,
    ring: Ring,
    ops: &mut Ops,
    now: u32,
) {
    let blocks = ring.to_blocks();
    let count = blocks.len() as u32;
    let Some(offset) = state.space.allocate(count) else {
        ops.deferred = Some(Full::Ring(count));
        service.target_of = None;
        return;
    };
    ops.before.push(Op::WriteRing(offset, blocks));
    state
        .space
        .release(service.value.ring_offset, service.ring.blocks(), now);
    service.value.ring_offset = offset;
    service.value.slots = ring.slots().len() as u32;
    service.value.generation = service.value.generation.wrapping_add(1);
    service.ring = ring;
    debug_assert!(count >= abi_ring::blocks(service.value.slots));
}

/// Frees entries of removed backends that no slot and no flow refers to.
fn free_finished(
    state: &mut State,
    index: &Index,
    service: &ServiceState,
    desired: &DesiredService,
    key: &ServiceKey,
    scan: Option<&ScanResult>,
    ops: &mut Ops,
) {
    for backend in desired.backends.iter().filter(|b| b.removed) {
        let identity = (service.value.id, backend.address, backend.port);
        let Some(&id) = index.by_identity.get(&identity) else {
            continue;
        };
        let is_dead = state
            .backends
            .get(&id)
            .is_none_or(|b| b.state == state::DEAD);
        let has_no_flows = scan.is_some_and(|s| s.has_no_flows(key, service.value.generation, id));
        if !service.ring.refers_to(id) && (is_dead || has_no_flows) {
            free_entry(state, id, ops);
        }
    }
}

impl ServiceState {
    fn new(id: u32) -> Self {
        Self {
            value: ServiceValue {
                id,
                ..ServiceValue::default()
            },
            ring: Ring::default(),
            target_of: None,
        }
    }
}
