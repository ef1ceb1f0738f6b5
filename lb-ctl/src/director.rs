//! The engine of a director: gathers what is desired and what is known of
//! health and next hops, lets `plan` decide, and writes to the dataplane.

mod nat;
mod report;
mod scan;
mod surroundings;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lb_common::backend::{Backend, mode, state};
use lb_common::{limits, ring};
use siphasher::sip::SipHasher24;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Notify, mpsc};
use tokio::task::block_in_place;
use tracing::{debug, info, warn};

use crate::dataplane::{Dataplane, ServiceKey};
use crate::health::state::Initial;
use crate::health::{Manager, Target};
use crate::maglev;
use crate::model::status::XdpMode;
use crate::model::{Config, Kind, Mode, Problem, Protocol, Service, Settings};
use crate::neighbour::{Host, Resolution, Resolver, Snapshot, vlan};
use crate::offload::Offload;
use crate::plan::{
    Condition, Desired, DesiredBackend, DesiredService, Full, Nat, Plan, State, plan,
};
use crate::reconcile::{Engine, EngineStatus, HostFacts, OnLink};
use crate::router::Router;
use crate::vip::{Keeper, Management, Options as VipOptions};
use nat::{Collector, Wish};
use scan::Scanner;
use surroundings::{local_macs, reach, routers, taggers};

/// How long a change may wait for the neighbours of new backends, and for new
/// VIPs to be on the interface. Either takes a millisecond or two.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long a change of the pool may wait until its ports are there, 64,000 for
/// each address.
const STOCKING: Duration = Duration::from_secs(2);

/// How often slots that are not settled are looked at.
const TICK: Duration = Duration::from_secs(1);

/// A director.
pub struct Director<D> {
    dataplane: D,
    state: State,
    desired: Desired,
    resolver: Resolver,
    keeper: Keeper,
    health: Manager,
    scanner: Scanner,
    collector: Collector,
    router: Router,
    offload: Offload,
    /// Indices of the interfaces on which the program runs.
    attached: Vec<u32>,
    changed: Arc<Notify>,
    /// What the last plan had to leave for later.
    deferred: Option<Full>,
    /// What kept the last attempt from succeeding.
    trouble: Option<String>,
}

impl<D: Dataplane> Director<D> {
    /// A director over a loaded dataplane, with whatever the maps hold.
    ///
    /// # Errors
    /// If the maps or the host's tables cannot be read.
    pub async fn start(dataplane: D, management: Management, state: PathBuf) -> Result<Self> {
        let changed = Arc::new(Notify::new());
        let resolver = Resolver::start(Host::open()?, Arc::clone(&changed)).await?;
        let attached: Vec<u32> = dataplane.attachments().iter().map(|a| a.index).collect();
        let options = VipOptions {
            interfaces: attached.clone(),
            management,
            state: state.clone(),
        };
        let keeper = Keeper::start(Host::open()?, options).await?;
        let router = Router::new(state.clone());
        let offload = Offload::new(state.clone());
        let (events, mut transitions) = mpsc::unbounded_channel();
        let wake = Arc::clone(&changed);
        tokio::spawn(async move {
            while transitions.recv().await.is_some() {
                wake.notify_one();
            }
        });
        let dump = dataplane.dump().context("reading the maps")?;
        if !dump.services.is_empty() {
            info!(services = dump.services.len(), "adopted the maps of before");
        }
        let state = State::from_dump(dump, dataplane.capacity(), dataplane.now());
        Ok(Self {
            collector: Collector::start(dataplane.nat(), dataplane.clock()),
            router,
            offload,
            scanner: Scanner::new(dataplane.flows(), Arc::clone(&changed)),
            dataplane,
            state,
            desired: Desired::default(),
            resolver,
            keeper,
            health: Manager::new(events),
            attached,
            changed,
            deferred: None,
            trouble: None,
        })
    }

    /// Makes the resolver follow all backends, and waits a moment for those
    /// that it did not follow before.
    fn resolve(&self, config: &Config) {
        let leaving = self.leaving(config);
        let wanted: BTreeSet<IpAddr> = config
            .services
            .iter()
            .flat_map(|s| &s.backends)
            .map(|b| b.address.ip)
            .chain(leaving.into_values().flatten().map(|b| b.address))
            .collect();
        let snapshot = self.resolver.snapshot();
        let is_new = |address: &IpAddr| !snapshot.resolutions.contains_key(address);
        let new: BTreeSet<IpAddr> = wanted.iter().copied().filter(is_new).collect();
        self.resolver.want(wanted);
        if !new.is_empty() {
            block_in_place(|| Runtime::current().block_on(self.resolver.wait_for(&new, PATIENCE)));
        }
    }

    /// Backends that have entries but are not desired any more.
    fn leaving(&self, config: &Config) -> BTreeMap<ServiceKey, Vec<DesiredBackend>> {
        let backend = |entry: &Backend| DesiredBackend {
            address: entry.address.into(),
            port: u16::from_be(entry.port),
            mode: entry.mode,
            weight: 0,
            tunnel_source: None,
            removed: true,
            condition: Condition::Unresolved,
        };
        leaving_entries(&self.state, config)
            .into_iter()
            .map(|(key, entries)| (key, entries.into_iter().map(backend).collect()))
            .collect()
    }

    fn desire(&self, config: &Config, snapshot: &Snapshot) -> Desired {
        let mut leaving = self.leaving(config);
        let hash_key = SipHasher24::new_with_keys(0, 0).hash(config.settings.hash_key.as_bytes());
        let mut desired = Desired::default();
        for service in &config.services {
            let key = key(service);
            let mut backends: Vec<DesiredBackend> = service
                .backends
                .iter()
                .map(|backend| DesiredBackend {
                    address: backend.address.ip,
                    port: backend.address.port.unwrap_or(0),
                    mode: mode_number(service.mode, backend.address.ip),
                    weight: backend.weight,
                    tunnel_source: None,
                    removed: false,
                    condition: if self.is_down(service, backend.address) {
                        Condition::Down
                    } else {
                        self.condition(service, backend.address.ip, snapshot)
                    },
                })
                .collect();
            for mut backend in leaving.remove(&key).unwrap_or_default() {
                backend.condition = self.condition(service, backend.address, snapshot);
                backends.push(backend);
            }
            if service.mode == Mode::Tun {
                for backend in &mut backends {
                    backend.tunnel_source = tunnel_source(&config.settings, backend);
                }
            }
            let idle_timeout = match service.protocol {
                Protocol::Tcp | Protocol::Sctp => config.settings.tcp_idle_timeout,
                Protocol::Udp => config.settings.udp_idle_timeout,
            };
            let service = DesiredService {
                hash_key,
                idle_timeout,
                nat: if service.full_nat {
                    Nat::Full
                } else {
                    Nat::Gateway
                },
                ping: service.ping.number(),
                backends,
            };
            desired.services.insert(key, service);
        }
        desired.other_protocols = config.settings.other_protocols.number();
        let ports = vlan::ports(&snapshot.interfaces, &self.attached);
        desired.local_macs = local_macs(&ports, snapshot);
        let vlans = vlan::all(&snapshot.interfaces);
        let wire = |index| vlans.get(&index).map_or(index, |v| v.interface);
        desired.interfaces = self.egress(&desired).into_iter().map(wire).collect();
        if uses_nat(config) {
            // Replies leave by any of them.
            desired.interfaces.extend(&self.attached);
            desired.pool = config.settings.nat_pool.iter().copied().collect();
            desired.local_addresses = snapshot.addresses.iter().map(|a| a.ip).collect();
            desired.routers = routers(&ports, &desired, snapshot);
        }
        let is_used = |wire| self.attached.contains(wire) || desired.interfaces.contains(wire);
        desired.vlans = vlans
            .iter()
            .filter(|(_, vlan)| is_used(&vlan.interface))
            .map(|(&device, &vlan)| (device, vlan))
            .collect();
        let interfaces = self
            .attached
            .iter()
            .filter_map(|i| snapshot.interfaces.get(i));
        let mut modes = interfaces.filter_map(|interface| interface.xdp).peekable();
        desired.generic = modes.peek().is_some() && modes.all(|mode| mode == XdpMode::Generic);
        desired
    }

    /// Interfaces by which packets leave: also those to backends that cannot be
    /// reached at the moment, whose flows are still sent where they were last.
    fn egress(&self, desired: &Desired) -> BTreeSet<u32> {
        let mut entries = self.state.all_entries();
        let mut egress = BTreeSet::new();
        for (key, service) in &desired.services {
            let entries = entries.remove(key).unwrap_or_default();
            let kept: HashMap<(IpAddr, u16), u32> = entries
                .into_iter()
                .filter(|(_, entry)| entry.state == state::ALIVE)
                .map(|(_, e)| ((e.address.into(), u16::from_be(e.port)), e.interface))
                .collect();
            egress.extend(service.backends.iter().filter_map(|b| match b.condition {
                Condition::Up(next_hop) => Some(next_hop.interface),
                Condition::Unresolved | Condition::Pending => {
                    kept.get(&(b.address, b.port)).copied()
                }
                Condition::Down => None,
            }));
        }
        egress
    }

    fn condition(&self, service: &Service, address: IpAddr, snapshot: &Snapshot) -> Condition {
        let Some(resolution) = snapshot.resolutions.get(&address) else {
            return Condition::Pending;
        };
        let is_silent = matches!(resolution, Resolution::Silent(_));
        match reach(service.mode, address, snapshot, &self.attached) {
            Ok(Resolution::Known(next_hop, _)) => Condition::Up(*next_hop),
            // TCP connections may outlast the silence, and new ones begin with
            // a SYN. A UDP flow, new or not, would go on asking nobody.
            _ if is_silent && service.protocol == Protocol::Udp => Condition::Down,
            _ => Condition::Unresolved,
        }
    }

    fn is_down(&self, service: &Service, backend: crate::model::BackendAddress) -> bool {
        let health = self.health.status(&(service.name.clone(), backend));
        health.is_some_and(|health| !health.up)
    }

    /// Probes those that are desired. Who was alive in the maps stays so until
    /// probes say otherwise.
    fn watch_health(&mut self, config: &Config) {
        let services: BTreeMap<_, _> = config.services.iter().map(|s| (&s.name, key(s))).collect();
        let known: HashMap<(ServiceKey, IpAddr, u16), bool> = self
            .state
            .all_entries()
            .into_iter()
            .flat_map(|(key, entries)| entries.into_iter().map(move |(_, entry)| (key, entry)))
            .map(|(key, entry)| {
                let port = u16::from_be(entry.port);
                (
                    (key, entry.address.into(), port),
                    entry.state == state::ALIVE,
                )
            })
            .collect();
        let initial = |target: &Target| {
            let port = target.backend.port.unwrap_or(0);
            let alive = services
                .get(&target.service)
                .and_then(|key| known.get(&(*key, target.backend.ip, port)))
                .copied();
            match alive {
                Some(true) => Initial::Up,
                Some(false) => Initial::Down,
                None => Initial::Unproven,
            }
        };
        self.health.set(Target::all(config), initial);
    }

    /// Sets on the host what the packet path needs of it.
    fn prepare(&mut self, uses_nat: bool) -> Result<()> {
        let snapshot = self.resolver.snapshot();
        let interfaces = &snapshot.interfaces;
        self.offload.want(taggers(interfaces, &self.attached));
        let named = |&index: &u32| Some((index, interfaces.get(&index)?.name.clone()));
        let ports = vlan::ports(interfaces, &self.attached);
        self.router
            .set_interfaces(ports.iter().filter_map(named).collect());
        self.router.want(uses_nat)
    }

    fn try_apply(&mut self, config: &Config) -> Result<()> {
        let snapshot = self.resolver.snapshot();
        self.desired = self.desire(config, &snapshot);
        let now = self.dataplane.now();
        let scan = self.scanner.take();
        let Plan { ops, deferred } = plan(&mut self.state, &self.desired, scan.as_ref(), now)?;
        for op in &ops {
            self.dataplane
                .apply(op)
                .with_context(|| format!("writing {op:?}"))?;
        }
        if !ops.is_empty() {
            debug!(writes = ops.len(), "maps brought up to date");
        }
        if let Some(why) = &deferred
            && self.deferred != deferred
        {
            warn!("the maps are not what they should be: {why}");
        }
        self.deferred = deferred;
        Ok(())
    }
}

impl<D: Dataplane> HostFacts for Director<D> {
    fn on_link(&self, address: IpAddr) -> OnLink {
        let host = self.resolver.host();
        let route = block_in_place(|| Runtime::current().block_on(host.route(address)));
        match route {
            Ok(Some(route)) if route.gateway.is_none() && !route.is_local => {
                let snapshot = self.resolver.snapshot();
                let interface = snapshot.interfaces.get(&route.interface);
                OnLink::Yes {
                    interface: interface.map_or_else(String::new, |i| i.name.clone()),
                }
            }
            Ok(_) => OnLink::No,
            Err(error) => {
                warn!("{error:#}");
                OnLink::Unknown
            }
        }
    }

    fn local(&self, address: IpAddr) -> bool {
        let host = self.resolver.host();
        let route = block_in_place(|| Runtime::current().block_on(host.route(address)));
        matches!(route, Ok(Some(route)) if route.is_local)
    }
}

impl<D: Dataplane> Engine for Director<D> {
    fn check(&self, config: &Config) -> Result<(), Problem> {
        let capacity = self.dataplane.capacity();
        let full = |detail: String| Err(Problem::new(Kind::Full, detail).at("services"));
        let backends: usize = config.services.iter().map(|s| s.backends.len()).sum();
        let room = capacity.backends as usize - 1;
        if backends > room {
            return full(format!(
                "{backends} backends are more than the {room} that lb-ctl was started for: see --max-backends"
            ));
        }
        let leaving = leaving_entries(&self.state, config);
        let entries = self.state.all_entries();
        let kept: usize = leaving
            .iter()
            .map(|(key, leaving)| entries.get(key).map_or(0, Vec::len) - leaving.len())
            .sum();
        // A dead one gives its entry back at once.
        let leaving = leaving
            .into_values()
            .flatten()
            .filter(|entry| entry.state == state::ALIVE)
            .count();
        // Not if no entry is needed: weights can always be changed.
        if backends > kept && backends + leaving > room {
            return full(format!(
                "{backends} backends, and {leaving} that are leaving but still have flows, are more \
                 than the {room} that lb-ctl was started for: try again when those are gone (see \
                 `lb-ctl status`), or see --max-backends"
            ));
        }
        let blocks: u64 = config
            .services
            .iter()
            .map(|s| maglev::ring_size(s.backends.iter().map(|b| b.weight)))
            .map(|slots| u64::from(ring::blocks(slots)))
            .sum();
        if blocks > u64::from(capacity.ring_blocks) {
            return full(format!(
                "the rings would take {blocks} blocks, and there are {}: weights that differ less need smaller rings; or see --max-backends",
                capacity.ring_blocks
            ));
        }
        for is_v4 in [true, false] {
            let services = config.services.iter().filter(|s| s.vip.is_ipv4() == is_v4);
            if services.count() > limits::MAX_SERVICES as usize {
                return full(format!(
                    "there can be {} services of one IP version",
                    limits::MAX_SERVICES
                ));
            }
        }
        Ok(())
    }

    fn apply(&mut self, config: &Config) -> Result<()> {
        self.watch_health(config);
        self.resolve(config);
        // Before packets are translated.
        let surroundings = self.prepare(uses_nat(config));
        let applied = self.try_apply(config).and(surroundings);
        let vips = config.services.iter().map(|s| s.vip);
        let pool = config.settings.nat_pool.iter().copied();
        self.keeper.want(vips.chain(pool).collect());
        self.collector.want(Wish {
            is_used: uses_nat(config),
            timeouts: config.settings.nat_timeouts.into(),
            pool: self.state.pool().clone(),
            ports: config.settings.nat_ports.first..=config.settings.nat_ports.last,
        });
        // So that who asks for the VIP after the answer is answered.
        block_in_place(|| {
            Runtime::current().block_on(async {
                self.keeper.wait(PATIENCE).await;
                self.collector.wait(STOCKING).await;
            });
        });
        self.trouble = match &applied {
            Ok(()) => self.deferred.as_ref().map(ToString::to_string),
            Err(error) => Some(format!("{error:#}")),
        };
        if applied.is_err() {
            // What is in the maps is no longer known.
            let dump = self.dataplane.dump().context("reading the maps again")?;
            self.state = State::from_dump(dump, self.dataplane.capacity(), self.dataplane.now());
        } else if self.state.needs_scan(&self.desired) {
            self.scanner
                .start(&self.state, self.dataplane.now(), config);
        }
        applied
    }

    fn status(&mut self, config: &Config) -> EngineStatus {
        report::status(self, config)
    }

    fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    fn next_wakeup(&self) -> Option<Duration> {
        let has_work = self.trouble.is_some() || self.state.is_in_transition(&self.desired);
        has_work.then_some(TICK)
    }
}

/// Entries of desired services that are of no desired backend.
fn leaving_entries<'a>(
    state: &'a State,
    config: &Config,
) -> BTreeMap<ServiceKey, Vec<&'a Backend>> {
    let mut entries = state.all_entries();
    let mut leaving = BTreeMap::new();
    for service in &config.services {
        let key = key(service);
        let desired: HashSet<(IpAddr, u16)> = service
            .backends
            .iter()
            .map(|b| (b.address.ip, b.address.port.unwrap_or(0)))
            .collect();
        let is_leaving =
            |entry: &&Backend| !desired.contains(&(entry.address.into(), u16::from_be(entry.port)));
        let of_service = entries.remove(&key).unwrap_or_default();
        let of_service = of_service.into_iter().map(|(_, entry)| entry);
        leaving.insert(key, of_service.filter(is_leaving).collect());
    }
    leaving
}

/// Where a service is in the maps.
fn key(service: &Service) -> ServiceKey {
    ServiceKey {
        vip: service.vip,
        port: service.port,
        protocol: service.protocol.number(),
    }
}

const fn mode_number(mode: Mode, backend: IpAddr) -> u8 {
    match mode {
        Mode::Dr => mode::DR,
        Mode::Tun if backend.is_ipv4() => mode::TUN_V4,
        Mode::Tun => mode::TUN_V6,
        Mode::Nat => mode::NAT,
    }
}

fn uses_nat(config: &Config) -> bool {
    config.services.iter().any(|s| s.mode == Mode::Nat)
}

/// The outer source address for a backend: from the configured prefix, or the
/// one that the kernel would send from. `None` keeps that of the entry.
fn tunnel_source(settings: &Settings, backend: &DesiredBackend) -> Option<(IpAddr, u8)> {
    /// As many bits as the packet path varies.
    const MAX_SPREAD: u8 = 16;
    let is_v4 = backend.address.is_ipv4();
    let prefix = settings
        .tunnel_sources
        .iter()
        .find(|p| p.addr().is_ipv4() == is_v4);
    if let Some(prefix) = prefix {
        let host_bits = prefix.max_prefix_len() - prefix.prefix_len();
        return Some((prefix.network(), host_bits.min(MAX_SPREAD)));
    }
    match backend.condition {
        Condition::Up(next_hop) => next_hop.source.map(|source| (source, 0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
