use std::collections::BTreeMap;
use std::fmt;

use integration::hostile::Variant;
use lb_common::counters::DropReason;

use super::super::world::{Batch, World};
use super::ends::{End, end_of};
use super::packets::Named;

/// How many packets ended how.
#[derive(Debug, Default)]
pub struct Tally {
    pub passed: u32,
    pub forwarded: u32,
    pub answered: u32,
    pub dropped: BTreeMap<DropReason, u32>,
}

impl Tally {
    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.forwarded += other.forwarded;
        self.answered += other.answered;
        for (reason, count) in &other.dropped {
            *self.dropped.entry(*reason).or_default() += count;
        }
    }

    fn count(&mut self, end: End) {
        match end {
            End::Passed => self.passed += 1,
            End::Forwarded => self.forwarded += 1,
            End::Answered | End::Replied => self.answered += 1,
            End::Dropped(reason) => *self.dropped.entry(reason).or_default() += 1,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dropped: u32 = self.dropped.values().sum();
        let all = self.passed + self.forwarded + self.answered + dropped;
        write!(
            f,
            "{all} packets: {} passed, {} forwarded, {} answered, dropped {:?}",
            self.passed, self.forwarded, self.answered, self.dropped
        )
    }
}

/// Runs variants of a packet, each batch of them after the packets that belong
/// before it.
///
/// # Panics
/// Naming packet and change, if one ends in no way that it may.
pub fn check<'a>(
    world: &World,
    packet: &Named,
    mut variants: impl Iterator<Item = Variant<'a>>,
    tally: &mut Tally,
) {
    let room = Batch::MOST - packet.before.len();
    loop {
        let some: Vec<_> = variants.by_ref().take(room).collect();
        if some.is_empty() {
            return;
        }
        if let Err(together) = batch(world, packet, &some, tally) {
            let mut ignored = Tally::default();
            for one in some.chunks(1) {
                if let Err(what) = batch(world, packet, one, &mut ignored) {
                    fail(packet, &one[0], &what);
                }
            }
            let (first, last) = (some[0].change, some[some.len() - 1].change);
            panic!(
                "{}: {first} to {last}, only together: {together}",
                packet.name
            );
        }
    }
}

fn batch(
    world: &World,
    packet: &Named,
    variants: &[Variant<'_>],
    tally: &mut Tally,
) -> Result<(), String> {
    let mut batch = Batch::new(world);
    for frame in &packet.before {
        batch
            .run(frame)
            .map_err(|what| format!("before it: {what}"))?;
    }
    for variant in variants {
        let outcome = batch.run(&variant.frame);
        let end = outcome.and_then(|outcome| end_of(&variant.frame, &outcome));
        match end {
            Ok(end) => tally.count(end),
            Err(what) => fail(packet, variant, &what),
        }
    }
    batch.end().map(drop)
}

fn fail(packet: &Named, variant: &Variant<'_>, what: &str) -> ! {
    let (name, change, frame) = (&packet.name, variant.change, &variant.frame);
    panic!("{name}: {change}: {what}\n frame {frame:02x?}");
}
