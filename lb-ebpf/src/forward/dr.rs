//! VS/DR: new MAC addresses, everything else as it came.

use lb_common::backend::Backend;
use lb_common::counters::DropReason;

use zerocopy::byteorder::native_endian::U32;

use crate::packet::Packet;
use crate::verdict::{Verdict, drop};

/// Writes the next hop's MAC as destination and our own as source.
///
/// # Errors
/// A drop if the packet has no room for them.
#[inline(always)]
pub fn rewrite<P: Packet>(packet: &mut P, backend: &Backend) -> Result<(), Verdict> {
    let [a, b, c] = backend.macs;
    match packet.write(0, [U32::new(a), U32::new(b), U32::new(c)]) {
        Some(()) => Ok(()),
        None => drop(DropReason::Truncated),
    }
}
