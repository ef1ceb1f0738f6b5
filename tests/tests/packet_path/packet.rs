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

/// A TCP or UDP packet that is being put together.
#[derive(Clone, Debug)]
pub struct Packet {
    to_mac: [u8; 6],
    vip: IpAddr,
    port: u16,
    client_port: u16,
    layer4: Layer4,
    payload: Vec<u8>,
    ip_options: Vec<u8>,
    fragment: Option<(u16, bool)>,
}

#[derive(Clone, Copy, Debug)]
enum Layer4 {
    Tcp { syn: bool, ack: bool },
    Udp,
}

/// A TCP segment in the middle of a connection to a VIP.
pub fn tcp(vip: IpAddr, port: u16) -> Packet {
    let layer4 = Layer4::Tcp {
        syn: false,
        ack: true,
    };
    Packet::new(vip, port, layer4)
}

/// A UDP datagram to a VIP.
pub fn udp(vip: IpAddr, port: u16) -> Packet {
    Packet::new(vip, port, Layer4::Udp)
}

impl Packet {
    fn new(vip: IpAddr, port: u16, layer4: Layer4) -> Self {
        Self {
            to_mac: super::world::DIRECTOR_MAC,
            vip,
            port,
            client_port: CLIENT_PORT,
            layer4,
            payload: b"hello, backend".to_vec(),
            ip_options: Vec::new(),
            fragment: None,
        }
    }

    /// The first segment of a connection.
    pub fn syn(mut self) -> Self {
        self.layer4 = Layer4::Tcp {
            syn: true,
            ack: false,
        };
        self.payload.clear();
        self
    }

    /// SYN and ACK at once, as only a server sends it.
    pub fn syn_ack(mut self) -> Self {
        self.layer4 = Layer4::Tcp {
            syn: true,
            ack: true,
        };
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
        let step = match (client(self.vip), self.vip) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                let mut ip = etherparse::Ipv4Header::new(
                    0,
                    64,
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
                ethernet.ipv6(client.octets(), vip.octets(), 64)
            }
            _ => unreachable!("client() has the version of its argument"),
        };
        let mut frame = Vec::new();
        match self.layer4 {
            Layer4::Tcp { syn, ack } => {
                let mut header = TcpHeader::new(self.client_port, self.port, 1000, 64_240);
                header.syn = syn;
                header.ack = ack;
                let step = step.tcp_header(header);
                step.write(&mut frame, &self.payload).unwrap();
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
        let quoted = self.turned_round();
        let mut body = vec![kind, code, 0, 0, 0, 0, 0x05, 0x78];
        body.extend_from_slice(&quoted);
        let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, self.to_mac);
        let mut frame = Vec::new();
        match self.vip {
            IpAddr::V4(vip) => {
                let router = [192, 0, 2, 1];
                let step = ethernet.ipv4(router, vip.octets(), 64);
                step.write(&mut frame, etherparse::IpNumber::ICMP, &body)
                    .unwrap();
            }
            IpAddr::V6(vip) => {
                let router: Ipv6Addr = "2001:db8:ffff::1".parse().unwrap();
                let step = ethernet.ipv6(router.octets(), vip.octets(), 64);
                step.write(&mut frame, etherparse::IpNumber::IPV6_ICMP, &body)
                    .unwrap();
            }
        }
        frame
    }

    /// IP header and 8 bytes of layer 4 of the packet in the other direction.
    fn turned_round(&self) -> Vec<u8> {
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
        packet.truncate(ports + 8);
        packet
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
