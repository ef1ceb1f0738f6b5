//! UDP flows, asked and answered, through everything that happens to a
//! director and its backends: no answer is lost beyond the moment of a
//! backend's death.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::talk::{Echo, Flow, Pace, Protocol, Talkers};
use integration::topology::{DrLab, Family};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PORT: u16 = 5300;
const FLOWS: usize = 200;
const LONG: Duration = Duration::from_secs(30);

/// More patient than a slow machine is slow: what is lost is lost.
const PACE: Pace = Pace {
    every: Duration::from_millis(250),
    patience: Duration::from_secs(4),
};

/// A director with a service on three backends that say who they are.
struct Scene {
    echoes: Vec<Option<Echo>>,
    family: Family,
    lab: DrLab,
}

impl Scene {
    fn new(name: &str, family: Family) -> anyhow::Result<Self> {
        let mut lab = DrLab::new(name, 3)?;
        lab.start_director(&[])?;
        let mut echoes = Vec::new();
        for i in 0..3 {
            echoes.push(Some(lab.start_echo(i, family, PORT)?));
        }
        let this = Self {
            echoes,
            family,
            lab,
        };
        this.lab.put_service(&this.service())?;
        Ok(this)
    }

    fn service(&self) -> Value {
        let backends: Vec<usize> = (0..self.echoes.len()).collect();
        self.lab
            .plain_service("ask", self.family, Protocol::Udp, PORT, &backends)
    }

    fn ask(&self, count: usize) -> anyhow::Result<Talkers> {
        let vip = SocketAddr::new(self.family.vip(), PORT);
        Talkers::start(&self.lab.client, Protocol::Udp, vip, count, PACE)
    }

    fn add(&mut self) -> anyhow::Result<()> {
        let i = self.lab.add_backend()?;
        self.echoes
            .push(Some(self.lab.start_echo(i, self.family, PORT)?));
        let backend = json!({"address": self.lab.backends[i].address(self.family)});
        let path = "/v1/services/ask/backends";
        self.lab.api().post(path, &backend)?.ok()?;
        self.is(i, "active")
    }

    fn set_weight(&self, i: usize, weight: u32) -> anyhow::Result<()> {
        let path = self.lab.backend_path("ask", self.family, i);
        let weight = json!({"weight": weight});
        self.lab.api().patch(&path, &weight)?.ok()?;
        Ok(())
    }

    fn is(&self, i: usize, state: &str) -> anyhow::Result<()> {
        let address = self.lab.backends[i].address(self.family);
        self.lab.wait_backend_state("ask", address, state, LONG)
    }

    fn name(&self, i: usize) -> &str {
        self.lab.backends[i].name()
    }

    /// The echo server's TCP side tells whether it lives.
    fn check_health(&self) -> anyhow::Result<()> {
        let mut service = self.service();
        service["health_check"] = json!({
            "type": "tcp", "interval_ms": 500, "timeout_ms": 500, "rise": 1, "fall": 4,
        });
        self.lab.put_service(&service)
    }
}

fn on(name: &str) -> impl Fn(&Flow) -> bool {
    move |flow| flow.backends.first().is_some_and(|first| first == name)
}

fn no_answer_is_lost(name: &str, family: Family) -> anyhow::Result<()> {
    let mut scene = Scene::new(name, family)?;
    let talk = scene.ask(FLOWS)?;
    let begun = talk.by_backend();
    ensure!(
        begun.len() == 3 && begun.values().all(|&n| n >= FLOWS / 6),
        "{begun:?}"
    );

    scene.add()?;
    talk.round("after a backend was added")?;
    scene.set_weight(0, 0)?;
    talk.round("after a backend was drained")?;
    scene.set_weight(1, 5)?;
    talk.round("after a backend was re-weighted")?;
    let path = scene.lab.backend_path("ask", family, 2);
    scene.lab.api().delete(&path)?.ok()?;
    talk.round("after a backend was removed")?;
    talk.ensure_steady("after all changes of backends")?;

    scene.lab.end_director(Signal::SIGKILL)?;
    talk.round("while lb-ctl is dead")?;
    talk.round("while lb-ctl is still dead")?;
    scene.lab.start_director(&[])?;
    talk.round("after lb-ctl was started again")?;
    scene.lab.end_director(Signal::SIGTERM)?;
    talk.round("while lb-ctl is stopped")?;
    scene.lab.start_director(&[])?;
    talk.round("after lb-ctl was started once more")?;

    talk.ensure_steady("at the end")?;
    ensure!(talk.by_backend() == begun, "{:?}", talk.by_backend());
    Ok(())
}

#[test]
fn no_answer_is_lost_v4() -> anyhow::Result<()> {
    no_answer_is_lost("udp4", Family::V4)
}

#[test]
fn no_answer_is_lost_v6() -> anyhow::Result<()> {
    no_answer_is_lost("udp6", Family::V6)
}

/// With a short idle timeout, slots move on while flows talk; a drained
/// backend keeps them, and new flows avoid it.
fn a_drained_backend_keeps_its_flows(name: &str, family: Family) -> anyhow::Result<()> {
    let scene = Scene::new(name, family)?;
    let config = json!({"settings": {"udp_idle_timeout": 4}, "services": [scene.service()]});
    scene.lab.api().put("/v1/config", &config)?.ok()?;
    let talk = scene.ask(60)?;
    let begun = talk.by_backend();
    let drained = scene.name(0).to_owned();
    ensure!(begun.contains_key(&drained), "{begun:?}");
    scene.set_weight(0, 0)?;
    scene.is(0, "draining")?;
    let is_pinned = |status: &Value| {
        let ring = &status["ring"];
        ring["moving"] == 0 && ring["pinned"].as_u64() > Some(0)
    };
    scene.lab.wait_service("ask", "pinned", LONG, is_pinned)?;
    for _ in 0..8 {
        talk.round("on a drained backend")?;
    }
    let new = scene.ask(60)?;
    ensure!(
        !new.by_backend().contains_key(&drained),
        "{:?}",
        new.by_backend()
    );
    talk.ensure_steady("at the end")?;
    new.ensure_steady("at the end")?;
    ensure!(talk.by_backend() == begun, "{:?}", talk.by_backend());
    drop((talk, new));
    let is_settled = |status: &Value| status["ring"]["settled"] == status["ring"]["slots"];
    scene.lab.wait_service("ask", "settled", LONG, is_settled)?;
    Ok(())
}

#[test]
fn a_drained_backend_keeps_its_flows_v4() -> anyhow::Result<()> {
    a_drained_backend_keeps_its_flows("udpdrain4", Family::V4)
}

#[test]
fn a_drained_backend_keeps_its_flows_v6() -> anyhow::Result<()> {
    a_drained_backend_keeps_its_flows("udpdrain6", Family::V6)
}

type Death = fn(&mut Scene, usize) -> anyhow::Result<()>;

fn process(scene: &mut Scene, i: usize) -> anyhow::Result<()> {
    scene.echoes[i].take().context("it is dead already")?;
    Ok(())
}

fn link(scene: &mut Scene, i: usize) -> anyhow::Result<()> {
    let host = &scene.lab.backends[i].host;
    host.run("ip", ["link", "set", "dev", "eth0", "down"])?;
    Ok(())
}

/// The flows of a dead backend lose answers until its death is noticed, then
/// the others have them; those of the others lose none.
fn answers_are_lost_only_with_the_dead(
    name: &str,
    family: Family,
    die: Death,
) -> anyhow::Result<()> {
    const DEAD: usize = 1;
    let mut scene = Scene::new(name, family)?;
    scene.check_health()?;
    let talk = scene.ask(FLOWS)?;
    // Some flows are recorded when it happens.
    scene.add()?;
    talk.round("before the death")?;
    talk.ensure_steady("before the death")?;

    die(&mut scene, DEAD)?;
    scene.is(DEAD, "down")?;
    let dead = scene.name(DEAD);
    // A question from before may still wait for its answer.
    talk.round("after the death was noticed")?;
    let lost = |flows: Vec<Flow>| flows.iter().map(|flow| flow.lost).sum::<u64>();
    let before = lost(talk.flows());
    for _ in 0..4 {
        talk.round("long after the death")?;
    }
    let after = lost(talk.flows());
    ensure!(before == after, "{} lost meanwhile", after - before);
    talk.ensure_steady_of("after a backend has died", |flow| !on(dead)(flow))?;
    let moved: Vec<Flow> = talk.flows().into_iter().filter(on(dead)).collect();
    ensure!(!moved.is_empty(), "{dead} had no flows");
    ensure!(
        moved.iter().all(|flow| flow.backends.len() == 2),
        "not once to another: {moved:?}"
    );
    Ok(())
}

#[test]
fn answers_are_lost_only_with_a_dead_server_v4() -> anyhow::Result<()> {
    answers_are_lost_only_with_the_dead("udpdead4", Family::V4, process)
}

#[test]
fn answers_are_lost_only_with_a_dead_server_v6() -> anyhow::Result<()> {
    answers_are_lost_only_with_the_dead("udpdead6", Family::V6, process)
}

#[test]
fn answers_are_lost_only_with_a_lost_host_v4() -> anyhow::Result<()> {
    answers_are_lost_only_with_the_dead("udplost4", Family::V4, link)
}

#[test]
fn answers_are_lost_only_with_a_lost_host_v6() -> anyhow::Result<()> {
    answers_are_lost_only_with_the_dead("udplost6", Family::V6, link)
}
