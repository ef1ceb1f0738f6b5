//! Packets from a client to a VIP, in a few words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpFragOffset, Ipv4Options, PacketBuilder, TcpHeader};

/// MAC of the client, the source of all frames.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc1];

/// The client's port.
pub const CLIENT_PORT: u16 = 40_000;

/// The client in either IP version.
pub fn client(version_of: IpAddr) -> IpAddr {
    match version_of {
        IpAddr::V4(_) => Ipv4Addr::new(198, 51, 100, 7).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7).into(),
    }
}

/// A packet that is being put together.
#[derive(Clone, Debug)]
pub struct Packet {
    to_mac: [u8; 6],
    vip: IpAddr,
    port: u16,
    client_port: u16,
    source: Option<IpAddr>,
    ttl: u8,
    layer4: Layer4,
    payload: Vec<u8>,
    ip_options: Vec<u8>,
    fragment: Option<(u16, bool)>,
}

#[derive(Clone, Copy, Debug)]
enum Layer4 {
    Tcp {
        syn: bool,
        ack: bool,
        fin: bool,
        rst: bool,
    },
    Udp,
    Sctp {
        init: bool,
    },
    Ping,
    Other(u8),
}

/// A TCP segment in the middle of a connection to a VIP.
pub fn tcp(vip: IpAddr, port: u16) -> Packet {
    Packet::new(vip, port, segment(false, true))
}

/// A UDP datagram to a VIP.
pub fn udp(vip: IpAddr, port: u16) -> Packet {
    Packet::new(vip, port, Layer4::Udp)
}

/// A packet of an SCTP association with a VIP: DATA, or the INIT that begins it.
pub fn sctp(vip: IpAddr, port: u16, init: bool) -> Packet {
    Packet::new(vip, port, Layer4::Sctp { init })
}

/// A ping of a VIP with this identifier.
pub fn ping(vip: IpAddr, identifier: u16) -> Packet {
    Packet::new(vip, 0, Layer4::Ping).sent_from(identifier)
}

/// A packet to a VIP of another protocol.
pub fn other(vip: IpAddr, protocol: u8) -> Packet {
    Packet::new(vip, 0, Layer4::Other(protocol))
}

impl Packet {
    fn new(vip: IpAddr, port: u16, layer4: Layer4) -> Self {
        Self {
            to_mac: super::world::DIRECTOR_MAC,
            vip,
            port,
            client_port: CLIENT_PORT,
            source: None,
            ttl: 64,
            layer4,
            payload: b"hello, backend".to_vec(),
            ip_options: Vec::new(),
            fragment: None,
        }
    }

    /// The first segment of a connection.
    pub fn syn(mut self) -> Self {
        self.layer4 = segment(true, false);
        self.payload.clear();
        self
    }

    /// SYN and ACK at once, as only a server sends it.
    pub fn syn_ack(mut self) -> Self {
        self.layer4 = segment(true, true);
        self
    }

    /// The last segment of a connection, in order or not.
    pub fn last(mut self, in_order: bool) -> Self {
        self.layer4 = Layer4::Tcp {
            syn: false,
            ack: in_order,
            fin: in_order,
            rst: !in_order,
        };
        self
    }

    /// From another address than the client's.
    pub const fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// With so many hops left.
    pub const fn ttl(mut self, hops: u8) -> Self {
        self.ttl = hops;
        self
    }

    /// From another port of the client.
    pub const fn sent_from(mut self, port: u16) -> Self {
        self.client_port = port;
        self
    }

    /// To another MAC than the director's.
    pub const fn addressed_to(mut self, mac: [u8; 6]) -> Self {
        self.to_mac = mac;
        self
    }

    /// With so many bytes of payload.
    pub fn payload(mut self, length: usize) -> Self {
        self.payload = vec![0x2a; length];
        self
    }

    /// With IPv4 options; a multiple of four bytes.
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip_options = options.to_vec();
        self
    }

    /// An IPv4 fragment at this offset in units of 8 bytes.
    pub const fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, self.to_mac);
        let source = self.source.unwrap_or_else(|| client(self.vip));
        let step = match (source, self.vip) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                let mut ip = etherparse::Ipv4Header::new(
                    0,
                    self.ttl,
                    etherparse::IpNumber::TCP,
                    client.octets(),
                    vip.octets(),
                )
                .unwrap();
                ip.options = Ipv4Options::try_from(self.ip_options.as_slice()).unwrap();
                ip.dont_fragment = self.fragment.is_none();
                if let Some((offset, more)) = self.fragment {
                    ip.fragment_offset = IpFragOffset::try_new(offset).unwrap();
                    ip.more_fragments = more;
                }
                ethernet.ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                ethernet.ipv6(client.octets(), vip.octets(), self.ttl)
            }
            _ => panic!("both addresses are of one version"),
        };
        let mut frame = Vec::new();
        match self.layer4 {
            Layer4::Tcp { syn, ack, fin, rst } => {
                let mut header = TcpHeader::new(self.client_port, self.port, 1000, 64_240);
                header.syn = syn;
                header.ack = ack;
                header.fin = fin;
                header.rst = rst;
                let step = step.tcp_header(header);
                step.write(&mut frame, &self.payload).unwrap();
            }
            Layer4::Sctp { init } => {
                let ports = [self.client_port, self.port].map(u16::to_be_bytes).concat();
                // Verification tag and checksum, which nobody looks at here.
                let rest = [0, 0, 0, 1, 2, 3, 4, 5, if init { 1 } else { 0 }, 3, 0, 20];
                let body = [&ports[..], &rest, &self.payload].concat();
                step.write(&mut frame, 132.into(), &body).unwrap();
            }
            Layer4::Ping => {
                const SEQUENCE: u16 = 3;
                let identifier = self.client_port;
                if self.vip.is_ipv4() {
                    let step = step.icmpv4_echo_request(identifier, SEQUENCE);
                    step.write(&mut frame, &self.payload).unwrap();
                } else {
                    let step = step.icmpv6_echo_request(identifier, SEQUENCE);
                    step.write(&mut frame, &self.payload).unwrap();
                }
            }
            Layer4::Other(protocol) => {
                step.write(&mut frame, protocol.into(), &self.payload)
                    .unwrap();
            }
            Layer4::Udp => {
                let step = step.udp(self.client_port, self.port);
                step.write(&mut frame, &self.payload).unwrap();
            }
        }
        frame
    }

    /// What a router sends to the VIP when it could not forward `self`'s
    /// answer: an ICMP error (type and code) that quotes the IP header and 8
    /// bytes of a packet from VIP to client.
    pub fn icmp_error(&self, kind: u8, code: u8) -> Vec<u8> {
        self.icmp_error_quoting(kind, code, 8)
    }

    /// The same with more of layer 4 quoted.
    pub fn icmp_error_quoting(&self, kind: u8, code: u8, bytes: usize) -> Vec<u8> {
        let quoted = self.turned_round(bytes);
        let mut body = vec![kind, code, 0, 0, 0, 0, 0x05, 0x78];
        body.extend_from_slice(&quoted);
        let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, self.to_mac);
        let mut frame = Vec::new();
        match self.vip {
            // What is quoted went from `vip` to whom this is from.
            IpAddr::V4(vip) => {
                let router = [192, 0, 2, 1];
                let checksum = etherparse::checksum::Sum16BitWords::new()
                    .add_slice(&body)
                    .ones_complement();
                body[2..4].copy_from_slice(&checksum.to_ne_bytes());
                let step = ethernet.ipv4(router, vip.octets(), 64);
                step.write(&mut frame, etherparse::IpNumber::ICMP, &body)
                    .unwrap();
            }
            IpAddr::V6(vip) => {
                let router: Ipv6Addr = "2001:db8:ffff::1".parse().unwrap();
                let checksum = etherparse::checksum::Sum16BitWords::new()
                    .add_16bytes(router.octets())
                    .add_16bytes(vip.octets())
                    .add_4bytes((body.len() as u32).to_be_bytes())
                    .add_4bytes([0, 0, 0, 58])
                    .add_slice(&body)
                    .ones_complement();
                body[2..4].copy_from_slice(&checksum.to_ne_bytes());
                let step = ethernet.ipv6(router.octets(), vip.octets(), 64);
                step.write(&mut frame, etherparse::IpNumber::IPV6_ICMP, &body)
                    .unwrap();
            }
        }
        frame
    }

    /// IP header and so many bytes of layer 4 of the packet in the other
    /// direction.
    fn turned_round(&self, bytes: usize) -> Vec<u8> {
        let frame = self.build();
        let mut packet = frame[14..].to_vec();
        let (source, destination, length, ports) = match self.vip {
            IpAddr::V4(_) => (12, 16, 4, 20),
            IpAddr::V6(_) => (8, 24, 16, 40),
        };
        for i in 0..length {
            packet.swap(source + i, destination + i);
        }
        packet.swap(ports, ports + 2);
        packet.swap(ports + 1, ports + 3);
        packet.truncate(ports + bytes);
        packet
    }
}

const fn segment(syn: bool, ack: bool) -> Layer4 {
    Layer4::Tcp {
        syn,
        ack,
        fin: false,
        rst: false,
    }
}

/// Puts an IPv6 extension header (RFC 8200) in front of what follows the IPv6
/// header of a frame: its number, and the whole header, whose first byte is
/// set to the protocol that followed before.
pub fn with_extension(frame: &[u8], number: u8, header: &[u8]) -> Vec<u8> {
    let mut header = header.to_vec();
    header[0] = frame[20];
    let mut extended = frame[..54].to_vec();
    extended[20] = number;
    let length = u16::from_be_bytes([frame[18], frame[19]]) + header.len() as u16;
    extended[18..20].copy_from_slice(&length.to_be_bytes());
    extended.extend_from_slice(&header);
    extended.extend_from_slice(&frame[54..]);
    extended
}

/// Puts an extension header into the packet that an ICMPv6 error quotes, like
/// [`with_extension`].
pub fn with_quoted_extension(frame: &[u8], number: u8, header: &[u8]) -> Vec<u8> {
    const QUOTED: usize = 54 + 8;
    // Behind another IPv6 header, so that the quoted one takes its place.
    let quoted = [&frame[..14], &frame[QUOTED..]].concat();
    let quoted = with_extension(&quoted, number, header);
    let mut extended = [&frame[..QUOTED], &quoted[14..]].concat();
    let length = (extended.len() - 54) as u16;
    extended[18..20].copy_from_slice(&length.to_be_bytes());
    extended[56..58].fill(0);
    let checksum = etherparse::checksum::Sum16BitWords::new()
        // Pseudo-header: both addresses, length, ICMPv6.
        .add_slice(&extended[22..54])
        .add_4bytes(u32::from(length).to_be_bytes())
        .add_4bytes([0, 0, 0, 58])
        .add_slice(&extended[54..])
        .ones_complement();
    extended[56..58].copy_from_slice(&checksum.to_ne_bytes());
    extended
}

/// Puts VLAN tags into a frame, as they stand in it, the outermost first.
pub fn with_tags(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], &tags.concat(), &frame[12..]].concat()
}
