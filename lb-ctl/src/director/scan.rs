//! Looks through the flow tables in the background.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::dataplane::FlowTable;
use crate::model::Config;
use crate::plan::{ScanRequest, ScanResult, State};

/// One scan at a time, and not too often: each reads every recorded flow.
pub struct Scanner {
    flows: Arc<dyn FlowTable>,
    changed: Arc<Notify>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    is_running: bool,
    finished: Option<Instant>,
    result: Option<ScanResult>,
    entries: Option<(u64, u64)>,
}

impl Scanner {
    /// A scanner that notifies `changed` when it has a result.
    pub fn new(flows: Arc<dyn FlowTable>, changed: Arc<Notify>) -> Self {
        Self {
            flows,
            changed,
            shared: Arc::default(),
        }
    }

    /// The result of the last scan, once.
    pub fn take(&self) -> Option<ScanResult> {
        lock(&self.shared).result.take()
    }

    /// How many IPv4 and IPv6 flows were recorded when that was last counted.
    pub fn entries(&self) -> Option<(u64, u64)> {
        lock(&self.shared).entries
    }

    /// Begins a scan, unless one is running or was just now.
    pub fn start(&self, state: &State, now: u32, config: &Config) {
        let pause = pause(config);
        {
            let mut shared = lock(&self.shared);
            if shared.is_running || shared.finished.is_some_and(|at| at.elapsed() < pause) {
                return;
            }
            shared.is_running = true;
        }
        let request = ScanRequest::new(state);
        let flows = Arc::clone(&self.flows);
        let changed = Arc::clone(&self.changed);
        let shared = Arc::clone(&self.shared);
        spawn_blocking(move || {
            let mut result = request.begin();
            let scanned = flows.scan(&mut |flow| result.add(&request, &flow, now));
            let mut shared = lock(&shared);
            shared.is_running = false;
            shared.finished = Some(Instant::now());
            match scanned {
                Ok(entries) => {
                    shared.result = Some(result);
                    shared.entries = Some(entries);
                    changed.notify_one();
                }
                Err(error) => warn!("cannot read the flow tables: {error:#}"),
            }
        });
    }
}

/// Often enough that a backend's entry does not outlive its last flow by much.
fn pause(config: &Config) -> Duration {
    let settings = &config.settings;
    let timeout = settings.tcp_idle_timeout.min(settings.udp_idle_timeout);
    Duration::from_secs(u64::from(timeout / 8).clamp(1, 30))
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Every field is whole at any time.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
