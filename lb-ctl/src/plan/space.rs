//! Which blocks of the ring map are free.

use std::collections::{BTreeMap, VecDeque};

/// First-fit allocator of runs of blocks.
///
/// Released blocks rest before they are used again, because a packet on
/// another CPU may still be reading them. If there is no other room, those
/// that an earlier plan released are used before their time: their service
/// has been referred to other blocks, and a packet takes microseconds.
#[derive(Clone, Debug)]
pub struct Space {
    /// Length of each free run by its first block; no two touch.
    free: BTreeMap<u32, u32>,
    /// Oldest first.
    resting: VecDeque<Resting>,
    /// Counts plans.
    plan: u64,
}

#[derive(Clone, Debug)]
struct Resting {
    until: u32,
    plan: u64,
    first: u32,
    length: u32,
}

impl Space {
    /// Two ticks of a clock of about a second: more than one whole second.
    const REST: u32 = 2;

    /// All of `blocks` blocks free.
    pub fn new(blocks: u32) -> Self {
        Self {
            free: BTreeMap::from([(0, blocks)]),
            resting: VecDeque::new(),
            plan: 0,
        }
    }

    /// Marks a run as used.
    pub fn take(&mut self, first: u32, length: u32) {
        if length == 0 {
            return;
        }
        let Some((&start, &run)) = self.free.range(..=first).next_back() else {
            return;
        };
        let end = start + run;
        if first + length > end {
            return;
        }
        self.free.remove(&start);
        self.insert(start, first - start);
        self.insert(first + length, end - first - length);
    }

    /// A run of `length` blocks, or `None` if there is none.
    pub fn allocate(&mut self, length: u32) -> Option<u32> {
        loop {
            if let Some((&first, _)) = self.free.iter().find(|&(_, &run)| run >= length) {
                self.take(first, length);
                return Some(first);
            }
            let Resting { first, length, .. } = self
                .resting
                .pop_front_if(|oldest| oldest.plan < self.plan)?;
            self.free(first, length);
        }
    }

    /// Gives a run back.
    pub fn release(&mut self, first: u32, length: u32, now: u32) {
        if length > 0 {
            self.resting.push_back(Resting {
                until: now.wrapping_add(Self::REST),
                plan: self.plan,
                first,
                length,
            });
        }
    }

    /// Begins a plan: makes runs that have rested free.
    pub fn reclaim(&mut self, now: u32) {
        self.plan += 1;
        let has_rested = |oldest: &mut Resting| now.wrapping_sub(oldest.until) as i32 >= 0;
        while let Some(Resting { first, length, .. }) = self.resting.pop_front_if(has_rested) {
            self.free(first, length);
        }
    }

    fn free(&mut self, mut first: u32, mut length: u32) {
        if let Some((&start, &run)) = self.free.range(..first).next_back()
            && start + run == first
        {
            self.free.remove(&start);
            first = start;
            length += run;
        }
        if let Some(run) = self.free.remove(&(first + length)) {
            length += run;
        }
        self.insert(first, length);
    }

    fn insert(&mut self, first: u32, length: u32) {
        if length > 0 {
            self.free.insert(first, length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_back_whole_after_their_rest() {
        let mut space = Space::new(10);
        assert_eq!(space.allocate(4), Some(0));
        assert_eq!(space.allocate(4), Some(4));
        assert_eq!(space.allocate(4), None);
        space.release(0, 4, 100);
        space.release(4, 4, 100);
        space.reclaim(101);
        assert_eq!(space.allocate(2), Some(8));
        space.reclaim(102);
        assert_eq!(space.allocate(8), Some(0));
    }

    #[test]
    fn a_later_plan_need_not_wait_if_there_is_no_other_room() {
        let mut space = Space::new(10);
        assert_eq!(space.allocate(6), Some(0));
        space.release(0, 6, 100);
        assert_eq!(space.allocate(6), None);
        space.reclaim(100);
        assert_eq!(space.allocate(4), Some(6));
        assert_eq!(space.allocate(6), Some(0));
    }

    #[test]
    fn a_run_in_use_is_not_given_away() {
        let mut space = Space::new(10);
        space.take(3, 2);
        assert_eq!(space.allocate(5), Some(5));
        assert_eq!(space.allocate(3), Some(0));
        assert_eq!(space.allocate(1), None);
    }
}
