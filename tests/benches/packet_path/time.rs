//! Nanoseconds per packet.
//!
//! Net time = generator and program, less generator and an empty program.
//! All programs are run in turn, round after round, so that what disturbs the
//! machine disturbs all of them; the median over the rounds counts.

use std::path::Path;

use crate::accesses::Accesses;
use crate::cases::{Case, Extent, Target, XDP_TX, groups};
use crate::programs::{EMPTY, ENCAPSULATE, MAC_SWAP, director};
use crate::world::World;

/// Net nanoseconds per packet of one case.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was measured.
    pub name: String,
    /// The program.
    pub net: Spread,
    /// Constant encapsulation, in the same rounds.
    pub encapsulation: Spread,
    /// MAC swap, in the same rounds.
    pub mac_swap: Spread,
    /// Nothing but [`Accesses`] to memory, in the same rounds.
    pub accesses: Spread,
    /// How fast it should be.
    pub target: Option<Target>,
}

/// Median and quartiles over the rounds, nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Lower quartile.
    pub low: f64,
    /// Upper quartile.
    pub high: f64,
}

/// Measures everything, or only cases with `only` in their name.
pub fn run(bpffs: &Path, quick: bool, only: &str) -> anyhow::Result<Vec<Measured>> {
    let extent = if quick && only.is_empty() {
        Extent::Quick
    } else {
        Extent::Full
    };
    let is_wanted = |case: &&Case| case.name.contains(only);
    let mut results = Vec::new();
    for (i, group) in groups(extent).iter().enumerate() {
        if group.cases.iter().find(is_wanted).is_none() {
            continue;
        }
        let bpffs = bpffs.join(format!("bench{i}"));
        let world = group.world(&bpffs)?;
        for case in group.cases.iter().filter(is_wanted) {
            eprintln!("{}", case.name);
            results.push(measure(&world, case, quick)?);
        }
        lb_ctl::dataplane::unload(&bpffs)?;
    }
    Ok(results)
}

fn measure(world: &World, case: &Case, quick: bool) -> anyhow::Result<Measured> {
    let (rounds, repeat) = if quick { (31, 50_000) } else { (31, 500_000) };
    let mut generator = case.generator(world)?;
    let empty = generator.floor(EMPTY)?;
    let swap = generator.floor(MAC_SWAP)?;
    let encapsulate = generator.floor(ENCAPSULATE)?;
    let mut accesses = Accesses::like(world)?;
    let accesses = accesses.program()?;
    let program = director(&world.bpffs)?;
    // Warms the caches up as they are in steady state.
    generator.run(&program, repeat, case.verdict())?;
    let before = world.counted()?;
    let mut net = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        let mut time = |program, verdict| -> anyhow::Result<f64> {
            Ok(generator.run(program, repeat, verdict)?.cpu_ns)
        };
        let base = time(&empty, XDP_TX)?;
        net[0].push(time(&program, case.verdict())? - base);
        net[1].push(time(&encapsulate, XDP_TX)? - base);
        net[2].push(time(&swap, XDP_TX)? - base);
        net[3].push(time(&accesses, XDP_TX)? - base);
    }
    world.ensure_counted(case, before, rounds * u64::from(repeat))?;
    let [program, encapsulation, mac_swap, accesses] = net.map(Spread::of);
    Ok(Measured {
        name: case.name.clone(),
        net: program,
        encapsulation,
        mac_swap,
        accesses,
        target: case.target.clone(),
    })
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| values[(part * (values.len() - 1) as f64).round() as usize];
        Self {
            median: at(0.5),
            low: at(0.25),
            high: at(0.75),
        }
    }
}
