//! What the flow table says about slots that are pinned and backends that are
//! leaving.

use std::collections::{HashMap, HashSet};

use lb_common::backend::state;
use lb_common::flow::is_idle;
use lb_common::ring::{Slot, slot_index};

use super::State;
use crate::dataplane::{RecordedFlow, ServiceKey};

/// Slots of a ring that have flows on a backend other than their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusySlots(HashSet<u32>);

impl BusySlots {
    /// Whether it holds this slot.
    pub fn contains(&self, slot: u32) -> bool {
        self.0.contains(&slot)
    }
}

/// What to look for in the flow table.
#[derive(Clone, Debug, Default)]
pub struct ScanRequest {
    services: HashMap<ServiceKey, Service>,
    /// Generation of each entry that is alive.
    generations: HashMap<u32, u32>,
}

#[derive(Clone, Debug)]
struct Service {
    generation: u32,
    idle_timeout: u32,
    slots: Vec<Slot>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct ScanResult {
    services: HashMap<ServiceKey, Found>,
}

#[derive(Clone, Debug, Default)]
struct Found {
    /// Of the ring that was looked at: a later one has other slots.
    generation: u32,
    busy: BusySlots,
    /// Entries that flows are recorded on.
    in_use: HashSet<u32>,
}

impl ScanRequest {
    /// Asks for everything that time alone may change.
    pub fn new(state: &State) -> Self {
        let services = state.services.iter().map(|(key, service)| {
            let request = Service {
                generation: service.value.generation,
                idle_timeout: service.value.idle_timeout,
                slots: service.ring.slots().to_vec(),
            };
            (*key, request)
        });
        let alive = state
            .backends
            .iter()
            .filter(|(_, b)| b.state == state::ALIVE);
        Self {
            services: services.collect(),
            generations: alive.map(|(&id, b)| (id, b.generation)).collect(),
        }
    }

    /// An empty answer, to [`ScanResult::add`] flows to.
    pub fn begin(&self) -> ScanResult {
        let found = |service: &Service| Found {
            generation: service.generation,
            ..Found::default()
        };
        ScanResult {
            services: self
                .services
                .iter()
                .map(|(&key, s)| (key, found(s)))
                .collect(),
        }
    }
}

impl ScanResult {
    /// Takes a recorded flow into account, if the packet path would at `now`.
    pub fn add(&mut self, request: &ScanRequest, flow: &RecordedFlow, now: u32) {
        let any_port = ServiceKey {
            port: 0,
            ..flow.key
        };
        // Like the packet path: the exact port first.
        let Some((key, service)) = [flow.key, any_port]
            .into_iter()
            .find_map(|key| Some((key, request.services.get(&key)?)))
        else {
            return;
        };
        let value = flow.value;
        let is_known = request.generations.get(&value.backend) == Some(&value.generation);
        // A translated flow is over when its entry is removed, not before.
        let is_over = !flow.is_translated && is_idle(value.last_seen, now, service.idle_timeout);
        if !is_known || is_over {
            return;
        }
        let found = self.services.entry(key).or_default();
        found.in_use.insert(value.backend);
        if service.slots.is_empty() || flow.is_translated {
            return;
        }
        let slot = slot_index(value.hash, service.slots.len() as u32);
        if service.slots[slot as usize].backend() != value.backend {
            found.busy.0.insert(slot);
        }
    }

    /// The busy slots of a service's ring, if it is the one that was scanned.
    pub fn busy(&self, key: &ServiceKey, generation: u32) -> Option<&BusySlots> {
        let found = self.services.get(key)?;
        (found.generation == generation).then_some(&found.busy)
    }

    /// Whether nothing is recorded on this entry, as far as the scan of the
    /// service's present ring can tell.
    pub fn has_no_flows(&self, key: &ServiceKey, generation: u32, id: u32) -> bool {
        self.services
            .get(key)
            .is_some_and(|found| found.generation == generation && !found.in_use.contains(&id))
    }
}
