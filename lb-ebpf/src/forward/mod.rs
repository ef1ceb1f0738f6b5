//! Stage 6: the rewrite that the backend's mode asks for.

pub mod answer;
pub mod dr;
pub mod tun;

use lb_common::backend::{Backend, mode};
use lb_common::counters::DropReason;

use crate::family::Family;
use crate::headers::EthernetHeader;
use crate::packet::Packet;
use crate::packet_info::{PacketInfo, is_for_us};
use crate::schedule::Chosen;
use crate::tables::Tables;
use crate::verdict::{Packed, Verdict, drop};

/// Rewrites the packet for the chosen backend, and counts it there.
///
/// # Errors
/// [`Verdict::Pass`] if the frame was addressed to another host's MAC; a drop
/// if it cannot be rewritten; the answer that it has become if it is too big.
/// Unless it was answered the packet is then as it was.
#[inline(always)]
pub fn forward<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    info: &PacketInfo<F>,
    chosen: &Chosen<'_>,
    tables: &T,
) -> Result<Verdict, Verdict> {
    if !info.is_for_us(packet.interface(), chosen.backend, tables) {
        return Err(Verdict::Pass);
    }
    rewrite(packet, info, chosen, tables, |packet, mtu| {
        Packed::new(answer::too_big(packet, info, &info.vip, mtu, tables))
    })?
    .unpack()
}

/// The same for a packet that is [`crate::plain`].
///
/// # Errors
/// As for [`forward`].
#[inline(always)]
pub fn forward_plain<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    info: &PacketInfo<F>,
    chosen: &Chosen<'_>,
    tables: &T,
) -> Result<Packed, Verdict> {
    let Some(ethernet) = packet.read::<EthernetHeader>(0) else {
        return Err(Verdict::Pass);
    };
    let destination = ethernet.destination();
    if !is_for_us(destination, packet.interface(), chosen.backend, tables) {
        return Err(Verdict::Pass);
    }
    let protocol = info.protocol;
    rewrite(packet, info, chosen, tables, |packet, mtu| {
        packet.aside(|packet| too_big_plain::<F, P, T>(packet, protocol, mtu, tables))
    })
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
    if info.ip_length > backend.mtu {
        return drop(if info.may_fragment {
            DropReason::NeedsFragmenting
        } else {
            DropReason::TooBigUntold
        });
    }
    match backend.mode {
        mode::DR => dr::rewrite(packet, backend)?,
        mode::TUN_V4 => tun::in_ipv4(packet, info, chosen)?,
        mode::TUN_V6 => tun::in_ipv6(packet, info, chosen)?,
        _ => return drop(DropReason::UnsupportedMode),
    }
    leaves(packet, backend).unpack()
}

#[inline(always)]
fn rewrite<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    info: &PacketInfo<F>,
    chosen: &Chosen<'_>,
    tables: &T,
    too_big: impl FnOnce(&mut P, u16) -> Packed,
) -> Result<Packed, Verdict> {
    let backend = chosen.backend;
    // In DR too: drivers lose what their interface cannot send.
    if info.ip_length > backend.mtu {
        return Err(too_big(packet, backend.mtu).unpack()?);
    }
    // Before the rewrite, which needs the backend's entry: so memory is asked for
    // both at once. What cannot be rewritten after all is taken back.
    tables.count_forwarded(chosen.id, info.ip_length, chosen.new_flow);
    let done = match backend.mode {
        mode::DR => dr::rewrite(packet, backend),
        mode::TUN_V4 => tun::in_ipv4(packet, info, chosen),
        mode::TUN_V6 => tun::in_ipv6(packet, info, chosen),
        _ => drop(DropReason::UnsupportedMode),
    };
    if let Err(end) = done {
        tables.uncount_forwarded(chosen.id, info.ip_length, chosen.new_flow);
        return Err(end);
    }
    Ok(leaves(packet, backend))
}

/// Answers a packet that is [`crate::plain`].
#[inline(never)]
fn too_big_plain<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    protocol: u8,
    mtu: u16,
    tables: &T,
) -> Packed {
    Packed::new(match F::plain(packet, protocol) {
        Some(info) => answer::too_big(packet, &info, &info.vip, mtu, tables),
        None => drop(DropReason::Truncated),
    })
}

#[inline(always)]
fn leaves<P: Packet>(packet: &P, backend: &Backend) -> Packed {
    if backend.interface == packet.interface() {
        Packed::SENT_BACK
    } else {
        Packed::new(Ok(Verdict::Redirect(backend.interface)))
    }
}
