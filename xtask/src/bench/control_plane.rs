//! How long the control plane takes, and how much memory its maps.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::machine::BENCH;
use super::target::{Bound, Target};
use crate::workspace::{call, cargo, root};

/// What was measured.
#[derive(Serialize)]
pub struct Measured {
    /// Milliseconds, by what was done: median, and the ends of its 95%
    /// confidence interval.
    milliseconds: BTreeMap<String, [f64; 3]>,
    memory: Memory,
    targets: Vec<Target>,
}

/// What a ring of 1,000 backends is called.
const LARGE_RING: &str = "ring/1000 backends";
/// Milliseconds in which it should be built.
const LARGE_RING_TARGET: f64 = 20.0;
/// Megabytes that the maps should take.
const MEMORY_TARGET: f64 = 120.0;

/// Memory of the maps, as the benchmark prints it.
#[derive(Deserialize, Serialize)]
struct Memory {
    services: u32,
    backends_each: u32,
    /// Some maps hold a value for each.
    cpus: u32,
    bytes: u64,
    maps: BTreeMap<String, u64>,
}

/// Runs the benchmark, and loads the maps to see their size.
pub fn run(quick: bool) -> anyhow::Result<Measured> {
    let results = results();
    // Those of before may have had other names.
    if results.exists() {
        fs::remove_dir_all(&results)?;
    }
    let mut bench = cargo();
    bench.args(["bench", "--quiet", "--package", "lb-ctl"]);
    bench.args(["--bench", "control_plane", "--"]);
    call(bench.args(quick.then_some("--quick")))?;
    let mut milliseconds = BTreeMap::new();
    collect(&results, &mut milliseconds)?;
    let memory = memory()?;
    let [ring, ..] = *milliseconds
        .get(LARGE_RING)
        .with_context(|| format!("nothing is called {LARGE_RING}"))?;
    let targets = [
        ("ms for a ring of 1,000 backends", ring, LARGE_RING_TARGET),
        ("MB of maps", megabytes(memory.bytes), MEMORY_TARGET),
    ];
    let targets = targets.map(|(what, measured, most)| Target {
        what,
        measured,
        bound: Bound::AtMost(most),
    });
    Ok(Measured {
        milliseconds,
        memory,
        targets: targets.into(),
    })
}

/// Where criterion leaves its results.
fn results() -> PathBuf {
    root().join("target/criterion")
}

/// Reads what criterion has left below a directory.
fn collect(directory: &Path, found: &mut BTreeMap<String, [f64; 3]>) -> anyhow::Result<()> {
    let (about, estimates) = (
        directory.join("new/benchmark.json"),
        directory.join("new/estimates.json"),
    );
    if about.is_file() {
        let (about, estimates) = (json(&about)?, json(&estimates)?);
        let name = about["full_id"].as_str().context("a result has no name")?;
        let median = &estimates["median"];
        let interval = &median["confidence_interval"];
        let times = [
            &median["point_estimate"],
            &interval["lower_bound"],
            &interval["upper_bound"],
        ];
        let nanoseconds = times.map(|time| time.as_f64().unwrap_or(f64::NAN));
        found.insert(name.to_owned(), nanoseconds.map(|ns| ns / 1e6));
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        }
    }
    Ok(())
}

fn json(path: &Path) -> anyhow::Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

fn memory() -> anyhow::Result<Memory> {
    let mut bench = cargo();
    bench.args(["bench", "--quiet", "--package", "integration"]);
    bench.args(["--bench", BENCH, "--", "--memory"]);
    let output = bench.stderr(std::process::Stdio::inherit()).output();
    let output = output.context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the maps could not be measured: {}", output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

impl Measured {
    /// Prints a table.
    pub fn print(&self) {
        println!(
            "{:<54} {:>9} {:>20}",
            "control plane", "ms", "95% confidence"
        );
        for (name, [median, low, high]) in &self.milliseconds {
            let interval = format!("{low:.3} to {high:.3}");
            println!("{name:<54} {median:>9.3} {interval:>20}");
        }
        let Memory {
            services,
            backends_each,
            cpus,
            bytes,
            maps,
        } = &self.memory;
        println!(
            "maps for {services} services of {backends_each} backends, flow tables apart, on \
             {cpus} CPUs: {:.1} MB",
            megabytes(*bytes)
        );
        for (map, bytes) in maps {
            println!("  {map:<52} {:>9.3} MB", megabytes(*bytes));
        }
        for target in &self.targets {
            println!("{target}");
        }
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
