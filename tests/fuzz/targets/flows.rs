//! Several packets, one after the other, through the director's packet path:
//! flows that are known, fragments after their first, replies to what was
//! translated. Of what NAT has translated the reply comes back as the answer to
//! the original.
//!
//! The input is frames, each after its length in two bytes.

#![no_main]

use std::cell::LazyCell;
use std::net::IpAddr;
use std::ops::Range;

use fuzz::director::{MAC, forget, send, tables};
use fuzz::{Header, Kind, Place, backends, headers, pool, vips};
use lb_common::backend::mode;
use lb_ebpf::host::HostTables;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static TABLES: LazyCell<HostTables> = LazyCell::new(tables);
}

/// Frames of one input at most.
const FRAMES: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    TABLES.with(|tables| {
        forget(tables);
        for frame in frames(bytes).take(FRAMES) {
            let done = send(frame, tables);
            if done.mode == Some(mode::NAT) && !done.is_reply {
                round_trip(frame, &done.bytes, tables);
            }
        }
    });
});

fn frames(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (frame, rest) = rest.split_at(length);
        bytes = rest;
        Some(frame)
    })
}

/// Where a packet's endpoints are.
struct Ends {
    source: Range<usize>,
    destination: Range<usize>,
    ports: usize,
    ttl: usize,
}

/// `None` for what has no ports, or not all of it.
fn ends(frame: &[u8]) -> Option<Ends> {
    let found = headers(frame);
    let own = found.iter().filter(|header| header.place == Place::Own);
    let own: Vec<&Header> = own.collect();
    let last = own.last()?;
    let has_ports = matches!(last.kind, Kind::Tcp | Kind::Udp | Kind::Sctp);
    let ip = own[0].at;
    let is_fragment = if own[0].kind == Kind::Ipv4 {
        u16::from_be_bytes([frame[ip + 6], frame[ip + 7]]) & 0x3fff != 0
    } else {
        own.iter().any(|header| header.kind == Kind::Extension(44))
    };
    let (source, destination, ttl) = match own[0].kind {
        Kind::Ipv4 => (ip + 12..ip + 16, ip + 16..ip + 20, ip + 8),
        _ => (ip + 8..ip + 24, ip + 24..ip + 40, ip + 7),
    };
    (has_ports && !is_fragment).then_some(Ends {
        source,
        destination,
        ports: last.at,
        ttl,
    })
}

fn round_trip(original: &[u8], there: &[u8], tables: &HostTables) {
    let Some(at) = ends(original) else {
        return;
    };
    // Whoever has spoken to a backend itself is answered by it, and what claims
    // to be from one of us is not answered to a client.
    let ours = [vips(), backends(), pool()].concat();
    let is_ours = ours
        .iter()
        .any(|ip| octets(*ip) == original[at.source.clone()]);
    if tables.direct_seen.get() != 0 || is_ours {
        return;
    }
    let mut reply = there.to_vec();
    reply[..6].copy_from_slice(&MAC);
    reply[at.ttl] = 64;
    reply[at.source.clone()].copy_from_slice(&there[at.destination.clone()]);
    reply[at.destination.clone()].copy_from_slice(&there[at.source.clone()]);
    let [source, destination] = [at.ports..at.ports + 2, at.ports + 2..at.ports + 4];
    reply[source.clone()].copy_from_slice(&there[destination.clone()]);
    reply[destination.clone()].copy_from_slice(&there[source.clone()]);
    let back = send(&reply, tables);
    assert!(back.is_reply, "the reply is not known for one");
    for (one, other) in [(&at.source, &at.destination), (&source, &destination)] {
        assert_eq!(back.bytes[one.clone()], original[other.clone()]);
        assert_eq!(back.bytes[other.clone()], original[one.clone()]);
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
