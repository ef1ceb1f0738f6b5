//! Looks after translated flows in the background: ends those that are over,
//! and keeps the pool's free ports what they should be.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_common::nat::{PoolPort, Timeouts};
use lb_common::protocol::UDP;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::dataplane::{NatFlow, NatTable};

/// Least time between two looks at the tables.
const PAUSE: Duration = Duration::from_secs(1);

/// Part of the time that may be spent on looking.
const SHARE: u32 = 10;

/// What the tables should be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Whether there is any NAT.
    pub is_used: bool,
    /// When flows are over.
    pub timeouts: Timeouts,
    /// The pool's addresses by number.
    pub pool: BTreeMap<u16, IpAddr>,
    /// Their ports.
    pub ports: RangeInclusive<u16>,
}

impl Wish {
    /// Whether the pool is to have this port of an address of this IP version.
    fn has_port(&self, is_v4: bool, port: PoolPort) -> bool {
        let address = self.pool.get(&port.address_index());
        address.is_some_and(|ip| ip.is_ipv4() == is_v4) && self.ports.contains(&port.port())
    }
}

/// What was found last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Translated flows that have an entry, IPv4 and IPv6.
    pub flows: [u64; 2],
    /// Ports of the pool that are taken, IPv4 and IPv6.
    pub taken: [u64; 2],
}

/// The task.
pub struct Collector {
    wishes: watch::Sender<Option<Wish>>,
    done: watch::Receiver<Option<Wish>>,
    found: Arc<Mutex<Found>>,
}

impl Collector {
    /// Starts it; `now` is the clock of the packet path.
    pub fn start(table: Arc<dyn NatTable>, now: impl Fn() -> u32 + Send + 'static) -> Self {
        let (wishes, wish) = watch::channel(None);
        let (tell_done, done) = watch::channel(None);
        let found = Arc::new(Mutex::new(Found::default()));
        tokio::spawn(run(table, now, wish, tell_done, Arc::clone(&found)));
        Self {
            wishes,
            done,
            found,
        }
    }

    /// What the tables should be like from now on.
    pub fn want(&self, wish: Wish) {
        self.wishes.send_if_modified(|current| {
            let is_new = current.as_ref() != Some(&wish);
            *current = Some(wish);
            is_new
        });
    }

    /// Waits until the pool is what is wanted now, but not for long.
    pub async fn wait(&self, patience: Duration) {
        let wanted = self.wishes.borrow().clone();
        let mut done = self.done.clone();
        // Out of patience: the ports come later.
        let _ = timeout(patience, done.wait_for(|done| *done == wanted)).await;
    }

    /// What was found last.
    pub fn found(&self) -> Found {
        lock(&self.found).clone()
    }
}

async fn run(
    table: Arc<dyn NatTable>,
    now: impl Fn() -> u32,
    mut wishes: watch::Receiver<Option<Wish>>,
    done: watch::Sender<Option<Wish>>,
    found: Arc<Mutex<Found>>,
) {
    let mut stocked: Option<Wish> = None;
    let mut pause = PAUSE;
    loop {
        let wish = wishes.borrow_and_update().clone();
        if let Some(wish) = wish.filter(|wish| wish.is_used || stocked.is_some()) {
            let restock = stocked
                .as_ref()
                .is_none_or(|before| before.pool != wish.pool || before.ports != wish.ports);
            let (table, now, of) = (Arc::clone(&table), now(), wish.clone());
            let begin = Instant::now();
            let looked = spawn_blocking(move || look(&*table, &of, now, restock)).await;
            pause = PAUSE.max(begin.elapsed() * SHARE);
            match looked {
                Ok(Ok(new)) => {
                    *lock(&found) = new;
                    stocked = Some(wish.clone());
                    done.send_replace(Some(wish));
                }
                Ok(Err(error)) => warn!("cannot look after translated flows: {error:#}"),
                Err(error) => warn!("looking after translated flows failed: {error}"),
            }
        } else {
            done.send_replace(wishes.borrow().clone());
        }
        let is_idle = stocked.as_ref().is_none_or(|wish| !wish.is_used);
        tokio::select! {
            changed = wishes.changed() => if changed.is_err() { return },
            () = sleep(pause), if !is_idle => {}
        }
    }
}

/// Ends flows that are over; with `restock` brings the free ports up to date.
fn look(table: &dyn NatTable, wish: &Wish, now: u32, restock: bool) -> Result<Found> {
    let mut found = Found::default();
    let mut over = Vec::new();
    let mut taken: [HashSet<PoolPort>; 2] = Default::default();
    table.scan(&mut |flow: NatFlow| {
        let is_udp = flow.service.protocol == UDP;
        if wish
            .timeouts
            .is_over(is_udp, flow.client_seen, flow.backend_seen, now)
        {
            over.push(flow);
            return;
        }
        let version = usize::from(!flow.is_v4());
        found.flows[version] += 1;
        if let Some(port) = flow.pool_port {
            taken[version].insert(port);
        }
    })?;
    for flow in &over {
        // A port that has left the pool meanwhile must not come back.
        let is_of_pool = |port| wish.has_port(flow.is_v4(), port);
        table.remove(flow, flow.pool_port.is_some_and(is_of_pool))?;
    }
    for (version, is_v4) in [true, false].into_iter().enumerate() {
        if restock {
            stock(table, is_v4, wish, &taken[version])?;
        }
        let taken = taken[version].iter();
        let taken = taken.filter(|port| wish.has_port(is_v4, **port));
        found.taken[version] = taken.count() as u64;
    }
    Ok(found)
}

/// Throws free ports away that are no longer of the pool, and adds those that
/// are missing: of new addresses, and what an `lb-ctl` that was killed had in
/// its hands. A port that a packet takes out in between may be added twice;
/// packets find out whether it is taken.
fn stock(table: &dyn NatTable, is_v4: bool, wish: &Wish, taken: &HashSet<PoolPort>) -> Result<()> {
    let mut present = taken.clone();
    table.sift_ports(is_v4, &mut |port| {
        let is_wanted = wish.has_port(is_v4, port);
        present.extend(is_wanted.then_some(port));
        is_wanted
    })?;
    // Taken by packets after the flows were looked at, before the free ports
    // were.
    table.scan(&mut |flow| present.extend(flow.pool_port.filter(|_| flow.is_v4() == is_v4)))?;
    let of_version = wish.pool.iter().filter(|(_, ip)| ip.is_ipv4() == is_v4);
    let all = of_version
        .flat_map(|(&number, _)| wish.ports.clone().map(move |p| PoolPort::new(number, p)));
    let mut missing: Vec<PoolPort> = all.filter(|port| !present.contains(port)).collect();
    // In an order that nobody can guess (RFC 6056).
    shuffle(&mut missing);
    for port in missing {
        // No more fit than there can be flows.
        if !table.add_port(is_v4, port)? {
            break;
        }
    }
    Ok(())
}

fn lock(found: &Mutex<Found>) -> MutexGuard<'_, Found> {
    // Every field is whole at any time.
    found.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Brings ports into a random order, by the keys of the standard library's
/// hash maps, which differ each time.
fn shuffle(ports: &mut [PoolPort]) {
    use std::hash::{BuildHasher as _, RandomState};
    let keys = RandomState::new();
    ports.sort_by_cached_key(|port| keys.hash_one(port));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::fake::Fake;

    fn wish(pool: &[(u16, &str)], ports: RangeInclusive<u16>) -> Wish {
        Wish {
            is_used: true,
            timeouts: Timeouts::IPVS,
            pool: pool
                .iter()
                .map(|(number, ip)| (*number, ip.parse().unwrap()))
                .collect(),
            ports,
        }
    }

    fn free(fake: &Fake, version: usize) -> Vec<PoolPort> {
        let mut ports = fake.maps().ports[version].clone();
        ports.sort();
        ports
    }

    #[test]
    fn free_ports_follow_the_pool() {
        let fake = Fake::new(4);
        let both = wish(&[(0, "203.0.113.3"), (1, "2001:db8::3")], 1024..=1027);
        look(&fake, &both, 0, true).unwrap();
        let of = |number, ports: RangeInclusive<u16>| -> Vec<PoolPort> {
            ports.map(|port| PoolPort::new(number, port)).collect()
        };
        assert_eq!(free(&fake, 0), of(0, 1024..=1027));
        assert_eq!(free(&fake, 1), of(1, 1024..=1027));

        // Again: nothing is there twice.
        look(&fake, &both, 0, true).unwrap();
        assert_eq!(free(&fake, 0), of(0, 1024..=1027));

        // Another address and other ports.
        let other = wish(&[(2, "203.0.113.4"), (1, "2001:db8::3")], 1026..=1029);
        look(&fake, &other, 0, true).unwrap();
        assert_eq!(free(&fake, 0), of(2, 1026..=1029));
        assert_eq!(free(&fake, 1), of(1, 1026..=1029));
    }

    #[test]
    fn what_a_killed_process_had_in_its_hands_comes_back() {
        let fake = Fake::new(4);
        let wish = wish(&[(0, "203.0.113.3")], 1024..=1027);
        look(&fake, &wish, 0, true).unwrap();
        let lost = fake.maps().ports[0].pop().unwrap();
        assert!(!free(&fake, 0).contains(&lost));
        look(&fake, &wish, 0, true).unwrap();
        assert!(free(&fake, 0).contains(&lost));
        assert_eq!(free(&fake, 0).len(), 4);
    }
}
