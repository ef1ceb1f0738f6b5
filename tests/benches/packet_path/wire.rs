//! Instructions per packet on the way through a director, ours or IPVS, for a
//! machine whose clock counts them.
//!
//! Client and director are network namespaces joined by a veth pair. A source
//! at the client's end sends batches of frames as a NIC's driver has them; the
//! director sends each packet back to the MAC address of a backend; a sink at
//! the client's end looks at each and drops it. With one processor all of that
//! has happened before test_run sends the next batch, so the nanoseconds that it
//! reports per packet are all instructions of source, veth, director and sink.
//! It rounds down, so a count is exact to two instructions.
//!
//! What is not the director's is told apart by more ways: a source whose packets
//! go nowhere, an XDP program that only swaps the MAC addresses, and a director
//! that only routes.

use anyhow::Context as _;
use integration::{Host, Lab, XdpAction};
use lb_common::protocol::TCP;
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};

use crate::cases::{ACK, SYN, one};
use crate::instructions::seen_twice;
use crate::programs::{DROP, EMPTY, Generator, MAC_SWAP, Traffic, object, xdp};
use crate::router::text;
use crate::sink::{Expected, Sink};
use crate::world::{
    DIRECTOR_MAC, LOOPBACK, Layout, Mode, World, backend_address, backend_mac, vip,
};

/// The client's end of the pair, and the director's.
const CLIENT: &str = "c0";
const DIRECTOR: &str = "d0";
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ADDRESS: &str = "192.0.2.2";

const BACKENDS: u32 = 10;
/// Packets of one run, and half of those of another: what is made at the start,
/// such as the source's pages, is in both and cancels out. Few enough that not
/// every run meets the clock's interrupt.
const PACKETS: u32 = 256;
const RUNS: usize = 9;

/// A way through the director.
#[derive(Clone, Copy)]
enum Way {
    /// The source drops its packets.
    Source,
    /// An XDP program swaps the MAC addresses.
    Swap,
    /// The kernel routes.
    Route,
    /// IPVS, with ipvsadm's flag for the mode.
    Ipvs(&'static str),
    /// The director's program.
    Ours(Mode),
}

/// The ways by mode and name; those of one mode are compared.
const WAYS: [(&str, &str, Way); 9] = [
    ("", "source", Way::Source),
    ("", "MAC swap in XDP", Way::Swap),
    ("", "routing", Way::Route),
    ("DR", "IPVS", Way::Ipvs("--gatewaying")),
    ("TUN", "IPVS", Way::Ipvs("--ipip")),
    ("NAT", "IPVS", Way::Ipvs("--masquerading")),
    ("DR", "ours", Way::Ours(Mode::Dr)),
    ("TUN", "ours", Way::Ours(Mode::Tun)),
    ("NAT", "ours", Way::Ours(Mode::Nat)),
];

/// Counts all ways and prints the result as JSON.
pub fn run() -> anyhow::Result<()> {
    let mut counts = Vec::new();
    for (mode, name, way) in WAYS {
        eprintln!("{name} {mode}");
        let (established, new) = way.count().with_context(|| format!("{name} {mode}"))?;
        counts.push(json!({
            "mode": mode,
            "way": name,
            "established_flow": established,
            "new_flows": new,
        }));
    }
    println!("{}", Value::from(counts));
    Ok(())
}

impl Way {
    /// Instructions per packet of an established flow, and of flows that begin
    /// with it.
    fn count(self) -> anyhow::Result<(u64, u64)> {
        let lab = Lab::new("wire")?;
        let (client, director) = (lab.host("client")?, lab.host("director")?);
        join(&client, &director)?;
        let mut sink = client.in_namespace(|| Sink::attach(CLIENT, self.expected()))?;
        let _guard = self.set_up(&lab, &director)?;
        // What a veth takes to merge segments is no director's business.
        director.run("ethtool", ["-K", DIRECTOR, "gro", "off"])?;
        client.run("ip", ["link", "set", "dev", CLIENT, "up"])?;
        client.in_namespace(|| self.send(&mut sink))
    }

    fn expected(self) -> Expected {
        let (mac, destination, protocol) = match self {
            Self::Source | Self::Swap => (CLIENT_MAC, 198, TCP),
            Self::Route | Self::Ipvs("--gatewaying") | Self::Ours(Mode::Dr) => {
                (backend_mac(0), 198, TCP)
            }
            Self::Ipvs("--masquerading") | Self::Ours(Mode::Nat | Mode::FullNat) => {
                (backend_mac(0), 10, TCP)
            }
            Self::Ipvs(_) | Self::Ours(Mode::Tun) => (backend_mac(0), 10, libc::IPPROTO_IPIP as u8),
        };
        Expected {
            mac: [mac[0], mac[1], mac[2], mac[3]],
            destination,
            protocol,
        }
    }

    /// Makes the director one; it is while the guard lives.
    fn set_up(self, lab: &Lab, director: &Host) -> anyhow::Result<Box<dyn Send>> {
        match self {
            Self::Source => Ok(Box::new(())),
            Self::Swap => director.in_namespace(|| {
                let mut object = aya::Ebpf::load_file(object())?;
                let program = xdp(&mut object, MAC_SWAP)?;
                program.load()?;
                program.attach(DIRECTOR, aya::programs::XdpMode::Driver)?;
                Ok(Box::new(object) as Box<dyn Send>)
            }),
            Self::Route => {
                as_router(lab, director)?;
                let via = backend_address(true, 0).to_string();
                director.run("ip", ["route", "add", "198.19.0.0/16", "via", &via])?;
                Ok(Box::new(()))
            }
            Self::Ipvs(flag) => {
                as_router(lab, director)?;
                let vip = vip(true, 0).to_string();
                director.add_address("lo", &format!("{vip}/32"))?;
                let service = format!("{vip}:80");
                let add = ["--add-service", "--tcp-service", &service];
                let scheduler = ["--scheduler", "mh", "--sched-flags", "mh-port"];
                director.run("ipvsadm", [&add[..], &scheduler[..]].concat())?;
                for n in 0..BACKENDS {
                    let backend = format!("{}:80", backend_address(true, n));
                    let add = ["--add-server", "--tcp-service", &service];
                    let server = ["--real-server", &backend, flag, "--weight", "1"];
                    director.run("ipvsadm", [&add[..], &server[..]].concat())?;
                }
                Ok(Box::new(()))
            }
            Self::Ours(mode) => {
                let layout = Layout {
                    mode,
                    services: 1,
                    each: BACKENDS,
                    interface: DIRECTOR,
                };
                let bpffs = lab.bpffs().join("director");
                let world = director.in_namespace(|| World::new(&bpffs, layout))?;
                Ok(Box::new(world))
            }
        }
    }

    fn send(self, sink: &mut Sink) -> anyhow::Result<(u64, u64)> {
        // IPVS forwards nothing of a flow whose first packet it has not seen.
        self.runs(sink, &one(4, TCP, SYN), 1)?;
        let [once, twice] = self.runs(sink, &one(4, TCP, ACK), RUNS)?;
        let established = difference(seen_twice(&once)?, seen_twice(&twice)?);
        let new = Traffic {
            flows: 1 << 20,
            ..one(4, TCP, SYN)
        };
        // No two runs are alike: tables fill.
        let [once, twice] = self.runs(sink, &new, RUNS)?;
        Ok((established, difference(once[RUNS / 2], twice[RUNS / 2])))
    }

    /// Instructions per packet of each of several runs of [`PACKETS`], and of
    /// as many with twice the packets; the least first.
    fn runs(
        self,
        sink: &mut Sink,
        traffic: &Traffic,
        runs: usize,
    ) -> anyhow::Result<[Vec<u64>; 2]> {
        let interface = if_nametoindex(CLIENT)?;
        let mut generator = Generator::new(traffic, LOOPBACK)?;
        let behind = match self {
            Self::Source => generator.floor(DROP)?,
            _ => generator.floor(EMPTY)?,
        };
        generator.begin(&behind)?;
        let mut counts = [Vec::new(), Vec::new()];
        for _ in 0..runs {
            for (counts, packets) in counts.iter_mut().zip([PACKETS, 2 * PACKETS]) {
                counts.push(generator.send(interface, packets)?);
                sink.take(match self {
                    Self::Source => 0,
                    _ => packets,
                })?;
            }
        }
        for counts in &mut counts {
            counts.sort_unstable();
        }
        Ok(counts)
    }
}

/// Instructions per packet of the second half of twice as many packets.
fn difference(once: u64, twice: u64) -> u64 {
    2 * twice - once
}

fn join(client: &Host, director: &Host) -> anyhow::Result<()> {
    let [client_mac, director_mac] = [CLIENT_MAC, DIRECTOR_MAC].map(text);
    let pair = ["link", "add", "name", CLIENT, "address", &client_mac];
    let peer = ["type", "veth", "peer", "name", DIRECTOR];
    let place = ["netns", director.namespace(), "address", &director_mac];
    client.run("ip", [&pair[..], &peer[..], &place[..]].concat())?;
    for (host, interface) in [(client, CLIENT), (director, DIRECTOR)] {
        // Nothing is sent that nobody asked for.
        host.set_sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6"), 1)?;
    }
    director.run("ip", ["link", "set", "dev", DIRECTOR, "up"])?;
    Ok(())
}

/// Has the kernel's own stack forward to the backends. An XDP program passes
/// everything to it: without one a veth takes no frames of a driver's.
fn as_router(lab: &Lab, director: &Host) -> anyhow::Result<()> {
    let pass = lab.xdp_program(XdpAction::Pass)?;
    let pass = pass.to_str().context("lab path is not UTF-8")?;
    director.run(
        "ip",
        ["link", "set", "dev", DIRECTOR, "xdpdrv", "pinned", pass],
    )?;
    director.set_sysctl("net.ipv4.ip_forward", 1)?;
    for interface in ["all", DIRECTOR] {
        director.set_sysctl(&format!("net.ipv4.conf.{interface}.send_redirects"), 0)?;
    }
    director.add_address(DIRECTOR, &format!("{ADDRESS}/24"))?;
    director.run("ip", ["route", "add", "10.0.0.0/8", "dev", DIRECTOR])?;
    for n in 0..BACKENDS {
        let (address, mac) = (backend_address(true, n).to_string(), text(backend_mac(n)));
        let entry = ["neighbour", "add", &address, "lladdr", &mac];
        director.run("ip", [&entry[..], &["dev", DIRECTOR]].concat())?;
    }
    Ok(())
}
