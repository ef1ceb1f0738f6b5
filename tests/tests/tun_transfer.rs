//! Large transfers through tunnels, on wires whose MTU is 1500 everywhere.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::net::UdpSocket;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::capture::{Capture, ENCAPSULATED, ODD, TOO_BIG};
use integration::topology::{Family, INTERFACE, Net, Router, Site};
use integration::vm::bulk;

const MB: u64 = 1_000_000;
const MTU: u16 = 1500;
const SOON: Duration = Duration::from_secs(10);

/// Transfers are measured one at a time: there are few processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A web service on two backends in TUN mode.
struct Web {
    site: Site,
    family: Family,
    outer: Family,
}

impl Web {
    fn new(name: &str, family: Family, outer: Family, agent: &[&str]) -> anyhow::Result<Self> {
        let mut site = Site::tun(name, 2)?;
        site.start_director(&[])?;
        for i in 0..2 {
            // Of this IP version only: the clamp leaves room for the largest
            // header that may come.
            let director = site.director_address(outer).to_string();
            site.agent_of(i, "apply", &director, agent)?;
        }
        let mut service = site.service_across("web", family, outer, &[0, 1]);
        // Probes get lost on the wire that a transfer fills, emulated above all.
        service["health_check"].take();
        site.put_service(&service)?;
        Ok(Self {
            site,
            family,
            outer,
        })
    }

    /// What the director's packets leave for the client's.
    fn usable_mtu(&self) -> u16 {
        match self.outer {
            Family::V4 => MTU - 20,
            Family::V6 => MTU - 40,
        }
    }

    fn upload(&self, bytes: u64) -> anyhow::Result<()> {
        self.site.upload(self.family, bytes)
    }

    fn download(&self, bytes: u64) -> anyhow::Result<()> {
        self.site.download(self.family, bytes)
    }

    fn capture(&self, filter: &str) -> anyhow::Result<Vec<Capture>> {
        let router = &self.site.router()?.host;
        Router::INTERFACES
            .map(|ifname| Capture::start(&self.site.lab, router, ifname, filter))
            .into_iter()
            .collect()
    }
}

fn no_more_than(frames: &[Vec<u8>], what: &str) -> anyhow::Result<()> {
    ensure!(
        frames.is_empty(),
        "{} {what}, the first of them: {:02x?}",
        frames.len(),
        frames[0]
    );
    Ok(())
}

/// With the clamp, every segment fits: nothing on the wire is odd, and nobody
/// needs to be told.
fn transfers_fit(name: &str, family: Family, outer: Family, bytes: u64) -> anyhow::Result<()> {
    let web = Web::new(name, family, outer, &[])?;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let odd = web.capture(ODD)?;
    let told = web.capture(TOO_BIG)?;
    web.upload(bulk(bytes))?;
    web.download(bulk(bytes))?;
    for capture in odd {
        no_more_than(&capture.finish()?, "fragments or packets above the MTU")?;
    }
    for capture in told {
        no_more_than(
            &capture.finish()?,
            "ICMP errors although the MSS is clamped",
        )?;
    }
    let router = &web.site.router()?.host;
    for reason in ["too_big", "too_big_untold", "needs_fragmenting"] {
        ensure!(
            web.site.dropped(reason)? == 0,
            "{reason} although the MSS is clamped"
        );
    }
    // The wire was full: the largest packet is just what the path carries.
    let full = format!("({ENCAPSULATED}) and greater {}", 14 + MTU - 2);
    let full = Capture::start(&web.site.lab, router, Router::TO_BACKENDS, &full)?;
    web.upload(MB)?;
    full.wait(SOON)
        .context("segments are smaller than need be")?;
    Ok(())
}

#[test]
fn transfers_fit_v4_in_v4() -> anyhow::Result<()> {
    transfers_fit("fit44", Family::V4, Family::V4, 200 * MB)
}

#[test]
fn transfers_fit_v6_in_v6() -> anyhow::Result<()> {
    transfers_fit("fit66", Family::V6, Family::V6, 200 * MB)
}

#[test]
fn transfers_fit_v6_in_v4() -> anyhow::Result<()> {
    transfers_fit("fit64", Family::V6, Family::V4, 20 * MB)
}

#[test]
fn transfers_fit_v4_in_v6() -> anyhow::Result<()> {
    transfers_fit("fit46", Family::V4, Family::V6, 20 * MB)
}

/// Without the clamp, the client sends segments that do not fit, is told the
/// size that does, and goes on with that.
fn clients_are_told(name: &str, family: Family, outer: Family, bytes: u64) -> anyhow::Result<()> {
    let web = Web::new(name, family, outer, &["--mss", "off"])?;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let odd = web.capture(ODD)?;
    let told = Capture::start(&web.site.lab, &web.site.client, INTERFACE, TOO_BIG)?;
    web.upload(bulk(bytes))?;
    web.download(bulk(bytes))?;
    let errors = told.finish()?;
    ensure!(!errors.is_empty(), "no ICMP error reached the client");
    let usable = web.usable_mtu();
    for error in &errors {
        let mtu = told_mtu(error, family);
        ensure!(mtu == Some(usable), "{mtu:?} in {error:02x?}");
    }
    for capture in odd {
        no_more_than(&capture.finish()?, "fragments or packets above the MTU")?;
    }
    ensure!(
        web.site.dropped("too_big")? >= errors.len() as u64,
        "not counted"
    );
    let learnt = Site::learnt_mtu(&web.site.client, family.vip())?;
    ensure!(
        learnt == Some(u64::from(usable)),
        "the client learnt {learnt:?}"
    );
    Ok(())
}

/// The MTU in an ICMP error.
fn told_mtu(frame: &[u8], family: Family) -> Option<u16> {
    let offset = match family {
        Family::V4 => 14 + 20 + 6,
        Family::V6 => 14 + 40 + 6,
    };
    let bytes = frame.get(offset..offset + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[test]
fn clients_are_told_v4_in_v4() -> anyhow::Result<()> {
    clients_are_told("told44", Family::V4, Family::V4, 200 * MB)
}

#[test]
fn clients_are_told_v6_in_v6() -> anyhow::Result<()> {
    clients_are_told("told66", Family::V6, Family::V6, 200 * MB)
}

#[test]
fn clients_are_told_v6_in_v4() -> anyhow::Result<()> {
    clients_are_told("told64", Family::V6, Family::V4, 20 * MB)
}

#[test]
fn clients_are_told_v4_in_v6() -> anyhow::Result<()> {
    clients_are_told("told46", Family::V4, Family::V6, 20 * MB)
}

/// Beyond the router the path is narrower than the director's interface: the
/// router tells the director, and that tells the client.
fn a_narrow_path_is_learnt(
    name: &str,
    family: Family,
    outer: Family,
    usable: u16,
) -> anyhow::Result<()> {
    let web = Web::new(name, family, outer, &[])?;
    let router = &web.site.router()?.host;
    let narrow = ["link", "set", "dev", Router::TO_BACKENDS, "mtu", "1400"];
    router.run("ip", narrow)?;
    let odd = web.capture(ODD)?;
    web.upload(MB)?;
    for capture in odd {
        no_more_than(&capture.finish()?, "fragments or packets above the MTU")?;
    }
    let is_learnt = |status: &serde_json::Value| status["mtu"] == usable;
    web.site
        .wait_service("web", "MTU of the narrow path", SOON, is_learnt)?;
    ensure!(web.site.dropped("too_big")? > 0, "nobody was told");
    Ok(())
}

#[test]
fn a_narrow_path_is_learnt_v4_in_v4() -> anyhow::Result<()> {
    a_narrow_path_is_learnt("narrow44", Family::V4, Family::V4, 1380)
}

#[test]
fn a_narrow_path_is_learnt_v6_in_v4() -> anyhow::Result<()> {
    a_narrow_path_is_learnt("narrow64", Family::V6, Family::V4, 1380)
}

#[test]
fn a_narrow_path_is_learnt_v4_in_v6() -> anyhow::Result<()> {
    a_narrow_path_is_learnt("narrow46", Family::V4, Family::V6, 1360)
}

#[test]
fn a_narrow_path_is_learnt_v6_in_v6() -> anyhow::Result<()> {
    a_narrow_path_is_learnt("narrow66", Family::V6, Family::V6, 1360)
}

/// What the suites above do not find on the wire, they would.
#[test]
fn captures_see_fragments_and_what_is_too_long() -> anyhow::Result<()> {
    let site = Site::tun("odd", 0)?;
    let router = &site.router()?.host;
    for family in [Family::V4, Family::V6] {
        let capture = Capture::start(&site.lab, router, Router::TO_CLIENTS, ODD)?;
        let gateway = Net::Clients.address(family, 1);
        let any = match family {
            Family::V4 => "0.0.0.0:0",
            Family::V6 => "[::]:0",
        };
        let socket = site.client.in_namespace(|| UdpSocket::bind(any))?;
        // By default Linux fragments what is larger than the interface's MTU.
        socket.send_to(&[0; 3000], (gateway, 9))?;
        capture.wait(SOON)?;
        let frames = capture.finish()?;
        ensure!(frames.len() >= 2, "{} fragments", frames.len());
    }
    for (host, ifname) in [(router, Router::TO_CLIENTS), (&site.client, INTERFACE)] {
        host.run("ip", ["link", "set", "dev", ifname, "mtu", "1600"])?;
    }
    let clients = &site.routed.as_ref().context("no routers")?.clients;
    for port in clients.ports() {
        let switch = clients.switch();
        switch.run("ip", ["link", "set", "dev", &port, "mtu", "1600"])?;
    }
    let capture = Capture::start(&site.lab, router, Router::TO_CLIENTS, ODD)?;
    let socket = site.client.in_namespace(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.send_to(&[0; 1473], (Net::Clients.address(Family::V4, 1), 9))?;
    capture.wait(SOON)?;
    Ok(())
}
