use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

const FILE: &str = "lock";

/// The right of one process to use a state directory. The kernel takes it
/// back when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock and writes the process id into it.
    ///
    /// # Errors
    /// When another process has it.
    pub fn take(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        // Who can open it can take the lock, and nobody else could start then.
        file.set_permissions(Permissions::from_mode(0o600))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((file, Errno::EWOULDBLOCK)) => bail!(
                "another lb-ctl up{} uses the state directory {}: \
                 stop it with `lb-ctl down --state {}`, or choose another --state",
                pid(file).map_or_else(String::new, |pid| format!(" (process {pid})")),
                directory.display(),
                directory.display(),
            ),
            Err((_, error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        };
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

/// Process id of the `lb-ctl up` that uses a state directory, if any does.
///
/// # Errors
/// When the lock file cannot be read.
pub fn running(directory: &Path) -> Result<Option<i32>> {
    let path = directory.join(FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot open {}", path.display()));
        }
    };
    // Shared, so that two who ask do not take each other for the owner.
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err((file, Errno::EWOULDBLOCK)) => Ok(pid(file)),
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn pid(mut file: File) -> Option<i32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time_who_can_be_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(running(dir.path()).unwrap(), None);
        let lock = Lock::take(dir.path()).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(running(dir.path()).unwrap(), Some(own));
        let error = Lock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("(process {own})")), "{error}");
        drop(lock);
        assert_eq!(running(dir.path()).unwrap(), None);
        Lock::take(dir.path()).unwrap();
    }
}
