//! Packets of clients, and what directors put around them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{PacketBuilder, TcpHeader};

/// MAC addresses of all frames: they stay as they are.
pub const MACS: [u8; 12] = [2, 0, 0, 0, 0xbe, 1, 2, 0, 0, 0, 0, 1];

/// IP protocol numbers of packets in packets.
pub const IN_IP: [u8; 2] = [4, 41];

/// An address out of the documentation's prefixes, in IP version 4 or 6.
pub fn address(version: u8, subnet: u8, host: u8) -> IpAddr {
    match version {
        4 => {
            let net = [[192, 0, 2], [198, 51, 100], [203, 0, 113]][usize::from(subnet)];
            Ipv4Addr::new(net[0], net[1], net[2], host).into()
        }
        _ => Ipv6Addr::new(0x2001, 0xdb8, subnet.into(), 0, 0, 0, 0, host.into()).into(),
    }
}

/// The IP packet of a client: UDP with this much payload.
pub fn udp(source: IpAddr, destination: IpAddr, payload: usize) -> Vec<u8> {
    let payload = vec![0x2a; payload];
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => PacketBuilder::ipv4(s.octets(), d.octets(), 61)
            .udp(40_000, 53)
            .write(&mut packet, &payload),
        (IpAddr::V6(s), IpAddr::V6(d)) => PacketBuilder::ipv6(s.octets(), d.octets(), 61)
            .udp(40_000, 53)
            .write(&mut packet, &payload),
        _ => panic!("two IP versions"),
    }
    .unwrap();
    packet
}

/// The IP packet of a server: a TCP header with these flags and options.
pub fn tcp(source: IpAddr, destination: IpAddr, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(80, 40_000, 7, 64_240);
    header.syn = flags & 0x02 != 0;
    header.rst = flags & 0x04 != 0;
    header.ack = flags & 0x10 != 0;
    header.set_options_raw(options).unwrap();
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => PacketBuilder::ipv4(s.octets(), d.octets(), 64)
            .tcp_header(header)
            .write(&mut packet, &[]),
        (IpAddr::V6(s), IpAddr::V6(d)) => PacketBuilder::ipv6(s.octets(), d.octets(), 64)
            .tcp_header(header)
            .write(&mut packet, &[]),
        _ => panic!("two IP versions"),
    }
    .unwrap();
    packet
}

/// IP version of a packet.
pub fn version(packet: &[u8]) -> u8 {
    packet[0] >> 4
}

/// `packet` in one from `source` to `destination`, with this traffic class.
pub fn encapsulated(source: IpAddr, destination: IpAddr, class: u8, packet: &[u8]) -> Vec<u8> {
    let protocol = if version(packet) == 4 {
        IN_IP[0]
    } else {
        IN_IP[1]
    };
    let mut outer = Vec::new();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let mut header = etherparse::Ipv4Header::new(
                packet.len() as u16,
                64,
                protocol.into(),
                s.octets(),
                d.octets(),
            )
            .unwrap();
            header.dscp = (class >> 2).try_into().unwrap();
            header.ecn = (class & 3).try_into().unwrap();
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut outer).unwrap();
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let header = etherparse::Ipv6Header {
                traffic_class: class,
                flow_label: 0x12345.try_into().unwrap(),
                payload_length: packet.len() as u16,
                next_header: protocol.into(),
                hop_limit: 64,
                source: s.octets(),
                destination: d.octets(),
            };
            header.write(&mut outer).unwrap();
        }
        _ => panic!("two IP versions"),
    }
    outer.extend_from_slice(packet);
    outer
}

/// Puts an IPv6 extension header in front of what follows the IPv6 header of
/// an IP packet; the header's first byte is set to what followed before.
pub fn with_extension(packet: &[u8], number: u8, header: &[u8]) -> Vec<u8> {
    let mut header = header.to_vec();
    header[0] = packet[6];
    let mut extended = packet[..40].to_vec();
    extended[6] = number;
    let length = u16::from_be_bytes([packet[4], packet[5]]) + header.len() as u16;
    extended[4..6].copy_from_slice(&length.to_be_bytes());
    extended.extend_from_slice(&header);
    extended.extend_from_slice(&packet[40..]);
    extended
}

/// The packet as an Ethernet frame.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if version(packet) == 6 {
        [0x86, 0xdd]
    } else {
        [0x08, 0x00]
    };
    [&MACS, &ethertype[..], packet].concat()
}

/// The packet with a byte changed.
pub fn changed(mut packet: Vec<u8>, offset: usize, value: u8) -> Vec<u8> {
    packet[offset] = value;
    packet
}

/// Whether the checksums of a frame's IP and TCP headers are right.
pub fn has_right_checksums(frame: &[u8]) -> bool {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::TransportSlice::Tcp(tcp)) = &sliced.transport else {
        panic!("no TCP");
    };
    let payload = tcp.payload();
    let expected = match sliced.net.as_ref().unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            tcp.to_header()
                .calc_checksum_ipv4(&header, payload)
                .unwrap()
        }
        etherparse::NetSlice::Ipv6(ip) => tcp
            .to_header()
            .calc_checksum_ipv6(&ip.header().to_header(), payload)
            .unwrap(),
        _ => panic!("no IP"),
    };
    tcp.checksum() == expected
}
