//! `cargo xtask bench`: how long a packet takes.

use crate::root::become_root;
use crate::workspace::cargo;
use crate::{build_ebpf, root, setup};

use anyhow::{Context, bail};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON in place of a table
    #[arg(long)]
    json: bool,
    /// Shorter rounds and no 100,000 backends: a first impression
    #[arg(long)]
    quick: bool,
}

/// Builds and runs the benchmark.
///
/// # Errors
/// When a packet did not do what it should, or something does not build.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if !root::is_prepared() {
        setup::run()?;
        build_ebpf::run()?;
    }
    become_root("loading BPF programs")?;
    let mut bench = cargo();
    bench.args(["bench", "--quiet", "--package", "integration"]);
    bench.args(["--bench", "packet_path", "--"]);
    bench.args(args.json.then_some("--json"));
    bench.args(args.quick.then_some("--quick"));
    let status = bench.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the benchmark failed: {status}");
    }
    Ok(())
}
