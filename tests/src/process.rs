//! A process that does not outlive its guard.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::command::line_of;
use crate::wait::try_eventually;

/// A running program in a process group of its own. Dropping it ends the
/// group: SIGTERM, and SIGKILL two seconds later.
#[derive(Debug)]
pub struct Process {
    line: String,
    pid: Pid,
    log: PathBuf,
    /// `None` once its end has been seen, or once it is left alone.
    child: Mutex<Option<Child>>,
}

impl Process {
    /// Starts `command` with its output going to the file `log`.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let line = line_of(&command);
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write the log {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        Ok(Self {
            line,
            pid: Pid::from_raw(child.id().cast_signed()),
            log: log.to_owned(),
            child: Mutex::new(Some(child)),
        })
    }

    /// The process id, which is also the id of its group.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        self.locked().is_some() && !self.has_ended()
    }

    /// Sends a signal to the whole group. Nothing happens if it has ended.
    pub fn kill(&self, signal: Signal) -> anyhow::Result<()> {
        match self.locked().as_ref().map(|_| killpg(self.pid, signal)) {
            None | Some(Ok(()) | Err(Errno::ESRCH)) => Ok(()),
            Some(Err(e)) => Err(e).with_context(|| format!("cannot signal `{}`", self.line)),
        }
    }

    /// Sends a signal to the process alone, not to its children.
    pub fn kill_leader(&self, signal: Signal) -> anyhow::Result<()> {
        match self.locked().as_ref().map(|_| kill(self.pid, signal)) {
            None | Some(Ok(()) | Err(Errno::ESRCH)) => Ok(()),
            Some(Err(e)) => Err(e).with_context(|| format!("cannot signal `{}`", self.line)),
        }
    }

    /// Waits for the process to end by itself (or by a signal sent before)
    /// and ends what is left of its group.
    ///
    /// # Errors
    /// When it still runs at the deadline, or when its end was seen before.
    pub fn wait_exit(&self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        try_eventually(&format!("the end of `{}`", self.line), timeout, || {
            self.has_ended()
        })
        .with_context(|| format!("its output:\n{}", self.log()))?;
        // It is a zombie now and keeps the group's number from being reused.
        self.kill(Signal::SIGKILL)?;
        let mut child = self
            .locked()
            .take()
            .with_context(|| format!("the end of `{}` was seen before", self.line))?;
        Ok(child.wait()?)
    }

    /// Ends the group: SIGTERM, and SIGKILL two seconds later.
    pub fn stop(&self) -> anyhow::Result<()> {
        if self.locked().is_none() {
            return Ok(());
        }
        self.kill(Signal::SIGTERM)?;
        if self.wait_exit(Duration::from_secs(2)).is_err() && self.locked().is_some() {
            self.kill(Signal::SIGKILL)?;
            self.wait_exit(Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// Lets the process run on after the guard and returns its id.
    pub fn leave(self) -> u32 {
        self.locked().take();
        self.pid()
    }

    fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(waitid(Id::Pid(self.pid), flags), Ok(WaitStatus::StillAlive))
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(e) = self.stop() {
            eprintln!("cannot end `{}`: {e:#}", self.line);
        }
    }
}
