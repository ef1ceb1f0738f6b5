//! Stage 6: the rewrite that the backend's mode asks for.

pub mod answer;
pub mod dr;
pub mod tun;

use lb_common::backend::{Backend, mode};
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
    Ok(leaves(packet, backend))
}

/// Rewrites a fragment that is not the first. Nobody is told of one that does
/// not fit: of the first they were.
///
/// # Errors
/// A drop if it cannot be rewritten.
#[inline(always)]
pub fn forward_later<F: Family, P: Packet>(
    packet: &mut P,
    info: &PacketInfo<F>,
    chosen: &Chosen<'_>,
) -> Result<Verdict, Verdict> {
    let backend = chosen.backend;
    match backend.mode {
        mode::DR => dr::rewrite(packet, backend)?,
        mode::TUN if info.ip_length > tun::inner_mtu(backend) => {
            return drop(if info.may_fragment {
                DropReason::NeedsFragmenting
            } else {
                DropReason::TooBigUntold
            });
        }
        mode::TUN => tun::wrap(packet, info, chosen)?,
        _ => return drop(DropReason::UnsupportedMode),
    }
    Ok(leaves(packet, backend))
}

#[inline(always)]
fn leaves<P: Packet>(packet: &P, backend: &Backend) -> Verdict {
    if backend.interface == packet.interface() {
        Verdict::Transmit
    } else {
        Verdict::Redirect(backend.interface)
    }
}
