//! What `apply` found, so that `undo` can put it back.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::arp::Key;
use crate::tunnel::{Decapsulate, Tunnel};
use crate::vip::{Scope, Vip};

/// Where the state is kept unless told otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/lb-agent";

const FILE: &str = "state.json";
const VERSION: u32 = 1;

/// What this host should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The VIPs.
    pub vips: Vec<Vip>,
    /// Names of the interfaces that face the segment; in TUN mode, those by
    /// which the directors' packets arrive.
    pub interfaces: Vec<String>,
    /// What TUN mode asks for; none in DR mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vips: Vec<String> = self.vips.iter().map(ToString::to_string).collect();
        f.write_str(&vips.join(", "))?;
        if !self.interfaces.is_empty() {
            write!(f, " towards {}", self.interfaces.join(", "))?;
        }
        Ok(())
    }
}

/// Items as an option takes them: separated by commas.
pub fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}

/// What is wanted, and what was there before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// What the last `apply` was told to hold.
    #[serde(flatten)]
    pub want: Want,
    /// What an `apply` before it set up and this one is to take down, until it
    /// has been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Tunnel>,
    /// Each sysctl that is managed.
    pub sysctls: Vec<SysctlRecord>,
    /// Each VIP that is held.
    pub addresses: Vec<AddressRecord>,
}

/// A managed sysctl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysctlRecord {
    /// Which one.
    #[serde(flatten)]
    pub key: Key,
    /// Its value before the first `apply`.
    pub found: i32,
    /// Its value since.
    pub set: i32,
}

/// A held VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// The VIP, on `lo` with all bits.
    pub vip: Vip,
    /// The scope with which it was there before the first `apply`, if it was.
    pub found: Option<Scope>,
}

impl State {
    /// Nothing recorded yet.
    pub fn new(want: Want) -> Self {
        Self {
            version: VERSION,
            want,
            ..Self::default()
        }
    }

    /// The tunnel of which something may be set up. After an `apply` that was
    /// interrupted there may be two; then the one with devices, since programs
    /// are found by their pins in any case.
    pub fn tunnel(&self) -> Option<&Tunnel> {
        let has_devices = |t: &&Tunnel| t.decapsulate == Decapsulate::Kernel;
        let wanted = self.want.tunnel.as_ref();
        wanted
            .filter(has_devices)
            .or(self.leaving.as_ref())
            .or(wanted)
    }

    /// The record of a sysctl.
    pub fn sysctl(&self, key: &Key) -> Option<&SysctlRecord> {
        self.sysctls.iter().find(|record| record.key == *key)
    }

    /// The record of a VIP.
    pub fn address(&self, vip: Vip) -> Option<&AddressRecord> {
        self.addresses.iter().find(|record| record.vip == vip)
    }
}

/// The directory that holds the state file.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// Keeps other `lb-agent`s from changing things at the same time, until it is
/// dropped.
#[derive(Debug)]
pub struct Lock(
    #[expect(dead_code, reason = "the lock is held for as long as the file is open")] File,
);

impl Store {
    /// The state file in `dir`, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The state file.
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Reads the state file; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read, or was not written by a version that this one
    /// understands.
    pub fn load(&self) -> anyhow::Result<Option<State>> {
        let path = self.path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let state: State = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is not a state file of lb-agent; what `apply` found is lost with it. \
                 Look into it, put the host right by hand, and remove it",
                path.display()
            )
        })?;
        if state.version != VERSION {
            bail!(
                "{} has version {} and this lb-agent knows {VERSION}; run `undo` with the \
                 lb-agent that wrote it",
                path.display(),
                state.version
            );
        }
        Ok(Some(state))
    }

    /// Replaces the state file. When this returns it is on disk, and at no
    /// moment is there half of one.
    pub fn save(&self, state: &State) -> anyhow::Result<()> {
        self.write(state)
            .with_context(|| format!("cannot write {}", self.path().display()))
    }

    /// Removes the state file if there is one.
    pub fn remove(&self) -> anyhow::Result<()> {
        let removed = match fs::remove_file(self.path()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.and_then(|()| sync_dir(&self.dir)),
        };
        removed.with_context(|| format!("cannot remove {}", self.path().display()))
    }

    /// Waits until no other `lb-agent` works on this state. Makes the
    /// directory if there is none.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let attempt = || {
            fs::create_dir_all(&self.dir)?;
            // Not the directory itself: everybody can open and lock that.
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(self.dir.join("lock"))?;
            file.lock()?;
            Ok::<_, io::Error>(Lock(file))
        };
        attempt().with_context(|| {
            format!(
                "cannot use the state directory {}; run lb-agent as root or name another: --state DIR",
                self.dir.display()
            )
        })
    }

    fn write(&self, state: &State) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(state)?;
        text.push('\n');
        let mut file = tempfile::Builder::new()
            .prefix(".state")
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(&self.dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(self.path())?;
        sync_dir(&self.dir)?;
        Ok(())
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arp::Setting;

    fn state() -> State {
        let vip = "203.0.113.10".parse().unwrap();
        State {
            sysctls: vec![SysctlRecord {
                key: Key::new("eth0", Setting::ArpIgnore),
                found: 3,
                set: 1,
            }],
            addresses: vec![AddressRecord { vip, found: None }],
            ..State::new(Want {
                vips: vec![vip],
                interfaces: vec!["eth0".to_owned()],
                tunnel: None,
            })
        }
    }

    #[test]
    fn what_is_saved_is_loaded_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("new"));
        assert!(store.load().unwrap().is_none());
        let _lock = store.lock().unwrap();
        store.save(&state()).unwrap();
        assert_eq!(store.load().unwrap(), Some(state()));
        store.remove().unwrap();
        store.remove().unwrap();
        assert!(store.load().unwrap().is_none());
    }

    #[test]
    fn a_state_file_that_makes_no_sense_is_no_empty_state() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        for text in [
            "",
            "{}",
            &serde_json::to_string(&state())
                .unwrap()
                .replace(":1,", ":7,"),
        ] {
            fs::write(store.path(), text).unwrap();
            let error = format!("{:#}", store.load().unwrap_err());
            assert!(error.contains("state.json"), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_file_reads_as_documented() {
        let json = serde_json::to_value(state()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "version": 1,
                "vips": ["203.0.113.10"],
                "interfaces": ["eth0"],
                "sysctls": [{"interface": "eth0", "name": "arp_ignore", "found": 3, "set": 1}],
                "addresses": [{"vip": "203.0.113.10", "found": null}],
            })
        );
    }
}
