//! Sending a translated packet on, as a router does.

use lb_common::backend::Backend;
use lb_common::counters::DropReason;
use zerocopy::byteorder::native_endian::U32;

use super::Job;
use crate::family::Family;
use crate::forward::answer::{self, Error};
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::tables::{FamilyTables, Route, RouteQuery, Tables};
use crate::translate::{Endpoints, Sender, translate, translate_later};
use crate::verdict::{Packed, Verdict};

/// What is done with a packet. In words rather than an enum: what an enum does
/// not use is left to chance, and the verifier sees it read. Aligned, because
/// compilers read two words at once.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Way {
    macs: [u32; 3],
    /// Index of the interface; 0 for the host.
    interface: u32,
    reason: DropReason,
    /// Of the path, bytes.
    mtu: u16,
    kind: u16,
}

impl Way {
    /// By the interface, or by the host if there is none.
    const SEND: u16 = 0;
    /// Answered with an ICMP error: it is too big.
    const TOO_BIG: u16 = 1;
    /// Dropped under the reason.
    const DROP: u16 = 2;

    /// By the host.
    pub const HOST: Self = Self {
        kind: Self::SEND,
        interface: 0,
        macs: [0; 3],
        mtu: 0,
        reason: DropReason::NoRoute,
    };

    #[inline(always)]
    const fn dropped(reason: DropReason) -> Self {
        Self {
            kind: Self::DROP,
            reason,
            ..Self::HOST
        }
    }

    #[inline(always)]
    const fn by(interface: u32, macs: [u32; 3]) -> Self {
        Self {
            interface,
            macs,
            ..Self::HOST
        }
    }

    /// The kernel fragments what may be fragmented.
    #[inline(always)]
    const fn too_big<F: Family>(info: &PacketInfo<F>, mtu: u16) -> Self {
        Self {
            kind: if info.may_fragment {
                Self::SEND
            } else {
                Self::TOO_BIG
            },
            mtu,
            ..Self::HOST
        }
    }
}

/// The way to a backend, by the next hop that its entry has.
#[inline(always)]
pub fn to_backend<F: Family>(info: &PacketInfo<F>, backend: &Backend) -> Way {
    if info.ip_length > backend.mtu {
        Way::too_big(info, backend.mtu)
    } else {
        Way::by(backend.interface, backend.macs)
    }
}

/// The way that the kernel's tables have for a packet that will have these
/// endpoints.
#[inline(always)]
pub fn to_client<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    to: &Endpoints<F>,
    tables: &T,
) -> Way {
    let query = RouteQuery {
        source: to.source,
        destination: to.destination,
        ports: [to.source_port, to.destination_port],
        protocol: info.protocol,
        traffic_class: info.traffic_class,
        length: info.ip_length,
        interface: packet.interface(),
    };
    match tables.route(&query) {
        Route::Via { interface, macs }
            if interface == packet.interface()
                || tables.can_redirect(interface)
                || tables
                    .vlan(interface)
                    .is_some_and(|vlan| tables.can_redirect(vlan.interface)) =>
        {
            Way::by(interface, macs)
        }
        Route::Via { .. } | Route::Host => Way::HOST,
        Route::TooBig(mtu) => Way::too_big(info, mtu),
        Route::Unreachable => Way::dropped(DropReason::NoRoute),
        Route::Disabled => Way::dropped(DropReason::NotForwarding),
    }
}

/// Translates a packet and sends it on.
#[inline(always)]
pub fn send<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    info: &PacketInfo<F>,
    job: &Job<F>,
    tables: &T,
) -> Packed {
    let Job { to, way, .. } = job;
    if info.ttl <= 1 || way.kind != Way::SEND {
        return refuse(packet, info, way, tables);
    }
    emit(packet, way, tables, |packet, sender| {
        translate(packet, info, to, sender)
    })
}

/// The same for a fragment that is not the first. Nobody is told of one that
/// cannot be sent (RFC 1122, section 3.2.2): of the first they were.
#[inline(always)]
pub fn send_later<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    info: &PacketInfo<F>,
    job: &Job<F>,
    tables: &T,
) -> Packed {
    let Job { to, way, .. } = job;
    let reason = if info.ttl <= 1 {
        DropReason::TtlExceededUntold
    } else if way.kind == Way::TOO_BIG {
        DropReason::TooBigUntold
    } else if way.kind == Way::DROP {
        way.reason
    } else {
        return emit(packet, way, tables, |packet, sender| {
            translate_later(packet, to, sender)
        });
    };
    Packed::new(Err(Verdict::Drop(reason)))
}

#[inline(always)]
fn emit<P: Packet, T: Tables>(
    packet: &mut P,
    way: &Way,
    tables: &T,
    translate: impl FnOnce(&mut P, Sender) -> Option<()>,
) -> Packed {
    let is_generic = tables.settings().is_some_and(|s| s.generic != 0);
    let sender = if way.interface == 0 {
        Sender::Kernel
    } else if is_generic {
        Sender::Filled
    } else {
        Sender::Driver
    };
    if translate(packet, sender).is_none() {
        return Packed::new(Err(Verdict::Drop(DropReason::Truncated)));
    }
    if way.interface == 0 {
        return Packed::new(Ok(Verdict::Host));
    }
    if packet.write(0, way.macs.map(U32::new)).is_none() {
        return Packed::new(Err(Verdict::Drop(DropReason::Truncated)));
    }
    Packed::new(Ok(if way.interface == packet.interface() {
        Verdict::Transmit
    } else {
        Verdict::Redirect(way.interface)
    }))
}

/// Answers or drops a packet that cannot be sent on.
#[inline(never)]
fn refuse<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    info: &PacketInfo<F>,
    way: &Way,
    tables: &T,
) -> Packed {
    let error = if info.ttl <= 1 {
        Error::TIME_EXCEEDED
    } else if way.kind == Way::TOO_BIG {
        Error::too_big(way.mtu)
    } else {
        return Packed::new(Err(Verdict::Drop(way.reason)));
    };
    let source = own_address(packet, info, tables);
    let end = answer::tell(packet, info, &source, &error, tables);
    // Not forwarded either way.
    Packed::new(end.and_then(Err))
}

/// The address that the director's errors about a packet come from, RFC 1812,
/// section 4.3.2.4: one of the interface, or else the packet's destination.
#[inline(always)]
fn own_address<F: Family, P: Packet, T: Tables>(
    packet: &P,
    info: &PacketInfo<F>,
    tables: &T,
) -> F::Address {
    let router = tables.router(packet.interface());
    match router.as_ref().and_then(F::router) {
        Some(address) => address,
        None => info.vip,
    }
}
