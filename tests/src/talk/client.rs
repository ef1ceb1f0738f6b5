use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{ANSWER, Protocol, parse_answer};
use crate::{Host, try_eventually};

/// How long a connection attempt may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a round may take.
const ROUND: Duration = Duration::from_secs(30);

/// Milliseconds that a turn waits for answers before it looks who is to ask next.
const TURN: u8 = 5;

/// How a flow talks.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From one question to the next.
    pub every: Duration,
    /// After this time without an answer a UDP flow counts it as lost and
    /// asks again, and a TCP flow is broken.
    pub patience: Duration,
}

impl Pace {
    /// Four questions a second; TCP has time for some retransmissions.
    pub const CALM: Self = Self {
        every: Duration::from_millis(250),
        patience: Duration::from_secs(20),
    };
}

/// What became of a flow so far.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    /// Who has answered; more than one if it has changed.
    pub backends: Vec<String>,
    /// Answers that came.
    pub answers: u64,
    /// Questions to which none came. UDP only.
    pub lost: u64,
    /// What ended it. TCP only.
    pub broken: Option<String>,
}

impl Flow {
    /// Who answered last.
    pub fn backend(&self) -> &str {
        self.backends.last().map_or("", String::as_str)
    }
}

/// A number of flows from one host to one server, talking in the background.
/// Dropping it closes them.
#[derive(Debug)]
pub struct Talkers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    flows: Arc<Mutex<Vec<Flow>>>,
}

impl Talkers {
    /// Opens the flows and waits until each has had an answer.
    ///
    /// # Errors
    /// When one of them has none.
    pub fn start(
        host: &Host,
        protocol: Protocol,
        server: SocketAddr,
        count: usize,
        pace: Pace,
    ) -> anyhow::Result<Self> {
        let open = || {
            let sockets = (0..count).map(|_| Socket::open(protocol, server));
            sockets.collect::<anyhow::Result<Vec<_>>>()
        };
        let sockets = host
            .in_namespace(open)
            .with_context(|| format!("cannot reach {server} by {}", protocol.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let flows = Arc::new(Mutex::new(vec![Flow::default(); count]));
        let mut client = Client {
            talkers: Talker::all(sockets, pace),
            pace,
            flows: Arc::clone(&flows),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                client.turn();
            }
        });
        let this = Self {
            stop,
            thread: Some(thread),
            flows,
        };
        this.round("after they were opened")?;
        Ok(this)
    }

    /// How they are now.
    pub fn flows(&self) -> Vec<Flow> {
        locked(&self.flows).clone()
    }

    /// Number of flows by who answered last.
    pub fn by_backend(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for flow in self.flows() {
            *counts.entry(flow.backend().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Waits until every flow has asked something and had its answer since
    /// this was called.
    ///
    /// # Errors
    /// When one has none; `when` says in which situation.
    pub fn round(&self, when: &str) -> anyhow::Result<()> {
        self.round_of(when, |_| true)
    }

    /// The same for some of the flows.
    pub fn round_of(&self, when: &str, which: impl Fn(&Flow) -> bool) -> anyhow::Result<()> {
        let before = self.flows();
        // One answer may have been under way.
        let talked = |(now, before): (&Flow, &Flow)| now.answers >= before.answers + 2;
        let what = format!("each flow to have its answer {when}");
        try_eventually(&what, ROUND, || {
            let now = self.flows();
            let silent: Vec<&Flow> = now
                .iter()
                .zip(&before)
                .filter(|(_, before)| which(before))
                .filter(|pair| !talked(*pair))
                .map(|(now, _)| now)
                .collect();
            match silent.first() {
                None => Ok(()),
                Some(flow) => Err(format!("{} silent, such as {flow:?}", silent.len())),
            }
        })
    }

    /// Checks that no flow was broken, lost an answer, or changed its backend.
    ///
    /// # Errors
    /// When one has.
    pub fn ensure_steady(&self, when: &str) -> anyhow::Result<()> {
        self.ensure_steady_of(when, |_| true)
    }

    /// The same for some of the flows.
    pub fn ensure_steady_of(
        &self,
        when: &str,
        which: impl Fn(&Flow) -> bool,
    ) -> anyhow::Result<()> {
        let is_steady =
            |flow: &Flow| flow.broken.is_none() && flow.lost == 0 && flow.backends.len() == 1;
        let flows = self.flows();
        let hurt: Vec<&Flow> = flows.iter().filter(|f| which(f) && !is_steady(f)).collect();
        ensure!(
            hurt.is_empty(),
            "{when}, {} of {} flows were hurt: {hurt:?}",
            hurt.len(),
            flows.len()
        );
        Ok(())
    }
}

impl Drop for Talkers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("a client has panicked");
        }
    }
}

struct Client {
    talkers: Vec<Talker>,
    pace: Pace,
    flows: Arc<Mutex<Vec<Flow>>>,
}

/// One flow's side of the talk.
struct Talker {
    socket: Socket,
    number: u64,
    received: Vec<u8>,
    state: Turn,
}

enum Turn {
    /// Asks at this time.
    Rests(Instant),
    /// Has asked at this time.
    Waits(Instant),
    Broken,
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Client {
    /// Asks what is due, waits a moment for answers, takes them.
    fn turn(&mut self) {
        for (i, talker) in self.talkers.iter_mut().enumerate() {
            let change = talker.ask_if_due(self.pace);
            change.note(&mut locked(&self.flows)[i]);
        }
        // Broken ones are always ready, and so left out.
        let is_open = |talker: &Talker| !matches!(talker.state, Turn::Broken);
        let open: Vec<usize> = (0..self.talkers.len())
            .filter(|&i| is_open(&self.talkers[i]))
            .collect();
        let fds = open.iter().map(|&i| self.talkers[i].socket.fd());
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if poll(&mut fds, PollTimeout::from(TURN)).is_err() {
            return;
        }
        let is_ready = |fd: &PollFd<'_>| fd.any() != Some(false);
        let ready: Vec<bool> = fds.iter().map(is_ready).collect();
        for (i, _) in open.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            let change = self.talkers[i].hear(self.pace);
            change.note(&mut locked(&self.flows)[i]);
        }
    }
}

/// What a turn has brought a flow.
enum Change {
    None,
    Answer(String),
    Lost,
    Broken(String),
}

impl Change {
    fn note(self, flow: &mut Flow) {
        match self {
            Self::None => {}
            Self::Answer(name) => {
                flow.answers += 1;
                if flow.backend() != name {
                    flow.backends.push(name);
                }
            }
            Self::Lost => flow.lost += 1,
            Self::Broken(why) => flow.broken = Some(why),
        }
    }
}

impl Talker {
    /// All of them, their first questions spread over the pace.
    fn all(sockets: Vec<Socket>, pace: Pace) -> Vec<Self> {
        let start = Instant::now();
        let count = sockets.len().max(1) as u32;
        let talker = |(i, socket)| Self {
            socket,
            number: 0,
            received: Vec::new(),
            state: Turn::Rests(start + pace.every * i / count),
        };
        (0..).zip(sockets).map(talker).collect()
    }

    fn ask_if_due(&mut self, pace: Pace) -> Change {
        let now = Instant::now();
        match self.state {
            Turn::Rests(until) if now >= until => {
                self.number += 1;
                match self.socket.send(&self.number.to_be_bytes()) {
                    Ok(()) => {
                        self.state = Turn::Waits(now);
                        Change::None
                    }
                    Err(e) => self.failed(&e, pace),
                }
            }
            Turn::Waits(since) if now >= since + pace.patience => match self.socket {
                Socket::Tcp(_) => {
                    self.state = Turn::Broken;
                    Change::Broken(format!("no answer for {:?}", pace.patience))
                }
                Socket::Udp(_) => {
                    self.state = Turn::Rests(now);
                    Change::Lost
                }
            },
            _ => Change::None,
        }
    }

    /// Takes what has come.
    fn hear(&mut self, pace: Pace) -> Change {
        let mut buffer = [0; 256];
        match self.socket.receive(&mut buffer) {
            Ok(0) => self.failed(&Error::other("the server has closed it"), pace),
            Ok(n) => {
                self.received.extend(&buffer[..n]);
                self.take_answer(pace)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Change::None,
            Err(e) => self.failed(&e, pace),
        }
    }

    fn take_answer(&mut self, pace: Pace) -> Change {
        let Some(answer) = self.received.first_chunk::<ANSWER>() else {
            return Change::None;
        };
        let (name, number) = parse_answer(answer);
        self.received.drain(..ANSWER);
        let asked = match self.state {
            Turn::Waits(asked) if number == self.number => asked,
            // To a question that was given up.
            _ => return Change::None,
        };
        self.state = Turn::Rests(asked + pace.every);
        Change::Answer(name)
    }

    /// A TCP flow ends with an error; a UDP flow only loses an answer.
    fn failed(&mut self, error: &Error, pace: Pace) -> Change {
        match self.socket {
            Socket::Tcp(_) => {
                self.state = Turn::Broken;
                Change::Broken(error.to_string())
            }
            Socket::Udp(_) => {
                self.state = Turn::Rests(Instant::now() + pace.every);
                Change::Lost
            }
        }
    }
}

impl Socket {
    /// In the calling thread's namespace.
    fn open(protocol: Protocol, server: SocketAddr) -> anyhow::Result<Self> {
        Ok(match protocol {
            Protocol::Tcp => {
                let stream = TcpStream::connect_timeout(&server, CONNECT)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Self::Tcp(stream)
            }
            Protocol::Udp => {
                let any: SocketAddr = match server {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(server)?;
                socket.set_nonblocking(true)?;
                Self::Udp(socket)
            }
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
        }
    }

    fn send(&mut self, message: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(message),
            Self::Udp(socket) => socket.send(message).map(drop),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Udp(socket) => socket.recv(buffer),
        }
    }
}

fn locked(flows: &Mutex<Vec<Flow>>) -> MutexGuard<'_, Vec<Flow>> {
    // Every flow is whole at any time.
    flows.lock().unwrap_or_else(PoisonError::into_inner)
}
