//! The packet path's clock, as user space reads it.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use aya::programs::{TestRunOptions, Xdp};
use aya::{Ebpf, TestRun as _};
use nix::time::{ClockId, clock_getres};
use tracing::warn;

/// Name of the program that tells the time.
pub const PROGRAM: &str = "now";

/// Counts ticks since some time before the host was started, which no clock of
/// user space does: so a program tells it.
pub struct Clock {
    object: Ebpf,
    last: AtomicU32,
}

impl Clock {
    /// The clock of an object whose program [`PROGRAM`] is loaded.
    ///
    /// # Errors
    /// If the kernel refuses to run it.
    pub fn new(object: Ebpf) -> anyhow::Result<Self> {
        let last = AtomicU32::new(read(&object)?);
        Ok(Self { object, last })
    }

    /// [`lb_common::flow::seconds`].
    pub fn now(&self) -> u32 {
        match read(&self.object) {
            Ok(now) => self.last.store(now, Ordering::Relaxed),
            // For want of memory perhaps. A clock that stands still for a moment
            // lets nothing run out too early.
            Err(error) => warn!("cannot read the packet path's clock: {error:#}"),
        }
        self.last.load(Ordering::Relaxed)
    }
}

/// Nanoseconds from one of the kernel's ticks to the next: what its coarse
/// clocks resolve, clock_getres(2).
pub fn tick() -> nix::Result<u64> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(tick.tv_sec() as u64 * 1_000_000_000 + tick.tv_nsec() as u64)
}

fn read(object: &Ebpf) -> anyhow::Result<u32> {
    let program = object.program(PROGRAM).context("the program is missing")?;
    let program: &Xdp = program.try_into()?;
    // The kernel wants a packet; the program does not.
    let mut options = TestRunOptions::new();
    options.data_in = Some(&[0; 64]);
    Ok(program.test_run(options)?.return_value)
}
