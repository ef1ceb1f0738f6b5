//! Packets that the kernel is working on.

use nix::libc::{SYS_membarrier, c_long, syscall};

/// Returns when all packets that the kernel was working on at the call are
/// done with: it takes each within one RCU read-side section, and
/// membarrier(2) waits for those to end.
///
/// Kernels with processors that have no tick (`nohz_full`) refuse that. There
/// it returns at once: it would have been a matter of microseconds.
pub fn wait_for_those_under_way() {
    /// `MEMBARRIER_CMD_GLOBAL` of <linux/membarrier.h>.
    const GLOBAL: c_long = 1;
    const NO_FLAGS: c_long = 0;
    // SAFETY: the call takes two numbers, a third one only with flags, and
    // touches no memory of ours.
    let refused = unsafe { syscall(SYS_membarrier, GLOBAL, NO_FLAGS) };
    if refused != 0 {
        tracing::debug!("no membarrier: {}", std::io::Error::last_os_error());
    }
}
