//! The slots of one ring and how they change.

use lb_common::ring::{RingBlock, SLOTS_PER_BLOCK, Slot, blocks};

use super::scan::BusySlots;

/// A ring with what it remembers of the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    slots: Vec<Slot>,
    /// One for each slot if any is moving, otherwise empty.
    moving: Vec<Moving>,
}

/// What a moving slot remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moving {
    /// Index of the old backend entry.
    old: u32,
    /// When the slot is pinned.
    until: u32,
}

impl Ring {
    /// A ring as the map holds it; moving slots move until `until`.
    pub fn from_slots(slots: Vec<Slot>, old: &[Slot], until: u32) -> Self {
        let moving = old
            .iter()
            .map(|slot| Moving {
                old: slot.backend(),
                until,
            })
            .collect();
        Self { slots, moving }
    }

    /// The slots.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The entry that gets the new flows of each slot of a ring of this size,
    /// which is at most the present one.
    pub fn owners(&self, slots: u32) -> Vec<u32> {
        let step = (self.slots.len() / (slots as usize).max(1)).max(1);
        self.slots
            .iter()
            .step_by(step)
            .map(|slot| slot.backend())
            .collect()
    }

    /// Blocks that it takes in the ring map.
    pub fn blocks(&self) -> u32 {
        let part = blocks(self.slots.len() as u32);
        if self.moving.is_empty() {
            part
        } else {
            2 * part
        }
    }

    /// Whether no slot remembers anything.
    pub fn is_settled(&self) -> bool {
        self.slots.iter().all(|slot| slot.is_settled())
    }

    /// Whether any slot waits for its last flow elsewhere.
    pub fn has_pinned(&self) -> bool {
        self.slots.iter().any(|slot| slot.is_pinned())
    }

    /// Whether any slot sends packets to this entry without being told to by
    /// the flow table.
    pub fn refers_to(&self, id: u32) -> bool {
        self.slots.iter().any(|slot| slot.backend() == id)
            || self
                .slots
                .iter()
                .zip(&self.moving)
                .any(|(slot, moving)| slot.is_moving() && moving.old == id)
    }

    /// Whether the maps need not be written to go from `other` to this one.
    pub fn is_published_like(&self, other: &Self) -> bool {
        self.slots == other.slots
            && self
                .slots
                .iter()
                .enumerate()
                .filter(|(_, slot)| slot.is_moving())
                .all(|(i, _)| self.moving[i].old == other.moving[i].old)
    }

    /// The ring's blocks, followed by the old backends' if any slot is moving.
    pub fn to_blocks(&self) -> Vec<RingBlock> {
        let old: Vec<Slot> = self.moving.iter().map(|m| Slot::settled(m.old)).collect();
        let mut blocks = in_blocks(&self.slots);
        blocks.extend(in_blocks(&old));
        blocks
    }

    /// The ring one step further towards `target`, the entry that should own
    /// each slot.
    ///
    /// - `alive`: whether an entry may be forwarded to.
    /// - `busy`: which pinned slots have flows elsewhere, if that is known.
    /// - `now`, and `until` for slots that begin to move.
    ///
    /// While anything moves or is pinned, the ring has the size of the larger
    /// of the two: sizes are powers of two, so slots split exactly.
    pub fn step(
        &self,
        target: &[u32],
        alive: &dyn Fn(u32) -> bool,
        busy: Option<&BusySlots>,
        now: u32,
        until: u32,
    ) -> Self {
        let size = self.slots.len().max(target.len());
        if target.is_empty() {
            return Self::default();
        }
        if self.slots.is_empty() {
            return Self::settled(target);
        }
        let mut next = Self {
            slots: Vec::with_capacity(size),
            moving: Vec::new(),
        };
        for i in 0..size {
            let at = i * self.slots.len() / size;
            let state = self.state(at);
            let is_busy = busy.is_none_or(|busy| busy.contains(at as u32));
            let wanted = target[i * target.len() / size];
            next.push(size, state.step(wanted, alive, is_busy, now, until));
        }
        if next.is_settled() {
            return Self::settled(target);
        }
        next
    }

    fn settled(target: &[u32]) -> Self {
        Self {
            slots: target.iter().map(|&id| Slot::settled(id)).collect(),
            moving: Vec::new(),
        }
    }

    fn state(&self, at: usize) -> SlotState {
        let slot = self.slots[at];
        let backend = slot.backend();
        if slot.is_moving() {
            let Moving { old, until } = self.moving[at];
            SlotState::Moving {
                new: backend,
                old,
                until,
            }
        } else if slot.is_pinned() {
            SlotState::Pinned(backend)
        } else {
            SlotState::Settled(backend)
        }
    }

    fn push(&mut self, size: usize, state: SlotState) {
        let slot = match state {
            SlotState::Settled(b) => Slot::settled(b),
            SlotState::Pinned(b) => Slot::pinned(b),
            SlotState::Moving { new, old, until } => {
                self.moving.resize(size, Moving::default());
                self.moving[self.slots.len()] = Moving { old, until };
                Slot::moving(new)
            }
        };
        self.slots.push(slot);
    }
}

fn in_blocks(slots: &[Slot]) -> Vec<RingBlock> {
    slots
        .chunks(SLOTS_PER_BLOCK as usize)
        .map(|chunk| {
            let mut block = RingBlock::default();
            block.slots[..chunk.len()].copy_from_slice(chunk);
            block
        })
        .collect()
}

/// A slot's state; backends are indices of entries, 0 for nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    /// To the backend. Every recorded flow of the slot that is not idle is on
    /// it too.
    Settled(u32),
    /// New flows to `new`, unrecorded ones to `old`.
    Moving { new: u32, old: u32, until: u32 },
    /// Unrecorded flows to the backend.
    Pinned(u32),
}

impl SlotState {
    /// The next state on the way to `target`.
    ///
    /// `old` stays the backend of the last state that was not moving, however
    /// often the target changes meanwhile: flows that began in between are
    /// recorded, those from before are not.
    fn step(
        self,
        target: u32,
        alive: &dyn Fn(u32) -> bool,
        is_busy: bool,
        now: u32,
        until: u32,
    ) -> Self {
        let move_from = |old: u32| Self::Moving {
            new: target,
            old,
            until,
        };
        match self {
            Self::Settled(b) if b == target => self,
            // The records of a dead backend's flows died with it, and all of
            // the slot's flows were on it.
            Self::Settled(b) if !alive(b) => Self::Settled(target),
            Self::Settled(b) => move_from(b),
            Self::Pinned(b) if b == target && is_busy => self,
            Self::Pinned(b) if b == target => Self::Settled(b),
            Self::Pinned(b) if !alive(b) => Self::Pinned(target),
            Self::Pinned(b) => move_from(b),
            // With nobody left from before, only recorded flows matter.
            Self::Moving { old, .. } if old == target || !alive(old) => Self::Pinned(target),
            Self::Moving { new, old, .. } if new != target => move_from(old),
            // Signed difference: the clock may wrap.
            Self::Moving { new, until, .. } if now.wrapping_sub(until) as i32 >= 0 => {
                Self::Pinned(new)
            }
            Self::Moving { .. } => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u32 = 1;
    const B: u32 = 2;
    const C: u32 = 3;
    const NOW: u32 = 100;
    const UNTIL: u32 = 400;

    fn moving(new: u32, old: u32) -> SlotState {
        SlotState::Moving {
            new,
            old,
            until: UNTIL,
        }
    }

    fn step(from: SlotState, target: u32, dead: &[u32], is_busy: bool) -> SlotState {
        from.step(target, &|id| !dead.contains(&id), is_busy, NOW, UNTIL)
    }

    #[test]
    fn every_transition() {
        use SlotState::{Pinned, Settled};
        for (from, target, dead, is_busy, to) in [
            (Settled(A), A, &[][..], true, Settled(A)),
            (Settled(A), B, &[], true, moving(B, A)),
            (Settled(A), B, &[A], true, Settled(B)),
            (Pinned(A), A, &[], true, Pinned(A)),
            (Pinned(A), A, &[], false, Settled(A)),
            (Pinned(A), B, &[], false, moving(B, A)),
            (Pinned(A), B, &[A], false, Pinned(B)),
            (moving(B, A), B, &[], false, moving(B, A)),
            (moving(B, A), C, &[], false, moving(C, A)),
            (moving(B, A), C, &[B], false, moving(C, A)),
            (moving(B, A), A, &[], false, Pinned(A)),
            (moving(B, A), B, &[A], false, Pinned(B)),
            (moving(B, A), C, &[A], false, Pinned(C)),
        ] {
            assert_eq!(
                step(from, target, dead, is_busy),
                to,
                "{from:?} to {target}, dead {dead:?}, busy {is_busy}"
            );
        }
    }

    #[test]
    fn a_slot_moves_for_its_window_and_no_longer() {
        let at = |now| moving(B, A).step(B, &|_| true, true, now, now + 300);
        assert_eq!(at(UNTIL - 1), moving(B, A));
        assert_eq!(at(UNTIL), SlotState::Pinned(B));
    }

    #[test]
    fn a_ring_that_grows_remembers_every_flow() {
        let small = Ring::settled(&[A, B]);
        let large = small.step(&[B, A, B, A], &|_| true, None, NOW, UNTIL);
        let expected: Vec<_> = (0..4).map(|i| large.state(i)).collect();
        assert_eq!(
            expected,
            [
                moving(B, A),
                SlotState::Settled(A),
                SlotState::Settled(B),
                moving(A, B)
            ]
        );
    }

    #[test]
    fn a_ring_shrinks_when_it_has_settled() {
        let large = Ring::settled(&[A, A, B, A]);
        let moving = large.step(&[A, B], &|_| true, None, NOW, UNTIL);
        assert_eq!(moving.slots().len(), 4);
        let pinned = moving.step(&[A, B], &|_| true, None, UNTIL, UNTIL + 300);
        assert_eq!(pinned.slots().len(), 4);
        let idle = BusySlots::default();
        let settled = pinned.step(&[A, B], &|_| true, Some(&idle), UNTIL, UNTIL + 300);
        assert_eq!(settled, Ring::settled(&[A, B]));
    }
}
