//! Running a command that must succeed.

use std::process::Command;

use anyhow::{Context, bail};

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or does not succeed: the error holds the command
/// line, the status and everything it printed.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let line = line_of(command);
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{line}`; is it installed? `cargo xtask setup` installs what the lab needs"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "`{line}` failed: {}\nstdout: {}\nstderr: {}",
            output.status,
            stdout.trim_end(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(stdout)
}

/// The command as one would type it.
pub(crate) fn line_of(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs `ip` in the machine's own namespace.
pub(crate) fn ip<'a>(args: impl IntoIterator<Item = &'a str>) -> anyhow::Result<String> {
    run(Command::new("ip").args(args))
}
