//! Anything at any time: services and backends come and go, `lb-ctl` is
//! restarted and killed, servers die, while some hundred flows of all modes,
//! protocols and IP versions talk. What befalls a flow must follow from what
//! was done.
//!
//! LB_CHURN_SECONDS is how long, LB_CHURN_SEED which actions. A failure tells
//! its seed.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

mod actions;
mod crowd;
mod end;
mod flow;
mod history;
mod maps;
mod place;
mod random;
mod service;
mod world;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use integration::topology::Place;
use world::World;

fn churn(name: &str, place: Place) -> anyhow::Result<()> {
    let (seed, duration) = (random::seed()?, random::duration()?);
    eprintln!("{name}: LB_CHURN_SEED={seed} for {duration:?}");
    let mut world = World::new(name, place, seed)?;
    let outcome = run(&mut world, duration);
    let log = match &world.site.lb_ctl {
        Some(process) => process.log(),
        None => "not running".to_owned(),
    };
    // Not what the kernel says of BTF.
    let is_said = |line: &&str| ["INFO", "WARN", "ERROR"].iter().any(|l| line.contains(l));
    let log: Vec<&str> = log.lines().filter(is_said).rev().take(60).collect();
    let log = log.into_iter().rev().collect::<Vec<_>>().join("\n");
    outcome.with_context(|| {
        format!(
            "LB_CHURN_SEED={seed}, LB_CHURN_SECONDS={}; what was done:\n{}the end of lb-ctl's log:\n{log}\n",
            duration.as_secs(),
            world.history.story()
        )
    })
}

fn run(world: &mut World, duration: Duration) -> anyhow::Result<()> {
    let found = world.host()?;
    world.begin()?;
    world.round("at the beginning")?;
    let end = Instant::now() + duration;
    while Instant::now() < end {
        world.act()?;
        world.judge()?;
        let pause = world
            .random
            .between(Duration::ZERO, Duration::from_millis(500));
        sleep(pause);
    }
    world.calm_down()?;
    world.tally();
    world.settle()?;
    world.ensure_empty_plan()?;
    world.ensure_nothing_is_left(&found)
}

#[test]
fn flows_live_through_churn_behind_the_director() -> anyhow::Result<()> {
    churn("churnto", Place::BehindDirector)
}

#[test]
fn flows_live_through_churn_beside_the_director() -> anyhow::Result<()> {
    churn("churnby", Place::BesideDirector)
}
