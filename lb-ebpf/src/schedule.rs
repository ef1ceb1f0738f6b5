//! Stage 4: slot, then backend.

use core::num::NonZeroU32;

use lb_common::backend::{Backend, state};
use lb_common::counters::DropReason;
use lb_common::flow::{FlowValue, is_idle};
use lb_common::protocol;
use lb_common::ring::{SLOTS_PER_BLOCK, Slot, blocks, slot_index};
use lb_common::service::ServiceValue;

use crate::family::Family;
use crate::flow::{Remembered, decide};
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::tables::{FamilyTables, Tables};
use crate::verdict::{Packed, Verdict, drop};

/// The backend that a packet goes to.
pub struct Chosen<'a> {
    /// Index of the entry.
    pub id: u32,
    /// The entry; alive, and of the packet's service.
    pub backend: &'a Backend,
    /// The flow's hash.
    pub hash: u32,
    /// Whether the packet begins a flow, see
    /// [`lb_common::counters::BackendCounters::flows`].
    pub new_flow: bool,
}

/// The same as [`schedule`] for a packet that is [`crate::plain`]. Only of a
/// slot that is settled it is fast.
///
/// # Errors
/// As for [`schedule`].
#[inline(always)]
pub fn schedule_plain<'a, F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    info: &PacketInfo<F>,
    service: &ServiceValue,
    tables: &'a T,
) -> Result<Chosen<'a>, Verdict> {
    let service_id = service.id;
    let hash = F::hash(service.hash_key, info);
    let slot = find_slot(service, hash, tables)?;
    let (id, new_flow) = if slot.is_settled() {
        (slot.backend(), info.syn)
    } else {
        let protocol = info.protocol;
        let found = packet.aside(|packet| {
            remembered_plain::<F, P, T>(packet, protocol, service, slot, hash, tables)
        });
        let end = Packed::from_word(found);
        if end.is_early() {
            end.unpack()?;
        }
        (found as u32, found & NEW_FLOW != 0)
    };
    Ok(Chosen {
        id,
        backend: usable(service_id, tables, id)?,
        hash,
        new_flow,
    })
}

/// Chooses the backend, and records the flow if its slot is moving.
///
/// # Errors
/// A drop if no backend can take the packet.
#[inline(always)]
pub fn schedule<'a, F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    service: &ServiceValue,
    tables: &'a T,
) -> Result<Chosen<'a>, Verdict> {
    let service_id = service.id;
    let hash = F::hash(service.hash_key, info);
    let slot = find_slot(service, hash, tables)?;
    let (id, new_flow) = if slot.is_settled() {
        (slot.backend(), info.syn)
    } else {
        remembered::<false, F, P, T>(packet, info, service, tables, slot, hash)?
    };
    Ok(Chosen {
        id,
        backend: usable(service_id, tables, id)?,
        hash,
        new_flow,
    })
}

/// The backend for a new flow that is remembered by other means: whatever the
/// slot's state, the one that gets its new flows.
///
/// # Errors
/// A drop if no backend can take the packet.
#[inline(always)]
pub fn schedule_new<'a, F: Family, T: Tables>(
    info: &PacketInfo<F>,
    service: &ServiceValue,
    tables: &'a T,
) -> Result<(u32, &'a Backend), Verdict> {
    let service_id = service.id;
    let hash = F::hash(service.hash_key, info);
    let id = find_slot(service, hash, tables)?.backend();
    Ok((id, usable(service_id, tables, id)?))
}

/// The slot of a flow with this hash.
#[inline(always)]
fn find_slot<T: Tables>(service: &ServiceValue, hash: u32, tables: &T) -> Result<Slot, Verdict> {
    if service.slots == 0 {
        return drop(DropReason::NoBackend);
    }
    let index = slot_index(hash, service.slots);
    read_slot(tables, service.ring_offset, index)
}

/// The entry of a backend that the ring of the service with this
/// [`ServiceValue::id`] names.
#[inline(always)]
fn usable<T: Tables>(service_id: u32, tables: &T, id: u32) -> Result<&Backend, Verdict> {
    if id == 0 {
        return drop(DropReason::NoBackend);
    }
    let Some(backend) = tables.backend(id) else {
        return drop(DropReason::RingCorrupt);
    };
    if backend.state != state::ALIVE {
        return drop(DropReason::BackendDead);
    }
    // An entry of another service means that this packet read the service's
    // value while its ring was being replaced twice over, or the value given
    // to another service.
    if backend.service != service_id {
        return drop(DropReason::RingCorrupt);
    }
    Ok(backend)
}

#[inline(always)]
fn read_slot<T: Tables>(tables: &T, ring_offset: u32, index: u32) -> Result<Slot, Verdict> {
    let block = ring_offset + index / SLOTS_PER_BLOCK;
    match tables.slot(block, index % SLOTS_PER_BLOCK) {
        Some(slot) => Ok(slot),
        None => drop(DropReason::RingCorrupt),
    }
}

/// [`remembered`] for a packet that is [`crate::plain`]: backend and
/// [`NEW_FLOW`], or an early end.
#[inline(never)]
fn remembered_plain<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    protocol: u8,
    service: &ServiceValue,
    slot: Slot,
    hash: u32,
    tables: &T,
) -> u64 {
    let Some(info) = F::plain(packet, protocol) else {
        return Packed::new(Err(Verdict::Pass)).to_word();
    };
    match remembered::<true, F, P, T>(packet, &info, service, tables, slot, hash) {
        Ok((id, new_flow)) => u64::from(id) | if new_flow { NEW_FLOW } else { 0 },
        Err(early) => Packed::new(Err(early)).to_word(),
    }
}

/// The packet begins a flow.
const NEW_FLOW: u64 = 1 << 32;

/// A slot for which the flow table has a say. Returns the backend and whether
/// the packet begins a flow. `NOTED` as in [`FamilyTables::flow`].
#[inline(always)]
fn remembered<const NOTED: bool, F, P, T>(
    packet: &P,
    info: &PacketInfo<F>,
    service: &ServiceValue,
    tables: &T,
    slot: Slot,
    hash: u32,
) -> Result<(u32, bool), Verdict>
where
    F: Family,
    P: Packet,
    T: Tables + FamilyTables<F>,
{
    let now = tables.now();
    let recorded = tables.flow::<NOTED>(&info.flow_key(), now, |flow| {
        !is_idle(flow.last_seen, now, service.idle_timeout)
            && is_alive(tables, service, flow.backend, Some(flow.generation))
    });
    let recorded = NonZeroU32::new(recorded);
    let old = if slot.is_moving() && recorded.is_none() && !info.syn {
        let index = slot_index(hash, service.slots);
        let offset = service.ring_offset + blocks(service.slots);
        let old = read_slot(tables, offset, index)?.backend();
        if is_alive(tables, service, old, None) {
            old
        } else {
            0
        }
    } else {
        0
    };
    let old = NonZeroU32::new(old);
    let Remembered { backend, record } = decide(slot, info.syn, recorded, old);
    let is_recorded = record && !info.is_icmp && backend != 0;
    if is_recorded {
        let Some(entry) = tables.backend(backend) else {
            return drop(DropReason::RingCorrupt);
        };
        // Not after it is recorded: another director's packet is no flow of ours.
        if !info.is_for_us(packet.interface(), entry, tables) {
            return Err(Verdict::Pass);
        }
        let value = FlowValue {
            backend,
            generation: entry.generation,
            last_seen: now,
            hash,
        };
        tables.record(&info.flow_key(), &value);
    }
    let is_udp = info.protocol == protocol::UDP;
    Ok((backend, info.syn || (is_recorded && is_udp)))
}

#[inline(always)]
fn is_alive<T: Tables>(
    tables: &T,
    service: &ServiceValue,
    id: u32,
    generation: Option<u32>,
) -> bool {
    match tables.backend(id) {
        Some(backend) => {
            backend.state == state::ALIVE
                && backend.service == service.id
                && generation.is_none_or(|g| g == backend.generation)
        }
        None => false,
    }
}
