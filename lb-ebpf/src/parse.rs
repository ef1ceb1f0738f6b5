//! Stage 1: from Ethernet to layer 4, into one [`PacketInfo`].

use lb_common::counters::DropReason;
use lb_common::protocol::{SCTP, TCP, UDP};
use lb_common::{Address, Mac};

use crate::extension::{
    DESTINATION, ExtensionStart, Extensions, FRAGMENT, HOP_BY_HOP, MAX_EXTENSIONS, ROUTING,
    extension_headers,
};
use crate::family::{Family, V4, V6};
use crate::headers::{
    ETHERNET_LENGTH, EthernetHeader, FrameV4, FrameV6, IPV6_LENGTH, Ipv4Header, Ipv6Header, Ports,
    tcp_flags, words,
};
use crate::icmp;
use crate::packet::Packet;
use crate::packet_info::{PacketInfo, fragment};
use crate::tables::Tables;
use crate::verdict::{Verdict, drop};

/// The early end of the first fragment of a packet, where it is not parsed like
/// a whole packet: it is for [`crate::process_first`]. No other early end is
/// this one.
pub const FIRST_FRAGMENT: Verdict = Verdict::Host;

/// The early end of another fragment: it is for [`crate::process_later`]. No
/// interface has this index.
pub const LATER_FRAGMENT: Verdict = Verdict::Redirect(0);

/// The early end of a packet, whole or not, that no service can be for: a ping,
/// or of another protocol. It is for [`crate::vip`]. No interface has this index.
pub const NO_SERVICES: Verdict = Verdict::Redirect(u32::MAX - 2);

/// Whether the first fragment of a packet is parsed like a whole packet.
pub type Firsts = bool;

/// Destination of an IPv4 packet, and whether it is ICMP; `None` if its header
/// is cut short.
#[inline(always)]
pub fn destination_ipv4<P: Packet>(packet: &P) -> Option<(u32, bool)> {
    let FrameV4 { ip, .. } = packet.read(0)?;
    Some((ip.destination.get(), ip.protocol == icmp::PROTOCOL_V4))
}

/// The same of an IPv6 packet, whatever extension headers it has.
#[inline(always)]
pub fn destination_ipv6<P: Packet>(packet: &P) -> Option<(Address, bool)> {
    const PLAIN: usize = ETHERNET_LENGTH + IPV6_LENGTH;
    let FrameV6 { ip, .. } = packet.read(0)?;
    let is_icmp = ip.next_header == icmp::PROTOCOL_V6
        || matches!(
            extension_headers(packet, ip.next_header, PLAIN),
            Extensions::End(icmp::PROTOCOL_V6, ..) | Extensions::Later(icmp::PROTOCOL_V6)
        );
    Some((words(&ip.destination), is_icmp))
}

/// Parses an IPv4 packet.
///
/// # Errors
/// [`Verdict::Pass`] for what can be for no service; a drop for fragments and
/// unreadable ports of packets to a VIP.
#[inline(always)]
pub fn ipv4<P: Packet, T: Tables>(
    packet: &P,
    firsts: Firsts,
    tables: &T,
) -> Result<PacketInfo<V4>, Verdict> {
    // Not `ok_or(..)?`: the layout of a Result makes the compiler split the
    // header at odd offsets.
    let Some(FrameV4 { ethernet, ip }) = packet.read::<FrameV4>(0) else {
        return Err(Verdict::Pass);
    };
    let header_length = ip.length().ok_or(Verdict::Pass)?;
    let vip = ip.destination.get();
    let mut fragment = fragment::NONE;
    if ip.is_fragment() {
        let vip = Address::from_v4_word(vip);
        if !matches!(ip.protocol, TCP | UDP | SCTP) {
            return Err(NO_SERVICES);
        }
        if ip.fragment_offset() != 0 {
            return of_fragment(tables, &vip, LATER_FRAGMENT);
        }
        if !firsts {
            return of_fragment(tables, &vip, FIRST_FRAGMENT);
        }
        fragment = fragment::FIRST | u64::from(ip.identification.get());
    }
    let envelope = Envelope {
        fragment,
        ..Envelope::<V4>::new(&ethernet, &ip)
    };
    // The usual length apart: a constant offset is cheaper.
    const PLAIN: usize = ETHERNET_LENGTH + 20;
    let offset = ETHERNET_LENGTH + header_length;
    match ip.protocol {
        protocol @ (TCP | UDP) if offset == PLAIN => transport(packet, &envelope, PLAIN, protocol),
        protocol @ (TCP | UDP) => transport(packet, &envelope, offset, protocol),
        SCTP => sctp(packet, &envelope, offset),
        icmp::PROTOCOL_V4 => {
            if icmp::is_echo_request::<V4, P>(packet, offset) {
                return Err(NO_SERVICES);
            }
            return icmp::ipv4(packet, &envelope, offset);
        }
        _ => return Err(NO_SERVICES),
    }
    .map_or_else(
        || unreadable(tables, &Address::from_v4_word(vip), DropReason::Truncated),
        Ok,
    )
}

/// Parses an IPv6 packet.
///
/// # Errors
/// As for [`ipv4`].
#[inline(always)]
pub fn ipv6<P: Packet, T: Tables>(
    packet: &P,
    firsts: Firsts,
    tables: &T,
) -> Result<PacketInfo<V6>, Verdict> {
    let Some(FrameV6 { ethernet, ip }) = packet.read::<FrameV6>(0) else {
        return Err(Verdict::Pass);
    };
    if ip.version() != 6 {
        return Err(Verdict::Pass);
    }
    let mut envelope = Envelope::<V6>::new(&ethernet, &ip);
    const PLAIN: usize = ETHERNET_LENGTH + IPV6_LENGTH;
    let parsed = match ip.next_header {
        protocol @ (TCP | UDP) => transport(packet, &envelope, PLAIN, protocol),
        next_header => match extension_headers(packet, next_header, PLAIN) {
            Extensions::End(TCP | UDP | SCTP, _, fragment)
                if fragment != fragment::NONE && !firsts =>
            {
                return of_fragment(tables, &envelope.vip, FIRST_FRAGMENT);
            }
            Extensions::End(protocol @ (TCP | UDP), offset, fragment) => {
                envelope.fragment = fragment;
                transport(packet, &envelope, offset, protocol)
            }
            Extensions::End(SCTP, offset, fragment) => {
                envelope.fragment = fragment;
                sctp(packet, &envelope, offset)
            }
            Extensions::End(icmp::PROTOCOL_V6, offset, fragment::NONE) => {
                if icmp::is_echo_request::<V6, P>(packet, offset) {
                    return Err(NO_SERVICES);
                }
                return icmp::ipv6(packet, &envelope, offset);
            }
            // Which protocol it is, a later fragment may leave to an extension
            // header in the first.
            Extensions::Later(TCP | UDP | SCTP | HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) => {
                return of_fragment(tables, &envelope.vip, LATER_FRAGMENT);
            }
            Extensions::NotFinal => return Err(Verdict::Pass),
            Extensions::End(..) | Extensions::Later(_) => {
                return Err(NO_SERVICES);
            }
            Extensions::TooMany => {
                return unreadable(tables, &envelope.vip, DropReason::Malformed);
            }
            Extensions::Truncated => None,
        },
    };
    parsed.map_or_else(
        || unreadable(tables, &envelope.vip, DropReason::Truncated),
        Ok,
    )
}

/// Parses an IPv4 packet that ended early as a [`LATER_FRAGMENT`].
///
/// # Errors
/// [`Verdict::Pass`] if it is none.
#[inline(always)]
pub fn later_ipv4<P: Packet>(packet: &P) -> Result<PacketInfo<V4>, Verdict> {
    let Some(FrameV4 { ethernet, ip }) = packet.read::<FrameV4>(0) else {
        return Err(Verdict::Pass);
    };
    let header_length = ip.length().ok_or(Verdict::Pass)?;
    let envelope = Envelope {
        fragment: fragment::LATER | u64::from(ip.identification.get()),
        ..Envelope::<V4>::new(&ethernet, &ip)
    };
    let payload = ETHERNET_LENGTH + header_length;
    let offset = ip.fragment_offset() as u16;
    Ok(without_ports(&envelope, ip.protocol, payload, offset))
}

/// The same for IPv6.
///
/// # Errors
/// As for [`later_ipv4`].
#[inline(always)]
pub fn later_ipv6<P: Packet>(packet: &P) -> Result<PacketInfo<V6>, Verdict> {
    let Some(FrameV6 { ethernet, ip }) = packet.read::<FrameV6>(0) else {
        return Err(Verdict::Pass);
    };
    // What comes before the fragment header is for every hop, RFC 8200.
    let mut next_header = ip.next_header;
    let mut offset = ETHERNET_LENGTH + IPV6_LENGTH;
    for _ in 0..MAX_EXTENSIONS {
        let start: ExtensionStart = packet.read(offset).ok_or(Verdict::Pass)?;
        if next_header == FRAGMENT {
            let id: u32 = packet.read(offset + 4).ok_or(Verdict::Pass)?;
            let envelope = Envelope {
                fragment: fragment::LATER | u64::from(id),
                ..Envelope::<V6>::new(&ethernet, &ip)
            };
            let at = start.fragment_offset() as u16;
            return Ok(without_ports(&envelope, start.next_header, offset + 8, at));
        }
        if !matches!(next_header, HOP_BY_HOP | ROUTING | DESTINATION) {
            break;
        }
        next_header = start.next_header;
        offset += (usize::from(start.length) + 1) * 8;
    }
    Err(Verdict::Pass)
}

/// What is known of a packet whose payload is not looked into.
#[inline(always)]
pub fn without_ports<F: Family>(
    envelope: &Envelope<F>,
    protocol: u8,
    payload: usize,
    offset: u16,
) -> PacketInfo<F> {
    PacketInfo {
        client: envelope.client,
        vip: envelope.vip,
        client_port: 0,
        port: 0,
        destination_mac: envelope.destination_mac,
        ip_length: envelope.ip_length,
        protocol,
        traffic_class: envelope.traffic_class,
        may_fragment: envelope.may_fragment,
        syn: false,
        is_icmp: false,
        tcp_flags: 0,
        ttl: envelope.ttl,
        fragment: envelope.fragment,
        layer4: payload as u16,
        ports_at: payload as u16,
        fragment_offset: offset,
        padding: 0,
        headers_end: payload as u16,
    }
}

/// What Ethernet and IP headers say.
pub struct Envelope<F: Family> {
    /// Source address.
    pub client: F::Address,
    /// Destination address.
    pub vip: F::Address,
    /// Destination of the frame.
    pub destination_mac: Mac,
    /// Bytes from the IP header to the end of the payload.
    pub ip_length: u16,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// See [`PacketInfo::may_fragment`].
    pub may_fragment: bool,
    /// See [`PacketInfo::fragment`].
    pub fragment: u64,
}

impl Envelope<V4> {
    /// What the headers of a whole packet say.
    #[inline(always)]
    pub fn new(ethernet: &EthernetHeader, ip: &Ipv4Header) -> Self {
        Self {
            client: ip.source.get(),
            vip: ip.destination.get(),
            destination_mac: ethernet.destination(),
            ip_length: ip.total_length.get(),
            traffic_class: ip.tos,
            ttl: ip.ttl,
            may_fragment: ip.fragment.get() & Ipv4Header::DONT_FRAGMENT == 0,
            fragment: fragment::NONE,
        }
    }
}

impl Envelope<V6> {
    /// What the headers of a whole packet say.
    #[inline(always)]
    pub fn new(ethernet: &EthernetHeader, ip: &Ipv6Header) -> Self {
        Self {
            client: words(&ip.source),
            vip: words(&ip.destination),
            destination_mac: ethernet.destination(),
            ip_length: ip.length(),
            traffic_class: ip.traffic_class(),
            ttl: ip.hop_limit,
            may_fragment: false,
            fragment: fragment::NONE,
        }
    }
}

/// Parses TCP or UDP at `offset`; `None` if the ports cannot be read.
#[inline(always)]
pub fn transport<F: Family, P: Packet>(
    packet: &P,
    envelope: &Envelope<F>,
    offset: usize,
    protocol: u8,
) -> Option<PacketInfo<F>> {
    /// Data offset and flags: together, because a single byte is dearer to
    /// bring past the verifier.
    const FLAGS: usize = 12;
    use tcp_flags::{ACK, SYN};
    let ports = packet.read::<Ports>(offset)?;
    // Without flags the frame ends within the headers, which is found out when
    // the lengths are checked.
    let (header_length, flags) = if protocol == TCP {
        let [_, flags] = packet.read::<[u8; 2]>(offset + FLAGS).unwrap_or([0; 2]);
        (20, flags)
    } else {
        (8, 0)
    };
    Some(PacketInfo {
        client: envelope.client,
        vip: envelope.vip,
        client_port: ports.source.get(),
        port: ports.destination.get(),
        destination_mac: envelope.destination_mac,
        ip_length: envelope.ip_length,
        protocol,
        traffic_class: envelope.traffic_class,
        may_fragment: envelope.may_fragment,
        syn: flags & (SYN | ACK) == SYN,
        is_icmp: false,
        tcp_flags: flags,
        fragment: envelope.fragment,
        ttl: envelope.ttl,
        layer4: offset as u16,
        ports_at: offset as u16,
        fragment_offset: 0,
        padding: 0,
        headers_end: (offset + header_length) as u16,
    })
}

/// Parses SCTP at `offset`, RFC 9260 section 3; `None` if the ports cannot be
/// read. The first chunk says whether an association begins, as a SYN does.
#[inline(always)]
fn sctp<F: Family, P: Packet>(
    packet: &P,
    envelope: &Envelope<F>,
    offset: usize,
) -> Option<PacketInfo<F>> {
    const HEADER_LENGTH: usize = 12;
    const INIT: u8 = 1;
    let ports = packet.read::<Ports>(offset)?;
    let [chunk, _] = packet
        .read::<[u8; 2]>(offset + HEADER_LENGTH)
        .unwrap_or([0; 2]);
    let mut info = without_ports(envelope, SCTP, offset, 0);
    info.client_port = ports.source.get();
    info.port = ports.destination.get();
    info.syn = chunk == INIT;
    info.headers_end += HEADER_LENGTH as u16;
    Some(info)
}

/// The end of a fragment. Which packet it is of is looked up only if that could
/// be one of ours.
#[inline(always)]
fn of_fragment<O, T: Tables>(tables: &T, vip: &Address, end: Verdict) -> Result<O, Verdict> {
    let has_nat = || tables.settings().is_some_and(|s| s.nat_backends != 0);
    if tables.is_vip(vip) || has_nat() {
        Err(end)
    } else {
        Err(Verdict::Pass)
    }
}

/// The end of a packet whose ports cannot be known: only the VIP decides.
#[inline(always)]
fn unreadable<O, T: Tables>(tables: &T, vip: &Address, reason: DropReason) -> Result<O, Verdict> {
    if tables.is_vip(vip) {
        drop(reason)
    } else {
        Err(Verdict::Pass)
    }
}
