//! What the flow table has just said of a flow, in front of that table.
//!
//! Asking the table is several functions of the kernel. So its answer is noted in
//! an array, at a place that the flow's key decides, and holds for a moment: a
//! flow of many packets asks once in each, which is often enough for the table
//! to know that it lives. Other flows of the same place overwrite it.
//!
//! CPUs read and write a note at the same time, without a lock: each word of the
//! key is noted xored with the value. A note of which part is another's matches
//! neither key, or it has the same value.

use lb_common::flow::MULTIPLIERS;

/// Bits of a place's number.
const PLACE_BITS: u32 = 12;

/// Notes that there is room for.
pub const PLACES: u32 = 1 << PLACE_BITS;

/// A note of a flow whose key has `WORDS` words.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note<const WORDS: usize> {
    /// Backend entry and its generation.
    pub value: u64,
    /// The key's words, mixed with the value, the first with the moment too.
    pub mixed: [u64; WORDS],
}

/// What is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Index of the backend entry.
    pub backend: u32,
    /// Generation of that entry when the flow was recorded.
    pub generation: u32,
}

impl Noted {
    /// Nothing is.
    pub const NOTHING: Self = Self {
        backend: 0,
        generation: 0,
    };
}

impl<const WORDS: usize> Note<WORDS> {
    /// A note for this moment.
    #[inline(always)]
    pub fn new(key: &[u64; WORDS], moment: u64, noted: Noted) -> Self {
        let value = u64::from(noted.backend) | u64::from(noted.generation) << 32;
        let mut mixed = key.map(|word| word ^ value);
        mixed[0] ^= moment;
        Self { value, mixed }
    }

    /// What is noted of this flow for this moment.
    #[inline(always)]
    pub fn look(&self, key: &[u64; WORDS], moment: u64) -> Noted {
        let mut words = self.mixed;
        words[0] ^= moment;
        let words = words.iter().zip(key);
        let difference = words.fold(0, |all, (mixed, word)| all | mixed ^ word ^ self.value);
        let value = if difference == 0 { self.value } else { 0 };
        Noted {
            backend: value as u32,
            generation: (value >> 32) as u32,
        }
    }
}

/// The moment of a tick: 16 ticks, 16 to 160 milliseconds. Multiplied, so that
/// another moment does not make up for another value; and never 0, as the notes of
/// a new array have it.
#[inline(always)]
pub const fn moment(tick: u64) -> u64 {
    (tick >> 4 | 1 << 63).wrapping_mul(MULTIPLIERS[2])
}

/// The place of a key. The VIP, of which few differ, need not decide.
#[inline(always)]
pub const fn place<const WORDS: usize>(key: &[u64; WORDS]) -> u32 {
    let mut hash = key[0]
        .wrapping_mul(MULTIPLIERS[0])
        .wrapping_add(key[WORDS - 1].wrapping_mul(MULTIPLIERS[1]));
    if WORDS > 2 {
        hash = hash.wrapping_add(key[1].wrapping_mul(MULTIPLIERS[2]));
    }
    (hash >> (u64::BITS - PLACE_BITS)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTED: Noted = Noted {
        backend: 7,
        generation: 3,
    };

    #[test]
    fn only_the_same_flow_at_the_same_moment_is_found() {
        let key = [1, 2, 3, 4, 5];
        let note = Note::new(&key, moment(16), NOTED);
        assert_eq!(note.look(&key, moment(31)), NOTED);
        assert_eq!(note.look(&key, moment(32)), Noted::NOTHING);
        for i in 0..key.len() {
            let mut other = key;
            other[i] ^= 1 << i;
            assert_eq!(note.look(&other, moment(16)), Noted::NOTHING);
        }
        let zeros = [0; 2];
        let new = Note {
            value: 0,
            mixed: zeros,
        };
        assert_eq!(new.look(&zeros, moment(0)), Noted::NOTHING);
    }

    /// Whatever words of two notes a reader meets, it finds nothing or what is
    /// true of its own flow.
    #[test]
    fn a_note_half_overwritten_is_not_believed() {
        let keys = [[10, 20], [10, 21], [11, 20], [11, 21], [10, 20 ^ 7]];
        let key = keys[0];
        let now = moment(99 << 4);
        for before in (90..110).map(|n| moment(n << 4)) {
            let ours = Note::new(&key, before, NOTED);
            for other_key in keys {
                for backend in 0..16 {
                    let noted = Noted { backend, ..NOTED };
                    let other = Note::new(&other_key, now, noted);
                    for words in 0..8 {
                        let found = torn(&ours, &other, words).look(&key, now);
                        let is_true = found == NOTED || (other_key == key && found == noted);
                        assert!(is_true || found == Noted::NOTHING, "{found:?}");
                    }
                }
            }
        }
    }

    /// One note with some of the words of another.
    fn torn(ours: &Note<2>, other: &Note<2>, words: u32) -> Note<2> {
        let pick = |bit: u32, [ours, other]: [u64; 2]| if words & bit == 0 { ours } else { other };
        Note {
            value: pick(1, [ours.value, other.value]),
            mixed: [0, 1].map(|i| pick(2 << i, [ours.mixed[i], other.mixed[i]])),
        }
    }

    #[test]
    fn flows_in_a_row_have_places_of_their_own() {
        let mut taken = std::collections::HashSet::new();
        for port in 0..1024_u64 {
            let ports = u64::from((1024 + port as u16).to_be()) | 0x5000_0000 | 6 << 32;
            taken.insert(place(&[0x0a71_00cb_0100_000a, ports]));
        }
        assert!(taken.len() > 512, "{}", taken.len());
    }
}
