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
    /// Not forwarded.
    Drop(DropReason),
}

/// `Err(Verdict::Drop(reason))`, for the early end of a stage.
#[inline(always)]
pub const fn drop<T>(reason: DropReason) -> Result<T, Verdict> {
    Err(Verdict::Drop(reason))
}
