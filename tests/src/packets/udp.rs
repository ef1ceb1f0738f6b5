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
        let ethertype = match self.source {
            IpAddr::V4(_) => ethertype::IPV4,
            IpAddr::V6(_) => ethertype::IPV6,
        };
        Ethernet {
            destination,
            source,
            ethertype,
        }
        .frame(&packet)
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
}
