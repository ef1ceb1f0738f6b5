//! Packets on the wire and real sockets behind the VIP.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::Context;
use etherparse::{PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice};

use crate::bench::{Bench, SOON, backend, client, director, stranger, vip};
use crate::packet::{has_right_checksums, udp};

const PAIRINGS: [(u8, u8); 4] = [(4, 4), (4, 6), (6, 4), (6, 6)];

/// A segment of the client's to port 80 of the VIP.
fn segment(from: u16, version: u8, edit: impl FnOnce(&mut TcpHeader), payload: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(from, 80, 1000, 64_240);
    edit(&mut header);
    let mut packet = Vec::new();
    match (client(version), vip(version)) {
        (IpAddr::V4(c), IpAddr::V4(v)) => PacketBuilder::ipv4(c.octets(), v.octets(), 64)
            .tcp_header(header)
            .write(&mut packet, payload),
        (IpAddr::V6(c), IpAddr::V6(v)) => PacketBuilder::ipv6(c.octets(), v.octets(), 64)
            .tcp_header(header)
            .write(&mut packet, payload),
        _ => unreachable!("one version"),
    }
    .unwrap();
    packet
}

fn syn(from: u16, version: u8) -> Vec<u8> {
    let edit = |header: &mut TcpHeader| {
        header.syn = true;
        let options = [TcpOptionElement::MaximumSegmentSize(8960)];
        header.set_options(&options).unwrap();
    };
    segment(from, version, edit, &[])
}

/// The whole frame of the SYN-ACK to this port of the client, and its header.
fn syn_ack(bench: &Bench, port: u16) -> anyhow::Result<(Vec<u8>, TcpHeader)> {
    let found = bench.wire.receive_where(SOON, |frame| {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            return None;
        };
        let is_it = tcp.destination_port() == port && tcp.syn() && tcp.ack();
        is_it.then(|| (frame.to_vec(), tcp.to_header()))
    })?;
    found.ok_or_else(|| anyhow::anyhow!("no SYN-ACK to port {port}; check says {}", bench.check()))
}

fn mss_of(header: &TcpHeader) -> Option<u16> {
    header
        .options_iterator()
        .flatten()
        .find_map(|option| match option {
            TcpOptionElement::MaximumSegmentSize(mss) => Some(mss),
            _ => None,
        })
}

fn listen(bench: &Bench, version: u8) -> TcpListener {
    let address = SocketAddr::new(vip(version), 80);
    bench
        .host
        .in_namespace(|| TcpListener::bind(address))
        .unwrap()
}

#[test]
fn what_directors_encapsulate_reaches_the_servers() -> anyhow::Result<()> {
    let bench = Bench::new("at-reach")?;
    bench.apply(&["--decapsulate", "xdp"]);
    directors_reach(&bench)
}

/// All pairings of IP versions, TCP and UDP.
pub fn directors_reach(bench: &Bench) -> anyhow::Result<()> {
    for (i, (outer, inner)) in (0..).zip(PAIRINGS) {
        let port = 40_000 + i;
        let listener = listen(bench, inner);
        bench.send_inside(director(outer), &syn(port, inner))?;
        let (frame, header) = syn_ack(bench, port)?;
        // 1500 less the larger outer header, IP and TCP.
        let limit = if inner == 4 { 1420 } else { 1400 };
        assert_eq!(mss_of(&header), Some(limit), "{inner} in {outer}");
        assert!(has_right_checksums(&frame), "{inner} in {outer}");

        let next = header.sequence_number.wrapping_add(1);
        let answer = |header: &mut TcpHeader| {
            header.sequence_number = 1001;
            header.ack = true;
            header.acknowledgment_number = next;
        };
        bench.send_inside(director(outer), &segment(port, inner, answer, b"hello"))?;
        let (mut stream, from) = listener.accept()?;
        assert_eq!(from, SocketAddr::new(client(inner), port));
        stream.set_read_timeout(Some(SOON))?;
        let mut text = [0; 5];
        stream.read_exact(&mut text)?;
        assert_eq!(&text, b"hello");
        stream.write_all(b"bye")?;

        let server = bench
            .host
            .in_namespace(|| UdpSocket::bind(SocketAddr::new(vip(inner), 53)))?;
        server.set_read_timeout(Some(SOON))?;
        let question = udp(client(inner), vip(inner), 1200);
        bench.send_inside(director(outer), &question)?;
        let mut text = [0; 2000];
        let (length, from) = server.recv_from(&mut text)?;
        assert_eq!(
            (length, from.ip()),
            (1200, client(inner)),
            "{inner} in {outer}"
        );
    }
    assert_eq!(bench.number("counters", "decapsulated"), 12);
    assert_eq!(bench.number("counters", "mss_lowered"), 4);
    let report = bench.json(&["check"], 0);
    assert_eq!(report["status"]["interfaces"]["eth0"], "native", "{report}");
    let mtu = &report["status"]["directors"][0]["mtu"];
    assert_eq!(mtu, 1500, "{report}");
    Ok(())
}

#[test]
fn strangers_are_dropped_and_counted() -> anyhow::Result<()> {
    let bench = Bench::new("at-stranger")?;
    bench.apply(&["--decapsulate", "xdp"]);
    strangers_do_not(&bench)
}

/// All pairings of IP versions; nothing has arrived before.
pub fn strangers_do_not(bench: &Bench) -> anyhow::Result<()> {
    let report = bench.json(&["check"], 0);
    assert!(
        report["notes"]
            .to_string()
            .contains("no packet from a director"),
        "{report}"
    );
    let mut count = 0;
    for (outer, inner) in PAIRINGS {
        // The one before lives on in a process that another test is starting,
        // until that has its own program.
        let bind = || UdpSocket::bind(SocketAddr::new(vip(inner), 53));
        let server = integration::eventually("a free port", SOON, || {
            bench.host.in_namespace(bind).map_err(|e| e.to_string())
        });
        bench.send_inside(stranger(outer), &udp(client(inner), vip(inner), 10))?;
        // What comes after it has overtaken nothing.
        bench.send_inside(director(outer), &udp(client(inner), vip(inner), 20))?;
        server.set_read_timeout(Some(SOON))?;
        let mut text = [0; 100];
        let received = server.recv_from(&mut text).with_context(|| {
            let links = bench.ip("-s link show").unwrap_or_default();
            format!("{inner} in {outer}: {}\n{links}", bench.check())
        })?;
        assert_eq!(received.0, 20, "{inner} in {outer}");
        count += 1;
        assert_eq!(bench.number("drops", "stranger"), count);
    }
    // A director's, for what is no VIP: told too.
    bench.send_inside(director(4), &udp(client(4), backend(4), 10))?;
    integration::eventually("the drop to be counted", SOON, || {
        bench.number("drops", "not_vip") == 1
    });
    let report = bench.json(&["check"], 0);
    let notes = report["notes"].to_string();
    assert!(notes.contains("dropped 4 (stranger)"), "{report}");
    Ok(())
}

/// A checksum that is still to be completed when the MSS is lowered, as the
/// kernel leaves it to network cards, is right once it is completed.
#[test]
fn a_checksum_that_is_completed_later_comes_out_right() -> anyhow::Result<()> {
    let bench = Bench::new("at-offload")?;
    bench.host.run("ethtool", ["-K", "eth0", "tx", "on"])?;
    bench.apply(&["--decapsulate", "xdp", "--mss", "1300"]);
    for (port, version) in [(40_000, 4), (40_001, 6)] {
        let _listener = listen(&bench, version);
        bench.send_inside(director(4), &syn(port, version))?;
        let (frame, header) = syn_ack(&bench, port)?;
        assert_eq!(mss_of(&header), Some(1300));
        assert!(has_right_checksums(&frame), "IPv{version}");
    }
    Ok(())
}

/// The clamp is for SYN-ACKs of VIPs, and can be off.
#[test]
fn other_servers_offer_what_they_like() -> anyhow::Result<()> {
    let bench = Bench::new("at-noclamp")?;
    bench.apply(&["--decapsulate", "xdp", "--mss", "off"]);
    let _listener = listen(&bench, 4);
    bench.send_inside(director(4), &syn(40_000, 4))?;
    assert_eq!(mss_of(&syn_ack(&bench, 40_000)?.1), Some(1460));
    let lowered = || bench.number("counters", "mss_lowered");
    assert_eq!(lowered(), 0);
    bench.apply(&["--decapsulate", "xdp"]);
    bench.send_inside(director(4), &syn(40_001, 4))?;
    assert_eq!(mss_of(&syn_ack(&bench, 40_001)?.1), Some(1420));
    // Also those that the server sends again, as nobody answers them.
    assert!(lowered() >= 1);
    Ok(())
}

/// A strict reverse path filter would drop a client whose answer goes another
/// way: the one on `all` too.
#[test]
fn clients_behind_another_interface_get_in() -> anyhow::Result<()> {
    let bench = Bench::new("at-rpf")?;
    bench
        .host
        .attach(&bench.segment, "eth1", &["192.0.2.99/24"])?;
    bench.ip("route add 198.51.100.7/32 dev eth1")?;
    let server = bench.host.in_namespace(|| UdpSocket::bind("0.0.0.0:53"))?;
    let apply = || bench.apply(&["--decapsulate", "xdp", "--interface", "eth0"]);
    apply();
    let send = || bench.send_inside(director(4), &udp(client(4), vip(4), 10));
    let mut text = [0; 100];
    for (key, all, own) in [("eth0", 0, 1), ("all", 1, 0)] {
        let filters = [("all", all), ("eth0", own)];
        for (name, value) in filters {
            let key = format!("net.ipv4.conf.{name}.rp_filter");
            bench.host.set_sysctl(&key, value)?;
        }
        server.set_read_timeout(Some(Duration::from_millis(300)))?;
        send()?;
        assert!(server.recv_from(&mut text).is_err(), "strict on {key}");
        let fix = "sysctl -w net.ipv4.conf.eth0.rp_filter=2";
        assert_eq!(bench.fixes(), [fix], "strict on {key}");
        apply();
        server.set_read_timeout(Some(SOON))?;
        send()?;
        assert_eq!(server.recv_from(&mut text)?.0, 10, "after apply, {key}");
    }
    Ok(())
}
