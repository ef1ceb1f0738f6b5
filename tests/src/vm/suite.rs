//! Tests that run themselves in a machine.

use std::env;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::init::BIN;
use super::{Builder, Kernel, Vm};

/// Set in a machine to the series of its kernel.
const VARIABLE: &str = "LB_VM_KERNEL";

/// The kernel's series if this process runs in one of our machines.
pub fn inside() -> Option<String> {
    env::var(VARIABLE).ok()
}

/// So many bytes of a long transfer, or a tenth of them in a machine, whose
/// processors are emulated: of one of 200 MB all but the beginning is alike.
pub fn bulk(bytes: u64) -> u64 {
    if inside().is_some() {
        bytes / 10
    } else {
        bytes
    }
}

/// Runs `body` in a machine: called by a test named `test` (its full path, as
/// the test runner prints it), this boots a machine with everything for labs
/// and what `configure` adds, and runs that very test there, which then calls
/// `body`. Labs, hosts and processes work there as they do here.
///
/// # Panics
/// When the test fails in the machine, with all that it printed.
#[track_caller]
pub fn in_vm(
    kernel: Kernel,
    test: &str,
    timeout: Duration,
    configure: impl FnOnce(Builder) -> Builder,
    body: impl FnOnce(),
) {
    let result = match inside() {
        Some(series) => ensure_release(&series).map(|()| body()),
        None => boot(kernel, test, timeout, configure),
    };
    if let Err(e) = result {
        panic!("{e:#}");
    }
}

fn boot(
    kernel: Kernel,
    test: &str,
    timeout: Duration,
    configure: impl FnOnce(Builder) -> Builder,
) -> anyhow::Result<()> {
    let own = env::current_exe().context("cannot tell where the running program is")?;
    let builder = Vm::builder(kernel)
        .lab()
        .binary(own, format!("{BIN}/this-suite"))
        .env(VARIABLE, kernel.series());
    let command = format!("this-suite --exact {test} --nocapture");
    let output = configure(builder).run(&command, timeout)?.ok()?;
    // A name that does not exist would pass: no test, no failure.
    ensure!(
        output.contains("test result: ok. 1 passed"),
        "the test {test} was not run in the machine:\n{output}"
    );
    Ok(())
}

/// The kernel that runs must be the one that was meant.
fn ensure_release(series: &str) -> anyhow::Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(
        release.starts_with(&format!("{series}.")),
        "this is kernel {release}, not {series}"
    );
    Ok(())
}
