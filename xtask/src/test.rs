//! `cargo xtask test`: everything, from set-up to the last suite.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::root::sudo;
use crate::workspace::{call, cargo, host, root, this_program};
use crate::{build_ebpf, setup};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Leave out the suites in network namespaces: no root, seconds in place
    /// of minutes
    #[arg(long)]
    quick: bool,
}

/// The suites spend their time waiting, so more of them than there are
/// processors run at once.
const TEST_THREADS: &str = "6";

struct Stage {
    name: &'static str,
    run: fn() -> anyhow::Result<()>,
}

const BEFORE_TESTS: [Stage; 6] = [
    Stage {
        name: "set-up",
        run: setup::run,
    },
    Stage {
        name: "eBPF objects",
        run: build_ebpf::run,
    },
    Stage {
        name: "format",
        run: || call(cargo().args(["fmt", "--all", "--check"])),
    },
    Stage {
        name: "clippy",
        run: || {
            let mut clippy = cargo();
            clippy.args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ]);
            call(&mut clippy)
        },
    },
    Stage {
        name: "clippy of the eBPF programs",
        run: clippy_ebpf,
    },
    Stage {
        name: "programs",
        run: || call(cargo().args(["build", "--workspace", "--bins"])),
    },
];

/// Runs the stages and stops at the first that fails. The tests come last, so
/// that the last thing to be read is the test runner's summary.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut done: Vec<(&str, Duration)> = Vec::new();
    for stage in &BEFORE_TESTS {
        eprintln!("==> {}", stage.name);
        let start = Instant::now();
        let result = (stage.run)();
        done.push((stage.name, start.elapsed()));
        if let Err(e) = result {
            summarise(&done, "FAILED");
            return Err(e).with_context(|| format!("stage \"{}\" failed", stage.name));
        }
    }
    summarise(&done, "passed");
    if !args.quick {
        eprintln!("==> other kernels");
        again(&["kernels", "--short"]).context("stage \"other kernels\" failed")?;
        eprintln!("==> instructions per packet");
        again(&["bench", "--instructions"]).context("stage \"instructions per packet\" failed")?;
    }
    eprintln!("==> tests");
    tests(args.quick)
}

/// The table of stages; all have passed but the last, of which `last` says it.
fn summarise(stages: &[(&str, Duration)], last: &str) {
    eprintln!("stages:");
    for (i, (name, time)) in stages.iter().enumerate() {
        let result = if i + 1 == stages.len() {
            last
        } else {
            "passed"
        };
        eprintln!("  {name:28} {result} after {:.1} s", time.as_secs_f64());
    }
}

/// Clippy for the programs that run in the kernel, built for this machine:
/// they have no standard library and so no unwinding.
fn clippy_ebpf() -> anyhow::Result<()> {
    let mut clippy = cargo();
    clippy
        .args([
            "clippy",
            "--package",
            "lb-ebpf",
            "--features",
            "bpf",
            "--bins",
        ])
        // Of its own, so as not to build all dependencies twice in turn.
        .args([
            "--target-dir",
            "target/clippy-ebpf",
            "--",
            "--deny",
            "warnings",
        ])
        .env("CARGO_PROFILE_DEV_PANIC", "abort");
    call(&mut clippy)
}

fn tests(quick: bool) -> anyhow::Result<()> {
    let mut tests = cargo();
    tests
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("RUST_TEST_THREADS", TEST_THREADS);
    if quick {
        tests.args(["--exclude", "integration"]);
    } else {
        // Only the tests run as root, not what builds them.
        let sudo = sudo("a suite in network namespaces")?;
        if !sudo.is_empty() {
            let words: Vec<_> = sudo.iter().map(|word| word.to_string_lossy()).collect();
            eprintln!("the tests run through sudo: network namespaces need root");
            tests.env(runner_variable()?, words.join(" "));
        }
    }
    call(&mut tests).context("tests failed")
}

/// Another of this program's tasks. It may become another user, so it is
/// started anew.
fn again(task: &[&str]) -> anyhow::Result<()> {
    let mut program = Command::new(this_program()?);
    call(program.args(task).current_dir(root()))
}

/// The variable with which cargo is told how to run what it has built.
fn runner_variable() -> anyhow::Result<String> {
    let host = host()?.to_uppercase().replace('-', "_");
    Ok(format!("CARGO_TARGET_{host}_RUNNER"))
}
