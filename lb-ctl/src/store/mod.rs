//! The desired state on disk.

mod lock;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use lock::{Lock, running};

use crate::model::{Config, text};

/// A directory with the desired state in `config.json` and the one before it
/// in `config.json.1`.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    // Held for as long as the store is in use.
    _lock: Lock,
}

impl Store {
    /// Opens the directory for this process alone; makes it if need be.
    ///
    /// # Errors
    /// When it cannot be made, or another `lb-ctl up` uses it.
    pub fn open(directory: &Path) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .with_context(|| {
                format!(
                    "cannot make the state directory {}: run lb-ctl up as root, \
                     or choose another with --state",
                    directory.display()
                )
            })?;
        Ok(Self {
            directory: directory.to_owned(),
            _lock: Lock::take(directory)?,
        })
    }

    /// Reads the desired state; `None` if none was ever saved.
    ///
    /// # Errors
    /// When the file cannot be read or is not a desired state; the error says
    /// where it is wrong and how to go on.
    pub fn load(&self) -> Result<Option<Config>> {
        let path = self.file();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let config = text::from_json::<Config>(&bytes).and_then(|config| {
            config.validate()?;
            Ok(config)
        });
        match config {
            Ok(config) => Ok(Some(config)),
            Err(problem) => {
                let shown = path.display();
                let previous = self.previous();
                let advice = if previous.exists() {
                    format!(
                        "mend it, or go back to the version before it: cp {} {shown}",
                        previous.display()
                    )
                } else {
                    format!("mend it, or start with nothing: mv {shown} {shown}.bad")
                };
                bail!("{shown} is not a valid configuration: {problem}; {advice}")
            }
        }
    }

    /// Saves the desired state. When this returns, it is on disk; if it
    /// fails, the one before it is still there.
    ///
    /// # Errors
    /// When the disk is full or the directory is not writable.
    pub fn save(&self, config: &Config) -> Result<()> {
        let (path, previous) = (self.file(), self.previous());
        let temporary = self.directory.join("config.json.new");
        let mut json = serde_json::to_vec_pretty(config)?;
        json.push(b'\n');
        let write = || -> std::io::Result<()> {
            // Made anew, so that its mode is ours whatever was left behind.
            remove(&temporary)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&json)?;
            file.sync_all()?;
            if path.exists() {
                remove(&previous)?;
                fs::hard_link(&path, &previous)?;
            }
            fs::rename(&temporary, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().with_context(|| {
            format!(
                "cannot write {}: is the disk full or read-only?",
                path.display()
            )
        })
    }

    fn file(&self) -> PathBuf {
        self.directory.join("config.json")
    }

    fn previous(&self) -> PathBuf {
        self.directory.join("config.json.1")
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(key: &str) -> Config {
        let mut config = Config::default();
        config.settings.hash_key = key.to_owned();
        config
    }

    #[test]
    fn what_was_saved_is_read_and_the_one_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.load().unwrap(), None);
        for key in ["a", "b", "c"] {
            store.save(&config(key)).unwrap();
            assert_eq!(store.load().unwrap(), Some(config(key)));
        }
        let previous = fs::read(dir.path().join("config.json.1")).unwrap();
        assert_eq!(text::from_json::<Config>(&previous).unwrap(), config("b"));
        let mode = fs::metadata(store.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_broken_file_is_named_with_line_and_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        fs::write(store.file(), "{\n  \"services\": [\n").unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("config.json is not valid") || error.contains("config.json"));
        assert!(error.contains("line 3"), "{error}");
        assert!(error.contains("mv "), "{error}");
        store.save(&config("a")).unwrap();
        store.save(&config("b")).unwrap();
        fs::write(store.file(), "{\"services\": [], \"serivces\": []}").unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("serivces"), "{error}");
        assert!(error.contains("cp "), "{error}");
    }

    #[test]
    fn a_leftover_of_a_crash_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        fs::write(dir.path().join("config.json.new"), "half").unwrap();
        store.save(&config("a")).unwrap();
        assert_eq!(store.load().unwrap(), Some(config("a")));
    }
}
