//! The fuzzers' beginnings in tests/fuzz/corpus/flows: packets that nobody
//! comes upon by chance, for the director in tests/fuzz/src/director.rs.
//!
//! The target's input is frames, each after its length in two bytes.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use super::super::fragments::cut;
use super::super::packet::{CLIENT_PORT, Packet, client, sctp, tcp, udp, with_extension};
use super::super::world::DIRECTOR_MAC;
use addresses::{backends, pool, vips};
use integration::hostile::whole;

#[path = "../../../fuzz/src/addresses.rs"]
mod addresses;
#[path = "../../../fuzz/src/director.rs"]
mod director;

/// The first port that full NAT takes from the pool.
const POOL_PORT: u16 = 1024;

/// A packet that is not forwarded, one that is, and a backend's that is.
const STAYS: Option<bool> = None;
const GOES: Option<bool> = Some(false);
const RETURNS: Option<bool> = Some(true);

/// Name and frames of each seed, and what becomes of these.
type Seed = (String, Vec<Vec<u8>>, Vec<Option<bool>>);

fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (i, version) in [4, 6].into_iter().enumerate() {
        let (vip, rip, pool) = (vips()[i], backends()[i], pool()[i]);
        let mut add = |name: &str, frames: Vec<Vec<u8>>, ends: &[Option<bool>]| {
            seeds.push((format!("v{version}-{name}"), frames, ends.to_vec()));
        };
        let answer = |packet: fn(IpAddr, u16) -> Packet, to: (IpAddr, u16), port| {
            packet(to.0, to.1).from(rip).sent_from(port).payload(6)
        };
        let cip = (client(vip), CLIENT_PORT);
        let association = |ip, port| sctp(ip, port, false);
        for (name, there, back) in [
            ("nat-tcp", tcp(vip, 81), answer(tcp, cip, 8081)),
            (
                "nat-tracked",
                tcp(vip, 82).syn(),
                answer(tcp, cip, 8082).syn_ack(),
            ),
            ("nat-udp", udp(vip, 54), answer(udp, cip, 8054)),
            (
                "nat-sctp",
                sctp(vip, 2906, true),
                answer(association, cip, 2906),
            ),
            (
                "full-tcp",
                tcp(vip, 83).syn(),
                answer(tcp, (pool, POOL_PORT), 8083),
            ),
            (
                "full-udp",
                udp(vip, 83),
                answer(udp, (pool, POOL_PORT), 8083),
            ),
        ] {
            let there = there.payload(6);
            add(
                name,
                vec![there.build(), back.build(), there.build()],
                &[GOES, RETURNS, GOES],
            );
            let pieces = |packet: &Packet| cut(&packet.clone().payload(40).build(), 32, 32, 7);
            add(
                &format!("{name}-fragments"),
                [pieces(&there), pieces(&back)].concat(),
                &[GOES, GOES, RETURNS, RETURNS],
            );
            let [unreachable, too_big] = if version == 4 {
                [(3, 1), (3, 4)]
            } else {
                [(1, 1), (2, 0)]
            };
            add(
                &format!("{name}-errors"),
                vec![
                    there.build(),
                    there.icmp_error_quoting(unreachable.0, unreachable.1, 20),
                    back.icmp_error_quoting(too_big.0, too_big.1, 8),
                ],
                &[GOES, GOES, RETURNS],
            );
        }
        for (name, packet) in [
            ("dr-sctp", sctp(vip, 2905, true)),
            ("dr-tcp", tcp(vip, 80)),
            ("tun-tcp", tcp(vip, 443)),
        ] {
            let frame = packet.clone().payload(40).build();
            let [first, later] = cut(&frame, 32, 32, 8);
            let [_, overlap] = cut(&frame, 32, 24, 8);
            let [tiny, _] = cut(&frame, 8, 8, 9);
            add(
                &format!("{name}-fragments"),
                vec![later.clone(), first, later, overlap, tiny],
                &[STAYS, GOES, GOES, STAYS, STAYS],
            );
        }
        let web = tcp(vip, 81).payload(6);
        let options = if version == 4 {
            web.clone().ip_options(&[7, 7, 4, 0, 0, 0, 0, 0]).build()
        } else {
            with_extension(&web.build(), 60, &[0, 0, 1, 4, 0, 0, 0, 0])
        };
        let big = tcp(vip, 81).payload(700);
        add(
            "nat-refused",
            vec![web.ttl(1).build(), options],
            &[STAYS, GOES],
        );
        add("nat-too-big", vec![big.build()], &[STAYS]);
    }
    seeds
}

/// With LB_WRITE_SEEDS set the corpus is brought up to date instead.
#[test]
fn the_fuzzers_begin_with_these_packets() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/flows");
    let writes = std::env::var_os("LB_WRITE_SEEDS").is_some();
    for (name, frames, _) in seeds() {
        let lengths = frames
            .iter()
            .map(|frame| (frame.len() as u16).to_le_bytes());
        let with_lengths = lengths
            .zip(&frames)
            .map(|(l, frame)| [&l[..], frame].concat());
        let input = with_lengths.collect::<Vec<_>>().concat();
        let path = corpus.join(&name);
        if writes {
            fs::create_dir_all(&corpus).unwrap();
            fs::write(&path, input).unwrap();
        } else {
            let is_there = fs::read(&path).is_ok_and(|bytes| bytes == input);
            assert!(
                is_there,
                "{name}: set LB_WRITE_SEEDS and run this test again"
            );
        }
    }
}

#[test]
fn they_get_where_they_should() {
    assert_eq!(director::MAC, DIRECTOR_MAC);
    let tables = director::tables();
    for (name, frames, ends) in seeds() {
        director::forget(&tables);
        assert_eq!(frames.len(), ends.len());
        for (i, (frame, end)) in frames.iter().zip(ends).enumerate() {
            let done = director::send(frame, &tables);
            let direction = done.mode.map(|_| done.is_reply);
            assert_eq!(direction, end, "{name}, packet {i}");
            assert!(end.is_none() || done.bytes != *frame, "{name}, packet {i}");
        }
    }
}
