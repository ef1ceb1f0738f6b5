//! From the desired to the actual: which writes bring the maps there. No I/O.
//!
//! [`State`] is what the maps hold; [`plan`] changes it and returns the writes
//! that change the maps likewise. If a write fails, the state is read anew
//! with [`State::from_dump`] and planned again: nothing depends on history
//! that is not in the maps, but for the time at which a moving slot began to
//! move. After a restart it begins again, which only prolongs it.

mod desired;
mod nat;
mod ring;
mod scan;
mod service;
mod space;
mod vip;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use lb_common::ABI_VERSION;
use lb_common::backend::{Backend, state};
use lb_common::nat::{NatBackend, RouterAddresses};
use lb_common::service::{LocalMacKey, ServiceValue};
use lb_common::settings::Settings;
use lb_common::vip::VipValue;
use lb_common::vlan::Vlan;

use crate::dataplane::{Capacity, Dump, Op, ServiceKey};
pub use desired::{Condition, Desired, DesiredBackend, DesiredService, Nat, NextHop};
use ring::Ring;
pub use scan::{ScanRequest, ScanResult};
use service::{Index, plan_service};
use space::Space;

/// What the maps hold.
#[derive(Clone, Debug)]
pub struct State {
    services: BTreeMap<ServiceKey, ServiceState>,
    backends: BTreeMap<u32, Backend>,
    vips: BTreeMap<IpAddr, VipValue>,
    local_macs: BTreeSet<(u32, [u8; 6])>,
    interfaces: BTreeSet<u32>,
    vlans: BTreeMap<u32, Vlan>,
    nat_backends: BTreeMap<ServiceKey, NatBackend>,
    local_addresses: BTreeSet<IpAddr>,
    routers: BTreeMap<u32, RouterAddresses>,
    pool: BTreeMap<u16, IpAddr>,
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
            vlans: dump.vlans,
            nat_backends: dump.nat_backends,
            local_addresses: dump.local_addresses,
            routers: dump.routers,
            pool: dump.pool,
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

    /// The pool's addresses by number.
    pub const fn pool(&self) -> &BTreeMap<u16, IpAddr> {
        &self.pool
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
    let shared = nat::Shared::of(desired);
    for (key, service) in &desired.services {
        let flags = shared.flags(key, service);
        let service = (service, flags);
        plan_service(state, &mut index, key, service, scan, &mut ops, now)?;
    }
    nat::plan_backends(state, &shared, &mut ops);
    plan_settings(state, desired, &mut ops);
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

    // An index may be another device's by now.
    for (&device, &vlan) in &state.vlans {
        if desired.vlans.get(&device) != Some(&vlan) {
            ops.before.push(Op::RemoveVlan(device, vlan));
        }
    }
    for (&device, &vlan) in &desired.vlans {
        if state.vlans.get(&device) != Some(&vlan) {
            ops.before.push(Op::PutVlan(device, vlan));
        }
    }
    state.vlans.clone_from(&desired.vlans);

    vip::plan_vips(state, desired, ops);
    nat::plan_addresses(state, desired, ops);
}

fn plan_settings(state: &mut State, desired: &Desired, ops: &mut Ops) {
    let zero = |keys: &mut dyn Iterator<Item = &ServiceKey>| keys.filter(|k| k.port == 0).count();
    let before = state.settings;
    let settings = Settings {
        abi_version: ABI_VERSION,
        port_zero_services: zero(&mut desired.services.keys()) as u32,
        nat_backends: state.nat_backends.len() as u32,
        nat_port_zero_backends: zero(&mut state.nat_backends.keys()) as u32,
        generic: u32::from(desired.generic),
    };
    if settings == before {
        return;
    }
    // What is to be looked up at all: more before it is needed, less after it
    // was. In between is only an unneeded look-up.
    let either = Settings {
        port_zero_services: settings.port_zero_services.max(before.port_zero_services),
        nat_backends: settings.nat_backends.max(before.nat_backends),
        nat_port_zero_backends: settings
            .nat_port_zero_backends
            .max(before.nat_port_zero_backends),
        ..settings
    };
    if either != before {
        ops.before.push(Op::PutSettings(either));
    }
    if settings != either {
        ops.after.push(Op::PutSettings(settings));
    }
    state.settings = settings;
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

#[cfg(test)]
mod tests;
