//! Packets that arrive: from a director, from a stranger, or not encapsulated.

use lb_common::Address;
use lb_common::tunnel::{Counter, DropReason, role};
use zerocopy::byteorder::{native_endian, network_endian};

use super::outer::{self, IPV4, IPV6, Outer};
use super::{Tables, Verdict, ecn};
use crate::checksum::Sum;
use crate::headers::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, IPV6_LENGTH, Ipv4Header,
    Ipv6Header, words,
};
use crate::packet::Packet;

/// Takes a director's packet for a VIP out of its outer packet, drops what
/// must not get in, lets the rest pass as it is.
///
/// With [`role::FILTER`] the kernel's own device takes it out, and would do so
/// for anybody: then everything encapsulated that is for this host and not
/// from a director to a VIP is dropped. With [`role::DECAPSULATE`] the host's
/// own tunnels are left alone: a stranger's packet is dropped only if it is
/// for a VIP.
#[inline(always)]
pub fn receive<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(outer) = outer::parse(packet) else {
        return Verdict::Pass;
    };
    // The kernel's devices take what is for any of the host's addresses.
    let is_local = tables.is_local(&outer.destination)
        || (tables.settings().role == role::FILTER && tables.is_vip(&outer.destination));
    if !is_local {
        return Verdict::Pass;
    }
    match let_in(packet, &outer, tables) {
        Ok(verdict) => verdict,
        Err(reason) => {
            tables.count_drop(reason);
            Verdict::Drop(reason)
        }
    }
}

#[inline(always)]
fn let_in<P: Packet, T: Tables>(
    packet: &mut P,
    outer: &Outer,
    tables: &T,
) -> Result<Verdict, DropReason> {
    let only_filters = tables.settings().role == role::FILTER;
    if !tables.is_director(&outer.source) {
        let is_for_vip = || inner(packet, outer).is_ok_and(|i| tables.is_vip(&i.destination));
        return if only_filters || is_for_vip() {
            Err(DropReason::Stranger)
        } else {
            Ok(Verdict::Pass)
        };
    }
    let inner = inner(packet, outer)?;
    if !tables.is_vip(&inner.destination) {
        return Err(DropReason::NotVip);
    }
    if matches!(inner.protocol, IPV4 | IPV6) {
        return Err(DropReason::Nested);
    }
    let traffic_class =
        ecn::decapsulated(outer.traffic_class, inner.traffic_class).ok_or(DropReason::Congested)?;
    if !only_filters {
        if traffic_class != inner.traffic_class {
            mark(packet, outer, traffic_class).ok_or(DropReason::Truncated)?;
        }
        strip(packet, outer).ok_or(DropReason::NotStripped)?;
    }
    tables.count(Counter::Decapsulated);
    Ok(Verdict::Pass)
}

/// What matters of the packet inside.
struct Inner {
    destination: Address,
    protocol: u8,
    traffic_class: u8,
}

#[inline(always)]
fn inner<P: Packet>(packet: &P, outer: &Outer) -> Result<Inner, DropReason> {
    if let Some(reason) = outer.trouble {
        return Err(reason);
    }
    // The call is for the few packets in several buffers.
    if outer.end > packet.len() && outer.end > packet.total_len() {
        return Err(DropReason::Truncated);
    }
    if outer.end < outer.payload {
        return Err(DropReason::Malformed);
    }
    let room = outer.end - outer.payload;
    if outer.protocol == IPV4 {
        inner_v4(packet, outer.payload, room)
    } else {
        inner_v6(packet, outer.payload, room)
    }
}

#[inline(always)]
fn inner_v4<P: Packet>(packet: &P, offset: usize, room: usize) -> Result<Inner, DropReason> {
    if room < size_of::<Ipv4Header>() {
        return Err(DropReason::Truncated);
    }
    let ip = packet
        .read::<Ipv4Header>(offset)
        .ok_or(DropReason::Truncated)?;
    let header_length = ip.length().ok_or(DropReason::Malformed)?;
    let length = usize::from(ip.total_length.get());
    if length < header_length {
        return Err(DropReason::Malformed);
    }
    if length > room {
        return Err(DropReason::InnerLength);
    }
    Ok(Inner {
        destination: Address::from_v4_word(ip.destination.get()),
        protocol: ip.protocol,
        traffic_class: ip.tos,
    })
}

#[inline(always)]
fn inner_v6<P: Packet>(packet: &P, offset: usize, room: usize) -> Result<Inner, DropReason> {
    if room < IPV6_LENGTH {
        return Err(DropReason::Truncated);
    }
    let ip = packet
        .read::<Ipv6Header>(offset)
        .ok_or(DropReason::Truncated)?;
    let first = ip.version_class_label.get();
    if first >> 28 != 6 {
        return Err(DropReason::Malformed);
    }
    if IPV6_LENGTH + usize::from(ip.payload_length.get()) > room {
        return Err(DropReason::InnerLength);
    }
    Ok(Inner {
        destination: words(&ip.destination),
        protocol: ip.next_header,
        traffic_class: (first >> 20) as u8,
    })
}

/// Writes the inner traffic class, and IPv4's header checksum (RFC 1624).
#[inline(always)]
fn mark<P: Packet>(packet: &mut P, outer: &Outer, traffic_class: u8) -> Option<()> {
    let offset = outer.payload;
    if outer.protocol == IPV4 {
        let mut ip = packet.read::<Ipv4Header>(offset)?;
        let word = |tos| u16::from_ne_bytes([ip.version_ihl, tos]);
        let checksum = Sum::new()
            .add_u16(!u16::from_ne_bytes(ip.checksum.to_bytes()))
            .add_u16(!word(ip.tos))
            .add_u16(word(traffic_class))
            .finish();
        ip.checksum = network_endian::U16::from_bytes(checksum.to_ne_bytes());
        ip.tos = traffic_class;
        packet.write(offset, ip)
    } else {
        const TRAFFIC_CLASS: u32 = 0xff << 20;
        let first = packet.read::<network_endian::U32>(offset)?.get();
        let first = first & !TRAFFIC_CLASS | u32::from(traffic_class) << 20;
        packet.write(offset, network_endian::U32::new(first))
    }
}

/// Removes the outer header; the Ethernet header moves up to the inner packet.
#[inline(always)]
fn strip<P: Packet>(packet: &mut P, outer: &Outer) -> Option<()> {
    let mut ethernet = packet.read::<EthernetHeader>(0)?;
    let ethertype = if outer.protocol == IPV4 {
        ETHERTYPE_IPV4
    } else {
        ETHERTYPE_IPV6
    };
    ethernet.ethertype = native_endian::U16::new(ethertype);
    packet.adjust_head((outer.payload - ETHERNET_LENGTH) as i32)?;
    packet.write(0, ethernet)
}
