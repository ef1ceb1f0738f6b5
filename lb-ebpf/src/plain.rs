//! Stage 1 for most packets: TCP and UDP right behind an IP header without
//! options, all of it in the frame. Everything has its place there.
//!
//! What decides whether a packet is for a service is read first, and the rest
//! only if it is. What is seldom needed then is read again where it is: it
//! would be carried along on the stack otherwise, at the cost of every packet.
//!
//! Other packets are for [`crate::parse`], in the kernel in a program of their
//! own.

use lb_common::protocol::{TCP, UDP};
use zerocopy::FromBytes;
use zerocopy::byteorder::native_endian;

use crate::family::{Family, V4, V6};
use crate::headers::{FrameV4, FrameV6, Ports, words};
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::parse::{Envelope, transport};

/// What a service is found by.
#[derive(Clone, Copy)]
pub struct Head<F: Family> {
    /// VIP, as it stands in the packet.
    pub vip: F::Address,
    /// The service's port, network byte order.
    pub port: u16,
    /// IP protocol number: [`TCP`] or [`UDP`].
    pub protocol: u8,
}

/// Reads it; `None` if the packet is not as described above.
#[inline(always)]
pub fn head_v4<P: Packet>(packet: &P) -> Option<Head<V4>> {
    /// Version 4, a header of five words.
    const NO_OPTIONS: u8 = 0x45;
    let PlainV4 { frame, ports, .. } = packet.read::<PlainV4>(0)?;
    let ip = &frame.ip;
    if ip.version_ihl != NO_OPTIONS || ip.is_fragment() {
        return None;
    }
    is_whole::<PlainV4, P>(packet, ip.protocol)?;
    Some(Head {
        vip: ip.destination.get(),
        port: ports.destination.get(),
        protocol: ip.protocol,
    })
}

/// The same for IPv6.
#[inline(always)]
pub fn head_v6<P: Packet>(packet: &P) -> Option<Head<V6>> {
    let PlainV6 { frame, ports, .. } = packet.read::<PlainV6>(0)?;
    let ip = &frame.ip;
    if ip.version() != 6 {
        return None;
    }
    is_whole::<PlainV6, P>(packet, ip.next_header)?;
    Some(Head {
        vip: words(&ip.destination),
        port: ports.destination.get(),
        protocol: ip.next_header,
    })
}

/// All that is known of a packet that has a [`Head`] with this protocol.
#[inline(always)]
pub fn info_v4<P: Packet>(packet: &P, protocol: u8) -> Option<PacketInfo<V4>> {
    let FrameV4 { ethernet, ip } = packet.read::<PlainV4>(0)?.frame;
    let envelope = Envelope::<V4>::new(&ethernet, &ip);
    transport(packet, &envelope, size_of::<FrameV4>(), protocol)
}

/// The same for IPv6.
#[inline(always)]
pub fn info_v6<P: Packet>(packet: &P, protocol: u8) -> Option<PacketInfo<V6>> {
    let FrameV6 { ethernet, ip } = packet.read::<PlainV6>(0)?.frame;
    let envelope = Envelope::<V6>::new(&ethernet, &ip);
    transport(packet, &envelope, size_of::<FrameV6>(), protocol)
}

/// The beginning of an IPv4 frame, up to the end of UDP's header.
#[repr(C)]
#[derive(Clone, Copy, FromBytes)]
struct PlainV4 {
    frame: FrameV4,
    ports: Ports,
    rest: native_endian::U32,
}

/// The same for IPv6.
#[repr(C)]
#[derive(Clone, Copy, FromBytes)]
struct PlainV6 {
    frame: FrameV6,
    ports: Ports,
    rest: native_endian::U32,
}

/// What TCP's header without options has beyond UDP's.
type RestOfTcp = [u8; 12];

/// Whether the rest of the header lies in the frame, behind a `Start`.
#[inline(always)]
fn is_whole<Start, P: Packet>(packet: &P, protocol: u8) -> Option<()> {
    match protocol {
        TCP => packet.read::<RestOfTcp>(size_of::<Start>()).map(drop),
        UDP => Some(()),
        _ => None,
    }
}
