//! The packet path of a director.
//!
//! A packet goes through these stages, each in a file of its own, and never
//! back:
//!
//! 1. [`plain`], [`parse`]: Ethernet to layer 4 into one [`packet_info::PacketInfo`]. Later
//!    stages do not look at headers again.
//! 2. [`icmp`]: an ICMP error becomes the flow it speaks of.
//! 3. [`service`]: which service is it for? For none: the packet passes
//!    untouched.
//! 4. [`schedule`]: the flow's slot in the service's ring.
//! 5. [`flow`]: the slot's backend, or the one that the flow table remembers, see
//!    [`recent`].
//! 6. [`forward`]: the rewrite that the service's mode asks for.
//! 7. [`verdict`]: what becomes of the packet, and the counters.
//!
//! NAT mode has stages 4 to 6 of its own, in [`nat`]: for packets of its
//! services, and for packets of no service, which may be what a NAT backend
//! answers. Pings of a VIP have theirs in [`echo`].
//!
//! Before and after them [`tag`] takes VLAN tags off and puts them on.
//!
//! # Invariants
//! - Every packet is forwarded whole and correct, dropped under a reason that
//!   is counted, or passed untouched. Nothing is written before stage 6.
//! - Until a service is found nothing is dropped: what is not ours, however
//!   malformed, is for the host to judge. Exceptions are, of what is for a VIP,
//!   fragments, because only the first of them names a port: see [`fragment`];
//!   and what the VIP itself has a setting for: pings, see [`echo`], and other
//!   protocols.
//! - While a slot is settled the flow table is neither read nor written.
//! - A packet that is rewritten for the host to send on is whole and correct
//!   as it is: see [`verdict::Verdict::Host`].
//!
//! Stages are generic over [`packet::Packet`] and [`tables::Tables`], so that
//! the same source runs in the kernel, in unit tests and in fuzzers. Headers
//! are copied out of the packet, never borrowed: the verifier wants each access
//! checked, and a reference would outlive its check.

#![cfg_attr(not(any(test, feature = "host")), no_std)]

pub mod backend;
pub mod checksum;
pub mod echo;
pub mod extension;
pub mod family;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod headers;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod icmp;
pub mod nat;
pub mod packet;
pub mod packet_info;
pub mod parse;
pub mod plain;
pub mod recent;
pub mod schedule;
pub mod service;
pub mod tables;
pub mod tag;
pub mod translate;
pub mod verdict;
pub mod vip;

use core::hint::black_box;

use family::{Family, V4, V6};
use headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ethertype};
use lb_common::service::{ServiceValue, flags};
use packet::{Packet, Untagged};
use packet_info::{PacketInfo, is_sent_to_us};
use parse::{FIRST_FRAGMENT, LATER_FRAGMENT, NO_SERVICES};
use tables::{FamilyTables, Tables};
use tag::Frame;
use verdict::{DropReason, Packed, Verdict};

/// What comes after the stages of the modes DR and TUN: other stages, which in
/// the kernel are programs of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// [`process_nat`]: the packet is for a service in NAT mode, or may be an
    /// answer of a NAT backend.
    Nat,
    /// [`process_other`]: its headers are not the usual ones.
    Other,
    /// [`process_first`]: it is the first fragment of a packet.
    First,
    /// [`process_later`]: it is another fragment.
    Later,
    /// [`tag::untag`]: it has VLAN tags. Without them it comes again.
    Tagged,
    /// [`process_echo`]: it is a ping of a VIP.
    Echo,
}

/// Runs all stages on one packet.
#[inline(always)]
pub fn process<P, T>(packet: &mut P, tables: &T) -> Verdict
where
    P: Untagged,
    T: Tables + FamilyTables<V4> + FamilyTables<V6>,
{
    let wire = packet.interface();
    let mut frame = Frame::untagged(wire);
    let mut end = enter(packet, tables);
    if end == Err(Next::Tagged) {
        frame = match process_tagged(packet, tables) {
            Ok(frame) => frame,
            Err(verdict) => return verdict,
        };
        packet.set_interface(frame.interface);
        end = enter(packet, tables);
    }
    let verdict = match end {
        Ok(verdict) => verdict,
        Err(next) => hand_over(packet, next, tables),
    };
    match tag::egress(&frame, verdict, tables) {
        Some(egress) => {
            packet.set_interface(wire);
            process_retag(packet, &Frame { egress, ..frame }, tables)
        }
        None => verdict,
    }
}

#[inline(always)]
fn hand_over<P, T>(packet: &mut P, next: Next, tables: &T) -> Verdict
where
    P: Packet,
    T: Tables + FamilyTables<V4> + FamilyTables<V6>,
{
    if ethertype(packet) == Some(ETHERTYPE_IPV4) {
        go_on::<V4, P, T>(packet, next, tables)
    } else {
        go_on::<V6, P, T>(packet, next, tables)
    }
}

#[inline(always)]
fn go_on<F, P, T>(packet: &mut P, next: Next, tables: &T) -> Verdict
where
    F: Family,
    P: Packet,
    T: Tables + FamilyTables<F>,
{
    let next = match next {
        Next::Other => match process_other(packet, tables) {
            Ok(verdict) => return verdict,
            Err(next) => next,
        },
        next => next,
    };
    match next {
        Next::Nat => process_nat::<false, F, P, T>(packet, tables),
        Next::First => match process_first(packet, tables) {
            Ok(verdict) => verdict,
            Err(_) => process_nat::<true, F, P, T>(packet, tables),
        },
        Next::Later => process_later(packet, tables),
        Next::Echo => process_echo(packet, tables),
        // All tags have been taken off, and nothing comes here twice.
        Next::Tagged | Next::Other => Verdict::Pass,
    }
}

/// Runs the stages of the modes DR and TUN.
///
/// # Errors
/// The packet is not theirs.
#[inline(always)]
pub fn enter<P, T>(packet: &mut P, tables: &T) -> Result<Verdict, Next>
where
    P: Packet,
    T: Tables + FamilyTables<V4> + FamilyTables<V6>,
{
    // Packed where they come together, see `Packed`.
    let end = match ethertype(packet) {
        Some(ETHERTYPE_IPV4) => stages::<V4, P, T>(packet, tables),
        Some(ETHERTYPE_IPV6) => stages::<V6, P, T>(packet, tables),
        Some(ethertype) if tag::is_tag(ethertype) => TAGGED,
        _ => Packed::new(Ok(Verdict::Pass)),
    };
    // Most packets end so: first, because compilers keep the order.
    if end == Packed::SENT_BACK {
        return Ok(Verdict::Transmit);
    }
    match end {
        TAGGED => Err(Next::Tagged),
        NAT => Err(Next::Nat),
        OTHER => Err(Next::Other),
        end => Ok(finish(packet, end, tables)),
    }
}

/// Runs the stages of the modes DR and TUN on a packet with other than the usual
/// headers: options, extensions, another protocol, an ICMP error.
///
/// # Errors
/// The packet is not theirs.
#[inline(always)]
pub fn process_other<F, P, T>(packet: &mut P, tables: &T) -> Result<Verdict, Next>
where
    F: Family,
    P: Packet,
    T: Tables + FamilyTables<F>,
{
    match other(packet, tables) {
        NAT => Err(Next::Nat),
        FIRST => Err(Next::First),
        LATER => Err(Next::Later),
        VIP => match vip::ask::<F, P, T>(packet, tables) {
            ECHO => Err(Next::Echo),
            end => Ok(finish(packet, end, tables)),
        },
        end => Ok(finish(packet, end, tables)),
    }
}

/// Runs the stages of NAT mode; with `FIRSTS` on the first fragment of a packet.
#[inline(always)]
pub fn process_nat<const FIRSTS: bool, F, P, T>(packet: &mut P, tables: &T) -> Verdict
where
    F: Family,
    P: Packet,
    T: Tables + FamilyTables<F>,
{
    let end = Packed::new(nat::process::<FIRSTS, F, P, T>(packet, tables));
    finish(packet, end, tables)
}

/// Runs the stages of the modes DR and TUN on the first fragment of a packet.
///
/// # Errors
/// The packet is NAT's.
#[inline(always)]
pub fn process_first<F, P, T>(packet: &mut P, tables: &T) -> Result<Verdict, Next>
where
    F: Family,
    P: Packet,
    T: Tables + FamilyTables<F>,
{
    match fragment::first(packet, tables) {
        NAT => Err(Next::Nat),
        end => Ok(finish(packet, end, tables)),
    }
}

/// Sends another fragment of a packet after the first, in all modes.
#[inline(always)]
pub fn process_later<F, P, T>(packet: &mut P, tables: &T) -> Verdict
where
    F: Family,
    P: Packet,
    T: Tables + FamilyTables<F>,
{
    let end = Packed::new(fragment::later(packet, tables));
    finish(packet, end, tables)
}

/// [`tag::untag`], with its drops counted.
///
/// # Errors
/// The verdict on a packet that keeps its tags.
#[inline(always)]
pub fn process_tagged<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Frame, Verdict> {
    tag::untag(packet, tables).map_err(|early| count(Packed::new(Err(early)), tables))
}

/// [`tag::retag`], with its drops counted. The packet's interface must be the
/// one at the wire.
#[inline(always)]
pub fn process_retag<P: Packet, T: Tables>(packet: &mut P, frame: &Frame, tables: &T) -> Verdict {
    count(Packed::new(tag::retag(packet, frame, tables)), tables)
}

/// Answers a ping of a VIP, or has a backend answer it.
#[inline(always)]
pub fn process_echo<F, P, T>(packet: &mut P, tables: &T) -> Verdict
where
    F: Family,
    P: Packet,
    T: Tables + FamilyTables<F>,
{
    let end = Packed::new(echo::process(packet, tables));
    finish(packet, end, tables)
}

/// Counts a drop. Whom the frame was sent to is asked before it is sent on; it
/// may be dropped before that, but not if it is another host's: it passes.
#[inline(always)]
fn finish<P: Packet, T: Tables>(packet: &mut P, end: Packed, tables: &T) -> Verdict {
    let Err(Verdict::Drop(reason)) = end.unpack() else {
        return count(end, tables);
    };
    let end = packet.aside(|packet| drop_if_ours(packet, reason, tables));
    count(end, tables)
}

/// With a place of its own on the stack.
#[inline(never)]
fn drop_if_ours<P: Packet, T: Tables>(packet: &P, reason: DropReason, tables: &T) -> Packed {
    // As in [`nat::parse`].
    Packed::new(Err(if is_sent_to_us(black_box(packet), tables) {
        Verdict::Drop(reason)
    } else {
        Verdict::Pass
    }))
}

/// Counts a drop that was an early end; the others have been counted.
#[inline(always)]
fn count<T: Tables>(end: Packed, tables: &T) -> Verdict {
    match end.unpack() {
        Err(Verdict::Drop(reason)) => {
            tables.count_drop(reason);
            Verdict::Drop(reason)
        }
        Ok(verdict) | Err(verdict) => verdict,
    }
}

/// Not the end: the packet is NAT's.
const NAT: Packed = Packed::new(Ok(Verdict::Host));

/// Not the end: its headers are not the usual ones. No interface has this index.
const OTHER: Packed = Packed::new(Err(Verdict::Redirect(u32::MAX - 1)));

/// Not the end: it is the first fragment of a packet.
const FIRST: Packed = Packed::new(Err(FIRST_FRAGMENT));

/// Not the end: it has VLAN tags. No interface has this index.
const TAGGED: Packed = Packed::new(Err(Verdict::Redirect(u32::MAX)));

/// Not the end: it is another fragment.
const LATER: Packed = Packed::new(Err(LATER_FRAGMENT));

/// Not the end: no service can be for it.
const VIP: Packed = Packed::new(Err(NO_SERVICES));

/// Not the end: it is a ping of a VIP.
const ECHO: Packed = Packed::new(Ok(Verdict::Host));

#[inline(always)]
fn stages<F: Family, P: Packet, T: Tables + FamilyTables<F>>(packet: &mut P, tables: &T) -> Packed {
    let Some(head) = F::head(packet) else {
        return OTHER;
    };
    match service::look_up(&head, tables) {
        Ok(Some(service)) if service.flags & flags::NAT != 0 => NAT,
        Ok(Some(service)) => match serve_plain(packet, head.protocol, service, tables) {
            Ok(end) => end,
            Err(early) => Packed::new(Err(early)),
        },
        Ok(None) => NAT,
        Err(early) => Packed::new(Err(early)),
    }
}

/// `Err` is an early end: a packet that passes or is dropped.
#[inline(always)]
fn serve_plain<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    protocol: u8,
    service: &ServiceValue,
    tables: &T,
) -> Result<Packed, Verdict> {
    let Some(info) = F::plain(packet, protocol) else {
        return Err(Verdict::Pass);
    };
    info.check_lengths(packet)?;
    let chosen = schedule::schedule_plain(packet, &info, service, tables)?;
    forward::forward_plain(packet, &info, &chosen, tables)
}

#[inline(always)]
fn other<F: Family, P: Packet, T: Tables + FamilyTables<F>>(packet: &mut P, tables: &T) -> Packed {
    let info = match F::parse(packet, false, tables) {
        Ok(info) => info,
        Err(early) => return Packed::new(Err(early)),
    };
    match service::find(packet, &info, tables) {
        Ok(Some(service)) if service.flags & flags::NAT != 0 => NAT,
        Ok(Some(service)) => Packed::new(serve(packet, &info, service, tables)),
        Ok(None) => NAT,
        Err(early) => Packed::new(Err(early)),
    }
}

/// `Err` is an early end: a packet that passes or is dropped.
#[inline(always)]
fn serve<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    info: &PacketInfo<F>,
    service: &ServiceValue,
    tables: &T,
) -> Result<Verdict, Verdict> {
    let chosen = schedule::schedule(packet, info, service, tables)?;
    forward::forward(packet, info, &chosen, tables)
}
