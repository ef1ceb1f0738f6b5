//! Packets in, verdict and bytes out. Each case runs on a fresh pair of
//! directors' counters, for IPv4 and IPv6 where there is no version in it, and
//! must do exactly what it says: no other byte, no other counter.

use lb_common::counters::{BackendCounters, DropReason};
use lb_ebpf::verdict::Verdict;

use super::packet::{Packet, sctp, tcp, udp, with_extension, with_quoted_extension};
use super::world::{DIRECTOR_MAC, SECOND_MAC, VIRTUAL_MAC, Vip, World, backend_mac};

/// What should become of a packet.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// Untouched, nothing counted.
    Passes,
    /// Untouched, one drop of this reason counted.
    Drops(DropReason),
    /// To this backend by the interface that it came in by; not a new flow.
    Reaches(u8),
    /// The same, and counted as a new flow.
    Begins(u8),
    /// To this backend by the second interface.
    Crosses(u8),
}

use Expect::{Begins, Crosses, Drops, Passes, Reaches};

/// A case: what it is, the frame, and what should become of it.
pub type Case = (&'static str, Vec<u8>, Expect);

/// The cases that are the same in both IP versions.
pub fn common(version: u8) -> Vec<Case> {
    let plain = Vip::Plain.address(version);
    let none = Vip::None.address(version);
    let to = |vip: Vip| tcp(vip.address(version), 80);
    let other_mac = [2, 0, 0, 0, 0xbe, 1];
    let (unreachable, time_exceeded) = if version == 4 { (3, 11) } else { (1, 3) };
    let (too_big, too_big_code) = if version == 4 { (3, 4) } else { (2, 0) };
    let echo_request = if version == 4 { 8 } else { 128 };
    vec![
        ("TCP in a connection", tcp(plain, 80).build(), Reaches(1)),
        (
            "TCP without payload",
            tcp(plain, 80).payload(0).build(),
            Reaches(1),
        ),
        (
            "TCP of full size",
            tcp(plain, 80).payload(1400).build(),
            Reaches(1),
        ),
        ("TCP SYN", tcp(plain, 80).syn().build(), Begins(1)),
        (
            "TCP SYN and ACK begins nothing",
            tcp(plain, 80).syn_ack().build(),
            Reaches(1),
        ),
        ("UDP", udp(plain, 53).build(), Reaches(2)),
        (
            "UDP without payload",
            udp(plain, 53).payload(0).build(),
            Reaches(2),
        ),
        ("SCTP", sctp(plain, 2905, false).build(), Reaches(1)),
        (
            "the INIT of an SCTP association",
            sctp(plain, 2905, true).build(),
            Begins(1),
        ),
        (
            "an error about an SCTP packet",
            sctp(plain, 2905, false).icmp_error(unreachable, 1),
            Reaches(1),
        ),
        (
            "SCTP to another port",
            sctp(plain, 2906, false).build(),
            Passes,
        ),
        ("TCP to UDP's port", tcp(plain, 53).build(), Passes),
        ("UDP to TCP's port", udp(plain, 80).build(), Passes),
        ("another port of the VIP", tcp(plain, 22).build(), Passes),
        ("another address", tcp(none, 80).build(), Passes),
        (
            "any port of a service on port 0",
            tcp(Vip::AnyPort.address(version), 4711).build(),
            Reaches(3),
        ),
        (
            "UDP to a TCP service on port 0",
            udp(Vip::AnyPort.address(version), 4711).build(),
            Passes,
        ),
        (
            "a backend behind the other interface",
            to(Vip::Behind).build(),
            Crosses(4),
        ),
        (
            "a service without backends",
            to(Vip::Empty).build(),
            Drops(DropReason::NoBackend),
        ),
        (
            "a backend that just died",
            to(Vip::Dead).build(),
            Drops(DropReason::BackendDead),
        ),
        (
            "to a MAC that VRRP made",
            tcp(plain, 80).addressed_to(VIRTUAL_MAC).build(),
            Reaches(1),
        ),
        (
            "to a backend's MAC, flooded by the switch",
            tcp(plain, 80).addressed_to(other_mac).build(),
            Passes,
        ),
        (
            "to our MAC on another interface",
            tcp(plain, 80).addressed_to(SECOND_MAC).build(),
            Passes,
        ),
        (
            "unreachable",
            tcp(plain, 80).icmp_error(unreachable, 1),
            Reaches(1),
        ),
        (
            "time exceeded",
            tcp(plain, 80).icmp_error(time_exceeded, 0),
            Reaches(1),
        ),
        (
            "packet too big",
            tcp(plain, 80).icmp_error(too_big, too_big_code),
            Reaches(1),
        ),
        (
            "packet too big about UDP",
            udp(plain, 53).icmp_error(too_big, too_big_code),
            Reaches(2),
        ),
        (
            "an error about the host's own flow",
            tcp(plain, 22).icmp_error(too_big, too_big_code),
            Passes,
        ),
        ("ping", tcp(plain, 80).icmp_error(echo_request, 0), Passes),
    ]
}

/// Cases about IPv4 headers.
pub fn v4() -> Vec<Case> {
    let plain = Vip::Plain.address(4);
    let web = || tcp(plain, 80);
    let elsewhere = || tcp(Vip::None.address(4), 80);
    let record_route = [7, 7, 4, 0, 0, 0, 0, 0];
    vec![
        (
            "with options",
            web().ip_options(&record_route).build(),
            Reaches(1),
        ),
        (
            "with as many options as fit",
            web().ip_options(&[1; 40]).build(),
            Reaches(1),
        ),
        (
            "with options, not for a service",
            elsewhere().ip_options(&[1; 4]).build(),
            Passes,
        ),
        (
            "first fragment",
            web().fragment(0, true).build(),
            Reaches(1),
        ),
        (
            "later fragment of the same packet",
            web().fragment(185, false).build(),
            Reaches(1),
        ),
        (
            "fragment not for a VIP",
            elsewhere().fragment(185, false).build(),
            Passes,
        ),
        ("version 5", changed(web(), 14, 0x55), Passes),
        ("header length 16", changed(web(), 14, 0x44), Passes),
        (
            "header length beyond the frame",
            web().build()[..34].to_vec(),
            Drops(DropReason::Truncated),
        ),
        (
            "ports cut off",
            web().build()[..36].to_vec(),
            Drops(DropReason::Truncated),
        ),
        (
            "ports cut off, not for a VIP",
            elsewhere().build()[..36].to_vec(),
            Passes,
        ),
        (
            "flags cut off",
            web().build()[..44].to_vec(),
            Drops(DropReason::Truncated),
        ),
        (
            "payload cut off",
            cut(web(), 1),
            Drops(DropReason::Truncated),
        ),
        (
            "payload cut off, not for a VIP",
            cut(elsewhere(), 1),
            Passes,
        ),
        (
            "total length short of the TCP header",
            changed(web(), 17, 39),
            Drops(DropReason::Malformed),
        ),
        (
            "padded to Ethernet's least size",
            padded(web().payload(0), 60),
            Reaches(1),
        ),
        ("SCTP", changed(web(), 23, 132), Passes),
    ]
}

/// Cases about IPv6 headers.
pub fn v6() -> Vec<Case> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let plain = Vip::Plain.address(6);
    let web = || tcp(plain, 80).build();
    let elsewhere = tcp(Vip::None.address(6), 80).build();
    let options = [0, 0, 1, 4, 0, 0, 0, 0];
    let long_options = [[0, 2].as_slice(), &[0; 22]].concat();
    let with = |number, header: &[u8]| with_extension(&web(), number, header);
    let [six, seven] = [6, 7].map(|count| {
        (0..count).fold(web(), |frame, _| {
            with_extension(&frame, DESTINATION, &options)
        })
    });
    let too_big = |packet: Packet, fragment: [u8; 8]| {
        with_quoted_extension(&packet.icmp_error(2, 0), FRAGMENT, &fragment)
    };
    vec![
        ("hop-by-hop options", with(HOP_BY_HOP, &options), Reaches(1)),
        (
            "long destination options",
            with(DESTINATION, &long_options),
            Reaches(1),
        ),
        (
            "routing header, arrived",
            with(ROUTING, &options_with_segments(0)),
            Reaches(1),
        ),
        (
            "routing header, under way",
            with(ROUTING, &options_with_segments(1)),
            Passes,
        ),
        ("atomic fragment", with(FRAGMENT, &[0; 8]), Reaches(1)),
        (
            "first fragment",
            with(FRAGMENT, &[0, 0, 0, 1, 0, 0, 0, 0]),
            Reaches(1),
        ),
        (
            "later fragment of the same packet",
            with(FRAGMENT, &[0, 0, 5, 0, 0, 0, 0, 0]),
            Reaches(1),
        ),
        (
            "later fragment of another",
            with(FRAGMENT, &[0, 0, 5, 0, 0, 0, 0, 1]),
            Drops(DropReason::Fragment),
        ),
        (
            "fragment not for a VIP",
            with_extension(&elsewhere, FRAGMENT, &[0, 0, 0, 1, 0, 0, 0, 0]),
            Passes,
        ),
        ("as many extension headers as we follow", six, Reaches(1)),
        (
            "packet too big about a backend's first fragment",
            too_big(udp(plain, 53), [0, 0, 0, 1, 0, 0, 0, 7]),
            Reaches(2),
        ),
        (
            "about another fragment, which says no ports",
            too_big(udp(plain, 53), [0, 0, 5, 0, 0, 0, 0, 7]),
            Passes,
        ),
        (
            "more extension headers than we follow",
            seven,
            Drops(DropReason::Malformed),
        ),
        (
            "extension header cut off",
            with(HOP_BY_HOP, &options)[..56].to_vec(),
            Drops(DropReason::Truncated),
        ),
        (
            "ports cut off",
            web()[..56].to_vec(),
            Drops(DropReason::Truncated),
        ),
        (
            "flags cut off",
            web()[..64].to_vec(),
            Drops(DropReason::Truncated),
        ),
        (
            "payload cut off",
            web()[..web().len() - 1].to_vec(),
            Drops(DropReason::Truncated),
        ),
        (
            "payload length short of the TCP header",
            {
                let mut f = web();
                f[18..20].copy_from_slice(&[0, 19]);
                f
            },
            Drops(DropReason::Malformed),
        ),
        (
            "version 7",
            {
                let mut f = web();
                f[14] = 0x70;
                f
            },
            Passes,
        ),
        (
            "no next header",
            {
                let mut f = web();
                f[20] = 59;
                f
            },
            Passes,
        ),
    ]
}

/// Cases about Ethernet.
pub fn ethernet() -> Vec<Case> {
    let web = tcp(Vip::Plain.address(4), 80).build();
    let mut arp = web.clone();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let mut tagged = web[..12].to_vec();
    tagged.extend([0x81, 0x00, 0x00, 0x64]);
    tagged.extend(&web[12..]);
    vec![
        ("ARP", arp, Passes),
        ("an Ethernet header alone", web[..14].to_vec(), Passes),
        ("802.1Q, which is the host's for now", tagged, Passes),
    ]
}

fn changed(packet: Packet, offset: usize, value: u8) -> Vec<u8> {
    let mut frame = packet.build();
    frame[offset] = value;
    frame
}

fn cut(packet: Packet, bytes: usize) -> Vec<u8> {
    let mut frame = packet.build();
    frame.truncate(frame.len() - bytes);
    frame
}

fn padded(packet: Packet, length: usize) -> Vec<u8> {
    let mut frame = packet.build();
    frame.resize(length, 0);
    frame
}

const fn options_with_segments(left: u8) -> [u8; 8] {
    [0, 0, 0, left, 0, 0, 0, 0]
}

/// Length of the IP packet, as counted.
fn ip_length(frame: &[u8]) -> u64 {
    match frame[12..14] {
        [0x08, 0x00] => u64::from(u16::from_be_bytes([frame[16], frame[17]])),
        _ => u64::from(u16::from_be_bytes([frame[18], frame[19]])) + 40,
    }
}

fn check(world: &World, (name, frame, expect): &Case) {
    let outcome = world.in_kernel(frame);
    let mut bytes = frame.clone();
    let mut counted = Default::default();
    let mut dropped = Default::default();
    let mut forwarded = |n: u8, source: [u8; 6], flows: u64| {
        bytes[0..6].copy_from_slice(&backend_mac(n));
        bytes[6..12].copy_from_slice(&source);
        let counters = BackendCounters {
            packets: 1,
            bytes: ip_length(frame),
            flows,
            ..BackendCounters::default()
        };
        counted = [(n, counters)].into();
    };
    let verdict = match *expect {
        Passes => Verdict::Pass,
        Drops(reason) => {
            dropped = [(reason, 1)].into();
            Verdict::Drop(reason)
        }
        Reaches(n) => {
            forwarded(n, DIRECTOR_MAC, 0);
            Verdict::Transmit
        }
        Begins(n) => {
            forwarded(n, DIRECTOR_MAC, 1);
            Verdict::Transmit
        }
        Crosses(n) => {
            forwarded(n, SECOND_MAC, 0);
            Verdict::Redirect(world.interfaces[1])
        }
    };
    assert_eq!(outcome.verdict, verdict, "{name}");
    assert_eq!(outcome.bytes, bytes, "{name}");
    assert_eq!(outcome.counted, counted, "{name}");
    assert_eq!(outcome.dropped, dropped, "{name}");
    assert!(outcome.recorded.is_empty(), "{name}: {outcome:?}");
}

#[test]
fn every_case_does_what_it_says() {
    World::with("golden", |world| {
        let cases = [common(4), v4(), common(6), v6(), ethernet()].concat();
        for case in &cases {
            check(world, case);
        }
    });
}

#[test]
fn a_moving_slot_sends_each_flow_where_it_belongs_and_remembers() {
    const NEW: u8 = 7;
    const OLD: u8 = 6;
    World::with("golden-moving", |world| {
        for version in [4, 6] {
            let vip = Vip::Moving.address(version);
            let web = |port| tcp(vip, 80).sent_from(port);
            let dns = |port| udp(vip, 53).sent_from(port);
            let icmp = |packet: Packet| packet.icmp_error(if version == 4 { 3 } else { 2 }, 0);
            // Name, frame, backend, counted as a new flow, flows recorded after.
            let steps = [
                (
                    "an error about an old flow records nothing",
                    icmp(web(1)),
                    OLD,
                    0,
                    0,
                ),
                ("an old flow", web(1).build(), OLD, 0, 1),
                ("the old flow again", web(1).build(), OLD, 0, 1),
                ("a new flow", web(2).syn().build(), NEW, 1, 2),
                ("its SYN again", web(2).syn().build(), NEW, 1, 2),
                ("the new flow's next segment", web(2).build(), NEW, 0, 2),
                ("an error about the new flow", icmp(web(2)), NEW, 0, 2),
                (
                    "an error about a UDP flow begins none",
                    icmp(dns(3)),
                    OLD,
                    0,
                    2,
                ),
                ("UDP, which may be old", dns(3).build(), OLD, 1, 3),
                ("the same again", dns(3).build(), OLD, 0, 3),
                (
                    "the old flow's port opens anew",
                    web(1).syn().build(),
                    NEW,
                    1,
                    3,
                ),
                ("and goes on", web(1).build(), NEW, 0, 3),
                (
                    "to another MAC: not ours to remember",
                    web(9).addressed_to([2, 0, 0, 0, 0xbe, 1]).build(),
                    0,
                    0,
                    3,
                ),
            ];
            for (name, frame, backend, flows, recorded) in steps {
                let outcome = world.in_kernel(&frame);
                let of_this_vip = outcome.recorded.iter().filter(|(v, ..)| *v == vip);
                assert_eq!(of_this_vip.count(), recorded, "IPv{version}, {name}");
                if backend == 0 {
                    assert_eq!(outcome.verdict, Verdict::Pass, "IPv{version}, {name}");
                    continue;
                }
                assert_eq!(outcome.verdict, Verdict::Transmit, "IPv{version}, {name}");
                assert_eq!(
                    outcome.bytes[0..6],
                    backend_mac(backend),
                    "IPv{version}, {name}"
                );
                assert_eq!(
                    outcome.counted[&backend].flows, flows,
                    "IPv{version}, {name}"
                );
            }
        }
    });
}

#[test]
fn flows_spread_over_the_backends_and_stay_where_they_are() {
    World::with("golden-spread", |world| {
        for version in [4, 6] {
            let vip = Vip::Spread.address(version);
            let mut counts = [0_u32; 3];
            for port in 1..=900 {
                let syn = world.in_kernel(&tcp(vip, 80).sent_from(port).syn().build());
                let data = world.in_kernel(&tcp(vip, 80).sent_from(port).build());
                let error = tcp(vip, 80)
                    .sent_from(port)
                    .icmp_error(if version == 4 { 3 } else { 2 }, 0);
                let error = world.in_kernel(&error);
                assert_eq!(syn.bytes[0..6], data.bytes[0..6], "port {port}");
                assert_eq!(syn.bytes[0..6], error.bytes[0..6], "port {port}");
                counts[usize::from(syn.bytes[5] - 8)] += 1;
            }
            // 300 each; five standard deviations of a fair choice are 71.
            assert!(counts.iter().all(|n| n.abs_diff(300) < 71), "{counts:?}");
        }
    });
}
