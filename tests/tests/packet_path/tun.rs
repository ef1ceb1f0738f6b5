//! VS/TUN: the outer header byte by byte, and what becomes of packets that do
//! not fit.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use lb_common::counters::DropReason;
use lb_ebpf::verdict::Verdict;

use super::packet::{CLIENT_MAC, Packet, client, tcp};
use super::world::{DIRECTOR_MAC, MTU, Vip, World, backend_address, backend_mac, tunnel_source};

const OVERHEAD_V4: usize = 20;
const OVERHEAD_V6: usize = 40;

/// Packets for the other suites: none of them has an expectation of its own.
pub fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for version in [4, 6] {
        for vip in [Vip::TunV4, Vip::TunV6, Vip::TunSpread] {
            let web = || tcp(vip.address(version), 80);
            frames.push(web().build());
            frames.push(web().syn().build());
            frames.push(web().payload(1400).build());
            frames.push(web().payload(1460).build());
            frames.push(web().icmp_error(3, 4));
        }
    }
    frames
}

/// The outer packet around `inner`, as another implementation reads it.
struct Outer {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    traffic_class: u8,
    flow_label: u32,
    inner: Vec<u8>,
}

fn outer(frame: &[u8]) -> Outer {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(header.ihl(), 5);
            assert_eq!(header.ttl(), 64);
            assert_eq!(header.identification(), 0);
            assert!(header.dont_fragment() && !header.more_fragments());
            assert_eq!(header.fragments_offset().value(), 0);
            let parsed = header.to_header();
            assert_eq!(parsed.calc_header_checksum(), header.header_checksum());
            Outer {
                source: header.source_addr().into(),
                destination: header.destination_addr().into(),
                protocol: header.protocol().0,
                traffic_class: header.dcp().value() << 2 | header.ecn().value(),
                flow_label: 0,
                inner: frame[14 + OVERHEAD_V4..14 + usize::from(header.total_len())].to_vec(),
            }
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            assert_eq!(header.hop_limit(), 64);
            Outer {
                source: header.source_addr().into(),
                destination: header.destination_addr().into(),
                protocol: header.next_header().0,
                traffic_class: header.traffic_class(),
                flow_label: header.flow_label().value(),
                inner: frame[14 + OVERHEAD_V6..][..usize::from(header.payload_length())].to_vec(),
            }
        }
        other => panic!("{other:?}"),
    }
}

/// Sets DSCP and ECN of a frame.
fn with_traffic_class(mut frame: Vec<u8>, class: u8) -> Vec<u8> {
    if frame[12..14] == [0x08, 0x00] {
        frame[15] = class;
    } else {
        frame[14] = 0x60 | class >> 4;
        frame[15] = class << 4;
    }
    frame
}

fn ip_packet(frame: &[u8]) -> &[u8] {
    &frame[14..]
}

#[test]
fn every_pairing_is_encapsulated_to_the_byte() {
    World::with("tun-pairings", |world| {
        for version in [4, 6] {
            for (vip, n) in [(Vip::TunV4, 11), (Vip::TunV6, 12)] {
                // Not-ECT, ECT and congestion experienced, with DSCP EF.
                for class in [0, 0xb8, 0xba, 0xbb] {
                    let packet = tcp(vip.address(version), 80);
                    let frame = with_traffic_class(packet.build(), class);
                    let outcome = world.in_kernel(&frame);
                    assert_eq!(outcome.verdict, Verdict::Transmit);
                    assert_eq!(outcome.bytes[0..6], backend_mac(n));
                    assert_eq!(outcome.bytes[6..12], DIRECTOR_MAC);
                    let outer = outer(&outcome.bytes);
                    assert_eq!(outer.destination, backend_address(version, n));
                    assert_eq!(Some((outer.source, 0)), tunnel_source(n));
                    assert_eq!(outer.protocol, if version == 4 { 4 } else { 41 });
                    assert_eq!(outer.traffic_class, class);
                    assert_eq!(outer.flow_label != 0, n == 12);
                    assert_eq!(outer.inner, ip_packet(&frame));
                    assert_eq!(outcome.counted[&n].bytes, outer.inner.len() as u64);
                    assert!(outcome.dropped.is_empty());
                }
            }
        }
    });
}

#[test]
fn padding_of_short_frames_is_not_part_of_the_inner_packet() {
    World::with("tun-padding", |world| {
        let mut frame = tcp(Vip::TunV4.address(4), 80).payload(0).build();
        let packet = ip_packet(&frame).to_vec();
        frame.resize(60, 0xaa);
        assert_eq!(outer(&world.in_kernel(&frame).bytes).inner, packet);
    });
}

#[test]
fn sources_spread_by_flow_and_stay_within_the_prefix() {
    World::with("tun-spread", |world| {
        for version in [4, 6] {
            let source = |port| {
                let packet = tcp(Vip::TunSpread.address(version), 80).sent_from(port);
                let syn = outer(&world.in_kernel(&packet.clone().syn().build()).bytes);
                let data = outer(&world.in_kernel(&packet.build()).bytes);
                assert_eq!(syn.source, data.source, "one flow, one source");
                match data.source {
                    IpAddr::V4(v4) => v4.octets(),
                    IpAddr::V6(v6) => panic!("{v6}"),
                }
            };
            let sources: std::collections::BTreeSet<_> = (1..=300).map(source).collect();
            assert!(sources.iter().all(|s| s[..3] == [192, 0, 2]));
            // 300 balls into 256 urns hit 177 of them; far fewer is no spread.
            assert!(sources.len() > 140, "{} sources", sources.len());
        }
    });
}

/// A packet of this many bytes from the IP header on.
fn of_length(vip: IpAddr, length: usize) -> Packet {
    let headers = if vip.is_ipv4() { 40 } else { 60 };
    tcp(vip, 80).payload(length - headers)
}

#[test]
fn the_largest_packet_that_fits_is_forwarded_and_one_byte_more_is_answered() {
    World::with("tun-mtu", |world| {
        for version in [4, 6] {
            for (vip, overhead) in [
                (Vip::TunV4, OVERHEAD_V4),
                (Vip::TunV6, OVERHEAD_V6),
                (Vip::Plain, 0),
            ] {
                let vip = vip.address(version);
                let largest = usize::from(MTU) - overhead;
                let fits = world.in_kernel(&of_length(vip, largest).build());
                assert_eq!(fits.bytes.len(), 14 + usize::from(MTU));
                assert!(fits.dropped.is_empty());

                let frame = of_length(vip, largest + 1).build();
                let outcome = world.in_kernel(&frame);
                assert_eq!(outcome.verdict, Verdict::Transmit);
                assert_eq!(outcome.dropped, [(DropReason::TooBig, 1)].into());
                assert!(outcome.counted.is_empty());
                check_answer(&frame, &outcome.bytes, vip, largest as u32);
            }
        }
    });
}

/// The answer, as another implementation reads it: back to where the packet
/// came from, from the VIP, with the right MTU and checksums, quoting it.
fn check_answer(frame: &[u8], answer: &[u8], vip: IpAddr, mtu: u32) {
    assert_eq!(answer[0..6], CLIENT_MAC);
    assert_eq!(answer[6..12], DIRECTOR_MAC);
    let packet = SlicedPacket::from_ethernet(answer).unwrap();
    let quoted = match (packet.net.unwrap(), packet.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            assert_eq!(IpAddr::from(header.source), vip);
            assert_eq!(IpAddr::from(header.destination), client(vip));
            let expected = DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: mtu as u16,
            };
            let kind = Icmpv4Type::DestinationUnreachable(expected);
            assert_eq!(icmp.icmp_type(), kind);
            assert_eq!(icmp.checksum(), kind.calc_checksum(icmp.payload()));
            icmp.payload().to_vec()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let header = ip.header();
            assert_eq!(IpAddr::from(header.source_addr()), vip);
            assert_eq!(IpAddr::from(header.destination_addr()), client(vip));
            assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu });
            let source = Ipv6Addr::from(header.source());
            let destination = Ipv6Addr::from(header.destination());
            assert!(icmp.is_checksum_valid(source.octets(), destination.octets()));
            icmp.payload().to_vec()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(quoted.len(), 512);
    assert_eq!(quoted, frame[14..14 + 512]);
}

#[test]
fn without_room_for_the_outer_header_it_is_dropped_and_not_counted_as_sent() {
    World::with("tun-no-room", |world| {
        for vip in [Vip::TunV4, Vip::TunV6, Vip::TunSpread] {
            let frame = tcp(vip.address(4), 80).syn().build();
            let outcome = world.on_host_without_headroom(&frame);
            assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoHeadroom));
            assert_eq!(outcome.bytes, frame);
            assert!(outcome.counted.is_empty(), "{outcome:?}");
        }
    });
}

#[test]
fn what_cannot_be_told_is_dropped_under_its_own_reason() {
    World::with("tun-untold", |world| {
        for (vip, length) in [(Vip::TunV4, 1481), (Vip::Plain, 1501)] {
            let mut may_fragment = of_length(vip.address(4), length).build();
            may_fragment[20] &= !0x40;
            let outcome = world.in_kernel(&may_fragment);
            assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NeedsFragmenting));
            assert_eq!(outcome.bytes, may_fragment);
        }

        // RFC 1122, section 3.2.2; RFC 4443, section 2.4.
        let of_nobody = [
            (4, "0.0.0.0"),
            (4, "224.0.0.1"),
            (4, "255.255.255.255"),
            (6, "::"),
            (6, "ff02::1"),
        ];
        for (version, source) in of_nobody {
            let packet = of_length(Vip::TunV4.address(version), 1481);
            let frame = packet.from(source.parse().unwrap()).build();
            let outcome = world.in_kernel(&frame);
            assert_eq!(outcome.verdict, Verdict::Drop(DropReason::TooBigUntold));
            assert_eq!(outcome.bytes, frame);
        }
        let mut from_group = of_length(Vip::TunV4.address(4), 1481).build();
        from_group[6] |= 1;
        let outcome = world.in_kernel(&from_group);
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::TooBigUntold));

        let vip = Vip::TunV4.address(4);
        // With the next second there is a new budget: that may come between.
        let frame = of_length(vip, 1481).build();
        let untold = (0..10).any(|_| {
            world.exhaust_icmp_budget();
            world.in_kernel(&frame).verdict == Verdict::Drop(DropReason::TooBigUntold)
        });
        assert!(untold, "no limit to the ICMP errors");
    });
}
