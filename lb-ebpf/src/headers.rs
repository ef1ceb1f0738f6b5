//! Headers as they stand in a frame.

use lb_common::{Address, Mac};
use zerocopy::byteorder::{native_endian, network_endian};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::packet::Packet;

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

    /// Whether the source is no host's MAC but that of a group, which no sender
    /// may use (IEEE 802.3, section 3.2.3): what goes back there goes to many.
    #[inline(always)]
    pub fn is_from_group(&self) -> bool {
        let [first, _] = self.source_first.to_bytes();
        first & 1 != 0
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

/// An IPv6 address out of its header.
#[inline(always)]
pub fn words(header: &[native_endian::U64; 2]) -> Address {
    Address {
        words: [header[0].get(), header[1].get()],
    }
}

/// EtherType of the frame, as it stands; `None` if the frame is shorter than
/// an Ethernet header.
#[inline(always)]
pub fn ethertype<P: Packet>(packet: &P) -> Option<u16> {
    Some(packet.read::<EthernetHeader>(0)?.ethertype.get())
}
