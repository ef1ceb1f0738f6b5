//! The kernel and the host build agree: golden packets, each cut at every
//! length, and ten thousand with random changes.

use super::echo;
use super::golden;
use super::nat;
use super::packet::{tcp, udp};
use super::tun;
use super::world::{Vip, World};

/// A generator of pseudo-random numbers (xorshift64*): the same sequence for
/// the same seed everywhere.
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
}

fn frames() -> Vec<Vec<u8>> {
    let cases = [
        golden::common(4),
        golden::v4(),
        golden::common(6),
        golden::v6(),
        golden::ethernet(),
    ]
    .concat();
    let mut frames: Vec<_> = cases.into_iter().map(|(_, frame, _)| frame).collect();
    frames.extend(tun::frames());
    frames.extend(nat::frames());
    frames.extend(echo::frames());
    for version in [4, 6] {
        let vip = Vip::Moving.address(version);
        for port in 1..5 {
            frames.push(tcp(vip, 80).sent_from(port).build());
            frames.push(tcp(vip, 80).sent_from(port).syn().build());
            frames.push(udp(vip, 53).sent_from(port).build());
        }
    }
    frames
}

/// BPF_PROG_TEST_RUN takes no frame without an Ethernet header.
const LEAST: usize = 14;

#[test]
fn the_host_build_does_what_the_kernel_does() {
    World::with("differential", |world| {
        for frame in frames() {
            assert_eq!(
                world.in_kernel(&frame),
                world.on_host(&frame),
                "{frame:02x?}"
            );
        }
    });
}

#[test]
fn also_when_a_packet_is_cut_short() {
    World::with("differential-cut", |world| {
        for frame in frames().iter().filter(|frame| frame.len() < 200) {
            for length in LEAST..frame.len() {
                let frame = &frame[..length];
                assert_eq!(world.in_kernel(frame), world.on_host(frame), "{frame:02x?}");
            }
        }
    });
}

#[test]
fn also_when_each_length_field_takes_every_value() {
    World::with("differential-lengths", |world| {
        let v4 = tcp(Vip::Plain.address(4), 80).build();
        let v6 = tcp(Vip::Plain.address(6), 80).build();
        // Version and header length, total length, fragment offset, TCP's data
        // offset; IPv6's version, payload length and next header.
        for (frame, offsets) in [
            (v4, [14, 16, 17, 20, 21, 46]),
            (v6, [14, 18, 19, 20, 21, 66]),
        ] {
            for offset in offsets {
                for value in 0..=u8::MAX {
                    let mut frame = frame.clone();
                    frame[offset] = value;
                    assert_eq!(
                        world.in_kernel(&frame),
                        world.on_host(&frame),
                        "{frame:02x?}"
                    );
                }
            }
        }
    });
}

#[test]
fn also_for_ten_thousand_random_packets() {
    let seed = 0x5eed_0000_0000_0001;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    World::with("differential-random", |world| {
        let frames = frames();
        for _ in 0..10_000 {
            let mut frame = frames[random.below(frames.len())].clone();
            for _ in 0..=random.below(4) {
                // Headers matter more than payload.
                let offset = random.below(frame.len().min(100));
                frame[offset] = match random.below(3) {
                    0 => frame[offset] ^ (1 << random.below(8)),
                    1 => [0, 1, 4, 5, 6, 17, 44, 58, 0xff][random.below(9)],
                    _ => random.next() as u8,
                };
            }
            if random.below(8) == 0 {
                frame.truncate(LEAST + random.below(frame.len() - LEAST + 1));
            }
            assert_eq!(
                world.in_kernel(&frame),
                world.on_host(&frame),
                "{frame:02x?}"
            );
        }
    });
}
