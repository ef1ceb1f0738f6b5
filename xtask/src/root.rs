//! Becoming root, in one place.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};

use crate::workspace::{has_program, this_program};

/// Set for the task that was started again as root: what can be done without
/// root is done.
const PREPARED: &str = "LB_XTASK_PREPARED";

/// Variables without which the same toolchain is not found again.
const KEPT: [&str; 5] = ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "LB_BIN_DIR"];

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether this is the task's second start, as root, by [`become_root`].
pub fn is_prepared() -> bool {
    env::var_os(PREPARED).is_some()
}

/// Starts the same task again through sudo, unless this is root already.
///
/// # Errors
/// When there is no sudo, or it cannot be started.
pub fn become_root(why: &str) -> anyhow::Result<()> {
    if is_root() {
        return Ok(());
    }
    eprintln!("going on through sudo: {why} needs root");
    let mut words = sudo(why)?;
    words.push(format!("{PREPARED}=1").into());
    words.push(this_program()?.into());
    words.extend(env::args_os().skip(1));
    let error = Command::new(&words[0]).args(&words[1..]).exec();
    Err(error).context("cannot start sudo")
}

/// The words to put before a command so that it runs as root in this
/// environment; none if this is root.
///
/// # Errors
/// When this is not root and there is no sudo.
pub fn sudo(why: &str) -> anyhow::Result<Vec<OsString>> {
    if is_root() {
        return Ok(Vec::new());
    }
    if !has_program("sudo") {
        bail!("{why} needs root, and there is no sudo here: run the same command as root");
    }
    let mut words: Vec<OsString> = ["sudo", "-E", "env"].map(OsString::from).into();
    for name in KEPT {
        if let Some(value) = env::var_os(name) {
            let mut word = OsString::from(format!("{name}="));
            word.push(value);
            words.push(word);
        }
    }
    Ok(words)
}
