//! The packet path of a director.
//!
//! A packet goes through these stages, each in a file of its own, and never
//! back:
//!
//! 1. [`parse`]: Ethernet to layer 4 into one [`parse::PacketInfo`]. Later
//!    stages do not look at headers again.
//! 2. [`icmp`]: an ICMP error becomes the flow it speaks of.
//! 3. [`service`]: which service is it for? For none: the packet passes
//!    untouched.
//! 4. [`schedule`]: the flow's slot in the service's ring.
//! 5. [`flow`]: the slot's backend, or the one that the flow table remembers.
//! 6. [`forward`]: the rewrite that the service's mode asks for.
//! 7. [`verdict`]: what becomes of the packet, and the counters.
//!
//! # Invariants
//! - Every packet is forwarded whole and correct, dropped under a reason that
//!   is counted, or passed untouched. Nothing is written before stage 6.
//! - Until a service is found nothing is dropped: what is not ours, however
//!   malformed, is for the host to judge. Fragments for a VIP are the one
//!   exception, because only the first of them names a port.
//! - While a slot is settled the flow table is neither read nor written.
//!
//! Stages are generic over [`packet::Packet`] and [`tables::Tables`], so that
//! the same source runs in the kernel, in unit tests and in fuzzers. Headers
//! are copied out of the packet, never borrowed: the verifier wants each access
//! checked, and a reference would outlive its check.

#![cfg_attr(not(any(test, feature = "host")), no_std)]

pub mod backend;
pub mod checksum;
pub mod family;
pub mod flow;
pub mod forward;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod icmp;
pub mod packet;
pub mod parse;
pub mod schedule;
pub mod service;
pub mod tables;
pub mod verdict;

use family::{Family, V4, V6};
use packet::Packet;
use parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ethertype};
use tables::Tables;
use verdict::Verdict;

/// Runs all stages on one packet.
#[inline(always)]
pub fn process<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let verdict = match ethertype(packet) {
        Some(ETHERTYPE_IPV4) => stages::<V4, P, T>(packet, tables),
        Some(ETHERTYPE_IPV6) => stages::<V6, P, T>(packet, tables),
        _ => Ok(Verdict::Pass),
    };
    match verdict {
        Ok(verdict) => verdict,
        Err(Verdict::Drop(reason)) => {
            tables.count_drop(reason);
            Verdict::Drop(reason)
        }
        Err(verdict) => verdict,
    }
}

/// `Err` is an early end: a packet that passes or is dropped.
#[inline(always)]
fn stages<F: Family, P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Verdict, Verdict> {
    let info = F::parse(packet, tables)?;
    let service = service::find(packet, &info, tables)?;
    let chosen = schedule::schedule(packet, &info, &service, tables)?;
    let verdict = forward::forward(packet, &info, &chosen, tables)?;
    tables.count_forwarded(chosen.id, info.ip_length, chosen.new_flow);
    Ok(verdict)
}
