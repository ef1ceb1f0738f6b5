//! A dataplane in memory, for tests of the control loop and the API.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use lb_common::backend::{Backend, state};
use lb_common::counters::{BackendCounters, DropReason};
use lb_common::limits;
use lb_common::nat::PoolPort;
use lb_common::ring::{RingBlock, SLOTS_PER_BLOCK, Slot, blocks};
use lb_common::service::ServiceValue;

use super::{
    Attachment, Capacity, Dataplane, Dump, FlowTable, NatFlow, NatTable, Op, RecordedFlow,
    ServiceKey,
};

/// Maps in memory. A clone is another view of the same maps.
#[derive(Clone)]
pub struct Fake {
    maps: Arc<Mutex<Maps>>,
    capacity: Capacity,
}

/// The memory.
#[derive(Default)]
pub struct Maps {
    services: BTreeMap<ServiceKey, ServiceValue>,
    ring: BTreeMap<u32, RingBlock>,
    dump: Dump,
    /// Recorded flows.
    pub flows: Vec<RecordedFlow>,
    /// Translated flows.
    pub nat_flows: Vec<NatFlow>,
    /// Free ports of the pool, IPv4 and IPv6.
    pub ports: [Vec<PoolPort>; 2],
    /// The clock.
    pub now: u32,
    /// How many writes have been made.
    pub writes: u64,
}

impl Default for Fake {
    fn default() -> Self {
        Self::new(limits::DEFAULT_MAX_BACKENDS)
    }
}

impl Fake {
    /// Empty maps for this many backends.
    pub fn new(max_backends: u32) -> Self {
        Self {
            maps: Arc::default(),
            capacity: Capacity {
                backends: max_backends,
                ring_blocks: limits::ring_blocks(max_backends),
                flows: limits::DEFAULT_FLOW_TABLE_SIZE,
                nat: limits::DEFAULT_NAT_TABLE_SIZE,
            },
        }
    }

    /// The memory, locked.
    ///
    /// # Panics
    /// If another thread panicked while it held the lock.
    pub fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps
            .lock()
            .expect("a test has failed while it held the maps")
    }

    /// The RIPs that own the slots of a service, in order; `None` for nobody.
    pub fn owners(&self, key: &ServiceKey) -> Vec<Option<IpAddr>> {
        let dump = self.maps().dump();
        let (_, slots, _) = &dump.services[key];
        let address = |slot: &Slot| dump.backends.get(&slot.backend()).map(|b| b.address.into());
        slots.iter().map(address).collect()
    }
}

impl Maps {
    fn read(&self, first_block: u32, slots: u32) -> Vec<Slot> {
        let slot = |i: u32| {
            let block = self.ring.get(&(first_block + i / SLOTS_PER_BLOCK));
            block.map_or(Slot::default(), |b| b.slots[(i % SLOTS_PER_BLOCK) as usize])
        };
        (0..slots).map(slot).collect()
    }

    fn dump(&self) -> Dump {
        let mut dump = self.dump.clone();
        for (key, value) in &self.services {
            let slots = self.read(value.ring_offset, value.slots);
            let old = if slots.iter().any(|slot| slot.is_moving()) {
                self.read(value.ring_offset + blocks(value.slots), value.slots)
            } else {
                Vec::new()
            };
            dump.services.insert(*key, (*value, slots, old));
        }
        dump
    }
}

impl Dataplane for Fake {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn dump(&self) -> anyhow::Result<Dump> {
        Ok(self.maps().dump())
    }

    fn apply(&mut self, op: &Op) -> anyhow::Result<()> {
        let capacity = self.capacity;
        let mut maps = self.maps();
        maps.writes += 1;
        match op.clone() {
            Op::PutBackend(id, entry) => {
                anyhow::ensure!(id < capacity.backends, "no backend entry {id}");
                if entry.state == state::FREE && entry == Backend::default() {
                    maps.dump.backends.remove(&id);
                } else {
                    maps.dump.backends.insert(id, entry);
                }
            }
            Op::ResetCounters(_) => {}
            Op::WriteRing(first, blocks) => {
                for (i, block) in (first..).zip(blocks) {
                    anyhow::ensure!(i < capacity.ring_blocks, "no ring block {i}");
                    maps.ring.insert(i, block);
                }
            }
            Op::PutService(key, value) => {
                maps.services.insert(key, value);
            }
            Op::RemoveService(key) => {
                maps.services.remove(&key);
            }
            Op::PutVip(vip, value) => {
                maps.dump.vips.insert(vip, value);
            }
            Op::RemoveVip(vip) => {
                maps.dump.vips.remove(&vip);
            }
            Op::AddLocalMac(key) => {
                maps.dump.local_macs.insert((key.interface, key.mac.into()));
            }
            Op::RemoveLocalMac(key) => {
                maps.dump
                    .local_macs
                    .remove(&(key.interface, key.mac.into()));
            }
            Op::AddInterface(index) => {
                maps.dump.interfaces.insert(index);
            }
            Op::PutVlan(device, vlan) => {
                maps.dump.vlans.insert(device, vlan);
            }
            Op::RemoveVlan(device, _) => {
                maps.dump.vlans.remove(&device);
            }
            Op::RemoveInterface(index) => {
                maps.dump.interfaces.remove(&index);
            }
            Op::PutNatBackend(key, value) => {
                maps.dump.nat_backends.insert(key, value);
            }
            Op::RemoveNatBackend(key) => {
                maps.dump.nat_backends.remove(&key);
            }
            Op::AddLocalAddress(ip) => {
                maps.dump.local_addresses.insert(ip);
            }
            Op::RemoveLocalAddress(ip) => {
                maps.dump.local_addresses.remove(&ip);
            }
            Op::PutRouter(interface, addresses) => {
                maps.dump.routers.insert(interface, addresses);
            }
            Op::RemoveRouter(interface) => {
                maps.dump.routers.remove(&interface);
            }
            Op::PutPoolAddress(index, Some(address)) => {
                maps.dump.pool.insert(index, address);
            }
            Op::PutPoolAddress(index, None) => {
                maps.dump.pool.remove(&index);
            }
            Op::PutSettings(settings) => maps.dump.settings = settings,
        }
        Ok(())
    }

    fn counters(&self, _: u32) -> anyhow::Result<BackendCounters> {
        Ok(BackendCounters::default())
    }

    fn drops(&self, _: DropReason) -> anyhow::Result<u64> {
        Ok(0)
    }

    fn flows(&self) -> Arc<dyn FlowTable> {
        Arc::new(self.clone())
    }

    fn nat(&self) -> Arc<dyn NatTable> {
        Arc::new(self.clone())
    }

    fn now(&self) -> u32 {
        self.maps().now
    }

    fn clock(&self) -> Box<dyn Fn() -> u32 + Send> {
        let fake = self.clone();
        Box::new(move || fake.maps().now)
    }

    fn attachments(&self) -> Vec<Attachment> {
        Vec::new()
    }
}

impl FlowTable for Fake {
    fn scan(&self, visit: &mut dyn FnMut(RecordedFlow)) -> anyhow::Result<(u64, u64)> {
        let flows = self.maps().flows.clone();
        flows.iter().copied().for_each(&mut *visit);
        let v4 = flows.iter().filter(|f| f.key.vip.is_ipv4()).count() as u64;
        Ok((v4, flows.len() as u64 - v4))
    }
}

impl NatTable for Fake {
    fn scan(&self, visit: &mut dyn FnMut(NatFlow)) -> anyhow::Result<()> {
        let flows = self.maps().nat_flows.clone();
        flows.into_iter().for_each(visit);
        Ok(())
    }

    fn remove(&self, flow: &NatFlow, give_back: bool) -> anyhow::Result<()> {
        let mut maps = self.maps();
        maps.nat_flows.retain(|other| other != flow);
        if let Some(port) = flow.pool_port.filter(|_| give_back) {
            maps.ports[usize::from(!flow.is_v4())].push(port);
        }
        Ok(())
    }

    fn sift_ports(
        &self,
        is_v4: bool,
        keep: &mut dyn FnMut(PoolPort) -> bool,
    ) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        self.maps().ports[usize::from(!is_v4)].retain(|port| keep(*port) && seen.insert(*port));
        Ok(())
    }

    fn add_port(&self, is_v4: bool, port: PoolPort) -> anyhow::Result<bool> {
        self.maps().ports[usize::from(!is_v4)].push(port);
        Ok(true)
    }
}
