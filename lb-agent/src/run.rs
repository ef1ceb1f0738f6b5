//! `run`: applies, then puts back what drifts.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{FutureExt, StreamExt};
use rtnetlink::MulticastGroup;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::apply::{self, Absent, Repair};
use crate::host::Host;
use crate::report::Report;
use crate::state::{Store, Want};

/// How often the sysctls are looked at. The kernel tells nobody when
/// `arp_ignore` or `arp_announce` change.
const POLL: Duration = Duration::from_secs(1);

/// Applies, calls `ready` with the report, and watches until SIGTERM, SIGINT,
/// or until `undo` has been called. What is put back is what the state file
/// says, so a later `apply` with other VIPs is followed. Returns the report of
/// the `apply` only if that failed half-way.
///
/// # Errors
/// When `apply` fails, or the kernel closes the connection.
pub async fn run(
    store: &Store,
    want: &Want,
    ready: impl FnOnce(&Report),
) -> anyhow::Result<Option<Report>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Subscribed before the first look, so that nothing is missed after it.
    let (connection, handle, mut events) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ])
    .context("cannot watch interfaces and addresses by netlink")?;
    tokio::spawn(connection);
    let host = Host::new(handle);

    let mut report = apply::apply(&host, store, want, false, Absent::Await).await?;
    report.command = "run";
    if report.error.is_some() {
        return Ok(Some(report));
    }
    ready(&report);
    tracing::info!("watching {}", report.want);

    let mut poll = tokio::time::interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complaints = Complaints::default();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = poll.tick() => {}
            event = events.next() => {
                if event.is_none() {
                    bail!("the kernel closed the netlink connection");
                }
                // A burst is one reason to look, not many.
                while let Some(Some(_)) = events.next().now_or_never() {}
            }
        }
        match apply::repair(&host, store).await {
            Ok(Some(repair)) => complaints.tell(&repair),
            Ok(None) => {
                tracing::info!("undone by another lb-agent: nothing left to watch");
                return Ok(None);
            }
            Err(e) => complaints.replace([format!("cannot look after the host: {e:#}")]),
        }
    }
    tracing::info!("stopping; VIPs and sysctls stay as they are, `lb-agent undo` takes them back");
    Ok(None)
}

/// What is wrong and cannot be put right: told once, not every second.
#[derive(Default)]
struct Complaints(BTreeSet<String>);

impl Complaints {
    fn tell(&mut self, repair: &Repair) {
        for change in &repair.done.changes {
            tracing::warn!("put back {change}");
        }
        let obstacles = repair.obstacles.iter();
        let obstacles = obstacles.map(|f| format!("{}; mend it: {}", f.problem, f.fix));
        let errors = repair.done.error.iter().map(|e| format!("{e:#}"));
        self.replace(obstacles.chain(errors).chain(repair.notes.iter().cloned()));
    }

    fn replace(&mut self, now: impl IntoIterator<Item = String>) {
        let now: BTreeSet<String> = now.into_iter().collect();
        for new in now.difference(&self.0) {
            tracing::error!("{new}");
        }
        for gone in self.0.difference(&now) {
            tracing::info!("no longer so: {gone}");
        }
        self.0 = now;
    }
}
