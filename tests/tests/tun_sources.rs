//! From which addresses a backend takes packets in packets: its directors'
//! own, or a prefix over which they spread, and no others.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use etherparse::{
    IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket,
};
use integration::agent::Agent;
use integration::capture::{Capture, ENCAPSULATED};
use integration::packets::{Ethernet, PacketSocket, ethertype};
use integration::talk::{Echo, Protocol};
use integration::topology::{Family, INTERFACE, Net, Router, Scene, Site};
use integration::{Host, try_eventually};
use nix::errno::Errno;
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;

/// A question to the echo server on the VIP, from the client.
const QUESTION: [u8; 8] = 7_u64.to_be_bytes();

struct Backend {
    site: Site,
    inner: Family,
    outer: Family,
    /// The client's socket, to which the server would answer.
    client: UdpSocket,
    _echo: Echo,
}

impl Backend {
    fn new(name: &str, inner: Family, outer: Family) -> anyhow::Result<Self> {
        let site = Site::tun(name, 1)?;
        let echo = site.start_echo(0, inner, PORT)?;
        let address = SocketAddr::new(Net::Clients.address(inner, 100), 0);
        let client = site.client.in_namespace(|| UdpSocket::bind(address))?;
        client.set_read_timeout(Some(SOON))?;
        Ok(Self {
            site,
            inner,
            outer,
            client,
            _echo: echo,
        })
    }

    /// Sends the client's question in a packet to the backend.
    fn send(&self, host: &Host, net: Net, source: IpAddr) -> anyhow::Result<()> {
        let inner = self.question()?;
        let rip = self.site.backends[0].address(self.outer);
        let packet = encapsulate(&inner, self.inner, source, rip)?;
        let gateway = self.site.router()?.address(net, self.outer);
        // It may not be known yet.
        let ping = ["-c", "1", "-W", "5", &gateway.to_string()].map(str::to_owned);
        host.run("ping", &ping)?;
        let mac = host.neighbour(gateway, INTERFACE)?;
        let frame = Ethernet {
            destination: mac.context("the gateway is not known")?,
            source: host.mac(INTERFACE)?,
            ethertype: match self.outer {
                Family::V4 => ethertype::IPV4,
                Family::V6 => ethertype::IPV6,
            },
        }
        .frame(&packet);
        PacketSocket::open(host, INTERFACE)?.send(&frame)
    }

    fn question(&self) -> anyhow::Result<Vec<u8>> {
        let port = self.client.local_addr()?.port();
        let client = Net::Clients.address(self.inner, 100);
        let builder = match (client, self.inner.vip()) {
            (IpAddr::V4(client), IpAddr::V4(vip)) => {
                PacketBuilder::ipv4(client.octets(), vip.octets(), 64)
            }
            (IpAddr::V6(client), IpAddr::V6(vip)) => {
                PacketBuilder::ipv6(client.octets(), vip.octets(), 64)
            }
            _ => anyhow::bail!("one packet has one IP version"),
        };
        let mut packet = Vec::new();
        builder.udp(port, PORT).write(&mut packet, &QUESTION)?;
        Ok(packet)
    }

    /// How many packets were dropped as a stranger's, and how many let in.
    fn counted(&self) -> anyhow::Result<(u64, u64)> {
        let agent = Agent::new(&self.site.lab, &self.site.backends[0].host)?;
        let answer = agent.call(&["check", "--json"])?;
        let report: serde_json::Value = serde_json::from_str(&answer.stdout)
            .with_context(|| format!("lb-agent check: {answer:?}"))?;
        let status = &report["status"];
        let stranger = status["drops"]["stranger"].as_u64();
        let let_in = status["counters"]["decapsulated"].as_u64();
        let counts = stranger.zip(let_in);
        counts.with_context(|| format!("no such counters in {report}"))
    }
}

fn encapsulate(
    inner: &[u8],
    inner_family: Family,
    source: IpAddr,
    destination: IpAddr,
) -> anyhow::Result<Vec<u8>> {
    let protocol = match inner_family {
        Family::V4 => IpNumber::IPV4,
        Family::V6 => IpNumber::IPV6,
    };
    let length = u16::try_from(inner.len())?;
    let mut packet = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            Ipv4Header::new(length, 64, protocol, source, destination)?.write(&mut packet)?;
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: length,
            next_header: protocol,
            hop_limit: 64,
            source: source.octets(),
            destination: destination.octets(),
        }
        .write(&mut packet)?,
        _ => anyhow::bail!("one header has one IP version"),
    }
    packet.extend(inner);
    Ok(packet)
}

fn a_stranger_is_dropped(name: &str, inner: Family, outer: Family) -> anyhow::Result<()> {
    let backend = Backend::new(name, inner, outer)?;
    let site = &backend.site;
    let director = site.director_address(outer);
    let stranger = Net::Clients.address(outer, 100);

    // The same packet from the director is answered: it is a good one.
    backend.send(&site.director, Net::Director, director)?;
    let mut answer = [0; 64];
    let length = backend.client.recv(&mut answer).context("no answer")?;
    ensure!(answer[..length].ends_with(&QUESTION), "{answer:?}");
    let counted = backend.counted()?;
    ensure!(counted == (0, 1), "{counted:?}");
    for sent in 1..=3 {
        backend.send(&site.client, Net::Clients, stranger)?;
        try_eventually(
            "the stranger's packet to be counted",
            SOON,
            || match backend.counted() {
                Ok(counts) if counts == (sent, 1) => Ok(()),
                other => Err(format!("{other:?}")),
            },
        )?;
    }
    // One more of the director's, behind the stranger's: its answer is the
    // only one.
    backend.send(&site.director, Net::Director, director)?;
    backend.client.recv(&mut answer).context("no answer")?;
    backend.client.set_nonblocking(true)?;
    let more = backend.client.recv(&mut answer);
    let is_nothing = more
        .as_ref()
        .is_err_and(|e| e.raw_os_error() == Some(Errno::EAGAIN as i32));
    ensure!(is_nothing, "the stranger had an answer: {more:?}");
    Ok(())
}

#[test]
fn a_stranger_is_dropped_v4_in_v4() -> anyhow::Result<()> {
    a_stranger_is_dropped("strange44", Family::V4, Family::V4)
}

#[test]
fn a_stranger_is_dropped_v6_in_v4() -> anyhow::Result<()> {
    a_stranger_is_dropped("strange64", Family::V6, Family::V4)
}

#[test]
fn a_stranger_is_dropped_v4_in_v6() -> anyhow::Result<()> {
    a_stranger_is_dropped("strange46", Family::V4, Family::V6)
}

#[test]
fn a_stranger_is_dropped_v6_in_v6() -> anyhow::Result<()> {
    a_stranger_is_dropped("strange66", Family::V6, Family::V6)
}

/// With outer sources spread over a prefix that the backends accept, flows
/// come from many of its addresses, each from one.
fn sources_are_spread(name: &str, family: Family, prefix: &str) -> anyhow::Result<()> {
    const FLOWS: usize = 60;
    let scene = Scene::new(Site::tun(name, 2)?, Protocol::Tcp, family, family)?;
    let site = &scene.site;
    let talk = scene.talk(FLOWS)?;
    let own = BTreeSet::from([site.director_address(family)]);
    let before = sources(site, || talk.round("from one source"))?;
    ensure!(before == own, "without a prefix from {before:?}");

    let accepted = format!("{},{prefix}", site.director_address(family));
    for i in 0..2 {
        site.agent_of(i, "apply", &accepted, &[])?;
    }
    let config = json!({
        "settings": {"tunnel_sources": [prefix]}, "services": [scene.service()],
    });
    site.api().put("/v1/config", &config)?.ok()?;
    try_eventually("other sources", SOON, || {
        let seen = sources(site, || talk.round("from many sources"));
        seen.is_ok_and(|seen| seen.is_disjoint(&own))
    })?;
    let after = sources(site, || talk.round("from many sources"))?;
    ensure!(
        (FLOWS / 3..=FLOWS).contains(&after.len()),
        "{} sources of {FLOWS} flows",
        after.len()
    );
    talk.ensure_steady("from many sources")
}

/// The outer sources that come to the backends meanwhile.
fn sources(
    site: &Site,
    meanwhile: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<BTreeSet<IpAddr>> {
    let router = &site.router()?.host;
    let capture = Capture::start(&site.lab, router, Router::TO_BACKENDS, ENCAPSULATED)?;
    meanwhile()?;
    let frames = capture.finish()?;
    frames.iter().map(|frame| source(frame)).collect()
}

fn source(frame: &[u8]) -> anyhow::Result<IpAddr> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    match packet.net.context("no IP packet")? {
        NetSlice::Ipv4(v4) => Ok(v4.header().source_addr().into()),
        NetSlice::Ipv6(v6) => Ok(v6.header().source_addr().into()),
        other => anyhow::bail!("not IP: {other:?}"),
    }
}

#[test]
fn sources_are_spread_v4() -> anyhow::Result<()> {
    sources_are_spread("spread4", Family::V4, "203.0.113.128/25")
}

#[test]
fn sources_are_spread_v6() -> anyhow::Result<()> {
    sources_are_spread("spread6", Family::V6, "2001:db8:0:1:1::/112")
}
