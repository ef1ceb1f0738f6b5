//! A running machine.

use std::fs::{self, File};
use std::num::NonZero;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use super::init::{END, REFUSED};
use super::kernel::{Kernel, directory, program};
use crate::Process;

/// Lines of each serial port that an error shows.
const TAIL: usize = 60;

/// What a command in a machine did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit status, as a shell tells it.
    pub status: i32,
    /// What it printed, standard output and standard error.
    pub output: String,
    /// What the kernel said meanwhile: warnings and worse.
    pub console: String,
}

impl Output {
    /// What the command printed if it succeeded.
    ///
    /// # Errors
    /// When its status is not 0; the error holds all that it printed.
    pub fn ok(self) -> anyhow::Result<String> {
        if self.status != 0 {
            bail!(
                "the command ended with status {} and printed:\n{}\nthe kernel said:\n{}",
                self.status,
                self.output,
                tail(&self.console)
            );
        }
        Ok(self.output)
    }
}

/// One processor, whose instructions are the clock: each takes a nanosecond,
/// and while it rests, time leaps to what it waits for. No deadline in a
/// machine depends on how fast or busy this host is. The date and the random
/// numbers are the same each time: the kernel seeds its hash tables with them.
///
/// Several processors are not to be had from QEMU 7.2. Beside each other, they
/// meet `int3` in code that the kernel patches, and it panics; taking turns by
/// this clock, they hang or find each other's registers.
const PROCESSOR: [&str; 12] = [
    "-accel",
    "tcg",
    "-icount",
    "shift=0,sleep=off",
    "-cpu",
    "max",
    "-smp",
    "1",
    "-rtc",
    "base=2026-01-01,clock=vm",
    "-seed",
    "1",
];

/// What a machine is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine<'a> {
    pub kernel: Kernel,
    pub initramfs: &'a Path,
    pub memory_mib: u32,
}

impl Machine<'_> {
    /// Boots the machine and waits until it is off. `place` is a directory of
    /// its own.
    ///
    /// # Errors
    /// When the machine cannot start, panics, or still runs at the deadline.
    pub fn run(&self, place: &Path, timeout: Duration) -> anyhow::Result<Output> {
        let lock = File::create(directory().join(format!("lock-{}", self.lane())))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
        let (console, output) = (place.join("console.log"), place.join("output.log"));
        let mut qemu = Command::new(program("qemu-system-x86_64")?);
        qemu.args(PROCESSOR)
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-m", &self.memory_mib.to_string()])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-serial")
            .arg(format!("file:{}", output.display()))
            .arg("-kernel")
            .arg(self.kernel.image()?)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", "console=ttyS0 loglevel=5 panic=-1 oops=panic"]);
        die_with_this_thread(&mut qemu);
        let process = Process::start(qemu, &place.join("qemu.log"))?;
        let end = process.wait_exit(timeout);
        let (console, output) = (text(&console), text(&output));
        let kernel = self.kernel;
        let seen = || {
            format!(
                "the command's output ends with:\n{}\nthe console ends with:\n{}\nQEMU said:\n{}",
                tail(&output),
                tail(&console),
                tail(&process.log())
            )
        };
        if console.contains("Kernel panic") {
            bail!("kernel {kernel} panicked; {}", seen());
        }
        let Ok(end) = end else {
            bail!("kernel {kernel} still ran after {timeout:?}; {}", seen());
        };
        if !end.success() {
            bail!("QEMU ended with {end}; {}", seen());
        }
        result(&output, &console).with_context(|| format!("in kernel {kernel}; {}", seen()))
    }

    /// Machines of one lane wait for one another, whoever starts them: each takes
    /// a whole processor, and memory. Those of one kernel share a lane.
    fn lane(&self) -> usize {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        self.kernel as usize % processors
    }
}

/// The kernel kills QEMU when the thread that started it is gone, however it
/// ended: a test that is interrupted by Ctrl-C or killed runs no guard.
fn die_with_this_thread(command: &mut Command) {
    // SAFETY: between fork and exec only prctl(2) is called, which is
    // async-signal-safe, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)
        });
    }
}

/// Reads what came out of the second serial port.
fn result(output: &str, console: &str) -> anyhow::Result<Output> {
    if let Some((_, reason)) = output.rsplit_once(REFUSED) {
        bail!("the machine is not ready: {}", reason.trim());
    }
    let (printed, status) = output
        .rsplit_once(END)
        .context("the machine went off before the command had ended")?;
    Ok(Output {
        status: status.trim().parse().context("unreadable status")?,
        output: printed.to_owned(),
        console: console.to_owned(),
    })
}

fn text(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_marker_tells_output_from_status() {
        let output = format!("one\ntwo\n{END} 3\n");
        let parsed = result(&output, "").unwrap();
        assert_eq!(parsed.status, 3);
        assert_eq!(parsed.output, "one\ntwo\n");
        assert!(parsed.ok().unwrap_err().to_string().contains("two"));
        let error = result("one\n", "").unwrap_err();
        assert!(error.to_string().contains("went off"), "{error}");
        let refused = format!("{REFUSED} module x.ko does not load\n");
        let error = result(&refused, "").unwrap_err();
        assert!(error.to_string().contains("module x.ko"), "{error}");
    }
}
