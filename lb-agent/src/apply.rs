//! `apply`: protects the host, then gives it the VIPs.

use anyhow::{anyhow, bail};

use crate::check::{Finding, obstacles};
use crate::facts::Facts;
use crate::host::{Done, Host};
use crate::interface;
use crate::plan;
use crate::report::Report;
use crate::state::{State, Store, Want};
use crate::tunnel::device::needed;
use crate::tunnel::{Decapsulate, Tunnel};

/// What to do about a wanted interface that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Refuse: it is probably misspelt.
    Refuse,
    /// Go on: it may appear later.
    Await,
}

/// Makes the host hold the VIPs and keep silent about them.
///
/// # Errors
/// Before anything is changed: when a VIP is where ARP or NDP is answered for
/// it, when the interface cannot be told, when the state cannot be read. What
/// fails later is in the report, next to what was done until then.
pub async fn apply(
    host: &Host,
    store: &Store,
    want: &Want,
    dry_run: bool,
    absent: Absent,
) -> anyhow::Result<Report> {
    if want.vips.is_empty() {
        bail!("no VIP to hold; name it: --vip 203.0.113.10, or in a file: --config FILE");
    }
    let _lock = if dry_run { None } else { Some(store.lock()?) };
    let state = store.load()?;
    let old = state.as_ref().and_then(State::tunnel);
    same_bpffs(old, want.tunnel.as_ref())?;
    let facts = host.facts(want.tunnel.as_ref().or(old)).await?;
    let mut report = Report {
        command: "apply",
        dry_run,
        ..Report::default()
    };
    report.want = settle(&facts, want, &mut report.notes)?;
    for name in &report.want.interfaces {
        if absent == Absent::Refuse && facts.link(name).is_none() {
            bail!(interface::unknown(&facts, name));
        }
    }
    refuse(&obstacles(&facts, &report.want))?;
    let plan = plan::apply(&facts, state.as_ref(), &report.want);
    report.notes.extend(plan.notes.iter().cloned());
    if dry_run {
        report.set_changes(&plan.changes);
    } else {
        enter(
            &mut report,
            host.carry_out(store, state.as_ref(), &plan).await,
        );
    }
    Ok(report)
}

/// Chooses the interfaces if none were named, and says which and why.
pub fn settle(facts: &Facts, want: &Want, notes: &mut Vec<String>) -> anyhow::Result<Want> {
    let mut want = want.clone();
    if want.interfaces.is_empty() {
        want.interfaces = interface::for_want(facts, &want).map_err(|e| anyhow!(e))?;
        let what = match want.tunnel {
            Some(_) => "directors",
            None => "segment",
        };
        for name in &want.interfaces {
            notes.push(format!(
                "{name} is taken to face the {what}; if it does not: --interface NAME"
            ));
        }
    }
    if let Some(note) = decide(facts, &mut want) {
        notes.push(note);
    }
    Ok(want)
}

/// Decides who decapsulates if that is left open, and says so.
pub fn decide(facts: &Facts, want: &mut Want) -> Option<String> {
    let tunnel = want.tunnel.as_ref()?;
    if tunnel.decapsulate != Decapsulate::Auto {
        return None;
    }
    let missing = needed(want, tunnel)
        .into_iter()
        .find(|device| !facts.devices.contains(device));
    let (decided, note) = match missing {
        None => (
            Decapsulate::Kernel,
            "the kernel's tunnel devices decapsulate".to_owned(),
        ),
        Some(device) => (
            Decapsulate::Xdp,
            format!(
                "lb-agent's own program decapsulates: this kernel has no module {}",
                device.module()
            ),
        ),
    };
    want.tunnel.as_mut()?.decapsulate = decided;
    Some(note)
}

fn same_bpffs(old: Option<&Tunnel>, new: Option<&Tunnel>) -> anyhow::Result<()> {
    match (old, new) {
        (Some(old), Some(new)) if old.bpffs != new.bpffs => bail!(
            "programs are pinned in {}: give the same --bpffs, or call `lb-agent undo` first",
            old.bpffs.display()
        ),
        _ => Ok(()),
    }
}

/// Enters into a report how far a plan got.
pub fn enter(report: &mut Report, done: Done) {
    report.set_changes(&done.changes);
    report.notes.extend(done.notes);
    report.error = done.error.map(|e| format!("{e:#}"));
}

/// The state that a repair starts from and the plan it needs; used by `run`.
pub async fn repair(host: &Host, store: &Store) -> anyhow::Result<Option<Repair>> {
    let _lock = store.lock()?;
    let Some(state) = store.load()? else {
        return Ok(None);
    };
    let facts = host.facts(state.tunnel()).await?;
    let plan = plan::apply(&facts, Some(&state), &state.want);
    let obstacles = obstacles(&facts, &state.want);
    let done = if plan.changes.is_empty() && plan.before == state {
        Done::default()
    } else {
        host.carry_out(store, Some(&state), &plan).await
    };
    Ok(Some(Repair {
        state,
        done,
        obstacles,
        notes: plan.notes,
    }))
}

/// What a repair did and what it could not.
#[derive(Debug)]
pub struct Repair {
    /// What was recorded when it began.
    pub state: State,
    /// What was put back.
    pub done: Done,
    /// What is not `lb-agent`'s to change.
    pub obstacles: Vec<Finding>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

fn refuse(obstacles: &[Finding]) -> anyhow::Result<()> {
    if obstacles.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = obstacles
        .iter()
        .map(|finding| format!("{}; mend it: {}", finding.problem, finding.fix))
        .collect();
    bail!("nothing was changed: {}", lines.join("; "))
}
