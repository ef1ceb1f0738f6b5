//! Stage 6: the rewrite that the backend's mode asks for.

pub mod answer;
pub mod dr;
pub mod tun;

use lb_common::backend::mode;
use lb_common::counters::DropReason;

use crate::family::Family;
use crate::packet::Packet;
use crate::parse::PacketInfo;
use crate::schedule::Chosen;
use crate::tables::Tables;
use crate::verdict::{Verdict, drop};

/// Rewrites the packet for the chosen backend.
///
/// # Errors
/// [`Verdict::Pass`] if the frame was addressed to another host's MAC; a drop
/// if it cannot be rewritten. The packet is then as it was.
#[inline(always)]
pub fn forward<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    info: &PacketInfo<F>,
    chosen: &Chosen<'_>,
    tables: &T,
) -> Result<Verdict, Verdict> {
    let backend = chosen.backend;
    if !info.is_for_us(packet.interface(), backend, tables) {
        return Err(Verdict::Pass);
    }
    match backend.mode {
        mode::DR => dr::rewrite(packet, backend)?,
        mode::TUN => {
            if let Some(answered) = tun::encapsulate(packet, info, chosen, tables)? {
                return Err(answered);
            }
        }
        _ => return drop(DropReason::UnsupportedMode),
    }
    if backend.interface == packet.interface() {
        Ok(Verdict::Transmit)
    } else {
        Ok(Verdict::Redirect(backend.interface))
    }
}
