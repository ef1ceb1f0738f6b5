//! ICMP errors that the director sends: "fragmentation needed" (RFC 792, RFC
//! 1191), ICMPv6 "packet too big" (RFC 4443), and "time exceeded" of both.
//!
//! The packet itself becomes the answer: it is cut, and the new headers are
//! written in front. At most 512 bytes are quoted, which together with the
//! headers stays within the 576 bytes that RFC 1812, section 4.3.2.3, asks for.

use core::hint::black_box;

use lb_common::Address;
use lb_common::counters::DropReason;
use zerocopy::byteorder::{native_endian, network_endian};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{Sum, sum_bytes};
use crate::family::{Family, V6};
use crate::headers::{ETHERNET_LENGTH, EthernetHeader, Ipv4Header, Ipv6Header, header_words};
use crate::icmp;
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::tables::Tables;
use crate::verdict::{Verdict, drop};

/// Bytes of the packet that are quoted at most.
const QUOTED: usize = 512;

const TTL: u8 = 64;

/// What is wrong with the packet.
///
/// Aligned, because compilers write two words at once and the verifier wants
/// these to be so.
#[repr(align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Type and code of ICMP.
    v4: [u8; 2],
    /// Type and code of ICMPv6.
    v6: [u8; 2],
    /// The MTU, or 0.
    mtu: u16,
    /// Under which the packet counts if its sender was told.
    told: DropReason,
    /// And if not.
    untold: DropReason,
}

impl Error {
    /// It is larger than `mtu` bytes.
    pub const fn too_big(mtu: u16) -> Self {
        Self {
            v4: [3, 4],
            v6: [2, 0],
            mtu,
            told: DropReason::TooBig,
            untold: DropReason::TooBigUntold,
        }
    }

    /// It has been on its way for too long.
    pub const TIME_EXCEEDED: Self = Self {
        v4: [11, 0],
        v6: [3, 0],
        mtu: 0,
        told: DropReason::TtlExceeded,
        untold: DropReason::TtlExceededUntold,
    };
}

/// ICMP header of all errors: type, code, checksum, and a word that holds the
/// MTU or nothing.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct IcmpHeader {
    kind: [u8; 2],
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

/// Turns a packet larger than `mtu` bytes into the answer that says so, from
/// the address `source`.
///
/// # Errors
/// A drop if the sender cannot be told: because it allows fragmentation and so
/// would not listen, and as for [`tell`].
#[inline(always)]
pub fn too_big<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    info: &PacketInfo<F>,
    source: &F::Address,
    mtu: u16,
    tables: &T,
) -> Result<Verdict, Verdict> {
    if info.may_fragment {
        return drop(DropReason::NeedsFragmenting);
    }
    tell(packet, info, source, &Error::too_big(mtu), tables)
}

/// Turns a packet into the answer that says what is wrong with it, from the
/// address `source`.
///
/// # Errors
/// A drop if the sender cannot be told: because the packet is an ICMP error
/// itself, because its source is not one host (RFC 1122, section 3.2.2, RFC
/// 4443, section 2.4), or because too many were told already.
#[inline(always)]
pub fn tell<F: Family, P: Packet, T: Tables>(
    packet: &mut P,
    info: &PacketInfo<F>,
    source: &F::Address,
    error: &Error,
    tables: &T,
) -> Result<Verdict, Verdict> {
    if info.is_icmp || !F::is_of_one_host(&info.client) || !tables.may_send_icmp() {
        return drop(error.untold);
    }
    // Copies that compilers do not see through: what is passed by reference has
    // to be in memory, and were it `info` itself, packets that are not answered
    // would pay for that.
    let [client, source] = black_box([info.client, *source]);
    let ip_length = info.ip_length;
    let answered = packet.aside(|packet| F::answer(packet, ip_length, &client, &source, error));
    match answered {
        Some(()) => {
            tables.count_drop(error.told);
            Ok(Verdict::Transmit)
        }
        None => drop(error.untold),
    }
}

/// The answer in ICMP.
#[inline(never)]
pub fn ipv4<P: Packet>(
    packet: &mut P,
    ip_length: u16,
    client: &u32,
    source: &u32,
    error: &Error,
) -> Option<()> {
    let (ethernet, quoted) = make_room(packet, ip_length, size_of::<AnswerV4>())?;
    let mtu = network_endian::U32::new(u32::from(error.mtu));
    let checksum = sum_bytes(packet, size_of::<AnswerV4>(), quoted)?
        .add_u16(u16::from_ne_bytes(error.v4))
        .add_u32(u32::from_ne_bytes(mtu.to_bytes()))
        .finish();
    let length = (size_of::<AnswerV4>() - ETHERNET_LENGTH + quoted) as u16;
    let header_checksum = Sum::new()
        .add_u16(u16::from_ne_bytes([0x45, 0]))
        .add_u16(length.to_be())
        .add_u16(u16::from_ne_bytes([TTL, icmp::PROTOCOL_V4]))
        .add_u32(*source)
        .add_u32(*client)
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
        source: native_endian::U32::new(*source),
        destination: native_endian::U32::new(*client),
    };
    let icmp = IcmpHeader {
        kind: error.v4,
        checksum: checksum.to_ne_bytes(),
        mtu,
    };
    packet.write(0, AnswerV4 { ethernet, ip, icmp })
}

/// The answer in ICMPv6.
#[inline(never)]
pub fn ipv6<P: Packet>(
    packet: &mut P,
    ip_length: u16,
    client: &Address,
    source: &Address,
    error: &Error,
) -> Option<()> {
    let (ethernet, quoted) = make_room(packet, ip_length, size_of::<AnswerV6>())?;
    let mtu = network_endian::U32::new(u32::from(error.mtu));
    let length = (size_of::<IcmpHeader>() + quoted) as u16;
    let sum = sum_bytes(packet, size_of::<AnswerV6>(), quoted)?;
    let checksum = V6::add(V6::add(sum, source), client)
        // Pseudo-header, RFC 8200 section 8.1: length and next header.
        .add_u16(length.to_be())
        .add_u16(u16::from(icmp::PROTOCOL_V6).to_be())
        .add_u16(u16::from_ne_bytes(error.v6))
        .add_u32(u32::from_ne_bytes(mtu.to_bytes()))
        .finish();
    let ip = Ipv6Header {
        version_class_label: network_endian::U32::new(6 << 28),
        payload_length: network_endian::U16::new(length),
        next_header: icmp::PROTOCOL_V6,
        hop_limit: TTL,
        source: header_words(source),
        destination: header_words(client),
    };
    let icmp = IcmpHeader {
        kind: error.v6,
        checksum: checksum.to_ne_bytes(),
        mtu,
    };
    packet.write(0, AnswerV6 { ethernet, ip, icmp })
}

/// Makes the packet `headers` bytes of Ethernet, IP and ICMP, followed by what
/// is quoted. Returns the Ethernet header back to where it came from, and the
/// number of bytes quoted.
#[inline(always)]
fn make_room<P: Packet>(
    packet: &mut P,
    ip_length: u16,
    headers: usize,
) -> Option<(EthernetHeader, usize)> {
    let received = packet.read::<EthernetHeader>(0)?;
    if received.is_from_group() {
        return None;
    }
    let quoted = usize::from(ip_length).min(QUOTED);
    let excess = packet.total_len().checked_sub(ETHERNET_LENGTH + quoted)?;
    packet.adjust_tail(-(excess as i32))?;
    packet.adjust_head(-((headers - ETHERNET_LENGTH) as i32))?;
    Some((received.turned_round(), quoted))
}
