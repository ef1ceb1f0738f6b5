//! Nothing that can be done to a frame makes kernel and host build differ, or
//! a frame end in another way than [`ends`] knows.
//!
//! Checksums stay what they were before a change: the programs believe none.

mod ends;

use std::time::Instant;

use integration::hostile::{
    ETHERNET, Random, Variant, cuts, fields, shortened, with_few_changes, with_random_end,
    with_values,
};
use lb_common::tunnel::role;

use super::world::{Outcome, World};
use super::{arriving, leaving};
use ends::check_end;

/// What a frame goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It arrives where our program takes it out.
    Arrives,
    /// It arrives where the kernel's own device will.
    Filtered,
    /// It leaves.
    Leaves,
}

impl Way {
    const ALL: [Self; 3] = [Self::Arrives, Self::Filtered, Self::Leaves];

    /// Names and frames.
    fn cases(self) -> Vec<(String, Vec<u8>)> {
        match self {
            Self::Leaves => leaving::cases().into_iter().map(|c| (c.0, c.1)).collect(),
            _ => arriving::cases().into_iter().map(|c| (c.0, c.1)).collect(),
        }
    }

    /// Bytes of a frame that BPF_PROG_TEST_RUN takes: for programs on the way
    /// out a whole IP header, without which a frame cannot be sent.
    fn least(self, frame: &[u8]) -> usize {
        match frame.get(12..ETHERNET) {
            Some([0x08, 0x00]) if self == Self::Leaves => ETHERNET + 20,
            Some([0x86, 0xdd]) if self == Self::Leaves => ETHERNET + 40,
            _ => ETHERNET,
        }
    }

    fn on_host(self, world: &World, frame: &[u8]) -> Outcome {
        match self {
            Self::Leaves => world.leaves_on_host(frame),
            _ => world.arrives_on_host(frame),
        }
    }

    fn in_kernel(self, world: &World, frame: &[u8]) -> Outcome {
        match self {
            Self::Leaves => world.leaves_in_kernel(frame),
            _ => world.arrives_in_kernel(frame),
        }
    }
}

/// Runs variants of a frame; returns how many.
///
/// # Panics
/// Naming frame and change, if one ends in no way that it may.
fn check<'a>(
    world: &World,
    way: Way,
    name: &str,
    variants: impl Iterator<Item = Variant<'a>>,
) -> usize {
    let mut count = 0;
    for Variant { change, frame } in variants {
        let host = way.on_host(world, &frame);
        if frame.len() >= way.least(&frame) {
            let kernel = way.in_kernel(world, &frame);
            assert_eq!(kernel, host, "{name}: {change}\n frame {frame:02x?}");
        }
        if let Err(what) = check_end(way, &frame, &host) {
            panic!("{name}: {change}: {what}\n{host:02x?}\n frame {frame:02x?}");
        }
        count += 1;
    }
    count
}

/// Ways with all of their frames; `test` returns how many it has made of one.
fn suite(world: &str, ways: &[Way], mut test: impl FnMut(&World, Way, &str, &[u8]) -> usize) {
    let mut world = World::new(world);
    for &way in ways {
        let begun = Instant::now();
        world.set_role(match way {
            Way::Filtered => role::FILTER,
            _ => role::DECAPSULATE,
        });
        let cases = way.cases();
        let counts = cases
            .iter()
            .map(|(name, frame)| test(&world, way, name, frame));
        let count: usize = counts.sum();
        let seconds = begun.elapsed().as_secs_f32();
        println!("{way:?}: {count} frames in {seconds:.1} s");
    }
}

#[test]
fn cut_at_every_length() {
    suite("bp-hostile-cut", &Way::ALL, |world, way, name, frame| {
        check(world, way, name, cuts(frame))
    });
}

#[test]
fn shortened_to_every_length() {
    suite("bp-hostile-short", &Way::ALL, |world, way, name, frame| {
        check(world, way, name, shortened(frame))
    });
}

fn with_every_field(world: &str, ways: &[Way]) {
    suite(world, ways, |world, way, name, frame| {
        let of = |field| {
            let variants = with_values(frame, field, field.values(frame));
            check(world, way, name, variants)
        };
        fields(frame).iter().map(of).sum()
    });
}

#[test]
fn every_length_field_of_what_arrives() {
    with_every_field("bp-hostile-arriving", &[Way::Arrives]);
}

#[test]
fn every_length_field_of_what_is_filtered_and_of_what_leaves() {
    with_every_field("bp-hostile-others", &[Way::Filtered, Way::Leaves]);
}

#[test]
fn a_few_random_changes() {
    /// Of each frame.
    const EACH: usize = 100;
    let mut random = Random::new(0x5eed_0000_0000_0003);
    suite("bp-hostile-few", &Way::ALL, |world, way, name, frame| {
        let variants = (0..EACH).map(|_| with_few_changes(frame, &mut random));
        check(world, way, name, variants)
    });
}

#[test]
fn random_bytes_behind_the_beginning_of_a_frame() {
    /// Of each frame.
    const EACH: usize = 200;
    let mut random = Random::new(0x5eed_0000_0000_0013);
    suite("bp-hostile-random", &Way::ALL, |world, way, name, frame| {
        let variants = (0..EACH).map(|_| with_random_end(frame, &mut random));
        check(world, way, name, variants)
    });
}
