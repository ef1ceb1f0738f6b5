//! VLAN tags must be in the frame when the program sees it. Many network cards
//! take them off before, and hand them over beside the frame, where XDP cannot
//! see them. On interfaces with VLANs that is turned off, and on again
//! afterwards.

mod features;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::libc;
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::record::Record;
use features::Features;

/// Of 802.1Q and of 802.1ad tags, as `ethtool -k` names them.
const STRIPPING: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// The file in the state directory.
const RECORD: &str = "offload.json";

/// A feature of an interface that was on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    interface: String,
    feature: String,
}

/// Keeps the tags in the frames.
#[derive(Debug)]
pub struct Offload {
    state: PathBuf,
    /// Read at the first wish.
    record: Option<Record<Entry>>,
    wanted: BTreeSet<String>,
    /// Why it could not be done, by interface.
    failures: BTreeMap<String, String>,
    /// Why the rest could not.
    trouble: Option<String>,
}

impl Offload {
    /// With its memory in this state directory. Nothing is read or changed
    /// yet.
    pub const fn new(state: PathBuf) -> Self {
        Self {
            state,
            record: None,
            wanted: BTreeSet::new(),
            failures: BTreeMap::new(),
            trouble: None,
        }
    }

    /// The interfaces that have VLANs from now on. Of the others, what was
    /// turned off is turned on again. What cannot be done is a problem, see
    /// [`Self::problems`]: packets without tags do not depend on it.
    pub fn want(&mut self, interfaces: BTreeSet<String>) {
        if self.record.is_some()
            && self.wanted == interfaces
            && self.failures.is_empty()
            && self.trouble.is_none()
        {
            return;
        }
        self.trouble = self
            .try_want(&interfaces)
            .err()
            .map(|error| format!("{error:#}"));
        self.wanted = interfaces;
    }

    fn try_want(&mut self, interfaces: &BTreeSet<String>) -> Result<()> {
        let record = match &mut self.record {
            Some(record) => record,
            none => none.insert(Record::open(&self.state, RECORD)?),
        };
        let restored = restore(record, |entry| !interfaces.contains(&entry.interface));
        self.failures.clear();
        for interface in interfaces {
            if let Err(error) = keep_tags(record, interface) {
                self.failures
                    .insert(interface.clone(), format!("{error:#}"));
            }
        }
        restored
    }

    /// Which interfaces take tags off all the same, and why, and what could not
    /// be put back.
    pub fn problems(&self) -> Vec<String> {
        let problem = |interface: &String| {
            let stripping = stripped(interface)?;
            let why = self.failures.get(interface).map_or("it was changed", |f| f);
            Some(format!(
                "{interface} takes VLAN tags off before the packet path can see them, so packets of \
                 its VLANs are not balanced ({why}): try `ethtool -K {interface} {stripping} off`"
            ))
        };
        let wanted = self.wanted.iter().filter_map(problem);
        wanted.chain(self.trouble.clone()).collect()
    }
}

/// Puts back what a process turned off, also one that was killed.
///
/// # Errors
/// When that is not possible.
pub fn release(state: &Path) -> Result<()> {
    restore(&mut Record::open(state, RECORD)?, |_| true)
}

/// A feature that takes off tags, if one is on.
fn stripped(interface: &str) -> Option<&'static str> {
    let features = Features::of(interface).ok()?;
    STRIPPING.into_iter().find(|name| features.is_on(name))
}

fn keep_tags(record: &mut Record<Entry>, interface: &str) -> Result<()> {
    let mut features = Features::of(interface).context("reading its features")?;
    for feature in STRIPPING {
        if !features.is_on(feature) {
            continue;
        }
        if !features.can_turn_off(feature) {
            bail!("{feature} cannot be turned off");
        }
        let entry = Entry {
            interface: interface.to_owned(),
            feature: feature.to_owned(),
        };
        if !record.entries().contains(&entry) {
            record.replace([record.entries(), &[entry]].concat())?;
        }
        features
            .set(feature, false)
            .with_context(|| format!("turning off {feature}"))?;
        info!(interface, feature, "turned off, so that XDP sees VLAN tags");
    }
    Ok(())
}

/// Puts back what is chosen, and forgets it.
fn restore(record: &mut Record<Entry>, which: impl Fn(&Entry) -> bool) -> Result<()> {
    let (chosen, mut kept): (Vec<Entry>, Vec<Entry>) =
        record.entries().iter().cloned().partition(which);
    let mut failures = Vec::new();
    for entry in chosen {
        let Entry { interface, feature } = &entry;
        match put_back(interface, feature) {
            Ok(()) => info!(interface, feature, "turned on again"),
            // With the interface what was changed of it has gone.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => {
                failures.push(format!("turning on {feature} of {interface}: {error}"));
                kept.push(entry);
            }
        }
    }
    record
        .replace(kept)
        .context("the features are put back, but not forgotten")?;
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}

fn put_back(interface: &str, feature: &str) -> io::Result<()> {
    let mut features = Features::of(interface)?;
    if features.is_on(feature) {
        return Ok(());
    }
    features.set(feature, true)
}
