//! What makes it true that a packet was sent on whole and correct. By a reading
//! of its own, which shares nothing with what is tested.

use std::ops::Range;

use super::{ETHERNET, Header, Kind, Place, headers};

/// The packet is whole inside an outer one, whose length and checksum fit.
///
/// # Errors
/// What is wrong.
pub fn encapsulated(frame: &[u8], bytes: &[u8]) -> Result<(), String> {
    let outer = ip_packet(bytes).ok_or("outer packet cut short")?;
    let [own, ..] = headers(bytes)[..] else {
        return Err("no outer header".to_owned());
    };
    let overhead = if own.kind == Kind::Ipv4 { 20 } else { 40 };
    if own.kind == Kind::Ipv4 {
        let header = &bytes[ETHERNET..ETHERNET + overhead];
        expect(sum(header) == 0xffff, "checksum of the outer header")?;
    }
    let inner = ip_packet(frame).ok_or("forwarded, but cut short")?;
    expect(
        outer.len() == inner.len() + overhead,
        "length of the outer packet",
    )?;
    let rest = &bytes[ETHERNET + overhead..];
    expect(rest == &frame[ETHERNET..], "the inner packet changed")
}

/// Addresses, ports, time to live and checksums change, nothing else; and sums
/// over what checksums cover stay what they are, right or wrong.
///
/// # Errors
/// What is wrong.
pub fn translated(frame: &[u8], bytes: &[u8]) -> Result<(), String> {
    expect(bytes.len() == frame.len(), "another length")?;
    let found = headers(frame);
    let own = |h: &&Header| h.place == Place::Own;
    let own: Vec<_> = found.iter().filter(own).copied().collect();
    expect(headers(bytes) == found, "other headers")?;
    let packet = ip_packet(frame).ok_or("forwarded, but cut short")?;
    let (ip_end, addresses) = match own[0].kind {
        Kind::Ipv4 => (ETHERNET + usize::from(frame[14] & 0xf) * 4, 26..34),
        _ => (54, 22..54),
    };
    let ttl = if own[0].kind == Kind::Ipv4 { 22 } else { 21 };
    let mut free = vec![0..12, ttl..ttl + 1, addresses.clone()];
    if own[0].kind == Kind::Ipv4 {
        free.push(24..26);
        let header = ETHERNET..ip_end;
        expect(
            sum(&frame[header.clone()]) % 0xffff == sum(&bytes[header]) % 0xffff,
            "checksum of IPv4",
        )?;
    }
    if let Some(last) = own.last() {
        let covered = last.at..packet.end;
        let same = |with_addresses: bool| {
            let of = |frame: &[u8]| {
                let addresses = if with_addresses {
                    addresses.clone()
                } else {
                    0..0
                };
                let both = [&frame[addresses], &frame[covered.clone()]].concat();
                sum(&both) % 0xffff
            };
            of(frame) == of(bytes)
        };
        match last.kind {
            Kind::Tcp | Kind::Udp => {
                let at = last.at + if last.kind == Kind::Tcp { 16 } else { 6 };
                free.extend([last.at..last.at + 4, at..at + 2]);
                let has_none = last.kind == Kind::Udp && frame[at..at + 2] == [0, 0];
                let is_fine = has_none || is_unfinished(frame, last, at, &packet) || same(true);
                expect(is_fine, "checksum of layer 4")?;
            }
            Kind::Icmp | Kind::Icmpv6 => {
                free.push(last.at + 2..last.at + 4);
                free.extend(quoted(&found));
                expect(same(last.kind == Kind::Icmpv6), "checksum of ICMP")?;
            }
            _ => {}
        }
    }
    let differs = |at: &usize| frame[*at] != bytes[*at] && !free.iter().any(|f| f.contains(at));
    match (0..frame.len()).find(differs) {
        Some(at) => Err(format!("byte {at} changed: {bytes:02x?}")),
        None => Ok(()),
    }
}

/// What is left is the inner packet, whole, with nothing changed but its ECN.
///
/// # Errors
/// What is wrong.
pub fn taken_out(frame: &[u8], bytes: &[u8]) -> Result<(), String> {
    let found = headers(frame);
    let inner = found.iter().find(|header| header.place == Place::Inner);
    let inner = inner.ok_or("taken out of what is no tunnel")?;
    let word = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let (before, after) = (&frame[inner.at..], &bytes[ETHERNET..]);
    let (ethertype, claimed, free) = match inner.kind {
        Kind::Ipv4 => (0x0800, word(16), [1..2, 10..12]),
        _ => (0x86dd, 40 + word(18), [0..2, 0..0]),
    };
    expect(bytes[..12] == frame[..12], "MAC addresses changed")?;
    expect(
        word(12) == ethertype,
        "another EtherType than the inner packet's",
    )?;
    expect(
        before.len() == after.len(),
        "another length than the inner packet's",
    )?;
    expect(claimed <= after.len(), "cut short")?;
    let differs = |at: &usize| before[*at] != after[*at];
    let mut others = (0..before.len()).filter(|at| !free.iter().any(|f| f.contains(at)));
    expect(!others.any(|at| differs(&at)), "the inner packet changed")
}

/// Where in the frame its IP packet is, by the length that it claims; `None`
/// if that is not there.
pub fn ip_packet(frame: &[u8]) -> Option<Range<usize>> {
    let [own, ..] = headers(frame)[..] else {
        return None;
    };
    let word = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let length = match own.kind {
        Kind::Ipv4 => word(16),
        _ => 40 + word(18),
    };
    let end = ETHERNET + length;
    (end <= frame.len()).then_some(ETHERNET..end)
}

/// Says `what` is wrong if it does not hold.
///
/// # Errors
/// `what`.
pub fn expect(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// What may change of the packet that an ICMP error quotes.
fn quoted(found: &[Header]) -> impl Iterator<Item = Range<usize>> {
    let quoted = found.iter().filter(|h| h.place == Place::Quoted);
    quoted.flat_map(|&Header { kind, at, .. }| match kind {
        Kind::Ipv4 => [at + 10..at + 20, 0..0],
        Kind::Ipv6 => [at + 8..at + 40, 0..0],
        Kind::Tcp => [at..at + 4, at + 16..at + 18],
        Kind::Udp => [at..at + 4, at + 6..at + 8],
        _ => [0..0, 0..0],
    })
}

/// Whether a checksum is the sum of the pseudo-header alone, as a sender on
/// the same machine leaves it to its NIC: then it is filled in.
fn is_unfinished(frame: &[u8], header: &Header, at: usize, packet: &Range<usize>) -> bool {
    let addresses = if frame[12] == 0x08 { 26..34 } else { 22..54 };
    let protocol = if header.kind == Kind::Tcp { 6 } else { 17 };
    let length = ((packet.end - header.at) as u16).to_be_bytes();
    let pseudo = [&frame[addresses], &length, &[0, protocol]].concat();
    sum(&pseudo).to_be_bytes() == frame[at..at + 2]
}

/// The ones' complement sum of RFC 1071, folded.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let words = words.map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
