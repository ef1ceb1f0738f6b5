//! `lb-ctl up` and `lb-ctl down`: what runs, in which order it starts and stops.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::api::{self, Listener};
use crate::cli::file;
use crate::cli::options::{DownOptions, UpOptions, VipAddress, XdpChoice};
use crate::dataplane::{self, LoadOptions, XdpPolicy};
use crate::director::Director;
use crate::notify;
use crate::reconcile;
use crate::store::{self, Store};
use crate::vip::{self, Management};
use crate::{offload, router};

/// How long `down` waits for `up` to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long a request that has been cut off may keep us from ending: with the
/// server's own patience less than [`PATIENCE`].
const LAST_REQUEST: Duration = Duration::from_secs(5);

/// Runs a director until it is told to stop (SIGTERM, SIGINT).
///
/// # Errors
/// When it cannot start, or a part of it fails.
pub async fn up(options: UpOptions) -> Result<()> {
    allow_many_files();
    let store = Store::open(&options.state)?;
    let saved = store.load()?;
    let config = match &options.config {
        None => saved.unwrap_or_default(),
        Some(path) => {
            let mut config = file::read(path)?;
            config.normalise();
            if let Some(saved) = &saved {
                reconcile::check_hash_key(saved, &config)
                    .map_err(|problem| anyhow::anyhow!("{}: {}", path.display(), problem.detail))?;
            }
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
    let dataplane = dataplane::load(&load_options(&options)?)?;
    let management = match options.vip_address {
        VipAddress::Managed => Management::Managed,
        VipAddress::Operator => Management::Operator,
    };
    let director = Director::start(dataplane, management, options.state.clone()).await?;
    let (handle, mut reconciler) = reconcile::spawn(store, director, config)?;
    let (stop, stopping) = watch::channel(false);
    let mut server = tokio::spawn(api::serve(listeners, api::router(handle), stopping));
    let terminated = terminated()?;
    notify::ready();
    // Half a director is none: better to end, and be started again.
    let signal = tokio::select! {
        signal = terminated => signal,
        ended = &mut server => {
            ended.context("the API has failed")??;
            bail!("the API has ended by itself");
        }
        ended = &mut reconciler => {
            ended.context("the reconciler has failed")?;
            bail!("the reconciler has ended by itself");
        }
    };
    notify::stopping();
    info!(signal, "stopping; packets go on being forwarded");
    stop.send_replace(true);
    server.await??;
    // A client that stopped in the middle of its request may hold on to it.
    match timeout(LAST_REQUEST, reconciler).await {
        Ok(ended) => ended?,
        Err(_) => warn!("a request did not end within {LAST_REQUEST:?}: ending without it"),
    }
    Ok(())
}

/// Each probe under way is a file, and there may be thousands: as many as the
/// system lets us have, in place of the 1,024 that old programs need.
fn allow_many_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        warn!("cannot raise the limit of open files: {error}");
    }
}

fn load_options(options: &UpOptions) -> Result<LoadOptions> {
    let index_of = |name: &String| {
        let index = if_nametoindex(name.as_str())
            .map_err(|_| anyhow::anyhow!("there is no interface {name} here: see `ip link`"))?;
        Ok((name.clone(), index))
    };
    Ok(LoadOptions {
        bpffs: options.bpffs.clone(),
        interfaces: options
            .interfaces
            .iter()
            .map(index_of)
            .collect::<Result<_>>()?,
        policy: match options.xdp_mode {
            XdpChoice::Auto => XdpPolicy::Auto,
            XdpChoice::Native => XdpPolicy::Native,
            XdpChoice::Generic => XdpPolicy::Generic,
        },
        max_backends: options.max_backends,
        flow_table_size: options.flow_table_size,
        nat_table_size: options.nat_table_size,
        log_drops: options.log_drops,
    })
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
    // First, while packets are still forwarded: the host must not have the VIPs
    // when they are not, or it would answer the flows of others with resets.
    let released = vip::release(&options.state).await;
    if dataplane::unload(&options.bpffs)? {
        info!("program, links and maps removed: packets for VIPs are forwarded no more");
    } else {
        info!(bpffs = %options.bpffs.display(), "nothing is pinned");
    }
    // After the program, which needs them.
    let restored = router::release(&options.state);
    let tags = offload::release(&options.state);
    released.and(restored).and(tags)
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
