//! The answer to a packet that does not fit: ICMP "fragmentation needed" (RFC
//! 792, RFC 1191) or ICMPv6 "packet too big" (RFC 4443), from the VIP.
//!
//! The packet itself becomes the answer: it is cut, and the new headers are
//! written in front. 512 bytes are quoted, which together with the headers
//! stays within the 576 bytes that RFC 1812, section 4.3.2.3, asks for.

use lb_common::Address;
use lb_common::counters::DropReason;
use zerocopy::byteorder::{native_endian, network_endian};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::Sum;
use crate::family::{Family, V4, V6};
use crate::icmp;
use crate::packet::Packet;
use crate::parse::{
    ETHERNET_LENGTH, EthernetHeader, Ipv4Header, Ipv6Header, PacketInfo, header_words,
};
use crate::tables::Tables;
use crate::verdict::{Verdict, drop};

/// Bytes of the packet that are quoted.
const QUOTED: usize = 512;

const TTL: u8 = 64;

/// ICMP header of both errors: type, code, checksum, MTU.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct IcmpHeader {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    mtu: network_endian::U32,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct AnswerV4 {
    ethernet: EthernetHeader,
    ip: Ipv4Header,
    icmp: IcmpHeader,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct AnswerV6 {
    ethernet: EthernetHeader,
    ip: Ipv6Header,
    icmp: IcmpHeader,
}

/// Turns a packet larger than `mtu` bytes into the answer that says so.
///
/// # Errors
/// A drop if the sender cannot be told: because it allows fragmentation and so
/// would not listen, because it is an ICMP error itself (RFC 1122, section
/// 3.2.2), or because too many were told already.
#[inline(always)]
pub fn answer<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    info: &PacketInfo<F>,
    mtu: u16,
    tables: &T,
) -> Result<Verdict, Verdict> {
    if info.may_fragment {
        return drop(DropReason::NeedsFragmenting);
    }
    if info.is_icmp || !tables.may_send_icmp() {
        return drop(DropReason::TooBigUntold);
    }
    match F::answer_too_big(packet, info, mtu) {
        Some(()) => {
            tables.count_drop(DropReason::TooBig);
            Ok(Verdict::Transmit)
        }
        None => drop(DropReason::TooBigUntold),
    }
}

/// The answer in ICMP.
#[inline(always)]
pub fn answer_v4<P: Packet>(packet: &mut P, info: &PacketInfo<V4>, mtu: u16) -> Option<()> {
    const UNREACHABLE: u8 = 3;
    const FRAGMENTATION_NEEDED: u8 = 4;
    let ethernet = make_room(packet, size_of::<AnswerV4>())?;
    let mtu = network_endian::U32::new(u32::from(mtu));
    let checksum = packet
        .sum::<QUOTED>(size_of::<AnswerV4>())?
        .add_u16(u16::from_ne_bytes([UNREACHABLE, FRAGMENTATION_NEEDED]))
        .add_u32(u32::from_ne_bytes(mtu.to_bytes()))
        .finish();
    let length = (size_of::<AnswerV4>() - ETHERNET_LENGTH + QUOTED) as u16;
    let header_checksum = Sum::new()
        .add_u16(u16::from_ne_bytes([0x45, 0]))
        .add_u16(length.to_be())
        .add_u16(u16::from_ne_bytes([TTL, icmp::PROTOCOL_V4]))
        .add_u32(info.vip)
        .add_u32(info.client)
        .finish();
    let ip = Ipv4Header {
        version_ihl: 0x45,
        tos: 0,
        total_length: network_endian::U16::new(length),
        identification: network_endian::U16::ZERO,
        fragment: network_endian::U16::ZERO,
        ttl: TTL,
        protocol: icmp::PROTOCOL_V4,
        checksum: network_endian::U16::from_bytes(header_checksum.to_ne_bytes()),
        source: native_endian::U32::new(info.vip),
        destination: native_endian::U32::new(info.client),
    };
    let icmp = IcmpHeader {
        kind: UNREACHABLE,
        code: FRAGMENTATION_NEEDED,
        checksum: checksum.to_ne_bytes(),
        mtu,
    };
    packet.write(0, AnswerV4 { ethernet, ip, icmp })
}

/// The answer in ICMPv6.
#[inline(always)]
pub fn answer_v6<P: Packet>(packet: &mut P, info: &PacketInfo<V6>, mtu: u16) -> Option<()> {
    const TOO_BIG: u8 = 2;
    let ethernet = make_room(packet, size_of::<AnswerV6>())?;
    let mtu = network_endian::U32::new(u32::from(mtu));
    let length = (size_of::<IcmpHeader>() + QUOTED) as u16;
    let sum = packet.sum::<QUOTED>(size_of::<AnswerV6>())?;
    let sum = add_address(add_address(sum, &info.vip), &info.client);
    let checksum = sum
        // Pseudo-header, RFC 8200 section 8.1: length and next header.
        .add_u16(length.to_be())
        .add_u16(u16::from(icmp::PROTOCOL_V6).to_be())
        .add_u16(u16::from_ne_bytes([TOO_BIG, 0]))
        .add_u32(u32::from_ne_bytes(mtu.to_bytes()))
        .finish();
    let ip = Ipv6Header {
        version_class_label: network_endian::U32::new(6 << 28),
        payload_length: network_endian::U16::new(length),
        next_header: icmp::PROTOCOL_V6,
        hop_limit: TTL,
        source: header_words(&info.vip),
        destination: header_words(&info.client),
    };
    let icmp = IcmpHeader {
        kind: TOO_BIG,
        code: 0,
        checksum: checksum.to_ne_bytes(),
        mtu,
    };
    packet.write(0, AnswerV6 { ethernet, ip, icmp })
}

/// Makes the packet `headers` bytes of Ethernet, IP and ICMP, followed by what
/// is quoted. Returns the Ethernet header back to where it came from.
#[inline(always)]
fn make_room<P: Packet>(packet: &mut P, headers: usize) -> Option<EthernetHeader> {
    let received = packet.read::<EthernetHeader>(0)?;
    let excess = packet.len().checked_sub(ETHERNET_LENGTH + QUOTED)?;
    packet.adjust_tail(-(excess as i32))?;
    packet.adjust_head(-((headers - ETHERNET_LENGTH) as i32))?;
    Some(received.turned_round())
}

#[inline(always)]
const fn add_address(sum: Sum, address: &Address) -> Sum {
    sum.add_u64(address.words[0]).add_u64(address.words[1])
}
