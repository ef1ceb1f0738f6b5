use std::collections::BTreeSet;
use std::fmt;

use super::{Header, Kind, Place, headers};

/// A field of a header: some bits of one or two bytes.
pub struct Field {
    header: Header,
    name: &'static str,
    at: usize,
    width: usize,
    mask: u16,
    values: Values,
}

/// The values that a field is set to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    /// Each that it can have.
    All,
    /// Of a length: see [`lengths`].
    Lengths,
    /// Of flags and the offset of a fragment: see [`fragments`].
    Fragments,
}

/// The fields of a frame's headers that say how long something is, where it
/// begins, or what follows.
pub fn fields(frame: &[u8]) -> Vec<Field> {
    let mut found = Vec::new();
    for header in headers(frame) {
        for &(name, offset, width, mask, values) in of(header.kind) {
            let field = Field {
                header,
                name,
                at: header.at + offset,
                width,
                mask,
                values,
            };
            if field.at + width <= frame.len() {
                found.push(field);
            }
        }
    }
    found
}

impl Field {
    /// Values that are enough: all of a byte; of two bytes those near which
    /// something can change.
    pub fn values(&self, frame: &[u8]) -> Vec<u16> {
        match self.values {
            Values::All => self.every_value(),
            Values::Lengths => lengths(frame.len()).into_iter().collect(),
            Values::Fragments => fragments(frame.len()),
        }
    }

    /// Every value.
    pub fn every_value(&self) -> Vec<u16> {
        (0..=self.mask >> self.mask.trailing_zeros()).collect()
    }

    /// Whether [`Self::values`] leaves something out.
    pub fn is_wide(&self) -> bool {
        self.values != Values::All
    }

    /// The frame with this value.
    pub fn set(&self, frame: &[u8], value: u16) -> Vec<u8> {
        let mut changed = frame.to_vec();
        let value = value << self.mask.trailing_zeros();
        for i in 0..self.width {
            let shift = 8 * (self.width - 1 - i);
            let mask = (self.mask >> shift) as u8;
            let byte = &mut changed[self.at + i];
            *byte = *byte & !mask | (value >> shift) as u8 & mask;
        }
        changed
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.header.place {
            Place::Own => "",
            Place::Quoted => "quoted ",
            Place::Inner => "inner ",
        };
        write!(f, "{place}{:?} {}", self.header.kind, self.name)
    }
}

/// Name, offset, bytes, mask, values.
type Row = (&'static str, usize, usize, u16, Values);

fn of(kind: Kind) -> &'static [Row] {
    use Values::{All, Fragments, Lengths};
    match kind {
        Kind::Ipv4 => &[
            ("version", 0, 1, 0xf0, All),
            ("header length", 0, 1, 0x0f, All),
            ("total length", 2, 2, 0xffff, Lengths),
            ("flags and fragment offset", 6, 2, 0xffff, Fragments),
            ("protocol", 9, 1, 0xff, All),
        ],
        Kind::Ipv6 => &[
            ("version", 0, 1, 0xf0, All),
            ("payload length", 4, 2, 0xffff, Lengths),
            ("next header", 6, 1, 0xff, All),
        ],
        Kind::Extension(_) => &[
            ("next header", 0, 1, 0xff, All),
            ("length", 1, 1, 0xff, All),
            // Of a routing header: type and segments left.
            ("fragment offset and flags", 2, 2, 0xffff, Fragments),
        ],
        Kind::Tcp => &[
            ("data offset", 12, 1, 0xf0, All),
            // If there is one.
            ("length of the first option", 21, 1, 0xff, All),
        ],
        Kind::Udp => &[("length", 4, 2, 0xffff, Lengths)],
        Kind::Sctp => &[
            ("chunk type", 12, 1, 0xff, All),
            ("chunk length", 14, 2, 0xffff, Lengths),
        ],
        // RFC 4884: where the quoted packet ends.
        Kind::Icmp => &[("type", 0, 1, 0xff, All), ("length", 5, 1, 0xff, All)],
        Kind::Icmpv6 => &[("type", 0, 1, 0xff, All), ("length", 4, 1, 0xff, All)],
    }
}

/// Lengths that matter to a frame of so many bytes. A length is compared with
/// what is there and added to offsets: so all up to well beyond the frame, and
/// where sums get another bit or too large for 16.
fn lengths(frame: usize) -> BTreeSet<u16> {
    const BEYOND: usize = 64;
    let mut values: BTreeSet<_> = (0..=frame + BEYOND).map(|n| n as u16).collect();
    for bit in 0..16 {
        let power = 1_u16 << bit;
        values.extend([power - 1, power, power + 1]);
    }
    values.extend(u16::MAX - BEYOND as u16..=u16::MAX);
    values
}

/// The same for the word of flags (3 bits in front in IPv4, behind in IPv6) and
/// offset of a fragment: all flags with offsets within the frame and with those
/// of [`lengths`] that have the fewest bits.
fn fragments(frame: usize) -> Vec<u16> {
    let mut values = BTreeSet::new();
    for flags in 0..8_u16 {
        for offset in 0..=frame as u16 / 8 + 8 {
            values.extend([flags << 13 | offset, offset << 3 | flags]);
        }
        for bit in 0..13 {
            let power = 1_u16 << bit;
            for offset in [power - 1, power, power + 1] {
                values.extend([flags << 13 | offset, offset << 3 | flags]);
            }
        }
    }
    values.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IPv4 and UDP, all zero but for what tells the headers apart.
    fn frame() -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 8];
        frame[12] = 0x08;
        frame[14] = 0x45;
        frame[23] = 17;
        frame
    }

    #[test]
    fn each_field_is_found_and_set_alone() {
        let frame = frame();
        let fields = fields(&frame);
        let names: Vec<_> = fields.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "Ipv4 version",
                "Ipv4 header length",
                "Ipv4 total length",
                "Ipv4 flags and fragment offset",
                "Ipv4 protocol",
                "Udp length"
            ]
        );
        assert_eq!(fields[0].set(&frame, 6)[14], 0x65);
        assert_eq!(fields[1].set(&frame, 15)[14], 0x4f);
        assert_eq!(fields[2].set(&frame, 0x1234)[16..18], [0x12, 0x34]);
        assert_eq!(fields[0].every_value().len(), 16);
        assert_eq!(fields[3].every_value().len(), 65_536);
    }

    #[test]
    fn also_behind_vlan_tags() {
        let plain = frame();
        let tag = [0x81, 0x00, 0, 100];
        let tagged = [&plain[..12], &tag, &tag, &plain[12..]].concat();
        let (plain, tagged) = (fields(&plain), fields(&tagged));
        assert_eq!(plain.len(), tagged.len());
        assert!(plain.iter().zip(&tagged).all(|(p, t)| t.at == p.at + 8));
    }

    #[test]
    fn lengths_are_all_around_the_frames_and_where_numbers_grow() {
        let values = lengths(60);
        assert!((0..=124).all(|n| values.contains(&n)));
        for n in [0x7fff, 0x8000, 0x8001, 0xffff] {
            assert!(values.contains(&n));
        }
    }
}
