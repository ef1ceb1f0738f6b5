//! Nothing that can be done to a packet makes kernel and host build differ, or
//! a packet end in another way than [`ends`] knows: passed untouched,
//! forwarded whole, answered, or dropped under exactly one reason.
//!
//! Checksums stay what they were before a change: the packet path believes
//! none, it only carries on what is wrong.

mod ends;
mod packets;
mod run;
mod seeds;

use std::time::Instant;

use integration::hostile::{
    Change, Random, Variant, cuts, fields, shortened, with_random_end, with_values,
};
use lb_common::counters::DropReason;

use super::world::World;
use packets::{Named, all, through_each_mode};
use run::{Tally, check};

fn suite(name: &str, test: impl FnOnce(&World, &mut Tally) + Send) {
    World::with(name, |world| {
        let begun = Instant::now();
        let mut tally = Tally::default();
        test(world, &mut tally);
        println!("{tally} in {:.1} s", begun.elapsed().as_secs_f32());
    });
}

#[test]
fn the_packets_reach_their_backends() {
    suite("hostile-whole", |world, tally| {
        for packet in through_each_mode(world) {
            let change = Change::Cut(packet.frame.len());
            let frame = packet.frame.clone();
            let mut alone = Tally::default();
            check(
                world,
                &packet,
                [Variant { change, frame }].into_iter(),
                &mut alone,
            );
            let sent = alone.forwarded + alone.answered;
            assert_eq!(sent, 1, "{}: {alone}", packet.name);
            tally.add(&alone);
        }
    });
}

#[test]
fn cut_at_every_length() {
    suite("hostile-cut", |world, tally| {
        for packet in all(world) {
            check(world, &packet, cuts(&packet.frame), tally);
        }
        assert!(tally.dropped.contains_key(&DropReason::Truncated));
        assert!(tally.passed > 0 && tally.forwarded > 0);
    });
}

#[test]
fn shortened_to_every_length() {
    suite("hostile-shortened", |world, tally| {
        for packet in all(world) {
            check(world, &packet, shortened(&packet.frame), tally);
        }
        for reason in [DropReason::Malformed, DropReason::FragmentTiny] {
            assert!(tally.dropped.contains_key(&reason), "never {reason:?}");
        }
    });
}

fn with_every_field(world: &World, packets: &[Named], tally: &mut Tally) {
    for packet in packets {
        for field in fields(&packet.frame) {
            let values = field.values(&packet.frame);
            check(
                world,
                packet,
                with_values(&packet.frame, &field, values),
                tally,
            );
        }
    }
}

#[test]
fn every_length_field_with_every_value_that_matters() {
    suite("hostile-fields", |world, tally| {
        with_every_field(world, &all(world), tally);
        for reason in [
            DropReason::Truncated,
            DropReason::Malformed,
            DropReason::Fragment,
            DropReason::FragmentTiny,
            DropReason::FragmentOverlap,
        ] {
            assert!(tally.dropped.contains_key(&reason), "never {reason:?}");
        }
        assert!(tally.passed > 0 && tally.forwarded > 0 && tally.answered > 0);
    });
}

/// Of fields of two bytes: for one packet of each kind.
fn with_every_value(version: &str) {
    suite(&format!("hostile-wide-{version}"), |world, tally| {
        let names = packets::FOR_ALL_VALUES.map(|name| format!("{version} {name}"));
        let mut chosen = through_each_mode(world);
        chosen.retain(|packet| names.contains(&packet.name));
        assert_eq!(chosen.len(), names.len());
        for packet in &chosen {
            for field in fields(&packet.frame).iter().filter(|field| field.is_wide()) {
                let variants = with_values(&packet.frame, field, field.every_value());
                check(world, packet, variants, tally);
            }
        }
    });
}

#[test]
fn every_length_field_of_ipv4_with_every_value() {
    with_every_value("IPv4");
}

#[test]
fn every_length_field_of_ipv6_with_every_value() {
    with_every_value("IPv6");
}

#[test]
fn random_bytes_behind_the_beginning_of_a_packet() {
    /// Of each packet.
    const EACH: usize = 200;
    suite("hostile-random", |world, tally| {
        let mut random = Random::new(0x5eed_0000_0000_0011);
        for packet in all(world) {
            let variants = (0..EACH).map(|_| with_random_end(&packet.frame, &mut random));
            check(world, &packet, variants, tally);
        }
    });
}

#[test]
fn random_bytes_for_a_vip() {
    const FRAMES: usize = 20_000;
    suite("hostile-noise", |world, tally| {
        let mut random = Random::new(0x5eed_0000_0000_0012);
        let nothing = Named {
            name: "noise".to_owned(),
            before: Vec::new(),
            frame: Vec::new(),
        };
        let variants = (0..FRAMES).map(|_| packets::noise(&mut random));
        check(world, &nothing, variants, tally);
        assert!(tally.passed > 0 && tally.forwarded > 0);
    });
}
