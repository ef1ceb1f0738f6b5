//! A packet as another implementation reads it.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::End;

/// What a packet says, with all its checksums verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Destination and source of the frame.
    pub macs: [u8; 12],
    /// Source; port 0 in ICMP.
    pub source: End,
    /// Destination; port 0 in ICMP.
    pub destination: End,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// What follows the header of layer 4.
    pub payload: Vec<u8>,
    /// Of an ICMP message, its type and code.
    pub icmp: Option<[u8; 2]>,
}

/// Reads a frame.
///
/// # Panics
/// If it is not whole, or a checksum is wrong.
pub fn read(frame: &[u8]) -> Read {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (source, destination, ttl): (IpAddr, IpAddr, u8) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(
                header.calc_header_checksum(),
                header.header_checksum,
                "IPv4"
            );
            (
                header.source.into(),
                header.destination.into(),
                header.time_to_live,
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                header.hop_limit(),
            )
        }
        other => panic!("{other:?}"),
    };
    let mut icmp = None;
    let (ports, payload) = match packet.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => {
            let sum = match (source, destination) {
                (IpAddr::V4(s), IpAddr::V4(d)) => tcp.calc_checksum_ipv4(s.octets(), d.octets()),
                (IpAddr::V6(s), IpAddr::V6(d)) => tcp.calc_checksum_ipv6(s.octets(), d.octets()),
                _ => unreachable!(),
            };
            assert_eq!(sum.unwrap(), tcp.checksum(), "TCP");
            (
                [tcp.source_port(), tcp.destination_port()],
                tcp.payload().to_vec(),
            )
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            if header.checksum != 0 {
                let sum = match (source, destination) {
                    (IpAddr::V4(s), IpAddr::V4(d)) => {
                        header.calc_checksum_ipv4_raw(s.octets(), d.octets(), udp.payload())
                    }
                    (IpAddr::V6(s), IpAddr::V6(d)) => {
                        header.calc_checksum_ipv6_raw(s.octets(), d.octets(), udp.payload())
                    }
                    _ => unreachable!(),
                };
                assert_eq!(sum.unwrap(), header.checksum, "UDP");
            }
            (
                [udp.source_port(), udp.destination_port()],
                udp.payload().to_vec(),
            )
        }
        TransportSlice::Icmpv4(message) => {
            let sum = etherparse::checksum::Sum16BitWords::new().add_slice(message.slice());
            assert_eq!(sum.ones_complement(), 0, "ICMP");
            icmp = Some([message.type_u8(), message.code_u8()]);
            ([0, 0], message.payload().to_vec())
        }
        TransportSlice::Icmpv6(message) => {
            let (IpAddr::V6(s), IpAddr::V6(d)) = (source, destination) else {
                unreachable!()
            };
            let valid = message.is_checksum_valid(s.octets(), d.octets());
            assert!(valid, "ICMPv6");
            icmp = Some([message.type_u8(), message.code_u8()]);
            ([0, 0], message.payload().to_vec())
        }
        other => panic!("{other:?}"),
    };
    Read {
        macs: frame[..12].try_into().unwrap(),
        source: (source, ports[0]),
        destination: (destination, ports[1]),
        ttl,
        payload,
        icmp,
    }
}

/// The endpoints of the packet that an ICMP error quotes, its IPv4 header's
/// checksum verified.
pub fn quoted(error: &Read) -> (End, End) {
    let bytes = &error.payload;
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    match error.source.0 {
        IpAddr::V4(_) => {
            let (header, _) = etherparse::Ipv4Header::from_slice(bytes).unwrap();
            assert_eq!(
                header.calc_header_checksum(),
                header.header_checksum,
                "quoted IPv4"
            );
            (
                (header.source.into(), port(20)),
                (header.destination.into(), port(22)),
            )
        }
        IpAddr::V6(_) => {
            let (header, _) = etherparse::Ipv6Header::from_slice(bytes).unwrap();
            (
                (header.source.into(), port(40)),
                (header.destination.into(), port(42)),
            )
        }
    }
}

/// A frame that is read like the packet that an ICMP error quotes, if all of
/// that is quoted: so its own checksum can be verified.
pub fn quoted_frame(error: &Read) -> Vec<u8> {
    let ethertype: [u8; 2] = match error.source.0 {
        IpAddr::V4(_) => [0x08, 0x00],
        IpAddr::V6(_) => [0x86, 0xdd],
    };
    [&[0; 12][..], &ethertype, &error.payload].concat()
}
