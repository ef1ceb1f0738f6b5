//! Other addresses and ports for a packet, with checksums to match.
//!
//! An ICMP error is translated with the packet that it quotes (RFC 5508,
//! section 4.2; RFC 3022, section 4.3), of which only the first 8 bytes of
//! layer 4 are certain to be there.

use lb_common::protocol::{SCTP, TCP};
use zerocopy::byteorder::native_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{Sum, sum_bytes, update};
use crate::family::Family;
use crate::headers::{ETHERNET_LENGTH, Ports};
use crate::icmp;
use crate::packet::Packet;
use crate::packet_info::{PacketInfo, fragment};

/// The endpoints that a packet is to have: as it was sent in place of
/// `client`, and as it is to arrive in place of `vip`, in the words of
/// [`PacketInfo`]. Ports are in network byte order.
///
/// Aligned, because compilers write two words at once and the verifier wants
/// these to be so.
#[repr(align(8))]
#[derive(Clone, Copy)]
pub struct Endpoints<F: Family> {
    /// Source address.
    pub source: F::Address,
    /// Destination address.
    pub destination: F::Address,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

impl<F: Family> Endpoints<F> {
    /// Those that the packet has.
    #[inline(always)]
    pub const fn of(info: &PacketInfo<F>) -> Self {
        Self {
            source: info.client,
            destination: info.vip,
            source_port: info.client_port,
            destination_port: info.port,
        }
    }
}

/// Who sends the packet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The driver, as the packet is; the time to live is one less.
    Driver,
    /// The driver, after the kernel has filled in a checksum that it knows to
    /// be unfinished; the time to live is one less.
    Filled,
    /// The kernel, which does both.
    Kernel,
}

/// Offsets are at most 14 + 40 + 6 × 2048 + 8 + 60. Their upper bound is lost
/// on the way through memory, and the verifier wants to see it.
const OFFSET: usize = 0x3fff;

/// Writes other endpoints into a packet. `None` if it is cut short, which
/// [`PacketInfo::check_lengths`] has ruled out.
#[inline(never)]
pub fn translate<F: Family, P: Packet>(
    packet: &mut P,
    info: &PacketInfo<F>,
    to: &Endpoints<F>,
    sender: Sender,
) -> Option<()> {
    let source_changes = to.source != info.client || to.source_port != info.client_port;
    let addresses = address_change(info, to);
    if info.is_icmp {
        // From a router it keeps its source, unless that might be one that
        // the receiver is not to know of, or could not know.
        let source = source_changes.then_some(to.source);
        quoted(packet, info, to, addresses)?;
        let rest = rewrite_ip::<F, P>(packet, source.as_ref(), &to.destination, sender)?;
        if !F::IS_V4 {
            let at = usize::from(info.layer4) & OFFSET;
            let checksum: u16 = packet.read(at + ICMP_CHECKSUM)?;
            packet.write(at + ICMP_CHECKSUM, update(checksum, rest))?;
        }
        return Some(());
    }
    layer4(packet, info, to, addresses, sender)?;
    translate_later(packet, to, sender)
}

/// The same for a fragment that is not the first: it has no ports, nor a
/// checksum of layer 4.
#[inline(always)]
pub fn translate_later<F: Family, P: Packet>(
    packet: &mut P,
    to: &Endpoints<F>,
    sender: Sender,
) -> Option<()> {
    rewrite_ip::<F, P>(packet, Some(&to.source), &to.destination, sender)?;
    Some(())
}

/// What changes in a sum over both addresses.
#[inline(always)]
fn address_change<F: Family>(info: &PacketInfo<F>, to: &Endpoints<F>) -> Sum {
    let sum = F::subtract(F::subtract(Sum::new(), &info.client), &info.vip);
    F::add(F::add(sum, &to.source), &to.destination)
}

/// What changes in a sum over both ports.
#[inline(always)]
fn port_change<F: Family>(info: &PacketInfo<F>, to: &Endpoints<F>) -> Sum {
    Sum::new()
        .add_u16(!info.client_port)
        .add_u16(!info.port)
        .add_u16(to.source_port)
        .add_u16(to.destination_port)
}

const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const ICMP_CHECKSUM: usize = 2;

#[inline(always)]
fn checksum_offset(protocol: u8) -> usize {
    if protocol == TCP {
        TCP_CHECKSUM
    } else {
        UDP_CHECKSUM
    }
}

/// Ports and checksum of TCP or UDP.
#[inline(always)]
fn layer4<F: Family, P: Packet>(
    packet: &mut P,
    info: &PacketInfo<F>,
    to: &Endpoints<F>,
    addresses: Sum,
    sender: Sender,
) -> Option<()> {
    // Its checksum covers no addresses, and its ports stay what they are.
    if info.protocol == SCTP {
        return Some(());
    }
    let at = usize::from(info.layer4) & OFFSET;
    let checksum_at = at + checksum_offset(info.protocol);
    let checksum: u16 = packet.read(checksum_at)?;
    // RFC 768: no checksum. In IPv6 RFC 6936 lets some senders do without.
    let has_none = info.protocol != TCP && checksum == 0;
    if !has_none {
        let change = addresses.add(port_change(info, to));
        let finished = finish(packet, info, at, checksum);
        let new = if finished == FINISHED {
            update(checksum, change)
        } else if sender == Sender::Driver {
            update(finished as u16, change)
        } else {
            // The kernel completes what is there: the pseudo-header's sum.
            Sum::new().add_u16(checksum).add(addresses).fold()
        };
        // RFC 768: a checksum of 0 would mean none.
        let new = if new == 0 && info.protocol != TCP {
            0xffff
        } else {
            new
        };
        packet.write(checksum_at, new)?;
    }
    write_ports(packet, at, to.source_port, to.destination_port)
}

/// There is nothing to be filled in.
const FINISHED: u32 = u32::MAX;

/// Finds out whether the checksum is one that a sender on this machine left to
/// its NIC: then there is no more than the sum of the pseudo-header, which is
/// what such a sender writes there. One of 65,536 finished checksums looks
/// alike, so all is summed before that is believed. Returns what it should be,
/// or [`FINISHED`].
#[inline(never)]
fn finish<F: Family, P: Packet>(packet: &P, info: &PacketInfo<F>, at: usize, checksum: u16) -> u32 {
    let length = (usize::from(info.ip_length) + ETHERNET_LENGTH).wrapping_sub(at) & 0xffff;
    let pseudo = F::add(F::add(Sum::new(), &info.client), &info.vip)
        .add_u16((length as u16).to_be())
        .add_u16(u16::from(info.protocol).to_be());
    // Senders leave nothing to be filled in of a packet in fragments.
    if pseudo.fold() != checksum || info.fragment != fragment::NONE {
        return FINISHED;
    }
    let Some(sum) = sum_bytes(packet, at, length) else {
        return FINISHED;
    };
    let sum = sum.add(pseudo);
    if sum.fold() == 0xffff {
        return FINISHED;
    }
    u32::from(sum.add_u16(!checksum).finish())
}

/// The packet that an ICMP error quotes. It went the other way: its source is
/// what the error is sent to.
#[inline(always)]
fn quoted<F: Family, P: Packet>(
    packet: &mut P,
    info: &PacketInfo<F>,
    to: &Endpoints<F>,
    addresses: Sum,
) -> Option<()> {
    let icmp_at = usize::from(info.layer4) & OFFSET;
    let ip_at = icmp_at + icmp::HEADER_LENGTH;
    let ports_at = usize::from(info.ports_at) & OFFSET;
    let mut change = addresses.add(port_change(info, to));
    if F::IS_V4 {
        let checksum_at = ip_at + V4_CHECKSUM;
        let before: u16 = packet.read(checksum_at)?;
        let after = update(before, addresses);
        packet.write(checksum_at, after)?;
        change = change.add_u16(!before).add_u16(after);
    }
    let checksum_at = ports_at + checksum_offset(info.protocol);
    let ends_at = ETHERNET_LENGTH + usize::from(info.ip_length);
    // Whether so much of the packet is quoted.
    if info.protocol != SCTP
        && checksum_at + 2 <= ends_at
        && let Some(before) = packet.read::<u16>(checksum_at)
        && (info.protocol == TCP || before != 0)
    {
        let after = update(before, addresses.add(port_change(info, to)));
        let after = if after == 0 && info.protocol != TCP {
            0xffff
        } else {
            after
        };
        packet.write(checksum_at, after)?;
        change = change.add_u16(!before).add_u16(after);
    }
    write_ports(packet, ports_at, to.destination_port, to.source_port)?;
    write_addresses::<F, P>(packet, ip_at, &to.destination, &to.source)?;
    let checksum: u16 = packet.read(icmp_at + ICMP_CHECKSUM)?;
    packet.write(icmp_at + ICMP_CHECKSUM, update(checksum, change))
}

#[inline(always)]
fn write_ports<P: Packet>(packet: &mut P, at: usize, source: u16, destination: u16) -> Option<()> {
    let ports = Ports {
        source: native_endian::U16::new(source),
        destination: native_endian::U16::new(destination),
    };
    packet.write(at, ports)
}

/// Where the addresses are in an IPv4 header, and the checksum.
const V4_ADDRESSES: usize = 12;
const V4_CHECKSUM: usize = 10;
/// Where the addresses are in an IPv6 header, and the hop limit.
const V6_ADDRESSES: usize = 8;
const V6_HOP_LIMIT: usize = 7;

#[inline(always)]
fn write_addresses<F: Family, P: Packet>(
    packet: &mut P,
    ip_at: usize,
    source: &F::Address,
    destination: &F::Address,
) -> Option<()> {
    if F::IS_V4 {
        let words = [source, destination].map(|a| F::to_common(a).v4_word());
        packet.write(ip_at + V4_ADDRESSES, words.map(native_endian::U32::new))
    } else {
        let [source, destination] = [source, destination].map(|a| F::to_common(a).words);
        let words = [source[0], source[1], destination[0], destination[1]];
        packet.write(ip_at + V6_ADDRESSES, words.map(native_endian::U64::new))
    }
}

/// The part of an IPv4 header from the time to live on.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct V4Tail {
    ttl: u8,
    protocol: u8,
    checksum: native_endian::U16,
    source: native_endian::U32,
    destination: native_endian::U32,
}

/// The IP header: addresses, time to live, IPv4's checksum. Without a source
/// it stays what it is. Returns what has changed in a sum over the addresses.
#[inline(always)]
fn rewrite_ip<F: Family, P: Packet>(
    packet: &mut P,
    source: Option<&F::Address>,
    destination: &F::Address,
    sender: Sender,
) -> Option<Sum> {
    let hop = u8::from(sender != Sender::Kernel);
    if F::IS_V4 {
        const TAIL: usize = ETHERNET_LENGTH + 8;
        let mut tail: V4Tail = packet.read(TAIL)?;
        let mut change = Sum::new()
            .add_u32(!tail.source.get())
            .add_u32(!tail.destination.get())
            .add_u16(!u16::from_ne_bytes([tail.ttl, tail.protocol]));
        if let Some(source) = source {
            tail.source = native_endian::U32::new(F::to_common(source).v4_word());
        }
        tail.destination = native_endian::U32::new(F::to_common(destination).v4_word());
        tail.ttl = tail.ttl.wrapping_sub(hop);
        change = change
            .add_u32(tail.source.get())
            .add_u32(tail.destination.get())
            .add_u16(u16::from_ne_bytes([tail.ttl, tail.protocol]));
        tail.checksum = native_endian::U16::new(update(tail.checksum.get(), change));
        packet.write(TAIL, tail)?;
        return Some(change);
    }
    const HOP_LIMIT: usize = ETHERNET_LENGTH + V6_HOP_LIMIT;
    const ADDRESSES: usize = ETHERNET_LENGTH + V6_ADDRESSES;
    let hop_limit: u8 = packet.read(HOP_LIMIT)?;
    packet.write(HOP_LIMIT, hop_limit.wrapping_sub(hop))?;
    let before: [native_endian::U64; 4] = packet.read(ADDRESSES)?;
    let mut after = before;
    if let Some(source) = source {
        let words = F::to_common(source).words;
        after[0] = native_endian::U64::new(words[0]);
        after[1] = native_endian::U64::new(words[1]);
    }
    let words = F::to_common(destination).words;
    after[2] = native_endian::U64::new(words[0]);
    after[3] = native_endian::U64::new(words[1]);
    packet.write(ADDRESSES, after)?;
    let mut change = Sum::new();
    for i in 0..4 {
        change = change.add_u64(!before[i].get()).add_u64(after[i].get());
    }
    Some(change)
}
