//! VLAN tags, in every mode: packets come with some, and leave with those of
//! where they go.

use lb_common::counters::DropReason;
use lb_common::vlan::Tag;
use lb_ebpf::verdict::Verdict;

use super::fragments;
use super::nat::{self, run};
use super::packet::{CLIENT_MAC, client, tcp, with_tags};
use super::world::{
    DIRECTOR_MAC, ELSEWHERE, ONE_TAG, ROUTER_MAC, SECOND_MAC, TWO_TAGS, Vip, World,
    backend_address, backend_mac,
};

/// Priority 5 and eligible to be dropped, as the first byte of the TCI has it.
const PRIORITY: u8 = 0xb0;

/// A tag that only says how urgent the frame is.
const URGENT: [u8; 4] = [0x81, 0x00, 0xe0, 0];

/// Tags of a VLAN as they stand in a frame.
fn tags(vlan: [Tag; 2]) -> Vec<[u8; 4]> {
    let is_some = |tag: &Tag| tag.is_some();
    let bytes = |tag: Tag| tag.to_frame().to_ne_bytes();
    vlan.into_iter().filter(is_some).map(bytes).collect()
}

/// The same with a priority in the first.
fn urgent(vlan: [Tag; 2]) -> Vec<[u8; 4]> {
    let mut tags = tags(vlan);
    tags[0][2] |= PRIORITY;
    tags
}

/// Packets for the other suites: none of them has an expectation of its own.
pub fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for version in [4, 6] {
        for vip in [
            Vip::Plain,
            Vip::OneTag,
            Vip::TwoTags,
            Vip::TunInVlan,
            Vip::NatInVlan,
            Vip::Gateway,
            Vip::Full,
            Vip::Empty,
            Vip::None,
        ] {
            let frame = tcp(vip.address(version), 80).build();
            frames.push(with_tags(&frame, &urgent(ONE_TAG)));
            frames.push(with_tags(&frame, &tags(TWO_TAGS)));
            frames.push(frame);
        }
        let error = tcp(Vip::OneTag.address(version), 80).icmp_error(3, 4);
        frames.push(with_tags(&error, &tags(ONE_TAG)));
    }
    frames
}

/// A frame as it comes by a VLAN of one tag.
pub fn in_one_vlan(frame: &[u8]) -> Vec<u8> {
    with_tags(frame, &tags(ONE_TAG))
}

fn each(name: &str, test: impl Fn(&World, u8) + Send + Sync) {
    World::with(name, |world| {
        [4, 6].into_iter().for_each(|v| test(world, v))
    });
}

/// Where a packet goes in DR, and the tags that it has then.
struct Leaves {
    vip: Vip,
    backend: u8,
    tags: Vec<[u8; 4]>,
}

#[test]
fn packets_leave_with_the_tags_of_the_next_hop() {
    each("vlan-dr", |world, version| {
        let to = |vip, backend, tags| Leaves { vip, backend, tags };
        let urgent_one_tag = urgent(ONE_TAG);
        let mut urgent_two_tags = tags(TWO_TAGS);
        urgent_two_tags[0][2] |= PRIORITY;
        let cases = [
            // Without tags, to each kind of segment.
            (vec![], to(Vip::Plain, 1, vec![])),
            (vec![], to(Vip::OneTag, 18, tags(ONE_TAG))),
            (vec![], to(Vip::TwoTags, 19, tags(TWO_TAGS))),
            // With one, and a priority, which stays.
            (urgent_one_tag.clone(), to(Vip::Plain, 1, vec![])),
            (
                urgent_one_tag.clone(),
                to(Vip::OneTag, 18, urgent_one_tag.clone()),
            ),
            (urgent_one_tag, to(Vip::TwoTags, 19, urgent_two_tags)),
            // With two.
            (tags(TWO_TAGS), to(Vip::Plain, 1, vec![])),
            (tags(TWO_TAGS), to(Vip::OneTag, 18, tags(ONE_TAG))),
            (tags(TWO_TAGS), to(Vip::TwoTags, 19, tags(TWO_TAGS))),
            // With one that names no VLAN, alone or around another.
            (vec![URGENT], to(Vip::Plain, 1, vec![])),
            (
                [vec![URGENT], tags(ONE_TAG)].concat(),
                to(Vip::Plain, 1, vec![]),
            ),
        ];
        for (arrives, leaves) in cases {
            let Leaves { vip, backend, tags } = leaves;
            let frame = tcp(vip.address(version), 80).build();
            let outcome = run(world, &with_tags(&frame, &arrives));
            assert_eq!(outcome.verdict, Verdict::Transmit, "{arrives:x?} {vip:?}");
            let macs = [backend_mac(backend), DIRECTOR_MAC].concat();
            let expected = with_tags(&[&macs, &frame[12..]].concat(), &tags);
            assert_eq!(outcome.bytes, expected, "{arrives:x?} {vip:?}");
            let counted = outcome.counted[&backend];
            assert_eq!(counted.packets, 1);
            // Of IP: tags do not count.
            assert_eq!(counted.bytes, frame.len() as u64 - 14);
            assert_eq!(outcome.counted.len(), 1);
            assert!(outcome.dropped.is_empty());
        }
    });
}

#[test]
fn tunnels_leave_by_a_vlan_of_another_interface() {
    each("vlan-tun", |world, version| {
        let frame = tcp(Vip::TunInVlan.address(version), 80).build();
        for arrives in [vec![], tags(ONE_TAG), tags(TWO_TAGS)] {
            let outcome = run(world, &with_tags(&frame, &arrives));
            let [_, eth1] = world.interfaces;
            assert_eq!(outcome.verdict, Verdict::Redirect(eth1));
            let macs = [backend_mac(20), SECOND_MAC].concat();
            assert_eq!(outcome.bytes[..12], macs);
            assert_eq!(outcome.bytes[12..16], tags(ELSEWHERE).concat());
            assert_eq!(outcome.bytes[16..18], [0x08, 0x00]);
            assert_eq!(outcome.bytes[38..], frame[14..]);
            assert_eq!(outcome.counted[&20].packets, 1);
        }
    });
}

/// What tells a sender that its packet is too big finds its way back.
#[test]
fn answers_leave_with_the_tags_that_the_question_had() {
    each("vlan-answers", |world, version| {
        let frame = tcp(Vip::TunInVlan.address(version), 80).payload(1470);
        for arrives in [tags(ONE_TAG), tags(TWO_TAGS)] {
            let outcome = run(world, &with_tags(&frame.build(), &arrives));
            assert_eq!(outcome.verdict, Verdict::Transmit);
            let macs = [CLIENT_MAC, DIRECTOR_MAC].concat();
            assert_eq!(outcome.bytes[..12], macs);
            let length = 4 * arrives.len();
            assert_eq!(outcome.bytes[12..12 + length], arrives.concat());
            assert_eq!(outcome.dropped[&DropReason::TooBig], 1);
        }
    });
}

#[test]
fn what_is_not_ours_keeps_its_tags() {
    each("vlan-pass", |world, version| {
        let plain = tcp(Vip::Plain.address(version), 80);
        let frame = plain.build();
        let unknown = vec![Tag::new(0x8100, 11).to_frame().to_ne_bytes()];
        let other_kind = vec![Tag::new(0x88a8, 10).to_frame().to_ne_bytes()];
        let three = [tags(ONE_TAG), tags(TWO_TAGS)].concat();
        let none = tcp(Vip::None.address(version), 80).build();
        let no_port = tcp(Vip::Plain.address(version), 81).build();
        let foreign = plain.addressed_to([2, 0, 0, 0, 0, 0x77]).build();
        let arp = [&frame[..12], &[0x08, 0x06], &[0; 46]].concat();
        for (what, frame, tags) in [
            ("a VLAN that the host is not in", &frame, unknown),
            ("another kind of tag", &frame, other_kind),
            ("three tags", &frame, three),
            ("no service's address", &none, urgent(ONE_TAG)),
            ("no service's port", &no_port, urgent(ONE_TAG)),
            ("no service's port", &no_port, urgent(TWO_TAGS)),
            ("another host's MAC address", &foreign, urgent(ONE_TAG)),
            ("ARP", &arp, tags(ONE_TAG)),
        ] {
            let frame = with_tags(frame, &tags);
            let outcome = run(world, &frame);
            assert_eq!(outcome.verdict, Verdict::Pass, "{what}");
            assert_eq!(outcome.bytes, frame, "{what}");
            assert!(outcome.counted.is_empty() && outcome.dropped.is_empty());
        }
    });
}

#[test]
fn what_cannot_be_forwarded_is_dropped_as_without_tags() {
    each("vlan-drop", |world, version| {
        let frame = tcp(Vip::Empty.address(version), 80).build();
        let outcome = run(world, &with_tags(&frame, &tags(ONE_TAG)));
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoBackend));
    });
}

#[test]
fn translated_packets_change_their_vlan_both_ways() {
    each("vlan-nat", |world, version| {
        let vip = Vip::NatInVlan;
        for arrives in [vec![], tags(TWO_TAGS)] {
            let frame = tcp(vip.address(version), 80).build();
            let outcome = run(world, &with_tags(&frame, &arrives));
            assert_eq!(outcome.verdict, Verdict::Transmit);
            assert_eq!(outcome.bytes[12..16], tags(ONE_TAG).concat());
            let untagged = [&outcome.bytes[..12], &outcome.bytes[16..]].concat();
            let there = nat::read(&untagged);
            assert_eq!(there.destination, (backend_address(version, 21), 8080));
        }
        let backend = backend_address(version, 21);
        let in_vlan = match version {
            4 => "192.0.2.7",
            _ => "2001:db8:e::7",
        };
        for (to, expected) in [
            (client(backend), vec![]),
            (in_vlan.parse().unwrap(), tags(ONE_TAG)),
        ] {
            let reply = tcp(to, 40_000).from(backend).sent_from(8080).build();
            let outcome = run(world, &with_tags(&reply, &tags(ONE_TAG)));
            assert_eq!(outcome.verdict, Verdict::Transmit, "{outcome:?}");
            assert_eq!(outcome.bytes[..12], [ROUTER_MAC, DIRECTOR_MAC].concat());
            let end = 12 + 4 * expected.len();
            assert_eq!(outcome.bytes[12..end], expected.concat());
            let untagged = [&outcome.bytes[..12], &outcome.bytes[end..]].concat();
            assert_eq!(nat::read(&untagged).source, (vip.address(version), 80));
            assert_eq!(outcome.counted[&21].reply_packets, 1);
        }
    });
}

#[test]
fn fragments_follow_the_first_of_their_packet_also_with_tags() {
    each("vlan-fragments", |world, version| {
        let frame = tcp(Vip::OneTag.address(version), 80).payload(2000).build();
        for (id, arrives) in [(1, tags(ONE_TAG)), (2, tags(TWO_TAGS))] {
            for part in fragments::cut(&frame, 1208, 1208, id) {
                let outcome = run(world, &with_tags(&part, &arrives));
                assert_eq!(outcome.verdict, Verdict::Transmit);
                let macs = [backend_mac(18), DIRECTOR_MAC].concat();
                let expected = [&macs, &part[12..]].concat();
                assert_eq!(outcome.bytes, with_tags(&expected, &tags(ONE_TAG)));
            }
        }
    });
}
