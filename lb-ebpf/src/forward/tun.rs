//! VS/TUN: the packet inside another one to the backend.
//!
//! IP in IP (RFC 2003, RFC 2473, RFC 4213), in all pairings of IP versions.
//! DSCP and ECN are copied outwards (RFC 6040, normal mode; RFC 2983, uniform
//! model). The outer packet is never fragmented: what does not fit is answered
//! as a router would, see [`super::answer`].

use lb_common::Address;
use lb_common::backend::mode;
use lb_common::counters::DropReason;
use zerocopy::byteorder::{native_endian, network_endian};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::Sum;
use crate::family::Family;
use crate::headers::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, Ipv4Header, Ipv6Header, header_words,
};
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::schedule::Chosen;
use crate::verdict::{Verdict, drop};

const OVERHEAD_V4: u16 = mode::overhead(mode::TUN_V4);
const OVERHEAD_V6: u16 = mode::overhead(mode::TUN_V6);

/// Time to live, hop limit: RFC 1700's default, as Linux's own tunnels have.
const TTL: u8 = 64;

/// Ethernet and IPv4, as they are written in front of a packet.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct OuterV4 {
    ethernet: EthernetHeader,
    ip: Ipv4Header,
}

/// Ethernet and IPv6, as they are written in front of a packet.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct OuterV6 {
    ethernet: EthernetHeader,
    ip: Ipv6Header,
}

/// Puts a packet that fits into one to the backend's IPv4 address.
///
/// # Errors
/// A drop if there is no room in front of it.
#[inline(always)]
pub fn in_ipv4<F: Family, P: Packet>(
    packet: &mut P,
    info: &PacketInfo<F>,
    chosen: &Chosen<'_>,
) -> Result<(), Verdict> {
    make_room(packet, OVERHEAD_V4)?;
    let backend = chosen.backend;
    let total_length = network_endian::U16::new(info.ip_length + OVERHEAD_V4);
    let source = spread(&backend.source, backend.source_spread, chosen.hash).v4_word();
    let destination = backend.address.v4_word();
    let ethernet = EthernetHeader::new(&backend.macs, ETHERTYPE_IPV4);
    let first = u16::from_ne_bytes([0x45, info.traffic_class]);
    let ttl_protocol = u16::from_ne_bytes([TTL, F::ENCAPSULATED]);
    let checksum = Sum::new()
        .add_u16(first)
        .add_u16(u16::from_ne_bytes(total_length.to_bytes()))
        .add_u16(Ipv4Header::DONT_FRAGMENT.to_be())
        .add_u16(ttl_protocol)
        .add_u32(source)
        .add_u32(destination)
        .finish();
    let ip = Ipv4Header {
        version_ihl: 0x45,
        tos: info.traffic_class,
        total_length,
        identification: network_endian::U16::ZERO,
        fragment: network_endian::U16::new(Ipv4Header::DONT_FRAGMENT),
        ttl: TTL,
        protocol: F::ENCAPSULATED,
        checksum: network_endian::U16::from_bytes(checksum.to_ne_bytes()),
        source: native_endian::U32::new(source),
        destination: native_endian::U32::new(destination),
    };
    written(packet.write(0, OuterV4 { ethernet, ip }))
}

/// The same for an IPv6 address.
///
/// # Errors
/// As for [`in_ipv4`].
#[inline(always)]
pub fn in_ipv6<F: Family, P: Packet>(
    packet: &mut P,
    info: &PacketInfo<F>,
    chosen: &Chosen<'_>,
) -> Result<(), Verdict> {
    const FLOW_LABEL: u32 = 0xf_ffff;
    make_room(packet, OVERHEAD_V6)?;
    let backend = chosen.backend;
    let source = spread(&backend.source, backend.source_spread, chosen.hash);
    let ethernet = EthernetHeader::new(&backend.macs, ETHERTYPE_IPV6);
    // A label for each flow, RFC 6438: routers and NICs spread by it.
    let version_class_label =
        6 << 28 | u32::from(info.traffic_class) << 20 | chosen.hash & FLOW_LABEL;
    let ip = Ipv6Header {
        version_class_label: network_endian::U32::new(version_class_label),
        payload_length: network_endian::U16::new(info.ip_length),
        next_header: F::ENCAPSULATED,
        hop_limit: TTL,
        source: header_words(&source),
        destination: header_words(&backend.address),
    };
    written(packet.write(0, OuterV6 { ethernet, ip }))
}

/// First of all, so that what is needed of the backend is read afterwards and
/// does not have to be kept over the call.
#[inline(always)]
fn make_room<P: Packet>(packet: &mut P, bytes: u16) -> Result<(), Verdict> {
    written(packet.adjust_head(-i32::from(bytes)))
}

#[inline(always)]
fn written(done: Option<()>) -> Result<(), Verdict> {
    match done {
        Some(()) => Ok(()),
        None => drop(DropReason::NoHeadroom),
    }
}

/// The outer source of a flow: the lowest `bits` bits of `base` from its hash.
#[inline(always)]
fn spread(base: &Address, bits: u8, hash: u32) -> Address {
    let mask = (1_u32 << (bits & 31)) - 1;
    base.or_low_bits(hash & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_low_bits_of_the_source_differ() {
        let base = Address::from_v4_word(u32::from_ne_bytes([192, 0, 2, 0]));
        let octets = |bits, hash| spread(&base, bits, hash).v4_word().to_ne_bytes();
        assert_eq!(octets(0, u32::MAX), [192, 0, 2, 0]);
        assert_eq!(octets(8, 0x1234_56ab), [192, 0, 2, 0xab]);
        assert_eq!(octets(4, 0x1234_56ab), [192, 0, 2, 0x0b]);
    }
}
