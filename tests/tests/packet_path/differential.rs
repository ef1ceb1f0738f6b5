//! The kernel and the host build agree: golden packets, and ten thousand with
//! random changes. What is done to packets with a system: [`super::hostile`].

use integration::hostile::{Random, with_few_changes};

use super::echo;
use super::golden;
use super::nat;
use super::packet::{tcp, udp};
use super::tun;
use super::vlan;
use super::world::{Vip, World};

/// Golden packets and those of the suites beside them, in every mode.
pub fn frames() -> Vec<Vec<u8>> {
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
    frames.extend(vlan::frames());
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
fn also_for_ten_thousand_random_packets() {
    let mut random = Random::new(0x5eed_0000_0000_0001);
    World::with("differential-random", |world| {
        let frames = frames();
        for _ in 0..10_000 {
            let frame = &frames[random.below(frames.len())];
            let frame = with_few_changes(frame, &mut random).frame;
            assert_eq!(
                world.in_kernel(&frame),
                world.on_host(&frame),
                "{frame:02x?}"
            );
        }
    });
}
