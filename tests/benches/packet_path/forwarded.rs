//! What a forwarded packet must look like.

use anyhow::{Context as _, ensure};

use crate::cases::Case;
use crate::headers::{ETHERNET, Headers, sum};
use crate::world::{
    CLIENT_PORT, DIRECTOR_MAC, Layout, Mode, NAT_PORT, POOL_PORTS, PORT, ROUTER_MAC,
    backend_address, backend_of_mac, client, pool_address, vip, vip_number,
};

/// Checks that `received` is `sent` on its way to a backend of the service
/// that it was sent to, or back to the client.
pub fn check(layout: Layout, case: &Case, sent: &[u8], received: &[u8]) -> anyhow::Result<()> {
    ensure!(received[6..12] == DIRECTOR_MAC, "not from the director");
    ensure!(received[12..14] == sent[12..14], "another EtherType");
    let before = Headers::of(sent);
    if case.is_reply {
        ensure!(received[..6] == ROUTER_MAC, "not to the client's router");
        let is_v4 = before.is_v4;
        let expected = Headers {
            source: (vip(is_v4, 0), PORT),
            destination: (client(is_v4), CLIENT_PORT),
            ttl: before.ttl - 1,
            ..before
        };
        return translated(&expected, sent, received);
    }
    let backend = backend_of_mac(&received[..6]).context("not to a backend's MAC address")?;
    ensure!(
        layout.service_of(backend) == vip_number(before.destination.0),
        "to backend {backend}, which is another service's"
    );
    match layout.mode {
        Mode::Dr => {
            let same = received[ETHERNET..] == sent[ETHERNET..];
            ensure!(same, "the packet itself is another");
            Ok(())
        }
        Mode::Tun => inside_another(backend, before.is_v4, sent, received),
        Mode::Nat | Mode::FullNat => {
            let mut expected = Headers {
                destination: (backend_address(before.is_v4, backend), NAT_PORT),
                ttl: before.ttl - 1,
                ..before
            };
            if layout.mode == Mode::FullNat {
                let (_, port) = Headers::of(received).source;
                ensure!(POOL_PORTS.contains(&port), "from port {port}");
                expected.source = (pool_address(before.is_v4), port);
            }
            translated(&expected, sent, received)
        }
    }
}

/// Checks that `received` is `sent` with a header that says who it is for.
fn inside_another(backend: u32, is_v4: bool, sent: &[u8], received: &[u8]) -> anyhow::Result<()> {
    let outer = Headers::of(received);
    let inside = received.get(ETHERNET + outer.length..);
    ensure!(
        inside == Some(&sent[ETHERNET..]),
        "the packet itself is another"
    );
    let address = backend_address(is_v4, backend);
    ensure!(outer.destination.0 == address, "not to {address}");
    let protocol = if is_v4 {
        libc::IPPROTO_IPIP
    } else {
        libc::IPPROTO_IPV6
    };
    ensure!(
        i32::from(outer.protocol) == protocol,
        "no tunnel of this version"
    );
    valid(&outer, received)
}

/// Checks that `received` is `sent` with these headers.
fn translated(expected: &Headers, sent: &[u8], received: &[u8]) -> anyhow::Result<()> {
    let headers = Headers::of(received);
    ensure!(headers == *expected, "{headers:?} in place of {expected:?}");
    valid(&headers, received)?;
    // The checksum has become what it was, as far as anybody can see who
    // computes it over all that it covers.
    let covered = |packet: &[u8]| sum(&Headers::of(packet).covered(packet));
    ensure!(
        covered(sent) == covered(received),
        "checksum of layer 4: {:04x} became {:04x}",
        covered(sent),
        covered(received)
    );
    let rest = |packet: &[u8]| Headers::of(packet).rest(packet);
    ensure!(rest(sent) == rest(received), "something else is another");
    Ok(())
}

/// Checks length and, in IPv4, checksum of the IP header.
fn valid(headers: &Headers, packet: &[u8]) -> anyhow::Result<()> {
    ensure!(headers.total == packet.len() - ETHERNET, "length");
    let ip = &packet[ETHERNET..][..headers.length];
    ensure!(!headers.is_v4 || sum(ip) == 0xffff, "checksum");
    Ok(())
}
