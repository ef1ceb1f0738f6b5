//! TCP connections through everything that happens to a director and its
//! backends: none breaks but those to a backend that died.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::talk::{Echo, Flow, Pace, Protocol, Talkers};
use integration::topology::{DrLab, Family};
use integration::{eventually, try_eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PORT: u16 = 7000;
const CONNECTIONS: usize = 200;
const LONG: Duration = Duration::from_secs(30);

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
        let mut this = Self {
            echoes: Vec::new(),
            family,
            lab,
        };
        for i in 0..3 {
            this.echoes
                .push(Some(this.lab.start_echo(i, family, PORT)?));
        }
        this.lab.put_service(&this.service())?;
        Ok(this)
    }

    fn service(&self) -> Value {
        let backends: Vec<usize> = (0..self.echoes.len()).collect();
        self.lab
            .plain_service("talk", self.family, Protocol::Tcp, PORT, &backends)
    }

    fn connect(&self, count: usize) -> anyhow::Result<Talkers> {
        let vip = SocketAddr::new(self.family.vip(), PORT);
        let client = &self.lab.client;
        Talkers::start(client, Protocol::Tcp, vip, count, Pace::CALM)
    }

    /// Adds a fourth backend.
    fn add(&mut self) -> anyhow::Result<()> {
        let i = self.lab.add_backend()?;
        self.echoes
            .push(Some(self.lab.start_echo(i, self.family, PORT)?));
        let backend = json!({"address": self.lab.backends[i].address(self.family)});
        let path = "/v1/services/talk/backends";
        self.lab.api().post(path, &backend)?.ok()?;
        self.is(i, "active")
    }

    fn set_weight(&self, i: usize, weight: u32) -> anyhow::Result<()> {
        let path = self.lab.backend_path("talk", self.family, i);
        let weight = json!({"weight": weight});
        self.lab.api().patch(&path, &weight)?.ok()?;
        Ok(())
    }

    fn remove(&self, i: usize) -> anyhow::Result<()> {
        let path = self.lab.backend_path("talk", self.family, i);
        self.lab.api().delete(&path)?.ok()?;
        Ok(())
    }

    fn is(&self, i: usize, state: &str) -> anyhow::Result<()> {
        let address = self.lab.backends[i].address(self.family);
        self.lab.wait_backend_state("talk", address, state, LONG)
    }

    fn name(&self, i: usize) -> &str {
        self.lab.backends[i].name()
    }

    /// Gives the service a quick health check.
    fn check_health(&self) -> anyhow::Result<()> {
        let mut service = self.lab.api().get("/v1/config")?.ok()?.json()?["services"][0].take();
        service["health_check"] = json!({
            "type": "tcp", "interval_ms": 500, "timeout_ms": 500, "rise": 1, "fall": 4,
        });
        let path = "/v1/services/talk";
        self.lab.api().put(path, &service)?.ok()?;
        Ok(())
    }

    /// New connections succeed, and none goes to this backend.
    fn ensure_new_ones_avoid(&self, i: usize) -> anyhow::Result<()> {
        let new = self.connect(30)?.by_backend();
        ensure!(!new.contains_key(self.name(i)), "{new:?}");
        Ok(())
    }
}

/// The connections of one backend.
fn on(name: &str) -> impl Fn(&Flow) -> bool {
    move |flow| flow.backends.first().is_some_and(|first| first == name)
}

fn connections_survive_everything(name: &str, family: Family) -> anyhow::Result<()> {
    let mut scene = Scene::new(name, family)?;
    let talk = scene.connect(CONNECTIONS)?;
    let begun = talk.by_backend();
    ensure!(
        begun.len() == 3 && begun.values().all(|&n| n >= CONNECTIONS / 6),
        "{begun:?}"
    );

    scene.add()?;
    talk.round("after a backend was added")?;
    let with_fourth = scene.connect(60)?;
    ensure!(
        with_fourth.by_backend().len() == 4,
        "{:?}",
        with_fourth.by_backend()
    );

    scene.set_weight(0, 0)?;
    talk.round("after a backend was drained")?;
    scene.is(0, "draining")?;
    scene.ensure_new_ones_avoid(0)?;

    scene.set_weight(1, 5)?;
    talk.round("after a backend was re-weighted")?;

    scene.remove(2)?;
    talk.round("after a backend was removed")?;
    scene.is(2, "removed")?;
    scene.ensure_new_ones_avoid(2)?;
    talk.ensure_steady("after all changes of backends")?;

    scene.lab.end_director(Signal::SIGKILL)?;
    for _ in 0..3 {
        talk.round("while lb-ctl is dead")?;
    }
    scene.ensure_new_ones_avoid(2)?;
    scene.lab.start_director(&[])?;
    talk.round("after lb-ctl was started again")?;
    scene.is(2, "removed")?;
    scene.is(0, "draining")?;
    talk.ensure_steady("after kill -9 and another lb-ctl up")?;

    scene.lab.end_director(Signal::SIGTERM)?;
    talk.round("while lb-ctl is stopped")?;
    scene.lab.start_director(&[])?;
    talk.round("after lb-ctl was started once more")?;
    scene.set_weight(0, 1)?;
    talk.round("after a drained backend was taken back")?;

    talk.ensure_steady("at the end")?;
    with_fourth.ensure_steady("at the end")?;
    ensure!(talk.by_backend() == begun, "{:?}", talk.by_backend());
    Ok(())
}

#[test]
fn connections_survive_everything_v4() -> anyhow::Result<()> {
    connections_survive_everything("flows4", Family::V4)
}

#[test]
fn connections_survive_everything_v6() -> anyhow::Result<()> {
    connections_survive_everything("flows6", Family::V6)
}

fn only_the_dead_are_mourned(name: &str, family: Family, die: Death) -> anyhow::Result<()> {
    const DEAD: usize = 1;
    let mut scene = Scene::new(name, family)?;
    scene.check_health()?;
    let talk = scene.connect(CONNECTIONS)?;
    // Some slots are not settled when it happens.
    scene.add()?;
    scene.is(DEAD, "active")?;
    talk.round("before the death")?;

    die(&mut scene, DEAD)?;
    scene.is(DEAD, "down")?;
    scene.ensure_new_ones_avoid(DEAD)?;
    let dead = scene.name(DEAD);
    let survives = |flow: &Flow| !on(dead)(flow);
    for _ in 0..3 {
        talk.round_of("after a backend has died", survives)?;
    }
    talk.ensure_steady_of("after a backend has died", survives)?;
    let answered = |flows: &[Flow]| -> u64 {
        let theirs = flows.iter().filter(|flow| on(dead)(flow));
        theirs.map(|flow| flow.answers).sum()
    };
    // Whoever took their packets would have said so.
    let before = answered(&talk.flows());
    talk.round_of("among those that survive", survives)?;
    ensure!(answered(&talk.flows()) == before, "the dead speak");
    ensure!(before > 0, "{DEAD} had no connections");
    Ok(())
}

type Death = fn(&mut Scene, usize) -> anyhow::Result<()>;

/// The server's process ends: the kernel closes its connections.
fn process(scene: &mut Scene, i: usize) -> anyhow::Result<()> {
    scene.echoes[i].take().context("it is dead already")?;
    Ok(())
}

/// The host is cut off: nothing tells the clients.
fn link(scene: &mut Scene, i: usize) -> anyhow::Result<()> {
    let host = &scene.lab.backends[i].host;
    host.run("ip", ["link", "set", "dev", "eth0", "down"])?;
    Ok(())
}

#[test]
fn only_connections_of_a_dead_server_break_v4() -> anyhow::Result<()> {
    only_the_dead_are_mourned("death4", Family::V4, process)
}

#[test]
fn only_connections_of_a_dead_server_break_v6() -> anyhow::Result<()> {
    only_the_dead_are_mourned("death6", Family::V6, process)
}

#[test]
fn only_connections_of_a_lost_host_break_v4() -> anyhow::Result<()> {
    only_the_dead_are_mourned("lost4", Family::V4, link)
}

#[test]
fn only_connections_of_a_lost_host_break_v6() -> anyhow::Result<()> {
    only_the_dead_are_mourned("lost6", Family::V6, link)
}

/// A server that flaps: its own connections break each time, no others do.
#[test]
fn a_backend_that_flaps_hurts_nobody_else() -> anyhow::Result<()> {
    const FLAPS: usize = 0;
    let mut scene = Scene::new("flap", Family::V4)?;
    scene.check_health()?;
    let talk = scene.connect(CONNECTIONS)?;
    let own = scene.name(FLAPS).to_owned();
    for _ in 0..4 {
        scene.echoes[FLAPS] = None;
        scene.is(FLAPS, "down")?;
        let echo = scene.lab.start_echo(FLAPS, Family::V4, PORT)?;
        scene.echoes[FLAPS] = Some(echo);
        scene.is(FLAPS, "active")?;
        talk.round_of("while another flaps", |flow| !on(&own)(flow))?;
    }
    let new = scene.connect(60)?;
    ensure!(
        new.by_backend().contains_key(&own),
        "{:?}",
        new.by_backend()
    );
    talk.ensure_steady_of("after another has flapped", |flow| !on(&own)(flow))
}

fn ring(status: &Value, state: &str) -> u64 {
    status["ring"][state].as_u64().unwrap_or_default()
}

/// Slots go through all their states while connections talk.
fn slots_move_and_settle(name: &str, family: Family) -> anyhow::Result<()> {
    let mut scene = Scene::new(name, family)?;
    let service = scene.service();
    let config =
        json!({"settings": {"tcp_idle_timeout": 4, "udp_idle_timeout": 4}, "services": [service]});
    scene.lab.api().put("/v1/config", &config)?.ok()?;
    let lab_is = |scene: &Scene, what: &str, is_so: fn(&Value) -> bool| {
        scene.lab.wait_service("talk", what, LONG, is_so)
    };
    lab_is(&scene, "settled", |s| {
        ring(s, "settled") == ring(s, "slots")
    })?;
    let talk = scene.connect(60)?;
    let others = scene.connect(60)?;

    scene.add()?;
    let status = scene.lab.service_status("talk")?;
    ensure!(ring(&status, "moving") > 0, "{status}");
    ensure!(ring(&status, "settled") > 0, "{status}");
    talk.round("while slots are moving")?;
    lab_is(&scene, "slots pinned and none moving", |s| {
        ring(s, "moving") == 0 && ring(s, "pinned") > 0
    })?;
    for _ in 0..3 {
        talk.round("while slots are pinned")?;
    }
    others.ensure_steady("while slots were moving and pinned")?;

    // The first backend leaves when its last flow has ended, not before.
    scene.remove(0)?;
    talk.round("after a removal")?;
    lab_is(&scene, "slots pinned once more", |s| {
        ring(s, "moving") == 0 && ring(s, "pinned") > 0
    })?;
    for _ in 0..8 {
        talk.round("on a removed backend")?;
    }
    scene.is(0, "removed")?;
    talk.ensure_steady("at the end")?;
    others.ensure_steady("at the end")?;
    drop(others);
    let leaver = scene.lab.backends[0].address(family).to_string();
    let has_leaver = |status: &Value| {
        let mut backends = status["backends"].as_array().into_iter().flatten();
        backends.any(|b| b["address"] == leaver.as_str())
    };
    ensure!(talk.flows().iter().any(on(scene.name(0))));
    ensure!(has_leaver(&scene.lab.service_status("talk")?));
    drop(talk);
    let status = lab_is(&scene, "settled after the last flow", |s| {
        ring(s, "settled") == ring(s, "slots")
    })?;
    ensure!(ring(&status, "slots") > 0, "{status}");
    eventually("the removed backend to be gone", LONG, || {
        scene
            .lab
            .service_status("talk")
            .map(|s| has_leaver(&s))
            .ok()
            == Some(false)
    });
    Ok(())
}

#[test]
fn slots_move_and_settle_v4() -> anyhow::Result<()> {
    slots_move_and_settle("slots4", Family::V4)
}

#[test]
fn slots_move_and_settle_v6() -> anyhow::Result<()> {
    slots_move_and_settle("slots6", Family::V6)
}

/// A window that began before lb-ctl was killed is not forgotten: the maps
/// remember it.
#[test]
fn a_killed_director_goes_on_moving() -> anyhow::Result<()> {
    let mut scene = Scene::new("window", Family::V4)?;
    let service = scene.service();
    let config = json!({"settings": {"tcp_idle_timeout": 4}, "services": [service]});
    scene.lab.api().put("/v1/config", &config)?.ok()?;
    let talk = scene.connect(60)?;
    scene.add()?;
    let status = scene.lab.service_status("talk")?;
    ensure!(ring(&status, "moving") > 0, "{status}");
    scene.lab.end_director(Signal::SIGKILL)?;
    talk.round("while lb-ctl is dead and slots are moving")?;
    scene.lab.start_director(&[])?;
    let status = scene.lab.service_status("talk")?;
    ensure!(ring(&status, "moving") > 0, "{status}");
    try_eventually("slots to be pinned", LONG, || {
        let status = scene.lab.service_status("talk");
        let status = status.map_err(|e| format!("{e:#}"))?;
        let is_so = ring(&status, "moving") == 0 && ring(&status, "pinned") > 0;
        is_so.then_some(()).ok_or_else(|| status.to_string())
    })?;
    scene.lab.end_director(Signal::SIGKILL)?;
    talk.round("while lb-ctl is dead and slots are pinned")?;
    scene.lab.start_director(&[])?;
    for _ in 0..4 {
        talk.round("after lb-ctl was started again")?;
    }
    talk.ensure_steady("at the end")
}
