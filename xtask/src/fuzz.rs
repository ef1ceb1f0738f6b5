//! `cargo xtask fuzz`: the packet paths with whatever a fuzzer thinks of.
//!
//! libFuzzer, with the coverage instrumentation that rustc passes on to LLVM,
//! so that any toolchain will do. The corpus is committed; what crashes stays
//! in tests/fuzz/artifacts.

use std::fs;

use anyhow::{Context, bail};

use crate::workspace::{call, cargo, host, root};

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// How long to run each target
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
}

const TARGETS: [&str; 3] = ["director", "flows", "backend"];

/// What cargo-fuzz passes too: counters at every edge, and where they are.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1";

/// Builds the targets and runs each for a while.
///
/// # Errors
/// When one does not build, or an input makes it fail.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let dir = root().join("tests/fuzz");
    let target_dir = root().join("target/fuzz");
    // A target of its own keeps the flags from build scripts.
    let host = host()?;
    let mut build = cargo();
    build.args(["build", "--release", "--quiet", "--manifest-path"]);
    build.arg(dir.join("Cargo.toml"));
    build
        .args(["--target", &host, "--target-dir"])
        .arg(&target_dir);
    build.env("RUSTFLAGS", INSTRUMENTATION);
    call(&mut build)?;
    for target in TARGETS {
        eprintln!("==> {target}, for {} s", args.seconds);
        let corpus = dir.join("corpus").join(target);
        let found = target_dir.join("corpus").join(target);
        let artifacts = dir.join("artifacts").join(target);
        for path in [&corpus, &found, &artifacts] {
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let binary = target_dir.join(&host).join("release").join(target);
        let mut fuzzer = std::process::Command::new(binary);
        fuzzer
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args(["-max_len=2048", "-print_final_stats=1", "-verbosity=0"])
            .args([&found, &corpus]);
        let output = fuzzer.output().context("cannot start the fuzzer")?;
        let log = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("{target} found an input that fails:\n{log}");
        }
        let executions = log
            .lines()
            .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
            .context("the fuzzer does not say how often it ran")?;
        println!("{target}: {} executions, no failure", executions.trim());
    }
    Ok(())
}
