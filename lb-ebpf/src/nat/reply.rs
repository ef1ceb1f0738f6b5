//! What a backend answers, back to the client.
//!
//! In the words of [`PacketInfo`] the backend is here the `client`, and who it
//! answers is the `vip`: source and destination of the packet.

use lb_common::flow::is_idle;
use lb_common::nat::{DIRECT_MEMORY, NatBackend, source};

use super::track::flags_of;
use super::{Job, packed, send};
use crate::family::Family;
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::tables::{FamilyTables, Tables};
use crate::translate::Endpoints;
use crate::verdict::{Packed, Verdict};

/// Translates a packet from a NAT backend back, if it is an answer to one that
/// was translated.
#[inline(never)]
pub fn decide<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    job: &mut Job<F>,
    tables: &T,
) -> Packed {
    packed(try_decide(packet, info, job, tables))
}

#[inline(always)]
fn try_decide<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    job: &mut Job<F>,
    tables: &T,
) -> Result<(), Verdict> {
    let Some(backend) = find(info, &info.client, info.client_port, tables) else {
        note_direct(packet, info, tables);
        return Err(Verdict::Pass);
    };
    let Some(entry) = tables.backend(backend.backend) else {
        return Err(Verdict::Pass);
    };
    if !info.is_for_us(packet.interface(), entry, tables) {
        return Err(Verdict::Pass);
    }
    job.to.source = F::from_common(&backend.vip);
    if backend.port != 0 {
        job.to.source_port = backend.port;
    }
    if !is_answer(info, &backend, &mut job.to, tables) {
        note_direct(packet, info, tables);
        return Err(Verdict::Pass);
    }
    info.check_lengths(packet)?;
    job.backend = backend.backend;
    job.is_reply = true;
    job.way = send::to_client(packet, info, &job.to, tables);
    Ok(())
}

/// The NAT backend with this address and port, or with all ports of the
/// address.
#[inline(always)]
fn find<F: Family, T: Tables + FamilyTables<F>>(
    info: &PacketInfo<F>,
    address: &F::Address,
    port: u16,
    tables: &T,
) -> Option<NatBackend> {
    if let Some(backend) = tables.nat_backend(&F::service_key(address, port, info.protocol)) {
        return Some(backend);
    }
    let has_port_zero = tables.settings()?.nat_port_zero_backends != 0;
    if !has_port_zero {
        return None;
    }
    tables.nat_backend(&F::service_key(address, 0, info.protocol))
}

/// Whether this answers something that was translated. Sets where it goes, and
/// whom from, if there is an entry that says so.
#[inline(always)]
fn is_answer<F: Family, T: Tables + FamilyTables<F>>(
    info: &PacketInfo<F>,
    backend: &NatBackend,
    to: &mut Endpoints<F>,
    tables: &T,
) -> bool {
    if backend.flags & source::TABLE != 0 {
        let now = tables.now();
        let flags = flags_of(info);
        let recorded = tables.nat_reverse(&info.flow_key(), |flow| {
            if !info.is_icmp {
                flow.backend_seen.note(now, flags);
            }
            *to = Endpoints {
                source: flow.vip,
                destination: flow.client,
                source_port: flow.port,
                destination_port: flow.client_port,
            };
        });
        if recorded.is_some() {
            return true;
        }
    }
    backend.flags & source::BACKEND != 0
        && !tables.is_local_address(&F::to_common(&info.vip))
        && !is_direct(info, tables)
}

/// Whether this answers a client that spoke to the backend past the VIP.
#[inline(always)]
fn is_direct<F: Family, T: Tables + FamilyTables<F>>(info: &PacketInfo<F>, tables: &T) -> bool {
    let last = tables.direct_seen();
    let now = tables.now();
    if last == 0 || is_idle(last, now, DIRECT_MEMORY) {
        return false;
    }
    let ports = info.ports().rotate_left(16);
    let key = F::flow_key(&info.vip, &info.client, ports, info.protocol);
    tables.see_direct(&key, now)
}

/// Remembers who speaks to a backend past the VIP: what it answers must not be
/// translated. Only of such flows is there anything to remember.
#[inline(always)]
fn note_direct<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    tables: &T,
) {
    if info.is_icmp {
        return;
    }
    let Some(backend) = find(info, &info.vip, info.port, tables) else {
        return;
    };
    if backend.flags & source::BACKEND == 0 {
        return;
    }
    let Some(entry) = tables.backend(backend.backend) else {
        return;
    };
    if !info.is_for_us(packet.interface(), entry, tables) {
        return;
    }
    let now = tables.now();
    if tables.direct_seen() != now {
        tables.note_direct(now);
    }
    let key = info.flow_key();
    if !tables.see_direct(&key, now) {
        tables.record_direct(&key, now);
    }
}
