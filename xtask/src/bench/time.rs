//! How long a packet takes on this machine.

use std::process::Stdio;

use anyhow::{Context, bail};
use serde_json::Value;

use super::Args;
use crate::workspace::cargo;

/// Runs the benchmark, which prints its table itself; returns the result if
/// JSON is asked for.
pub fn run(args: &Args) -> anyhow::Result<Option<Value>> {
    let mut bench = cargo();
    bench.args(["bench", "--quiet", "--package", "integration"]);
    bench.args(["--bench", super::machine::BENCH, "--"]);
    bench.args(args.json.then_some("--json"));
    bench.args(args.quick.then_some("--quick"));
    if let Some(only) = &args.only {
        bench.args(["--only", only]);
    }
    if !args.json {
        let status = bench.status().context("cannot start cargo")?;
        if !status.success() {
            bail!("the benchmark failed: {status}");
        }
        return Ok(None);
    }
    let output = bench.stderr(Stdio::inherit()).output();
    let output = output.context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the benchmark failed: {}", output.status);
    }
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}
