//! Packets that leave: the MSS that a VIP's SYN-ACKs offer.
//!
//! Answers do not pass the director, so only the backend can tell a client to
//! send segments that still fit into the path once they are encapsulated
//! (RFC 9293 section 3.7.1, RFC 6691).

use lb_common::Address;
use lb_common::protocol::TCP;
use lb_common::tunnel::Counter;
use zerocopy::byteorder::network_endian;

use super::{Segment, Tables};
use crate::headers::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV6_LENGTH, Ipv4Header, Ipv6Header,
    ethertype, words,
};

/// Lowers the MSS option of a SYN-ACK from a VIP to the configured limit.
/// Everything else stays as it is, also options that make no sense.
#[inline(always)]
pub fn lower<P: Segment, T: Tables>(packet: &mut P, tables: &T) {
    // Whatever cannot be read is nothing to change.
    let _ = try_lower(packet, tables);
}

#[inline(always)]
fn try_lower<P: Segment, T: Tables>(packet: &mut P, tables: &T) -> Option<()> {
    const FLAGS: usize = 13;
    const SYN_ACK: u8 = 0x12;
    const CHECKSUM: usize = 16;
    const VALUE: usize = 2;
    let is_v4 = match ethertype(packet)? {
        ETHERTYPE_IPV4 => true,
        ETHERTYPE_IPV6 => false,
        _ => return None,
    };
    let (source, tcp) = if is_v4 { ipv4(packet)? } else { ipv6(packet)? };
    if packet.read::<u8>(tcp + FLAGS)? & SYN_ACK != SYN_ACK {
        return None;
    }
    let settings = tables.settings();
    let limit = if is_v4 {
        settings.mss_v4
    } else {
        settings.mss_v6
    };
    if limit == 0 || !tables.is_vip(&source) {
        return None;
    }
    let option = find_mss(packet, tcp)?;
    let value = packet.read::<network_endian::U16>(option + VALUE)?;
    if value.get() <= limit {
        return None;
    }
    let limit = network_endian::U16::new(limit);
    let as_summed = |value: network_endian::U16| {
        let word = u16::from_ne_bytes(value.to_bytes());
        // At an odd offset its bytes lie in two words of the sum, each in the
        // other half: RFC 1071, section 2 (B).
        if (option - tcp) & 1 == 0 {
            word
        } else {
            word.swap_bytes()
        }
    };
    packet.write(option + VALUE, limit)?;
    packet.replace_checksum(tcp + CHECKSUM, as_summed(value), as_summed(limit))?;
    tables.count(Counter::MssLowered);
    Some(())
}

/// Source address and offset of the TCP header.
#[inline(always)]
fn ipv4<P: Segment>(packet: &P) -> Option<(Address, usize)> {
    let ip = packet.read::<Ipv4Header>(ETHERNET_LENGTH)?;
    let length = ip.length()?;
    let is_ours = ip.protocol == TCP && !ip.is_fragment();
    let source = Address::from_v4_word(ip.source.get());
    is_ours.then_some((source, ETHERNET_LENGTH + length))
}

/// The same for IPv6. Linux puts no extension header in front of a SYN-ACK.
#[inline(always)]
fn ipv6<P: Segment>(packet: &P) -> Option<(Address, usize)> {
    let ip = packet.read::<Ipv6Header>(ETHERNET_LENGTH)?;
    let is_ours = ip.version_class_label.get() >> 28 == 6 && ip.next_header == TCP;
    is_ours.then_some((words(&ip.source), ETHERNET_LENGTH + IPV6_LENGTH))
}

/// Offset of the MSS option (kind 2, length 4) in the TCP header at `tcp`.
#[inline(always)]
fn find_mss<P: Segment>(packet: &P, tcp: usize) -> Option<usize> {
    const DATA_OFFSET: usize = 12;
    const HEADER: usize = 20;
    const MAX_OPTIONS: usize = 40;
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const MSS: u8 = 2;
    const MSS_LENGTH: usize = 4;
    let length = usize::from(packet.read::<u8>(tcp + DATA_OFFSET)? >> 4) * 4;
    let mut at = HEADER;
    for _ in 0..MAX_OPTIONS {
        if at + MSS_LENGTH > length {
            return None;
        }
        let [kind, option_length] = packet.read::<[u8; 2]>(tcp + at)?;
        at += match (kind, usize::from(option_length)) {
            (END, _) => return None,
            (NOTHING, _) => 1,
            (MSS, MSS_LENGTH) => return Some(tcp + at),
            (_, 0 | 1) => return None,
            (_, length) => length,
        };
    }
    None
}
