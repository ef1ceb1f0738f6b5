//! Stage 1: from Ethernet to layer 4, into one [`PacketInfo`].

use lb_common::backend::Backend;
use lb_common::counters::DropReason;
use lb_common::protocol::{TCP, UDP};
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
pub struct PacketInfo<F: Family> {
    /// CIP, as it stands in the packet.
    pub client: F::Address,
    /// VIP, as it stands in the packet.
    pub vip: F::Address,
    /// The client's port, network byte order.
    pub client_port: u16,
    /// The service's port, network byte order.
    pub port: u16,
    /// Destination of the Ethernet frame.
    pub destination_mac: Mac,
    /// Bytes from the IP header to the end of the payload.
    pub ip_length: u16,
    /// IP protocol number: [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// DSCP and ECN: IPv4's type of service, IPv6's traffic class.
    pub traffic_class: u8,
    /// A router may fragment the packet: IPv4 without the don't-fragment flag.
    pub may_fragment: bool,
    /// A TCP segment with SYN and without ACK.
    pub syn: bool,
    /// An ICMP error.
    pub is_icmp: bool,
    /// The TCP flags of a packet that is no ICMP error.
    pub tcp_flags: u8,
    /// IPv4's time to live, IPv6's hop limit.
    pub ttl: u8,
    /// Where TCP or UDP begins, or ICMP.
    pub layer4: u16,
    /// Where the ports are: in an ICMP error those of the quoted packet.
    pub ports_at: u16,
    /// Where the frame must not end yet: the first byte after the headers.
    pub headers_end: u16,
}

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

impl<F: Family> PacketInfo<F> {
    /// Key of the flow in the flow tables.
    #[inline(always)]
    pub fn flow_key(&self) -> F::FlowKey {
        F::flow_key(&self.client, &self.vip, self.ports(), self.protocol)
    }

    /// Both ports as the flow hash takes them.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        self.client_port as u32 | (self.port as u32) << 16
    }

    /// Whether the frame was sent to the director. XDP also sees others'.
    ///
    /// The source MAC of what leaves by the interface that the packet came in
    /// by is our own there: a comparison with any such backend entry, at hand
    /// already, spares a look-up.
    #[inline(always)]
    pub fn is_for_us<T: Tables>(&self, interface: u32, backend: &Backend, tables: &T) -> bool {
        if backend.interface == interface && backend.source_mac() == self.destination_mac {
            return true;
        }
        tables.is_local_mac(&LocalMacKey::new(interface, self.destination_mac))
    }

    /// Whether the headers lie inside the packet, and the packet inside the
    /// frame.
    ///
    /// # Errors
    /// A drop under the reason.
    #[inline(always)]
    pub fn check_lengths<P: Packet>(&self, packet: &P) -> Result<(), Verdict> {
        let end = ETHERNET_LENGTH + usize::from(self.ip_length);
        if end > packet.len() {
            return drop(DropReason::Truncated);
        }
        if end < usize::from(self.headers_end) {
            return drop(DropReason::Malformed);
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

/// The first four bytes of TCP and UDP, as they stand.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Ports {
    /// Source port.
    pub source: native_endian::U16,
    /// Destination port.
    pub destination: native_endian::U16,
}

/// EtherType of the frame, as it stands; `None` if the frame is shorter than
/// an Ethernet header.
#[inline(always)]
pub fn ethertype<P: Packet>(packet: &P) -> Option<u16> {
    Some(packet.read::<EthernetHeader>(0)?.ethertype.get())
}

/// Parses an IPv4 packet.
///
/// # Errors
/// [`Verdict::Pass`] for what can be for no service; a drop for fragments and
/// unreadable ports of packets to a VIP.
#[inline(always)]
pub fn ipv4<P: Packet, T: Tables>(packet: &P, tables: &T) -> Result<PacketInfo<V4>, Verdict> {
    #[repr(C)]
    #[derive(Clone, Copy, FromBytes)]
    struct Frame {
        ethernet: EthernetHeader,
        ip: Ipv4Header,
    }
    // Not `ok_or(..)?`: the layout of a Result makes the compiler split the
    // header at odd offsets.
    let Some(Frame { ethernet, ip }) = packet.read::<Frame>(0) else {
        return Err(Verdict::Pass);
    };
    let header_length = ip.length().ok_or(Verdict::Pass)?;
    let vip = ip.destination.get();
    if ip.is_fragment() {
        return unreadable(tables, &Address::from_v4_word(vip), DropReason::Fragment);
    }
    let envelope = Envelope::<V4> {
        client: ip.source.get(),
        vip,
        destination_mac: ethernet.destination(),
        ip_length: ip.total_length.get(),
        traffic_class: ip.tos,
        ttl: ip.ttl,
        may_fragment: ip.fragment.get() & Ipv4Header::DONT_FRAGMENT == 0,
    };
    // The usual length apart: a constant offset is cheaper.
    const PLAIN: usize = ETHERNET_LENGTH + 20;
    let offset = ETHERNET_LENGTH + header_length;
    match ip.protocol {
        protocol @ (TCP | UDP) if offset == PLAIN => transport(packet, &envelope, PLAIN, protocol),
        protocol @ (TCP | UDP) => transport(packet, &envelope, offset, protocol),
        icmp::PROTOCOL_V4 => return icmp::ipv4(packet, &envelope, offset),
        _ => return Err(Verdict::Pass),
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
pub fn ipv6<P: Packet, T: Tables>(packet: &P, tables: &T) -> Result<PacketInfo<V6>, Verdict> {
    #[repr(C)]
    #[derive(Clone, Copy, FromBytes)]
    struct Frame {
        ethernet: EthernetHeader,
        ip: Ipv6Header,
    }
    let Some(Frame { ethernet, ip }) = packet.read::<Frame>(0) else {
        return Err(Verdict::Pass);
    };
    if ip.version_class_label.get() >> 28 != 6 {
        return Err(Verdict::Pass);
    }
    let envelope = Envelope::<V6> {
        client: words(&ip.source),
        vip: words(&ip.destination),
        destination_mac: ethernet.destination(),
        // A sum of more than 16 bits is longer than any frame: truncated.
        ip_length: ip.payload_length.get().saturating_add(IPV6_LENGTH as u16),
        traffic_class: (ip.version_class_label.get() >> 20) as u8,
        ttl: ip.hop_limit,
        may_fragment: false,
    };
    const PLAIN: usize = ETHERNET_LENGTH + IPV6_LENGTH;
    let parsed = match ip.next_header {
        protocol @ (TCP | UDP) => transport(packet, &envelope, PLAIN, protocol),
        next_header => match extension_headers(packet, next_header, PLAIN) {
            Extensions::End(protocol @ (TCP | UDP), offset) => {
                transport(packet, &envelope, offset, protocol)
            }
            Extensions::End(icmp::PROTOCOL_V6, offset) => {
                return icmp::ipv6(packet, &envelope, offset);
            }
            Extensions::End(..) | Extensions::NotFinal => return Err(Verdict::Pass),
            Extensions::Fragment => {
                return unreadable(tables, &envelope.vip, DropReason::Fragment);
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
        ttl: envelope.ttl,
        layer4: offset as u16,
        ports_at: offset as u16,
        headers_end: (offset + header_length) as u16,
    })
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

/// Where a chain of IPv6 extension headers leads.
enum Extensions {
    /// To this protocol at this offset.
    End(u8, usize),
    /// To a fragment of a larger packet.
    Fragment,
    /// This host is a waypoint of a routing header, not the destination.
    NotFinal,
    /// Past the end of the frame.
    Truncated,
    /// Further than we follow.
    TooMany,
}

/// Follows extension headers from `offset`, RFC 8200 section 4, at most six.
#[inline(always)]
fn extension_headers<P: Packet>(packet: &P, first: u8, offset: usize) -> Extensions {
    const MAX: usize = 6;
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    /// The first four bytes of an extension header.
    #[repr(C)]
    #[derive(Clone, Copy, FromBytes)]
    struct Start {
        next_header: u8,
        length: u8,
        /// Of a routing header: type and segments left. Of a fragment header:
        /// offset and the flag for more.
        specific: [u8; 2],
    }

    let mut next_header = first;
    let mut offset = offset;
    for _ in 0..MAX {
        if !matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
            return Extensions::End(next_header, offset);
        }
        let Some(start) = packet.read::<Start>(offset) else {
            return Extensions::Truncated;
        };
        // A fragment header has a reserved byte where others have a length.
        let mut units = usize::from(start.length) + 1;
        if next_header == FRAGMENT {
            units = 1;
            // Offset 0 and no more to come: an atomic fragment, RFC 6946.
            if u16::from_be_bytes(start.specific) & 0xfff9 != 0 {
                return Extensions::Fragment;
            }
        } else if next_header == ROUTING && start.specific[1] != 0 {
            return Extensions::NotFinal;
        }
        next_header = start.next_header;
        offset += units * 8;
    }
    Extensions::TooMany
}
