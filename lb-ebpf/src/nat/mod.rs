//! VS/NAT: other addresses and ports, both ways.
//!
//! - [`gateway`]: the destination is translated. The backends send their
//!   replies through the director, which is their gateway.
//! - [`full`]: the source is translated as well, to an address and port of the
//!   director's pool. Replies find their way by themselves.
//! - [`reply`]: what a backend answers, back to the client.
//!
//! Each of them decides what a packet is to become, a [`Job`], and [`send`]
//! makes it that. [`track`] says what is remembered of a flow.
//!
//! In the kernel this is a program of its own, because it needs a stack of its
//! own, and because the other modes are to pay nothing for it. So it parses the
//! packet anew.

pub mod full;
pub mod gateway;
pub mod reply;
pub mod send;
pub mod track;

use core::hint::black_box;

use lb_common::counters::DropReason;
use lb_common::nat::PoolPort;
use lb_common::service::flags;

use crate::family::Family;
use crate::fragment::{trace, trace_passed};
use crate::packet::Packet;
use crate::packet_info::{PacketInfo, fragment};
use crate::service;
use crate::tables::{FamilyTables, Scratch, Tables};
use crate::translate::Endpoints;
use crate::verdict::{Packed, Verdict, drop};
use send::Way;

/// What a packet is to become.
pub struct Job<F: Family> {
    /// Its endpoints.
    pub to: Endpoints<F>,
    /// How it leaves.
    pub way: Way,
    /// Index of the backend entry that counts it.
    pub backend: u32,
    /// The pool's port, of a flow in full NAT that has just begun.
    pub port: PoolPort,
    /// Whether it begins a flow.
    pub new_flow: bool,
    /// Whether it is from a backend.
    pub is_reply: bool,
}

impl<F: Family> Job<F> {
    /// What is decided already of a packet that keeps its endpoints.
    #[inline(always)]
    pub const fn new(info: &PacketInfo<F>) -> Self {
        Self {
            to: Endpoints::of(info),
            way: Way::HOST,
            backend: 0,
            port: PoolPort(0),
            new_flow: false,
            is_reply: false,
        }
    }
}

/// Translates a packet and sends it on, if it is one for a service in NAT mode
/// or an answer to one. `FIRSTS` is for first fragments: apart, because with
/// both in one the verifier would have each way to follow twice.
///
/// # Errors
/// [`Verdict::Pass`] if it is neither; a drop, or the ICMP error that the
/// packet has become.
#[inline(always)]
pub fn process<const FIRSTS: bool, F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    tables: &T,
) -> Result<Verdict, Verdict> {
    let end = tables.with_scratch(|Scratch { info, job }| {
        let parsed = parse::<FIRSTS, F, P, T>(packet, info, tables);
        if parsed.is_early() {
            return parsed;
        }
        let end = Packed::new(run::<FIRSTS, F, P, T>(packet, info, job, tables));
        if FIRSTS {
            trace_passed(info, end, tables);
        }
        end
    });
    match end {
        Some(end) => end.unpack(),
        None => drop(DropReason::ProgramMissing),
    }
}

#[inline(always)]
fn run<const FIRSTS: bool, F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    info: &PacketInfo<F>,
    job: &mut Job<F>,
    tables: &T,
) -> Result<Verdict, Verdict> {
    *job = Job::new(info);
    let decided = match service::find(packet, info, tables)? {
        Some(service) if service.flags & flags::FULL_NAT != 0 => {
            // One call after the other: they share their place on the stack.
            match full::known(packet, info, service, job, tables) {
                full::UNKNOWN => match full::begin(packet, info, service, job, tables) {
                    GO_ON => match full::record(info, job, tables) {
                        full::AGAIN => match full::known(packet, info, service, job, tables) {
                            // Ended already, by a packet on another CPU.
                            full::UNKNOWN => Packed::new(Err(Verdict::Drop(DropReason::NoFlow))),
                            known => known,
                        },
                        recorded => recorded,
                    },
                    early => early,
                },
                known => known,
            }
        }
        Some(service) => gateway::decide(packet, info, service, job, tables),
        None => reply::decide(packet, info, job, tables),
    };
    decided.unpack()?;
    let sent = send::send(packet, info, job, tables);
    if !sent.is_early() {
        count(info, job, tables);
        if FIRSTS {
            trace(info, job.backend, 0, Some(job), tables);
        }
    }
    sent.unpack()
}

/// [`Family::parse`] with a place of its own on the stack, to `info`; of whole
/// packets, or with `FIRSTS` of first fragments.
#[inline(never)]
pub fn parse<const FIRSTS: bool, F: Family, P: Packet, T: Tables>(
    packet: &P,
    info: &mut PacketInfo<F>,
    tables: &T,
) -> Packed {
    // Compilers would pass start and end of the packet in its place, as
    // numbers, which the verifier no longer takes for what they are.
    match F::parse(black_box(packet), FIRSTS, tables) {
        // Another program's, which has not handed it over.
        Ok(parsed) if FIRSTS && parsed.fragment == fragment::NONE => {
            Packed::new(Err(Verdict::Pass))
        }
        Ok(parsed) => {
            *info = parsed;
            GO_ON
        }
        Err(early) => Packed::new(Err(early)),
    }
}

/// Adds a packet that was sent to the counters of its backend.
#[inline(always)]
pub fn count<F: Family, T: Tables>(info: &PacketInfo<F>, job: &Job<F>, tables: &T) {
    if job.is_reply {
        tables.count_reply(job.backend, info.ip_length);
    } else {
        tables.count_forwarded(job.backend, info.ip_length, job.new_flow);
    }
}

/// Nothing stands in the way of the [`Job`].
const GO_ON: Packed = Packed::new(Ok(Verdict::Host));

#[inline(always)]
const fn packed(decision: Result<(), Verdict>) -> Packed {
    match decision {
        Ok(()) => GO_ON,
        Err(early) => Packed::new(Err(early)),
    }
}
