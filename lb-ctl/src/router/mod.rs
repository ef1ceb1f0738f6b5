//! What forwarding needs set on the host while there are services in NAT mode,
//! and the old values afterwards.

mod needs;
mod sysctl;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::record::Record;

use needs::needs;
use sysctl::{Sysctl, Version};

/// Where the kernel shows its sysctls, those of the process's own network
/// namespace.
const ROOT: &str = "/proc/sys";

/// The file in the state directory.
const RECORD: &str = "router.json";

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

/// Keeps the host forwarding, for as long as that is wanted.
#[derive(Debug)]
pub struct Router {
    root: PathBuf,
    state: PathBuf,
    interfaces: Vec<String>,
    indices: Vec<u32>,
    /// Read at the first wish.
    record: Option<Record<Entry>>,
    /// Whether this process has set what is needed. What others change after
    /// that is told, not fought over.
    is_set: bool,
    /// Why a sysctl could not be set.
    failures: BTreeMap<Sysctl, String>,
}

impl Router {
    /// With its memory in this state directory. Nothing is read or changed
    /// yet.
    pub fn new(state: PathBuf) -> Self {
        Self::below(PathBuf::from(ROOT), state, Vec::new())
    }

    fn below(root: PathBuf, state: PathBuf, interfaces: Vec<String>) -> Self {
        Self {
            root,
            state,
            interfaces,
            indices: Vec::new(),
            record: None,
            is_set: false,
            failures: BTreeMap::new(),
        }
    }

    /// Index and name of the interfaces from the next wish on. VLAN devices come
    /// and go: one that came back with the same name has another index.
    pub fn set_interfaces(&mut self, interfaces: Vec<(u32, String)>) {
        let (indices, names) = interfaces.into_iter().unzip();
        if indices != self.indices || names != self.interfaces {
            self.indices = indices;
            self.interfaces = names;
            self.is_set = false;
        }
    }

    /// Whether forwarding is needed from now on. If not, the values from
    /// before are put back.
    ///
    /// # Errors
    /// When what was found cannot be remembered, which is when nothing is
    /// changed, or cannot be read or put back. What cannot be set is a
    /// problem, see [`Self::problems`].
    pub fn want(&mut self, needed: bool) -> Result<()> {
        let record = match &mut self.record {
            Some(record) => record,
            none => none.insert(Record::open(&self.state, RECORD)?),
        };
        if !needed {
            self.is_set = false;
            self.failures.clear();
            return restore(&self.root, record, |_| true);
        }
        if !self.is_set {
            // From a time with other interfaces.
            let interfaces = &self.interfaces;
            let is_others = |entry: &Entry| match entry.sysctl.interface(Version::V4) {
                None | Some("all") => false,
                Some(name) => !interfaces.iter().any(|interface| interface == name),
            };
            restore(&self.root, record, is_others)?;
            remember(&self.root, record, interfaces)?;
        }
        for Entry { sysctl, set, .. } in record.entries() {
            if !self.is_set || self.failures.contains_key(sysctl) {
                match make(&self.root, sysctl, *set) {
                    Ok(()) => self.failures.remove(sysctl),
                    Err(error) => self.failures.insert(sysctl.clone(), format!("{error:#}")),
                };
            }
        }
        self.is_set = true;
        Ok(())
    }

    /// What is not as it must be: could not be set, or is changed since.
    pub fn problems(&self) -> Vec<String> {
        let (true, Some(record)) = (self.is_set, &self.record) else {
            return Vec::new();
        };
        let problem = |entry: &Entry| {
            let Entry { sysctl, set, .. } = entry;
            match sysctl.read(&self.root) {
                Ok(Some(value)) if value != *set => {
                    let why = self.failures.get(sysctl).map_or("it was changed", |f| f);
                    Some(format!("{sysctl} is {value} and must be {set}: {why}"))
                }
                Ok(_) => None,
                Err(error) => Some(format!("{sysctl} cannot be read: {error}")),
            }
        };
        let mut problems: Vec<String> = record.entries().iter().filter_map(problem).collect();
        match needs(&self.root, &self.interfaces) {
            Ok(more) => {
                problems.extend(more.iter().filter(|entry| !has(record, &entry.sysctl)).map(
                    |Entry { sysctl, found, set }| {
                        format!("{sysctl} is {found} and must be {set}: it was changed")
                    },
                ))
            }
            Err(error) => problems.push(error.to_string()),
        }
        problems
    }
}

/// Puts the old values back, also those of a process that was killed.
///
/// # Errors
/// When one cannot be put back.
pub fn release(state: &Path) -> Result<()> {
    restore(Path::new(ROOT), &mut Record::open(state, RECORD)?, |_| true)
}

/// Remembers what will be set.
fn remember(root: &Path, record: &mut Record<Entry>, interfaces: &[String]) -> Result<()> {
    let mut entries = record.entries().to_vec();
    for entry in &mut entries {
        // A value that is not ours is that of somebody else, or of a reboot.
        if let Ok(Some(value)) = entry.sysctl.read(root)
            && value != entry.set
        {
            entry.found = value;
        }
    }
    let more = needs(root, interfaces)?.into_iter();
    entries.extend(more.filter(|entry| !has(record, &entry.sysctl)));
    record.replace(entries)
}

fn has(record: &Record<Entry>, sysctl: &Sysctl) -> bool {
    record.entries().iter().any(|entry| entry.sysctl == *sysctl)
}

fn make(root: &Path, sysctl: &Sysctl, value: i32) -> Result<()> {
    if sysctl.read(root)?.is_some_and(|found| found != value) {
        sysctl.write(root, value)?;
        info!("{sysctl} set to {value}");
    }
    Ok(())
}

/// Puts back what is chosen, and forgets it.
fn restore(root: &Path, record: &mut Record<Entry>, which: impl Fn(&Entry) -> bool) -> Result<()> {
    let (chosen, mut kept): (Vec<Entry>, Vec<Entry>) =
        record.entries().iter().cloned().partition(which);
    // All are looked at first: writing one may change others.
    let mut goals = Vec::new();
    let mut failures = Vec::new();
    for entry in chosen {
        match entry.sysctl.read(root) {
            Ok(None) => {}
            Ok(Some(value)) if value == entry.set || value == entry.found => {
                goals.push((entry.found, entry));
            }
            Ok(Some(value)) => {
                warn!(
                    "{} is {value}: somebody changed it from {}, so it is not put back to {}",
                    entry.sysctl, entry.set, entry.found
                );
                goals.push((value, entry));
            }
            Err(error) => {
                failures.push(format!("reading {}: {error}", entry.sysctl));
                kept.push(entry);
            }
        }
    }
    // An interface that becomes a router's, as one may have been before, makes
    // all those forget announced routes that do not take them in any case.
    goals.sort_by_key(|(_, entry)| entry.sysctl.is_about_announcements());
    for (goal, entry) in goals {
        if let Err(error) = make(root, &entry.sysctl, goal) {
            failures.push(format!("putting {} back to {goal}: {error}", entry.sysctl));
            kept.push(entry);
        }
    }
    record
        .replace(kept)
        .context("the sysctls are put back, but not forgotten")?;
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}
