//! `cargo xtask kernels`: the suites that meet the kernel, on this kernel and
//! on Debian's in virtual machines.

mod baseline;
pub mod fetch;
mod place;
mod suites;

use std::time::Duration;

use anyhow::bail;
use integration::vm::Kernel;

use self::baseline::Baseline;
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
        suites::build(&[])?;
    }
    root::become_root("a suite in network namespaces")?;
    let suites = chosen_suites(args)?;
    let mut rows = Vec::new();
    for place in chosen_places(args)? {
        let release = place.release()?;
        let mut outcomes = Vec::new();
        for suite in &suites {
            eprintln!("==> {} on {place} ({release})", suite.name);
            let outcome = suite.run(place)?;
            outcome.report();
            outcomes.push(outcome);
        }
        rows.push(Row {
            place,
            release,
            outcomes,
        });
    }
    print_table(&rows);
    let mut problems: Vec<String> = rows.iter().flat_map(Row::problems).collect();
    let mut baseline = Baseline::read()?;
    for row in &rows {
        if let Place::Machine(kernel) = row.place {
            let figures = row.figures();
            if args.raise {
                baseline.set(kernel, figures);
            } else if suites.iter().any(|suite| suite.name == suites::VERIFIER) {
                problems.extend(baseline.compare(kernel, &figures));
            }
        }
    }
    if args.raise {
        baseline.write()?;
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
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
    fn figures(&self) -> baseline::Figures {
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
