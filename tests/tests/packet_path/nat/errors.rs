//! ICMP errors: those that are translated, and those that the director sends.

use lb_common::counters::DropReason;
use lb_ebpf::verdict::Verdict;

use super::super::packet::{CLIENT_PORT, client, tcp, udp, with_quoted_extension};
use super::super::world::{
    DIRECTOR_MAC, MTU, NARROW, Vip, World, backend_address, client_address, own_address,
    pool_address,
};
use super::read::{quoted, quoted_frame};
use super::{DNS, Read, WEB, each_version, read, reply, run, sent};

/// Type and code of "time exceeded" and of "too big".
const fn kinds(version: u8) -> [[u8; 2]; 2] {
    if version == 4 {
        [[11, 0], [3, 4]]
    } else {
        [[3, 0], [2, 0]]
    }
}

#[test]
fn errors_about_replies_reach_the_backend_that_sent_them() {
    each_version("nat-error-there", |world, version| {
        for (vip, n) in [(Vip::Gateway, 14), (Vip::Full, 15)] {
            let vip_address = vip.address(version);
            let rip = backend_address(version, n);
            let (forwarded, _) = sent(world, &tcp(vip_address, WEB.0).syn().build());
            let [[kind, code], _] = kinds(version);
            if version == 6 {
                // About the first fragment of a reply.
                let error = tcp(vip_address, WEB.0).icmp_error(kind, code);
                let error = with_quoted_extension(&error, 44, &[0, 0, 0, 1, 0, 0, 0, 1]);
                let (seen, _) = sent(world, &error);
                assert_eq!(seen.destination.0, rip);
                assert_eq!(seen.icmp, Some([kind, code]));
            }
            for bytes in [8, 20, 28] {
                let error = tcp(vip_address, WEB.0).icmp_error_quoting(kind, code, bytes);
                let (seen, outcome) = sent(world, &error);
                assert_eq!(seen.destination.0, rip);
                assert_eq!(seen.icmp, Some([kind, code]));
                assert_eq!(quoted(&seen), ((rip, WEB.1), forwarded.source));
                // From the router itself, unless the backend might not know it.
                let router = read(&error).source;
                let from = if vip == Vip::Full {
                    (pool_address(version), 0)
                } else {
                    router
                };
                assert_eq!(seen.source, from);
                assert_eq!(outcome.counted[&n].packets, 1);
                assert_eq!(outcome.counted[&n].flows, 0);
            }
        }
    });
}

#[test]
fn errors_about_clients_packets_reach_the_client() {
    each_version("nat-error-back", |world, version| {
        let [[kind, code], too_big] = kinds(version);
        for (vip, n) in [(Vip::Gateway, 14), (Vip::Full, 15)] {
            let vip_address = vip.address(version);
            let rip = backend_address(version, n);
            let (forwarded, _) = sent(world, &tcp(vip_address, WEB.0).syn().build());
            // As if the backend were the client's: it quotes what reached it.
            let quote = tcp(forwarded.source.0, forwarded.source.1)
                .from(rip)
                .sent_from(WEB.1);
            for [kind, code] in [[kind, code], too_big] {
                for bytes in [8, 20, 28] {
                    let error = quote.icmp_error_quoting(kind, code, bytes);
                    let (seen, _) = sent(world, &error);
                    // The client knows the VIP and nothing behind it.
                    assert_eq!(seen.source.0, vip_address);
                    assert_eq!(seen.destination.0, client(vip_address));
                    let end = (client(vip_address), CLIENT_PORT);
                    assert_eq!(quoted(&seen), (end, (vip_address, WEB.0)));
                }
            }
        }
    });
}

#[test]
fn what_is_quoted_whole_has_a_checksum_that_fits() {
    each_version("nat-error-whole", |world, version| {
        for packet in [
            tcp(Vip::Gateway.address(version), WEB.0).payload(33),
            udp(Vip::Gateway.address(version), DNS.0).payload(33),
        ] {
            let [[kind, code], _] = kinds(version);
            let error = packet.icmp_error_quoting(kind, code, 1000);
            let (seen, _) = sent(world, &error);
            // Reading verifies it.
            let inner = read(&quoted_frame(&seen));
            assert_eq!(inner.source.0, backend_address(version, 14));
        }
    });
}

#[test]
fn the_end_of_the_time_to_live_is_told_by_the_directors_own_address() {
    each_version("nat-ttl", |world, version| {
        let [exceeded, _] = kinds(version);
        let vip = Vip::Gateway.address(version);
        for (packet, to) in [
            (tcp(vip, WEB.0).syn(), client(vip)),
            (tcp(vip, WEB.0).payload(1400), client(vip)),
            (udp(vip, DNS.0).payload(1), client(vip)),
            (reply(version, 14, WEB.1), backend_address(version, 14)),
        ] {
            let frame = packet.ttl(1).build();
            let seen = answered(world, &frame, DropReason::TtlExceeded);
            assert_eq!(seen.icmp, Some(exceeded));
            assert_eq!(seen.source.0, own_address(version));
            assert_eq!(seen.destination.0, to);
            assert_eq!(seen.macs[..6], frame[6..12]);
            assert_eq!(seen.macs[6..], DIRECTOR_MAC);
            let quoted = &frame[14..frame.len().min(14 + 512)];
            assert_eq!(seen.payload, quoted);
        }
        // Nobody is told of an error's.
        let error = with_ttl(tcp(vip, WEB.0).icmp_error(exceeded[0], 0), 1);
        let outcome = run(world, &error);
        assert_eq!(
            outcome.verdict,
            Verdict::Drop(DropReason::TtlExceededUntold)
        );
    });
}

#[test]
fn what_is_too_big_is_told_with_the_size_that_fits() {
    each_version("nat-too-big", |world, version| {
        let [_, too_big] = kinds(version);
        let vip = Vip::Gateway.address(version);
        let rip = backend_address(version, 14);
        let narrow = client_address(version, true);
        let there = tcp(vip, WEB.0).payload(1500);
        let back = tcp(narrow, CLIENT_PORT)
            .from(rip)
            .sent_from(WEB.1)
            .payload(usize::from(NARROW));
        for (packet, mtu) in [(there, MTU), (back, NARROW)] {
            let outcome = run(world, &packet.build());
            let seen = answered(world, &packet.build(), DropReason::TooBig);
            assert_eq!(seen.icmp, Some(too_big));
            assert_eq!(seen.source.0, own_address(version));
            let at = if version == 4 { 40 } else { 60 };
            let told = u16::from_be_bytes([outcome.bytes[at], outcome.bytes[at + 1]]);
            assert_eq!(told, mtu);
        }
        // What just fits goes through.
        let headers = if version == 4 { 40 } else { 60 };
        let fits = tcp(narrow, CLIENT_PORT).from(rip).sent_from(WEB.1);
        sent(world, &fits.payload(usize::from(NARROW) - headers).build());
    });
}

#[test]
fn an_error_or_a_reset_of_no_flow_makes_none() {
    each_version("nat-no-flow", |world, version| {
        let full = || tcp(Vip::Full.address(version), WEB.0).sent_from(9);
        let drops = |frame: Vec<u8>| {
            let outcome = run(world, &frame);
            assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoFlow));
            assert!(outcome.translated.is_empty());
        };
        drops(full().icmp_error(kinds(version)[0][0], 0));
        drops(full().last(false).build());
    });
}

/// The error that a frame is answered with; counted once under `reason`.
fn answered(world: &World, frame: &[u8], reason: DropReason) -> Read {
    let outcome = run(world, frame);
    assert_eq!(outcome.verdict, Verdict::Transmit);
    assert_eq!(outcome.dropped, [(reason, 1)].into());
    assert!(outcome.counted.is_empty());
    read(&outcome.bytes)
}

/// The frame with another time to live, and IPv4's checksum to match.
fn with_ttl(mut frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    if frame[12] == 0x08 {
        let (mut header, _) = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap();
        header.time_to_live = ttl;
        header.header_checksum = header.calc_header_checksum();
        frame[14..34].copy_from_slice(&header.to_bytes());
    } else {
        frame[21] = ttl;
    }
    frame
}
