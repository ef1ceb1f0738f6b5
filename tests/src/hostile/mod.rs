//! Frames that nobody sends by mistake: cut short, with every value in every
//! length field, or random. The suites of both packet paths take them from here.

mod field;
mod layout;
mod random;
pub mod whole;

use std::fmt;

pub use field::{Field, fields};
pub use layout::{Header, Kind, Place, headers};
pub use random::Random;

/// Bytes of an Ethernet header, the least that BPF_PROG_TEST_RUN takes.
pub const ETHERNET: usize = 14;

/// Bytes in front of a frame that matter more than the rest.
const HEADERS: usize = 120;

/// A frame that has been changed.
pub struct Variant<'a> {
    /// How.
    pub change: Change<'a>,
    /// What came of it.
    pub frame: Vec<u8>,
}

/// What was changed of a frame.
#[derive(Clone, Copy)]
pub enum Change<'a> {
    /// It was cut to so many bytes.
    Cut(usize),
    /// The same, and its IP header says so.
    Shortened(usize),
    /// A field was set to a value.
    Field(&'a Field, u16),
    /// All from this byte on is random.
    Random(usize),
    /// A few bytes are others.
    Few,
}

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(length) => write!(f, "cut to {length} bytes"),
            Self::Shortened(length) => write!(f, "shortened to {length} bytes"),
            Self::Field(field, value) => write!(f, "{field} = {value:#x}"),
            Self::Random(from) => write!(f, "random from byte {from} on"),
            Self::Few => write!(f, "a few random changes"),
        }
    }
}

/// The frame at every length, from nothing to all of it.
pub fn cuts(frame: &[u8]) -> impl Iterator<Item = Variant<'_>> {
    (0..=frame.len()).map(|length| Variant {
        change: Change::Cut(length),
        frame: frame[..length].to_vec(),
    })
}

/// The frame at every length at which its IP header can say so, and does.
pub fn shortened(frame: &[u8]) -> impl Iterator<Item = Variant<'_>> {
    let (at, not_counted) = match headers(frame).first() {
        Some(ip) if ip.kind == Kind::Ipv4 => (ip.at + 2, ip.at),
        Some(ip) => (ip.at + 4, ip.at + 40),
        // What is no IP cannot.
        None => (frame.len(), frame.len()),
    };
    let least = not_counted.max(at + 2);
    (least..=frame.len()).map(move |length| {
        let mut frame = frame[..length].to_vec();
        frame[at..at + 2].copy_from_slice(&((length - not_counted) as u16).to_be_bytes());
        Variant {
            change: Change::Shortened(length),
            frame,
        }
    })
}

/// The frame with each of these values in a field of it.
pub fn with_values<'a>(
    frame: &'a [u8],
    field: &'a Field,
    values: Vec<u16>,
) -> impl Iterator<Item = Variant<'a>> {
    values.into_iter().map(move |value| Variant {
        change: Change::Field(field, value),
        frame: field.set(frame, value),
    })
}

/// The frame with a few of its bytes changed; now and then cut as well.
pub fn with_few_changes<'a>(frame: &[u8], random: &mut Random) -> Variant<'a> {
    /// Numbers that mean something in headers.
    const LIKELY: [u8; 12] = [0, 1, 2, 4, 5, 6, 17, 41, 44, 58, 60, 0xff];
    let mut changed = frame.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(frame.len().min(HEADERS));
        changed[at] = match random.below(3) {
            0 => changed[at] ^ (1 << random.below(8)),
            1 => LIKELY[random.below(LIKELY.len())],
            _ => random.byte(),
        };
    }
    if random.below(8) == 0 {
        changed.truncate(ETHERNET + random.below(frame.len() - ETHERNET + 1));
    }
    Variant {
        change: Change::Few,
        frame: changed,
    }
}

/// The frame with random bytes, another number of them, in place of all that
/// comes after a random byte of its headers.
pub fn with_random_end<'a>(frame: &[u8], random: &mut Random) -> Variant<'a> {
    let from = random.below(frame.len().min(HEADERS) + 1);
    let mut changed = frame[..from].to_vec();
    let length = random.below(2 * HEADERS);
    changed.extend((0..length).map(|_| random.byte()));
    Variant {
        change: Change::Random(from),
        frame: changed,
    }
}
