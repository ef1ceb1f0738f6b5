//! Addresses, ports, checksums, MACs and time to live of what is forwarded.

use lb_common::counters::{BackendCounters, DropReason};
use lb_ebpf::verdict::Verdict;

use super::super::packet::{CLIENT_PORT, client, sctp, tcp, udp};
use super::super::world::{
    DIRECTOR_MAC, NARROW, ROUTER_MAC, SECOND_MAC, Vip, World, backend_address, backend_mac,
    client_address, own_address, pool_address,
};
use super::{DNS, WEB, each_version, read, reply, run, sent};

fn macs(destination: [u8; 6], source: [u8; 6]) -> [u8; 12] {
    [destination, source].concat().try_into().unwrap()
}

#[test]
fn the_gateway_translates_the_destination_there_and_the_source_back() {
    each_version("nat-gateway", |world, version| {
        let vip = Vip::Gateway.address(version);
        let rip = backend_address(version, 14);
        let cip = client(vip);
        for (frame, flows) in [
            (tcp(vip, WEB.0).syn().build(), 1),
            (tcp(vip, WEB.0).build(), 0),
            (tcp(vip, WEB.0).payload(1399).build(), 0),
        ] {
            let (seen, outcome) = sent(world, &frame);
            assert_eq!(seen.source, (cip, CLIENT_PORT));
            assert_eq!(seen.destination, (rip, WEB.1));
            assert_eq!(seen.ttl, 63);
            assert_eq!(seen.macs, macs(backend_mac(14), DIRECTOR_MAC));
            assert_eq!(seen.payload, read(&frame).payload);
            let counters = outcome.counted[&14];
            assert_eq!((counters.packets, counters.flows), (1, flows));
            assert_eq!(counters.bytes, frame.len() as u64 - 14);
            assert!(outcome.translated.is_empty() && outcome.recorded.is_empty());
        }
        let (seen, outcome) = sent(world, &reply(version, 14, WEB.1).build());
        assert_eq!(seen.source, (vip, WEB.0));
        assert_eq!(seen.destination, (cip, CLIENT_PORT));
        assert_eq!(seen.ttl, 63);
        assert_eq!(seen.macs, macs(ROUTER_MAC, DIRECTOR_MAC));
        let counters = BackendCounters {
            reply_packets: 1,
            reply_bytes: outcome.bytes.len() as u64 - 14,
            ..BackendCounters::default()
        };
        assert_eq!(outcome.counted[&14], counters);
        assert!(outcome.translated.is_empty() && outcome.recorded.is_empty());
    });
}

#[test]
fn full_nat_translates_both_ends_and_remembers() {
    each_version("nat-full", |world, version| {
        let vip = Vip::Full.address(version);
        let rip = backend_address(version, 15);
        let (seen, outcome) = sent(world, &tcp(vip, WEB.0).syn().build());
        let (address, port) = seen.source;
        assert_eq!(address, pool_address(version));
        assert_eq!(seen.destination, (rip, WEB.1));
        assert_eq!(seen.macs, macs(backend_mac(15), DIRECTOR_MAC));
        assert_eq!(outcome.counted[&15].flows, 1);
        let (_, dns) = sent(world, &udp(vip, DNS.0).build());
        assert_eq!(dns.counted[&15].flows, 1);
        let entries = outcome.translated.iter().filter(|t| t.vip == vip);
        let entry: Vec<_> = entries.collect();
        assert_eq!(entry.len(), 1);
        assert_eq!(entry[0].pool_port.unwrap().port(), port);

        // The same flow keeps its port.
        let (again, _) = sent(world, &tcp(vip, WEB.0).build());
        assert_eq!(again.source, seen.source);
        let answer = tcp(pool_address(version), port)
            .from(rip)
            .sent_from(WEB.1)
            .syn_ack();
        let (back, outcome) = sent(world, &answer.build());
        assert_eq!(back.source, (vip, WEB.0));
        assert_eq!(back.destination, (client(vip), CLIENT_PORT));
        assert_eq!(outcome.counted[&15].reply_packets, 1);

        // Another flow has another port, in UDP likewise.
        let (other, _) = sent(world, &tcp(vip, WEB.0).sent_from(1).syn().build());
        assert_ne!(other.source, seen.source);
        let (dns, _) = sent(world, &udp(vip, DNS.0).build());
        assert_eq!(dns.destination, (rip, DNS.1));
        assert_ne!(dns.source.1, port);

        // Nobody else's answer is one.
        let stray = answer.clone().sent_from(WEB.1 + 1).build();
        assert_eq!(run(world, &stray).verdict, Verdict::Pass);
        let unknown = tcp(pool_address(version), port + 100)
            .from(rip)
            .sent_from(WEB.1);
        assert_eq!(run(world, &unknown.build()).verdict, Verdict::Pass);
    });
}

#[test]
fn a_service_for_every_port_leaves_ports_alone() {
    World::with("nat-all-ports", |world| {
        for version in [4, 6] {
            let vip = Vip::AllPorts.address(version);
            let rip = backend_address(version, 17);
            let outcome = run(world, &udp(vip, 4711).build());
            assert_eq!(outcome.verdict, Verdict::Redirect(world.interfaces[1]));
            let seen = read(&outcome.bytes);
            assert_eq!(seen.destination, (rip, 4711));
            assert_eq!(seen.macs, macs(backend_mac(17), SECOND_MAC));
            let answer = udp(client(vip), CLIENT_PORT).from(rip).sent_from(4711);
            let (back, _) = sent(world, &answer.build());
            assert_eq!(back.source, (vip, 4711));
        }
    });
}

#[test]
fn udp_without_a_checksum_stays_so_and_none_becomes_zero() {
    World::with("nat-udp-checksum", |world| {
        let vip = Vip::Gateway.address(4);
        let mut frame = udp(vip, DNS.0).build();
        frame[40..42].fill(0);
        let (_, outcome) = sent(world, &frame);
        assert_eq!(outcome.bytes[40..42], [0, 0]);

        // Find a payload whose checksum, translated, would be zero.
        let (zero, _) = (0..=u16::MAX)
            .map(|word| {
                let mut frame = udp(vip, DNS.0).build();
                let end = frame.len() - 2;
                frame[end..].copy_from_slice(&word.to_be_bytes());
                let checksum = udp_checksum(&frame).to_be_bytes();
                frame[40..42].copy_from_slice(&checksum);
                (frame, word)
            })
            .find(|(frame, _)| {
                let mut to = frame.clone();
                to[30..34].copy_from_slice(&[203, 0, 113, 114]);
                to[36..38].copy_from_slice(&DNS.1.to_be_bytes());
                to[40..42].fill(0);
                udp_sum(&to) == 0xffff
            })
            .expect("one of them all");
        let (_, outcome) = sent(world, &zero);
        assert_eq!(outcome.bytes[40..42], [0xff, 0xff]);
    });
}

/// Sum over pseudo-header and datagram of an IPv4 frame, folded.
fn udp_sum(frame: &[u8]) -> u16 {
    let datagram = &frame[34..];
    let mut sum = 17 + datagram.len() as u32;
    for word in frame[26..34].chunks(2).chain(datagram.chunks(2)) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn udp_checksum(frame: &[u8]) -> u16 {
    let mut frame = frame.to_vec();
    frame[40..42].fill(0);
    match !udp_sum(&frame) {
        0 => 0xffff,
        checksum => checksum,
    }
}

#[test]
fn a_checksum_that_a_local_sender_left_to_its_nic_is_filled_in() {
    each_version("nat-unfinished", |world, version| {
        let vip = Vip::Gateway.address(version);
        let (layer4, addresses) = if version == 4 {
            (34, 26..34)
        } else {
            (54, 22..54)
        };
        for payload in [0, 1, 2, 3, 31, 500, 511, 1023, 1400] {
            for (frame, protocol, at) in [
                (tcp(vip, WEB.0).payload(payload).build(), 6, layer4 + 16),
                (udp(vip, DNS.0).payload(payload).build(), 17, layer4 + 6),
            ] {
                let mut unfinished = frame.clone();
                let length = (frame.len() - layer4) as u32;
                let mut sum = length + protocol;
                for word in frame[addresses.clone()].chunks(2) {
                    sum += u32::from(word[0]) << 8 | u32::from(word[1]);
                }
                while sum > 0xffff {
                    sum = (sum & 0xffff) + (sum >> 16);
                }
                unfinished[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
                assert_ne!(unfinished, frame);
                let (_, finished) = sent(world, &frame);
                let (_, filled_in) = sent(world, &unfinished);
                assert_eq!(filled_in.bytes, finished.bytes, "payload of {payload}");
            }
        }
    });
}

#[test]
fn what_is_not_an_answer_is_left_alone() {
    each_version("nat-direct", |world, version| {
        let vip = Vip::Gateway.address(version);
        let rip = backend_address(version, 14);
        let passes = |frame: Vec<u8>| {
            let outcome = run(world, &frame);
            assert_eq!(outcome.verdict, Verdict::Pass);
            assert_eq!(outcome.bytes, frame);
            outcome
        };
        // To the director itself, and from other ports than the service's.
        let to_us = tcp(own_address(version), 50_000).from(rip).sent_from(WEB.1);
        passes(to_us.build());
        passes(reply(version, 14, 22).build());

        // A client that speaks to the backend past the VIP.
        let direct = tcp(rip, WEB.1).sent_from(7);
        let answer = tcp(client(vip), 7).from(rip).sent_from(WEB.1);
        let outcome = passes(direct.clone().syn().build());
        assert_eq!(
            outcome
                .recorded
                .iter()
                .filter(|(ip, ..)| *ip == rip)
                .count(),
            1
        );
        passes(direct.build());
        passes(answer.clone().build());
        // The others of this backend are answered by the VIP as before.
        let (seen, _) = sent(world, &reply(version, 14, WEB.1).build());
        assert_eq!(seen.source, (vip, WEB.0));
        // It uses the port again, for the VIP.
        sent(world, &tcp(vip, WEB.0).sent_from(7).syn().build());
        let (seen, _) = sent(world, &answer.build());
        assert_eq!(seen.source, (vip, WEB.0));
    });
}

#[test]
fn what_the_driver_cannot_send_is_handed_to_the_host_as_it_is_to_be() {
    each_version("nat-host", |world, version| {
        let vip = Vip::Gateway.address(version);
        let rip = backend_address(version, 14);
        // Nobody has resolved this one: it is on the segment.
        let unresolved = if version == 4 {
            "203.0.113.77".parse().unwrap()
        } else {
            "2001:db8:0:10::77".parse().unwrap()
        };
        let frame = tcp(unresolved, CLIENT_PORT)
            .from(rip)
            .sent_from(WEB.1)
            .build();
        let outcome = run(world, &frame);
        assert_eq!(outcome.verdict, Verdict::Host);
        let seen = read(&outcome.bytes);
        assert_eq!(seen.source, (vip, WEB.0));
        // The host's stack takes the hop.
        assert_eq!(seen.ttl, 64);
        assert_eq!(seen.macs[..], frame[..12]);
        assert_eq!(outcome.counted[&14].reply_packets, 1);
    });
}

#[test]
fn what_may_be_fragmented_is_for_the_host_to_fragment() {
    World::with("nat-fragment", |world| {
        let vip = Vip::Gateway.address(4);
        let rip = backend_address(4, 14);
        let may = |packet: super::Packet| {
            let mut frame = packet.build();
            // Without the don't-fragment flag; the checksum goes with it.
            frame[20] = 0;
            let sum = u16::from_be_bytes([frame[24], frame[25]]);
            let (sum, carry) = sum.overflowing_add(0x4000);
            frame[24..26].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
            frame
        };
        let there = run(world, &may(tcp(vip, WEB.0).payload(1480)));
        assert_eq!(there.verdict, Verdict::Host);
        assert_eq!(read(&there.bytes).destination, (rip, WEB.1));
        let narrow = tcp(client_address(4, true), CLIENT_PORT)
            .from(rip)
            .sent_from(WEB.1);
        let back = run(world, &may(narrow.payload(usize::from(NARROW))));
        assert_eq!(back.verdict, Verdict::Host);
        assert_eq!(read(&back.bytes).source, (vip, WEB.0));
    });
}

#[test]
fn a_reply_that_lies_about_its_length_is_dropped() {
    each_version("nat-lengths", |world, version| {
        let mut frame = reply(version, 14, WEB.1).build();
        frame.truncate(frame.len() - 1);
        let outcome = run(world, &frame);
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::Truncated));
    });
}

#[test]
fn sctp_gets_another_address_and_nothing_else() {
    each_version("nat-sctp", |world, version| {
        let vip = Vip::Gateway.address(version);
        let rip = backend_address(version, 14);
        let frame = sctp(vip, 2905, true).build();
        let outcome = run(world, &frame);
        assert_eq!(outcome.verdict, Verdict::Transmit);
        let (addresses, layer4) = if version == 4 {
            (30..34, 34)
        } else {
            (38..54, 54)
        };
        let octets = match rip {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        assert_eq!(outcome.bytes[addresses], octets);
        assert_eq!(outcome.bytes[layer4..], frame[layer4..]);

        let answer = sctp(client(vip), CLIENT_PORT, false)
            .from(rip)
            .sent_from(2905);
        let outcome = run(world, &answer.build());
        assert_eq!(outcome.verdict, Verdict::Transmit);
        assert_eq!(outcome.bytes[layer4..], answer.build()[layer4..]);
    });
}
