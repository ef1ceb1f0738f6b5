//! What a VIP itself has a setting for: its pings, and packets of protocols that
//! no service has.

use lb_common::counters::DropReason;
use lb_common::vip::{other_protocols, ping};

use crate::ECHO;
use crate::family::Family;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::{Packed, Verdict, drop};

/// What becomes of an IP packet that no service can be for: it passes, is
/// dropped, or is an [`ECHO`] that is not the host's to answer.
#[inline(never)]
pub fn ask<F: Family, P: Packet, T: Tables>(packet: &P, tables: &T) -> Packed {
    const PASS: Packed = Packed::new(Err(Verdict::Pass));
    let Some((destination, is_icmp)) = F::destination(packet) else {
        return PASS;
    };
    let Some(vip) = tables.vip(&F::to_common(&destination)) else {
        return PASS;
    };
    if is_icmp && vip.ping != ping::HOST && F::echo_request(packet).is_ok() {
        return ECHO;
    }
    if !is_icmp && vip.other_protocols == other_protocols::DROP {
        return Packed::new(drop(DropReason::OtherProtocol));
    }
    PASS
}
