//! Fragments.
//!
//! The first one has the ports, goes the way of a whole packet, and leaves a
//! trace ([`trace`]). The others follow it, also when another CPU receives
//! them. None is held back: one that comes before its first is dropped.
//!
//! In the kernel these are programs of their own, like [`crate::nat`].

use core::hint::black_box;

use lb_common::backend::{mode, state};
use lb_common::counters::DropReason;
use lb_common::flow::is_idle;
use lb_common::fragment::{FragmentTrace, LIFETIME};
use lb_common::nat::PoolPort;
use lb_common::service::{ServiceValue, flags};

use crate::family::Family;
use crate::forward;
use crate::nat::send;
use crate::nat::{self, Job, count};
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::schedule::{Chosen, schedule};
use crate::service;
use crate::tables::{FamilyTables, Scratch, Tables};
use crate::translate::Endpoints;
use crate::verdict::{Packed, Verdict, drop};

/// Leaves a trace of a first fragment that goes to or comes from a backend, or
/// is the host's ([`TO_HOST`]), for the others of its packet.
#[inline(never)]
pub fn trace<F: Family, T: Tables + FamilyTables<F>>(
    info: &PacketInfo<F>,
    backend: u32,
    hash: u32,
    translated: Option<&Job<F>>,
    tables: &T,
) {
    let generation = tables.backend(backend).map_or(0, |entry| entry.generation);
    let (source, destination, is_reply) = match translated {
        Some(job) => (job.to.source, job.to.destination, job.is_reply),
        None => (info.client, info.vip, false),
    };
    let trace = FragmentTrace {
        source,
        destination,
        backend,
        generation,
        hash,
        seen: tables.now(),
        first_end: info.fragment_length(),
        is_reply: u16::from(is_reply),
        padding: 0,
    };
    tables.trace_fragment(&key(info), &trace);
}

/// Leaves a trace of a first fragment for a VIP that ended so, if it passes: the
/// others must not be dropped for want of one.
#[inline(always)]
pub fn trace_passed<F: Family, T: Tables + FamilyTables<F>>(
    info: &PacketInfo<F>,
    end: Packed,
    tables: &T,
) {
    const PASSES: Packed = Packed::new(Err(Verdict::Pass));
    if end == PASSES && tables.is_vip(&F::to_common(&info.vip)) {
        trace(info, TO_HOST, 0, None, tables);
    }
}

/// By what the fragments of one packet are known.
#[inline(always)]
fn key<F: Family>(info: &PacketInfo<F>) -> F::FlowKey {
    let protocol = if F::FRAGMENTS_HAVE_PROTOCOL {
        info.protocol
    } else {
        0
    };
    F::flow_key(&info.client, &info.vip, info.fragment as u32, protocol)
}

/// Sends the first fragment of a packet on, and leaves its trace. Says of one
/// that is NAT's what [`crate::enter`] says of a whole packet.
#[inline(always)]
pub fn first<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    tables: &T,
) -> Packed {
    let end = tables.with_scratch(|Scratch { info, .. }| {
        if let Err(early) = nat::parse::<true, F, P, T>(packet, info, tables).unpack() {
            return Packed::new(Err(early));
        }
        let end = match service::find(packet, info, tables) {
            Ok(Some(service)) if service.flags & flags::NAT != 0 => crate::NAT,
            Ok(Some(service)) => Packed::new(serve(packet, info, service, tables)),
            Ok(None) => crate::NAT,
            Err(early) => Packed::new(Err(early)),
        };
        trace_passed(info, end, tables);
        end
    });
    end.unwrap_or(NO_PLACE)
}

#[inline(always)]
fn serve<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    info: &PacketInfo<F>,
    service: &ServiceValue,
    tables: &T,
) -> Result<Verdict, Verdict> {
    let chosen = schedule(packet, info, service, tables)?;
    // Before the packet is sent: what comes next may be on another CPU.
    trace(info, chosen.id, chosen.hash, None, tables);
    forward::forward(packet, info, &chosen, tables)
}

/// Sends another fragment after the first.
///
/// # Errors
/// [`Verdict::Pass`] if it is not for a VIP and nothing is known of it; a drop
/// under the reason.
#[inline(always)]
pub fn later<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    tables: &T,
) -> Result<Verdict, Verdict> {
    let end = tables.with_scratch(|Scratch { info, job }| {
        parse_later(packet, info).unpack()?;
        follow(packet, info, job, tables)
    });
    end.unwrap_or_else(|| NO_PLACE.unpack())
}

#[inline(always)]
fn follow<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    info: &PacketInfo<F>,
    job: &mut Job<F>,
    tables: &T,
) -> Result<Verdict, Verdict> {
    let Some(trace) = tables.fragment(&key(info)) else {
        return unknown(info, tables);
    };
    if is_idle(trace.seen, tables.now(), LIFETIME) {
        return unknown(info, tables);
    }
    if trace.backend == TO_HOST {
        return Err(Verdict::Pass);
    }
    let Some(backend) = tables.backend(trace.backend) else {
        return drop(DropReason::RingCorrupt);
    };
    if !info.is_for_us(packet.interface(), backend, tables) {
        return Err(Verdict::Pass);
    }
    info.check_lengths(packet)?;
    if info.fragment_offset < trace.first_end {
        return drop(DropReason::FragmentOverlap);
    }
    if backend.state != state::ALIVE || backend.generation != trace.generation {
        return drop(DropReason::BackendDead);
    }
    if backend.mode != mode::NAT {
        let chosen = Chosen {
            id: trace.backend,
            backend,
            hash: trace.hash,
            new_flow: false,
        };
        let verdict = forward::forward_later(packet, info, &chosen)?;
        tables.count_forwarded(trace.backend, info.ip_length, false);
        return Ok(verdict);
    }
    let to = Endpoints {
        source: trace.source,
        destination: trace.destination,
        source_port: 0,
        destination_port: 0,
    };
    let is_reply = trace.is_reply != 0;
    let way = if is_reply {
        send::to_client(packet, info, &to, tables)
    } else {
        send::to_backend(info, backend)
    };
    *job = Job {
        to,
        way,
        backend: trace.backend,
        port: PoolPort::default(),
        new_flow: false,
        is_reply,
    };
    let sent = send::send_later(packet, info, job, tables);
    if !sent.is_early() {
        count(info, job, tables);
    }
    sent.unpack()
}

/// [`Family::later_fragment`] with a place of its own on the stack, to `info`.
#[inline(never)]
fn parse_later<F: Family, P: Packet>(packet: &P, info: &mut PacketInfo<F>) -> Packed {
    // As in `nat::parse`.
    match F::later_fragment(black_box(packet)) {
        Ok(parsed) => {
            *info = parsed;
            Packed::new(Ok(Verdict::Host))
        }
        Err(early) => Packed::new(Err(early)),
    }
}

/// In the place of a backend in a trace: the packet is for no service. No
/// backend has this index.
const TO_HOST: u32 = 0;

/// There is no place for what is known of a packet.
const NO_PLACE: Packed = Packed::new(Err(Verdict::Drop(DropReason::ProgramMissing)));

/// A fragment whose first has left no trace.
#[inline(always)]
fn unknown<F: Family, T: Tables>(info: &PacketInfo<F>, tables: &T) -> Result<Verdict, Verdict> {
    if tables.is_vip(&F::to_common(&info.vip)) {
        drop(DropReason::Fragment)
    } else {
        Err(Verdict::Pass)
    }
}
