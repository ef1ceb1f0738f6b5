//! What is remembered of translated flows, and for how many there is room.

use std::collections::BTreeSet;

use lb_common::counters::DropReason;
use lb_common::nat::seen;
use lb_ebpf::verdict::Verdict;

use super::super::packet::{CLIENT_PORT, client, tcp, udp};
use super::super::world::{POOL_PORTS, Vip, World, backend_address, pool_address};
use super::{DNS, WEB, each_version, read, reply, run, sent};

#[test]
fn what_was_seen_of_either_side_is_noted() {
    each_version("nat-seen", |world, version| {
        let vip = Vip::Full.address(version);
        let web = || tcp(vip, WEB.0);
        let (first, outcome) = sent(world, &web().syn().build());
        let noted = |outcome: &super::Outcome| {
            let mut of = outcome.translated.iter().filter(|t| t.vip == vip);
            of.next().unwrap().seen
        };
        assert_eq!(noted(&outcome), [seen::SYN, 0]);
        let (pool, port) = first.source;
        let back = || {
            tcp(pool, port)
                .from(backend_address(version, 15))
                .sent_from(WEB.1)
        };
        let mut both = [seen::SYN, 0];
        for (frame, side, flags) in [
            (back().syn_ack().build(), 1, seen::SYN),
            (web().build(), 0, seen::DATA),
            (back().build(), 1, seen::DATA),
            (web().last(true).build(), 0, seen::FIN),
            (back().last(true).build(), 1, seen::FIN),
            (back().last(false).build(), 1, seen::RST),
        ] {
            let (_, outcome) = sent(world, &frame);
            both[side] |= flags;
            assert_eq!(noted(&outcome), both);
        }
        // The client uses its port again: another flow.
        let (second, _) = sent(world, &web().syn().build());
        assert_ne!(second.source, first.source);
    });
}

#[test]
fn services_that_share_a_backend_tell_their_flows_apart() {
    each_version("nat-shared", |world, version| {
        let [one, other] = [Vip::Sharing, Vip::Shared].map(|vip| vip.address(version));
        let answer = |port| {
            tcp(client(one), port)
                .from(backend_address(version, 16))
                .sent_from(WEB.1)
        };
        for (vip, port) in [(one, 1), (other, 2)] {
            sent(world, &tcp(vip, WEB.0).sent_from(port).syn().build());
            let (seen, _) = sent(world, &answer(port).build());
            assert_eq!(
                (seen.source, seen.destination),
                ((vip, WEB.0), (client(vip), port))
            );
        }
        // One port for both VIPs: the backend could not tell them apart.
        let clash = run(world, &tcp(other, WEB.0).sent_from(1).syn().build());
        assert_eq!(clash.verdict, Verdict::Drop(DropReason::NatClash));
        // When the first has ended it can be used.
        sent(world, &tcp(one, WEB.0).sent_from(1).last(true).build());
        sent(world, &tcp(other, WEB.0).sent_from(1).syn().build());
        let (seen, _) = sent(world, &answer(1).build());
        assert_eq!(seen.source, (other, WEB.0));
    });
}

#[test]
fn ports_are_all_different_and_when_there_are_none_it_says_so() {
    each_version("nat-pool", |world, version| {
        let vip = Vip::Full.address(version);
        let mut sources = BTreeSet::new();
        for port in 1..=POOL_PORTS.len() as u16 {
            // Both protocols take from the same ports.
            let frame = if port % 2 == 0 {
                tcp(vip, WEB.0).sent_from(port).syn().build()
            } else {
                udp(vip, DNS.0).sent_from(port).build()
            };
            let outcome = world.in_kernel(&frame);
            assert_eq!(outcome.verdict, Verdict::Transmit);
            assert!(
                sources.insert(read(&outcome.bytes).source),
                "twice the same"
            );
        }
        assert!(sources.iter().all(|(ip, _)| *ip == pool_address(version)));
        let outcome = world.in_kernel(&tcp(vip, WEB.0).sent_from(9999).syn().build());
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::PoolExhausted));
        assert_eq!(outcome.dropped, [(DropReason::PoolExhausted, 1)].into());
        // The flows that there are go on.
        let outcome = world.in_kernel(&tcp(vip, WEB.0).sent_from(2).build());
        assert_eq!(outcome.verdict, Verdict::Transmit);
    });
}

#[test]
fn anothers_packet_takes_no_port() {
    World::with("nat-not-ours", |world| {
        for version in [4, 6] {
            for vip in [Vip::Full, Vip::Sharing] {
                let flooded = tcp(vip.address(version), WEB.0)
                    .syn()
                    .addressed_to([2, 0, 0, 0, 0xbe, 1]);
                let outcome = run(world, &flooded.build());
                assert_eq!(outcome.verdict, Verdict::Pass);
                assert!(outcome.translated.is_empty());
            }
            let flooded = reply(version, 14, WEB.1).addressed_to([2, 0, 0, 0, 0xbe, 1]);
            assert_eq!(run(world, &flooded.build()).verdict, Verdict::Pass);
        }
    });
}

#[test]
fn a_backend_is_known_by_protocol_too() {
    each_version("nat-protocol", |world, version| {
        let stray = udp(client(pool_address(version)), CLIENT_PORT)
            .from(backend_address(version, 14))
            .sent_from(WEB.1);
        assert_eq!(run(world, &stray.build()).verdict, Verdict::Pass);
    });
}
