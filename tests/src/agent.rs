//! `lb-agent` on a host of a lab.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::Context;
use serde_json::Value;

use crate::{Host, Lab, Process, paths};

/// `lb-agent` on one host, with a state directory of its own.
#[derive(Clone, Debug)]
pub struct Agent {
    host: Host,
    program: PathBuf,
    state: PathBuf,
}

/// What one call of `lb-agent` came to.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Exit status.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Agent {
    /// The state directory lies in the lab's directory and is not made yet.
    ///
    /// # Errors
    /// When `lb-agent` is not built.
    pub fn new(lab: &Lab, host: &Host) -> anyhow::Result<Self> {
        Ok(Self {
            host: host.clone(),
            program: paths::binary("lb-agent")?,
            state: lab.dir().join(format!("{}-agent", host.name())),
        })
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// The state file's content, if there is one.
    pub fn state(&self) -> Option<Value> {
        let text = std::fs::read_to_string(self.state.join("state.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Calls it to its end, whatever that is.
    pub fn call(&self, args: &[&str]) -> anyhow::Result<Answer> {
        let output = self.command(args).stdin(Stdio::null()).output();
        let Output {
            status,
            stdout,
            stderr,
        } = output.with_context(|| format!("cannot start {}", self.program.display()))?;
        Ok(Answer {
            code: status
                .code()
                .with_context(|| format!("lb-agent {args:?}: {status}"))?,
            stdout: String::from_utf8(stdout)?,
            stderr: String::from_utf8(stderr)?,
        })
    }

    /// Calls it with `--json`, expects this exit status, returns the object.
    ///
    /// # Panics
    /// When the status is another, or the output is not one object.
    #[track_caller]
    pub fn json(&self, args: &[&str], code: i32) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let answer = self.call(&args).expect("lb-agent can be called");
        assert_eq!(answer.code, code, "lb-agent {args:?}: {answer:?}");
        match serde_json::from_str(&answer.stdout) {
            Ok(value @ Value::Object(_)) => value,
            other => panic!("lb-agent {args:?}: {other:?}: {answer:?}"),
        }
    }

    /// Starts it for good, as `lb-agent run`.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Process> {
        let args: Vec<&str> = ["run"].iter().chain(args).copied().collect();
        self.host.spawn(self.command(&args), "lb-agent")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(&self.program);
        command.args(args).arg("--state").arg(&self.state);
        command
    }
}
