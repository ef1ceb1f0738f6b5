//! Headers of packets whose beginning is known: no options.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::protocol::TCP;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// What an Ethernet frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Whether it is IPv4.
    pub is_v4: bool,
    /// Bytes of the IP header.
    pub length: usize,
    /// Bytes from the IP header on.
    pub total: usize,
    /// IP protocol number.
    pub protocol: u8,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// Source address and port, if there are ports.
    pub source: (IpAddr, u16),
    /// Destination address and port.
    pub destination: (IpAddr, u16),
}

impl Headers {
    /// Reads a frame.
    ///
    /// # Panics
    /// If it is too short.
    pub fn of(frame: &[u8]) -> Self {
        let ip = &frame[ETHERNET..];
        let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
        let is_v4 = frame[12..14] == [0x08, 0x00];
        let length = if is_v4 { IPV4 } else { IPV6 };
        let address = |number: usize| -> IpAddr {
            if is_v4 {
                let at = 12 + 4 * number;
                Ipv4Addr::from_octets([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]).into()
            } else {
                let mut octets = [0; 16];
                octets.copy_from_slice(&ip[8 + 16 * number..][..16]);
                Ipv6Addr::from_octets(octets).into()
            }
        };
        Self {
            is_v4,
            length,
            total: if is_v4 {
                word(2).into()
            } else {
                IPV6 + usize::from(word(4))
            },
            protocol: ip[if is_v4 { 9 } else { 6 }],
            ttl: ip[if is_v4 { 8 } else { 7 }],
            source: (address(0), word(length)),
            destination: (address(1), word(length + 2)),
        }
    }

    /// What the checksum of layer 4 covers, itself included.
    pub fn covered(&self, frame: &[u8]) -> Vec<u8> {
        let addresses = if self.is_v4 { 12..20 } else { 8..40 };
        let mut covered = frame[ETHERNET..][addresses].to_vec();
        covered.extend(&frame[ETHERNET + self.length..]);
        covered
    }

    /// What none of the fields is about: the frame without MAC addresses,
    /// time to live, addresses, ports and checksums.
    pub fn rest(&self, frame: &[u8]) -> Vec<u8> {
        let mut rest = frame.to_vec();
        let layer4 = ETHERNET + self.length;
        let checksum = layer4 + if self.protocol == TCP { 16 } else { 6 };
        rest[..12].fill(0);
        if self.is_v4 {
            rest[ETHERNET + 8] = 0;
            rest[ETHERNET + 10..ETHERNET + 20].fill(0);
        } else {
            rest[ETHERNET + 7..ETHERNET + 40].fill(0);
        }
        rest[layer4..layer4 + 4].fill(0);
        rest[checksum..checksum + 2].fill(0);
        rest
    }
}

/// The sum of 16-bit words that is all ones over what holds a valid checksum.
pub fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let mut sum: u32 = words
        .map(|word| {
            u32::from(u16::from_be_bytes([
                word[0],
                word.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
