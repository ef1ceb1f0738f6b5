use crate::abi;

/// A MAC address in the lower 48 bits of a word, as a little-endian machine
/// loads it from a frame.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub u64);
abi!(Mac, size = 8, align = 8);

impl Mac {
    /// Puts together the first four and the last two bytes.
    #[inline(always)]
    pub const fn from_parts(first: u32, last: u16) -> Self {
        Self(first as u64 | (last as u64) << 32)
    }
}

impl From<[u8; 6]> for Mac {
    fn from([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }
}

impl From<Mac> for [u8; 6] {
    fn from(mac: Mac) -> Self {
        let [a, b, c, d, e, f, _, _] = mac.0.to_le_bytes();
        [a, b, c, d, e, f]
    }
}
