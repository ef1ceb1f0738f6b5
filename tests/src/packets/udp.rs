use std::net::IpAddr;

use super::{Ethernet, ethertype};
use crate::Mac;

/// A UDP datagram in IPv4 or IPv6, RFC 768.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// IP source.
    pub source: IpAddr,
    /// IP destination, of the same version.
    pub destination: IpAddr,
    /// Source port, host byte order.
    pub source_port: u16,
    /// Destination port, host byte order.
    pub destination_port: u16,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Udp {
    const LENGTH: usize = 8;
    const PROTOCOL: u8 = 17;

    /// The frame, its UDP checksum left out (zero).
    ///
    /// # Panics
    /// When source and destination are not of one IP version.
    pub fn to_frame(&self, source: Mac, destination: Mac) -> Vec<u8> {
        let length = (Self::LENGTH + self.payload.len()) as u16;
        let mut packet = match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0x45, 0];
                header.extend((20 + length).to_be_bytes());
                // No identification, "don't fragment", TTL 64.
                header.extend([0, 0, 0x40, 0, 64, Self::PROTOCOL, 0, 0]);
                header.extend(from.octets());
                header.extend(to.octets());
                let checksum = internet_checksum(&header).to_be_bytes();
                header[10..12].copy_from_slice(&checksum);
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([Self::PROTOCOL, 64]);
                header.extend(from.octets());
                header.extend(to.octets());
                header
            }
            _ => panic!("{self:?} mixes IP versions"),
        };
        packet.extend(self.source_port.to_be_bytes());
        packet.extend(self.destination_port.to_be_bytes());
        packet.extend(length.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(&self.payload);
        self.frame(source, destination, &packet)
    }

    /// The frame with its UDP checksum, which IPv6 wants.
    ///
    /// # Panics
    /// When source and destination are not of one IP version.
    pub fn to_checked_frame(&self, source: Mac, destination: Mac) -> Vec<u8> {
        let mut frame = self.to_frame(source, destination);
        let start = frame.len() - Self::LENGTH - self.payload.len();
        let mut bytes = match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
            (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
            _ => unreachable!("the frame has one IP version"),
        };
        bytes.extend([0, Self::PROTOCOL]);
        bytes.extend(((frame.len() - start) as u16).to_be_bytes());
        bytes.extend(&frame[start..]);
        // Zero would mean that there is none.
        let checksum = match internet_checksum(&bytes) {
            0 => 0xffff,
            checksum => checksum,
        };
        frame[start + 6..start + 8].copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    fn frame(&self, source: Mac, destination: Mac, packet: &[u8]) -> Vec<u8> {
        let ethertype = match self.source {
            IpAddr::V4(_) => ethertype::IPV4,
            IpAddr::V6(_) => ethertype::IPV6,
        };
        Ethernet {
            destination,
            source,
            ethertype,
        }
        .frame(packet)
    }

    /// The datagram in a frame without IP options or extension headers; its
    /// checksum is not looked at.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (ethernet, packet) = Ethernet::parse(frame)?;
        let (source, destination, datagram): (IpAddr, IpAddr, &[u8]) = match ethernet.ethertype {
            ethertype::IPV4 => {
                let (header, rest) = packet.split_first_chunk::<20>()?;
                if header[0] != 0x45 || header[9] != Self::PROTOCOL {
                    return None;
                }
                let address = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).ok();
                (address(12)?.into(), address(16)?.into(), rest)
            }
            ethertype::IPV6 => {
                let (header, rest) = packet.split_first_chunk::<40>()?;
                if header[6] != Self::PROTOCOL {
                    return None;
                }
                let address = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).ok();
                (address(8)?.into(), address(24)?.into(), rest)
            }
            _ => return None,
        };
        let (header, rest) = datagram.split_first_chunk::<{ Self::LENGTH }>()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        // Short frames are padded.
        let payload = rest.get(..usize::from(word(4)).checked_sub(Self::LENGTH)?)?;
        Some(Self {
            source,
            destination,
            source_port: word(0),
            destination_port: word(2),
            payload: payload.to_vec(),
        })
    }
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let words = words.map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_its_checksum_sums_to_zero() {
        let udp = Udp {
            source: "203.0.113.100".parse().unwrap(),
            destination: "203.0.113.10".parse().unwrap(),
            source_port: 1234,
            destination_port: 53,
            payload: b"abc".to_vec(),
        };
        let frame = udp.to_frame(Mac::ZERO, Mac::BROADCAST);
        assert_eq!(frame.len(), 14 + 20 + 8 + 3);
        assert_eq!(internet_checksum(&frame[14..34]), 0);
    }

    #[test]
    fn a_frame_is_read_as_it_was_made() {
        for (source, destination) in [
            ("203.0.113.100", "203.0.113.10"),
            ("2001:db8::100", "2001:db8::10"),
        ] {
            let udp = Udp {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                source_port: 1234,
                destination_port: 53,
                payload: b"abc".to_vec(),
            };
            let frame = udp.to_checked_frame(Mac::ZERO, Mac::BROADCAST);
            let mut padded = frame.clone();
            padded.extend([0; 10]);
            assert_eq!(Udp::parse(&padded), Some(udp.clone()));
            let bare = udp.to_frame(Mac::ZERO, Mac::BROADCAST);
            assert_eq!(Udp::parse(&bare), Some(udp));
            assert_ne!(bare, frame);
        }
    }
}
