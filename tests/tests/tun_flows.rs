//! Flows through tunnels: every pairing of IP versions, and connections
//! through all that happens to a director and its backends.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, ensure};
use etherparse::{NetSlice, SlicedPacket};
use integration::capture::{Capture, ENCAPSULATED};
use integration::talk::{Pace, Protocol, Talkers};
use integration::topology::{Family, Router, Scene, Site};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use serde_json::json;

/// More patient than a slow machine is slow: what is lost is lost.
const UDP_PACE: Pace = Pace {
    every: Duration::from_millis(250),
    patience: Duration::from_secs(4),
};

/// TCP and UDP through one VIP to backends of the same or the other IP
/// version, and nothing but what was asked for on the wire.
fn flows_arrive(name: &str, inner: Family, outer: Family) -> anyhow::Result<()> {
    const FLOWS: usize = 40;
    let scene = Scene::new(Site::tun(name, 3)?, Protocol::Tcp, inner, outer)?;
    let mut service = scene.service();
    service["name"] = json!("ask");
    service["protocol"] = json!("udp");
    scene.site.put_service(&service)?;
    let router = &scene.site.router()?.host;
    let capture = |ifname| Capture::start(&scene.site.lab, router, ifname, ENCAPSULATED);
    let comes = capture(Router::TO_DIRECTOR)?;
    let goes = capture(Router::TO_BACKENDS)?;
    let strays = capture(Router::TO_CLIENTS)?;

    let tcp = scene.talk(FLOWS)?;
    let vip = SocketAddr::new(inner.vip(), Scene::PORT);
    let client = &scene.site.client;
    let udp = Talkers::start(client, Protocol::Udp, vip, FLOWS, UDP_PACE)?;
    for talk in [&tcp, &udp] {
        talk.round("in a tunnel")?;
        talk.ensure_steady("in a tunnel")?;
        let shares = talk.by_backend();
        ensure!(shares.len() == 3, "not all backends served: {shares:?}");
    }
    drop((tcp, udp));

    ensure!(
        strays.finish()?.is_empty(),
        "a reply came back in a tunnel: it must leave past the director"
    );
    for capture in [comes, goes] {
        let frames = capture.finish()?;
        ensure!(frames.len() >= 4 * FLOWS, "only {} frames", frames.len());
        for frame in &frames {
            ensure_encapsulated(&scene.site, frame, inner, outer)
                .with_context(|| format!("{frame:02x?}"))?;
        }
    }
    Ok(())
}

/// From the director to a backend, and in it a whole packet for the VIP.
fn ensure_encapsulated(
    site: &Site,
    frame: &[u8],
    inner: Family,
    outer: Family,
) -> anyhow::Result<()> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let (source, destination, payload) = addresses(packet.net.as_ref())?;
    ensure!(source == site.director_address(outer), "from {source}");
    let backends = site.backends.iter();
    let mut rips = backends.map(|backend| backend.address(outer));
    ensure!(rips.any(|rip| rip == destination), "to {destination}");
    let packet = SlicedPacket::from_ip(payload)?;
    let (source, destination, _) = addresses(packet.net.as_ref())?;
    let client = integration::topology::Net::Clients.address(inner, 100);
    ensure!(source == client, "inside from {source}");
    ensure!(destination == inner.vip(), "inside to {destination}");
    Ok(())
}

fn addresses<'a>(
    net: Option<&'a NetSlice<'a>>,
) -> anyhow::Result<(std::net::IpAddr, std::net::IpAddr, &'a [u8])> {
    match net.context("no IP packet")? {
        NetSlice::Ipv4(v4) => Ok((
            v4.header().source_addr().into(),
            v4.header().destination_addr().into(),
            v4.payload().payload,
        )),
        NetSlice::Ipv6(v6) => Ok((
            v6.header().source_addr().into(),
            v6.header().destination_addr().into(),
            v6.payload().payload,
        )),
        other => anyhow::bail!("not IP: {other:?}"),
    }
}

#[test]
fn flows_arrive_v4_in_v4() -> anyhow::Result<()> {
    flows_arrive("t44", Family::V4, Family::V4)
}

#[test]
fn flows_arrive_v6_in_v4() -> anyhow::Result<()> {
    flows_arrive("t64", Family::V6, Family::V4)
}

#[test]
fn flows_arrive_v4_in_v6() -> anyhow::Result<()> {
    flows_arrive("t46", Family::V4, Family::V6)
}

#[test]
fn flows_arrive_v6_in_v6() -> anyhow::Result<()> {
    flows_arrive("t66", Family::V6, Family::V6)
}

fn flows_survive(
    name: &str,
    protocol: Protocol,
    inner: Family,
    outer: Family,
) -> anyhow::Result<()> {
    const FLOWS: usize = 100;
    let mut scene = Scene::new(Site::tun(name, 3)?, protocol, inner, outer)?;
    let talk = scene.talk(FLOWS)?;
    let begun = talk.by_backend();
    ensure!(
        begun.len() == 3 && begun.values().all(|&n| n >= FLOWS / 8),
        "{begun:?}"
    );

    scene.add()?;
    talk.round("after a backend was added")?;
    let with_fourth = scene.talk(60)?;
    ensure!(
        with_fourth.by_backend().len() == 4 || protocol == Protocol::Udp,
        "{:?}",
        with_fourth.by_backend()
    );

    scene.set_weight(0, 0)?;
    scene.is(0, "draining")?;
    talk.round("after a backend was drained")?;
    scene.set_weight(1, 5)?;
    talk.round("after a backend was re-weighted")?;
    scene.remove(2)?;
    scene.is(2, "removed")?;
    talk.round("after a backend was removed")?;
    if protocol == Protocol::Tcp {
        scene.ensure_new_ones_avoid(0)?;
        scene.ensure_new_ones_avoid(2)?;
    }
    talk.ensure_steady("after all changes of backends")?;

    scene.site.end_director(Signal::SIGKILL)?;
    for _ in 0..3 {
        talk.round("while lb-ctl is dead")?;
    }
    scene.site.start_director(&[])?;
    talk.round("after lb-ctl was started again")?;
    scene.is(2, "removed")?;
    scene.is(0, "draining")?;
    scene.set_weight(0, 1)?;
    talk.round("after a drained backend was taken back")?;

    talk.ensure_steady("at the end")?;
    with_fourth.ensure_steady("at the end")?;
    ensure!(talk.by_backend() == begun, "{:?}", talk.by_backend());
    Ok(())
}

#[test]
fn connections_survive_v4_in_v4() -> anyhow::Result<()> {
    flows_survive("live44", Protocol::Tcp, Family::V4, Family::V4)
}

#[test]
fn connections_survive_v6_in_v6() -> anyhow::Result<()> {
    flows_survive("live66", Protocol::Tcp, Family::V6, Family::V6)
}

#[test]
fn udp_flows_survive_v6_in_v4() -> anyhow::Result<()> {
    flows_survive("live64", Protocol::Udp, Family::V6, Family::V4)
}

#[test]
fn udp_flows_survive_v4_in_v6() -> anyhow::Result<()> {
    flows_survive("live46", Protocol::Udp, Family::V4, Family::V6)
}

/// A client uses a port again of which the director still has a record: that
/// is a new flow, and a drained backend does not get it.
#[test]
fn a_port_used_again_is_a_new_flow() -> anyhow::Result<()> {
    let mut site = Site::tun("again", 2)?;
    site.start_director(&[])?;
    for i in 0..2 {
        site.agent_apply(i)?;
    }
    let mut service = site.service("web", Family::V4, &[0, 1]);
    let fields = service.as_object_mut().context("an object")?;
    fields.remove("health_check");
    site.put_service(&service)?;
    let set_weight = |i: usize, weight: u32| {
        let path = site.backend_path("web", Family::V4, i);
        site.api().patch(&path, &json!({"weight": weight}))?.ok()
    };
    // Flows of slots that are b2's are recorded on b1.
    set_weight(1, 0)?;
    let first = ask_from_ports(&site)?;
    ensure!(first.iter().all(|name| name == "b1"), "{first:?}");
    // The slots are pinned to b2 again; b1 drains.
    set_weight(1, 1)?;
    set_weight(0, 0)?;
    let pinned = &site.service_status("web")?["ring"]["pinned"];
    ensure!(pinned.as_u64() > Some(0), "no slot is pinned");
    let again = ask_from_ports(&site)?;
    ensure!(again.iter().all(|name| name == "b2"), "{again:?}");
    Ok(())
}

/// Who answers requests from each of some ports of the client.
fn ask_from_ports(site: &Site) -> anyhow::Result<Vec<String>> {
    site.client
        .in_namespace(|| (20_000..20_040).map(ask_from_port).collect())
}

fn ask_from_port(port: u16) -> anyhow::Result<String> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
    connect(socket.as_raw_fd(), &SockaddrIn::new(203, 0, 113, 10, 80))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    // To the end: the server closes first, and the port is free at once.
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let name = answer.lines().last();
    Ok(name.context("an empty answer")?.to_owned())
}
