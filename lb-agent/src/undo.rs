//! `undo`: gives the host back what `apply` found.

use crate::apply::enter;
use crate::host::Host;
use crate::plan;
use crate::report::Report;
use crate::state::Store;

/// Restores exactly what the first `apply` found, addresses first. Without a
/// state file there is nothing to do.
///
/// # Errors
/// When the state cannot be read. What fails later is in the report; the
/// state file then stays, so that `undo` can be called again.
pub async fn undo(host: &Host, store: &Store, dry_run: bool) -> anyhow::Result<Report> {
    let mut report = Report {
        command: "undo",
        dry_run,
        ..Report::default()
    };
    // Not to be made only to be locked.
    if store.load()?.is_none() {
        let path = store.path();
        let note = format!("nothing was applied: there is no {}", path.display());
        report.notes.push(note);
        return Ok(report);
    }
    let _lock = if dry_run { None } else { Some(store.lock()?) };
    // Read again: another `undo` may have had the lock.
    let Some(state) = store.load()? else {
        return Ok(report);
    };
    report.want = state.want.clone();
    let facts = host.facts(state.tunnel()).await?;
    let plan = plan::undo(&facts, &state);
    report.notes.extend(plan.notes.iter().cloned());
    if dry_run {
        report.set_changes(&plan.changes);
    } else {
        enter(
            &mut report,
            host.carry_out(store, Some(&state), &plan).await,
        );
    }
    Ok(report)
}
