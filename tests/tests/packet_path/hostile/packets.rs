//! Packets to be spoiled: the golden ones, and those of every mode, each way.

use std::net::IpAddr;

use integration::hostile::{Change, Random, Variant};

use super::super::packet::{CLIENT_PORT, Packet, client, sctp, tcp, udp, with_extension};
use super::super::world::{DIRECTOR_MAC, Vip, World, backend_address};
use super::super::{echo, fragments, golden, nat, vlan};

/// A packet, and those that must have come before it.
pub struct Named {
    pub name: String,
    pub before: Vec<Vec<u8>>,
    pub frame: Vec<u8>,
}

/// Bytes of payload: more than the kernel puts into the first buffer of a test
/// run.
const JUMBO: usize = 4000;

/// Packets of [`through_each_mode`], in either IP version, for which even fields
/// of two bytes get every value.
pub const FOR_ALL_VALUES: [&str; 6] = [
    "DR UDP",
    "DR UDP, later fragment",
    "TUN by IPv6 TCP",
    "NAT TCP, first fragment",
    "NAT TCP, error",
    "full NAT UDP, reply",
];

/// All packets.
pub fn all(world: &World) -> Vec<Named> {
    let mut packets = Vec::new();
    for (of, cases) in [
        ("IPv4", [golden::common(4), golden::v4()].concat()),
        ("IPv6", [golden::common(6), golden::v6()].concat()),
        ("Ethernet", golden::ethernet()),
    ] {
        packets.extend(cases.into_iter().map(|(name, frame, _)| Named {
            name: format!("{of}, {name}"),
            before: Vec::new(),
            frame,
        }));
    }
    for (of, frames) in [("VLAN", vlan::frames()), ("ping", echo::frames())] {
        packets.extend(frames.into_iter().enumerate().map(|(n, frame)| Named {
            name: format!("{of}, number {n}"),
            before: Vec::new(),
            frame,
        }));
    }
    packets.extend(through_each_mode(world));
    packets
}

/// Packets that are sent on, or that the director answers.
pub fn through_each_mode(world: &World) -> Vec<Named> {
    let mut packets = Vec::new();
    for version in [4, 6] {
        let mut add = |name: &str, packet: Packet, before: &[Vec<u8>]| {
            packets.extend(shapes(
                version,
                &format!("IPv{version} {name}"),
                &packet,
                before,
            ));
        };
        for (name, vip) in [
            ("DR", Vip::Plain),
            ("DR by another interface", Vip::Behind),
            ("DR, moving", Vip::Moving),
            ("TUN by IPv4", Vip::TunV4),
            ("TUN by IPv6", Vip::TunV6),
            ("TUN, spread", Vip::TunSpread),
            ("NAT", Vip::Gateway),
            ("full NAT", Vip::Full),
            ("NAT, shared", Vip::Sharing),
        ] {
            let vip = vip.address(version);
            add(&format!("{name} TCP"), tcp(vip, 80), &[]);
        }
        for (name, vip, port) in [
            ("DR", Vip::Plain, 53),
            ("NAT", Vip::Gateway, 53),
            ("full NAT", Vip::Full, 53),
            ("NAT, all ports,", Vip::AllPorts, 4711),
        ] {
            add(&format!("{name} UDP"), udp(vip.address(version), port), &[]);
        }
        for (name, vip) in [("DR", Vip::Plain), ("NAT", Vip::Gateway)] {
            add(
                &format!("{name} SCTP"),
                sctp(vip.address(version), 2905, true),
                &[],
            );
        }
        for (name, there, answer) in replies(world, version) {
            add(&format!("{name}, reply"), answer, &[there]);
        }
        for (name, vip) in [
            ("DR", Vip::Plain),
            ("TUN", Vip::TunV4),
            ("NAT", Vip::Gateway),
        ] {
            packets.push(Named {
                name: format!("IPv{version} {name} TCP, in several buffers"),
                before: Vec::new(),
                frame: tcp(vip.address(version), 80).payload(JUMBO).build(),
            });
        }
    }
    packets
}

/// The answers of NAT backends, after what they answer.
fn replies(world: &World, version: u8) -> Vec<(&'static str, Vec<u8>, Packet)> {
    let vip = |vip: Vip| vip.address(version);
    let asked = [
        ("NAT TCP", tcp(vip(Vip::Gateway), 80).syn()),
        ("NAT UDP", udp(vip(Vip::Gateway), 53)),
        ("full NAT TCP", tcp(vip(Vip::Full), 80).syn()),
        ("full NAT UDP", udp(vip(Vip::Full), 53)),
        ("NAT, shared TCP", tcp(vip(Vip::Sharing), 80).syn()),
        ("NAT, all ports, UDP", udp(vip(Vip::AllPorts), 4711)),
    ];
    let mut replies: Vec<_> = asked
        .into_iter()
        .map(|(name, there)| {
            let there = there.build();
            let seen = nat::read(&nat::run(world, &there).bytes);
            let answer = if name.ends_with("UDP") { udp } else { tcp };
            let answer = answer(seen.source.0, seen.source.1)
                .from(seen.destination.0)
                .sent_from(seen.destination.1);
            (name, there, answer)
        })
        .collect();
    let answer = sctp(client(vip(Vip::Gateway)), CLIENT_PORT, false)
        .from(backend_address(version, 14))
        .sent_from(2905);
    let there = sctp(vip(Vip::Gateway), 2905, true).build();
    replies.push(("NAT SCTP", there, answer));
    replies
}

/// A packet in all the shapes that it can have.
fn shapes(version: u8, name: &str, packet: &Packet, before: &[Vec<u8>]) -> Vec<Named> {
    /// Where the first fragment ends.
    const SPLIT: usize = 40;
    let whole = || packet.clone();
    let (options, unreachable, too_big) = if version == 4 {
        let options = whole().ip_options(&[7, 7, 4, 0, 0, 0, 0, 0]).build();
        (options, (3, 1), (3, 4))
    } else {
        let destination = with_extension(&whole().build(), 60, &[0, 0, 1, 4, 0, 0, 0, 0]);
        let options = with_extension(&destination, 0, &[0, 0, 5, 2, 0, 0, 1, 0]);
        (options, (1, 1), (2, 0))
    };
    let long = whole().payload(72).build();
    let [first, later] = fragments::cut(&long, SPLIT, SPLIT, 77);
    let mut shapes = vec![
        ("", whole().build()),
        (" with options", options),
        (", error", whole().icmp_error(unreachable.0, unreachable.1)),
        (
            ", error that quotes more",
            whole().icmp_error_quoting(too_big.0, too_big.1, 28),
        ),
        (", at its last hop", whole().ttl(1).build()),
        (", first fragment", first.clone()),
    ];
    if name.ends_with("TCP") {
        shapes.push((", SYN", whole().syn().build()));
    }
    if name.contains("NAT TCP") || name.contains("TUN by IPv4") {
        shapes.push((", too big", whole().payload(1500).build()));
    }
    let mut named: Vec<_> = shapes
        .into_iter()
        .map(|(shape, frame)| Named {
            name: format!("{name}{shape}"),
            before: before.to_vec(),
            frame,
        })
        .collect();
    named.push(Named {
        name: format!("{name}, later fragment"),
        before: [before, &[first]].concat(),
        frame: later,
    });
    named
}

/// Frames of random lengths full of random bytes: some all random, some with an
/// EtherType, some with a VIP of that IP version as well, and some with all
/// that is needed to be for one of its services.
pub fn noise(random: &mut Random) -> Variant<'static> {
    const VIPS: [Vip; 8] = [
        Vip::Plain,
        Vip::AnyPort,
        Vip::Moving,
        Vip::TunV4,
        Vip::TunV6,
        Vip::Gateway,
        Vip::Full,
        Vip::AllPorts,
    ];
    let length = random.below(200);
    let mut frame: Vec<u8> = (0..length).map(|_| random.byte()).collect();
    let vip = VIPS[random.below(VIPS.len())];
    let is_v4 = random.below(2) == 0;
    let fixed = random.below(4);
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = frame.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    if fixed > 0 {
        put(0, &DIRECTOR_MAC);
        put(12, if is_v4 { &[0x08, 0] } else { &[0x86, 0xdd] });
    }
    if fixed > 1 {
        match vip.address(if is_v4 { 4 } else { 6 }) {
            IpAddr::V4(vip) => put(30, &vip.octets()),
            IpAddr::V6(vip) => put(38, &vip.octets()),
        }
    }
    if fixed > 2 {
        let (protocol, port): (u8, u16) = [(6, 80), (17, 53), (132, 2905)][random.below(3)];
        // The high byte of the length too: else nearly all claim to be longer
        // than they are; and no fragment.
        if is_v4 {
            put(14, &[0x45]);
            put(16, &[0]);
            put(20, &[0x40, 0]);
            put(23, &[protocol]);
            put(36, &port.to_be_bytes());
        } else {
            put(14, &[0x60]);
            put(18, &[0]);
            put(20, &[protocol]);
            put(56, &port.to_be_bytes());
        }
    }
    Variant {
        change: Change::Random(0),
        frame,
    }
}
