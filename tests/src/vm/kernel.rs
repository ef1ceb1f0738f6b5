//! The kernels, and their modules.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::command::run;

/// A kernel that Debian 12 ships, as built for clouds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernel {
    /// Linux 6.1, Debian 12's own: the oldest that is supported.
    V6_1,
    /// Linux 6.12, from Debian 12's updates.
    V6_12,
}

impl Kernel {
    /// All of them, oldest first.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// The first two numbers of its version: `6.1`.
    pub fn series(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// Where it is to be found: `vmlinuz`, `release` (what `uname -r` says of
    /// it) and `lib/modules/RELEASE`, modules not compressed and indexed by
    /// depmod.
    pub fn directory(self) -> PathBuf {
        directory().join("kernels").join(self.series())
    }

    /// The kernel itself.
    ///
    /// # Errors
    /// When it has not been fetched.
    pub(super) fn image(self) -> anyhow::Result<PathBuf> {
        let image = self.directory().join("vmlinuz");
        if !image.is_file() {
            bail!(
                "there is no kernel at {}: `cargo xtask setup` fetches it",
                image.display()
            );
        }
        Ok(image)
    }

    /// What `uname -r` says of it.
    ///
    /// # Errors
    /// As [`Self::image`].
    pub fn release(self) -> anyhow::Result<String> {
        let path = self.directory().join("release");
        let text = fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}: `cargo xtask setup` fetches kernels",
                path.display()
            )
        })?;
        Ok(text.trim().to_owned())
    }

    /// Files of a module and of those that it needs, in the order in which
    /// they must be loaded. None if it is built in.
    ///
    /// # Errors
    /// When the kernel has no such module.
    pub(super) fn module(self, name: &str) -> anyhow::Result<Vec<PathBuf>> {
        let mut modprobe = Command::new(program("modprobe")?);
        modprobe
            // Not this machine's configuration, which adds options and more.
            .args(["--config", "/dev/null", "--show-depends", "--dirname"])
            .arg(self.directory())
            .args(["--set-version", &self.release()?, name]);
        let text = run(&mut modprobe)
            .with_context(|| format!("kernel {self} has no module {name}, or none is found"))?;
        let files = text.lines().filter_map(|line| line.strip_prefix("insmod "));
        Ok(files.map(|file| PathBuf::from(file.trim())).collect())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.series())
    }
}

/// Where everything of the virtual machines is: inside the checkout, with
/// what is built.
pub(super) fn directory() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).join("target/vm")
}

/// Path of one of the system's programs, also where only root has it in its
/// path.
pub(super) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("there is no program {name} here: run `cargo xtask setup`"))
}
