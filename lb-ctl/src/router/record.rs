//! Which values were found, so that they can be put back, also after a crash.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::sysctl::Sysctl;

/// A sysctl that is kept set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Which one.
    pub sysctl: Sysctl,
    /// Its value before.
    pub found: i32,
    /// Its value since.
    pub set: i32,
}

/// The entries in the order in which they are set, on disk in the state
/// directory.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl Record {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(state: &Path) -> Result<Self> {
        let path = state.join("router.json");
        let entries = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "{} is damaged: put back the sysctls that it names by hand, and remove it",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
        };
        Ok(Self { path, entries })
    }

    /// The entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether there is an entry for this sysctl.
    pub fn has(&self, sysctl: &Sysctl) -> bool {
        self.entries.iter().any(|entry| entry.sysctl == *sysctl)
    }

    /// Remembers these instead. Call it before a sysctl is set, and after it
    /// is put back.
    ///
    /// # Errors
    /// If it cannot be written; then what was remembered still is.
    pub fn replace(&mut self, entries: Vec<Entry>) -> Result<()> {
        if entries == self.entries {
            return Ok(());
        }
        self.write(&entries)
            .with_context(|| format!("writing {}", self.path.display()))?;
        self.entries = entries;
        Ok(())
    }

    fn write(&self, entries: &[Entry]) -> std::io::Result<()> {
        if entries.is_empty() {
            fs::remove_file(&self.path)?;
        } else {
            let temporary = self.path.with_extension("json.new");
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(entries)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
        }
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}
