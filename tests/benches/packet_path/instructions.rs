//! Instructions per packet, for a machine whose clock counts them: see
//! `integration::vm::Builder::run`. There the nanoseconds that
//! BPF_PROG_TEST_RUN reports for each repetition are instructions.
//!
//! Net count = generator and program, less generator and an empty program
//! (`return XDP_TX`), each over the same packets. So what test_run, generator
//! and tail call cost cancels out: they execute the same instructions whatever
//! program is behind them. Test_run rounds both down to whole instructions per
//! packet, hence a net count is exact to one instruction. What interrupts a run
//! only ever adds to it, so the least of several runs is the undisturbed one;
//! two must agree on it, or it would not be known to be.

use std::path::Path;

use anyhow::{Context as _, ensure};
use aya::programs::ProgramFd;
use serde_json::json;

use crate::cases::{Case, Extent, XDP_TX, groups};
use crate::forwarded;
use crate::programs::{EMPTY, Generator, MAC_SWAP, director};
use crate::world::World;

/// Packets of one run: so few that hardly any run meets the clock's interrupt.
const PACKETS: u32 = 1000;
/// Runs, each of all packets.
const RUNS: u64 = 7;
/// Packets whose output is looked at, one by one: the first of those that are
/// counted.
const LOOKED_AT: u32 = 64;

/// Counts all cases and prints the result as JSON.
pub fn run(bpffs: &Path) -> anyhow::Result<()> {
    let mut cases = serde_json::Map::new();
    let mut harness = Vec::new();
    let mut mac_swap = 0;
    for (i, group) in groups(Extent::Small).iter().enumerate() {
        let bpffs = bpffs.join(format!("instructions{i}"));
        let world = group.world(&bpffs)?;
        for case in &group.cases {
            eprintln!("{}", case.name);
            let counts = count(&world, case).with_context(|| case.name.clone())?;
            let net = counts.program - counts.empty;
            cases.insert(case.name.clone(), net.into());
            harness.push(counts.empty);
            mac_swap = counts.mac_swap - counts.empty;
        }
        lb_ctl::dataplane::unload(&bpffs)?;
    }
    println!(
        "{}",
        json!({
            "unit": "net instructions per packet",
            "harness": [harness.iter().min(), harness.iter().max()],
            "mac_swap": mac_swap,
            "cases": cases,
        })
    );
    Ok(())
}

/// Instructions per packet, those of the harness included.
#[derive(Clone, Copy)]
struct Counts {
    program: u64,
    empty: u64,
    mac_swap: u64,
}

fn count(world: &World, case: &Case) -> anyhow::Result<Counts> {
    let mut generator = case.generator(world)?;
    let empty = generator.floor(EMPTY)?;
    let mac_swap = generator.floor(MAC_SWAP)?;
    let program = director(&world.bpffs)?;
    look(world, case, &mut generator, &program, &empty)?;
    let before = world.counted()?;
    let counts = Counts {
        program: least(&mut generator, &program, case.verdict())?,
        empty: least(&mut generator, &empty, XDP_TX)?,
        mac_swap: least(&mut generator, &mac_swap, XDP_TX)?,
    };
    world.ensure_counted(case, before, RUNS * u64::from(PACKETS))?;
    Ok(counts)
}

/// A fast wrong answer does not count: the program's output is right for each
/// of these packets.
fn look(
    world: &World,
    case: &Case,
    generator: &mut Generator,
    program: &ProgramFd,
    empty: &ProgramFd,
) -> anyhow::Result<()> {
    let sent = generator.outputs(empty, LOOKED_AT, XDP_TX)?;
    let received = generator.outputs(program, LOOKED_AT, case.verdict())?;
    for (sent, received) in sent.iter().zip(&received) {
        if case.is_for_a_service() {
            forwarded::check(world.layout, case, sent, received)
                .with_context(|| format!("{sent:02x?} became {received:02x?}"))?;
        } else {
            ensure!(sent == received, "{sent:02x?} became {received:02x?}");
        }
    }
    Ok(())
}

fn least(generator: &mut Generator, program: &ProgramFd, verdict: u32) -> anyhow::Result<u64> {
    let mut counts = (0..RUNS)
        .map(|_| Ok(generator.run(program, PACKETS, verdict)?.reported_ns))
        .collect::<anyhow::Result<Vec<u64>>>()?;
    counts.sort_unstable();
    seen_twice(&counts)
}

/// The least of sorted counts that more than one run has. An interrupt may
/// begin in one run and end in the next, which then seems too short.
pub fn seen_twice(counts: &[u64]) -> anyhow::Result<u64> {
    let mut pairs = counts.windows(2);
    let pair = pairs.find(|pair| pair[0] == pair[1]);
    Ok(pair.with_context(|| format!("no two runs are alike: {counts:?}"))?[0])
}
