//! VS/DR: new MAC addresses, everything else as it came.

use lb_common::backend::Backend;
use lb_common::counters::DropReason;

use crate::packet::Packet;
use crate::verdict::{Verdict, drop};

/// Writes the next hop's MAC as destination and our own as source.
///
/// # Errors
/// A drop if the packet has no room for them.
#[inline(always)]
pub fn rewrite<P: Packet>(packet: &mut P, backend: &Backend) -> Result<(), Verdict> {
    let macs = [backend.next_hop_mac, backend.source_mac];
    match packet.write(0, macs) {
        Some(()) => Ok(()),
        None => drop(DropReason::Truncated),
    }
}
