//! Asking by ARP and NDP who has an address, and hearing silence.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::packets::{Arp, Ethernet, Ndp, NdpKind, Operation, PacketSocket};
use crate::{Host, Mac};

/// How often silence must be confirmed before it is believed.
const CONFIRMATIONS: usize = 3;

/// Asks one host of a segment, from another, with frames made by hand.
///
/// Whether a host keeps silent is not found by waiting: after the question
/// comes another one which it answers in any case, a neighbour solicitation
/// for its own IPv6 address, sent to nobody but it. Both go the same way and are handled in order,
/// so if only the second is answered, the first was not.
#[derive(Debug)]
pub struct Asker {
    socket: PacketSocket,
    mac: Mac,
    ip: Ipv6Addr,
    asked: Mac,
    asked_ip: Ipv6Addr,
}

impl Asker {
    /// Asks from `host`'s interface, which has `ip`, the host whose interface
    /// has the MAC address `asked` and the IPv6 address `asked_ip`.
    pub fn new(
        host: &Host,
        ifname: &str,
        ip: Ipv6Addr,
        asked: Mac,
        asked_ip: Ipv6Addr,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            socket: PacketSocket::open(host, ifname)?,
            mac: host.mac(ifname)?,
            ip,
            asked,
            asked_ip,
        })
    }

    /// Whether it answers an ARP request for `target` with this sender address.
    pub fn arp(&self, sender: Ipv4Addr, target: Ipv4Addr) -> anyhow::Result<bool> {
        let question = Arp::request(self.mac, sender, target).to_frame();
        self.is_answered(&question, |frame| {
            Arp::parse(frame).is_some_and(|arp| {
                arp.operation == Operation::Reply
                    && arp.sender_mac == self.asked
                    && arp.sender_ip == target
            })
        })
    }

    /// Whether it answers a neighbour solicitation for `target`.
    pub fn ndp(&self, target: Ipv6Addr) -> anyhow::Result<bool> {
        let question = Ndp::solicitation(self.mac, self.ip, target).to_multicast_frame(self.mac);
        self.is_answered(&question, |frame| self.is_advertisement(frame, target))
    }

    fn is_answered(
        &self,
        question: &[u8],
        is_answer: impl Fn(&[u8]) -> bool,
    ) -> anyhow::Result<bool> {
        let _pin = Pin::to_one_cpu()?;
        let control = Ndp {
            destination: self.asked_ip,
            ..Ndp::solicitation(self.mac, self.ip, self.asked_ip)
        };
        let control = control.to_frame(self.mac, self.asked);
        for _ in 0..CONFIRMATIONS {
            self.socket.send(question)?;
            self.socket.send(&control)?;
            let mut answered = false;
            let heard = self
                .socket
                .receive_where(Duration::from_secs(10), |frame| {
                    answered |= is_answer(frame);
                    self.is_advertisement(frame, self.asked_ip).then_some(())
                })?;
            heard.with_context(|| {
                format!("{} did not even answer for its own address", self.asked)
            })?;
            if answered {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_advertisement(&self, frame: &[u8], target: Ipv6Addr) -> bool {
        // By the frame's source: a unicast solicitation is answered without
        // link-layer address.
        let from_asked = Ethernet::parse(frame).is_some_and(|(e, _)| e.source == self.asked);
        from_asked
            && Ndp::parse(frame).is_some_and(|ndp| {
                matches!(ndp.kind, NdpKind::Advertisement { .. }) && ndp.target == target
            })
    }
}

/// Frames sent from different CPUs wait in different queues, from which they
/// may come in any order; so question and control are sent from one.
struct Pin(CpuSet);

impl Pin {
    fn to_one_cpu() -> anyhow::Result<Self> {
        let this_thread = Pid::from_raw(0);
        let before = sched_getaffinity(this_thread)?;
        let first = (0..CpuSet::count()).find(|cpu| before.is_set(*cpu) == Ok(true));
        let mut one = CpuSet::new();
        one.set(first.context("the thread may run on no CPU")?)?;
        sched_setaffinity(this_thread, &one)?;
        ensure!(sched_getaffinity(this_thread)? == one, "not pinned");
        Ok(Self(before))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Err(e) = sched_setaffinity(Pid::from_raw(0), &self.0) {
            eprintln!("cannot let the thread run on all its CPUs again: {e}");
        }
    }
}
