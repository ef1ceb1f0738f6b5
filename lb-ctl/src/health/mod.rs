//! Health checks: who is probed, when, and what follows from it.
//!
//! One task for each backend probes at a steady rate. A probe never outlasts
//! the interval, so a backend that dies is reported within interval × fall +
//! timeout.

pub mod prober;
pub mod state;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{debug, info, warn};

use crate::model::status::{HealthStatus, unix_now};
use crate::model::{BackendAddress, Config, HealthCheck, Service, ServiceName};
use prober::Failure;
use state::{Initial, ProbeResult, State, Transition};

/// Backends that are new, or have a new check, are probed at once, this far
/// apart.
const SPREAD: Duration = Duration::from_millis(1);

/// A backend of a service.
pub type Key = (ServiceName, BackendAddress);

/// A backend that is to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of its service.
    pub service: ServiceName,
    /// Its address.
    pub backend: BackendAddress,
    /// Where probes go.
    pub address: SocketAddr,
    /// What they do.
    pub check: HealthCheck,
}

impl Target {
    /// All backends of a desired state that are to be probed.
    pub fn all(config: &Config) -> Vec<Self> {
        config.services.iter().flat_map(Self::of).collect()
    }

    fn of(service: &Service) -> Vec<Self> {
        let Some(check) = &service.health_check else {
            return Vec::new();
        };
        let target = |backend: BackendAddress| Self {
            service: service.name.clone(),
            backend,
            address: SocketAddr::new(
                backend.ip,
                check.port.or(backend.port).unwrap_or(service.port),
            ),
            check: check.clone(),
        };
        let backends = service.backends.iter();
        backends.map(|backend| target(backend.address)).collect()
    }

    fn key(&self) -> Key {
        (self.service.clone(), self.backend)
    }
}

/// A backend counts as up or down from now on. It may have left the desired
/// state while this was under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthEvent {
    /// Name of its service.
    pub service: ServiceName,
    /// Its address.
    pub backend: BackendAddress,
    /// What it counts as.
    pub up: bool,
    /// Why, if it is down.
    pub reason: Option<String>,
}

/// Probes backends for as long as it lives.
#[derive(Debug)]
pub struct Manager {
    events: mpsc::UnboundedSender<HealthEvent>,
    watches: HashMap<Key, Watch>,
}

/// The watch over one backend. Dropping it ends the probing.
#[derive(Debug)]
struct Watch {
    target: Target,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Manager {
    /// Probes nobody yet. What it finds goes to `events`.
    pub fn new(events: mpsc::UnboundedSender<HealthEvent>) -> Self {
        Self {
            events,
            watches: HashMap::new(),
        }
    }

    /// Probes these from now on and no others. Who was probed before keeps
    /// its health, also if the check has changed; for the others `initial`
    /// says what they count as. Needs a tokio runtime.
    pub fn set(&mut self, targets: Vec<Target>, initial: impl Fn(&Target) -> Initial) {
        let mut before = std::mem::take(&mut self.watches);
        let mut started = 0;
        for target in targets {
            let key = target.key();
            let watch = match before.remove(&key) {
                Some(watch) if watch.target == target => watch,
                Some(watch) => {
                    let state = Arc::clone(&watch.state);
                    lock(&state).set_thresholds(target.check.rise, target.check.fall);
                    drop(watch);
                    let delay = spread(started, target.check.interval());
                    started += 1;
                    self.watch(target, state, delay)
                }
                None => {
                    let initial = initial(&target);
                    let delay = first_delay(&key, initial, target.check.interval(), started);
                    started += 1;
                    let (rise, fall) = (target.check.rise, target.check.fall);
                    let state = State::new(initial, rise, fall, unix_now());
                    self.watch(target, Arc::new(Mutex::new(state)), delay)
                }
            };
            self.watches.insert(key, watch);
        }
    }

    /// Health of a backend; `None` if it is not probed.
    pub fn status(&self, key: &Key) -> Option<HealthStatus> {
        let watch = self.watches.get(key)?;
        Some(lock(&watch.state).status())
    }

    fn watch(&self, target: Target, state: Arc<Mutex<State>>, delay: Duration) -> Watch {
        let events = self.events.clone();
        let task = tokio::spawn(probe_for_ever(
            target.clone(),
            Arc::clone(&state),
            delay,
            events,
        ));
        Watch {
            target,
            state,
            task,
        }
    }
}

/// When the first probe is due. Backends in use are spread over one interval;
/// one that waits for its first success is probed almost at once.
fn first_delay(key: &Key, initial: Initial, interval: Duration, started: u32) -> Duration {
    if initial != Initial::Up {
        return spread(started, interval);
    }
    let random = RandomState::new().hash_one(key);
    interval.mul_f64(random as f64 / u64::MAX as f64)
}

/// Probes that are started together keep their distance, also when there are
/// more than fit into one interval.
fn spread(started: u32, interval: Duration) -> Duration {
    let nanos = (SPREAD * started).as_nanos() % interval.as_nanos().max(1);
    Duration::from_nanos(nanos as u64)
}

async fn probe_for_ever(
    target: Target,
    state: Arc<Mutex<State>>,
    delay: Duration,
    events: mpsc::UnboundedSender<HealthEvent>,
) {
    let mut ticks = interval_at(Instant::now() + delay, target.check.interval());
    // After a stall of the whole host, no burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let result = match prober::probe(target.address, &target.check).await {
            Ok(()) => Ok(()),
            Err(Failure::Theirs(reason)) => Err(reason),
            Err(Failure::Ours(reason)) => {
                warn!(service = %target.service, backend = %target.backend, reason, "cannot probe");
                continue;
            }
        };
        if let Some(event) = judge(&target, &state, result)
            && events.send(event).is_err()
        {
            return;
        }
    }
}

fn judge(target: &Target, state: &Mutex<State>, result: ProbeResult) -> Option<HealthEvent> {
    let Target {
        service, backend, ..
    } = target;
    let reason = result.as_ref().err().cloned();
    if let Some(reason) = &reason {
        debug!(%service, %backend, reason, "probe failed");
    }
    let transition = lock(state).probed(result, unix_now())?;
    let up = transition == Transition::Up;
    match &reason {
        Some(reason) => warn!(%service, %backend, reason, "backend is down"),
        None => info!(%service, %backend, "backend is up"),
    }
    Some(HealthEvent {
        service: service.clone(),
        backend: *backend,
        up,
        reason,
    })
}

/// A panic elsewhere leaves the state whole: nothing panics while changing it.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::model::{CheckType, text};

    const LONG: Duration = Duration::from_secs(20);

    fn target(name: &str, address: SocketAddr, interval_ms: u32) -> Target {
        Target {
            service: name.parse().unwrap(),
            backend: address.ip().into(),
            address,
            check: HealthCheck {
                interval_ms,
                ..HealthCheck::new(CheckType::Tcp)
            },
        }
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn next(events: &mut mpsc::UnboundedReceiver<HealthEvent>) -> HealthEvent {
        timeout(LONG, events.recv()).await.unwrap().unwrap()
    }

    #[test]
    fn who_is_probed_follows_from_the_desired_state() {
        let config: Config = text::from_json_value(serde_json::json!({"services": [
            {"name": "plain", "vip": "203.0.113.9", "port": 80, "protocol": "tcp", "mode": "dr",
             "backends": [{"address": "203.0.113.21"}]},
            {"name": "web", "vip": "2001:db8::10", "port": 80, "protocol": "tcp", "mode": "dr",
             "health_check": {"type": "tcp"}, "backends": [{"address": "2001:db8::21"}]},
            {"name": "dns", "vip": "203.0.113.10", "port": 0, "protocol": "udp", "mode": "dr",
             "health_check": {"type": "tcp", "port": 53},
             "backends": [{"address": "203.0.113.21"}, {"address": "203.0.113.22", "weight": 0}]}]}))
        .unwrap();
        let addresses: Vec<_> = Target::all(&config)
            .iter()
            .map(|target| target.address.to_string())
            .collect();
        assert_eq!(
            addresses,
            ["[2001:db8::21]:80", "203.0.113.21:53", "203.0.113.22:53"]
        );
    }

    #[tokio::test]
    async fn a_backend_that_dies_is_reported_in_time_and_comes_back() {
        let (listener, address) = listener().await;
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut manager = Manager::new(sender);
        let target = target("web", address, 50);
        let key = target.key();
        manager.set(vec![target.clone()], |_| Initial::Unproven);
        let event = next(&mut events).await;
        assert!(event.up && event.backend == target.backend);

        drop(listener);
        let died = Instant::now();
        let event = next(&mut events).await;
        assert!(!event.up);
        assert!(event.reason.unwrap().contains("refused"));
        let bound = target.check.interval() * target.check.fall + target.check.timeout();
        // What a busy machine may add.
        let grace = Duration::from_secs(2);
        assert!(died.elapsed() <= bound + grace, "{:?}", died.elapsed());
        assert!(!manager.status(&key).unwrap().up);

        let _listener = TcpListener::bind(address).await.unwrap();
        assert!(next(&mut events).await.up);
        assert_eq!(manager.status(&key).unwrap().last_error, None);
    }

    #[tokio::test]
    async fn a_changed_set_keeps_the_health_of_those_who_stay() {
        let (listener, address) = listener().await;
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut manager = Manager::new(sender);
        let stays = target("stays", address, 50);
        manager.set(vec![stays.clone()], |_| Initial::Unproven);
        assert!(next(&mut events).await.up);
        drop(listener);
        assert!(!next(&mut events).await.up);

        // Slower now, and there is another one.
        let mut slower = stays.clone();
        slower.check.interval_ms = 3_600_000;
        let other = target("other", address, 3_600_000);
        let targets = vec![slower.clone(), other.clone()];
        manager.set(targets, |target| {
            assert_eq!(target.service, other.service);
            Initial::Up
        });
        assert!(!manager.status(&slower.key()).unwrap().up);
        assert!(manager.status(&other.key()).unwrap().up);

        manager.set(vec![other.clone()], |_| Initial::Unproven);
        assert_eq!(manager.status(&slower.key()), None);
        assert!(manager.status(&other.key()).unwrap().up);
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn first_probes_are_spread() {
        let interval = Duration::from_secs(2);
        let delay = |initial, started| {
            let key = ("web".parse().unwrap(), "203.0.113.21".parse().unwrap());
            first_delay(&key, initial, interval, started)
        };
        let delays: Vec<_> = (0..200).map(|i| delay(Initial::Up, i)).collect();
        assert!(delays.iter().all(|delay| *delay <= interval));
        let early = delays.iter().filter(|delay| **delay < interval / 2).count();
        assert!(
            (50..150).contains(&early),
            "{early} of 200 in the first half"
        );
        assert_eq!(delay(Initial::Unproven, 0), Duration::ZERO);
        // Beyond one interval they begin again, and do not all meet at its end.
        let later = [2_000, 2_500, 1_000_000].map(|i| delay(Initial::Unproven, i));
        assert!(later.iter().all(|delay| *delay < interval), "{later:?}");
        assert_ne!(later[0], later[1]);
    }
}
