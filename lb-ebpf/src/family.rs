//! IPv4 and IPv6 as types, so that a stage is written once and compiled for
//! each with keys of the right size.

use lb_common::Address;
use lb_common::flow::{self, FlowKeyV4, FlowKeyV6, FlowValue};
use lb_common::service::{ServiceKeyV4, ServiceKeyV6, ServiceValue};

use crate::forward::too_big;
use crate::packet::Packet;
use crate::parse::{self, PacketInfo};
use crate::tables::Tables;
use crate::verdict::Verdict;

/// An IP version. Addresses and ports are as they stand in the packet.
pub trait Family: Sized {
    /// An address.
    type Address: Copy + PartialEq;

    /// EtherType, as it stands in the frame.
    const ETHERTYPE: u16;

    /// IP protocol number of a packet of this version inside another.
    const ENCAPSULATED: u8;

    /// Answers a packet that does not fit with ICMP, see [`too_big`].
    fn answer_too_big<P: Packet>(packet: &mut P, info: &PacketInfo<Self>, mtu: u16) -> Option<()>;

    /// Stages 1 and 2.
    fn parse<P: Packet, T: Tables>(packet: &P, tables: &T) -> Result<PacketInfo<Self>, Verdict>;

    /// The service with exactly this VIP, port and protocol.
    fn service<T: Tables>(
        tables: &T,
        vip: &Self::Address,
        port: u16,
        protocol: u8,
    ) -> Option<ServiceValue>;

    /// The hash that decides the flow's slot.
    fn hash(key: u64, info: &PacketInfo<Self>) -> u32;

    /// [`Tables::flow_v4`] or [`Tables::flow_v6`].
    fn flow<T: Tables>(
        tables: &T,
        info: &PacketInfo<Self>,
        now: u32,
        valid: impl FnOnce(&FlowValue) -> bool,
    ) -> Option<u32>;

    /// [`Tables::record_v4`] or [`Tables::record_v6`].
    fn record<T: Tables>(tables: &T, info: &PacketInfo<Self>, value: &FlowValue);
}

/// IPv4, RFC 791.
pub struct V4;

/// IPv6, RFC 8200.
pub struct V6;

impl Family for V4 {
    type Address = u32;

    const ETHERTYPE: u16 = parse::ETHERTYPE_IPV4;
    const ENCAPSULATED: u8 = 4;

    #[inline(always)]
    fn answer_too_big<P: Packet>(packet: &mut P, info: &PacketInfo<Self>, mtu: u16) -> Option<()> {
        too_big::answer_v4(packet, info, mtu)
    }

    #[inline(always)]
    fn parse<P: Packet, T: Tables>(packet: &P, tables: &T) -> Result<PacketInfo<Self>, Verdict> {
        parse::ipv4(packet, tables)
    }

    #[inline(always)]
    fn service<T: Tables>(tables: &T, vip: &u32, port: u16, protocol: u8) -> Option<ServiceValue> {
        tables.service_v4(&ServiceKeyV4::from_packet(*vip, port, protocol))
    }

    #[inline(always)]
    fn hash(key: u64, info: &PacketInfo<Self>) -> u32 {
        flow::hash_v4(key, info.client, info.vip, info.ports())
    }

    #[inline(always)]
    fn flow<T: Tables>(
        tables: &T,
        info: &PacketInfo<Self>,
        now: u32,
        valid: impl FnOnce(&FlowValue) -> bool,
    ) -> Option<u32> {
        tables.flow_v4(&flow_key_v4(info), now, valid)
    }

    #[inline(always)]
    fn record<T: Tables>(tables: &T, info: &PacketInfo<Self>, value: &FlowValue) {
        tables.record_v4(&flow_key_v4(info), value);
    }
}

impl Family for V6 {
    type Address = Address;

    const ETHERTYPE: u16 = parse::ETHERTYPE_IPV6;
    const ENCAPSULATED: u8 = 41;

    #[inline(always)]
    fn answer_too_big<P: Packet>(packet: &mut P, info: &PacketInfo<Self>, mtu: u16) -> Option<()> {
        too_big::answer_v6(packet, info, mtu)
    }

    #[inline(always)]
    fn parse<P: Packet, T: Tables>(packet: &P, tables: &T) -> Result<PacketInfo<Self>, Verdict> {
        parse::ipv6(packet, tables)
    }

    #[inline(always)]
    fn service<T: Tables>(
        tables: &T,
        vip: &Address,
        port: u16,
        protocol: u8,
    ) -> Option<ServiceValue> {
        tables.service_v6(&ServiceKeyV6::from_packet(*vip, port, protocol))
    }

    #[inline(always)]
    fn hash(key: u64, info: &PacketInfo<Self>) -> u32 {
        flow::hash_v6(key, &info.client, &info.vip, info.ports())
    }

    #[inline(always)]
    fn flow<T: Tables>(
        tables: &T,
        info: &PacketInfo<Self>,
        now: u32,
        valid: impl FnOnce(&FlowValue) -> bool,
    ) -> Option<u32> {
        tables.flow_v6(&flow_key_v6(info), now, valid)
    }

    #[inline(always)]
    fn record<T: Tables>(tables: &T, info: &PacketInfo<Self>, value: &FlowValue) {
        tables.record_v6(&flow_key_v6(info), value);
    }
}

#[inline(always)]
const fn flow_key_v4(info: &PacketInfo<V4>) -> FlowKeyV4 {
    FlowKeyV4::from_packet(info.client, info.vip, info.ports(), info.protocol)
}

#[inline(always)]
const fn flow_key_v6(info: &PacketInfo<V6>) -> FlowKeyV6 {
    FlowKeyV6::from_packet(info.client, info.vip, info.ports(), info.protocol)
}
