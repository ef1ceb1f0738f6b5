//! Frames that arrive: what is taken out of its outer packet, what is dropped
//! and why, what passes untouched.

use std::collections::BTreeMap;

use lb_common::tunnel::{Counter, DropReason, role};
use lb_ebpf::backend::Verdict;

use super::packet::{changed, encapsulated, frame, udp, with_extension};
use super::world::{Outcome, World, backend, client, director, spread_director, stranger, vip};

/// What should become of a frame.
#[derive(Clone, Debug)]
pub enum Expect {
    /// Untouched, nothing counted.
    Passes,
    /// Untouched, one drop of this reason counted.
    Drops(DropReason),
    /// It becomes this IP packet, and is counted.
    Becomes(Vec<u8>),
}

use Expect::{Becomes, Drops, Passes};

/// A case: what it is, the frame, and what should become of it.
pub type Case = (String, Vec<u8>, Expect);

const PAIRINGS: [(u8, u8); 4] = [(4, 4), (4, 6), (6, 4), (6, 6)];

/// Cases of all pairings of outer and inner IP version.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (outer, inner) in PAIRINGS {
        let mut add = |name: &str, packet: Vec<u8>, expect: Expect| {
            cases.push((
                format!("{inner} in {outer}: {name}"),
                frame(&packet),
                expect,
            ));
        };
        let packet = udp(client(inner), vip(inner), 20);
        let wrap = |packet: &[u8]| encapsulated(director(outer), backend(outer), 0, packet);
        let from = |source| encapsulated(source, backend(outer), 0, &packet);
        add("from a director", wrap(&packet), Becomes(packet.clone()));
        add(
            "from an address of the directors' prefix",
            from(spread_director(outer)),
            Becomes(packet.clone()),
        );
        add(
            "from a stranger",
            from(stranger(outer)),
            Drops(DropReason::Stranger),
        );
        let elsewhere = udp(client(inner), client(inner), 20);
        add(
            "from a stranger, not for a VIP",
            encapsulated(stranger(outer), backend(outer), 0, &elsewhere),
            Passes,
        );
        add("not for a VIP", wrap(&elsewhere), Drops(DropReason::NotVip));
        add(
            "to another host",
            encapsulated(director(outer), client(outer), 0, &packet),
            Passes,
        );
        let large = udp(client(inner), vip(inner), 1400);
        add("large", wrap(&large), Becomes(large.clone()));
        let nested = encapsulated(client(inner), vip(inner), 0, &packet);
        add("nested", wrap(&nested), Drops(DropReason::Nested));
        let padded = [&wrap(&packet)[..], &[0; 6]].concat();
        add(
            "padded frame",
            padded,
            Becomes([&packet[..], &[0; 6]].concat()),
        );
        let cut = wrap(&packet)[..wrap(&packet).len() - 1].to_vec();
        add("frame cut short", cut, Drops(DropReason::Truncated));

        // Byte offsets within the inner packet.
        let (version, length_low) = if inner == 4 { (0, 3) } else { (0, 5) };
        let longer = changed(packet.clone(), length_low, packet[length_low] + 1);
        add(
            "inner packet claims more",
            wrap(&longer),
            Drops(DropReason::InnerLength),
        );
        let shorter = changed(packet.clone(), length_low, packet[length_low] - 1);
        add(
            "inner packet claims less",
            wrap(&shorter),
            Becomes(shorter.clone()),
        );
        let wrong = changed(packet.clone(), version, 0x55);
        let mut wrong = wrap(&wrong);
        wrong[if outer == 4 { 9 } else { 6 }] = if inner == 4 { 4 } else { 41 };
        add("inner version 5", wrong, Drops(DropReason::Malformed));
        let header = if inner == 4 { 20 } else { 40 };
        let mut stub = wrap(&packet[..header - 1]);
        stub[if outer == 4 { 9 } else { 6 }] = if inner == 4 { 4 } else { 41 };
        add("inner header cut short", stub, Drops(DropReason::Truncated));
        if inner == 4 {
            let tiny = changed(packet.clone(), 3, 19);
            add(
                "inner length below its header's",
                wrap(&tiny),
                Drops(DropReason::Malformed),
            );
            let wide = changed(packet.clone(), 0, 0x44);
            add(
                "inner header length 16",
                wrap(&wide),
                Drops(DropReason::Malformed),
            );
        }
        congestion(outer, inner, &mut add);
        if outer == 4 {
            outer_v4(&packet, &wrap(&packet), &mut add);
        } else {
            outer_v6(&packet, &wrap(&packet), &mut add);
        }
    }
    for version in [4, 6] {
        let plain = frame(&udp(client(version), vip(version), 20));
        cases.push((format!("{version}: not encapsulated"), plain, Passes));
    }
    let mut arp = frame(&udp(client(4), vip(4), 20));
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    cases.push(("ARP".to_owned(), arp, Passes));
    cases
}

fn congestion(outer: u8, inner: u8, add: &mut impl FnMut(&str, Vec<u8>, Expect)) {
    let with_class = |class: u8| {
        let mut packet = udp(client(inner), vip(inner), 20);
        if inner == 4 {
            packet[1] = class;
            let header = etherparse::Ipv4Header::from_slice(&packet).unwrap().0;
            let checksum = header.calc_header_checksum().to_be_bytes();
            packet[10..12].copy_from_slice(&checksum);
        } else {
            packet[0] = 0x60 | class >> 4;
            packet[1] = packet[1] & 0x0f | class << 4;
        }
        packet
    };
    // DSCP 46 inside, 10 outside: the inner one stays.
    let (inside, outside) = (46 << 2, 10 << 2);
    for (from, to, mark) in [
        (0, None, 3),
        (1, Some(3), 3),
        (2, Some(3), 3),
        (3, Some(3), 3),
        (2, Some(1), 1),
        (0, Some(0), 1),
        (0, Some(0), 2),
        (1, Some(1), 2),
        (3, Some(3), 0),
    ] {
        let packet = with_class(inside | from);
        let wrapped = encapsulated(director(outer), backend(outer), outside | mark, &packet);
        let expect = match to {
            None => Drops(DropReason::Congested),
            Some(to) => Becomes(with_class(inside | to)),
        };
        add(&format!("ECN {from}, marked {mark}"), wrapped, expect);
    }
}

fn outer_v4(packet: &[u8], wrapped: &[u8], add: &mut impl FnMut(&str, Vec<u8>, Expect)) {
    let mut options = wrapped[..20].to_vec();
    options[0] = 0x47;
    options[3] += 8;
    options.extend([1; 8]);
    options.extend_from_slice(&wrapped[20..]);
    add("outer options", options, Becomes(packet.to_vec()));
    let more = changed(wrapped.to_vec(), 6, 0x20);
    add("first fragment", more, Drops(DropReason::Fragment));
    let later = changed(wrapped.to_vec(), 7, 5);
    add("later fragment", later, Drops(DropReason::Fragment));
    let short = changed(wrapped.to_vec(), 3, 19);
    add(
        "outer length below its header's",
        short,
        Drops(DropReason::Malformed),
    );
    let sctp = changed(wrapped.to_vec(), 9, 132);
    add("another protocol", sctp, Passes);
    let broken = changed(wrapped.to_vec(), 0, 0x44);
    add("outer header length 16", broken, Passes);
}

fn outer_v6(packet: &[u8], wrapped: &[u8], add: &mut impl FnMut(&str, Vec<u8>, Expect)) {
    // RFC 2473: tunnel encapsulation limit 4, as Linux's own tunnels have it.
    let limit = [0, 0, 4, 1, 4, 1, 1, 0];
    let with = |number, header: &[u8]| with_extension(wrapped, number, header);
    add(
        "encapsulation limit",
        with(60, &limit),
        Becomes(packet.to_vec()),
    );
    add(
        "atomic fragment",
        with(44, &[0; 8]),
        Becomes(packet.to_vec()),
    );
    let first = with(44, &[0, 0, 0, 1, 0, 0, 0, 0]);
    add("first fragment", first, Drops(DropReason::Fragment));
    let later = with(44, &[0, 0, 5, 0, 0, 0, 0, 0]);
    add("later fragment", later, Drops(DropReason::Fragment));
    let mut many = wrapped.to_vec();
    for _ in 0..7 {
        many = with_extension(&many, 60, &limit);
    }
    add(
        "more extension headers than we follow",
        many,
        Drops(DropReason::Malformed),
    );
    let cut = with(60, &limit)[..42].to_vec();
    add(
        "extension header cut short",
        cut,
        Drops(DropReason::Truncated),
    );
    let sctp = changed(wrapped.to_vec(), 6, 132);
    add("another protocol", sctp, Passes);
    let broken = changed(wrapped.to_vec(), 0, 0x70);
    add("outer version 7", broken, Passes);
}

fn expected(frame_: &[u8], expect: &Expect) -> Outcome {
    let mut outcome = Outcome {
        verdict: Verdict::Pass,
        bytes: frame_.to_vec(),
        counted: BTreeMap::new(),
        dropped: BTreeMap::new(),
    };
    match expect {
        Passes => {}
        Drops(reason) => {
            outcome.verdict = Verdict::Drop(*reason);
            outcome.dropped.insert(*reason, 1);
        }
        Becomes(packet) => {
            outcome.bytes = frame(packet);
            outcome.counted.insert(Counter::Decapsulated, 1);
        }
    }
    outcome
}

#[test]
fn each_packet_does_what_it_should() {
    let world = World::new("bp-golden");
    for (name, frame, expect) in cases() {
        let kernel = world.arrives_in_kernel(&frame);
        let expected = expected(&frame, &expect);
        // What the kernel hands out of a dropped packet does not matter.
        if let (Drops(_), true) = (&expect, kernel.verdict == expected.verdict) {
            assert_eq!(kernel.dropped, expected.dropped, "{name}");
        } else {
            assert_eq!(kernel, expected, "{name}");
        }
        assert_eq!(
            world.arrives_on_host(&frame).verdict,
            expected.verdict,
            "{name}"
        );
    }
}

/// Where the kernel's own device takes packets out, nothing is changed, and
/// nothing encapsulated gets through that our own program would not let in.
#[test]
fn as_a_filter_it_lets_in_what_it_would_take_out() {
    let mut world = World::new("bp-filter");
    world.set_role(role::FILTER);
    for (name, frame, expect) in cases() {
        let kernel = world.arrives_in_kernel(&frame);
        let verdict = match expect {
            Becomes(_) => Verdict::Pass,
            Drops(reason) => Verdict::Drop(reason),
            Passes if name.contains("stranger") => Verdict::Drop(DropReason::Stranger),
            Passes => Verdict::Pass,
        };
        assert_eq!(kernel.verdict, verdict, "{name}");
        assert_eq!(kernel.bytes, frame, "{name}");
        let counted = matches!(expect, Becomes(_));
        let count = kernel.counted.get(&Counter::Decapsulated).copied();
        assert_eq!(count.is_some(), counted, "{name}");
    }
}

/// A stranger gets through a filter in no disguise.
#[test]
fn a_filter_lets_no_disguised_stranger_in() {
    let mut world = World::new("bp-disguise");
    world.set_role(role::FILTER);
    let packet = udp(client(4), backend(4), 20);
    let v4 = encapsulated(stranger(4), backend(4), 0, &packet);
    let v6 = encapsulated(stranger(6), backend(6), 0, &packet);
    let options = [0, 0, 1, 4, 0, 0, 0, 0];
    for disguised in [
        changed(v4.clone(), 6, 0x20),
        changed(v4.clone(), 7, 5),
        with_extension(&v6, 60, &options),
        with_extension(
            &with_extension(&v6, 60, &options),
            44,
            &[0, 0, 0, 1, 0, 0, 0, 0],
        ),
        with_extension(&v6, 0, &options),
    ] {
        let outcome = world.arrives_in_kernel(&frame(&disguised));
        assert_eq!(
            outcome.verdict,
            Verdict::Drop(DropReason::Stranger),
            "{disguised:02x?}"
        );
    }
}
