//! The clock of the packet path.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_jiffies64;
use lb_common::flow;

/// Nanoseconds from one tick of the kernel to the next. User space says so.
#[unsafe(no_mangle)]
static TICK: Global<u64> = Global::new(0);

/// [`flow::seconds`] of this clock.
///
/// It counts the kernel's ticks, which are as fine as need be: the verifier
/// makes the helper a read of memory, where each of those that tell the time is
/// several functions of the kernel.
#[inline(always)]
pub fn now() -> u32 {
    flow::seconds(tick().wrapping_mul(TICK.load()))
}

/// Number of the tick that it is.
#[inline(always)]
pub fn tick() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_jiffies64() }
}
