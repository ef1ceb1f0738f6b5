//! What the parser has found out about a packet.

use lb_common::Mac;
use lb_common::backend::Backend;
use lb_common::counters::DropReason;
use lb_common::service::LocalMacKey;

use crate::family::Family;
use crate::headers::{ETHERNET_LENGTH, EthernetHeader};
use crate::packet::Packet;
use crate::parse::{Envelope, without_ports};
use crate::tables::Tables;
use crate::verdict::{Verdict, drop};

/// All that later stages know of a packet.
///
/// For an ICMP error this is the quoted flow, turned round so that `client`
/// is the client: see [`crate::icmp`].
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
    /// IP protocol number: of [`lb_common::protocol`].
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

    /// The first fragment of an IPv6 packet, whose fragment header ends at this
    /// offset in the frame: extension headers may follow it, and be fragmented
    /// too.
    #[inline(always)]
    pub const fn first(id: u32, header_end: usize) -> u64 {
        FIRST | id as u64 | (header_end as u64) << 48
    }

    /// Where the fragment header ends; 0 if there is none.
    #[inline(always)]
    pub const fn header_end(fragment: u64) -> u16 {
        (fragment >> 48) as u16
    }
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

    /// Of a first fragment, the bytes of what was fragmented that it has.
    #[inline(always)]
    pub const fn fragment_length(&self) -> u16 {
        match fragment::header_end(self.fragment) {
            0 => self.layer4_length(),
            end => (ETHERNET_LENGTH as u16 + self.ip_length).saturating_sub(end),
        }
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

/// The same where no backend is at hand, nor anything else known of the packet.
#[inline(always)]
pub fn is_sent_to_us<P: Packet, T: Tables>(packet: &P, tables: &T) -> bool {
    let Some(ethernet) = packet.read::<EthernetHeader>(0) else {
        return false;
    };
    tables.is_local_mac(&LocalMacKey::new(
        packet.interface(),
        ethernet.destination(),
    ))
}
