//! VS/NAT: every packet through the kernel and through the host build, which
//! must agree, and then read by another implementation.

mod errors;
mod flows;
mod read;
mod rewrite;
mod round_trip;

use std::net::IpAddr;

use lb_ebpf::verdict::Verdict;

use super::packet::{CLIENT_PORT, Packet, client, tcp, udp};
use super::world::{Outcome, Vip, World, backend_address};
use read::Read;
pub use read::read;

/// Port of the service in TCP, and what it is on the backend.
const WEB: (u16, u16) = (80, 8080);
/// The same in UDP.
pub const DNS: (u16, u16) = (53, 5353);

/// Packets for the other suites: none of them has an expectation of its own.
pub fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for version in [4, 6] {
        for (vip, n) in [
            (Vip::Gateway, 14),
            (Vip::Full, 15),
            (Vip::Sharing, 16),
            (Vip::Shared, 16),
        ] {
            let web = || tcp(vip.address(version), WEB.0);
            let reply = || reply(version, n, WEB.1);
            frames.extend([
                web().syn().build(),
                web().build(),
                web().ttl(1).build(),
                web().payload(1500).build(),
                web().icmp_error(3, 1),
                web().icmp_error_quoting(3, 1, 28),
                reply().build(),
                reply().syn_ack().build(),
                reply().ttl(1).build(),
                reply().payload(1500).build(),
                reply().icmp_error(3, 1),
                reply().icmp_error_quoting(3, 1, 28),
                tcp(backend_address(version, n), WEB.1).build(),
            ]);
        }
        frames.push(udp(Vip::Gateway.address(version), DNS.0).build());
        frames.push(udp(Vip::Full.address(version), DNS.0).build());
        frames.push(udp(Vip::AllPorts.address(version), 4711).build());
    }
    frames
}

/// A segment from a backend to the client.
fn reply(version: u8, n: u8, port: u16) -> Packet {
    let backend = backend_address(version, n);
    tcp(client(backend), CLIENT_PORT)
        .from(backend)
        .sent_from(port)
}

/// Runs a frame through both; they must agree.
pub fn run(world: &World, frame: &[u8]) -> Outcome {
    let outcome = world.in_kernel(frame);
    assert_eq!(outcome, world.on_host(frame), "{frame:02x?}");
    outcome
}

/// Runs a frame that must leave by the interface that it came in by.
fn sent(world: &World, frame: &[u8]) -> (Read, Outcome) {
    let outcome = run(world, frame);
    assert_eq!(outcome.verdict, Verdict::Transmit, "{outcome:?}");
    assert!(outcome.dropped.is_empty(), "{outcome:?}");
    (read(&outcome.bytes), outcome)
}

/// Both IP versions, in a world of their own.
fn each_version(name: &str, test: impl Fn(&World, u8) + Send + Sync) {
    World::with(name, |world| {
        [4, 6].into_iter().for_each(|v| test(world, v))
    });
}

/// An endpoint.
type End = (IpAddr, u16);
