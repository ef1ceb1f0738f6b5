//! Packets in fragments, in every mode: the first decides, the others follow.

use lb_common::counters::DropReason;
use lb_ebpf::verdict::Verdict;

use super::nat::{DNS, read, run};
use super::packet::{CLIENT_PORT, client, udp, with_extension};
use super::world::{Outcome, Vip, World, backend_address, backend_mac};

/// Bytes of payload: more than one frame's, but for what is added in front.
const PAYLOAD: usize = 2000;

/// Where the first fragment ends, bytes of the packet's payload.
const SPLIT: usize = 1208;

/// Cuts a frame into two fragments after `split` bytes of the IP payload; the
/// second begins at `begin` bytes of it.
pub fn cut(frame: &[u8], split: usize, begin: usize, id: u8) -> [Vec<u8>; 2] {
    if frame[12] == 0x08 {
        let part = |bytes: &[u8], offset: usize, more: bool| {
            let (mut header, _) = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap();
            header.identification = id.into();
            header.dont_fragment = false;
            header.more_fragments = more;
            header.fragment_offset = etherparse::IpFragOffset::try_new(offset as u16 / 8).unwrap();
            header.set_payload_len(bytes.len()).unwrap();
            header.header_checksum = header.calc_header_checksum();
            [&frame[..14], &header.to_bytes(), bytes].concat()
        };
        let payload = &frame[34..];
        return [
            part(&payload[..split], 0, true),
            part(&payload[begin..], begin, false),
        ];
    }
    let part = |bytes: &[u8], offset: usize, more: bool| {
        let offset = offset as u16 | u16::from(more);
        let [high, low] = offset.to_be_bytes();
        let header = [frame[20], 0, high, low, 0, 0, 0, id];
        let length = (bytes.len() as u16 + 8).to_be_bytes();
        let mut start = frame[..54].to_vec();
        start[18..20].copy_from_slice(&length);
        start[20] = 44;
        [&start[..], &header, bytes].concat()
    };
    let payload = &frame[54..];
    [
        part(&payload[..split], 0, true),
        part(&payload[begin..], begin, false),
    ]
}

/// The frame of which these are the fragments.
fn join([first, later]: [&[u8]; 2]) -> Vec<u8> {
    if first[12] == 0x08 {
        let (mut header, _) = etherparse::Ipv4Header::from_slice(&first[14..]).unwrap();
        let (other, _) = etherparse::Ipv4Header::from_slice(&later[14..]).unwrap();
        assert_eq!(other.calc_header_checksum(), other.header_checksum);
        assert_eq!(
            (header.source, header.destination),
            (other.source, other.destination)
        );
        let payload = [&first[34..], &later[34..]].concat();
        header.more_fragments = false;
        header.set_payload_len(payload.len()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        return [&first[..14], &header.to_bytes(), &payload].concat();
    }
    assert_eq!(first[22..54], later[22..54]);
    let payload = [&first[62..], &later[62..]].concat();
    let mut start = first[..54].to_vec();
    start[18..20].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    start[20] = first[54];
    [start, payload].concat()
}

fn dns(version: u8, vip: Vip) -> Vec<u8> {
    udp(vip.address(version), DNS.0).payload(PAYLOAD).build()
}

fn both(world: &World, [first, later]: &[Vec<u8>; 2]) -> [Outcome; 2] {
    [run(world, first), run(world, later)]
}

fn each(name: &str, test: impl Fn(&World, u8) + Send + Sync) {
    World::with(name, |world| {
        [4, 6].into_iter().for_each(|v| test(world, v))
    });
}

#[test]
fn the_others_go_where_the_first_went() {
    each("fragments-dr", |world, version| {
        let frame = dns(version, Vip::Plain);
        let outcomes = both(world, &cut(&frame, SPLIT, SPLIT, 1));
        for outcome in &outcomes {
            assert_eq!(outcome.verdict, Verdict::Transmit);
            assert_eq!(outcome.bytes[..6], backend_mac(2));
            assert_eq!(outcome.counted[&2].packets, 1);
        }
        let joined = join([&outcomes[0].bytes, &outcomes[1].bytes]);
        assert_eq!(joined[34..], frame[34..]);
    });
}

#[test]
fn what_is_translated_is_whole_when_it_is_put_together() {
    each("fragments-nat", |world, version| {
        for (vip, n) in [(Vip::Gateway, 14), (Vip::Full, 15)] {
            let frame = dns(version, vip);
            let id = n;
            let outcomes = both(world, &cut(&frame, SPLIT, SPLIT, id));
            assert!(outcomes.iter().all(|o| o.verdict == Verdict::Transmit));
            let there = read(&join([&outcomes[0].bytes, &outcomes[1].bytes]));
            assert_eq!(there.destination, (backend_address(version, n), DNS.1));
            assert_eq!(there.payload.len(), PAYLOAD);

            let (pool, port) = there.source;
            let answer = udp(pool, port)
                .from(backend_address(version, n))
                .sent_from(DNS.1)
                .payload(PAYLOAD);
            let outcomes = both(world, &cut(&answer.build(), SPLIT, SPLIT, id));
            assert!(outcomes.iter().all(|o| o.verdict == Verdict::Transmit));
            assert_eq!(outcomes[1].counted[&n].reply_packets, 1);
            let back = read(&join([&outcomes[0].bytes, &outcomes[1].bytes]));
            assert_eq!(back.source, (vip.address(version), DNS.0));
            assert_eq!(back.destination, (client(pool), CLIENT_PORT));
        }
    });
}

#[test]
fn one_that_comes_before_its_first_is_dropped() {
    each("fragments-early", |world, version| {
        for vip in [Vip::Plain, Vip::Gateway] {
            let [_, later] = cut(&dns(version, vip), SPLIT, SPLIT, 9);
            let outcome = run(world, &later);
            assert_eq!(outcome.verdict, Verdict::Drop(DropReason::Fragment));
        }
        // Of another packet.
        let frame = dns(version, Vip::Plain);
        let [first, _] = cut(&frame, SPLIT, SPLIT, 10);
        let [_, later] = cut(&frame, SPLIT, SPLIT, 11);
        assert_eq!(run(world, &first).verdict, Verdict::Transmit);
        let outcome = run(world, &later);
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::Fragment));
    });
}

#[test]
fn overlaps_and_first_fragments_without_their_ports_are_refused() {
    each("fragments-attacks", |world, version| {
        let frame = dns(version, Vip::Plain);
        let [first, overlap] = cut(&frame, SPLIT, SPLIT - 8, 12);
        assert_eq!(run(world, &first).verdict, Verdict::Transmit);
        let outcome = run(world, &overlap);
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::FragmentOverlap));

        let web = super::packet::tcp(Vip::Plain.address(version), 80).build();
        let [tiny, _] = cut(&web, 16, 16, 13);
        let outcome = run(world, &tiny);
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::FragmentTiny));
    });
}

/// RFC 8200, section 4.5: extension headers may be part of what is fragmented.
/// The later fragment names them in place of the protocol.
#[test]
fn options_behind_the_fragment_header_are_fragmented_too() {
    World::with("fragments-options", |world| {
        const DESTINATION: u8 = 60;
        let options = [0, 0, 1, 4, 0, 0, 0, 0];
        for (vip, n) in [(Vip::Plain, 2), (Vip::Gateway, 14)] {
            let frame = with_extension(&dns(6, vip), DESTINATION, &options);
            let outcomes = both(world, &cut(&frame, SPLIT, SPLIT, 15));
            for outcome in &outcomes {
                assert_eq!(outcome.verdict, Verdict::Transmit);
                assert_eq!(outcome.counted[&n].packets, 1);
            }
            let [first, overlap] = cut(&frame, SPLIT, SPLIT - 8, 16);
            assert_eq!(run(world, &first).verdict, Verdict::Transmit);
            let outcome = run(world, &overlap);
            assert_eq!(outcome.verdict, Verdict::Drop(DropReason::FragmentOverlap));
        }
    });
}

/// What the host serves on a VIP besides reaches it whole.
#[test]
fn of_what_is_for_no_service_the_others_pass_like_the_first() {
    each("fragments-host", |world, version| {
        let frame = udp(Vip::Plain.address(version), 500)
            .payload(PAYLOAD)
            .build();
        let fragments = cut(&frame, SPLIT, SPLIT, 17);
        for (outcome, fragment) in both(world, &fragments).iter().zip(&fragments) {
            assert_eq!(outcome.verdict, Verdict::Pass);
            assert_eq!(outcome.bytes, *fragment);
            assert!(outcome.dropped.is_empty() && outcome.counted.is_empty());
        }
    });
}

#[test]
fn what_is_not_for_a_vip_passes() {
    each("fragments-others", |world, version| {
        let [first, later] = cut(&dns(version, Vip::None), SPLIT, SPLIT, 14);
        for fragment in [first, later] {
            let outcome = run(world, &fragment);
            assert_eq!(outcome.verdict, Verdict::Pass);
            assert_eq!(outcome.bytes, fragment);
            assert!(outcome.dropped.is_empty());
        }
    });
}

#[test]
fn jumbo_frames_in_several_buffers_are_forwarded() {
    // More than the kernel puts into the first buffer of a test run.
    const JUMBO: usize = 8000;
    each("jumbo", |world, version| {
        let frame = super::packet::tcp(Vip::Spread.address(version), 80)
            .payload(JUMBO)
            .build();
        let outcome = run(world, &frame);
        assert_eq!(outcome.verdict, Verdict::Transmit);
        let to = &outcome.bytes[..6];
        assert!((8..=10).any(|n| to == backend_mac(n)), "{to:02x?}");
        assert_eq!(outcome.bytes[12..], frame[12..]);
        let short = &frame[..frame.len() - 1];
        let outcome = run(world, short);
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::Truncated));
    });
}
