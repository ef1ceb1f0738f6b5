//! Forward and then back gives the original packet, whatever it was.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::super::packet::CLIENT_MAC;
use super::super::world::{DIRECTOR_MAC, Vip, World};
use super::{End, read, run, sent};
use lb_ebpf::verdict::Verdict;

/// A packet between two endpoints.
#[derive(Clone, Debug)]
struct Any {
    is_tcp: bool,
    ttl: u8,
    payload: Vec<u8>,
}

fn packets() -> impl Strategy<Value = Any> {
    let payload = prop::collection::vec(any::<u8>(), 0..1300);
    (any::<bool>(), 2_u8..=255, payload).prop_map(|(is_tcp, ttl, payload)| Any {
        is_tcp,
        ttl,
        payload,
    })
}

impl Any {
    fn between(&self, from: End, to: End, ttl: u8) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, DIRECTOR_MAC);
        let ip = match (from.0, to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), ttl),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), ttl),
            _ => panic!("both are of one version"),
        };
        let mut frame = Vec::new();
        if self.is_tcp {
            let step = ip.tcp(from.1, to.1, 1000, 64_240).ack(7);
            step.write(&mut frame, &self.payload).unwrap();
        } else {
            let step = ip.udp(from.1, to.1);
            step.write(&mut frame, &self.payload).unwrap();
        }
        frame
    }
}

#[test]
fn forward_and_then_back_gives_the_original_packet() {
    World::with("nat-round-trip", |world| {
        let cases = Config::with_cases(100);
        let mut runner = TestRunner::new(cases);
        let strategy = (packets(), any::<bool>(), any::<bool>(), 1_u16..=u16::MAX);
        runner
            .run(&strategy, |(any, is_v4, is_full, port)| {
                let version = if is_v4 { 4 } else { 6 };
                let vip = if is_full { Vip::Full } else { Vip::Gateway };
                let service = if any.is_tcp { 80 } else { 53 };
                let client: IpAddr = if is_v4 {
                    [198, 51, 100, 7].into()
                } else {
                    "2001:db8:c::7".parse().unwrap()
                };
                let (client, vip) = ((client, port), (vip.address(version), service));
                let original = any.between(client, vip, any.ttl);
                let outcome = run(world, &original);
                // Of so many flows in full NAT the pool may have had enough.
                prop_assume!(outcome.verdict == Verdict::Transmit);
                let there = read(&outcome.bytes);
                prop_assert_eq!(&there.payload, &any.payload);
                prop_assert_eq!(there.ttl, any.ttl - 1);

                // The backend sends the same back.
                let reply = any.between(there.destination, there.source, any.ttl);
                let (back, outcome) = sent(world, &reply);
                prop_assert_eq!(back.source, vip);
                prop_assert_eq!(back.destination, client);

                // Turned round, with its hop given back, it is the original.
                let turned = any.between(back.destination, back.source, back.ttl + 1);
                prop_assert_eq!(&turned, &original);
                // And byte for byte what it is without translation.
                let plain = any.between(vip, client, any.ttl - 1);
                prop_assert_eq!(&outcome.bytes[14..], &plain[14..]);
                Ok(())
            })
            .unwrap();
    });
}
