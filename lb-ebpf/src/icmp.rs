//! Stage 2: ICMP errors go to the backend that owns the flow they quote.
//!
//! A router between backend and client that cannot forward a packet from the
//! VIP sends its error to the VIP, so to a director. Without path MTU
//! discovery (RFC 1191, RFC 8201) large answers would be lost for ever.
//! Of the quoted packet only 8 bytes of layer 4 are certain to be there.

use lb_common::protocol::{SCTP, TCP, UDP};
use zerocopy::FromBytes;

use crate::extension::{Extensions, extension_headers};
use crate::family::{Family, V4, V6};
use crate::headers::{IPV6_LENGTH, Ipv4Header, Ipv6Header, Ports, words};
use crate::packet::Packet;
use crate::packet_info::{PacketInfo, fragment};
use crate::parse::Envelope;
use crate::verdict::Verdict;

/// IP protocol number of ICMP, RFC 792.
pub const PROTOCOL_V4: u8 = 1;
/// IP protocol number of ICMPv6, RFC 4443.
pub const PROTOCOL_V6: u8 = 58;

/// Bytes before the quoted packet.
pub const HEADER_LENGTH: usize = 8;

/// Whether the ICMP message at `offset` is a ping.
#[inline(always)]
pub fn is_echo_request<F: Family, P: Packet>(packet: &P, offset: usize) -> bool {
    packet.read::<[u8; 2]>(offset) == Some([F::ECHO_REQUEST, 0])
}

/// The flow that an ICMP error at `offset` speaks of.
///
/// # Errors
/// [`Verdict::Pass`] for everything that is no error about a TCP or UDP packet
/// from the address that it is sent to.
#[inline(always)]
pub fn ipv4<P: Packet>(
    packet: &P,
    envelope: &Envelope<V4>,
    offset: usize,
) -> Result<PacketInfo<V4>, Verdict> {
    const UNREACHABLE: u8 = 3;
    const TIME_EXCEEDED: u8 = 11;
    const PARAMETER_PROBLEM: u8 = 12;
    #[repr(C)]
    #[derive(Clone, Copy, FromBytes)]
    struct Error {
        kind: u8,
        rest: [u8; HEADER_LENGTH - 1],
        quoted: Ipv4Header,
    }
    let Some(Error { kind, quoted, .. }) = packet.read::<Error>(offset) else {
        return Err(Verdict::Pass);
    };
    let quoted_length = quoted.length().ok_or(Verdict::Pass)?;
    let is_error = matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM);
    // Later fragments carry no ports.
    let has_ports = quoted.fragment.get() & 0x1fff == 0;
    if !is_error || !has_ports || quoted.source.get() != envelope.vip {
        return Err(Verdict::Pass);
    }
    let ports_offset = offset + HEADER_LENGTH + quoted_length;
    quoted_flow(
        packet,
        envelope,
        quoted.destination.get(),
        quoted.protocol,
        offset,
        ports_offset,
    )
}

/// The same for ICMPv6.
///
/// # Errors
/// As for [`ipv4`].
#[inline(always)]
pub fn ipv6<P: Packet>(
    packet: &P,
    envelope: &Envelope<V6>,
    offset: usize,
) -> Result<PacketInfo<V6>, Verdict> {
    const UNREACHABLE: u8 = 1;
    const PARAMETER_PROBLEM: u8 = 4;
    #[repr(C)]
    #[derive(Clone, Copy, FromBytes)]
    struct Error {
        kind: u8,
        rest: [u8; HEADER_LENGTH - 1],
        quoted: Ipv6Header,
    }
    let Some(Error { kind, quoted, .. }) = packet.read::<Error>(offset) else {
        return Err(Verdict::Pass);
    };
    let is_error = matches!(kind, UNREACHABLE..=PARAMETER_PROBLEM);
    let is_ipv6 = quoted.version_class_label.get() >> 28 == 6;
    if !is_error || !is_ipv6 || words(&quoted.source) != envelope.vip {
        return Err(Verdict::Pass);
    }
    let quoted_end = offset + HEADER_LENGTH + IPV6_LENGTH;
    // A backend's answers may be fragmented: of later fragments nobody knows
    // the ports, and the first is answered likewise.
    let chain = extension_headers(packet, quoted.next_header, quoted_end);
    let Extensions::End(protocol, ports_offset, _) = chain else {
        return Err(Verdict::Pass);
    };
    quoted_flow(
        packet,
        envelope,
        words(&quoted.destination),
        protocol,
        offset,
        ports_offset,
    )
}

/// The quoted packet went from VIP to client: source and destination change
/// places.
#[inline(always)]
fn quoted_flow<F: Family, P: Packet>(
    packet: &P,
    envelope: &Envelope<F>,
    client: F::Address,
    protocol: u8,
    offset: usize,
    ports_offset: usize,
) -> Result<PacketInfo<F>, Verdict> {
    if !matches!(protocol, TCP | UDP | SCTP) {
        return Err(Verdict::Pass);
    }
    let ports = packet.read::<Ports>(ports_offset).ok_or(Verdict::Pass)?;
    Ok(PacketInfo {
        client,
        vip: envelope.vip,
        client_port: ports.destination.get(),
        port: ports.source.get(),
        destination_mac: envelope.destination_mac,
        ip_length: envelope.ip_length,
        protocol,
        traffic_class: envelope.traffic_class,
        may_fragment: envelope.may_fragment,
        syn: false,
        is_icmp: true,
        tcp_flags: 0,
        fragment: fragment::NONE,
        ttl: envelope.ttl,
        layer4: offset as u16,
        ports_at: ports_offset as u16,
        fragment_offset: 0,
        padding: 0,
        headers_end: (ports_offset + size_of::<Ports>()) as u16,
    })
}
