use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{Backlog, listen, setsockopt};

use super::{ANSWER, NAME, QUESTION, padded};
use crate::{Host, RECEIVE_BUFFER};

/// Milliseconds within which a server notices that it shall end.
const STOP_CHECK: u16 = 20;

/// A server, TCP and UDP, that answers with its host's name. Dropping it ends
/// it and all its connections.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Serves these addresses of a host, which it must have.
    pub fn start(host: &Host, addresses: &[SocketAddr]) -> anyhow::Result<Self> {
        let mut server = Server {
            name: padded(host.name())?,
            listeners: Vec::new(),
            datagrams: Vec::new(),
            connections: Vec::new(),
        };
        host.in_namespace(|| server.bind(addresses))
            .with_context(|| format!("on host {}", host.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("echo {}", host.name()))
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    server.serve();
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("an echo server has panicked");
        }
    }
}

struct Server {
    name: [u8; NAME],
    listeners: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
    connections: Vec<Connection>,
}

struct Connection {
    stream: TcpStream,
    unanswered: Vec<u8>,
}

impl Server {
    fn bind(&mut self, addresses: &[SocketAddr]) -> anyhow::Result<()> {
        for address in addresses {
            let what = || format!("cannot serve {address}");
            let listener = TcpListener::bind(address).with_context(what)?;
            // Clients come faster than a starved thread can accept them.
            listen(&listener, Backlog::MAXCONN)?;
            listener.set_nonblocking(true)?;
            self.listeners.push(listener);
            let socket = UdpSocket::bind(address).with_context(what)?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
            self.datagrams.push(socket);
        }
        Ok(())
    }

    /// Waits a moment for something to do, and does it.
    fn serve(&mut self) {
        let fds = self.listeners.iter().map(AsFd::as_fd);
        let fds = fds.chain(self.datagrams.iter().map(AsFd::as_fd));
        let fds = fds.chain(self.connections.iter().map(|c| c.stream.as_fd()));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if poll(&mut fds, PollTimeout::from(STOP_CHECK)).is_err() {
            return;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() != Some(false)).collect();
        let (listeners, ready) = ready.split_at(self.listeners.len());
        let (datagrams, connections) = ready.split_at(self.datagrams.len());

        let mut flags = connections.iter();
        let name = self.name;
        self.connections
            .retain_mut(|connection| flags.next() != Some(&true) || connection.answer(&name));
        for (socket, _) in self.datagrams.iter().zip(datagrams).filter(|(_, r)| **r) {
            answer_datagrams(socket, &name);
        }
        for (listener, _) in self.listeners.iter().zip(listeners).filter(|(_, r)| **r) {
            while let Ok((stream, _)) = listener.accept() {
                if stream.set_nonblocking(true).is_ok() && stream.set_nodelay(true).is_ok() {
                    self.connections.push(Connection {
                        stream,
                        unanswered: Vec::new(),
                    });
                }
            }
        }
    }
}

impl Connection {
    /// Answers what has come; returns whether the connection goes on.
    fn answer(&mut self, name: &[u8; NAME]) -> bool {
        let mut buffer = [0; 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => self.unanswered.extend(&buffer[..n]),
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        }
        while self.unanswered.len() >= QUESTION {
            let question: Vec<u8> = self.unanswered.drain(..QUESTION).collect();
            if self.stream.write_all(&answer(name, &question)).is_err() {
                return false;
            }
        }
        true
    }
}

fn answer_datagrams(socket: &UdpSocket, name: &[u8; NAME]) {
    let mut buffer = [0; 1024];
    // An error speaks of a client that is gone, or of an empty queue.
    while let Ok((n, client)) = socket.recv_from(&mut buffer) {
        if n == QUESTION {
            let _ = socket.send_to(&answer(name, &buffer[..n]), client);
        }
    }
}

fn answer(name: &[u8; NAME], question: &[u8]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(ANSWER);
    answer.extend(name);
    answer.extend(question);
    answer
}
