//! One flow's side of the talk: a question, its number, and who answers.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use integration::talk::{ANSWER, Protocol, parse_answer};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket as open_socket,
};

use crate::crowd::{Event, What};

/// From one question to the next.
const EVERY: Duration = Duration::from_millis(200);
/// How long a connection may take to be made, and to answer: several
/// retransmissions.
const TCP_PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may take.
const UDP_PATIENCE: Duration = Duration::from_secs(3);

/// What a flow has done or met.
pub enum Step {
    None,
    /// An answer as it should be.
    Answer,
    /// Something else, and it goes on.
    Event(Event),
    /// It has ended; by itself if nothing befell it.
    End(Option<Event>),
}

pub struct Flow {
    socket: Socket,
    state: State,
    number: u64,
    received: Vec<u8>,
    backend: Option<String>,
    /// The last answer, or else the opening.
    heard: Instant,
    /// When it ends by itself.
    end: Option<Instant>,
}

#[derive(Clone, Copy)]
enum State {
    Connects(Instant),
    /// Asks at this time.
    Rests(Instant),
    /// Has asked at this time.
    Waits(Instant),
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Flow {
    /// In the calling thread's namespace, without waiting.
    pub fn open(
        protocol: Protocol,
        server: SocketAddr,
        lifetime: Option<Duration>,
        now: Instant,
    ) -> anyhow::Result<Self> {
        let (socket, state) = match protocol {
            Protocol::Tcp => (Socket::Tcp(tcp(server)?), State::Connects(now)),
            Protocol::Udp => (Socket::Udp(udp(server)?), State::Rests(now)),
        };
        Ok(Self {
            socket,
            state,
            number: 0,
            received: Vec::new(),
            backend: None,
            heard: now,
            end: lifetime.map(|lifetime| now + lifetime),
        })
    }

    /// Whether it does not end by itself.
    pub const fn is_lasting(&self) -> bool {
        self.end.is_none()
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Udp(socket) => socket.as_fd(),
        }
    }

    pub fn interest(&self) -> PollFlags {
        match self.state {
            State::Connects(_) => PollFlags::POLLOUT,
            _ => PollFlags::POLLIN,
        }
    }

    pub fn local(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(stream) => stream.local_addr(),
            Socket::Udp(socket) => socket.local_addr(),
        }
        .ok()
    }

    /// Asks if it is time, or gives up if it is too late.
    pub fn ask(&mut self, now: Instant) -> Step {
        match self.state {
            State::Rests(_) if self.end.is_some_and(|end| now >= end) => Step::End(None),
            State::Rests(until) if now >= until => {
                self.number += 1;
                let question = self.number.to_be_bytes();
                let sent = match &mut self.socket {
                    Socket::Tcp(stream) => stream.write_all(&question),
                    Socket::Udp(socket) => socket.send(&question).map(drop),
                };
                match sent {
                    Ok(()) => {
                        self.state = State::Waits(now);
                        Step::None
                    }
                    Err(error) => self.failed(&error, now),
                }
            }
            State::Connects(since) if now >= since + TCP_PATIENCE => {
                let what = What::Refused(format!("not within {TCP_PATIENCE:?}"));
                Step::End(Some(self.event(what, now)))
            }
            State::Waits(since) => match self.socket {
                Socket::Tcp(_) if now >= since + TCP_PATIENCE => {
                    let what = What::Broken(format!("no answer for {TCP_PATIENCE:?}"));
                    Step::End(Some(self.event(what, now)))
                }
                Socket::Udp(_) if now >= since + UDP_PATIENCE => {
                    self.state = State::Rests(now);
                    let what = What::Lost(format!("none for {UDP_PATIENCE:?}"));
                    Step::Event(self.event(what, now))
                }
                _ => Step::None,
            },
            _ => Step::None,
        }
    }

    /// Takes what has come.
    pub fn hear(&mut self, now: Instant) -> Step {
        if let State::Connects(_) = self.state {
            return self.connected(now);
        }
        let mut buffer = [0; 256];
        let read = match &mut self.socket {
            Socket::Tcp(stream) => stream.read(&mut buffer),
            Socket::Udp(socket) => socket.recv(&mut buffer),
        };
        match read {
            Ok(0) => self.failed(&Error::other("the server has closed it"), now),
            Ok(n) => {
                self.received.extend(&buffer[..n]);
                self.take_answer(now)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Step::None,
            Err(error) => self.failed(&error, now),
        }
    }

    fn connected(&mut self, now: Instant) -> Step {
        let Socket::Tcp(stream) = &self.socket else {
            return Step::None;
        };
        let error = stream.take_error().unwrap_or_else(Some);
        if let Some(error) = error {
            let what = What::Refused(error.to_string());
            return Step::End(Some(self.event(what, now)));
        }
        self.state = State::Rests(now);
        Step::None
    }

    fn take_answer(&mut self, now: Instant) -> Step {
        let Some(answer) = self.received.first_chunk::<ANSWER>() else {
            return Step::None;
        };
        let (name, number) = parse_answer(answer);
        self.received.drain(..ANSWER);
        match self.state {
            State::Waits(asked) if number == self.number => {
                self.state = State::Rests(asked + EVERY);
            }
            // UDP: to a question that was given up.
            _ if matches!(self.socket, Socket::Udp(_)) => return Step::None,
            _ => {
                let what = What::Garbled(format!("{number} for {}", self.number));
                return Step::End(Some(self.event(what, now)));
            }
        }
        let step = match &self.backend {
            Some(backend) if *backend == name => Step::Answer,
            Some(backend) => {
                let (from, to) = (backend.clone(), name.clone());
                Step::Event(self.event(What::Changed { from, to }, now))
            }
            None => Step::Event(self.event(What::Begun(name.clone()), now)),
        };
        self.backend = Some(name);
        self.heard = now;
        step
    }

    /// A TCP flow ends with an error; a UDP flow only loses an answer.
    fn failed(&mut self, error: &Error, now: Instant) -> Step {
        match self.socket {
            Socket::Tcp(_) => {
                let what = What::Broken(error.to_string());
                Step::End(Some(self.event(what, now)))
            }
            Socket::Udp(_) => {
                self.state = State::Rests(now + EVERY);
                Step::Event(self.event(What::Lost(error.to_string()), now))
            }
        }
    }

    fn event(&self, what: What, at: Instant) -> Event {
        Event {
            at,
            since: self.heard,
            backend: self.backend.clone(),
            what,
        }
    }
}

fn tcp(server: SocketAddr) -> anyhow::Result<TcpStream> {
    let family = match server {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = open_socket(family, SockType::Stream, flags, None)?;
    let stream = TcpStream::from(fd);
    stream.set_nodelay(true)?;
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

fn udp(server: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
