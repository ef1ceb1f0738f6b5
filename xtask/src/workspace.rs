//! The workspace, and running programs in it.

use std::env;
use std::ffi::OsString;
use std::io::stderr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The top directory.
pub fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Where set-up puts the tools that it builds.
pub fn tools() -> PathBuf {
    root().join("target/tools")
}

/// This program. Cargo may have built it anew since it was started, with the
/// features of the whole workspace: then the kernel calls the old one deleted,
/// and the new one stands in its place.
pub fn this_program() -> anyhow::Result<PathBuf> {
    let path = env::current_exe().context("cannot find this program")?;
    let text = path.to_string_lossy();
    Ok(text
        .strip_suffix(" (deleted)")
        .map_or(path.clone(), PathBuf::from))
}

/// The cargo that runs this task, in the top directory.
pub fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// Runs a command whose output the user shall see. It goes to standard error:
/// standard output is for the task's own result.
pub fn call(command: &mut Command) -> anyhow::Result<()> {
    let line = line_of(command);
    let output = stderr().as_fd().try_clone_to_owned()?;
    let status = command
        .stdout(Stdio::from(output))
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Standard output of a command if it succeeds.
pub fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// The target triple of this machine's rustc.
pub fn host() -> anyhow::Result<String> {
    let mut rustc = Command::new("rustc");
    let version = output_of(rustc.arg("-vV").current_dir(root())).context("rustc does not run")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

/// Whether a program can be found, also where only root has it in its path.
pub fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|dir| dir.join(name).is_file())
}

fn line_of(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
