//! Where the programs under test are.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, bail};

/// Path of one of the project's own programs, such as `lb-ctl`: in the
/// directory that LB_BIN_DIR names, else beside the running test.
///
/// # Errors
/// When it is not built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let path = directory()?.join(name);
    if !path.is_file() {
        bail!(
            "{} does not exist: run `cargo xtask build-ebpf && cargo build --workspace --bins`, \
             or name the directory of the programs in LB_BIN_DIR",
            path.display()
        );
    }
    Ok(path)
}

fn directory() -> anyhow::Result<PathBuf> {
    if let Some(directory) = env::var_os("LB_BIN_DIR") {
        return Ok(directory.into());
    }
    let own = env::current_exe().context("cannot tell where the running program is")?;
    let directory = own
        .parent()
        .context("the running program has no directory")?;
    // Tests are in a directory `deps` below the programs.
    Ok(match directory.parent() {
        Some(above) if directory.ends_with("deps") => above.to_owned(),
        _ => directory.to_owned(),
    })
}
