//! `lb-ctl up` and `down`: what they find, leave behind, refuse and announce.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

mod generic;
mod interfaces;
mod refusals;
mod vips;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::talk::{Echo, Pace, Protocol, Talkers};
use integration::topology::{DrLab, Family, INTERFACE};
use integration::{Host, try_eventually};
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
    // The kernel ends what is no longer pinned in its own time.
    try_eventually("the program to be gone", LONG, || match lab.xdp() {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
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
