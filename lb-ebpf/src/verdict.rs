//! Stage 7: what becomes of a packet.

pub use lb_common::counters::DropReason;

/// The end of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Untouched, to the host's own network stack.
    Pass,
    /// Out of the interface that it came in by.
    Transmit,
    /// Out of the interface with this index.
    Redirect(u32),
    /// Rewritten, to the host's own network stack, which is to send it on:
    /// it resolves neighbours, fragments, and knows interfaces that packets
    /// cannot be redirected to.
    Host,
    /// Not forwarded.
    Drop(DropReason),
}

/// `Err(Verdict::Drop(reason))`, for the early end of a stage.
#[inline(always)]
pub const fn drop<T>(reason: DropReason) -> Result<T, Verdict> {
    Err(Verdict::Drop(reason))
}

/// The end of a stage in one word, for functions that are not inlined: a
/// larger value would be returned by way of the stack, which compilers write
/// in steps that the verifier refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Packed(u64);

impl Packed {
    const EARLY: u64 = 1 << 63;
    const PASS: u64 = 0;
    const TRANSMIT: u64 = 1;
    const HOST: u64 = 2;
    const REDIRECT: u64 = 3;
    const DROP: u64 = 4;

    /// `Ok(Verdict::Transmit)`.
    pub const SENT_BACK: Self = Self::new(Ok(Verdict::Transmit));

    /// Packs.
    #[inline(always)]
    pub const fn new(end: Result<Verdict, Verdict>) -> Self {
        let (verdict, early) = match end {
            Ok(verdict) => (verdict, 0),
            Err(verdict) => (verdict, Self::EARLY),
        };
        let word = match verdict {
            Verdict::Pass => Self::PASS,
            Verdict::Transmit => Self::TRANSMIT,
            Verdict::Host => Self::HOST,
            Verdict::Redirect(interface) => Self::REDIRECT | (interface as u64) << 8,
            Verdict::Drop(reason) => Self::DROP | (reason as u64) << 8,
        };
        Self(word | early)
    }

    /// The word.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// The reverse of [`Self::to_word`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Whether it was an early end.
    #[inline(always)]
    pub const fn is_early(self) -> bool {
        self.0 & Self::EARLY != 0
    }

    /// Unpacks.
    ///
    /// # Errors
    /// The verdict, if it was an early end.
    #[inline(always)]
    pub const fn unpack(self) -> Result<Verdict, Verdict> {
        let value = (self.0 >> 8) as u32;
        let verdict = match self.0 & 0xff {
            Self::TRANSMIT => Verdict::Transmit,
            Self::HOST => Verdict::Host,
            Self::REDIRECT => Verdict::Redirect(value),
            Self::DROP => Verdict::Drop(DropReason::from_number(value)),
            _ => Verdict::Pass,
        };
        if self.is_early() {
            Err(verdict)
        } else {
            Ok(verdict)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        let mut verdicts = vec![
            Verdict::Pass,
            Verdict::Transmit,
            Verdict::Host,
            Verdict::Redirect(0),
            Verdict::Redirect(u32::MAX),
        ];
        verdicts.extend(DropReason::ALL.iter().map(|&reason| Verdict::Drop(reason)));
        for verdict in verdicts {
            for end in [Ok(verdict), Err(verdict)] {
                assert_eq!(Packed::new(end).unpack(), end);
            }
        }
    }
}
