//! Pings of a VIP: ICMP echo requests (RFC 792, RFC 4443).
//!
//! As its services want it, the host's own stack answers, or the packet path,
//! or a backend, which holds the VIP too: the one that the ring of a service
//! has for a flow from the client, with the ping's identifier for its port. So
//! all echo requests of one `ping` meet the same backend. Nothing is recorded.
//!
//! Only plain pings come here. Those with IPv4 options or IPv6 extension
//! headers, fragments, and those that a driver keeps in several buffers are the
//! host's in any case.
//!
//! In the kernel these are programs of their own, like [`crate::nat`].

use lb_common::counters::DropReason;
use lb_common::service::LocalMacKey;
use lb_common::vip::{VipValue, ping};
use zerocopy::byteorder::{native_endian, network_endian};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{Sum, update};
use crate::family::{Family, V4, V6};
use crate::forward;
use crate::headers::{ETHERNET_LENGTH, EthernetHeader, IPV6_LENGTH, Ipv4Header, Ipv6Header};
use crate::icmp;
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::parse::{Envelope, without_ports};
use crate::schedule::{Chosen, schedule_new};
use crate::tables::{FamilyTables, Tables};
use crate::verdict::{Verdict, drop};

/// Time to live, hop limit of a reply.
const TTL: u8 = 64;

/// ICMP header of an echo request or reply.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct EchoHeader {
    /// Type and code, as they stand.
    kind: native_endian::U16,
    /// Checksum, as it stands.
    checksum: native_endian::U16,
    /// Which `ping` it is of, as it stands.
    identifier: native_endian::U16,
    /// Which of its requests, as it stands.
    sequence: native_endian::U16,
}

impl EchoHeader {
    #[inline(always)]
    fn is_request<F: Family>(&self) -> bool {
        self.kind.get() == u16::from_ne_bytes([F::ECHO_REQUEST, 0])
    }

    /// The same message with another type.
    #[inline(always)]
    fn with_type(self, kind: u8) -> Self {
        let kind = u16::from_ne_bytes([kind, 0]);
        let change = Sum::new().add_u16(!self.kind.get()).add_u16(kind);
        Self {
            kind: native_endian::U16::new(kind),
            checksum: native_endian::U16::new(update(self.checksum.get(), change)),
            ..self
        }
    }
}

/// An IPv4 frame without options, up to where the payload of a ping begins.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct EchoV4 {
    ethernet: EthernetHeader,
    ip: Ipv4Header,
    echo: EchoHeader,
}

/// The same of IPv6.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct EchoV6 {
    ethernet: EthernetHeader,
    ip: Ipv6Header,
    echo: EchoHeader,
}

/// Answers a ping, or sends it to a backend.
///
/// # Errors
/// [`Verdict::Pass`] if it is the host's; a drop under the reason.
#[inline(always)]
pub fn process<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    tables: &T,
) -> Result<Verdict, Verdict> {
    let is_whole = packet.total_len() == packet.len();
    let info = F::echo_request(packet)?;
    let Some(vip) = tables.vip(&F::to_common(&info.vip)) else {
        return Err(Verdict::Pass);
    };
    let own_mac = LocalMacKey::new(packet.interface(), info.destination_mac);
    if !is_whole || !tables.is_local_mac(&own_mac) {
        return Err(Verdict::Pass);
    }
    match vip.ping {
        ping::ANSWER => answer(packet, &info),
        ping::FORWARD => to_backend(packet, &info, &vip, tables),
        _ => Err(Verdict::Pass),
    }
}

#[inline(always)]
fn answer<F: Family, P: Packet>(packet: &mut P, info: &PacketInfo<F>) -> Result<Verdict, Verdict> {
    // The answer would be for many, or for nobody.
    let is_from_group = || {
        let ethernet = packet.read::<EthernetHeader>(0);
        ethernet.is_none_or(|ethernet| ethernet.is_from_group())
    };
    if !F::is_of_one_host(&info.client) || is_from_group() {
        return Err(Verdict::Pass);
    }
    info.check_lengths(packet)?;
    match F::echo_reply(packet) {
        Some(()) => Ok(Verdict::Transmit),
        None => drop(DropReason::Truncated),
    }
}

#[inline(always)]
fn to_backend<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &mut P,
    info: &PacketInfo<F>,
    vip: &VipValue,
    tables: &T,
) -> Result<Verdict, Verdict> {
    let service = tables.service(&F::service_key(&info.vip, vip.port, vip.protocol));
    // In the moment in which it is removed.
    let Some(service) = service else {
        return Err(Verdict::Pass);
    };
    info.check_lengths(packet)?;
    let (id, backend) = schedule_new(info, service, tables)?;
    let chosen = Chosen {
        id,
        backend,
        hash: F::hash(service.hash_key, info),
        new_flow: false,
    };
    forward::forward(packet, info, &chosen, tables)
}

/// Parses an IPv4 packet that is ICMP.
///
/// # Errors
/// [`Verdict::Pass`] if it is no ping, has options, is a fragment, or is cut
/// short.
#[inline(always)]
pub fn request_ipv4<P: Packet>(packet: &P) -> Result<PacketInfo<V4>, Verdict> {
    let Some(EchoV4 { ethernet, ip, echo }) = packet.read::<EchoV4>(0) else {
        return Err(Verdict::Pass);
    };
    let is_plain = ip.length() == Some(size_of::<Ipv4Header>()) && !ip.is_fragment();
    if !is_plain || !echo.is_request::<V4>() {
        return Err(Verdict::Pass);
    }
    let envelope = Envelope::<V4>::new(&ethernet, &ip);
    Ok(of_request(
        &envelope,
        &echo,
        icmp::PROTOCOL_V4,
        size_of::<Ipv4Header>(),
    ))
}

/// The same for IPv6.
///
/// # Errors
/// [`Verdict::Pass`] if it is no ping, has extension headers, or is cut short.
#[inline(always)]
pub fn request_ipv6<P: Packet>(packet: &P) -> Result<PacketInfo<V6>, Verdict> {
    let Some(EchoV6 { ethernet, ip, echo }) = packet.read::<EchoV6>(0) else {
        return Err(Verdict::Pass);
    };
    if ip.next_header != icmp::PROTOCOL_V6 || !echo.is_request::<V6>() {
        return Err(Verdict::Pass);
    }
    let envelope = Envelope::<V6>::new(&ethernet, &ip);
    Ok(of_request(&envelope, &echo, icmp::PROTOCOL_V6, IPV6_LENGTH))
}

#[inline(always)]
fn of_request<F: Family>(
    envelope: &Envelope<F>,
    echo: &EchoHeader,
    protocol: u8,
    ip_header: usize,
) -> PacketInfo<F> {
    let mut info = without_ports(envelope, protocol, ETHERNET_LENGTH + ip_header, 0);
    info.client_port = echo.identifier.get();
    info.headers_end += size_of::<EchoHeader>() as u16;
    info
}

/// Makes an echo request the reply to it. The type of service is that of the
/// request, as RFC 1122 (3.2.2.6) has it, and the identification too: routers
/// may fragment it, and the client's are unique.
#[inline(always)]
pub fn reply_ipv4<P: Packet>(packet: &mut P) -> Option<()> {
    const ECHO_REPLY: u8 = 0;
    let EchoV4 { ethernet, ip, echo } = packet.read(0)?;
    let fragment = network_endian::U16::ZERO;
    let word = |bytes: [u8; 2]| u16::from_ne_bytes(bytes);
    let change = Sum::new()
        .add_u16(!word(ip.fragment.to_bytes()))
        .add_u16(!word([ip.ttl, ip.protocol]))
        .add_u16(word([TTL, ip.protocol]));
    let checksum = update(word(ip.checksum.to_bytes()), change);
    let reply = EchoV4 {
        ethernet: ethernet.turned_round(),
        ip: Ipv4Header {
            fragment,
            ttl: TTL,
            checksum: network_endian::U16::from_bytes(checksum.to_ne_bytes()),
            source: ip.destination,
            destination: ip.source,
            ..ip
        },
        echo: echo.with_type(ECHO_REPLY),
    };
    packet.write(0, reply)
}

/// The same for IPv6. That the addresses change places leaves the sum of the
/// pseudo-header (RFC 8200, section 8.1) as it is.
#[inline(always)]
pub fn reply_ipv6<P: Packet>(packet: &mut P) -> Option<()> {
    const ECHO_REPLY: u8 = 129;
    let EchoV6 { ethernet, ip, echo } = packet.read(0)?;
    let reply = EchoV6 {
        ethernet: ethernet.turned_round(),
        ip: Ipv6Header {
            hop_limit: TTL,
            source: ip.destination,
            destination: ip.source,
            ..ip
        },
        echo: echo.with_type(ECHO_REPLY),
    };
    packet.write(0, reply)
}
