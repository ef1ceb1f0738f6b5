use std::net::Ipv4Addr;

use super::{Ethernet, ethertype};
use crate::Mac;

/// What an ARP packet does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks who has the target address.
    Request,
    /// Says who has the sender address.
    Reply,
}

/// An ARP packet for IPv4 over Ethernet, RFC 826.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Request or reply.
    pub operation: Operation,
    /// The sender's MAC address ("sha").
    pub sender_mac: Mac,
    /// The sender's IP address ("spa"). Receivers learn the pair.
    pub sender_ip: Ipv4Addr,
    /// The target's MAC address ("tha"); zero in a request.
    pub target_mac: Mac,
    /// The target's IP address ("tpa").
    pub target_ip: Ipv4Addr,
}

impl Arp {
    const LENGTH: usize = 28;
    /// Hardware type Ethernet, protocol type IPv4, and their address lengths.
    const PREFIX: [u8; 6] = [0, 1, 8, 0, 6, 4];

    /// Who has `target_ip`?
    pub fn request(sender_mac: Mac, sender_ip: Ipv4Addr, target_ip: Ipv4Addr) -> Self {
        Self {
            operation: Operation::Request,
            sender_mac,
            sender_ip,
            target_mac: Mac::ZERO,
            target_ip,
        }
    }

    /// `sender_ip` is at `sender_mac`, said to the target.
    pub fn reply(
        sender_mac: Mac,
        sender_ip: Ipv4Addr,
        target_mac: Mac,
        target_ip: Ipv4Addr,
    ) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac,
            sender_ip,
            target_mac,
            target_ip,
        }
    }

    /// `ip` is at `mac`, said to everybody: a request for one's own address
    /// (RFC 5227, section 3).
    pub fn gratuitous(mac: Mac, ip: Ipv4Addr) -> Self {
        Self::request(mac, ip, ip)
    }

    /// Whether sender and target address are the same.
    pub fn is_gratuitous(&self) -> bool {
        self.sender_ip == self.target_ip
    }

    /// The frame: requests to everybody, replies to the target.
    pub fn to_frame(&self) -> Vec<u8> {
        self.to_frame_for(match self.operation {
            Operation::Request => Mac::BROADCAST,
            Operation::Reply => self.target_mac,
        })
    }

    /// The frame for a given Ethernet destination.
    pub fn to_frame_for(&self, destination: Mac) -> Vec<u8> {
        let mut payload = Vec::with_capacity(Self::LENGTH);
        payload.extend(Self::PREFIX);
        payload.extend(match self.operation {
            Operation::Request => [0, 1],
            Operation::Reply => [0, 2],
        });
        payload.extend(self.sender_mac.0);
        payload.extend(self.sender_ip.octets());
        payload.extend(self.target_mac.0);
        payload.extend(self.target_ip.octets());
        Ethernet {
            destination,
            source: self.sender_mac,
            ethertype: ethertype::ARP,
        }
        .frame(&payload)
    }

    /// The ARP packet in a frame; `None` if it holds none that is whole.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (ethernet, payload) = Ethernet::parse(frame)?;
        let p: &[u8; Self::LENGTH] = payload.first_chunk()?;
        if ethernet.ethertype != ethertype::ARP || p[..6] != Self::PREFIX {
            return None;
        }
        let mac = |at: usize| Mac([p[at], p[at + 1], p[at + 2], p[at + 3], p[at + 4], p[at + 5]]);
        let ip = |at: usize| Ipv4Addr::new(p[at], p[at + 1], p[at + 2], p[at + 3]);
        Some(Self {
            operation: match p[6..8] {
                [0, 1] => Operation::Request,
                [0, 2] => Operation::Reply,
                _ => return None,
            },
            sender_mac: mac(8),
            sender_ip: ip(14),
            target_mac: mac(18),
            target_ip: ip(24),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const IP_A: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    const IP_B: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

    #[test]
    fn frames_survive_the_round_trip() {
        for arp in [
            Arp::request(A, IP_A, IP_B),
            Arp::reply(B, IP_B, A, IP_A),
            Arp::gratuitous(A, IP_A),
        ] {
            let frame = arp.to_frame();
            assert_eq!(Arp::parse(&frame), Some(arp));
            assert_eq!(Arp::parse(&frame[..frame.len() - 1]), None);
        }
    }

    #[test]
    fn destinations_follow_the_operation() {
        let request = Arp::request(A, IP_A, IP_B).to_frame();
        assert_eq!(
            Ethernet::parse(&request).unwrap().0.destination,
            Mac::BROADCAST
        );
        let reply = Arp::reply(B, IP_B, A, IP_A).to_frame();
        assert_eq!(Ethernet::parse(&reply).unwrap().0.destination, A);
    }
}
