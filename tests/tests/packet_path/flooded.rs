//! Frames to other hosts' MAC addresses, as switches flood them, and as they
//! cross a machine that bridges: none of our business, whatever is in them.

use lb_ebpf::verdict::Verdict;

use super::differential::frames;
use super::fragments;
use super::nat::run;
use super::packet::{tcp, udp};
use super::vlan::in_one_vlan;
use super::world::{Vip, World};

const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0xbe, 1];

#[test]
fn every_packet_that_is_sent_to_another_host_passes_as_it_is() {
    World::with("flooded", |world| {
        for frame in frames() {
            passes(world, frame);
        }
    });
}

#[test]
fn also_what_would_be_dropped() {
    World::with("flooded-drops", |world| {
        for version in [4, 6] {
            let to = |vip: Vip| tcp(vip.address(version), 80);
            let whole = to(Vip::Plain).build();
            let short = whole[..whole.len() - 1].to_vec();
            let nobody = to(Vip::Empty).build();
            let dead = to(Vip::Dead).build();
            let large = to(Vip::Plain).payload(2000).build();
            let dns = udp(Vip::Plain.address(version), 53).payload(64).build();
            let [_, later] = fragments::cut(&dns, 24, 24, 9);
            for frame in [short, nobody, dead, large, later] {
                let dropped = run(world, &frame);
                assert_ne!(dropped.verdict, Verdict::Pass);
                assert_eq!(dropped.dropped.values().sum::<u64>(), 1);
                passes(world, in_one_vlan(&frame));
                passes(world, frame);
            }
        }
    });
}

fn passes(world: &World, mut frame: Vec<u8>) {
    frame[..6].copy_from_slice(&OTHER_MAC);
    let outcome = run(world, &frame);
    assert_eq!(outcome.verdict, Verdict::Pass, "{frame:02x?}");
    assert_eq!(outcome.bytes, frame);
    assert!(outcome.counted.is_empty(), "{outcome:?}, {frame:02x?}");
    assert!(outcome.dropped.is_empty(), "{outcome:?}, {frame:02x?}");
    assert!(outcome.recorded.is_empty(), "{outcome:?}, {frame:02x?}");
    assert!(outcome.translated.is_empty(), "{outcome:?}, {frame:02x?}");
}
