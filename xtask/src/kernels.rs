//! `cargo xtask kernels`: the suites that meet the kernel, on this kernel and
//! on Debian's in virtual machines.

mod baseline;
mod exceptions;
pub mod fetch;
mod place;
pub mod suites;

use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use integration::vm::Kernel;

use self::baseline::{Baseline, Figures};
use self::exceptions::Exceptions;
use self::place::Place;
use self::suites::{Outcome, Suite};
use crate::workspace::{call, cargo};
use crate::{build_ebpf, root, setup};

/// Arguments of `cargo xtask kernels`.
#[derive(clap::Args)]
pub struct Args {
    /// Only what takes a minute: the verifier and the golden packets, in the
    /// virtual machines
    #[arg(long)]
    short: bool,
    /// Only these suites, such as packet_path; all if none is named
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// Only on these kernels: here, 6.1, 6.12; all if none is named
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
    /// Write the verifier's figures to xtask/verifier-baseline.json in place
    /// of comparing them with it
    #[arg(long)]
    raise: bool,
}

/// What all suites did on one kernel.
struct Row {
    place: Place,
    release: String,
    outcomes: Vec<Outcome>,
}

/// Builds what is missing, runs the suites, and prints a table.
///
/// # Errors
/// When a suite fails on a kernel, or a program has become much harder to
/// verify.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if !root::is_prepared() {
        setup::run()?;
        setup::virtual_machines()?;
        build_ebpf::run()?;
        call(cargo().args(["build", "--workspace", "--bins"]))?;
        chosen_suites(args)?;
    }
    root::become_root("a suite in network namespaces")?;
    let suites = chosen_suites(args)?;
    let exceptions = Exceptions::read()?;
    let (here, machines): (Vec<Place>, Vec<Place>) = chosen_places(args)?
        .into_iter()
        .partition(|&place| place == Place::Here);
    let mut rows = Vec::new();
    // Suites that run here take all processors, a machine hardly more than one.
    for places in here.chunks(1).chain([machines.as_slice()]) {
        rows.extend(run_beside(places, &suites, &exceptions)?);
    }
    print_table(&rows);
    let failures: Vec<String> = rows.iter().flat_map(Row::problems).collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    if args.raise {
        raise(&rows)
    } else {
        compare(&rows)
    }
}

/// Runs the suites in several places, in all of them at the same time.
fn run_beside(
    places: &[Place],
    suites: &[Suite],
    exceptions: &Exceptions,
) -> anyhow::Result<Vec<Row>> {
    thread::scope(|scope| {
        let running: Vec<_> = places
            .iter()
            .map(|&place| scope.spawn(move || run_in(place, suites, exceptions)))
            .collect();
        let rows = running.into_iter().map(|thread| {
            let row = thread.join();
            row.unwrap_or_else(|panic| resume_unwind(panic))
        });
        rows.collect()
    })
}

fn run_in(place: Place, suites: &[Suite], exceptions: &Exceptions) -> anyhow::Result<Row> {
    let release = place.release()?;
    let mut outcomes = Vec::new();
    for suite in suites {
        eprintln!("==> {} on {place} ({release})", suite.name);
        let outcome = suite.run(place, exceptions)?;
        outcome.report(place);
        outcomes.push(outcome);
    }
    Ok(Row {
        place,
        release,
        outcomes,
    })
}

/// Writes the figures of the machines to the baseline.
fn raise(rows: &[Row]) -> anyhow::Result<()> {
    let mut baseline = Baseline::read()?;
    for (kernel, figures) in figures(rows) {
        baseline.set(kernel, figures);
    }
    baseline.write()
}

/// Compares the figures of the machines with the baseline.
fn compare(rows: &[Row]) -> anyhow::Result<()> {
    let baseline = Baseline::read()?;
    let problems: Vec<String> = figures(rows)
        .flat_map(|(kernel, figures)| baseline.compare(kernel, &figures))
        .collect();
    if !problems.is_empty() {
        bail!("{}\n{}", problems.join("\n"), baseline::ADVICE);
    }
    Ok(())
}

/// Figures of the kernels that are the same for everybody, where the suite
/// that tells them was among those that ran.
fn figures(rows: &[Row]) -> impl Iterator<Item = (Kernel, Figures)> {
    rows.iter()
        .filter_map(|row| match row.place {
            Place::Machine(kernel) => Some((kernel, row.figures())),
            Place::Here => None,
        })
        .filter(|(_, figures)| !figures.is_empty())
}

fn chosen_suites(args: &Args) -> anyhow::Result<Vec<Suite>> {
    if args.short {
        return suites::build(&[(suites::VERIFIER, ""), ("packet_path", "golden")]);
    }
    let named: Vec<(&str, &str)> = args.suite.iter().map(|name| (name.as_str(), "")).collect();
    suites::build(&named)
}

fn chosen_places(args: &Args) -> anyhow::Result<Vec<Place>> {
    if args.kernel.is_empty() {
        let machines = Kernel::ALL.map(Place::Machine);
        let here = (!args.short).then_some(Place::Here);
        return Ok(here.into_iter().chain(machines).collect());
    }
    args.kernel.iter().map(|name| name.parse()).collect()
}

impl Row {
    /// Instructions verified, by program.
    fn figures(&self) -> Figures {
        let all = self.outcomes.iter();
        all.flat_map(|outcome| outcome.verified.clone()).collect()
    }

    fn problems(&self) -> Vec<String> {
        let failed = self.outcomes.iter().filter(|outcome| !outcome.is_good());
        failed
            .map(|outcome| format!("{} on {}: {}", outcome.suite, self.place, outcome.end))
            .collect()
    }
}

fn print_table(rows: &[Row]) {
    println!(
        "{:8} {:32} {:>8} {:>8} {:>9}  verifier instructions",
        "kernel", "release", "suites", "passed", "time"
    );
    for row in rows {
        let good = row.outcomes.iter().filter(|outcome| outcome.is_good());
        let suites = format!("{}/{}", good.count(), row.outcomes.len());
        let passed: u32 = row.outcomes.iter().map(|outcome| outcome.passed).sum();
        let failed: u32 = row.outcomes.iter().map(|outcome| outcome.failed).sum();
        let tests = format!("{passed}/{}", passed + failed);
        let time: Duration = row.outcomes.iter().map(|outcome| outcome.time).sum();
        let figures: Vec<String> = row
            .figures()
            .iter()
            .map(|(program, instructions)| format!("{program} {instructions}"))
            .collect();
        println!(
            "{:8} {:32} {suites:>8} {tests:>8} {:>7} s  {}",
            row.place.to_string(),
            row.release,
            time.as_secs(),
            figures.join(", ")
        );
    }
}
