//! The Internet checksum, RFC 1071.
//!
//! Words are summed as they stand in memory: the sum has the byte order of its
//! words, and is written back as it is.

use crate::packet::Packet;

/// A sum that is not folded yet.
#[derive(Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Nothing summed so far.
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds a word of 16 bits.
    #[inline(always)]
    pub const fn add_u16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds two words.
    #[inline(always)]
    pub const fn add_u32(self, words: u32) -> Self {
        Self(self.0 + words as u64)
    }

    /// Adds four words.
    #[inline(always)]
    pub const fn add_u64(self, words: u64) -> Self {
        Self(self.0 + (words as u32) as u64 + (words >> 32))
    }

    /// Adds what has been added to another.
    #[inline(always)]
    pub const fn add(self, other: Self) -> Self {
        Self(self.0 + other.fold() as u64)
    }

    /// The sum in 16 bits.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The checksum over what has been added.
    #[inline(always)]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }
}

/// A checksum after words that it covers have changed, RFC 1624: `change` is
/// the sum of the new words and of the complements of the old ones.
#[inline(always)]
pub const fn update(checksum: u16, change: Sum) -> u16 {
    Sum::new().add_u16(!checksum).add(change).finish()
}

/// The largest number of bytes that [`sum_bytes`] sums.
pub const MAX_SUMMED: usize = 9216;

/// Sums `length` bytes at `offset`; `None` if they do not lie inside the
/// packet, or are more than [`MAX_SUMMED`].
///
/// The places of what is left over follow from `length` alone, not from the
/// steps before: so the verifier has nothing to remember of these, and follows
/// one path in place of hundreds.
#[inline(always)]
pub fn sum_bytes<P: Packet>(packet: &P, offset: usize, length: usize) -> Option<Sum> {
    let sum = sum_or_none(packet, offset, length);
    (sum != NONE).then_some(Sum(sum))
}

/// No sum.
const NONE: u64 = u64::MAX;

/// In one word: a function that returns more by way of the stack may leave a
/// pointer in the register for what it returns, and the verifier minds.
#[inline(never)]
fn sum_or_none<P: Packet>(packet: &P, offset: usize, length: usize) -> u64 {
    match try_sum(packet, offset, length) {
        Some(sum) => u64::from(sum.fold()),
        None => NONE,
    }
}

#[inline(always)]
fn try_sum<P: Packet>(packet: &P, offset: usize, length: usize) -> Option<Sum> {
    const CHUNK: usize = 512;
    if length > MAX_SUMMED {
        return None;
    }
    // In whole chunks and what is left over, of which the sizes are halves.
    let rest = |size: usize| offset + (length & !(2 * size - 1));
    let mut sum = Sum::new();
    macro_rules! left_over {
        ($($size:literal)*) => {$(
            if length & $size != 0 {
                sum = sum.add(packet.sum::<$size>(rest($size))?);
            }
        )*};
    }
    left_over!(256 128 64 32 16 8);
    if length & 4 != 0 {
        sum = sum.add_u32(packet.read::<u32>(rest(4))?);
    }
    if length & 2 != 0 {
        sum = sum.add_u16(packet.read::<u16>(rest(2))?);
    }
    if length & 1 != 0 {
        sum = sum.add_u16(u16::from_ne_bytes([packet.read::<u8>(rest(1))?, 0]));
    }
    let mut at = offset;
    for _ in 0..length / CHUNK {
        sum = sum.add(packet.sum::<CHUNK>(at)?);
        at += CHUNK;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071, section 3.
    #[test]
    fn the_example_of_the_rfc() {
        let word = |a: u8, b: u8| u16::from_ne_bytes([a, b]);
        let sum = Sum::new()
            .add_u16(word(0x00, 0x01))
            .add_u16(word(0xf2, 0x03))
            .add_u16(word(0xf4, 0xf5))
            .add_u16(word(0xf6, 0xf7));
        assert_eq!(sum.finish().to_ne_bytes(), [!0xdd, !0xf2]);
        let wide = u64::from_ne_bytes([0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(Sum::new().add_u64(wide).finish(), sum.finish());
    }

    #[test]
    fn bytes_are_summed_whatever_their_number() {
        let bytes: Vec<u8> = (0..1200).map(|i| (i * 37 + 11) as u8).collect();
        let packet = crate::host::HostPacket::new(&bytes, 1);
        for offset in [0, 8, 54] {
            for length in 0..=bytes.len() - offset {
                let summed = sum_bytes(&packet, offset, length).unwrap();
                let mut padded = bytes[offset..offset + length].to_vec();
                padded.resize(length.next_multiple_of(2), 0);
                let words = padded.chunks_exact(2);
                let expected = words.fold(Sum::new(), |sum, word| {
                    sum.add_u16(u16::from_ne_bytes([word[0], word[1]]))
                });
                assert_eq!(summed.fold() % 0xffff, expected.fold() % 0xffff);
            }
        }
        assert!(sum_bytes(&packet, 100, bytes.len() - 99).is_none());
        assert!(sum_bytes(&packet, 0, MAX_SUMMED + 1).is_none());
    }

    /// The example of RFC 1624, section 4: equation 3.
    #[test]
    fn an_update_does_not_yield_negative_zero() {
        let change = Sum::new().add_u16(!0x5555).add_u16(0x3285);
        assert_eq!(update(0xdd2f, change), 0x0000);
    }

    #[test]
    fn carries_of_a_full_sum_are_folded() {
        let mut sum = Sum::new();
        for _ in 0..200 {
            sum = sum.add_u64(u64::MAX);
        }
        assert_eq!(sum.finish(), 0);
    }
}
