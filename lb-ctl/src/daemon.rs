//! `lb-ctl up` and `lb-ctl down`: what runs, in which order it starts and stops.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::api::{self, Listener};
use crate::cli::file;
use crate::cli::options::{DownOptions, UpOptions};
use crate::memory::MemoryEngine;
use crate::reconcile;
use crate::store::{self, Store};

/// How long `down` waits for `up` to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// Runs a director until it is told to stop (SIGTERM, SIGINT).
///
/// # Errors
/// When it cannot start, or a part of it fails.
pub async fn up(options: UpOptions) -> Result<()> {
    let store = Store::open(&options.state)?;
    let saved = store.load()?;
    let config = match &options.config {
        None => saved.unwrap_or_default(),
        Some(path) => {
            let mut config = file::read(path)?;
            config.normalise();
            if saved.as_ref() != Some(&config) {
                info!(file = %path.display(), "desired state taken from the file");
                store.save(&config)?;
            }
            config
        }
    };
    let mut listeners = Vec::new();
    for address in &options.listen {
        listeners.push(Listener::bind(address).await?);
    }
    let (handle, reconciler) = reconcile::spawn(store, MemoryEngine::default(), config)?;
    let (stop, stopping) = watch::channel(false);
    let server = tokio::spawn(api::serve(listeners, api::router(handle), stopping));
    let signal = terminated()?.await;
    info!(signal, "stopping; packets go on being forwarded");
    stop.send_replace(true);
    server.await??;
    reconciler.await?;
    Ok(())
}

/// Stops the `lb-ctl up` of the same state directory and removes what it left
/// in the kernel.
///
/// # Errors
/// When it does not stop.
pub async fn down(options: DownOptions) -> Result<()> {
    match stop_running(&options.state).await? {
        Some(pid) => info!(pid, "lb-ctl up has ended"),
        None => info!("no lb-ctl up is running"),
    }
    Ok(())
}

/// Ends the `lb-ctl up` that uses a state directory; returns its process id.
async fn stop_running(state: &Path) -> Result<Option<i32>> {
    let Some(pid) = store::running(state)? else {
        return Ok(None);
    };
    kill(Pid::from_raw(pid), Signal::SIGTERM)
        .with_context(|| format!("cannot stop lb-ctl up (process {pid})"))?;
    let deadline = Instant::now() + PATIENCE;
    while store::running(state)? == Some(pid) {
        if Instant::now() > deadline {
            bail!(
                "lb-ctl up (process {pid}) has not ended within {PATIENCE:?}: \
                 look at its log, or `kill -9 {pid}` and try again"
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(Some(pid))
}

/// Resolves at the first signal that asks the process to end.
fn terminated() -> Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return "SIGTERM",
                _ = interrupt.recv() => return "SIGINT",
                _ = hangup.recv() => {
                    warn!("SIGHUP does nothing: use `lb-ctl apply -f FILE` to change the configuration");
                }
            }
        }
    })
}
