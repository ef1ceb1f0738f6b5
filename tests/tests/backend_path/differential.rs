//! The kernel and the host build agree: golden packets, each cut at every
//! length, and ten thousand with random changes.

use lb_common::tunnel::role;

use super::world::{Outcome, World};
use super::{arriving, leaving};

/// BPF_PROG_TEST_RUN takes no frame without an Ethernet header.
const LEAST: usize = 14;

fn arriving() -> Vec<Vec<u8>> {
    arriving::cases().into_iter().map(|case| case.1).collect()
}

fn leaving() -> Vec<Vec<u8>> {
    leaving::cases().into_iter().map(|case| case.1).collect()
}

#[track_caller]
fn agree(frame: &[u8], kernel: &Outcome, host: &Outcome) {
    assert_eq!(kernel, host, "{frame:02x?}");
}

fn both_arrive(world: &World, frame: &[u8]) {
    agree(
        frame,
        &world.arrives_in_kernel(frame),
        &world.arrives_on_host(frame),
    );
}

/// A frame without a whole IP header cannot be sent, so BPF_PROG_TEST_RUN
/// takes none for this type of program.
fn both_leave(world: &World, frame: &[u8]) {
    let least = match frame[12..14] {
        [0x08, 0x00] => LEAST + 20,
        [0x86, 0xdd] => LEAST + 40,
        _ => LEAST,
    };
    if frame.len() >= least {
        agree(
            frame,
            &world.leaves_in_kernel(frame),
            &world.leaves_on_host(frame),
        );
    } else {
        assert_eq!(world.leaves_on_host(frame).bytes, frame);
    }
}

#[test]
fn whole_packets_and_packets_cut_at_every_length() {
    let mut world = World::new("bp-cut");
    for role in [role::DECAPSULATE, role::FILTER] {
        world.set_role(role);
        for frame in arriving().iter().filter(|frame| frame.len() < 200) {
            for length in LEAST..=frame.len() {
                both_arrive(&world, &frame[..length]);
            }
        }
    }
    for frame in leaving() {
        for length in LEAST..=frame.len() {
            both_leave(&world, &frame[..length]);
        }
    }
}

#[test]
fn ten_thousand_random_packets() {
    let seed = 0x5eed_0000_0000_0003;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let mut world = World::new("bp-random");
    let (arriving, leaving) = (arriving(), leaving());
    for round in 0..10_000 {
        if round == 5_000 {
            world.set_role(role::FILTER);
        }
        both_arrive(&world, &random.change(&arriving));
        both_leave(&world, &random.change(&leaving));
    }
}

/// A generator of pseudo-random numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn change(&mut self, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut frame = frames[self.below(frames.len())].clone();
        for _ in 0..=self.below(4) {
            let offset = self.below(frame.len().min(120));
            frame[offset] = match self.below(3) {
                0 => frame[offset] ^ (1 << self.below(8)),
                1 => [0, 1, 2, 4, 5, 6, 41, 44, 60, 0xff][self.below(10)],
                _ => self.next() as u8,
            };
        }
        if self.below(8) == 0 {
            frame.truncate(LEAST + self.below(frame.len() - LEAST + 1));
        }
        frame
    }
}
