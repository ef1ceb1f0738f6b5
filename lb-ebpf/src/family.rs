//! IPv4 and IPv6 as types, so that a stage is written once and compiled for
//! each with keys of the right size.

use lb_common::Address;
use lb_common::flow::{self, FlowKeyV4, FlowKeyV6};
use lb_common::nat::RouterAddresses;
use lb_common::service::{ServiceKeyV4, ServiceKeyV6};

use crate::checksum::Sum;
use crate::echo;
use crate::forward::answer;
use crate::headers;
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::parse::{self, Firsts};
use crate::plain::{self, Head};
use crate::tables::Tables;
use crate::verdict::Verdict;

/// An IP version. Addresses and ports are as they stand in the packet.
pub trait Family: Sized {
    /// An address.
    type Address: Copy + PartialEq + Default;
    /// Key of a service map.
    type ServiceKey;
    /// Key of a flow table.
    type FlowKey: Copy;

    /// EtherType, as it stands in the frame.
    const ETHERTYPE: u16;

    /// IP protocol number of a packet of this version inside another.
    const ENCAPSULATED: u8;

    /// Whether this is IPv4.
    const IS_V4: bool;

    /// Whether fragments of two packets that have the same addresses and number
    /// are told apart by their protocol: in RFC 791, section 3.2, they are. The
    /// fragment header of RFC 8200 names what follows it, which in a later
    /// fragment need not be the protocol.
    const FRAGMENTS_HAVE_PROTOCOL: bool = Self::IS_V4;

    /// Type of ICMP's echo request (RFC 792, RFC 4443); its code is 0.
    const ECHO_REQUEST: u8;

    /// See [`plain`].
    fn head<P: Packet>(packet: &P) -> Option<Head<Self>>;

    /// All that is known of a packet that has a head with this protocol.
    fn plain<P: Packet>(packet: &P, protocol: u8) -> Option<PacketInfo<Self>>;

    /// Stages 1 and 2 for all other packets.
    fn parse<P: Packet, T: Tables>(
        packet: &P,
        firsts: Firsts,
        tables: &T,
    ) -> Result<PacketInfo<Self>, Verdict>;

    /// Destination of a packet, and whether it is ICMP; `None` if its header is
    /// cut short.
    fn destination<P: Packet>(packet: &P) -> Option<(Self::Address, bool)>;

    /// Parses a packet that ended early as a [`parse::LATER_FRAGMENT`].
    fn later_fragment<P: Packet>(packet: &P) -> Result<PacketInfo<Self>, Verdict>;

    /// Parses a packet that ended early as [`parse::NO_SERVICES`] and is ICMP.
    /// Passes unless it is a plain ping, see [`echo`].
    fn echo_request<P: Packet>(packet: &P) -> Result<PacketInfo<Self>, Verdict>;

    /// Makes an echo request the reply to it; `None` if it is cut short.
    fn echo_reply<P: Packet>(packet: &mut P) -> Option<()>;

    /// Answers a packet of `ip_length` bytes to `client` with an ICMP error,
    /// see [`answer`].
    fn answer<P: Packet>(
        packet: &mut P,
        ip_length: u16,
        client: &Self::Address,
        source: &Self::Address,
        error: &answer::Error,
    ) -> Option<()>;

    /// Key of a service, or of a NAT backend.
    fn service_key(address: &Self::Address, port: u16, protocol: u8) -> Self::ServiceKey;

    /// Key of a flow; `ports` the client's first.
    fn flow_key(
        client: &Self::Address,
        vip: &Self::Address,
        ports: u32,
        protocol: u8,
    ) -> Self::FlowKey;

    /// The hash that decides the flow's slot.
    fn hash(key: u64, info: &PacketInfo<Self>) -> u32;

    /// Whether this can be the address of one host on a network: it is no
    /// multicast or broadcast address, no loopback address, and not the
    /// unspecified one.
    fn is_of_one_host(address: &Self::Address) -> bool;

    /// The address in the form that maps of both versions have.
    fn to_common(address: &Self::Address) -> Address;

    /// The reverse of [`Self::to_common`].
    fn from_common(address: &Address) -> Self::Address;

    /// Adds an address to a checksum.
    fn add(sum: Sum, address: &Self::Address) -> Sum;

    /// Adds the complement of an address to a checksum: takes it out.
    fn subtract(sum: Sum, address: &Self::Address) -> Sum;

    /// The host's own address on an interface, if it has one.
    fn router(addresses: &RouterAddresses) -> Option<Self::Address>;
}

/// IPv4, RFC 791.
pub struct V4;

/// IPv6, RFC 8200.
pub struct V6;

impl Family for V4 {
    type Address = u32;
    type ServiceKey = ServiceKeyV4;
    type FlowKey = FlowKeyV4;

    const ETHERTYPE: u16 = headers::ETHERTYPE_IPV4;
    const ENCAPSULATED: u8 = 4;
    const IS_V4: bool = true;
    const ECHO_REQUEST: u8 = 8;

    #[inline(always)]
    fn head<P: Packet>(packet: &P) -> Option<Head<Self>> {
        plain::head_v4(packet)
    }

    #[inline(always)]
    fn plain<P: Packet>(packet: &P, protocol: u8) -> Option<PacketInfo<Self>> {
        plain::info_v4(packet, protocol)
    }

    #[inline(always)]
    fn parse<P: Packet, T: Tables>(
        packet: &P,
        firsts: Firsts,
        tables: &T,
    ) -> Result<PacketInfo<Self>, Verdict> {
        parse::ipv4(packet, firsts, tables)
    }

    #[inline(always)]
    fn destination<P: Packet>(packet: &P) -> Option<(u32, bool)> {
        parse::destination_ipv4(packet)
    }

    #[inline(always)]
    fn later_fragment<P: Packet>(packet: &P) -> Result<PacketInfo<Self>, Verdict> {
        parse::later_ipv4(packet)
    }

    #[inline(always)]
    fn echo_request<P: Packet>(packet: &P) -> Result<PacketInfo<Self>, Verdict> {
        echo::request_ipv4(packet)
    }

    #[inline(always)]
    fn echo_reply<P: Packet>(packet: &mut P) -> Option<()> {
        echo::reply_ipv4(packet)
    }

    #[inline(always)]
    fn answer<P: Packet>(
        packet: &mut P,
        ip_length: u16,
        client: &u32,
        source: &u32,
        error: &answer::Error,
    ) -> Option<()> {
        answer::ipv4(packet, ip_length, client, source, error)
    }

    #[inline(always)]
    fn service_key(address: &u32, port: u16, protocol: u8) -> ServiceKeyV4 {
        ServiceKeyV4::from_packet(*address, port, protocol)
    }

    #[inline(always)]
    fn flow_key(client: &u32, vip: &u32, ports: u32, protocol: u8) -> FlowKeyV4 {
        FlowKeyV4::from_packet(*client, *vip, ports, protocol)
    }

    #[inline(always)]
    fn hash(key: u64, info: &PacketInfo<Self>) -> u32 {
        flow::hash_v4(key, info.client, info.vip, info.ports())
    }

    #[inline(always)]
    fn is_of_one_host(address: &u32) -> bool {
        // The first byte: RFC 6890, and class D and E, RFC 1112.
        matches!(*address as u8, 1..=126 | 128..=223)
    }

    #[inline(always)]
    fn to_common(address: &u32) -> Address {
        Address::from_v4_word(*address)
    }

    #[inline(always)]
    fn from_common(address: &Address) -> u32 {
        address.v4_word()
    }

    #[inline(always)]
    fn add(sum: Sum, address: &u32) -> Sum {
        sum.add_u32(*address)
    }

    #[inline(always)]
    fn subtract(sum: Sum, address: &u32) -> Sum {
        sum.add_u32(!*address)
    }

    #[inline(always)]
    fn router(addresses: &RouterAddresses) -> Option<u32> {
        (addresses.v4 != 0).then_some(addresses.v4)
    }
}

impl Family for V6 {
    type Address = Address;
    type ServiceKey = ServiceKeyV6;
    type FlowKey = FlowKeyV6;

    const ETHERTYPE: u16 = headers::ETHERTYPE_IPV6;
    const ENCAPSULATED: u8 = 41;
    const IS_V4: bool = false;
    const ECHO_REQUEST: u8 = 128;

    #[inline(always)]
    fn head<P: Packet>(packet: &P) -> Option<Head<Self>> {
        plain::head_v6(packet)
    }

    #[inline(always)]
    fn plain<P: Packet>(packet: &P, protocol: u8) -> Option<PacketInfo<Self>> {
        plain::info_v6(packet, protocol)
    }

    #[inline(always)]
    fn parse<P: Packet, T: Tables>(
        packet: &P,
        firsts: Firsts,
        tables: &T,
    ) -> Result<PacketInfo<Self>, Verdict> {
        parse::ipv6(packet, firsts, tables)
    }

    #[inline(always)]
    fn destination<P: Packet>(packet: &P) -> Option<(Address, bool)> {
        parse::destination_ipv6(packet)
    }

    #[inline(always)]
    fn later_fragment<P: Packet>(packet: &P) -> Result<PacketInfo<Self>, Verdict> {
        parse::later_ipv6(packet)
    }

    #[inline(always)]
    fn echo_request<P: Packet>(packet: &P) -> Result<PacketInfo<Self>, Verdict> {
        echo::request_ipv6(packet)
    }

    #[inline(always)]
    fn echo_reply<P: Packet>(packet: &mut P) -> Option<()> {
        echo::reply_ipv6(packet)
    }

    #[inline(always)]
    fn answer<P: Packet>(
        packet: &mut P,
        ip_length: u16,
        client: &Address,
        source: &Address,
        error: &answer::Error,
    ) -> Option<()> {
        answer::ipv6(packet, ip_length, client, source, error)
    }

    #[inline(always)]
    fn service_key(address: &Address, port: u16, protocol: u8) -> ServiceKeyV6 {
        ServiceKeyV6::from_packet(*address, port, protocol)
    }

    #[inline(always)]
    fn flow_key(client: &Address, vip: &Address, ports: u32, protocol: u8) -> FlowKeyV6 {
        FlowKeyV6::from_packet(*client, *vip, ports, protocol)
    }

    #[inline(always)]
    fn hash(key: u64, info: &PacketInfo<Self>) -> u32 {
        flow::hash_v6(key, &info.client, info.ports())
    }

    #[inline(always)]
    fn is_of_one_host(address: &Address) -> bool {
        // ff00::/8, and of ::/64 all that there is: RFC 4291.
        address.words[0] as u8 != 0xff && address.words[0] != 0
    }

    #[inline(always)]
    fn to_common(address: &Address) -> Address {
        *address
    }

    #[inline(always)]
    fn from_common(address: &Address) -> Address {
        *address
    }

    #[inline(always)]
    fn add(sum: Sum, address: &Address) -> Sum {
        sum.add_u64(address.words[0]).add_u64(address.words[1])
    }

    #[inline(always)]
    fn subtract(sum: Sum, address: &Address) -> Sum {
        sum.add_u64(!address.words[0]).add_u64(!address.words[1])
    }

    #[inline(always)]
    fn router(addresses: &RouterAddresses) -> Option<Address> {
        (addresses.v6 != Address::default()).then_some(addresses.v6)
    }
}
