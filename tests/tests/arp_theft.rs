//! The theft: backends that hold the VIP and answer ARP for it take it from
//! the director, until `lb-agent apply`.
//!
//! Needs root, and `lb-agent` built: `cargo build -p lb-agent`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use integration::agent::Agent;
use integration::asker::Asker;
use integration::nginx::Nginx;
use integration::packets::{Arp, Operation, PacketSocket};
use integration::{Host, Lab, Mac};

const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x10);
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 100);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x100);
const FLUSHES: usize = 100;

/// A client, a director that has the VIPs on eth0, and two backends, each
/// with a web server that says where it runs. Which of several ARP answers
/// wins depends on their order: one backend is attached before the director
/// and one after it, so that one of them always comes first and one last.
struct Scene {
    _servers: Vec<Nginx>,
    client: Host,
    director_mac: Mac,
    backends: [Backend; 2],
    _lab: Lab,
}

struct Backend {
    host: Host,
    mac: Mac,
    agent: Agent,
}

impl Scene {
    fn new(name: &str) -> anyhow::Result<Self> {
        let lab = Lab::new(name)?;
        let segment = lab.segment("lan")?;
        let client = lab.host("client")?;
        client.attach(
            &segment,
            "eth0",
            &[&format!("{CLIENT}/24"), &format!("{CLIENT6}/64")],
        )?;
        let backend = |name: &str, number: u8| {
            let host = lab.host(name)?;
            let addresses = [
                format!("203.0.113.{number}/24"),
                format!("2001:db8:0:1::{number}/64"),
            ];
            let mac = host.attach(&segment, "eth0", &addresses.each_ref().map(String::as_str))?;
            let agent = Agent::new(&lab, &host)?;
            anyhow::Ok(Backend { host, mac, agent })
        };
        let first = backend("b1", 21)?;
        let director = lab.host("director")?;
        let addresses = [
            "203.0.113.2/24",
            "2001:db8:0:1::2/64",
            &format!("{VIP}/32"),
            &format!("{VIP6}/128"),
        ];
        let director_mac = director.attach(&segment, "eth0", &addresses)?;
        let second = backend("b2", 22)?;
        let servers = [&director, &first.host, &second.host]
            .map(|host| Nginx::start(host, lab.dir(), &["80", "[::]:80"]));
        Ok(Self {
            _servers: servers.into_iter().collect::<Result<_, _>>()?,
            client,
            director_mac,
            backends: [first, second],
            _lab: lab,
        })
    }

    /// Empties the client's neighbour table, talks to the VIP, and tells who
    /// is in the table afterwards and who answers then.
    fn round(&self, vip: IpAddr) -> anyhow::Result<(Mac, String)> {
        self.client.flush_neighbours()?;
        // With several answers to one question the first connection may be
        // torn between two hosts; then it fails, and the table is settled.
        let first = self.get(vip);
        let mac = self.client.neighbour(vip, "eth0")?;
        let mac = mac.ok_or_else(|| anyhow::anyhow!("nobody has {vip}: {first:?}"))?;
        Ok((mac, self.get(vip)?))
    }

    fn get(&self, vip: IpAddr) -> anyhow::Result<String> {
        self.client.in_namespace(|| {
            let timeout = Duration::from_secs(5);
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(vip, 80), timeout)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim());
            Ok(body.unwrap_or_default().to_owned())
        })
    }

    /// Within a hundred flushes a backend has the VIP, and requests go to it
    /// past the director.
    #[track_caller]
    fn assert_stolen(&self, vip: IpAddr) {
        let mut seen = Vec::new();
        for _ in 0..FLUSHES {
            let round = self.round(vip);
            if let Ok((mac, server)) = &round
                && self
                    .backends
                    .iter()
                    .any(|b| b.mac == *mac && b.host.name() == server)
            {
                return;
            }
            seen.push(round);
        }
        panic!("nobody steals {vip}: {:?}", seen.last());
    }

    /// Through a hundred flushes the director has the VIP.
    #[track_caller]
    fn assert_kept(&self, vip: IpAddr) {
        for flush in 0..FLUSHES {
            match self.round(vip) {
                Ok((mac, server)) => assert_eq!(
                    (mac, server.as_str()),
                    (self.director_mac, "director"),
                    "flush {flush}"
                ),
                Err(e) => panic!("flush {flush}: {e:#}"),
            }
        }
    }

    fn on_backends(&self, args: &str) -> anyhow::Result<()> {
        for backend in &self.backends {
            backend.host.run("ip", args.split_whitespace())?;
        }
        Ok(())
    }

    #[track_caller]
    fn agents(&self, args: &[&str]) {
        for backend in &self.backends {
            let report = backend.agent.json(args, 0);
            assert_eq!(report["changed"], true, "{report}");
        }
    }
}

/// The backends were set up by hand, as one would think it is done.
#[test]
fn backends_steal_the_vip_until_apply_and_again_after_undo() -> anyhow::Result<()> {
    let scene = Scene::new("theft")?;
    scene.assert_kept(VIP.into());
    scene.on_backends(&format!("address add {VIP}/32 dev lo"))?;
    scene.assert_stolen(VIP.into());

    scene.agents(&["apply", "--vip", &VIP.to_string()]);
    scene.assert_kept(VIP.into());

    scene.agents(&["undo"]);
    scene.assert_stolen(VIP.into());
    Ok(())
}

/// With IPv6 the VIP is stolen only where it is on the interface itself.
#[test]
fn backends_steal_an_ipv6_vip_on_eth0_and_never_on_lo() -> anyhow::Result<()> {
    let scene = Scene::new("theft6")?;
    scene.on_backends(&format!("address add {VIP6}/64 dev eth0 nodad"))?;
    scene.assert_stolen(VIP6.into());

    for backend in &scene.backends {
        let check = backend
            .agent
            .json(&["check", "--vip", &VIP6.to_string()], 2);
        let fixes: Vec<&str> = check["findings"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|finding| finding["fix"].as_str())
            .collect();
        assert!(
            fixes.contains(&"ip address del 2001:db8:0:1::10/64 dev eth0"),
            "{check}"
        );
    }
    scene.on_backends(&format!("address del {VIP6}/64 dev eth0"))?;
    scene.agents(&["apply", "--vip", &VIP6.to_string()]);
    scene.assert_kept(VIP6.into());
    Ok(())
}

/// The order of the steps of `apply` and `undo`: while the client asks without
/// a pause, a backend comes and goes ten times and never answers.
#[test]
fn apply_and_undo_never_answer_in_between() -> anyhow::Result<()> {
    let scene = Scene::new("between")?;
    let [backend, _] = &scene.backends;
    let vip = VIP.to_string();
    let client_mac = scene.client.mac("eth0")?;
    let wire = PacketSocket::open(&scene.client, "eth0")?;
    let [for_vip, for_rip] = [VIP, Ipv4Addr::new(203, 0, 113, 21)]
        .map(|target| Arp::request(client_mac, CLIENT, target).to_frame_for(backend.mac));
    let done = AtomicBool::new(false);
    let (asked, rip_answers, vip_answers) = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut asked, mut rips, mut vips) = (0, 0, 0);
            while !done.load(Ordering::Relaxed) {
                wire.send(&for_vip)?;
                wire.send(&for_rip)?;
                asked += 1;
                // One answer per round at least, so that no queue overflows.
                wire.receive_where(Duration::from_secs(10), |frame| {
                    let arp = Arp::parse(frame)?;
                    let answer = arp.operation == Operation::Reply && arp.sender_mac == backend.mac;
                    vips += u32::from(answer && arp.sender_ip == VIP);
                    let rip = answer && arp.sender_ip != VIP;
                    rips += u32::from(rip);
                    rip.then_some(())
                })?;
            }
            anyhow::Ok((asked, rips, vips))
        });
        for _ in 0..10 {
            for args in [&["apply", "--vip", &vip][..], &["undo"]] {
                let report = backend.agent.json(args, 0);
                assert_eq!(report["changed"], true, "{report}");
            }
        }
        done.store(true, Ordering::Relaxed);
        asking.join().expect("the asking thread ends")
    })?;
    assert!(asked > 100 && rip_answers > 100, "{asked} {rip_answers}");
    assert_eq!(vip_answers, 0, "of {asked} requests for the VIP");

    // What would have been seen, had the address come first.
    backend
        .host
        .run("ip", ["address", "add", &format!("{vip}/32"), "dev", "lo"])?;
    let asker = Asker::new(
        &scene.client,
        "eth0",
        CLIENT6,
        backend.mac,
        "2001:db8:0:1::21".parse()?,
    )?;
    assert!(asker.arp(CLIENT, VIP)?);
    Ok(())
}
