//! The Internet checksum, RFC 1071.
//!
//! Words are summed as they stand in memory: the sum has the byte order of its
//! words, and is written back as it is.

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

    /// The checksum over what has been added.
    #[inline(always)]
    pub const fn finish(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }
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
    fn carries_of_a_full_sum_are_folded() {
        let mut sum = Sum::new();
        for _ in 0..200 {
            sum = sum.add_u64(u64::MAX);
        }
        assert_eq!(sum.finish(), 0);
    }
}
