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
    let inner = ip_packet(frame).ok_or("forwarded, but cut short")?;
    let is_v4 = bytes[outer.start] >> 4 == 4;
    let overhead = if is_v4 { 20 } else { 40 };
    if is_v4 {
        let header = &bytes[outer.start..outer.start + overhead];
        expect(sum(header) == 0xffff, "checksum of the outer header")?;
    }
    let is_whole = outer.len() == inner.len() + overhead;
    expect(is_whole, "length of the outer packet")?;
    let rest = &bytes[outer.start + overhead..];
    expect(rest == &frame[inner.start..], "the inner packet changed")
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
    let ip = packet.start;
    let addresses = addresses(&own[0]);
    let mut free = vec![0..12, addresses.clone()];
    if own[0].kind == Kind::Ipv4 {
        free.extend([ip + 8..ip + 9, ip + 10..ip + 12]);
        let header = ip..ip + usize::from(frame[ip] & 0xf) * 4;
        let sums = [frame, bytes].map(|frame| sum(&frame[header.clone()]) % 0xffff);
        expect(sums[0] == sums[1], "checksum of IPv4")?;
    } else {
        free.push(ip + 7..ip + 8);
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
                let is_unfinished = || {
                    let length = ((packet.end - last.at) as u16).to_be_bytes();
                    let protocol = if last.kind == Kind::Tcp { 6 } else { 17 };
                    let pseudo = [&frame[addresses.clone()], &length, &[0, protocol]].concat();
                    // As a sender on the same machine leaves it to its NIC:
                    // then it is filled in.
                    sum(&pseudo).to_be_bytes() == frame[at..at + 2]
                };
                let is_fine = has_none || is_unfinished() || same(true);
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
        Kind::Ipv4 => word(own.at + 2),
        _ => 40 + word(own.at + 4),
    };
    let end = own.at + length;
    (end <= frame.len()).then_some(own.at..end)
}

/// An answer to an echo request: addresses exchanged, and what was sent sent
/// back.
///
/// # Errors
/// What is wrong.
pub fn echoed(frame: &[u8], bytes: &[u8]) -> Result<(), String> {
    let found = headers(frame);
    // What follows may look like a packet that is quoted.
    let [ip, icmp, ..] = found[..] else {
        return Err("a reply to what is no plain ping".to_owned());
    };
    let packet = ip_packet(frame).ok_or("answered, but cut short")?;
    expect(headers(bytes).starts_with(&[ip, icmp]), "other headers")?;
    expect(bytes[..6] == frame[6..12], "the answer goes elsewhere")?;
    let both = addresses(&ip);
    let middle = (both.start + both.end) / 2;
    let turned = [&frame[middle..both.end], &frame[both.start..middle]].concat();
    expect(bytes[both.clone()] == turned, "addresses not exchanged")?;
    let (request, reply) = match ip.kind {
        Kind::Ipv4 => (8, 0),
        _ => (128, 129),
    };
    let kinds = [frame[icmp.at], bytes[icmp.at]];
    expect(kinds == [request, reply], "no reply to an echo request")?;
    let rest = icmp.at + 4..packet.end;
    expect(bytes[rest.clone()] == frame[rest], "another message")?;
    let covered = |frame: &[u8]| {
        let pseudo = if ip.kind == Kind::Ipv4 {
            0..0
        } else {
            both.clone()
        };
        let bytes = [&frame[pseudo], &frame[icmp.at..packet.end]].concat();
        sum(&bytes) % 0xffff
    };
    expect(covered(frame) == covered(bytes), "checksum of ICMP")
}

/// The frame without its VLAN tags.
pub fn untagged(frame: &[u8]) -> Vec<u8> {
    let is_tag = |at: usize| matches!(frame.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8]));
    let mut end = 12.min(frame.len());
    while is_tag(end) && end + 4 <= frame.len() {
        end += 4;
    }
    [&frame[..12.min(frame.len())], &frame[end..]].concat()
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

/// Where the addresses are.
fn addresses(ip: &Header) -> Range<usize> {
    match ip.kind {
        Kind::Ipv4 => ip.at + 12..ip.at + 20,
        _ => ip.at + 8..ip.at + 40,
    }
}

/// The ones' complement sum of RFC 1071, folded.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let words = words.map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
