//! What was found on the host before it was changed, so that it can be put
//! back, also after a crash.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Entries in the order in which changes are made, on disk in the state
/// directory.
#[derive(Debug)]
pub struct Record<E> {
    path: PathBuf,
    entries: Vec<E>,
}

impl<E: Clone + PartialEq + Serialize + DeserializeOwned> Record<E> {
    /// Reads the file with this name, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(state: &Path, name: &str) -> Result<Self> {
        let path = state.join(name);
        let entries = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "{} is damaged: put back by hand what it names, and remove it",
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
    pub fn entries(&self) -> &[E] {
        &self.entries
    }

    /// Remembers these instead. Call it before a change is made, and after it
    /// is undone.
    ///
    /// # Errors
    /// If it cannot be written; then what was remembered still is.
    pub fn replace(&mut self, entries: Vec<E>) -> Result<()> {
        if entries == self.entries {
            return Ok(());
        }
        self.write(&entries)
            .with_context(|| format!("writing {}", self.path.display()))?;
        self.entries = entries;
        Ok(())
    }

    fn write(&self, entries: &[E]) -> std::io::Result<()> {
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
