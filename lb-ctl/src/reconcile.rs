//! The task that owns the desired state and makes the packet path follow it.
//!
//! All changes go through one queue, so each sees the outcome of the one
//! before it. What is acknowledged is on disk.

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher13};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info};

use crate::model::status::{
    DropStatus, FlowTableStatus, InterfaceStatus, NatStatus, ServiceStatus, Status, VipStatus,
    unix_now,
};
use crate::model::{Config, Kind, Mode, Problem, Scope};
use crate::store::Store;

/// A desired state and its etag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The desired state.
    pub config: Arc<Config>,
    /// A strong hash of it, without quotes.
    pub etag: String,
}

impl Versioned {
    /// Computes the etag.
    pub fn new(config: Config) -> Self {
        let json = serde_json::to_vec(&config).expect("the desired state is plain data");
        let mut hasher = SipHasher13::new();
        hasher.write(&json);
        let etag = format!("{:032x}", hasher.finish128().as_u128());
        Self {
            config: Arc::new(config),
            etag,
        }
    }
}

/// Whether an address is reached without a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnLink {
    /// It is on the segment of this interface.
    Yes {
        /// Name of the interface.
        interface: String,
    },
    /// Only through a router, or not at all.
    No,
    /// It could not be found out.
    Unknown,
}

/// What must be known of the host to judge a change.
pub trait HostFacts {
    /// Whether an address is on a segment of this host.
    fn on_link(&self, address: IpAddr) -> OnLink;

    /// Whether an address is this host's own.
    fn local(&self, address: IpAddr) -> bool;
}

/// What an engine knows for [`Status`].
#[derive(Clone, Debug, Default)]
pub struct EngineStatus {
    /// Warnings that do not follow from the rest of the status.
    pub warnings: Vec<String>,
    /// See [`Status`].
    pub interfaces: Vec<InterfaceStatus>,
    /// See [`Status`].
    pub services: Vec<ServiceStatus>,
    /// See [`Status`].
    pub vips: Vec<VipStatus>,
    /// See [`Status`].
    pub drops: Vec<DropStatus>,
    /// See [`Status`].
    pub flow_table: FlowTableStatus,
    /// See [`Status`].
    pub nat: Option<NatStatus>,
}

/// What carries the desired state out.
pub trait Engine: HostFacts + Send + 'static {
    /// Whether the engine has room for a desired state.
    ///
    /// # Errors
    /// A problem naming the field that is too much.
    fn check(&self, config: &Config) -> Result<(), Problem>;

    /// Makes the packet path follow.
    ///
    /// # Errors
    /// When that was not possible; the desired state stays what it is, and a
    /// later call tries again.
    fn apply(&mut self, config: &Config) -> anyhow::Result<()>;

    /// What is observed, in the order of `config`.
    fn status(&mut self, config: &Config) -> EngineStatus;

    /// Is notified when something other than the desired state has changed, so
    /// that [`Self::apply`] has something to do.
    fn changed(&self) -> Arc<Notify> {
        Arc::default()
    }

    /// After which time [`Self::apply`] has something to do, if nothing
    /// changes until then.
    fn next_wakeup(&self) -> Option<Duration> {
        None
    }
}

/// A change of the desired state; it works on a copy.
type Change = Box<dyn FnOnce(&mut Config) -> Result<(), Problem> + Send>;

enum Request {
    Config(oneshot::Sender<Versioned>),
    Change {
        if_match: Option<String>,
        scope: Scope,
        change: Change,
        reply: oneshot::Sender<Result<Versioned, Problem>>,
    },
    Status(oneshot::Sender<Status>),
}

/// Access to the task, for any number of users.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
}

impl Handle {
    /// The desired state.
    ///
    /// # Errors
    /// `unavailable` if the task has ended.
    pub async fn config(&self) -> Result<Versioned, Problem> {
        self.ask(Request::Config).await
    }

    /// Changes the desired state. The change works on a copy; if it or any
    /// check fails, nothing has changed. It is acknowledged when it is on
    /// disk. `if_match` is the etag that the caller thinks is current.
    ///
    /// # Errors
    /// What `change` returns; what is wrong with the outcome, its field as
    /// seen from `scope`; `precondition-failed` if the etag is another.
    pub async fn change<T, F>(
        &self,
        if_match: Option<String>,
        scope: Scope,
        change: F,
    ) -> Result<(T, Versioned), Problem>
    where
        T: Send + 'static,
        F: FnOnce(&mut Config) -> Result<T, Problem> + Send + 'static,
    {
        let (outcome, answer) = oneshot::channel();
        let change: Change = Box::new(move |config| {
            let value = change(config)?;
            // The caller may have gone; the change is made all the same.
            let _ = outcome.send(value);
            Ok(())
        });
        let versioned = self
            .ask(|reply| Request::Change {
                if_match,
                scope,
                change,
                reply,
            })
            .await??;
        let value = answer.await.map_err(|_| gone())?;
        Ok((value, versioned))
    }

    /// What is observed.
    ///
    /// # Errors
    /// `unavailable` if the task has ended.
    pub async fn status(&self) -> Result<Status, Problem> {
        self.ask(Request::Status).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(request(reply))
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

fn gone() -> Problem {
    Problem::new(Kind::Unavailable, "lb-ctl is stopping")
}

/// Starts the task with the desired state that it is to follow first.
///
/// # Errors
/// When the engine cannot carry it out at all.
pub fn spawn(
    store: Store,
    mut engine: impl Engine,
    config: Config,
) -> anyhow::Result<(Handle, tokio::task::JoinHandle<()>)> {
    engine.apply(&config)?;
    let (requests, queue) = mpsc::channel(64);
    let reconciler = Reconciler {
        store,
        engine,
        current: Versioned::new(config),
        started_at: unix_now(),
        applied: Instant::now(),
    };
    let task = tokio::spawn(reconciler.run(queue));
    Ok((Handle { requests }, task))
}

struct Reconciler<E> {
    store: Store,
    engine: E,
    current: Versioned,
    started_at: u64,
    /// When the engine was last told to follow.
    applied: Instant,
}

impl<E: Engine> Reconciler<E> {
    /// Serves until every handle is gone.
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let changed = self.engine.changed();
        loop {
            // Counted from there, so that requests in between, however many, do
            // not put it off.
            let wakeup = self.engine.next_wakeup().map(|after| self.applied + after);
            let request = tokio::select! {
                request = queue.recv() => match request {
                    Some(request) => request,
                    None => return,
                },
                () = changed.notified() => {
                    self.apply();
                    continue;
                }
                () = sleep_until(wakeup.unwrap_or(self.applied)), if wakeup.is_some() => {
                    self.apply();
                    continue;
                }
            };
            // A reply that nobody waits for any more is no error.
            match request {
                Request::Config(reply) => {
                    let _ = reply.send(self.current.clone());
                }
                Request::Change {
                    if_match,
                    scope,
                    change,
                    reply,
                } => {
                    let _ = reply.send(self.change(if_match, &scope, change));
                }
                Request::Status(reply) => {
                    let _ = reply.send(self.status());
                }
            }
        }
    }

    /// Follows what has changed on the host.
    fn apply(&mut self) {
        self.applied = Instant::now();
        if let Err(error) = self.engine.apply(&self.current.config) {
            error!("the configuration could not be applied, trying again: {error:#}");
        }
    }

    fn change(
        &mut self,
        if_match: Option<String>,
        scope: &Scope,
        change: Change,
    ) -> Result<Versioned, Problem> {
        if let Some(etag) = if_match
            && etag != self.current.etag
        {
            let detail = format!(
                "the configuration has changed meanwhile (it is {} now): read it again",
                self.current.etag
            );
            return Err(Problem::new(Kind::PreconditionFailed, detail));
        }
        let mut config = Config::clone(&self.current.config);
        change(&mut config)?;
        config
            .validate()
            .and_then(|()| check_hash_key(&self.current.config, &config))
            .and_then(|()| check_host(&self.engine, &self.current.config, &config))
            .and_then(|()| self.engine.check(&config))
            .map_err(|problem| scope.narrow(&config, problem))?;
        config.normalise();
        if config == *self.current.config {
            return Ok(self.current.clone());
        }
        let next = Versioned::new(config);
        self.store.save(&next.config).map_err(|error| {
            error!("cannot save the configuration: {error:#}");
            let detail = format!("nothing was changed: {error:#}");
            Problem::new(Kind::Internal, detail)
        })?;
        for difference in self.current.config.differences(&next.config) {
            info!(revision = next.etag, "{difference}");
        }
        self.current = next;
        self.applied = Instant::now();
        if let Err(error) = self.engine.apply(&self.current.config) {
            error!("the configuration is saved but could not be applied: {error:#}");
            let detail = format!("the change is saved but could not be applied yet: {error:#}");
            return Err(Problem::new(Kind::Internal, detail));
        }
        Ok(self.current.clone())
    }

    fn status(&mut self) -> Status {
        let engine = self.engine.status(&self.current.config);
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi_version: lb_common::ABI_VERSION,
            revision: self.current.etag.clone(),
            started_at: self.started_at,
            warnings: engine.warnings,
            interfaces: engine.interfaces,
            services: engine.services,
            vips: engine.vips,
            drops: engine.drops,
            flow_table: engine.flow_table,
            nat: engine.nat,
        };
        let derived = status.derive_warnings();
        status.warnings.extend(derived);
        status
    }
}

/// With another hash key every flow has another slot, and nobody remembers the
/// old one.
///
/// # Errors
/// If the keys differ and there are services.
pub fn check_hash_key(old: &Config, new: &Config) -> Result<(), Problem> {
    if old.settings.hash_key == new.settings.hash_key || old.services.is_empty() {
        return Ok(());
    }
    let detail = "the hash key cannot change while there are services: all their flows would move \
                  to other backends. Remove the services first";
    Err(Problem::new(Kind::Conflict, detail).at("settings.hash_key"))
}

/// Checks against the host what `new` has and `old` has not. What is there
/// already is left alone, so that other changes stay possible while an
/// interface is down.
fn check_host(facts: &impl HostFacts, old: &Config, new: &Config) -> Result<(), Problem> {
    for (i, service) in new.services.iter().enumerate() {
        let before = old.service(&service.name);
        for (j, backend) in service.backends.iter().enumerate() {
            let known = before.is_some_and(|before| {
                before.mode == service.mode && before.backend(&backend.address).is_some()
            });
            if known {
                continue;
            }
            let ip = backend.address.ip;
            let detail = if facts.local(ip) {
                format!("{ip} is an address of this director: a backend is another host")
            } else if service.mode == Mode::Dr && facts.on_link(ip) == OnLink::No {
                format!(
                    "{ip} is not on a segment of this director, and dr mode only rewrites MAC \
                     addresses: check `ip route get {ip}`, or use mode tun"
                )
            } else {
                continue;
            };
            let field = format!("services[{i}].backends[{j}].address");
            return Err(Problem::invalid(field, detail));
        }
    }
    Ok(())
}
