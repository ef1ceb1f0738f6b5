//! Maglev hashing with weights: which backend owns which slot of a ring.
//!
//! The lookup table of "Maglev: A Fast and Reliable Software Network Load
//! Balancer" (Eisenbud et al., NSDI 2016, section 3.4), with two changes:
//!
//! - Each backend has a quota of slots, in proportion to its weight and
//!   rounded by largest remainder. So a share is off by less than one slot.
//! - The number of slots is a power of two and every skip is odd, instead of a
//!   prime and any skip: both make each permutation visit every slot. Powers
//!   of two nest: slot `i` of a ring is exactly slots `2i` and `2i + 1` of one
//!   twice as large, so that a ring can change its size without losing track
//!   of which flows went where.
//!
//! A ring depends on nothing but backends, weights and size: every director
//! of a fleet computes the same one.

use siphasher::sip::SipHasher24;

/// Least number of slots for each unit of weight: a share is then off by less
/// than 1/64. More would make it more exact, and have packets to many services
/// find less of the rings in the caches.
pub const SLOTS_PER_UNIT: u64 = 64;

/// Small rings have twice as many for each unit, up to so many slots.
pub const SMALL_RING: u64 = 1024;

/// Largest ring.
pub const MAX_SLOTS: u32 = 1 << 20;

/// A backend as the ring sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// What identifies the backend on every director: address and port.
    pub identity: [u8; 18],
    /// Relative share; 0 owns nothing.
    pub weight: u32,
}

/// Number of slots for these weights, 0 if there are none.
///
/// The next power of two that gives [`SLOTS_PER_UNIT`] slots to the smallest
/// weight, or twice as many in a ring up to [`SMALL_RING`]; at most
/// [`MAX_SLOTS`] (beyond that, very unequal weights are less exact). Backends of weight 0 count like the smallest, so that draining one
/// does not change the size.
pub fn ring_size(weights: impl Iterator<Item = u32> + Clone) -> u32 {
    let smallest = weights.clone().filter(|&w| w > 0).min().unwrap_or(1);
    let total: u64 = weights.map(|w| u64::from(w.max(smallest))).sum();
    let units = total.div_ceil(u64::from(smallest));
    let slots = (units * SLOTS_PER_UNIT).next_power_of_two();
    match slots.max((2 * slots).min(SMALL_RING)) {
        _ if units == 0 => 0,
        slots => slots.min(u64::from(MAX_SLOTS)) as u32,
    }
}

/// The owner of every slot, as index into `candidates`; `None` in every slot
/// if no candidate has a weight.
///
/// # Panics
/// If `slots` is not a power of two.
pub fn build(candidates: &[Candidate], slots: u32) -> Vec<Option<u32>> {
    assert!(slots.is_power_of_two(), "{slots} is no power of two");
    let mut ring = vec![None; slots as usize];
    let mut turns = turns(candidates, slots);
    let heaviest = turns.iter().map(|t| t.weight).max().unwrap_or(0);
    let mut left = turns.iter().map(|t| t.quota).sum::<u32>();
    while left > 0 {
        for turn in &mut turns {
            // A backend of half the largest weight takes every other turn.
            turn.credit += u64::from(turn.weight);
            while turn.credit >= u64::from(heaviest) && turn.quota > 0 {
                turn.credit -= u64::from(heaviest);
                turn.quota -= 1;
                left -= 1;
                let slot = turn.next_free(&ring);
                ring[slot] = Some(turn.candidate);
            }
        }
    }
    ring
}

/// A candidate's state while the ring is filled.
struct Turn {
    candidate: u32,
    weight: u32,
    quota: u32,
    credit: u64,
    next: u32,
    skip: u32,
    mask: u32,
}

impl Turn {
    /// The next slot of the candidate's permutation that nobody owns yet.
    fn next_free(&mut self, ring: &[Option<u32>]) -> usize {
        loop {
            let slot = (self.next & self.mask) as usize;
            self.next = self.next.wrapping_add(self.skip);
            if ring[slot].is_none() {
                return slot;
            }
        }
    }
}

/// Turns in an order that does not depend on the order of the candidates.
fn turns(candidates: &[Candidate], slots: u32) -> Vec<Turn> {
    let mut order: Vec<u32> = (0..candidates.len() as u32)
        .filter(|&i| candidates[i as usize].weight > 0)
        .collect();
    order.sort_by_key(|&i| candidates[i as usize].identity);
    let quotas = quotas(
        &order
            .iter()
            .map(|&i| candidates[i as usize].weight)
            .collect::<Vec<_>>(),
        slots,
    );
    order
        .into_iter()
        .zip(quotas)
        .map(|(i, quota)| {
            let Candidate { identity, weight } = candidates[i as usize];
            let hash = SipHasher24::new_with_keys(0, 0).hash(&identity);
            Turn {
                candidate: i,
                weight,
                quota,
                credit: 0,
                next: hash as u32,
                skip: (hash >> 32) as u32 | 1,
                mask: slots - 1,
            }
        })
        .collect()
}

/// Splits `slots` in proportion to `weights` by largest remainder. Nobody
/// comes away empty-handed while there are slots enough.
fn quotas(weights: &[u32], slots: u32) -> Vec<u32> {
    let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
    if total == 0 {
        return Vec::new();
    }
    let share = |w: u32| u64::from(w) * u64::from(slots);
    let mut quotas: Vec<u32> = weights.iter().map(|&w| (share(w) / total) as u32).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    // Those with nothing first, then the largest remainder; ties by position.
    by_remainder.sort_by_key(|&i| {
        (
            quotas[i] > 0,
            std::cmp::Reverse(share(weights[i]) % total),
            i,
        )
    });
    let rest = slots - quotas.iter().sum::<u32>();
    for &i in by_remainder.iter().take(rest as usize) {
        quotas[i] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(n: u16, weight: u32) -> Candidate {
        let mut identity = [0; 18];
        identity[10..12].copy_from_slice(&[0xff, 0xff]);
        identity[12..16].copy_from_slice(&[203, 0, (113 + (n >> 8)) as u8, n as u8]);
        Candidate { identity, weight }
    }

    fn equal(n: u16) -> Vec<Candidate> {
        (0..n).map(|i| candidate(i, 1)).collect()
    }

    fn ring_of(candidates: &[Candidate]) -> Vec<Option<u32>> {
        build(candidates, ring_size(candidates.iter().map(|c| c.weight)))
    }

    fn owned(ring: &[Option<u32>], candidate: usize) -> usize {
        let owner = Some(candidate as u32);
        ring.iter().filter(|&&slot| slot == owner).count()
    }

    proptest! {
        #[test]
        fn a_share_is_within_a_slot_of_the_weight(
            weights in prop::collection::vec(0_u32..=20, 1..60),
        ) {
            let candidates: Vec<_> = weights
                .iter()
                .enumerate()
                .map(|(i, &weight)| candidate(i as u16, weight))
                .collect();
            let ring = ring_of(&candidates);
            let total: u32 = weights.iter().sum();
            for (i, &weight) in weights.iter().enumerate() {
                let slots = owned(&ring, i) as f64;
                if weight == 0 {
                    prop_assert_eq!(slots, 0.0);
                    continue;
                }
                let ideal = ring.len() as f64 * f64::from(weight) / f64::from(total);
                prop_assert!((slots - ideal).abs() < 1.0, "{slots} slots, ideal {ideal}");
                prop_assert!((slots / ideal - 1.0).abs() < 0.016, "{slots} slots, ideal {ideal}");
            }
        }

        #[test]
        fn the_order_of_backends_does_not_matter(
            n in 1_u16..50,
            seed in any::<u64>(),
        ) {
            let candidates: Vec<_> = (0..n).map(|i| candidate(i, 1 + u32::from(i % 3))).collect();
            let mut shuffled = candidates.clone();
            for i in (1..shuffled.len()).rev() {
                shuffled.swap(i, (seed.rotate_left(i as u32) % (i as u64 + 1)) as usize);
            }
            let by_identity = |candidates: &[Candidate]| -> Vec<[u8; 18]> {
                ring_of(candidates)
                    .into_iter()
                    .map(|slot| candidates[slot.unwrap() as usize].identity)
                    .collect()
            };
            prop_assert_eq!(by_identity(&candidates), by_identity(&shuffled));
        }
    }

    /// The ring of this configuration, by its hash. If this fails, directors
    /// of this version disagree with those of the last: their flows move when
    /// packets change director. Then raise the major version.
    #[test]
    fn the_ring_is_the_same_on_every_machine_and_in_every_version() {
        let bytes: Vec<u8> = ring_of(&[candidate(1, 1), candidate(2, 2), candidate(3, 5)])
            .into_iter()
            .map(|slot| slot.unwrap() as u8)
            .collect();
        assert_eq!(
            SipHasher24::new_with_keys(0, 0).hash(&bytes),
            0x08a8_e3f8_3e02_ea45
        );
    }

    /// Slots that change owner although it is neither the removed backend nor
    /// anybody's gain from it: Maglev's price for equal shares.
    fn moved_needlessly(candidates: &[Candidate], removed: usize) -> f64 {
        let slots = ring_size(candidates.iter().map(|c| c.weight));
        let before = build(candidates, slots);
        let mut rest = candidates.to_vec();
        rest[removed].weight = 0;
        let after = build(&rest, slots);
        let needless = before
            .iter()
            .zip(&after)
            .filter(|(b, a)| b != a && **b != Some(removed as u32))
            .count();
        needless as f64 / f64::from(slots)
    }

    #[test]
    fn removing_one_of_n_moves_few_slots_of_the_others() {
        for n in [3, 10, 100, 1000] {
            let candidates = equal(n);
            let tries = 5.min(n as usize);
            let mean = (0..tries)
                .map(|removed| moved_needlessly(&candidates, removed))
                .sum::<f64>()
                / tries as f64;
            println!(
                "{n} backends: {:.2}% of the slots moved needlessly",
                100.0 * mean
            );
            assert!(mean < 0.04, "{n} backends: {mean}");
        }
    }

    #[test]
    fn sizes_fit_the_service() {
        let size = |weights: &[u32]| ring_size(weights.iter().copied());
        assert_eq!(size(&[]), 0);
        assert_eq!(size(&[1]), 128);
        assert_eq!(size(&[7]), 128);
        assert_eq!(size(&[1; 8]), 1024);
        assert_eq!(size(&[1; 16]), 1024);
        assert_eq!(size(&[1; 17]), 2048);
        assert_eq!(size(&[1; 100]), 8192);
        assert_eq!(size(&[1, 2]), 512);
        assert_eq!(size(&[2, 4]), 512);
        assert_eq!(size(&[1, 0]), size(&[1, 1]));
        assert_eq!(size(&[0, 0]), size(&[1, 1]));
        assert_eq!(size(&[1, 65_535]), MAX_SLOTS);
    }

    #[test]
    fn nobody_comes_away_empty_handed() {
        let ring = ring_of(&[candidate(1, 1), candidate(2, 65_535)]);
        assert_eq!(owned(&ring, 0), 16);
        assert!(build(&[candidate(1, 0)], 128).iter().all(Option::is_none));
    }
}
