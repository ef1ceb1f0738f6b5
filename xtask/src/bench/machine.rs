//! The virtual machine that counts instructions.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use integration::vm::{Builder, Kernel, Vm};
use serde::de::DeserializeOwned;

use crate::kernels::suites;
use crate::workspace::root;

/// The benchmark's target in the integration tests.
pub const BENCH: &str = "packet_path";

/// The newer of Debian's kernels. Another one would be as good, but counts
/// differ from kernel to kernel.
pub const KERNEL: Kernel = Kernel::V6_12;

/// What a director's maps and their loader need, and as much again.
const MEMORY_MIB: u32 = 1024;

/// Longest time of a machine.
const TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Builds the benchmark without optimisation, as the suites are: what is
/// counted is the kernel's.
pub fn build() -> anyhow::Result<PathBuf> {
    suites::build_bench(BENCH)
}

/// Runs the benchmark in a machine, with what `configure` adds to it, and reads
/// the JSON that it prints last.
pub fn run<T: DeserializeOwned>(
    argument: &str,
    configure: impl FnOnce(Builder) -> Builder,
) -> anyhow::Result<T> {
    let vm = Vm::builder(KERNEL)
        .memory(MEMORY_MIB)
        .binary(build()?, "/lb/bench")
        .file(root().join("target/ebpf/bench.o"), "/lb/ebpf/bench.o")
        .env("LB_EBPF_DIR", "/lb/ebpf");
    let output = configure(vm)
        .run(&format!("/lb/bench {argument}"), TIMEOUT)?
        .ok()?;
    let last = output
        .lines()
        .last()
        .context("the benchmark said nothing")?;
    serde_json::from_str(last).with_context(|| format!("the benchmark said:\n{output}"))
}
