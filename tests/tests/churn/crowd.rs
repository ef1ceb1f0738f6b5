//! Clients that open flows, keep them talking, and note what befalls them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use integration::Host;
use integration::talk::Protocol;
use nix::poll::{PollFd, PollTimeout, poll};

use crate::flow::{Flow, Step};
use crate::random::Random;

/// How long the clients wait for answers before they look who is to ask next.
const TURN: u8 = 5;
/// One of so many flows lasts as long as it can; the others end and are replaced.
const LASTING: usize = 2;
/// Before another flow is opened in place of one that failed.
const PAUSE: Duration = Duration::from_millis(200);

/// What befell a flow.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: Instant,
    /// When the flow last had an answer, or else was opened.
    pub since: Instant,
    /// Who gave it.
    pub backend: Option<String>,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The first answer, by this host.
    Begun(String),
    /// Another host answers.
    Changed { from: String, to: String },
    /// An answer that belongs to no question. TCP only.
    Garbled(String),
    /// No answer came in time. UDP only.
    Lost(String),
    /// A connection was not made.
    Refused(String),
    /// A connection has ended.
    Broken(String),
}

/// A flow as it is remembered.
#[derive(Clone, Debug)]
pub struct Record {
    pub service: String,
    pub protocol: Protocol,
    pub local: Option<SocketAddr>,
    pub opened: Instant,
    pub answers: u64,
    pub events: Vec<Event>,
    /// It talks still.
    pub is_open: bool,
}

/// Where flows go.
#[derive(Clone, Debug)]
pub struct Line {
    pub service: String,
    pub protocol: Protocol,
    pub server: SocketAddr,
    pub flows: usize,
}

#[derive(Default)]
struct Shared {
    /// Those to which flows may be opened.
    lines: Vec<Line>,
    /// Services whose flows are to be closed.
    closing: Vec<String>,
    records: Vec<Record>,
    /// The longest turns.
    slept: Vec<(Instant, Instant)>,
}

/// The clients of a lab, in a thread of their own. Dropping it closes all
/// flows.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    pub fn start(host: &Host, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (host, stopped, of) = (host.clone(), Arc::clone(&stop), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            host.in_namespace(|| {
                let mut clients = Clients {
                    flows: Vec::new(),
                    random: Random::new(seed),
                    not_before: Vec::new(),
                    shared: of,
                };
                while !stopped.load(Ordering::Relaxed) {
                    clients.turn();
                }
            });
        });
        Self {
            stop,
            shared,
            thread: Some(thread),
        }
    }

    /// Opens flows to a service from now on.
    pub fn open(&self, line: Line) {
        locked(&self.shared).lines.push(line);
    }

    /// Opens no more flows to a service. Those that are open go on.
    pub fn leave(&self, service: &str) {
        let mut shared = locked(&self.shared);
        shared.lines.retain(|line| line.service != service);
    }

    /// Closes the flows of a service.
    pub fn close(&self, service: &str) {
        self.leave(service);
        locked(&self.shared).closing.push(service.to_owned());
    }

    pub fn records(&self) -> Vec<Record> {
        locked(&self.shared).records.clone()
    }

    /// When the clients slept, since this was last asked.
    pub fn slept(&self) -> Vec<(Instant, Instant)> {
        std::mem::take(&mut locked(&self.shared).slept)
    }

    /// Whether the clients have ended by themselves, which they must not.
    pub fn has_panicked(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the clients have panicked");
        }
    }
}

struct Clients {
    /// Each with the index of its record.
    flows: Vec<(usize, Flow)>,
    random: Random,
    /// When another flow to a service may be opened.
    not_before: Vec<(String, Instant)>,
    shared: Arc<Mutex<Shared>>,
}

impl Clients {
    fn turn(&mut self) {
        let begin = Instant::now();
        let shared = Arc::clone(&self.shared);
        self.close(&mut locked(&shared));
        self.fill(&mut locked(&shared));
        self.each(&mut locked(&shared), |flow| flow.ask(Instant::now()));
        let fds = self.flows.iter();
        let mut fds: Vec<_> = fds
            .map(|(_, flow)| PollFd::new(flow.fd(), flow.interest()))
            .collect();
        if poll(&mut fds, PollTimeout::from(TURN)).is_err() {
            return;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() != Some(false)).collect();
        let mut ready = ready.into_iter();
        self.each(&mut locked(&shared), |flow| match ready.next() {
            Some(true) => flow.hear(Instant::now()),
            _ => Step::None,
        });
        let end = Instant::now();
        if end - begin > Duration::from_secs(1) {
            locked(&shared).slept.push((begin, end));
        }
    }

    /// Lets each flow make a step, notes it, and drops flows that have ended.
    fn each(&mut self, shared: &mut Shared, mut step: impl FnMut(&mut Flow) -> Step) {
        let not_before = &mut self.not_before;
        self.flows.retain_mut(|(index, flow)| {
            let record = &mut shared.records[*index];
            match step(flow) {
                Step::None => return true,
                Step::Answer => record.answers += 1,
                Step::Event(event) => {
                    if matches!(event.what, What::Begun(_) | What::Changed { .. }) {
                        record.answers += 1;
                    }
                    record.events.push(event);
                }
                Step::End(event) => {
                    if event.is_some() {
                        let until = Instant::now() + PAUSE;
                        not_before.push((record.service.clone(), until));
                    }
                    record.events.extend(event);
                    record.is_open = false;
                    return false;
                }
            }
            record.local = record.local.or_else(|| flow.local());
            true
        });
    }

    fn close(&mut self, shared: &mut Shared) {
        let closing = std::mem::take(&mut shared.closing);
        if closing.is_empty() {
            return;
        }
        self.flows.retain(|(index, _)| {
            let record = &mut shared.records[*index];
            record.is_open = !closing.contains(&record.service);
            record.is_open
        });
    }

    /// Opens flows until each service has as many as it shall.
    fn fill(&mut self, shared: &mut Shared) {
        let now = Instant::now();
        self.not_before.retain(|(_, until)| *until > now);
        let Shared { lines, records, .. } = shared;
        for line in lines.iter() {
            let own = self.flows.iter();
            let open = own.filter(|(i, _)| records[*i].service == line.service);
            let mut lasting = open.clone().filter(|(_, flow)| flow.is_lasting()).count();
            let waits = self.not_before.iter().filter(|(s, _)| *s == line.service);
            let missing = line.flows.saturating_sub(open.count() + waits.count());
            // Few at a time: all at once is not what clients do.
            for _ in 0..missing.min(2) {
                let lifetime = (lasting >= line.flows / LASTING).then(|| {
                    let least = Duration::from_millis(500);
                    self.random.between(least, Duration::from_secs(6))
                });
                lasting += usize::from(lifetime.is_none());
                let Ok(flow) = Flow::open(line.protocol, line.server, lifetime, now) else {
                    continue;
                };
                self.flows.push((records.len(), flow));
                records.push(Record {
                    service: line.service.clone(),
                    protocol: line.protocol,
                    local: None,
                    opened: now,
                    answers: 0,
                    events: Vec::new(),
                    is_open: true,
                });
            }
        }
    }
}

fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Whole at any time.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
