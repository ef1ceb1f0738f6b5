//! Pings of a VIP, and other protocols: every packet through the kernel and
//! through the host build, which must agree.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::counters::{BackendCounters, DropReason};
use lb_ebpf::verdict::Verdict;

use super::fragments::cut;
use super::nat::{read, run};
use super::packet::{CLIENT_MAC, Packet, client, other, ping, tcp, with_extension};
use super::world::{DIRECTOR_MAC, MTU, Outcome, SECOND_MAC, VIRTUAL_MAC, Vip, World, backend_mac};

/// Those of each mode whose pings the host answers.
const HOST: [Vip; 3] = [Vip::Plain, Vip::TunSpread, Vip::Gateway];

/// Those of each mode whose pings the packet path answers.
const ANSWER: [Vip; 3] = [Vip::AnyPort, Vip::TunV6, Vip::Full];

/// Those whose pings a backend answers, in DR and TUN.
const FORWARD: [Vip; 2] = [Vip::Spread, Vip::TunV4];

/// GRE, RFC 2784.
const GRE: u8 = 47;

/// IPv6's destination options.
const DESTINATION: u8 = 60;

/// Record route, and IPv6's destination options.
const OPTIONS: [u8; 8] = [7, 7, 4, 0, 0, 0, 0, 0];
const EXTENSION: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

/// Packets for the other suites: none of them has an expectation of its own.
pub fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for version in [4, 6] {
        for vip in [&HOST[..], &ANSWER, &FORWARD, &[Vip::Behind, Vip::Moving]].concat() {
            let vip = vip.address(version);
            frames.push(ping(vip, 1).build());
            frames.push(ping(vip, 2).payload(0).build());
            frames.push(with_options(ping(vip, 3), version));
            frames.extend(cut(&ping(vip, 4).payload(64).build(), 32, 32, 77));
        }
        frames.push(too_big(Vip::TunV4, version).build());
        for vip in [Vip::Plain, Vip::Sharing] {
            let gre = other(vip.address(version), GRE).payload(64).build();
            frames.extend(cut(&gre, 32, 32, 78));
            frames.push(gre);
        }
    }
    frames
}

fn with_options(packet: Packet, version: u8) -> Vec<u8> {
    if version == 4 {
        packet.ip_options(&OPTIONS).build()
    } else {
        with_extension(&packet.build(), DESTINATION, &EXTENSION)
    }
}

/// One byte larger than what the tunnel to an IPv4 backend carries.
fn too_big(vip: Vip, version: u8) -> Packet {
    let outer = 20;
    let headers = layer4(version) - 14 + 8;
    ping(vip.address(version), 1).payload(usize::from(MTU) - outer - headers + 1)
}

/// Where ICMP begins.
const fn layer4(version: u8) -> usize {
    if version == 4 { 34 } else { 54 }
}

fn each(name: &str, test: impl Fn(&World, u8) + Send + Sync) {
    World::with(name, |world| {
        [4, 6].into_iter().for_each(|v| test(world, v))
    });
}

/// It was not touched, and nothing was counted.
fn passes(world: &World, frame: &[u8]) {
    ensure_passed(&run(world, frame), frame);
}

fn ensure_passed(outcome: &Outcome, frame: &[u8]) {
    assert_eq!(outcome.verdict, Verdict::Pass, "{frame:02x?}");
    assert_eq!(outcome.bytes, frame);
    ensure_only_counted(outcome, [].into());
}

/// It was dropped under this reason and no other.
fn drops(world: &World, frame: &[u8], reason: DropReason) {
    let outcome = run(world, frame);
    assert_eq!(outcome.verdict, Verdict::Drop(reason), "{frame:02x?}");
    assert_eq!(outcome.dropped, [(reason, 1)].into());
    assert!(outcome.counted.is_empty(), "{outcome:?}");
}

/// These counters of backends moved, nothing else, and nothing was remembered.
fn ensure_only_counted(outcome: &Outcome, counted: BTreeMap<u8, BackendCounters>) {
    assert_eq!(outcome.counted, counted, "{outcome:?}");
    assert!(outcome.dropped.is_empty(), "{outcome:?}");
    assert!(outcome.recorded.is_empty(), "{outcome:?}");
    assert!(outcome.translated.is_empty(), "{outcome:?}");
}

/// The packet path's own answer to a ping of `vip`, from the MAC that was
/// asked.
fn is_answered(world: &World, vip: Vip, version: u8, packet: &Packet, mac: [u8; 6]) {
    let frame = packet.build();
    let outcome = run(world, &frame);
    assert_eq!(outcome.verdict, Verdict::Transmit, "{frame:02x?}");
    ensure_only_counted(&outcome, [].into());
    // With its checksums verified.
    let seen = read(&outcome.bytes);
    let address = vip.address(version);
    assert_eq!(seen.source.0, address);
    assert_eq!(seen.destination.0, client(address));
    assert_eq!(seen.macs, *[CLIENT_MAC, mac].concat());
    assert_eq!(seen.ttl, 64);
    assert_eq!(seen.icmp, Some([if version == 4 { 0 } else { 129 }, 0]));
    // From the identifier on it is what was sent.
    let rest = layer4(version) + 4;
    assert_eq!(outcome.bytes[rest..], frame[rest..]);
    if version == 4 {
        assert_eq!(outcome.bytes[20..22], [0, 0], "no fragment");
    }
}

/// One packet of so many bytes, from the IP header on, and no flow.
fn one_packet(n: u8, bytes: usize) -> BTreeMap<u8, BackendCounters> {
    let counters = BackendCounters {
        packets: 1,
        bytes: bytes as u64,
        ..BackendCounters::default()
    };
    [(n, counters)].into()
}

/// The backend that a ping is sent to as in DR.
fn is_forwarded(world: &World, frame: &[u8], verdict: Verdict, source: [u8; 6]) -> u8 {
    let outcome = run(world, frame);
    assert_eq!(outcome.verdict, verdict, "{frame:02x?}");
    let n = outcome.bytes[5];
    assert_eq!(outcome.bytes[..12], *[backend_mac(n), source].concat());
    assert_eq!(outcome.bytes[12..], frame[12..]);
    ensure_only_counted(&outcome, one_packet(n, frame.len() - 14));
    n
}

#[test]
fn the_host_answers_unless_it_is_told_otherwise() {
    each("ping-host", |world, version| {
        for vip in [&HOST[..], &[Vip::None]].concat() {
            passes(world, &ping(vip.address(version), 1).build());
        }
    });
}

#[test]
fn the_packet_path_answers_in_every_mode() {
    each("ping-answer", |world, version| {
        for vip in ANSWER {
            let ping = || ping(vip.address(version), 0x1234);
            for packet in [
                ping(),
                ping().payload(0),
                ping().payload(1),
                ping().payload(1400),
                ping().ttl(1),
                ping().ttl(255),
            ] {
                is_answered(world, vip, version, &packet, DIRECTOR_MAC);
            }
            let to_vrrp = ping().addressed_to(VIRTUAL_MAC);
            is_answered(world, vip, version, &to_vrrp, VIRTUAL_MAC);
        }
    });
}

#[test]
fn an_answer_has_the_type_of_service_and_the_identification_of_the_ping() {
    World::with("ping-fields", |world| {
        let vip = Vip::AnyPort.address(4);
        let mut frame = ping(vip, 1).build();
        let (mut header, _) = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap();
        header.identification = 0xbeef;
        header.dscp = etherparse::IpDscp::try_new(46).unwrap();
        header.header_checksum = header.calc_header_checksum();
        frame[14..34].copy_from_slice(&header.to_bytes());
        let outcome = run(world, &frame);
        let (answer, _) = etherparse::Ipv4Header::from_slice(&outcome.bytes[14..]).unwrap();
        assert_eq!(answer.calc_header_checksum(), answer.header_checksum);
        assert_eq!(answer.identification, 0xbeef);
        assert_eq!(answer.dscp.value(), 46);
    });
}

#[test]
fn all_pings_of_one_identifier_meet_one_backend() {
    each("ping-forward", |world, version| {
        let vip = Vip::Spread.address(version);
        let send =
            |packet: Packet| is_forwarded(world, &packet.build(), Verdict::Transmit, DIRECTOR_MAC);
        let mut met = BTreeSet::new();
        for identifier in 1..=40 {
            let n = send(ping(vip, identifier));
            assert_eq!(send(ping(vip, identifier).payload(1000)), n);
            met.insert(n);
        }
        assert_eq!(met, [8, 9, 10].into());
        let behind = ping(Vip::Behind.address(version), 1).build();
        let second = Verdict::Redirect(world.interfaces[1]);
        assert_eq!(is_forwarded(world, &behind, second, SECOND_MAC), 4);
    });
}

#[test]
fn a_tunnel_carries_them_too_and_says_what_does_not_fit() {
    each("ping-tunnel", |world, version| {
        const N: u8 = 11;
        let outer = 20;
        let frame = ping(Vip::TunV4.address(version), 1).build();
        let outcome = run(world, &frame);
        assert_eq!(outcome.verdict, Verdict::Transmit);
        assert_eq!(outcome.bytes[..6], backend_mac(N));
        assert_eq!(outcome.bytes[14 + outer..], frame[14..]);
        ensure_only_counted(&outcome, one_packet(N, frame.len() - 14));

        let frame = too_big(Vip::TunV4, version).build();
        let outcome = run(world, &frame);
        assert_eq!(outcome.verdict, Verdict::Transmit);
        assert_eq!(outcome.dropped, [(DropReason::TooBig, 1)].into());
        assert!(outcome.counted.is_empty());
        let told = read(&outcome.bytes);
        assert_eq!(told.source.0, Vip::TunV4.address(version));
        assert_eq!(told.icmp, Some(if version == 4 { [3, 4] } else { [2, 0] }));
    });
}

#[test]
fn of_a_slot_that_is_moving_the_new_backend_answers_and_nothing_is_recorded() {
    each("ping-moving", |world, version| {
        let frame = ping(Vip::Moving.address(version), 1).build();
        let n = is_forwarded(world, &frame, Verdict::Transmit, DIRECTOR_MAC);
        assert_eq!(n, 7);
    });
}

#[test]
fn without_a_backend_they_are_dropped_as_everything_is() {
    each("ping-nobody", |world, version| {
        for (vip, reason) in [
            (Vip::Empty, DropReason::NoBackend),
            (Vip::Dead, DropReason::BackendDead),
        ] {
            drops(world, &ping(vip.address(version), 1).build(), reason);
        }
    });
}

#[test]
fn what_is_no_plain_ping_is_the_hosts() {
    each("ping-others", |world, version| {
        for vip in [&ANSWER[..], &FORWARD].concat() {
            let vip = vip.address(version);
            passes(world, &with_options(ping(vip, 1), version));
            for fragment in cut(&ping(vip, 1).payload(64).build(), 32, 32, 1) {
                passes(world, &fragment);
            }
            // A reply, another code, and in IPv4 "timestamp"; in IPv6
            // neighbour solicitation and advertisement.
            let kinds = match version {
                4 => [[0, 0], [8, 1], [13, 0], [14, 0]],
                _ => [[129, 0], [128, 1], [135, 0], [136, 0]],
            };
            for [kind, code] in kinds {
                passes(world, &tcp(vip, 80).icmp_error(kind, code));
            }
            // More than the kernel puts into the first buffer of a test run.
            let jumbo = ping(vip, 1).payload(8000).build();
            ensure_passed(&world.in_kernel(&jumbo), &jumbo);
        }
    });
}

#[test]
fn only_frames_for_us_are_answered_or_forwarded() {
    each("ping-macs", |world, version| {
        for vip in [&ANSWER[..], &FORWARD, &[Vip::Empty]].concat() {
            for mac in [backend_mac(1), SECOND_MAC] {
                let ping = ping(vip.address(version), 1);
                passes(world, &ping.addressed_to(mac).build());
            }
        }
    });
}

/// As an attacker sends it, so that many get the answer.
#[test]
fn a_ping_from_nobody_or_from_many_is_not_answered() {
    each("ping-sources", |world, version| {
        let sources = match version {
            4 => ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"],
            _ => ["::", "::1", "ff02::1", "ff0e::1"],
        };
        for vip in ANSWER {
            let mut from_group = ping(vip.address(version), 1).build();
            from_group[6] |= 1;
            passes(world, &from_group);
        }
        for source in sources.map(|source| source.parse().unwrap()) {
            for vip in ANSWER {
                passes(world, &ping(vip.address(version), 1).from(source).build());
            }
        }
    });
}

#[test]
fn a_ping_that_is_longer_than_its_frame_is_dropped() {
    each("ping-short", |world, version| {
        for vip in [&ANSWER[..], &FORWARD].concat() {
            let frame = ping(vip.address(version), 1).build();
            let short = &frame[..frame.len() - 1];
            drops(world, short, DropReason::Truncated);
            // Without all of its header it is not known for what it is.
            passes(world, &frame[..layer4(version) + 7]);
        }
    });
}

#[test]
fn other_protocols_are_the_hosts_or_nobodys() {
    each("other-protocols", |world, version| {
        // GRE, ESP, IPv6's "no next header", and what is nobody's.
        for protocol in [GRE, 50, 59, 253] {
            let to = |vip: Vip| other(vip.address(version), protocol).payload(64).build();
            for vip in [Vip::Plain, Vip::Gateway, Vip::None] {
                passes(world, &to(vip));
                for fragment in cut(&to(vip), 32, 32, 1) {
                    passes(world, &fragment);
                }
            }
            let strict = to(Vip::Sharing);
            drops(world, &strict, DropReason::OtherProtocol);
            for fragment in cut(&strict, 32, 32, 1) {
                drops(world, &fragment, DropReason::OtherProtocol);
            }
        }
    });
}

#[test]
fn icmp_is_no_other_protocol() {
    each("other-icmp", |world, version| {
        let vip = Vip::Sharing.address(version);
        let frame = ping(vip, 1).payload(64).build();
        passes(world, &frame);
        for fragment in cut(&frame, 32, 32, 1) {
            passes(world, &fragment);
        }
        let solicitation = if version == 4 { 10 } else { 135 };
        passes(world, &tcp(vip, 80).icmp_error(solicitation, 0));
    });
}

/// IPv6: what the fragment header of the second names is an extension header of
/// the first. It could be TCP's.
#[test]
fn a_later_fragment_that_does_not_say_its_protocol_is_a_fragment() {
    World::with("other-unsaid", |world| {
        let frame = with_options(other(Vip::Sharing.address(6), GRE).payload(64), 6);
        let [first, later] = cut(&frame, 32, 32, 1);
        drops(world, &first, DropReason::OtherProtocol);
        drops(world, &later, DropReason::Fragment);
    });
}
