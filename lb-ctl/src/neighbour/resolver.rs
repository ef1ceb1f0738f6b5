//! Follows the routes and neighbours of the addresses that backends have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::StreamExt as _;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use super::host::{Host, Interface, InterfaceAddress, Neighbour, Neighbours, Route};
use super::path_mtu::PathMtu;
use super::vlan;
use crate::plan::NextHop;

/// How often neighbours that are not fresh are asked for.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How long to wait for more changes after one, so that a burst is one.
const SETTLE: Duration = Duration::from_millis(5);

/// Bytes of a VLAN tag.
const TAG: u32 = 4;

/// How long a neighbour that is in the table no more counts as known. Whoever
/// empties the table does not make its hosts disappear: those that are there
/// stand in it again in a moment.
const HOLD: Duration = Duration::from_secs(3);

/// How an address is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// By this next hop, through this router if any.
    Known(NextHop, Option<IpAddr>),
    /// Not, and why.
    Unknown(String),
    /// Not: it, or its router, does not answer. And in words.
    Silent(String),
}

/// What was found last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All interfaces by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// The host's own addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// The addresses that were wanted.
    pub resolutions: HashMap<IpAddr, Resolution>,
}

/// Resolves addresses in the background. Clones share the work.
#[derive(Clone, Debug)]
pub struct Resolver {
    host: Host,
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Resolver {
    /// Starts to follow the kernel's tables. `changed` is notified whenever
    /// the snapshot has.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn start(host: Host, changed: Arc<Notify>) -> Result<Self> {
        let (wanted, mut wishes) = watch::channel(BTreeSet::new());
        let mut task = Task {
            host: host.clone(),
            asked: HashMap::new(),
            known: HashMap::new(),
        };
        let first = task.look(&BTreeSet::new()).await?;
        let (publish, snapshot) = watch::channel(Arc::new(first));
        let mut changes = Host::changes()?;
        let path_mtu = PathMtu::learn();
        tokio::spawn(async move {
            let _path_mtu = path_mtu;
            loop {
                let now = wishes.borrow_and_update().clone();
                match task.look(&now).await {
                    Ok(seen) => {
                        let is_new = publish.send_if_modified(|last| {
                            let is_new = **last != seen;
                            if is_new {
                                *last = Arc::new(seen);
                            }
                            is_new
                        });
                        if is_new {
                            changed.notify_one();
                        }
                    }
                    Err(error) => warn!("cannot read the neighbour tables: {error:#}"),
                }
                let again = Instant::now() + ASK_EVERY;
                tokio::select! {
                    wish = wishes.changed() => if wish.is_err() { return },
                    change = changes.next() => {
                        if change.is_none() {
                            warn!("no more netlink notifications: looking once a second instead");
                            sleep_until(again).await;
                        }
                        let settled = Instant::now() + SETTLE;
                        while let Ok(Some(())) = timeout_at(settled, changes.next()).await {}
                    }
                    () = sleep_until(again) => {}
                }
            }
        });
        Ok(Self {
            host,
            wanted,
            snapshot,
        })
    }

    /// The addresses to resolve from now on.
    pub fn want(&self, addresses: BTreeSet<IpAddr>) {
        self.wanted.send_if_modified(|wanted| {
            let is_new = *wanted != addresses;
            *wanted = addresses;
            is_new
        });
    }

    /// What was found last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Waits until all these addresses are known, but not for long: a backend
    /// that is down must not hold the others up.
    pub async fn wait_for(&self, addresses: &BTreeSet<IpAddr>, patience: Duration) {
        let mut snapshot = self.snapshot.clone();
        let all_known = |snapshot: &Arc<Snapshot>| {
            let is_known = |a| matches!(snapshot.resolutions.get(a), Some(Resolution::Known(..)));
            addresses.iter().all(is_known)
        };
        let known = snapshot.wait_for(all_known);
        // Out of patience: the rest comes later.
        let _ = tokio::time::timeout(patience, known).await;
    }

    /// The host that it looks at.
    pub const fn host(&self) -> &Host {
        &self.host
    }
}

struct Task {
    host: Host,
    /// When a neighbour was asked for last.
    asked: HashMap<(u32, IpAddr), Instant>,
    /// MAC address of a neighbour, and when it was in the table last.
    known: HashMap<(u32, IpAddr), ([u8; 6], Instant)>,
}

impl Task {
    async fn look(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<Snapshot> {
        let interfaces = self.host.interfaces().await?;
        let mut neighbours = self.host.neighbours().await?;
        let mut resolutions = HashMap::new();
        for &address in wanted {
            let route = self.host.route(address).await?;
            if let Some(route) = &route {
                self.ask(route, address, &neighbours).await;
                self.hold(
                    (route.interface, route.gateway.unwrap_or(address)),
                    &mut neighbours,
                );
            }
            let resolution = resolve(address, route, &interfaces, &neighbours);
            resolutions.insert(address, resolution);
        }
        self.asked.retain(|_, when| when.elapsed() < 2 * ASK_EVERY);
        self.known.retain(|_, (_, when)| when.elapsed() < HOLD);
        Ok(Snapshot {
            addresses: self.host.addresses().await?,
            interfaces,
            resolutions,
        })
    }

    /// Puts a neighbour that was in the table a moment ago into it again.
    fn hold(&mut self, key: (u32, IpAddr), neighbours: &mut Neighbours) {
        let seen = neighbours.get(&key).copied();
        if let Some(mac) = seen.and_then(|n| n.mac) {
            self.known.insert(key, (mac, Instant::now()));
        } else if seen.is_some_and(|n| n.has_failed) {
            self.known.remove(&key);
        } else if let Some((mac, when)) = self.known.get(&key)
            && when.elapsed() < HOLD
        {
            let held = Neighbour {
                mac: Some(*mac),
                is_fresh: false,
                has_failed: false,
            };
            neighbours.insert(key, held);
        }
    }

    async fn ask(&mut self, route: &Route, address: IpAddr, neighbours: &Neighbours) {
        let key = (route.interface, route.gateway.unwrap_or(address));
        let is_fresh = neighbours.get(&key).is_some_and(|n| n.is_fresh);
        let was_asked = self
            .asked
            .get(&key)
            .is_some_and(|t| t.elapsed() < ASK_EVERY);
        if route.is_local || is_fresh || was_asked {
            return;
        }
        self.asked.insert(key, Instant::now());
        if let Err(error) = self.host.ask_for_neighbour(key.0, key.1).await {
            info!("{error:#}");
        }
    }
}

fn resolve(
    address: IpAddr,
    route: Option<Route>,
    interfaces: &BTreeMap<u32, Interface>,
    neighbours: &Neighbours,
) -> Resolution {
    let unknown = Resolution::Unknown;
    let Some(route) = route else {
        return unknown(format!(
            "there is no route to it: see `ip route get {address}`"
        ));
    };
    if route.is_local {
        return unknown("it is an address of this host".to_owned());
    }
    let Some(interface) = interfaces.get(&route.interface) else {
        return unknown("its interface has just gone".to_owned());
    };
    let name = &interface.name;
    if !interface.is_running {
        return unknown(format!("interface {name} is down"));
    }
    let Some(source_mac) = interface.mac else {
        return unknown(format!("interface {name} is not Ethernet"));
    };
    // Interfaces take frames with one tag beyond their MTU, not with two.
    let vlan = vlan::vlan(interfaces, route.interface);
    let mtu = match vlan.filter(|vlan| vlan.inner.is_some()) {
        Some(vlan) => {
            let wire = interfaces.get(&vlan.interface).map_or(0, |wire| wire.mtu);
            interface.mtu.min(wire.saturating_sub(TAG))
        }
        None => interface.mtu,
    };
    let neighbour = route.gateway.unwrap_or(address);
    let protocol = if neighbour.is_ipv4() { "ARP" } else { "NDP" };
    match neighbours
        .get(&(route.interface, neighbour))
        .and_then(|n| n.mac)
    {
        Some(mac) => {
            let next_hop = NextHop {
                interface: route.interface,
                mac,
                source_mac,
                mtu: u16::try_from(route.mtu.map_or(mtu, |m| m.min(mtu))).unwrap_or(u16::MAX),
                source: route.source,
            };
            Resolution::Known(next_hop, route.gateway)
        }
        None => Resolution::Silent(format!("{neighbour} does not answer {protocol} on {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 21));
    const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));

    fn world() -> (Route, BTreeMap<u32, Interface>, Neighbours) {
        let route = Route {
            interface: 2,
            gateway: None,
            is_local: false,
            source: Some("203.0.113.2".parse().unwrap()),
            mtu: None,
        };
        let interface = Interface {
            name: "eth0".to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            is_running: true,
            mtu: 1500,
            ..Interface::default()
        };
        let neighbour = |last| Neighbour {
            mac: Some([2, 0, 0, 0, 0, last]),
            is_fresh: true,
            has_failed: false,
        };
        let neighbours =
            Neighbours::from([((2, ADDRESS), neighbour(21)), ((2, GATEWAY), neighbour(9))]);
        (route, BTreeMap::from([(2, interface)]), neighbours)
    }

    #[test]
    fn the_next_hop_is_the_neighbour_or_the_router() {
        let (mut route, interfaces, neighbours) = world();
        let mac =
            |route: &Route| match resolve(ADDRESS, Some(route.clone()), &interfaces, &neighbours) {
                Resolution::Known(next_hop, _) => next_hop.mac[5],
                other => panic!("{other:?}"),
            };
        assert_eq!(mac(&route), 21);
        route.gateway = Some(GATEWAY);
        assert_eq!(mac(&route), 9);
    }

    #[test]
    fn what_is_missing_is_named() {
        let (route, interfaces, neighbours) = world();
        let why = |route: Option<Route>, interfaces: &_, neighbours: &_| match resolve(
            ADDRESS, route, interfaces, neighbours,
        ) {
            Resolution::Unknown(why) | Resolution::Silent(why) => why,
            known => panic!("{known:?}"),
        };
        let mut down = interfaces.clone();
        down.get_mut(&2).unwrap().is_running = false;
        let silent = Neighbours::new();
        assert!(why(None, &interfaces, &neighbours).contains("no route"));
        assert!(why(Some(route.clone()), &down, &neighbours).contains("eth0 is down"));
        let text = why(Some(route), &interfaces, &silent);
        assert_eq!(text, "203.0.113.21 does not answer ARP on eth0");
    }
}
