use std::collections::BTreeSet;

use lb_common::counters::IcmpBudget;
use lb_ebpf::verdict::Verdict;

use super::{Counters, Outcome, World, add, difference};

/// Frames through both directors, one after the other. Verdict and bytes are
/// compared for each, what only maps know at the end: to read them is what
/// takes long.
pub struct Batch<'a> {
    world: &'a World,
    /// The kernel's counters at the beginning.
    before: Counters,
    /// What the host's have counted since.
    counted: Counters,
    frames: u32,
}

impl<'a> Batch<'a> {
    /// Frames of one batch at most: as many as can be answered in one second.
    pub const MOST: usize = IcmpBudget::PER_SECOND as usize;

    /// BPF_PROG_TEST_RUN takes none that are shorter than an Ethernet header.
    const LEAST: usize = 14;

    /// Begins a batch, with all of a second's ICMP errors to send.
    pub fn new(world: &'a World) -> Self {
        world.set_icmp_budget(IcmpBudget::default());
        world.tables.icmp_budget.set(IcmpBudget::default());
        Self {
            world,
            before: world.kernel_counters(),
            counted: Counters::default(),
            frames: 0,
        }
    }

    /// What the host build makes of a frame, without the flows.
    ///
    /// # Errors
    /// What the kernel makes of it, if that is something else.
    pub fn run(&mut self, frame: &[u8]) -> Result<Outcome, String> {
        self.frames += 1;
        let kernel = (frame.len() >= Self::LEAST).then(|| self.world.run_in_kernel(frame));
        let tables = &self.world.tables;
        tables.counters.borrow_mut().clear();
        tables.drops.borrow_mut().clear();
        let (verdict, bytes) = self.world.run_on_host(self.world.received(frame));
        let Counters(counted, dropped) = self.world.host_counters();
        for (n, value) in &counted {
            add(self.counted.0.entry(*n).or_default(), value);
        }
        for (reason, count) in &dropped {
            *self.counted.1.entry(*reason).or_default() += count;
        }
        if let Some(kernel) = kernel {
            let host = (action(verdict), bytes.as_slice());
            if (kernel.0, kernel.1.as_slice()) != host {
                return Err(format!(
                    "XDP action {} in the kernel, {verdict:?} on the host\n\
                     kernel {:02x?}\n  host {bytes:02x?}",
                    kernel.0, kernel.1
                ));
            }
        }
        Ok(Outcome {
            verdict,
            bytes,
            counted,
            dropped,
            recorded: BTreeSet::new(),
            translated: BTreeSet::new(),
        })
    }

    /// Ends it. Returns the number of frames.
    ///
    /// # Errors
    /// What of counters and flows differs.
    pub fn end(self) -> Result<u32, String> {
        let (counted, dropped) = difference(&self.before, &self.world.kernel_counters());
        let kernel = Counters(counted, dropped);
        if kernel != self.counted {
            let host = self.counted;
            return Err(format!("counters\nkernel {kernel:?}\n  host {host:?}",));
        }
        let (kernel, host) = (self.world.flows_in_kernel(), self.world.flows_on_host());
        if kernel != host {
            return Err(format!("flows\nkernel {kernel:?}\n  host {host:?}"));
        }
        Ok(self.frames)
    }
}

/// The number that XDP has for a verdict.
fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop(_) => 1,
        Verdict::Pass | Verdict::Host => 2,
        Verdict::Transmit => 3,
        Verdict::Redirect(_) => 4,
    }
}
