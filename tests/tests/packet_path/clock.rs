//! The packet path's clock.

use std::time::Duration;

use nix::time::{ClockId, clock_getres, clock_gettime};

use super::world::World;

/// The kernel's ticks begin five minutes before its counter of 32 bits runs
/// over (INITIAL_JIFFIES of linux/jiffies.h), about when CLOCK_MONOTONIC begins:
/// so a length of a tick that is wrong by a thousandth would be hours here.
#[test]
fn it_runs_as_fast_as_the_hosts() {
    World::with("clock", |world| {
        let clock = ClockId::CLOCK_MONOTONIC_COARSE;
        let tick = Duration::from(clock_getres(clock).unwrap());
        let hertz = (Duration::from_secs(1).as_nanos() + tick.as_nanos() / 2) / tick.as_nanos();
        let first = u128::from(u32::MAX) + 1 - 300 * hertz;
        let since_start = || Duration::from(clock_gettime(clock).unwrap()).as_nanos();
        let expected = || ((first * tick.as_nanos() + since_start()) >> 30) as i64;
        let (before, now, after) = (expected(), i64::from(world.now()), expected());
        // Interrupts begin a moment later than time does.
        assert!(
            (before - 30..=after + 1).contains(&now),
            "{now}, not {before} to {after}, with {hertz} ticks a second"
        );
    });
}
