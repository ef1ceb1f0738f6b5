//! Stage 1: from Ethernet to layer 4, into one [`PacketInfo`].

use lb_common::backend::Backend;
use lb_common::counters::DropReason;
use lb_common::protocol::{SCTP, TCP, UDP};
use lb_common::service::LocalMacKey;
use lb_common::{Address, Mac};
use zerocopy::byteorder::{native_endian, network_endian};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::family::{Family, V4, V6};
use crate::icmp;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::{Verdict, drop};

/// All that later stages know of a packet.
///
/// For an ICMP error this is the quoted flow, turned round so that `client`
/// is the client: see [`icmp`].
///
/// In this order, because compilers write neighbouring bytes together, and the
/// verifier wants that to be at an even place.
#[repr(C)]
pub struct PacketInfo<F: Family> {
    /// CIP, as it stands in the packet.
    pub client: F::Address,
    /// VIP, as it stands in the packet.
    pub vip: F::Address,
    /// Destination of the Ethernet frame.
    pub destination_mac: Mac,
    /// Whether this is a fragment, and of which packet: see [`fragment`].
    pub fragment: u64,
    /// The client's port, network byte order.
    pub client_port: u16,
    /// The service's port, network byte order.
    pub port: u16,
    /// Bytes from the IP header to the end of the payload.
    pub ip_length: u16,
    /// Where TCP or UDP begins, or ICMP.
    pub layer4: u16,
    /// Where the ports are: in an ICMP error those of the quoted packet.
    pub ports_at: u16,
    /// Where the frame must not end yet: the first byte after the headers.
    pub headers_end: u16,
    /// Of a later fragment, where its payload was in the packet's, bytes.
    pub fragment_offset: u16,
    /// Zero.
    pub padding: u16,
    /// A TCP segment with SYN and without ACK; in SCTP, an INIT chunk.
    pub syn: bool,
    /// An ICMP error.
    pub is_icmp: bool,
    /// The TCP flags of a packet that is no ICMP error.
    pub tcp_flags: u8,
    /// A router may fragment the packet: IPv4 without the don't-fragment flag.
    pub may_fragment: bool,
    /// IP protocol number: [`TCP`], [`UDP`] or [`SCTP`].
    pub protocol: u8,
    /// DSCP and ECN: IPv4's type of service, IPv6's traffic class.
    pub traffic_class: u8,
    /// IPv4's time to live, IPv6's hop limit.
    pub ttl: u8,
}

/// Values of [`PacketInfo::fragment`].
pub mod fragment {
    /// A whole packet.
    pub const NONE: u64 = 0;
    /// The first fragment of a packet; the lower 32 bits identify it.
    pub const FIRST: u64 = 1 << 32;
    /// Another fragment of it; likewise.
    pub const LATER: u64 = 1 << 33;
}

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

/// TCP flags, RFC 9293, section 3.1.
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Begins a connection.
    pub const SYN: u8 = 0x02;
    /// Ends it at once.
    pub const RST: u8 = 0x04;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

impl<F: Family> Default for PacketInfo<F> {
    fn default() -> Self {
        let envelope = Envelope {
            client: F::Address::default(),
            vip: F::Address::default(),
            destination_mac: Mac::default(),
            ip_length: 0,
            traffic_class: 0,
            ttl: 0,
            may_fragment: false,
            fragment: fragment::NONE,
        };
        without_ports(&envelope, 0, 0, 0)
    }
}

impl<F: Family> PacketInfo<F> {
    /// Key of the flow in the flow tables.
    #[inline(always)]
    pub fn flow_key(&self) -> F::FlowKey {
        F::flow_key(&self.client, &self.vip, self.ports(), self.protocol)
    }

    /// Bytes from where layer 4 begins to the end of the packet.
    #[inline(always)]
    pub const fn layer4_length(&self) -> u16 {
        (ETHERNET_LENGTH as u16 + self.ip_length).saturating_sub(self.layer4)
    }

    /// Both ports as the flow hash takes them.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        self.client_port as u32 | (self.port as u32) << 16
    }

    /// Whether the frame was sent to the director, see [`is_for_us`].
    #[inline(always)]
    pub fn is_for_us<T: Tables>(&self, interface: u32, backend: &Backend, tables: &T) -> bool {
        is_for_us(self.destination_mac, interface, backend, tables)
    }

    /// Whether the headers lie inside the packet, and the packet inside the
    /// frame.
    ///
    /// # Errors
    /// A drop under the reason.
    #[inline(always)]
    pub fn check_lengths<P: Packet>(&self, packet: &P) -> Result<(), Verdict> {
        let end = ETHERNET_LENGTH + usize::from(self.ip_length);
        // The call is for the few packets in several buffers.
        if end > packet.len() && end > packet.total_len() {
            return drop(DropReason::Truncated);
        }
        if end < usize::from(self.headers_end) {
            return drop(if self.fragment == fragment::NONE {
                DropReason::Malformed
            } else {
                DropReason::FragmentTiny
            });
        }
        Ok(())
    }
}

/// EtherType of IPv4, as it stands in the frame.
pub const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
/// EtherType of IPv6, as it stands in the frame.
pub const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
/// Bytes of an Ethernet header.
pub const ETHERNET_LENGTH: usize = 14;

/// Ethernet II header.
///
/// The MAC addresses are kept as words: compilers copy arrays of bytes byte by
/// byte, and by way of the stack.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct EthernetHeader {
    /// First four bytes of the destination MAC.
    pub destination_first: native_endian::U32,
    /// Last two bytes of the destination MAC.
    pub destination_last: native_endian::U16,
    /// First two bytes of the source MAC.
    pub source_first: native_endian::U16,
    /// Last four bytes of the source MAC.
    pub source_last: native_endian::U32,
    /// EtherType.
    pub ethertype: native_endian::U16,
}

impl EthernetHeader {
    /// A header with the MAC addresses as they stand in a backend entry.
    #[inline(always)]
    pub fn new(macs: &[u32; 3], ethertype: u16) -> Self {
        Self {
            destination_first: native_endian::U32::new(macs[0]),
            destination_last: native_endian::U16::new(macs[1] as u16),
            source_first: native_endian::U16::new((macs[1] >> 16) as u16),
            source_last: native_endian::U32::new(macs[2]),
            ethertype: native_endian::U16::new(ethertype),
        }
    }

    /// Destination MAC.
    #[inline(always)]
    pub fn destination(&self) -> Mac {
        Mac::from_parts(self.destination_first.get(), self.destination_last.get())
    }

    /// The header of a frame back to where this one came from.
    #[inline(always)]
    pub fn turned_round(&self) -> Self {
        let destination = self.destination().0;
        let source = u64::from(self.source_first.get()) | u64::from(self.source_last.get()) << 16;
        Self {
            destination_first: native_endian::U32::new(source as u32),
            destination_last: native_endian::U16::new((source >> 32) as u16),
            source_first: native_endian::U16::new(destination as u16),
            source_last: native_endian::U32::new((destination >> 16) as u32),
            ethertype: self.ethertype,
        }
    }
}

/// IPv4 header without options, RFC 791. Addresses are kept as they stand.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Ipv4Header {
    /// Version in the upper four bits, header length in words in the lower.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Bytes of header and payload.
    pub total_length: network_endian::U16,
    /// Identification.
    pub identification: network_endian::U16,
    /// Flags and fragment offset.
    pub fragment: network_endian::U16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: network_endian::U16,
    /// Source address.
    pub source: native_endian::U32,
    /// Destination address.
    pub destination: native_endian::U32,
}

impl Ipv4Header {
    /// "More fragments" and the fragment offset.
    const FRAGMENT: u16 = 0x3fff;
    /// The fragment offset, in units of 8 bytes.
    const FRAGMENT_OFFSET: u16 = 0x1fff;
    /// "Don't fragment".
    pub const DONT_FRAGMENT: u16 = 0x4000;

    /// Bytes of the header with its options, if version and length are valid.
    #[inline(always)]
    pub fn length(&self) -> Option<usize> {
        let length = usize::from(self.version_ihl & 0xf) * 4;
        (self.version_ihl >> 4 == 4 && length >= 20).then_some(length)
    }

    /// Whether this is one of several fragments.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment.get() & Self::FRAGMENT != 0
    }

    /// Where the fragment's payload was in its packet's, bytes.
    #[inline(always)]
    pub fn fragment_offset(&self) -> u32 {
        u32::from(self.fragment.get() & Self::FRAGMENT_OFFSET) * 8
    }
}

/// IPv6 header, RFC 8200. Addresses are kept as they stand.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Ipv6Header {
    /// Version, traffic class, flow label.
    pub version_class_label: network_endian::U32,
    /// Bytes that follow this header.
    pub payload_length: network_endian::U16,
    /// Protocol of what follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [native_endian::U64; 2],
    /// Destination address.
    pub destination: [native_endian::U64; 2],
}

impl Ipv6Header {
    /// The version: 6.
    #[inline(always)]
    pub fn version(&self) -> u8 {
        (self.version_class_label.get() >> 28) as u8
    }

    /// DSCP and ECN.
    #[inline(always)]
    pub fn traffic_class(&self) -> u8 {
        (self.version_class_label.get() >> 20) as u8
    }

    /// Bytes of header and payload.
    #[inline(always)]
    pub fn length(&self) -> u16 {
        // A sum of more than 16 bits is longer than any frame: truncated.
        let payload = self.payload_length.get();
        payload.saturating_add(IPV6_LENGTH as u16)
    }
}

/// The words of an address, for its header.
#[inline(always)]
pub fn header_words(address: &Address) -> [native_endian::U64; 2] {
    [
        native_endian::U64::new(address.words[0]),
        native_endian::U64::new(address.words[1]),
    ]
}

/// Bytes of an IPv6 header.
pub const IPV6_LENGTH: usize = size_of::<Ipv6Header>();

/// The first four bytes of TCP, UDP and SCTP, as they stand.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Ports {
    /// Source port.
    pub source: native_endian::U16,
    /// Destination port.
    pub destination: native_endian::U16,
}

/// The beginning of an IPv4 frame, for one check of its bounds.
#[repr(C)]
#[derive(Clone, Copy, FromBytes)]
pub struct FrameV4 {
    /// Ethernet.
    pub ethernet: EthernetHeader,
    /// IPv4, without options.
    pub ip: Ipv4Header,
}

/// The beginning of an IPv6 frame.
#[repr(C)]
#[derive(Clone, Copy, FromBytes)]
pub struct FrameV6 {
    /// Ethernet.
    pub ethernet: EthernetHeader,
    /// IPv6.
    pub ip: Ipv6Header,
}

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

/// EtherType of the frame, as it stands; `None` if the frame is shorter than
/// an Ethernet header.
#[inline(always)]
pub fn ethertype<P: Packet>(packet: &P) -> Option<u16> {
    Some(packet.read::<EthernetHeader>(0)?.ethertype.get())
}

/// Whether a frame to this MAC address was sent to the director. XDP also sees
/// others'.
///
/// The source MAC of what leaves by the interface that the packet came in by is
/// our own there: a comparison with any such backend entry, at hand already,
/// spares a look-up.
#[inline(always)]
pub fn is_for_us<T: Tables>(
    destination: Mac,
    interface: u32,
    backend: &Backend,
    tables: &T,
) -> bool {
    if backend.interface == interface && backend.source_mac() == destination {
        return true;
    }
    tables.is_local_mac(&LocalMacKey::new(interface, destination))
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

/// Extension headers that are followed.
const MAX_EXTENSIONS: usize = 6;

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
            // A sum of more than 16 bits is longer than any frame: truncated.
            ip_length: ip.length(),
            traffic_class: ip.traffic_class(),
            ttl: ip.hop_limit,
            may_fragment: false,
            fragment: fragment::NONE,
        }
    }
}

/// An IPv6 address out of its header.
#[inline(always)]
pub fn words(header: &[native_endian::U64; 2]) -> Address {
    Address {
        words: [header[0].get(), header[1].get()],
    }
}

/// Parses TCP or UDP at `offset`; `None` if the ports cannot be read.
#[inline(always)]
fn transport<F: Family, P: Packet>(
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

/// Numbers of extension headers, RFC 8200 section 4.
pub const HOP_BY_HOP: u8 = 0;
/// Routing header.
pub const ROUTING: u8 = 43;
/// Fragment header.
pub const FRAGMENT: u8 = 44;
/// Destination options header.
pub const DESTINATION: u8 = 60;

/// The first four bytes of an IPv6 extension header.
#[repr(C)]
#[derive(Clone, Copy, FromBytes)]
pub struct ExtensionStart {
    /// Protocol of what follows.
    pub next_header: u8,
    /// Units of 8 bytes after the first 8; not in a fragment header.
    pub length: u8,
    /// Of a routing header: type and segments left. Of a fragment header:
    /// offset and the flag for more.
    pub specific: [u8; 2],
}

impl ExtensionStart {
    /// Of a fragment header, where its payload was in the packet's, bytes.
    #[inline(always)]
    pub fn fragment_offset(&self) -> u32 {
        u32::from(u16::from_be_bytes(self.specific) & 0xfff8)
    }
}

/// Where a chain of IPv6 extension headers leads.
enum Extensions {
    /// To this protocol at this offset; and see [`PacketInfo::fragment`].
    End(u8, usize, u64),
    /// To a fragment that is not the first, whose header names this protocol.
    Later(u8),
    /// This host is a waypoint of a routing header, not the destination.
    NotFinal,
    /// Past the end of the frame.
    Truncated,
    /// Further than we follow.
    TooMany,
}

/// Follows extension headers from `offset`, RFC 8200 section 4, at most
/// [`MAX_EXTENSIONS`].
#[inline(always)]
fn extension_headers<P: Packet>(packet: &P, first: u8, offset: usize) -> Extensions {
    let mut next_header = first;
    let mut offset = offset;
    let mut fragment = fragment::NONE;
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
            return Extensions::End(next_header, offset, fragment);
        }
        let Some(start) = packet.read::<ExtensionStart>(offset) else {
            return Extensions::Truncated;
        };
        // A fragment header has a reserved byte where others have a length.
        let mut units = usize::from(start.length) + 1;
        if next_header == FRAGMENT {
            units = 1;
            if start.fragment_offset() != 0 {
                return Extensions::Later(start.next_header);
            }
            // With no more to come it is an atomic fragment, RFC 6946.
            if start.specific[1] & 1 != 0 {
                let Some(id) = packet.read::<u32>(offset + 4) else {
                    return Extensions::Truncated;
                };
                fragment = fragment::FIRST | u64::from(id);
            }
        } else if next_header == ROUTING && start.specific[1] != 0 {
            return Extensions::NotFinal;
        }
        next_header = start.next_header;
        offset += units * 8;
    }
    Extensions::TooMany
}
