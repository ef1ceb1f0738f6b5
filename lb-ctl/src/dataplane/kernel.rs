//! The maps in the kernel as a [`Dataplane`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use aya::maps::{MapError, PerCpuValues};
use lb_common::Address;
use lb_common::backend::Backend;
use lb_common::counters::{BackendCounters, DropReason};
use lb_common::flow::FlowValue;
use lb_common::nat::MAX_POOL_ADDRESSES;
use lb_common::ring::{RingBlock, SLOTS_PER_BLOCK, Slot, blocks};
use lb_common::service::{ServiceKeyV4, ServiceKeyV6, ServiceValue, VipKey};
use lb_common::vlan::Vlan;

use super::clock::Clock;
use super::maps::{Flows, Maps, NatMaps, for_each};
use super::nat::KernelNat;
use super::{
    Attachment, Capacity, Dataplane, Dump, FlowTable, NatTable, Op, RecordedFlow, ServiceKey,
};

/// The maps of the loaded program.
pub struct Kernel {
    maps: Maps,
    flows: Arc<KernelFlows>,
    nat: Arc<KernelNat>,
    clock: Arc<Clock>,
    capacity: Capacity,
    attachments: Vec<Attachment>,
}

impl Kernel {
    pub(super) fn new(
        maps: Maps,
        flows: Flows,
        nat: NatMaps,
        clock: Clock,
        capacity: Capacity,
        attachments: Vec<Attachment>,
    ) -> Self {
        let nat = Arc::new(KernelNat::new(nat, capacity.nat));
        let flows = Arc::new(KernelFlows {
            flows,
            nat: Arc::clone(&nat),
            size: capacity.flows,
        });
        Self {
            maps,
            flows,
            nat,
            clock: Arc::new(clock),
            capacity,
            attachments,
        }
    }

    fn read_ring(&self, first_block: u32, slots: u32) -> anyhow::Result<Vec<Slot>> {
        let mut read = Vec::with_capacity(slots as usize);
        for block in first_block..first_block + blocks(slots) {
            let RingBlock { slots } = self.maps.rings.get(&block, 0)?;
            read.extend(slots);
        }
        read.truncate(slots as usize);
        debug_assert!(
            read.len() % SLOTS_PER_BLOCK as usize == slots as usize % SLOTS_PER_BLOCK as usize
        );
        Ok(read)
    }

    fn read_service(
        &self,
        value: ServiceValue,
    ) -> anyhow::Result<(ServiceValue, Vec<Slot>, Vec<Slot>)> {
        let slots = self.read_ring(value.ring_offset, value.slots)?;
        let old = if slots.iter().any(|slot| slot.is_moving()) {
            self.read_ring(value.ring_offset + blocks(value.slots), value.slots)?
        } else {
            Vec::new()
        };
        Ok((value, slots, old))
    }
}

impl Dataplane for Kernel {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn dump(&self) -> anyhow::Result<Dump> {
        let mut values = BTreeMap::new();
        self.maps.services_v4.for_each(|key, value| {
            values.insert(ServiceKey::from(key), value);
        })?;
        self.maps.services_v6.for_each(|key, value| {
            values.insert(ServiceKey::from(key), value);
        })?;
        let services = values
            .into_iter()
            .map(|(key, value)| Ok((key, self.read_service(value)?)))
            .collect::<anyhow::Result<_>>()
            .context("reading the rings")?;
        let mut dump = Dump {
            services,
            settings: self.maps.settings.get(&0, 0)?,
            ..Dump::default()
        };
        for id in 1..self.capacity.backends {
            let entry = self.maps.backends.get(&id, 0)?;
            if entry != Backend::default() {
                dump.backends.insert(id, entry);
            }
        }
        for item in self.maps.vips.iter() {
            let (key, value) = item?;
            dump.vips.insert(key.vip.into(), value);
        }
        for key in self.maps.local_macs.keys() {
            let key = key?;
            dump.local_macs.insert((key.interface, key.mac.into()));
        }
        for key in self.maps.interfaces.keys() {
            dump.interfaces.insert(key?);
        }
        for item in self.maps.vlans.iter() {
            let (device, vlan) = item?;
            // Half written by an lb-ctl that was killed: to be written again.
            let is_whole = matches!(self.maps.vlan_devices.get(&vlan, 0), Ok(d) if d == device);
            let vlan = if is_whole { vlan } else { Vlan::default() };
            dump.vlans.insert(device, vlan);
        }
        for item in self.maps.nat_backends_v4.iter() {
            let (key, value) = item?;
            dump.nat_backends.insert(key.into(), value);
        }
        for item in self.maps.nat_backends_v6.iter() {
            let (key, value) = item?;
            dump.nat_backends.insert(key.into(), value);
        }
        for key in self.maps.local_addresses.keys() {
            dump.local_addresses.insert(key?.vip.into());
        }
        for item in self.maps.routers.iter() {
            let (interface, addresses) = item?;
            dump.routers.insert(interface, addresses);
        }
        for index in 0..MAX_POOL_ADDRESSES {
            let address = self.maps.pool.get(&index, 0)?;
            if address != Address::default() {
                dump.pool.insert(index as u16, address.into());
            }
        }
        Ok(dump)
    }

    fn apply(&mut self, op: &Op) -> anyhow::Result<()> {
        let maps = &mut self.maps;
        match op {
            Op::PutBackend(id, entry) => maps.backends.set(*id, entry, 0)?,
            Op::ResetCounters(id) => {
                let zeros =
                    vec![BackendCounters::default(); aya::util::nr_cpus().map_err(|(_, e)| e)?];
                maps.counters.set(*id, PerCpuValues::try_from(zeros)?, 0)?;
            }
            Op::WriteRing(first, blocks) => {
                for (i, block) in (*first..).zip(blocks) {
                    maps.rings.set(i, block, 0)?;
                }
            }
            Op::PutService(key, value) => match key.vip {
                IpAddr::V4(vip) => {
                    let key = ServiceKeyV4::new(vip, key.port, key.protocol);
                    maps.services_v4.insert(key, *value)?;
                }
                IpAddr::V6(vip) => {
                    let key = ServiceKeyV6::new(vip, key.port, key.protocol);
                    maps.services_v6.insert(key, *value)?;
                }
            },
            Op::RemoveService(key) => match key.vip {
                IpAddr::V4(vip) => {
                    let key = ServiceKeyV4::new(vip, key.port, key.protocol);
                    maps.services_v4.remove(key)?;
                }
                IpAddr::V6(vip) => {
                    let key = ServiceKeyV6::new(vip, key.port, key.protocol);
                    maps.services_v6.remove(key)?;
                }
            },
            Op::PutVip(vip, value) => {
                maps.vips.insert(VipKey { vip: (*vip).into() }, value, 0)?;
            }
            Op::RemoveVip(vip) => absent_is_fine(maps.vips.remove(&VipKey { vip: (*vip).into() }))?,
            Op::AddLocalMac(key) => maps.local_macs.insert(key, 0, 0)?,
            Op::RemoveLocalMac(key) => absent_is_fine(maps.local_macs.remove(key))?,
            Op::AddInterface(index) => maps.interfaces.insert(*index, *index, None, 0)?,
            Op::RemoveInterface(index) => absent_is_fine(maps.interfaces.remove(*index))?,
            Op::PutVlan(device, vlan) => {
                maps.vlans.insert(device, vlan, 0)?;
                maps.vlan_devices.insert(vlan, device, 0)?;
            }
            Op::RemoveVlan(device, vlan) => {
                absent_is_fine(maps.vlan_devices.remove(vlan))?;
                absent_is_fine(maps.vlans.remove(device))?;
            }
            Op::PutNatBackend(key, value) => match key.vip {
                IpAddr::V4(ip) => {
                    let key = ServiceKeyV4::new(ip, key.port, key.protocol);
                    maps.nat_backends_v4.insert(key, value, 0)?;
                }
                IpAddr::V6(ip) => {
                    let key = ServiceKeyV6::new(ip, key.port, key.protocol);
                    maps.nat_backends_v6.insert(key, value, 0)?;
                }
            },
            Op::RemoveNatBackend(key) => absent_is_fine(match key.vip {
                IpAddr::V4(ip) => {
                    let key = ServiceKeyV4::new(ip, key.port, key.protocol);
                    maps.nat_backends_v4.remove(&key)
                }
                IpAddr::V6(ip) => {
                    let key = ServiceKeyV6::new(ip, key.port, key.protocol);
                    maps.nat_backends_v6.remove(&key)
                }
            })?,
            Op::AddLocalAddress(ip) => {
                let key = VipKey { vip: (*ip).into() };
                maps.local_addresses.insert(key, 0, 0)?;
            }
            Op::RemoveLocalAddress(ip) => {
                let key = VipKey { vip: (*ip).into() };
                absent_is_fine(maps.local_addresses.remove(&key))?;
            }
            Op::PutRouter(interface, addresses) => {
                maps.routers.insert(interface, addresses, 0)?;
            }
            Op::RemoveRouter(interface) => absent_is_fine(maps.routers.remove(interface))?,
            Op::PutPoolAddress(index, address) => {
                let address = address.map_or_else(Address::default, Address::from);
                maps.pool.set(u32::from(*index), address, 0)?;
            }
            Op::PutSettings(settings) => maps.settings.set(0, settings, 0)?,
        }
        Ok(())
    }

    fn counters(&self, backend: u32) -> anyhow::Result<BackendCounters> {
        let values = self.maps.counters.get(&backend, 0)?;
        Ok(values
            .iter()
            .fold(BackendCounters::default(), |a, b| BackendCounters {
                packets: a.packets + b.packets,
                bytes: a.bytes + b.bytes,
                flows: a.flows + b.flows,
                reply_packets: a.reply_packets + b.reply_packets,
                reply_bytes: a.reply_bytes + b.reply_bytes,
            }))
    }

    fn drops(&self, reason: DropReason) -> anyhow::Result<u64> {
        Ok(self.maps.drops.get(&(reason as u32), 0)?.iter().sum())
    }

    fn flows(&self) -> Arc<dyn FlowTable> {
        self.flows.clone()
    }

    fn nat(&self) -> Arc<dyn NatTable> {
        self.nat.clone()
    }

    fn now(&self) -> u32 {
        self.clock.now()
    }

    fn clock(&self) -> Box<dyn Fn() -> u32 + Send> {
        let clock = Arc::clone(&self.clock);
        Box::new(move || clock.now())
    }

    fn attachments(&self) -> Vec<Attachment> {
        self.attachments.clone()
    }
}

struct KernelFlows {
    flows: Flows,
    nat: Arc<KernelNat>,
    size: u32,
}

impl FlowTable for KernelFlows {
    fn scan(&self, visit: &mut dyn FnMut(RecordedFlow)) -> anyhow::Result<(u64, u64)> {
        let v4 = for_each(&self.flows.v4, self.size, |key, value| {
            visit(RecordedFlow {
                key: key.service().into(),
                value,
                is_translated: false,
            });
        })?;
        let v6 = for_each(&self.flows.v6, self.size, |key, value| {
            visit(RecordedFlow {
                key: key.service().into(),
                value,
                is_translated: false,
            });
        })?;
        self.nat.scan(&mut |flow| {
            visit(RecordedFlow {
                key: flow.service,
                value: FlowValue {
                    backend: flow.backend,
                    generation: flow.generation,
                    ..FlowValue::default()
                },
                is_translated: true,
            });
        })?;
        Ok((v4, v6))
    }
}

/// Removing what is not there reaches what was wanted.
pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(nix::libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}
