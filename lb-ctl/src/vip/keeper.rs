//! The task that keeps the VIPs on the ingress interface, announces them, and
//! listens for thieves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep_until};
use tracing::{info, warn};

use super::frames;
use super::owned::{Owned, OwnedAddress};
use super::socket::{FrameSocket, Hears};
use super::thieves::{Thieves, text};
use crate::model::status::{VipStatus, unix_now};
use crate::neighbour::host::{Interface, InterfaceAddress};
use crate::neighbour::{Host, vlan};

/// Announcements of a VIP after it was added, one a second: some may be lost.
const ANNOUNCEMENTS: u32 = 3;

/// Probes a second on each interface, so that thousands of VIPs do not flood
/// the segment.
const PROBES_PER_SECOND: usize = 100;

/// Who puts VIPs on the ingress interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Management {
    /// `lb-ctl`.
    Managed,
    /// The operator, or a routing daemon.
    Operator,
}

/// How to keep VIPs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Indices of the interfaces on which the program runs, the preferred one
    /// first.
    pub interfaces: Vec<u32>,
    /// Who puts VIPs there.
    pub management: Management,
    /// The state directory.
    pub state: PathBuf,
}

/// Access to the task.
#[derive(Clone, Debug)]
pub struct Keeper {
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    seen: Arc<Mutex<Seen>>,
    /// The VIPs for which all has been done that can be.
    done: watch::Receiver<BTreeSet<IpAddr>>,
}

/// What the task has found.
#[derive(Debug, Default)]
struct Seen {
    held: BTreeMap<IpAddr, Vec<String>>,
    owned: BTreeSet<IpAddr>,
    thieves: Thieves,
    problems: BTreeMap<IpAddr, String>,
}

impl Keeper {
    /// Starts the task.
    ///
    /// # Errors
    /// If the sockets cannot be opened or the state not be read.
    pub async fn start(host: Host, options: Options) -> Result<Self> {
        let (wanted, mut wishes) = watch::channel(BTreeSet::new());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (tell_done, done) = watch::channel(BTreeSet::new());
        let (claims, mut heard) = mpsc::channel(64);
        let mut task = Task {
            owned: Owned::open(&options.state)?,
            host,
            options,
            seen: Arc::clone(&seen),
            ports: Vec::new(),
            sockets: BTreeMap::new(),
            claims,
            to_announce: BTreeMap::new(),
            running: BTreeMap::new(),
            next_probe: 0,
        };
        let mut changes = Host::changes()?;
        // Nothing is wanted yet; VIPs of before must not be dropped for that.
        let mut is_told = false;
        tokio::spawn(async move {
            let mut second = interval(Duration::from_secs(1));
            loop {
                // Not taken for seen: what has changed meanwhile is done below.
                let wishes_now = wishes.borrow().clone();
                tokio::select! {
                    changed = wishes.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        is_told = true;
                        let wanted = wishes.borrow().clone();
                        task.keep(&wanted).await;
                        task.announce();
                        tell_done.send_replace(wanted.clone());
                        task.probe(&wanted);
                    }
                    _ = second.tick(), if is_told => {
                        task.keep(&wishes_now).await;
                        task.announce();
                        task.probe(&wishes_now);
                    }
                    Some(()) = changes.next(), if is_told => {
                        // A burst of changes is one.
                        let settled = Instant::now() + Duration::from_millis(10);
                        loop {
                            tokio::select! {
                                Some(()) = changes.next() => {}
                                () = sleep_until(settled) => break,
                            }
                        }
                        task.keep(&wishes_now).await;
                    }
                    Some(claim) = heard.recv() => task.hear(&wishes_now, claim).await,
                }
            }
        });
        Ok(Self { wanted, seen, done })
    }

    /// The VIPs from now on.
    pub fn want(&self, vips: BTreeSet<IpAddr>) {
        self.wanted.send_replace(vips);
    }

    /// Waits until the VIPs that are wanted now have been seen to, but not for
    /// long.
    pub async fn wait(&self, patience: Duration) {
        let wanted = self.wanted.borrow().clone();
        let mut done = self.done.clone();
        let all = done.wait_for(|done| done.is_superset(&wanted));
        // Out of patience: the status says what keeps them away.
        let _ = tokio::time::timeout(patience, all).await;
    }

    /// Who holds the VIPs, and why some could not be put where they belong.
    pub fn status(&self) -> (Vec<VipStatus>, Vec<String>) {
        let seen = lock(&self.seen);
        let vips = self.wanted.borrow().clone();
        let status = |&address: &IpAddr| VipStatus {
            address,
            interfaces: seen.held.get(&address).cloned().unwrap_or_default(),
            managed: seen.owned.contains(&address),
            thieves: seen.thieves.of(address),
        };
        let statuses = vips.iter().map(status).collect();
        (statuses, seen.problems.values().cloned().collect())
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    // What a panicking task left is still worth showing.
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A frame that claims an address.
struct Claim {
    interface: u32,
    address: IpAddr,
    mac: [u8; 6],
}

struct Task {
    host: Host,
    options: Options,
    owned: Owned,
    seen: Arc<Mutex<Seen>>,
    /// Indices of the interfaces, each followed by the VLANs on top of it.
    ports: Vec<u32>,
    /// By interface: ARP, advertisements.
    sockets: BTreeMap<u32, [Listener; 2]>,
    claims: mpsc::Sender<Claim>,
    /// How often each address is still to be announced on an interface.
    to_announce: BTreeMap<(u32, IpAddr), u32>,
    /// MAC addresses of our interfaces that were up when looked at last.
    running: BTreeMap<u32, [u8; 6]>,
    next_probe: usize,
}

impl Task {
    /// Adds what is missing, removes what is no longer wanted, and notes who
    /// holds what.
    async fn keep(&mut self, wanted: &BTreeSet<IpAddr>) {
        if let Err(error) = self.try_keep(wanted).await {
            warn!("cannot look after the VIPs: {error:#}");
        }
    }

    async fn try_keep(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<()> {
        let interfaces = self.host.interfaces().await?;
        let addresses = self.host.addresses().await?;
        self.ports = vlan::ports(&interfaces, &self.options.interfaces);
        self.open_sockets(&interfaces);
        let mut problems = BTreeMap::new();
        if self.options.management == Management::Managed {
            self.remove_unwanted(wanted, &interfaces).await;
            for &vip in wanted {
                let is_held = addresses.iter().any(|a| a.ip == vip);
                let astray = self.astray(vip, &interfaces, &addresses);
                if is_held && astray.is_none() {
                    continue;
                }
                if let Err(error) = self.add(vip, &interfaces, &addresses).await {
                    problems.insert(vip, format!("VIP {vip} is not where it belongs: {error:#}"));
                } else if let Some(astray) = astray {
                    self.remove(&astray, &interfaces).await;
                }
            }
        }
        let addresses = self.host.addresses().await?;
        self.announce_on_interfaces_that_came_up(wanted, &interfaces, &addresses);
        let mut held: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for address in addresses.iter().filter(|a| wanted.contains(&a.ip)) {
            if let Some(interface) = interfaces.get(&address.interface) {
                held.entry(address.ip)
                    .or_default()
                    .push(interface.name.clone());
            }
        }
        let ours: BTreeSet<IpAddr> = match self.options.management {
            Management::Managed => wanted.clone(),
            Management::Operator => held.keys().copied().collect(),
        };
        let mut seen = lock(&self.seen);
        for (vip, mac) in seen.thieves.forget(&ours, unix_now()) {
            info!(%vip, mac, "nobody else claims the VIP any more");
        }
        seen.held = held;
        seen.owned = self.owned.addresses().iter().map(|o| o.address).collect();
        seen.problems = problems;
        Ok(())
    }

    /// Where the VIP was put by us, if there is a better place by now: a VLAN
    /// device that has come since, with the subnet that the VIP lies in.
    fn astray(
        &self,
        vip: IpAddr,
        interfaces: &BTreeMap<u32, Interface>,
        addresses: &[InterfaceAddress],
    ) -> Option<OwnedAddress> {
        let better = &interfaces.get(&self.subnet_of(vip, addresses)?)?.name;
        let mut owned = self.owned.addresses().iter();
        let astray = owned.find(|owned| owned.address == vip && owned.interface != *better);
        astray.cloned()
    }

    async fn add(
        &mut self,
        vip: IpAddr,
        interfaces: &BTreeMap<u32, Interface>,
        addresses: &[InterfaceAddress],
    ) -> Result<()> {
        let subnet = self.subnet_of(vip, addresses);
        let index = subnet.unwrap_or(self.options.interfaces[0]);
        let Some(interface) = interfaces.get(&index) else {
            anyhow::bail!("the ingress interface is gone");
        };
        self.owned.insert(OwnedAddress {
            interface: interface.name.clone(),
            address: vip,
        })?;
        self.host.add_address(index, vip).await?;
        info!(%vip, interface = interface.name, "VIP added");
        self.to_announce.insert((index, vip), ANNOUNCEMENTS);
        Ok(())
    }

    /// The interface or VLAN on whose subnet the VIP lies.
    fn subnet_of(&self, vip: IpAddr, addresses: &[InterfaceAddress]) -> Option<u32> {
        let on_subnet = |index: &&u32| {
            addresses.iter().any(|a| {
                let is_another = a.interface == **index && a.ip != vip;
                is_another && shares_prefix(a.ip, vip, a.prefix)
            })
        };
        self.ports.iter().find(on_subnet).copied()
    }

    async fn remove_unwanted(
        &mut self,
        wanted: &BTreeSet<IpAddr>,
        interfaces: &BTreeMap<u32, Interface>,
    ) {
        for address in self.owned.addresses().clone() {
            if !wanted.contains(&address.address) {
                self.remove(&address, interfaces).await;
            }
        }
    }

    async fn remove(&mut self, address: &OwnedAddress, interfaces: &BTreeMap<u32, Interface>) {
        let index = interfaces
            .iter()
            .find(|(_, interface)| interface.name == address.interface)
            .map(|(&index, _)| index);
        let removed = match index {
            Some(index) => self.host.remove_address(index, address.address).await,
            None => Ok(()),
        };
        match removed.and_then(|()| self.owned.remove(address)) {
            Ok(()) => {
                info!(vip = %address.address, interface = address.interface, "VIP removed");
            }
            Err(error) => warn!(vip = %address.address, "{error:#}"),
        }
    }

    /// A switch that came back has forgotten where the VIP is.
    fn announce_on_interfaces_that_came_up(
        &mut self,
        wanted: &BTreeSet<IpAddr>,
        interfaces: &BTreeMap<u32, Interface>,
        addresses: &[InterfaceAddress],
    ) {
        let mac_if_running = |&index: &u32| {
            let interface = interfaces.get(&index).filter(|i| i.is_running)?;
            Some((index, interface.mac?))
        };
        let running: BTreeMap<u32, [u8; 6]> =
            self.ports.iter().filter_map(mac_if_running).collect();
        for (&index, mac) in &running {
            if self.running.get(&index) == Some(mac) {
                continue;
            }
            for address in addresses {
                if address.interface == index && wanted.contains(&address.ip) {
                    self.to_announce.insert((index, address.ip), ANNOUNCEMENTS);
                }
            }
        }
        self.running = running;
    }

    fn announce(&mut self) {
        let due: Vec<_> = self.to_announce.keys().copied().collect();
        for (index, vip) in due {
            if let Some(&mac) = self.running.get(&index) {
                self.send(index, vip, &frames::announcement(mac, vip));
            }
            if let Some(left) = self.to_announce.get_mut(&(index, vip)) {
                *left -= 1;
            }
        }
        self.to_announce.retain(|_, left| *left > 0);
    }

    /// Asks who has the VIPs, some each second if there are many.
    fn probe(&mut self, wanted: &BTreeSet<IpAddr>) {
        let count = wanted.len().min(PROBES_PER_SECOND);
        let vips: Vec<IpAddr> = wanted
            .iter()
            .cycle()
            .skip(self.next_probe)
            .take(count)
            .copied()
            .collect();
        self.next_probe = (self.next_probe + count) % wanted.len().max(1);
        for (&index, &mac) in &self.running {
            for &vip in &vips {
                self.send(index, vip, &frames::probe(mac, vip));
            }
        }
    }

    fn send(&self, interface: u32, vip: IpAddr, frame: &[u8]) {
        let Some([arp, advertisements]) = self.sockets.get(&interface) else {
            return;
        };
        let socket = if vip.is_ipv4() { arp } else { advertisements };
        // An interface that is down loses frames: announced again when it is up.
        if let Err(error) = socket.frames.send(frame) {
            tracing::debug!(%vip, "cannot send on interface {interface}: {error}");
        }
    }

    fn open_sockets(&mut self, interfaces: &BTreeMap<u32, Interface>) {
        self.sockets
            .retain(|index, _| interfaces.contains_key(index));
        for &index in &self.ports {
            if self.sockets.contains_key(&index) || !interfaces.contains_key(&index) {
                continue;
            }
            let open = |hears| Listener::start(index, hears, self.claims.clone());
            match (open(Hears::Arp), open(Hears::Advertisements)) {
                (Ok(arp), Ok(advertisements)) => {
                    self.sockets.insert(index, [arp, advertisements]);
                }
                (Err(error), _) | (_, Err(error)) => {
                    warn!("cannot listen for ARP and NDP on interface {index}: {error}");
                }
            }
        }
    }

    async fn hear(&mut self, wanted: &BTreeSet<IpAddr>, claim: Claim) {
        if !wanted.contains(&claim.address) {
            return;
        }
        let is_held = lock(&self.seen).held.contains_key(&claim.address);
        if self.options.management == Management::Operator && !is_held {
            // The operator gave it to another director: no theft.
            return;
        }
        let Ok(interfaces) = self.host.interfaces().await else {
            return;
        };
        let ours: BTreeSet<_> = interfaces.values().filter_map(|i| i.mac).collect();
        let name = interfaces
            .get(&claim.interface)
            .map_or_else(|| claim.interface.to_string(), |i| i.name.clone());
        let is_new =
            lock(&self.seen)
                .thieves
                .hear(claim.address, claim.mac, &name, &ours, unix_now());
        if is_new {
            warn!(
                vip = %claim.address,
                mac = text(&claim.mac),
                interface = name,
                "the VIP is claimed by another host: run `lb-agent check --vip {}` there",
                claim.address
            );
        }
    }
}

/// A socket on an interface, and the task that hears what comes in by it. With
/// the one the other ends.
struct Listener {
    frames: Arc<FrameSocket>,
    task: JoinHandle<()>,
}

impl Listener {
    fn start(interface: u32, hears: Hears, claims: mpsc::Sender<Claim>) -> std::io::Result<Self> {
        let frames = Arc::new(FrameSocket::open(interface, hears)?);
        let task = tokio::spawn(listen(interface, Arc::clone(&frames), claims));
        Ok(Self { frames, task })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes on what is claimed on an interface.
async fn listen(interface: u32, socket: Arc<FrameSocket>, claims: mpsc::Sender<Claim>) {
    loop {
        match socket.receive().await {
            Ok(frame) => {
                let Some((address, mac)) = frames::claim(&frame) else {
                    continue;
                };
                let claim = Claim {
                    interface,
                    address,
                    mac,
                };
                if claims.send(claim).await.is_err() {
                    return;
                }
            }
            // ENETDOWN is told once; the socket hears again when it is up.
            Err(error) => tracing::debug!("interface {interface}: {error}"),
        }
    }
}

fn shares_prefix(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((a, size), (b, other_size)) = (bits(a), bits(b));
    size == other_size && (prefix == 0 || (a ^ b).checked_shr(128 - u32::from(prefix)) == Some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        let shares = |a: &str, b: &str, prefix| {
            shares_prefix(a.parse().unwrap(), b.parse().unwrap(), prefix)
        };
        assert!(shares("203.0.113.2", "203.0.113.200", 24));
        assert!(!shares("203.0.113.2", "203.0.113.200", 25));
        assert!(shares("203.0.113.2", "198.51.100.1", 0));
        assert!(shares("2001:db8::1", "2001:db8::2", 64));
        assert!(!shares("2001:db8::1", "2001:db8:1::2", 64));
        assert!(!shares("203.0.113.2", "2001:db8::2", 0));
    }
}
