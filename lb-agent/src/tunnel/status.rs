//! How TUN mode is doing: what `check` shows besides what is wrong.

use std::collections::BTreeMap;

use lb_common::tunnel::{Counter, DropReason};
use serde::Serialize;

use crate::facts::Facts;
use crate::prefix::Prefix;
use crate::state::Want;
use crate::tunnel::contents::Contents;
use crate::tunnel::programs::Hook;

/// How TUN mode is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Packets, by [`Counter::name`].
    pub counters: BTreeMap<&'static str, u64>,
    /// Packets dropped, by [`DropReason::name`].
    pub drops: BTreeMap<&'static str, u64>,
    /// Largest MSS that SYN-ACKs from IPv4 VIPs offer; 0 for no limit.
    pub mss_ipv4: u16,
    /// The same for IPv6 VIPs.
    pub mss_ipv6: u16,
    /// The interfaces that packets arrive by, and whether the program runs in
    /// the driver (`native`) or after it (`generic`).
    pub interfaces: BTreeMap<String, &'static str>,
    /// The way to each director.
    pub directors: Vec<Path>,
}

/// The way to a director.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Path {
    /// The prefix as configured.
    pub director: Prefix,
    /// The interface that packets to it leave by; none without a route.
    pub interface: Option<String>,
    /// Largest IP packet in bytes on that way, as far as the kernel knows.
    pub mtu: Option<u32>,
}

impl Status {
    /// For a person.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, how) in &self.interfaces {
            lines.push(format!("  packets arrive by {name} ({how})"));
        }
        let mss = |limit: u16| match limit {
            0 => "as it is".to_owned(),
            bytes => format!("at most {bytes}"),
        };
        let (v4, v6) = (mss(self.mss_ipv4), mss(self.mss_ipv6));
        lines.push(format!("  MSS offered: IPv4 {v4}, IPv6 {v6}"));
        for path in &self.directors {
            if let (Some(interface), Some(mtu)) = (&path.interface, path.mtu) {
                let director = path.director;
                lines.push(format!("  director {director}: by {interface}, MTU {mtu}"));
            }
        }
        for (name, count) in &self.counters {
            lines.push(format!("  {name:<38} {count}"));
        }
        lines
    }
}

/// Puts together what is known, and says in `notes` what a person should know.
pub fn status(facts: &Facts, want: &Want, notes: &mut Vec<String>) -> Option<Status> {
    let tunnel = want.tunnel.as_ref()?;
    let programs = facts.programs.as_ref()?;
    let contents = Contents::wanted(facts, want, tunnel);
    let running = want.interfaces.iter().filter_map(|name| {
        let attached = programs.attached.contains(&(Hook::Arriving, name.clone()));
        let generic = attached && facts.link(name)?.xdp?.generic;
        let how = match (attached, generic) {
            (false, _) => "not attached",
            (true, false) => "native",
            (true, true) => "generic",
        };
        Some((name.clone(), how))
    });
    let status = Status {
        counters: programs.counters.clone(),
        drops: programs.drops.clone(),
        mss_ipv4: contents.mss_v4,
        mss_ipv6: contents.mss_v6,
        interfaces: running.collect(),
        directors: facts.paths.clone(),
    };
    note(&status, contents, notes);
    Some(status)
}

fn note(status: &Status, contents: Contents, notes: &mut Vec<String>) {
    if status.counters.get(Counter::Decapsulated.name()) == Some(&0) {
        notes.push(
            "no packet from a director has arrived yet: is this backend in a service, and does \
             IP protocol 4 and 41 get through the firewalls on the way?"
                .to_owned(),
        );
    }
    for reason in DropReason::ALL {
        if let Some(count @ 1..) = status.drops.get(reason.name()) {
            notes.push(format!(
                "dropped {count} ({}): {}",
                reason.name(),
                reason.meaning()
            ));
        }
    }
    for (name, _) in status
        .interfaces
        .iter()
        .filter(|(_, how)| **how == "generic")
    {
        notes.push(format!(
            "the XDP program on {name} runs in generic mode, which is slower: its driver has \
             no XDP, or not with the present MTU or settings"
        ));
    }
    for path in &status.directors {
        match (path.mtu, &path.interface) {
            (Some(mtu), Some(interface)) => {
                let overhead = if path.director.is_ipv4() { 20 } else { 40 };
                let fits = mtu.saturating_sub(overhead + 40);
                if contents.mss_v4 != 0 && fits < contents.mss_v4.into() {
                    notes.push(format!(
                        "the way to the director {} (by {interface}) has MTU {mtu}: if the way \
                         back is like it, set mss = {fits}",
                        path.director
                    ));
                }
            }
            _ => notes.push(format!(
                "there is no route to the director {}",
                path.director
            )),
        }
    }
}
