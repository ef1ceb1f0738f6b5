//! From the desired to the actual: which writes bring the maps there. No I/O.
//!
//! [`State`] is what the maps hold; [`plan`] changes it and returns the writes
//! that change the maps likewise. If a write fails, the state is read anew
//! with [`State::from_dump`] and planned again: nothing depends on history
//! that is not in the maps, but for the time at which a moving slot began to
//! move. After a restart it begins again, which only prolongs it.

mod ring;
mod scan;
mod space;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use lb_common::backend::{Backend, state};
use lb_common::service::{LocalMacKey, ServiceValue};
use lb_common::settings::Settings;
use lb_common::{ABI_VERSION, ring as abi_ring};

use crate::dataplane::{Capacity, Dump, Op, ServiceKey};
use crate::maglev::{self, Candidate};
use ring::Ring;
pub use scan::{ScanRequest, ScanResult};
use space::Space;

/// What the maps should hold.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// The services.
    pub services: BTreeMap<ServiceKey, DesiredService>,
    /// MAC addresses of the director, by interface.
    pub local_macs: BTreeSet<(u32, [u8; 6])>,
    /// Interfaces to which packets can be redirected.
    pub interfaces: BTreeSet<u32>,
}

/// A service as it should be.
#[derive(Clone, Debug)]
pub struct DesiredService {
    /// Key of the flow hash.
    pub hash_key: u64,
    /// Seconds after which a recorded flow is forgotten; also how long a slot
    /// keeps moving.
    pub idle_timeout: u32,
    /// The backends, and those that are no longer wanted but have entries.
    pub backends: Vec<DesiredBackend>,
}

/// A backend as it should be.
#[derive(Clone, Debug)]
pub struct DesiredBackend {
    /// RIP.
    pub address: IpAddr,
    /// In NAT mode the port, host byte order; otherwise 0.
    pub port: u16,
    /// One of [`lb_common::backend::mode`].
    pub mode: u8,
    /// Share of new flows; 0 drains.
    pub weight: u32,
    /// In TUN mode the outer source address, and how many of its lowest bits
    /// vary from flow to flow.
    pub tunnel_source: Option<(IpAddr, u8)>,
    /// Not wanted any more: its entry goes when its last flow has.
    pub removed: bool,
    /// Whether packets can reach it.
    pub condition: Condition,
}

/// Whether packets can reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// They can, by this next hop.
    Up(NextHop),
    /// The health check says that it is dead.
    Down,
    /// Its next hop is not known, or not any more. Its flows are still sent
    /// where they were sent last: the neighbour may only be slow to answer.
    Unresolved,
}

/// How to reach a backend on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the interface.
    pub interface: u32,
    /// MAC of the next hop.
    pub mac: [u8; 6],
    /// MAC of the interface.
    pub source_mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// The address of this host that packets are sent from.
    pub source: Option<IpAddr>,
}

/// What the maps hold.
#[derive(Clone, Debug)]
pub struct State {
    services: BTreeMap<ServiceKey, ServiceState>,
    backends: BTreeMap<u32, Backend>,
    vips: BTreeSet<IpAddr>,
    local_macs: BTreeSet<(u32, [u8; 6])>,
    interfaces: BTreeSet<u32>,
    settings: Settings,
    space: Space,
    capacity: Capacity,
}

/// What the maps hold of a service.
#[derive(Clone, Debug)]
struct ServiceState {
    value: ServiceValue,
    ring: Ring,
    /// What the ring was last computed from: entries with weights, and size.
    target_of: Option<(Vec<(u32, u32)>, u32)>,
}

/// The maps have no room for what is desired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Of backend entries.
    #[error(
        "all {0} backend entries are in use, some of them perhaps by backends that are leaving, trying again in a second; if that does not help, start lb-ctl anew with a larger --max-backends after `lb-ctl down`"
    )]
    Backends(u32),
    /// Of ring blocks.
    #[error(
        "the ring map has no {0} blocks in a row left, trying again in a second; if that does not help, start lb-ctl anew with a larger --max-backends after `lb-ctl down`"
    )]
    Ring(u32),
    /// Of services.
    #[error("all {0} services of one IP version are in use")]
    Services(u32),
}

impl State {
    /// The state that a dump shows. Slots that move begin anew at `now`.
    pub fn from_dump(dump: Dump, capacity: Capacity, now: u32) -> Self {
        let mut space = Space::new(capacity.ring_blocks);
        let services = dump
            .services
            .into_iter()
            .map(|(key, (value, slots, old))| {
                let until = now.wrapping_add(value.idle_timeout);
                let ring = Ring::from_slots(slots, &old, until);
                space.take(value.ring_offset, ring.blocks());
                let state = ServiceState {
                    value,
                    ring,
                    target_of: None,
                };
                (key, state)
            })
            .collect();
        Self {
            services,
            backends: dump.backends,
            vips: dump.vips,
            local_macs: dump.local_macs,
            interfaces: dump.interfaces,
            settings: dump.settings,
            space,
            capacity,
        }
    }

    /// Index and entry of each of the service's backends that has one.
    pub fn entries(&self, key: &ServiceKey) -> Vec<(u32, &Backend)> {
        let Some(service) = self.services.get(key) else {
            return Vec::new();
        };
        let of_service =
            |backend: &Backend| backend.state != state::FREE && backend.service == service.value.id;
        self.backends
            .iter()
            .filter(|(_, backend)| of_service(backend))
            .map(|(&id, backend)| (id, backend))
            .collect()
    }

    /// Likewise for all services, in one go.
    pub fn all_entries(&self) -> HashMap<ServiceKey, Vec<(u32, &Backend)>> {
        let keys: HashMap<u32, ServiceKey> = self
            .services
            .iter()
            .map(|(&key, service)| (service.value.id, key))
            .collect();
        let mut entries: HashMap<_, Vec<_>> = HashMap::new();
        for (&id, backend) in &self.backends {
            if backend.state != state::FREE
                && let Some(&key) = keys.get(&backend.service)
            {
                entries.entry(key).or_default().push((id, backend));
            }
        }
        entries
    }

    /// Number of slots in each state, and the ring's generation.
    pub fn ring_summary(&self, key: &ServiceKey) -> Option<RingSummary> {
        let service = self.services.get(key)?;
        let mut summary = RingSummary {
            generation: service.value.generation,
            ..RingSummary::default()
        };
        for slot in service.ring.slots() {
            if slot.is_moving() {
                summary.moving += 1;
            } else if slot.is_pinned() {
                summary.pinned += 1;
            } else {
                summary.settled += 1;
            }
            *summary.owned.entry(slot.backend()).or_default() += 1;
        }
        Some(summary)
    }

    /// Whether time alone will change something: slots that are not settled,
    /// or entries that wait for their last flow.
    pub fn is_in_transition(&self, desired: &Desired) -> bool {
        self.services.values().any(|s| !s.ring.is_settled()) || desired.has_removed()
    }

    /// Whether that depends on which flows are recorded.
    pub fn needs_scan(&self, desired: &Desired) -> bool {
        self.services.values().any(|s| s.ring.has_pinned()) || desired.has_removed()
    }

    /// Whether this backend of a service has an entry that is alive.
    pub fn is_alive(&self, key: &ServiceKey, address: IpAddr, port: u16) -> Option<bool> {
        let entries = self.entries(key);
        let (_, entry) = entries
            .iter()
            .find(|(_, b)| b.address == address.into() && u16::from_be(b.port) == port)?;
        Some(entry.state == state::ALIVE)
    }
}

impl Desired {
    fn has_removed(&self) -> bool {
        let services = self.services.values();
        services.flat_map(|s| &s.backends).any(|b| b.removed)
    }
}

/// Slots of a ring by state and by owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingSummary {
    /// Slots that are settled.
    pub settled: u32,
    /// Slots that are moving.
    pub moving: u32,
    /// Slots that are pinned.
    pub pinned: u32,
    /// Counts the service's rings.
    pub generation: u32,
    /// Slots by index of the backend entry; 0 for nobody.
    pub owned: HashMap<u32, u32>,
}

/// Plans the way from `state` to `desired`, and changes `state` accordingly.
///
/// Orders the writes so that packets in between fare no worse than before or
/// after: entries are alive before a ring names them, and die after none does.
///
/// `scan` says which flows are recorded, if that has been looked up.
///
/// A ring that has no room now keeps its predecessor, and is planned again
/// when blocks that other rings gave back have rested. A backend for which
/// there is no entry waits for one: what else there is to do must not, or no
/// entry would ever be freed.
///
/// # Errors
/// If the maps are too small. `state` has then changed in part: read it anew.
pub fn plan(
    state: &mut State,
    desired: &Desired,
    scan: Option<&ScanResult>,
    now: u32,
) -> Result<Plan, Full> {
    let mut ops = Ops::default();
    state.space.reclaim(now);
    plan_surroundings(state, desired, &mut ops);
    // Before any entry is freed: while these writes are made, packets may still
    // be sent by it, so it is for a later plan to give it away.
    let mut index = Index::of(state);
    let gone: Vec<_> = state
        .services
        .keys()
        .filter(|key| !desired.services.contains_key(key))
        .copied()
        .collect();
    for key in gone {
        remove_service(state, &key, &mut ops, now);
    }
    free_orphans(state, &mut ops);
    for (key, service) in &desired.services {
        plan_service(state, &mut index, key, service, scan, &mut ops, now)?;
    }
    Ok(ops.in_order())
}

/// What to write, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The writes.
    pub ops: Vec<Op>,
    /// Why some ring or backend could not be planned yet.
    pub deferred: Option<Full>,
}

/// Writes in the order in which they are made.
#[derive(Default)]
struct Ops {
    before: Vec<Op>,
    publish: Vec<Op>,
    after: Vec<Op>,
    deferred: Option<Full>,
}

impl Ops {
    fn in_order(mut self) -> Plan {
        self.before.append(&mut self.publish);
        self.before.append(&mut self.after);
        Plan {
            ops: self.before,
            deferred: self.deferred,
        }
    }
}

/// Everything but services and backends.
fn plan_surroundings(state: &mut State, desired: &Desired, ops: &mut Ops) {
    let mac_key = |&(interface, mac): &(u32, [u8; 6])| LocalMacKey::new(interface, mac.into());
    for added in desired.local_macs.difference(&state.local_macs) {
        ops.before.push(Op::AddLocalMac(mac_key(added)));
    }
    for removed in state.local_macs.difference(&desired.local_macs) {
        ops.after.push(Op::RemoveLocalMac(mac_key(removed)));
    }
    state.local_macs.clone_from(&desired.local_macs);

    for &added in desired.interfaces.difference(&state.interfaces) {
        ops.before.push(Op::AddInterface(added));
    }
    for &removed in state.interfaces.difference(&desired.interfaces) {
        ops.after.push(Op::RemoveInterface(removed));
    }
    state.interfaces.clone_from(&desired.interfaces);

    let vips: BTreeSet<_> = desired.services.keys().map(|key| key.vip).collect();
    for &added in vips.difference(&state.vips) {
        ops.before.push(Op::AddVip(added));
    }
    for &removed in state.vips.difference(&vips) {
        ops.after.push(Op::RemoveVip(removed));
    }
    state.vips = vips;

    let settings = Settings {
        abi_version: ABI_VERSION,
        port_zero_services: desired.services.keys().filter(|k| k.port == 0).count() as u32,
    };
    if settings != state.settings {
        // Before the first service on port 0 is added, or after the last one
        // was removed: either way only an unneeded look-up in between.
        if settings.port_zero_services >= state.settings.port_zero_services {
            ops.before.push(Op::PutSettings(settings));
        } else {
            ops.after.push(Op::PutSettings(settings));
        }
        state.settings = settings;
    }
}

fn remove_service(state: &mut State, key: &ServiceKey, ops: &mut Ops, now: u32) {
    let Some(service) = state.services.remove(key) else {
        return;
    };
    ops.publish.push(Op::RemoveService(*key));
    let value = service.value;
    state
        .space
        .release(value.ring_offset, service.ring.blocks(), now);
}

/// Gives back the entries of services that are gone, be it only half of the
/// way because `lb-ctl` was killed between two writes.
fn free_orphans(state: &mut State, ops: &mut Ops) {
    let services: HashSet<u32> = state.services.values().map(|s| s.value.id).collect();
    let is_orphan =
        |entry: &Backend| entry.state != state::FREE && !services.contains(&entry.service);
    let orphans: Vec<u32> = state
        .backends
        .iter()
        .filter(|(_, entry)| is_orphan(entry))
        .map(|(&id, _)| id)
        .collect();
    for id in orphans {
        free_entry(state, id, ops);
    }
}

/// Gives an entry back. Its generation stays, raised, for whoever gets it next.
fn free_entry(state: &mut State, id: u32, ops: &mut Ops) {
    if let Some(entry) = state.backends.get_mut(&id) {
        *entry = Backend {
            generation: entry.generation.wrapping_add(1),
            state: state::FREE,
            ..Backend::default()
        };
        ops.after.push(Op::PutBackend(id, *entry));
    }
}

/// Looks entries up by what they are of, and finds free ones.
struct Index {
    by_identity: HashMap<(u32, IpAddr, u16), u32>,
    free: BTreeSet<u32>,
    service_ids: BTreeSet<u32>,
}

impl Index {
    fn of(state: &State) -> Self {
        let mut free: BTreeSet<u32> = (1..state.capacity.backends).collect();
        let mut by_identity = HashMap::new();
        for (&id, entry) in &state.backends {
            if entry.state == state::FREE {
                continue;
            }
            free.remove(&id);
            let port = u16::from_be(entry.port);
            by_identity.insert((entry.service, entry.address.into(), port), id);
        }
        Self {
            by_identity,
            free,
            service_ids: state.services.values().map(|s| s.value.id).collect(),
        }
    }

    fn new_service_id(&mut self) -> u32 {
        let id = self.service_ids.last().map_or(1, |last| last + 1);
        self.service_ids.insert(id);
        id
    }
}

fn plan_service(
    state: &mut State,
    index: &mut Index,
    key: &ServiceKey,
    desired: &DesiredService,
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
        if matches!(backend.condition, Condition::Up(_)) && backend.weight > 0 && !backend.removed {
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
            entry.mtu = next_hop.mtu;
        }
        Condition::Unresolved if before.state == state::ALIVE => {}
        Condition::Unresolved | Condition::Down => entry.state = state::DEAD,
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

#[cfg(test)]
mod tests;
