use std::net::Ipv6Addr;

use super::{Ethernet, ethertype};
use crate::Mac;

/// What a neighbour discovery message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NdpKind {
    /// Asks who has the target address.
    Solicitation,
    /// Says who has it.
    Advertisement {
        /// The sender is a router.
        router: bool,
        /// It answers a solicitation.
        solicited: bool,
        /// It replaces what is known already.
        override_known: bool,
    },
}

/// A neighbour solicitation or advertisement, RFC 4861, sections 4.3 and 4.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ndp {
    /// Solicitation or advertisement.
    pub kind: NdpKind,
    /// IPv6 source.
    pub source: Ipv6Addr,
    /// IPv6 destination.
    pub destination: Ipv6Addr,
    /// The address that the message is about.
    pub target: Ipv6Addr,
    /// The source (solicitation) or target (advertisement) link-layer address
    /// option.
    pub link_layer: Option<Mac>,
}

impl Ndp {
    const ICMPV6: u8 = 58;
    /// Of all neighbour discovery: proves that no router was in between.
    const HOP_LIMIT: u8 = 255;

    /// Who has `target`? Sent to its solicited-node group.
    pub fn solicitation(mac: Mac, source: Ipv6Addr, target: Ipv6Addr) -> Self {
        Self {
            kind: NdpKind::Solicitation,
            source,
            destination: solicited_node(target),
            target,
            link_layer: Some(mac),
        }
    }

    /// `target` is at `mac`, said to all nodes without being asked.
    pub fn unsolicited(mac: Mac, target: Ipv6Addr) -> Self {
        Self {
            kind: NdpKind::Advertisement {
                router: false,
                solicited: false,
                override_known: true,
            },
            source: target,
            destination: Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            target,
            link_layer: Some(mac),
        }
    }

    /// `target` is at `mac`, said to the one who asked.
    pub fn advertisement(mac: Mac, target: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self {
            kind: NdpKind::Advertisement {
                router: false,
                solicited: true,
                override_known: true,
            },
            destination,
            ..Self::unsolicited(mac, target)
        }
    }

    /// The frame from `source` to `destination`; a multicast address has its
    /// own Ethernet destination, see [`multicast_mac`].
    pub fn to_frame(&self, source: Mac, destination: Mac) -> Vec<u8> {
        let mut message = match self.kind {
            NdpKind::Solicitation => vec![135, 0, 0, 0, 0, 0, 0, 0],
            NdpKind::Advertisement {
                router,
                solicited,
                override_known,
            } => {
                let flags = u8::from(router) << 7
                    | u8::from(solicited) << 6
                    | u8::from(override_known) << 5;
                vec![136, 0, 0, 0, flags, 0, 0, 0]
            }
        };
        message.extend(self.target.octets());
        if let Some(mac) = self.link_layer {
            message.extend([self.option_type(), 1]);
            message.extend(mac.0);
        }
        let sum = checksum(self.source, self.destination, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());

        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((message.len() as u16).to_be_bytes());
        packet.extend([Self::ICMPV6, Self::HOP_LIMIT]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(message);
        Ethernet {
            destination,
            source,
            ethertype: ethertype::IPV6,
        }
        .frame(&packet)
    }

    /// The frame for the multicast group that is the IPv6 destination.
    ///
    /// # Panics
    /// If the destination is no multicast address.
    pub fn to_multicast_frame(&self, source: Mac) -> Vec<u8> {
        self.to_frame(source, multicast_mac(self.destination))
    }

    /// The message in a frame; `None` if it holds none that is whole, has the
    /// right hop limit and the right checksum.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (ethernet, packet) = Ethernet::parse(frame)?;
        let (header, rest) = packet.split_first_chunk::<40>()?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let is_ndp = ethernet.ethertype == ethertype::IPV6
            && header[0] >> 4 == 6
            && header[6..8] == [Self::ICMPV6, Self::HOP_LIMIT];
        let message = rest.get(..length)?;
        if !is_ndp || length < 24 {
            return None;
        }
        let source = address(&header[8..24])?;
        let destination = address(&header[24..40])?;
        // With its own checksum inside, the sum over the message is zero.
        if checksum(source, destination, message) != 0 {
            return None;
        }
        let kind = match message[0] {
            135 => NdpKind::Solicitation,
            136 => NdpKind::Advertisement {
                router: message[4] & 0x80 != 0,
                solicited: message[4] & 0x40 != 0,
                override_known: message[4] & 0x20 != 0,
            },
            _ => return None,
        };
        let mut ndp = Self {
            kind,
            source,
            destination,
            target: address(&message[8..24])?,
            link_layer: None,
        };
        ndp.link_layer = link_layer(&message[24..], ndp.option_type());
        Some(ndp)
    }

    fn option_type(&self) -> u8 {
        match self.kind {
            NdpKind::Solicitation => 1,
            NdpKind::Advertisement { .. } => 2,
        }
    }
}

/// The multicast group in which whoever has `address` listens for
/// solicitations (RFC 4291, section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    )
}

/// Ethernet destination of an IPv6 multicast group (RFC 2464, section 7).
fn multicast_mac(group: Ipv6Addr) -> Mac {
    assert!(group.is_multicast(), "{group} is no multicast address");
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
}

fn link_layer(mut options: &[u8], wanted: u8) -> Option<Mac> {
    while let [kind, units, ..] = *options {
        let (option, rest) = options.split_at_checked(usize::from(units) * 8)?;
        if units == 0 {
            return None;
        }
        if kind == wanted {
            return Some(Mac(option[2..8].try_into().ok()?));
        }
        options = rest;
    }
    None
}

/// Checksum of an ICMPv6 message (RFC 4443, section 2.3), RFC 1071's sum.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let mut bytes = Vec::with_capacity(40 + message.len());
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, Ndp::ICMPV6]);
    bytes.extend(message);
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const A: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0x1234, 0x5678);

    #[test]
    fn frames_survive_the_round_trip_and_no_bit_may_flip() {
        for ndp in [
            Ndp::solicitation(MAC, A, B),
            Ndp::advertisement(MAC, B, A),
            Ndp::unsolicited(MAC, A),
        ] {
            let frame = ndp.to_frame(MAC, Mac::BROADCAST);
            assert_eq!(Ndp::parse(&frame), Some(ndp));
            assert_eq!(Ndp::parse(&frame[..frame.len() - 1]), None);
            let mut flipped = frame.clone();
            *flipped.last_mut().unwrap() ^= 1;
            assert_eq!(Ndp::parse(&flipped), None);
        }
    }

    #[test]
    fn groups_have_their_addresses() {
        let group = solicited_node(B);
        assert_eq!(group, "ff02::1:ff34:5678".parse::<Ipv6Addr>().unwrap());
        assert_eq!(multicast_mac(group), "33:33:ff:34:56:78".parse().unwrap());
    }
}
