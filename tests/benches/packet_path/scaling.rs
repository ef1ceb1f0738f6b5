//! Whether two CPUs forward twice what one does: they would not, if packets
//! wrote to a cache line of both.
//!
//! Two threads, each on a CPU of its own and with flows of its own, run the
//! generator alone and at the same time, in turn. Packets per second by the
//! clock, generator included; of many short rounds the best counts, because
//! whatever else runs on the machine only ever takes away from it.

use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use aya::programs::ProgramFd;
use lb_common::protocol::TCP;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::cases::{ACK, XDP_TX, one};
use crate::programs::{EMPTY, Generator, Traffic, director};
use crate::router;
use crate::world::{CLIENT_PORT, LOOPBACK, Layout, Mode, World, client_v4};

/// What to call this part when only some are wanted.
pub const NAME: &str = "two CPUs";

/// Services and backends of each.
const SERVICES: u32 = 100;
const EACH: u32 = 10;
/// Flows of each CPU.
const FLOWS: u32 = 1 << 16;
/// Distance of one CPU's clients from the other's.
const CLIENTS: u32 = 1 << 17;

/// Millions of packets per second.
#[derive(Clone, Debug)]
pub struct Scaling {
    /// What the packets went through.
    pub name: String,
    /// One CPU, the better one.
    pub one: f64,
    /// Both together.
    pub two: f64,
}

impl Scaling {
    /// How many times as much two CPUs forward.
    pub fn ratio(&self) -> f64 {
        self.two / self.one
    }
}

/// Measures some modes, and a program that does nothing for comparison. Empty
/// if this machine has only one CPU to give.
pub fn run(bpffs: &Path, quick: bool) -> anyhow::Result<Vec<Scaling>> {
    let [first, second] = match cpus()?[..] {
        [first, second, ..] => [first, second],
        _ => return Ok(Vec::new()),
    };
    let rounds = if quick { 20 } else { 60 };
    let mut results = Vec::new();
    for mode in [Mode::Dr, Mode::Tun, Mode::Nat] {
        eprintln!("two CPUs, {mode}");
        let bpffs = bpffs.join(format!("scaling{}", results.len()));
        let interface = match mode {
            Mode::Dr | Mode::Tun => LOOPBACK,
            Mode::Nat | Mode::FullNat => router::INTERFACE,
        };
        let layout = Layout {
            mode,
            services: SERVICES,
            each: EACH,
            interface,
        };
        let world = World::new(&bpffs, layout)?;
        let mut pair = Pair::new(&world, [first, second])?;
        if results.is_empty() {
            let empty = pair.generators[0].floor(EMPTY)?;
            results.push(pair.measure("empty program", &empty, rounds)?);
        }
        let before = world.counted()?;
        let name = format!("{mode}, IPv4 TCP, 2 x 64 K flows, {SERVICES} x {EACH}");
        results.push(pair.measure(&name, &director(&bpffs)?, rounds)?);
        let after = world.counted()?;
        let expected = 4 * u64::from(rounds) * u64::from(PACKETS);
        ensure!(
            (after.0 - before.0, after.1 - before.1) == (expected, 0),
            "{name}: not every packet was forwarded"
        );
        lb_ctl::dataplane::unload(&bpffs)?;
    }
    Ok(results)
}

/// Packets of one run: some milliseconds.
const PACKETS: u32 = 100_000;

/// A generator for each of two CPUs.
struct Pair {
    cpus: [usize; 2],
    generators: [Generator; 2],
}

impl Pair {
    fn new(world: &World, cpus: [usize; 2]) -> anyhow::Result<Self> {
        let traffic = |clients| Traffic {
            from: (client_v4(clients), CLIENT_PORT),
            flows: FLOWS,
            vips: world.layout.services,
            ..one(4, TCP, ACK)
        };
        let interface = world.layout.interface;
        Ok(Self {
            cpus,
            generators: [
                Generator::new(&traffic(0), interface)?,
                Generator::new(&traffic(CLIENTS), interface)?,
            ],
        })
    }

    fn measure(&mut self, name: &str, program: &ProgramFd, rounds: u32) -> anyhow::Result<Scaling> {
        let mut best = Scaling {
            name: name.to_owned(),
            one: 0.0,
            two: 0.0,
        };
        for _ in 0..rounds {
            for alone in 0..2 {
                let rate = self.rate(&[alone], program)?;
                best.one = best.one.max(rate);
            }
            best.two = best.two.max(self.rate(&[0, 1], program)?);
        }
        Ok(best)
    }

    /// Millions of packets per second of these CPUs at the same time.
    fn rate(&mut self, which: &[usize], program: &ProgramFd) -> anyhow::Result<f64> {
        let barrier = Barrier::new(which.len());
        let cpus = self.cpus;
        let spans: Vec<anyhow::Result<[Instant; 2]>> = std::thread::scope(|scope| {
            let chosen = self.generators.iter_mut().enumerate();
            let threads: Vec<_> = chosen
                .filter(|(i, _)| which.contains(i))
                .map(|(i, generator)| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        // This waits for the kernel, and is not measured.
                        let ready = pin(cpus[i]).and_then(|()| generator.begin(program));
                        // Whatever has happened: the other one waits here.
                        barrier.wait();
                        ready?;
                        let begin = Instant::now();
                        generator.go_on(PACKETS, XDP_TX)?;
                        Ok([begin, Instant::now()])
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let spans = spans.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let begin = spans.iter().map(|span| span[0]).min();
        let end = spans.iter().map(|span| span[1]).max();
        let (begin, end) = begin.zip(end).context("no CPU")?;
        let packets = f64::from(PACKETS) * which.len() as f64;
        Ok(packets / (end - begin).as_secs_f64() / 1e6)
    }
}

/// CPUs that this thread may use.
fn cpus() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let all = 0..CpuSet::count();
    Ok(all
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect())
}

fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
