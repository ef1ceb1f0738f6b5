//! Slots of a Maglev ring and where they lie in the ring map.
//!
//! All rings are packed into one array map of 64-byte blocks of sixteen
//! slots. A ring of `n` slots takes [`blocks`]`(n)` blocks. If any slot is
//! MOVING, as many blocks more follow, in which the same position names the
//! slot's *old* backend.

use crate::abi;

/// Slots in a block.
pub const SLOTS_PER_BLOCK: u32 = 16;

/// One value of the ring map.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingBlock {
    /// The slots.
    pub slots: [Slot; SLOTS_PER_BLOCK as usize],
}
abi!(RingBlock, size = 64, align = 64);

/// State of a slot in the upper two bits, backend index in the lower thirty.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slot(pub u32);
abi!(Slot, size = 4, align = 4);

impl Slot {
    const STATE: u32 = 3 << 30;
    const MOVING: u32 = 1 << 30;
    const PINNED: u32 = 2 << 30;

    /// To `backend`, whatever the flow table says; nothing is recorded.
    pub const fn settled(backend: u32) -> Self {
        Self(backend & !Self::STATE)
    }

    /// New flows to `backend`, the others where the flow table says or else
    /// to the old backend; all are recorded.
    pub const fn moving(backend: u32) -> Self {
        Self((backend & !Self::STATE) | Self::MOVING)
    }

    /// Where the flow table says, or else to `backend`; nothing is recorded.
    pub const fn pinned(backend: u32) -> Self {
        Self((backend & !Self::STATE) | Self::PINNED)
    }

    /// Index of the backend that gets the slot's new flows; 0 if none.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        self.0 & !Self::STATE
    }

    /// Whether the flow table has no say.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        self.0 & Self::STATE == 0
    }

    /// Whether the slot has an old backend.
    #[inline(always)]
    pub const fn is_moving(self) -> bool {
        self.0 & Self::STATE == Self::MOVING
    }

    /// Whether the flow table has a say but nothing is recorded.
    #[inline(always)]
    pub const fn is_pinned(self) -> bool {
        self.0 & Self::STATE == Self::PINNED
    }
}

/// Blocks that `slots` slots take.
#[inline(always)]
pub const fn blocks(slots: u32) -> u32 {
    slots.div_ceil(SLOTS_PER_BLOCK)
}

/// The slot of a flow with this hash, by multiply-shift: no division.
#[inline(always)]
pub const fn slot_index(hash: u32, slots: u32) -> u32 {
    ((hash as u64 * slots as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_state_and_backend() {
        let b = (1 << 30) - 1;
        assert!(Slot::settled(b).is_settled() && Slot::settled(b).backend() == b);
        assert!(Slot::moving(b).is_moving() && Slot::moving(b).backend() == b);
        assert!(Slot::pinned(b).is_pinned() && Slot::pinned(b).backend() == b);
    }

    #[test]
    fn slot_index_stays_inside() {
        for slots in [1, 2, 131, 65_537] {
            assert_eq!(slot_index(0, slots), 0);
            assert_eq!(slot_index(u32::MAX, slots), slots - 1);
        }
    }
}
