use super::ETHERNET;

/// A header in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Whose it is.
    pub place: Place,
    /// Its first byte.
    pub at: usize,
}

/// What a header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// An extension header of IPv6, by its number.
    Extension(u8),
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP of IPv4.
    Icmp,
    /// ICMPv6.
    Icmpv6,
}

/// Whose a header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The packet's own.
    Own,
    /// Of the packet that an ICMP error quotes.
    Quoted,
    /// Of the packet in a tunnel.
    Inner,
}

/// Number of the fragment header.
pub const FRAGMENT: u8 = 44;

/// The headers of a frame, as far as they are there. By a reading of its own,
/// which shares nothing with what is tested.
pub fn headers(frame: &[u8]) -> Vec<Header> {
    let mut found = Vec::new();
    let mut at = ETHERNET;
    // 802.1Q and 802.1ad.
    while let Some([0x81, 0x00] | [0x88, 0xa8]) = frame.get(at - 2..at) {
        at += 4;
    }
    match frame.get(at - 2..at) {
        Some([0x08, 0x00]) => ipv4(frame, at, Place::Own, &mut found),
        Some([0x86, 0xdd]) => ipv6(frame, at, Place::Own, &mut found),
        _ => {}
    }
    found
}

fn ipv4(frame: &[u8], at: usize, place: Place, found: &mut Vec<Header>) {
    let Some(header) = frame.get(at..at + 20).filter(|h| h[0] >> 4 == 4) else {
        return;
    };
    let kind = Kind::Ipv4;
    found.push(Header { kind, place, at });
    let is_later = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    if !is_later {
        let next = at + usize::from(header[0] & 0xf) * 4;
        payload(frame, header[9], next, place, found);
    }
}

fn ipv6(frame: &[u8], at: usize, place: Place, found: &mut Vec<Header>) {
    let Some(header) = frame.get(at..at + 40).filter(|h| h[0] >> 4 == 6) else {
        return;
    };
    let kind = Kind::Ipv6;
    found.push(Header { kind, place, at });
    let mut next = header[6];
    let mut at = at + 40;
    while matches!(next, 0 | 43 | FRAGMENT | 60) {
        let Some(header) = frame.get(at..at + 8) else {
            return;
        };
        let kind = Kind::Extension(next);
        found.push(Header { kind, place, at });
        if next == FRAGMENT && u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
            return;
        }
        at += match next {
            FRAGMENT => 8,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        next = header[0];
    }
    payload(frame, next, at, place, found);
}

fn payload(frame: &[u8], protocol: u8, at: usize, place: Place, found: &mut Vec<Header>) {
    const ICMP_HEADER: usize = 8;
    let kind = match protocol {
        1 => Kind::Icmp,
        4 if place == Place::Own => return ipv4(frame, at, Place::Inner, found),
        6 => Kind::Tcp,
        17 => Kind::Udp,
        41 if place == Place::Own => return ipv6(frame, at, Place::Inner, found),
        58 => Kind::Icmpv6,
        132 => Kind::Sctp,
        _ => return,
    };
    found.push(Header { kind, place, at });
    if place == Place::Own {
        match kind {
            Kind::Icmp => ipv4(frame, at + ICMP_HEADER, Place::Quoted, found),
            Kind::Icmpv6 => ipv6(frame, at + ICMP_HEADER, Place::Quoted, found),
            _ => {}
        }
    }
}
