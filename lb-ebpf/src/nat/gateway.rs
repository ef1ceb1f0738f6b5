//! NAT with the director as the backends' gateway: only the destination is
//! translated, and only flows that a reply could be mistaken for another's
//! have an entry.

use lb_common::counters::DropReason;
use lb_common::flow::is_idle;
use lb_common::nat::{DIRECT_MEMORY, NO_PORT, NatReverse, Seen};
use lb_common::protocol::UDP;
use lb_common::service::{ServiceValue, flags};

use super::track::{flags_of, has_ended};
use super::{Job, packed, send};
use crate::family::Family;
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::schedule::{Chosen, schedule};
use crate::tables::{FamilyTables, Insertion, Tables};
use crate::translate::Endpoints;
use crate::verdict::{Packed, Verdict, drop};

/// Chooses a backend, and translates a packet's destination to it.
#[inline(never)]
pub fn decide<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    service: &ServiceValue,
    job: &mut Job<F>,
    tables: &T,
) -> Packed {
    packed(try_decide(packet, info, service, job, tables))
}

#[inline(always)]
fn try_decide<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    service: &ServiceValue,
    job: &mut Job<F>,
    tables: &T,
) -> Result<(), Verdict> {
    let chosen = schedule(packet, info, service, tables)?;
    let backend = chosen.backend;
    if !info.is_for_us(packet.interface(), backend, tables) {
        return Err(Verdict::Pass);
    }
    job.to.destination = F::from_common(&backend.address);
    // 0 leaves the port as it is.
    if backend.port != 0 {
        job.to.destination_port = backend.port;
    }
    job.backend = chosen.id;
    job.new_flow = chosen.new_flow;
    job.way = send::to_backend(info, backend);
    if !info.is_icmp {
        if service.flags & flags::TRACKED != 0 {
            let key = reply_key(info, &job.to);
            track(info, &chosen, &key, tables)?;
        }
        forget_direct(info, &job.to, tables);
    }
    Ok(())
}

/// The flow's key as its replies have it.
#[inline(always)]
fn reply_key<F: Family>(info: &PacketInfo<F>, to: &Endpoints<F>) -> F::FlowKey {
    let ports = u32::from(to.destination_port) | u32::from(to.source_port) << 16;
    F::flow_key(&to.destination, &to.source, ports, info.protocol)
}

/// Makes or refreshes the flow's entry in the reverse table.
#[inline(always)]
fn track<F: Family, T: Tables + FamilyTables<F>>(
    info: &PacketInfo<F>,
    chosen: &Chosen<'_>,
    key: &F::FlowKey,
    tables: &T,
) -> Result<(), Verdict> {
    let now = tables.now();
    let flags = flags_of(info);
    let fresh = NatReverse {
        client: info.client,
        vip: info.vip,
        client_port: info.client_port,
        port: info.port,
        backend: chosen.id,
        generation: chosen.backend.generation,
        pool_port: NO_PORT,
        client_seen: Seen { at: now, flags },
        backend_seen: Seen::default(),
    };
    let begins = info.syn || info.protocol == UDP;
    let known = tables.nat_reverse(key, |flow| {
        let is_same = flow.vip == info.vip && flow.port == info.port;
        let ended = has_ended(flow.client_seen.flags, flow.backend_seen.flags);
        if is_same && !(ended && begins) {
            flow.client_seen.note(now, flags);
            return true;
        }
        // Of another VIP: only what has ended may be replaced.
        if is_same || (ended && begins) {
            *flow = fresh;
            return true;
        }
        false
    });
    match known {
        Some(true) => Ok(()),
        Some(false) => drop(DropReason::NatClash),
        None => match tables.insert_nat_reverse(key, &fresh) {
            // Another CPU was faster with the same flow.
            Insertion::Done | Insertion::Exists => Ok(()),
            Insertion::Full => drop(DropReason::NatTableFull),
        },
    }
}

/// A client that spoke to the backend past the VIP and now uses the same port
/// to speak to the VIP.
#[inline(always)]
fn forget_direct<F: Family, T: Tables + FamilyTables<F>>(
    info: &PacketInfo<F>,
    to: &Endpoints<F>,
    tables: &T,
) {
    let last = tables.direct_seen();
    if last == 0
        || !(info.syn || info.protocol == UDP)
        || is_idle(last, tables.now(), DIRECT_MEMORY)
    {
        return;
    }
    let ports = u32::from(to.source_port) | u32::from(to.destination_port) << 16;
    tables.forget_direct(&F::flow_key(
        &to.source,
        &to.destination,
        ports,
        info.protocol,
    ));
}
