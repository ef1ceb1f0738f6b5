//! The outer packet: whether something is encapsulated in it, and where.

use lb_common::Address;
use lb_common::tunnel::DropReason;
use zerocopy::FromBytes;

use crate::headers::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_LENGTH, Ipv4Header, Ipv6Header,
    ethertype, words,
};
use crate::packet::Packet;

/// IP protocol number of an IPv4 packet inside another, RFC 2003.
pub const IPV4: u8 = 4;
/// IP protocol number of an IPv6 packet inside another, RFC 2473.
pub const IPV6: u8 = 41;

/// The header around an encapsulated packet.
pub struct Outer {
    /// Where it comes from.
    pub source: Address,
    /// Where it is sent to.
    pub destination: Address,
    /// [`IPV4`] or [`IPV6`].
    pub protocol: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Offset of the inner packet in the frame.
    pub payload: usize,
    /// Offset of the end of the outer packet in the frame.
    pub end: usize,
    /// Why the inner packet cannot be read, if that is certain already.
    pub trouble: Option<DropReason>,
}

/// The outer header if the frame holds an encapsulated packet.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Option<Outer> {
    match ethertype(packet)? {
        ETHERTYPE_IPV4 => ipv4(packet),
        ETHERTYPE_IPV6 => ipv6(packet),
        _ => None,
    }
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P) -> Option<Outer> {
    let ip = packet.read::<Ipv4Header>(ETHERNET_LENGTH)?;
    let length = ip.length()?;
    if !matches!(ip.protocol, IPV4 | IPV6) {
        return None;
    }
    Some(Outer {
        source: Address::from_v4_word(ip.source.get()),
        destination: Address::from_v4_word(ip.destination.get()),
        protocol: ip.protocol,
        traffic_class: ip.tos,
        payload: ETHERNET_LENGTH + length,
        end: ETHERNET_LENGTH + usize::from(ip.total_length.get()),
        trouble: ip.is_fragment().then_some(DropReason::Fragment),
    })
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P) -> Option<Outer> {
    const START: usize = ETHERNET_LENGTH + IPV6_LENGTH;
    let ip = packet.read::<Ipv6Header>(ETHERNET_LENGTH)?;
    let first = ip.version_class_label.get();
    if first >> 28 != 6 {
        return None;
    }
    let (protocol, payload, trouble) = match ip.next_header {
        protocol @ (IPV4 | IPV6) => (protocol, START, None),
        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION => extensions(packet, ip.next_header, START)?,
        _ => return None,
    };
    Some(Outer {
        source: words(&ip.source),
        destination: words(&ip.destination),
        protocol,
        traffic_class: (first >> 20) as u8,
        payload,
        end: START + usize::from(ip.payload_length.get()),
        trouble,
    })
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Follows extension headers, at most six: Linux puts a destination option in
/// front of what it encapsulates. `None` if something else is behind them;
/// what cannot be known counts as encapsulated.
#[inline(always)]
fn extensions<P: Packet>(
    packet: &P,
    first: u8,
    start: usize,
) -> Option<(u8, usize, Option<DropReason>)> {
    const MAX: usize = 6;
    #[repr(C)]
    #[derive(Clone, Copy, FromBytes)]
    struct Start {
        next_header: u8,
        length: u8,
        fragment: [u8; 2],
    }
    let mut next_header = first;
    let mut offset = start;
    for _ in 0..MAX {
        let Some(header) = packet.read::<Start>(offset) else {
            return Some((IPV6, offset, Some(DropReason::Truncated)));
        };
        let mut units = usize::from(header.length) + 1;
        if next_header == FRAGMENT {
            units = 1;
            let is_whole = u16::from_be_bytes(header.fragment) & 0xfff9 == 0;
            if !is_whole {
                let may_be_tunnel = matches!(
                    header.next_header,
                    IPV4 | IPV6 | HOP_BY_HOP | ROUTING | DESTINATION
                );
                return may_be_tunnel.then_some((IPV6, offset, Some(DropReason::Fragment)));
            }
        }
        next_header = header.next_header;
        offset += units * 8;
        match next_header {
            IPV4 | IPV6 => return Some((next_header, offset, None)),
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION => {}
            _ => return None,
        }
    }
    Some((IPV6, offset, Some(DropReason::Malformed)))
}
