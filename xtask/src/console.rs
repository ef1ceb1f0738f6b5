//! What the user sees while a task runs.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::mem::take;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lines that stay, and below them, on a terminal, lines that are redrawn.
pub struct Console {
    /// Standard output is for JSON alone.
    to_stderr: bool,
    terminal: bool,
    /// Lines that the next output replaces.
    live: Mutex<Vec<String>>,
}

impl Console {
    /// With `to_stderr` nothing goes to standard output.
    pub fn new(to_stderr: bool) -> Self {
        let terminal = if to_stderr {
            stderr().is_terminal()
        } else {
            stdout().is_terminal()
        };
        Self {
            to_stderr,
            terminal,
            live: Mutex::default(),
        }
    }

    /// A step of the task.
    pub fn step(&self, text: &str) {
        if self.terminal {
            self.line(&format!("\x1b[1m==> {text}\x1b[0m"));
        } else {
            self.line(&format!("==> {text}"));
        }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        self.write(&format!("{}{text}\n", self.erase()));
    }

    /// Lines that the next output replaces. Shown on a terminal only.
    pub fn live(&self, lines: Vec<String>) {
        if !self.terminal || *self.shown() == lines {
            return;
        }
        self.write(&format!("{}{}\n", self.erase(), lines.join("\n")));
        *self.shown() = lines;
    }

    fn erase(&self) -> String {
        match take(&mut *self.shown()).len() {
            0 => String::new(),
            // Up to the first of them, then clear to the end of the screen.
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }

    fn shown(&self) -> MutexGuard<'_, Vec<String>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, text: &str) {
        // A closed pipe must not keep the lab from being removed.
        let _ = if self.to_stderr {
            stderr().write_all(text.as_bytes())
        } else {
            stdout().write_all(text.as_bytes())
        };
    }
}
