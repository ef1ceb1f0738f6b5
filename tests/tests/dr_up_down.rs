//! `lb-ctl up` and `down`: what they find, leave behind, refuse and announce.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::packets::{Arp, Ndp, NdpKind, PacketSocket};
use integration::talk::{Echo, Pace, Protocol, Talkers};
use integration::topology::{DrLab, Family, INTERFACE};
use integration::{Host, XdpAction, paths};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PORT: u16 = 7000;
const LONG: Duration = Duration::from_secs(20);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Echo servers on all backends, and for each family a TCP and a UDP service.
fn serve(lab: &DrLab) -> anyhow::Result<Vec<Echo>> {
    let mut echoes = Vec::new();
    let backends: Vec<usize> = (0..lab.backends.len()).collect();
    for (i, backend) in lab.backends.iter().enumerate() {
        lab.agent_apply(i)?;
        let ips = FAMILIES.iter().flat_map(|f| [f.vip(), backend.address(*f)]);
        let addresses: Vec<_> = ips.map(|ip| SocketAddr::new(ip, PORT)).collect();
        echoes.push(Echo::start(&backend.host, &addresses)?);
    }
    for family in FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let name = format!("{}-{family}", protocol.name());
            let service = lab.plain_service(&name, family, protocol, PORT, &backends);
            lab.put_service(&service)?;
        }
    }
    Ok(echoes)
}

fn talk(host: &Host, protocol: Protocol, family: Family, count: usize) -> anyhow::Result<Talkers> {
    const PACE: Pace = Pace {
        every: Duration::from_millis(100),
        patience: Duration::from_secs(4),
    };
    let vip = SocketAddr::new(family.vip(), PORT);
    Talkers::start(host, protocol, vip, count, PACE)
}

/// Runs an `lb-ctl up` that must end by itself, badly; returns what it said.
fn refused(lab: &DrLab, mut command: Command, log: &str) -> anyhow::Result<String> {
    command.env("RUST_BACKTRACE", "0");
    let process = lab.director.spawn(command, log)?;
    let status = process.wait_exit(LONG)?;
    let said = process.log();
    ensure!(status.code() == Some(1), "{status}: {said}");
    ensure!(!said.contains("panicked"), "{said}");
    Ok(said)
}

fn ensure_said(said: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(said.contains(word), "{word:?} is missing in: {said}");
    }
    Ok(())
}

/// Nothing of a director is left on the host.
fn ensure_clean(lab: &DrLab) -> anyhow::Result<()> {
    ensure!(lab.xdp()?.is_none(), "{:?}", lab.xdp()?);
    let pins = lab.director_bpffs();
    ensure!(!pins.exists(), "{} is left", pins.display());
    for family in FAMILIES {
        let vip = family.vip();
        ensure!(!lab.director_has(vip)?, "the director still has {vip}");
    }
    Ok(())
}

/// 200 questions a second across kill -9 and another `up`: each is answered.
#[test]
fn a_killed_director_is_adopted_without_a_lost_packet() -> anyhow::Result<()> {
    let mut lab = DrLab::new("adopt", 2)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab)?;
    let mut talks = Vec::new();
    for family in FAMILIES {
        talks.push(talk(&lab.client, Protocol::Udp, family, 10)?);
        talks.push(talk(&lab.client, Protocol::Tcp, family, 10)?);
    }
    let round = |when: &str| talks.iter().try_for_each(|talk| talk.round(when));
    let mut program = lab.xdp()?.context("no program")?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        lab.end_director(signal)?;
        round("while no lb-ctl runs")?;
        ensure!(lab.xdp()? == Some(program), "another program");
        for family in FAMILIES {
            ensure!(lab.director_has(family.vip())?, "{} is gone", family.vip());
        }
        lab.start_director(&[])?;
        let adopted = lab.xdp()?.context("no program")?;
        // The same link with the new lb-ctl's own program.
        ensure!(adopted.0 == "native" && adopted.1 != program.1);
        program = adopted;
        for _ in 0..5 {
            round("after lb-ctl was started again")?;
        }
    }
    for talk in &talks {
        talk.ensure_steady("at the end")?;
        let answers: u64 = talk.flows().iter().map(|flow| flow.answers).sum();
        ensure!(answers >= 200, "only {answers} answers");
    }
    let log = lab.lb_ctl.as_ref().context("lb-ctl runs")?.log();
    ensure_said(&log, &["adopted the attached program's link"])?;
    Ok(())
}

#[test]
fn up_is_native_and_alone() -> anyhow::Result<()> {
    let mut lab = DrLab::new("alone", 0)?;
    lab.start_director(&[])?;
    let interface = lab.status()?["interfaces"][0].take();
    ensure!(interface["name"] == INTERFACE, "{interface}");
    ensure!(interface["xdp"] == "native", "{interface}");
    ensure!(interface.get("note").is_none(), "{interface}");
    let program = lab.xdp()?;
    ensure!(program.is_some_and(|(mode, _)| mode == "native"));

    let mut second = lab.up_command()?;
    second.args(["--interface", INTERFACE]);
    let said = refused(&lab, second, "second")?;
    let pid = lab.lb_ctl.as_ref().context("lb-ctl runs")?.pid();
    let words = [
        "another lb-ctl up",
        &pid.to_string(),
        "lb-ctl down --state",
        "director-state",
    ];
    ensure_said(&said, &words)?;
    // The first one did not notice.
    lab.status()?;
    ensure!(lab.xdp()? == program, "{:?}", lab.xdp()?);
    Ok(())
}

#[test]
fn down_leaves_nothing_but_what_was_there() -> anyhow::Result<()> {
    let mut lab = DrLab::new("down", 1)?;
    // The operator has put one VIP there, by hand.
    let by_hand: IpAddr = "203.0.113.11".parse()?;
    lab.director.add_address(INTERFACE, "203.0.113.11/32")?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab)?;
    let mut service = lab.plain_service("hand", Family::V4, Protocol::Tcp, PORT, &[0]);
    service["vip"] = json!(by_hand);
    lab.put_service(&service)?;
    let managed = |status: &Value, vip: IpAddr| {
        let mut vips = status["vips"].as_array().into_iter().flatten();
        vips.find(|v| v["address"] == vip.to_string().as_str())
            .and_then(|v| v["managed"].as_bool())
    };
    let status = lab.wait_status("the VIPs on the interface", LONG, |status| {
        let mut vips = status["vips"].as_array().into_iter().flatten();
        vips.all(|vip| vip["interfaces"] == json!([INTERFACE]))
    })?;
    ensure!(managed(&status, by_hand) == Some(false), "{status}");
    for family in FAMILIES {
        ensure!(managed(&status, family.vip()) == Some(true), "{status}");
        ensure!(lab.director_has(family.vip())?);
    }
    ensure!(lab.director_bpffs().join("director").exists());

    let process = lab.lb_ctl.take().context("lb-ctl runs")?;
    lab.down()?;
    let status = process.wait_exit(LONG)?;
    ensure!(status.success(), "{status}: {}", process.log());
    ensure_clean(&lab)?;
    ensure!(lab.director_has(by_hand)?, "the operator's address is gone");
    // Nothing to do is no error.
    lab.down()?;

    // What was desired is kept: another up serves it at once. And a killed
    // one is removed as thoroughly.
    lab.start_director(&[])?;
    lab.wait_service("tcp-IPv4", "active again", LONG, |status| {
        status["backends"][0]["state"] == "active"
    })?;
    talk(&lab.client, Protocol::Tcp, Family::V4, 5)?;
    lab.end_director(Signal::SIGKILL)?;
    lab.down()?;
    ensure_clean(&lab)?;
    ensure!(lab.director_has(by_hand)?, "the operator's address is gone");
    Ok(())
}

/// A service that goes takes its VIP along, unless another needs it.
#[test]
fn a_vip_goes_with_its_last_service() -> anyhow::Result<()> {
    let mut lab = DrLab::new("vips", 1)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab)?;
    let wait = |what: &str, family: Family, has: bool| {
        lab.wait_status(what, LONG, |_| {
            lab.director_has(family.vip()).ok() == Some(has)
        })
    };
    for family in FAMILIES {
        wait("the VIP to come", family, true)?;
        let api = lab.api();
        api.delete(&format!("/v1/services/tcp-{family}"))?.ok()?;
        talk(&lab.client, Protocol::Udp, family, 5)?;
        ensure!(lab.director_has(family.vip())?);
        api.delete(&format!("/v1/services/udp-{family}"))?.ok()?;
        wait("the VIP to go", family, false)?;
    }
    Ok(())
}

#[test]
fn what_stands_in_the_way_is_named() -> anyhow::Result<()> {
    let lab = DrLab::new("refuse", 0)?;
    let up = |more: &[&str]| -> anyhow::Result<Command> {
        let mut up = lab.up_command()?;
        up.args(more);
        Ok(up)
    };

    let said = refused(&lab, up(&["--interface", "eth7"])?, "unknown")?;
    ensure_said(&said, &["there is no interface eth7", "ip link"])?;
    ensure_clean(&lab)?;

    // The last --bpffs would be one too many: a command of its own.
    let mut elsewhere = lab.director.command(paths::binary("lb-ctl")?);
    elsewhere
        .args(["up", "--interface", INTERFACE, "--listen", &lab.listen()])
        .arg("--state")
        .arg(DrLab::director_state_of(&lab.lab))
        .arg("--bpffs")
        .arg(lab.lab.dir().join("no-bpffs"));
    let said = refused(&lab, elsewhere, "elsewhere")?;
    ensure_said(
        &said,
        &["not on a BPF file system", "mount -t bpf", "--bpffs"],
    )?;
    ensure_clean(&lab)?;

    let program = lab.lab.xdp_program(XdpAction::Pass)?;
    let program = program.to_str().context("UTF-8")?;
    for mode in ["xdpdrv", "xdpgeneric"] {
        let attach = ["link", "set", "dev", INTERFACE, mode, "pinned", program];
        lab.director.run("ip", attach)?;
        let theirs = lab.xdp()?;
        let said = refused(&lab, up(&["--interface", INTERFACE])?, mode)?;
        let words = [
            "eth0 already has an XDP program",
            "ip link set dev eth0 xdp",
        ];
        ensure_said(&said, &words)?;
        ensure!(lab.xdp()? == theirs, "theirs was touched");
        let detach = ["link", "set", "dev", INTERFACE, mode, "off"];
        lab.director.run("ip", detach)?;
    }
    ensure!(lab.xdp()?.is_none());
    Ok(())
}

/// Another user, and root without capabilities.
#[test]
fn without_privileges_it_says_which_are_missing() -> anyhow::Result<()> {
    let lab = DrLab::new("nopriv", 0)?;
    let without = |args: &[&str], state: &Path| -> anyhow::Result<Command> {
        let mut command = lab.director.command("setpriv");
        command.args(args).arg("--").arg(paths::binary("lb-ctl")?);
        let socket = format!("unix:{}/nopriv.sock", state.display());
        command.args(["up", "--interface", INTERFACE, "--listen", &socket]);
        command.arg("--state").arg(state);
        command.arg("--bpffs").arg(lab.director_bpffs());
        Ok(command)
    };
    let state = DrLab::director_state_of(&lab.lab);
    let caps = ["--bounding-set=-all", "--inh-caps=-all"];
    let said = refused(&lab, without(&caps, &state)?, "nocaps")?;
    ensure_said(&said, &["no permission", "root", "CAP_BPF"])?;
    let net_only = ["--bounding-set=-all,+net_admin", "--inh-caps=-all"];
    let said = refused(&lab, without(&net_only, &state)?, "netonly")?;
    ensure_said(&said, &["no permission", "root", "CAP_BPF"])?;
    ensure!(lab.xdp()?.is_none());
    Ok(())
}

#[test]
fn maps_of_another_size_are_not_adopted() -> anyhow::Result<()> {
    let mut lab = DrLab::new("sizes", 1)?;
    lab.start_director(&["--max-backends", "100"])?;
    let _echoes = serve(&lab)?;
    let talk = talk(&lab.client, Protocol::Tcp, Family::V4, 5)?;
    lab.end_director(Signal::SIGTERM)?;
    for (option, map, log) in [
        (["--max-backends", "200"], "BACKENDS", "backends"),
        (["--flow-table-size", "4096"], "FLOWS_V4", "flows"),
    ] {
        let mut up = lab.up_command()?;
        up.args(["--interface", INTERFACE]).args(option);
        if map == "FLOWS_V4" {
            up.args(["--max-backends", "100"]);
        }
        let said = refused(&lab, up, log)?;
        ensure_said(&said, &[map, "lb-ctl down", option[0]])?;
        talk.round("after a refusal")?;
    }
    lab.start_director(&["--max-backends", "100"])?;
    talk.round("after lb-ctl was started with the sizes of before")?;
    talk.ensure_steady("at the end")
}

/// A macvlan's driver runs no XDP program: generic mode forwards all the same,
/// and nobody can say that he was not told.
#[test]
fn without_native_xdp_it_runs_in_generic_mode_and_says_so() -> anyhow::Result<()> {
    let mut lab = DrLab::new("generic", 2)?;
    let director = &lab.director;
    let ip = |args: &str| director.run("ip", args.split(' ')).map(drop);
    // The lower interface must not answer ARP for the upper one's addresses.
    director.set_sysctl("net.ipv4.conf.all.arp_ignore", 1)?;
    ip("link set dev eth0 down")?;
    ip("link set dev eth0 name lower")?;
    ip("address flush dev lower")?;
    ip("link set dev lower up")?;
    ip("link add link lower name eth0 type macvlan mode bridge")?;
    director.run("ethtool", ["-K", INTERFACE, "tx", "off"])?;
    ip("link set dev eth0 up")?;
    for address in ["203.0.113.2/24", "2001:db8:0:1::2/64"] {
        director.add_address(INTERFACE, address)?;
    }
    lab.director_mac = lab.director.mac(INTERFACE)?;

    let mut native = lab.up_command()?;
    native.args(["--interface", INTERFACE, "--xdp-mode", "native"]);
    let said = refused(&lab, native, "native")?;
    ensure_said(&said, &["driver of eth0", "--xdp-mode generic"])?;
    ensure!(lab.xdp()?.is_none());

    lab.start_director(&[])?;
    ensure!(lab.xdp()?.is_some_and(|(mode, _)| mode == "generic"));
    let log = lab.lb_ctl.as_ref().context("lb-ctl runs")?.log();
    ensure_said(&log, &["WARN", "GENERIC MODE", "a fifth of the speed"])?;
    let _echoes = serve(&lab)?;
    for family in FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let talk = talk(&lab.client, protocol, family, 40)?;
            ensure!(talk.by_backend().len() == 2, "{:?}", talk.by_backend());
            talk.round("in generic mode")?;
            talk.ensure_steady("in generic mode")?;
        }
    }
    let is_told_once = |status: &Value| -> anyhow::Result<()> {
        let interface = &status["interfaces"][0];
        ensure!(interface["xdp"] == "generic", "{interface}");
        ensure!(
            interface["note"].as_str().is_some_and(|n| !n.is_empty()),
            "{interface}"
        );
        let warnings = status["warnings"].as_array().context("warnings")?;
        let generic = |w: &&Value| w.as_str().is_some_and(|w| w.contains("generic"));
        let told = warnings.iter().filter(generic).count();
        ensure!(told == 1, "told {told} times: {warnings:?}");
        Ok(())
    };
    is_told_once(&lab.status()?)?;
    ensure_said(&lab.lb_ctl(&["status"])?, &["eth0 (GENERIC)"])?;
    // The next one adopts it and says so too.
    lab.end_director(Signal::SIGKILL)?;
    lab.start_director(&[])?;
    is_told_once(&lab.status()?)?;
    lab.down()?;
    ensure_clean(&lab)
}

#[test]
fn the_operator_can_keep_the_vips_to_himself() -> anyhow::Result<()> {
    let mut lab = DrLab::new("operator", 1)?;
    let ear = PacketSocket::open(&lab.client, INTERFACE)?;
    lab.start_director(&["--vip-address", "operator"])?;
    let _echoes = serve(&lab)?;
    let warned = |status: &Value, vip: IpAddr| {
        let mut warnings = status["warnings"].as_array().into_iter().flatten();
        let vip = vip.to_string();
        warnings.any(|w| w.as_str().is_some_and(|w| w.contains(&vip)))
    };
    for family in FAMILIES {
        let vip = family.vip();
        let what = "a warning that nobody here has the VIP";
        lab.wait_status(what, LONG, |status| warned(status, vip))?;
        ensure!(!lab.director_has(vip)?, "lb-ctl has added {vip}");
    }
    // A routing daemon brings the packets: here the client's routes do.
    lab.client
        .run("ip", ["route", "add", "203.0.113.10", "via", "203.0.113.2"])?;
    let via = ["route", "add", "2001:db8:0:1::10", "via", "2001:db8:0:1::2"];
    lab.client.run("ip", via)?;
    for family in FAMILIES {
        talk(&lab.client, Protocol::Tcp, family, 10)?.ensure_steady("by a route")?;
    }
    // The operator's own address satisfies it, and stays.
    for (family, prefix) in [(Family::V4, 32), (Family::V6, 128)] {
        let vip = family.vip();
        lab.director.add_address("lo", &format!("{vip}/{prefix}"))?;
        lab.wait_status("the warning to go", LONG, |status| !warned(status, vip))?;
    }
    lab.down()?;
    for family in FAMILIES {
        ensure!(lab.director_has(family.vip())?, "an address is gone");
    }
    // Nothing was announced meanwhile.
    let announced = ear.receive_where(Duration::ZERO, |frame| {
        announces(frame, Family::V4)
            .or_else(|| announces(frame, Family::V6))
            .filter(|mac| *mac == lab.director_mac)
    })?;
    ensure!(announced.is_none(), "announced by {announced:?}");
    Ok(())
}

/// The MAC address for which a frame announces a VIP.
fn announces(frame: &[u8], family: Family) -> Option<integration::Mac> {
    match family.vip() {
        IpAddr::V4(vip) => Arp::parse(frame)
            .filter(|arp| arp.is_gratuitous() && arp.sender_ip == vip)
            .map(|arp| arp.sender_mac),
        IpAddr::V6(vip) => {
            let ndp = Ndp::parse(frame).filter(|ndp| ndp.target == vip)?;
            let unsolicited = matches!(
                ndp.kind,
                NdpKind::Advertisement {
                    solicited: false,
                    ..
                }
            );
            ndp.link_layer
                .filter(|_| unsolicited && ndp.destination.is_multicast())
        }
    }
}

/// A VIP is made known when it comes, and again when the interface was down
/// or has another MAC address.
#[test]
fn a_managed_vip_is_announced() -> anyhow::Result<()> {
    let mut lab = DrLab::new("announce", 0)?;
    let ear = PacketSocket::open(&lab.client, INTERFACE)?;
    let hears = |family: Family, mac: integration::Mac| -> anyhow::Result<()> {
        let is_it = |frame: &[u8]| announces(frame, family).filter(|m| *m == mac);
        let heard = ear.receive_where(LONG, is_it)?;
        heard.with_context(|| format!("no announcement of {} by {mac}", family.vip()))?;
        Ok(())
    };
    lab.start_director(&[])?;
    for family in FAMILIES {
        let service = lab.plain_service("web", family, Protocol::Tcp, 80, &[]);
        lab.api()
            .put(&format!("/v1/services/{}", "web"), &service)?
            .ok()?;
        hears(family, lab.director_mac)?;
        lab.api().delete("/v1/services/web")?.ok()?;
    }
    // A client that had another idea learns better, without asking.
    for family in FAMILIES {
        let other = "02:00:00:00:00:77";
        let vip = family.vip().to_string();
        let wrong = [
            "neighbour",
            "replace",
            &vip,
            "lladdr",
            other,
            "dev",
            INTERFACE,
            "nud",
            "stale",
        ];
        lab.client.run("ip", wrong)?;
        let service = lab.plain_service("web", family, Protocol::Tcp, 80, &[]);
        lab.api().put("/v1/services/web", &service)?.ok()?;
        lab.wait_status("the client to know better", LONG, |_| {
            lab.vip_owner(family).ok().as_deref() == Some("director")
        })?;
        lab.api().delete("/v1/services/web")?.ok()?;
    }
    Ok(())
}
