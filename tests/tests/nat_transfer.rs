//! Large transfers through NAT, on wide and narrow paths, and what ICMP says
//! meanwhile.
//!
//! Needs root, and `lb-ctl` built: `cargo xtask build-ebpf && cargo build -p
//! lb-ctl -p lb-agent`.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::capture::{Capture, ODD, TOO_BIG};
use integration::talk::Protocol;
use integration::topology::{Family, INTERFACE, Nat, Net, Place, Router, Site};
use integration::vm::bulk;
use integration::{Process, try_eventually};
use serde_json::Value;

const MB: u64 = 1_000_000;
const NARROW: &str = "1400";
const SOON: Duration = Duration::from_secs(10);
/// iperf3's port.
const IPERF: u16 = 5201;
/// A port of a UDP service whose backends have no server.
const SILENT: u16 = 7001;

/// Transfers are measured one at a time: there are few processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A web service on two backends in NAT mode.
struct Web {
    site: Site,
    family: Family,
}

impl Web {
    fn new(name: &str, nat: Nat, family: Family) -> anyhow::Result<Self> {
        let mut site = Site::nat(name, nat, 2)?;
        site.start_director(&[])?;
        let service = site.plain_service("web", family, Protocol::Tcp, 80, &[0, 1]);
        site.put_service(&service)?;
        Ok(Self { site, family })
    }

    fn upload(&self, bytes: u64) -> anyhow::Result<()> {
        self.site.upload(self.family, bytes)
    }

    fn download(&self, bytes: u64) -> anyhow::Result<()> {
        self.site.download(self.family, bytes)
    }

    /// Captures on all wires.
    fn capture(&self, filter: &str) -> anyhow::Result<Vec<Capture>> {
        let router = &self.site.router()?.host;
        let mut places = vec![(router, Router::TO_CLIENTS), (router, Router::TO_DIRECTOR)];
        places.extend(self.site.backends.iter().map(|b| (&b.host, INTERFACE)));
        places
            .into_iter()
            .map(|(host, ifname)| Capture::start(&self.site.lab, host, ifname, filter))
            .collect()
    }

    /// Starts iperf3 on the first backend, behind services of its own.
    fn serve_iperf(&self) -> anyhow::Result<Process> {
        let host = &self.site.backends[0].host;
        let port = self.site.server_port(IPERF).to_string();
        let mut iperf = host.command("iperf3");
        iperf.args(["--server", "--forceflush", "--port", &port]);
        let process = host.spawn(iperf, "iperf3")?;
        try_eventually("iperf3 to listen", SOON, || {
            let log = process.log();
            log.contains("Server listening").then_some(()).ok_or(log)
        })?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let name = format!("iperf-{}", protocol.name());
            let service = self
                .site
                .plain_service(&name, self.family, protocol, IPERF, &[0]);
            self.site.put_service(&service)?;
        }
        Ok(process)
    }

    /// Runs iperf3 on the client and returns the sums of what was received.
    fn iperf(&self, options: &[&str]) -> anyhow::Result<Value> {
        let vip = self.family.vip().to_string();
        let port = IPERF.to_string();
        let common = ["--json", "--client", &vip, "--port", &port];
        let args = common.iter().chain(options).copied();
        // The server may still be at the end of the run before.
        let mut report = try_eventually("iperf3 to run", SOON, || {
            let text = self.site.client.run("iperf3", args.clone());
            let text = text.map_err(|e| format!("{e:#}"))?;
            let report: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
            if report["error"].is_null() {
                Ok(report)
            } else {
                Err(text)
            }
        })?;
        let sum = if options.contains(&"--udp") {
            report["end"]["sum"].take()
        } else {
            report["end"]["sum_received"].take()
        };
        eprintln!("{} iperf3 {options:?}: {sum}", self.family);
        Ok(sum)
    }
}

fn none_of(captures: Vec<Capture>, what: &str) -> anyhow::Result<()> {
    for capture in captures {
        let frames = capture.finish()?;
        ensure!(
            frames.is_empty(),
            "{} {what}, the first of them: {:02x?}",
            frames.len(),
            frames[0]
        );
    }
    Ok(())
}

/// Up and down, whole, with right checksums, and nothing odd on any wire.
fn transfers_fit(name: &str, nat: Nat, family: Family, bytes: u64) -> anyhow::Result<()> {
    let web = Web::new(name, nat, family)?;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let odd = web.capture(ODD)?;
    let told = web.capture(TOO_BIG)?;
    web.upload(bulk(bytes))?;
    web.download(bulk(bytes))?;
    none_of(odd, "fragments or packets above the MTU")?;
    none_of(told, "ICMP errors although all is as wide")?;
    web.site.ensure_checksums_right()
}

#[test]
fn transfers_fit_gateway_v4() -> anyhow::Result<()> {
    transfers_fit("natfit4", Nat::GATEWAY, Family::V4, 200 * MB)
}

#[test]
fn transfers_fit_gateway_v6() -> anyhow::Result<()> {
    transfers_fit("natfit6", Nat::GATEWAY, Family::V6, 200 * MB)
}

#[test]
fn transfers_fit_full_v4() -> anyhow::Result<()> {
    transfers_fit("fullfit4", Nat::FULL, Family::V4, 200 * MB)
}

#[test]
fn transfers_fit_full_v6() -> anyhow::Result<()> {
    transfers_fit("fullfit6", Nat::FULL, Family::V6, 200 * MB)
}

#[test]
fn transfers_fit_one_interface_v4() -> anyhow::Result<()> {
    let nat = Nat::GATEWAY.at(Place::BesideDirector);
    transfers_fit("onefit4", nat, Family::V4, 20 * MB)
}

#[test]
fn transfers_fit_one_interface_v6() -> anyhow::Result<()> {
    let nat = Nat::GATEWAY.at(Place::BesideDirector);
    transfers_fit("onefit6", nat, Family::V6, 20 * MB)
}

#[test]
fn transfers_fit_one_interface_full_v4() -> anyhow::Result<()> {
    let nat = Nat::FULL.at(Place::BesideDirector);
    transfers_fit("onefull4", nat, Family::V4, 20 * MB)
}

#[test]
fn transfers_fit_one_interface_full_v6() -> anyhow::Result<()> {
    let nat = Nat::FULL.at(Place::BesideDirector);
    transfers_fit("onefull6", nat, Family::V6, 20 * MB)
}

/// Both ways, TCP and UDP.
fn iperf_is_served(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    /// Fewer than are sent: at the end of a run nobody waits for the rest.
    const BYTES: u64 = 25_000_000;
    let web = Web::new(name, nat, family)?;
    let _server = web.serve_iperf()?;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for direction in [&[][..], &["--reverse"]] {
        let tcp = [&["--bytes", "50M"], direction].concat();
        let received = web.iperf(&tcp)?["bytes"].as_u64();
        ensure!(received >= Some(BYTES), "{direction:?}: {received:?}");
        let udp = ["--udp", "--bitrate", "20M", "--time", "1", "--length"];
        let udp = [&udp[..], &["1200"], direction].concat();
        let sum = web.iperf(&udp)?;
        let number = |field: &str| {
            sum[field]
                .as_u64()
                .with_context(|| format!("{direction:?}: {sum}"))
        };
        let (packets, lost) = (number("packets")?, number("lost_packets")?);
        ensure!(packets > 500 && lost * 10 < packets, "{direction:?}: {sum}");
    }
    web.site.ensure_checksums_right()
}

#[test]
fn iperf_is_served_gateway_v4() -> anyhow::Result<()> {
    iperf_is_served("natperf4", Nat::GATEWAY, Family::V4)
}

#[test]
fn iperf_is_served_gateway_v6() -> anyhow::Result<()> {
    iperf_is_served("natperf6", Nat::GATEWAY, Family::V6)
}

#[test]
fn iperf_is_served_full_v4() -> anyhow::Result<()> {
    iperf_is_served("fullperf4", Nat::FULL, Family::V4)
}

#[test]
fn iperf_is_served_full_v6() -> anyhow::Result<()> {
    iperf_is_served("fullperf6", Nat::FULL, Family::V6)
}

/// A client traces the way: the router, the director, and behind the VIP a
/// backend that does not show itself.
fn the_way_is_traced(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    let web = Web::new(name, nat, family)?;
    let silent = web
        .site
        .plain_service("silent", family, Protocol::Udp, SILENT, &[0, 1]);
    web.site.put_service(&silent)?;
    web.site.ensure_refused(family, SILENT)?;
    let router: IpAddr = Net::Clients.address(family, 1);
    let director = [family.vip(), web.site.director_address(family)];
    for (kind, port) in [("-T", "80"), ("-U", "7001")] {
        let hops = web.site.hops(family, &[kind, "-p", port])?;
        eprintln!("{family} {kind}: {hops:?}");
        ensure!(hops.len() == 3, "{kind}: {hops:?}");
        ensure!(hops[0] == router, "{kind}: {hops:?}");
        ensure!(director.contains(&hops[1]), "{kind}: {hops:?}");
        ensure!(hops[2] == family.vip(), "{kind}: {hops:?}");
    }
    web.site.ensure_checksums_right()
}

#[test]
fn the_way_is_traced_gateway_v4() -> anyhow::Result<()> {
    the_way_is_traced("nattrace4", Nat::GATEWAY, Family::V4)
}

#[test]
fn the_way_is_traced_gateway_v6() -> anyhow::Result<()> {
    the_way_is_traced("nattrace6", Nat::GATEWAY, Family::V6)
}

#[test]
fn the_way_is_traced_full_v4() -> anyhow::Result<()> {
    the_way_is_traced("fulltrace4", Nat::FULL, Family::V4)
}

#[test]
fn the_way_is_traced_full_v6() -> anyhow::Result<()> {
    the_way_is_traced("fulltrace6", Nat::FULL, Family::V6)
}

fn set_mtu(host: &integration::Host, ifname: &str) -> anyhow::Result<()> {
    let link = ["link", "set", "dev", ifname, "mtu", NARROW];
    host.run("ip", link).map(drop)
}

/// The client is told of a narrow path behind the director, under the VIP.
fn the_client_is_told(web: &Web) -> anyhow::Result<()> {
    let odd = web.capture(ODD)?;
    let told = Capture::start(&web.site.lab, &web.site.client, INTERFACE, TOO_BIG)?;
    web.upload(5 * MB)?;
    ensure!(!told.finish()?.is_empty(), "the client was not told");
    let learnt = Site::learnt_mtu(&web.site.client, web.family.vip())?;
    ensure!(
        learnt == NARROW.parse().ok(),
        "the client learnt {learnt:?}"
    );
    none_of(odd, "fragments or packets above the MTU")?;
    web.site.ensure_checksums_right()
}

/// A router between director and backends cannot send on what is too long.
fn narrow_behind_a_router(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    let web = Web::new(name, nat.at(Place::BehindRouter), family)?;
    let routed = web.site.routed.as_ref().context("no routers")?;
    let second = routed.second.as_ref().context("no second router")?;
    set_mtu(&second.host, Router::TO_BACKENDS)?;
    the_client_is_told(&web)
}

#[test]
fn narrow_behind_a_router_gateway_v4() -> anyhow::Result<()> {
    narrow_behind_a_router("nathind4", Nat::GATEWAY, Family::V4)
}

#[test]
fn narrow_behind_a_router_gateway_v6() -> anyhow::Result<()> {
    narrow_behind_a_router("nathind6", Nat::GATEWAY, Family::V6)
}

#[test]
fn narrow_behind_a_router_full_v4() -> anyhow::Result<()> {
    narrow_behind_a_router("fullhind4", Nat::FULL, Family::V4)
}

#[test]
fn narrow_behind_a_router_full_v6() -> anyhow::Result<()> {
    narrow_behind_a_router("fullhind6", Nat::FULL, Family::V6)
}

/// The director itself cannot.
fn narrow_at_the_director(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    let web = Web::new(name, nat, family)?;
    set_mtu(&web.site.director, Site::TO_BACKENDS)?;
    the_client_is_told(&web)
}

#[test]
fn narrow_at_the_director_gateway_v4() -> anyhow::Result<()> {
    narrow_at_the_director("natown4", Nat::GATEWAY, Family::V4)
}

#[test]
fn narrow_at_the_director_gateway_v6() -> anyhow::Result<()> {
    narrow_at_the_director("natown6", Nat::GATEWAY, Family::V6)
}

#[test]
fn narrow_at_the_director_full_v4() -> anyhow::Result<()> {
    narrow_at_the_director("fullown4", Nat::FULL, Family::V4)
}

#[test]
fn narrow_at_the_director_full_v6() -> anyhow::Result<()> {
    narrow_at_the_director("fullown6", Nat::FULL, Family::V6)
}

/// A router before the director cannot: then it is the backend that is told,
/// under its own address.
fn narrow_in_front(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    let web = Web::new(name, nat, family)?;
    set_mtu(&web.site.router()?.host, Router::TO_CLIENTS)?;
    let odd = web.capture(ODD)?;
    web.download(5 * MB)?;
    none_of(odd, "fragments or packets above the MTU")?;
    let to = if nat.full {
        nat.pool(family)
    } else {
        Net::Clients.address(family, 100)
    };
    let mut learnt = Vec::new();
    for backend in &web.site.backends {
        learnt.extend(Site::learnt_mtu(&backend.host, to)?);
    }
    ensure!(
        learnt == [NARROW.parse::<u64>()?],
        "the backends learnt {learnt:?}"
    );
    web.site.ensure_checksums_right()
}

#[test]
fn narrow_in_front_gateway_v4() -> anyhow::Result<()> {
    narrow_in_front("natfront4", Nat::GATEWAY, Family::V4)
}

#[test]
fn narrow_in_front_gateway_v6() -> anyhow::Result<()> {
    narrow_in_front("natfront6", Nat::GATEWAY, Family::V6)
}

#[test]
fn narrow_in_front_full_v4() -> anyhow::Result<()> {
    narrow_in_front("fullfront4", Nat::FULL, Family::V4)
}

#[test]
fn narrow_in_front_full_v6() -> anyhow::Result<()> {
    narrow_in_front("fullfront6", Nat::FULL, Family::V6)
}
