//! The clock of a machine that counts instructions.

use std::time::Duration;

use anyhow::ensure;
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

/// Has the second of the time of day begin with that of the monotonic clock.
///
/// The kernel computes the coarse monotonic clock, which the packet path reads,
/// from the time of day, and where the one is in another second than the other,
/// that takes it a few instructions more: a count would depend on the moment.
///
/// # Errors
/// Without root, or if the kernel refuses.
pub fn align_seconds() -> anyhow::Result<()> {
    // How far apart they are is exact if no tick comes between the two.
    let distance = || -> anyhow::Result<u32> {
        let realtime = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME_COARSE)?);
        let monotonic = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?);
        Ok((realtime - monotonic).subsec_nanos())
    };
    let mut nanoseconds = distance()?;
    while distance()? != nanoseconds {
        nanoseconds = distance()?;
    }
    // SAFETY: every field of this plain structure may be zero.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    // Forwards: the field of nanoseconds must not be negative.
    change.time.tv_usec = libc::suseconds_t::from(1_000_000_000 - nanoseconds);
    if change.time.tv_usec == 1_000_000_000 {
        return Ok(());
    }
    // SAFETY: the kernel reads and writes the structure during the call.
    Errno::result(unsafe { libc::adjtimex(&raw mut change) })?;
    ensure!(distance()? == 0, "the seconds are not aligned");
    Ok(())
}
