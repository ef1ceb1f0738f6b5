//! The ports of full NAT's pool: enough for tens of thousands of flows on one
//! address, no two of which are alike to a backend; and what happens when
//! there are not enough.
//!
//! Needs root, and `lb-ctl` built: `cargo xtask build-ebpf && cargo build -p
//! lb-ctl -p lb-agent`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use integration::packets::{PacketSocket, Udp};
use integration::talk::Protocol;
use integration::topology::{Family, INTERFACE, Nat, Net, Router, Site};
use integration::{Host, Mac};
use serde_json::{Value, json};

const PORT: u16 = 7000;
/// Frames that are under way at once.
const BATCH: usize = 200;
/// How long a batch may take, and how often what was lost is sent again.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 5;
const LONG: Duration = Duration::from_secs(30);

/// Servers that answer with what they were asked and note who asked.
struct Mirror {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeMap<SocketAddr, BTreeSet<u16>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Mirror {
    fn start(host: &Host, address: SocketAddr) -> anyhow::Result<Self> {
        let socket = host.in_namespace(|| UdpSocket::bind(address))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::default();
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut question = [0; 2];
                let Ok((2, from)) = socket.recv_from(&mut question) else {
                    continue;
                };
                let noted: &Mutex<BTreeMap<SocketAddr, BTreeSet<u16>>> = &noted;
                let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                let port = u16::from_be_bytes(question);
                noted.entry(from).or_default().insert(port);
                // Whoever does not hear it asks again.
                let _ = socket.send_to(&question, from);
            }
        });
        Ok(Self {
            stop,
            seen,
            thread: Some(thread),
        })
    }

    /// Which ports of the client were behind each address and port that asked.
    fn seen(&self) -> BTreeMap<SocketAddr, BTreeSet<u16>> {
        let seen = self.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("a server has panicked");
        }
    }
}

/// A client with as many ports as it likes, whose frames are made by hand.
struct Crowd {
    socket: PacketSocket,
    mac: Mac,
    gateway: Mac,
    ip: IpAddr,
    vip: IpAddr,
}

impl Crowd {
    /// Under an address that the client's own stack does not have: it would
    /// refuse what it gets for ports that it does not know.
    fn new(site: &Site, family: Family) -> anyhow::Result<Self> {
        let router = &site.router()?.host;
        let ip = Net::Clients.address(family, 101);
        let mac = site.client.mac(INTERFACE)?;
        let entry = format!(
            "neighbour replace {ip} lladdr {mac} dev {} nud permanent",
            Router::TO_CLIENTS
        );
        router.run("ip", entry.split(' '))?;
        Ok(Self {
            socket: PacketSocket::open(&site.client, INTERFACE)?,
            mac,
            gateway: router.mac(Router::TO_CLIENTS)?,
            ip,
            vip: family.vip(),
        })
    }

    /// Asks once from each of these ports; the question is the port. Returns
    /// the ports that had their answer within `patience`.
    ///
    /// # Errors
    /// When an answer went to another port.
    fn ask(&self, ports: &BTreeSet<u16>, patience: Duration) -> anyhow::Result<BTreeSet<u16>> {
        for &port in ports {
            let question = Udp {
                source: self.ip,
                destination: self.vip,
                source_port: port,
                destination_port: PORT,
                payload: port.to_be_bytes().to_vec(),
            };
            let frame = question.to_checked_frame(self.mac, self.gateway);
            self.socket.send(&frame)?;
        }
        let mut answered = BTreeSet::new();
        let mut stray = None;
        self.socket.receive_where(patience, |frame| {
            let udp = Udp::parse(frame)?;
            if udp.destination != self.ip {
                return None;
            }
            let port = udp.destination_port;
            let is_right = (udp.source, udp.source_port) == (self.vip, PORT)
                && udp.payload == port.to_be_bytes();
            if !is_right {
                stray = Some(udp);
                return Some(());
            }
            answered.insert(port);
            ports.is_subset(&answered).then_some(())
        })?;
        match stray {
            Some(stray) => bail!("a wrong answer: {stray:?}"),
            None => Ok(answered),
        }
    }

    /// Asks from each of these ports until each has had its answer.
    fn ask_all(&self, ports: impl IntoIterator<Item = u16>) -> anyhow::Result<()> {
        let ports: Vec<u16> = ports.into_iter().collect();
        for batch in ports.chunks(BATCH) {
            let mut missing: BTreeSet<u16> = batch.iter().copied().collect();
            for _ in 0..ATTEMPTS {
                for port in self.ask(&missing, PATIENCE)? {
                    missing.remove(&port);
                }
                if missing.is_empty() {
                    break;
                }
            }
            ensure!(missing.is_empty(), "no answer to the ports {missing:?}");
        }
        Ok(())
    }
}

/// A director with full NAT and a UDP service.
struct Scene {
    mirrors: Vec<Mirror>,
    crowd: Crowd,
    site: Site,
    family: Family,
}

impl Scene {
    fn new(name: &str, family: Family, backends: u8, settings: &Value) -> anyhow::Result<Self> {
        let mut site = Site::nat(name, Nat::FULL, backends)?;
        site.start_director(&[])?;
        let mut config = site.api().get("/v1/config")?.ok()?.json()?;
        for (key, value) in settings.as_object().into_iter().flatten() {
            config["settings"][key] = value.clone();
        }
        site.api().put("/v1/config", &config)?.ok()?;
        let mut mirrors = Vec::new();
        for backend in &site.backends {
            let rip = (backend.address(family), site.server_port(PORT)).into();
            mirrors.push(Mirror::start(&backend.host, rip)?);
        }
        let all: Vec<usize> = (0..mirrors.len()).collect();
        site.put_service(&site.plain_service("ask", family, Protocol::Udp, PORT, &all))?;
        Ok(Self {
            mirrors,
            crowd: Crowd::new(&site, family)?,
            site,
            family,
        })
    }

    /// Address and port under which each of the client's ports was seen.
    ///
    /// # Errors
    /// When two had the same at one backend, or one has had two.
    fn translations(&self) -> anyhow::Result<BTreeMap<u16, SocketAddr>> {
        let mut found = BTreeMap::new();
        for (from, ports) in self.mirrors.iter().flat_map(Mirror::seen) {
            ensure!(ports.len() == 1, "{from} stands for the ports {ports:?}");
            for port in ports {
                let other = found.insert(port, from);
                ensure!(other.is_none(), "port {port}: {from} and {other:?}");
            }
        }
        Ok(found)
    }

    /// Waits until the status says that so many ports of so many are taken.
    fn wait_used(&self, ports: u64, used: u64) -> anyhow::Result<()> {
        let version = match self.family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        let is_so = |status: &Value| {
            let mut pools = status["nat"]["pools"].as_array().into_iter().flatten();
            pools.any(|pool| {
                pool["version"] == version && pool["ports"] == ports && pool["used"] == used
            })
        };
        let what = format!("{used} of {ports} ports to be taken");
        // lb-ctl spends a tenth of its time at most on looking at flows: of
        // tens of thousands, emulated, it tells once a minute.
        self.site.wait_status(&what, 10 * LONG, is_so).map(drop)
    }
}

/// One address is enough for tens of thousands of flows at a time.
fn many_flows(name: &str, family: Family) -> anyhow::Result<()> {
    const FLOWS: u16 = 60_000;
    const FIRST: u16 = 2_000;
    let scene = Scene::new(name, family, 2, &json!({}))?;
    let ports = FIRST..FIRST + FLOWS;
    let start = Instant::now();
    scene.crowd.ask_all(ports.clone())?;
    let translations = scene.translations()?;
    ensure!(translations.len() == usize::from(FLOWS));
    let pool = Nat::FULL.pool(family);
    let stranger = translations.values().find(|from| from.ip() != pool);
    ensure!(stranger.is_none(), "{stranger:?} is not of the pool");
    // Not only no two alike at one backend: the pool has one of each.
    let distinct: BTreeSet<&SocketAddr> = translations.values().collect();
    ensure!(distinct.len() == translations.len());
    eprintln!("{FLOWS} flows in {:?}", start.elapsed());
    scene.wait_used(64_512, u64::from(FLOWS))?;
    // Every one of them is still there, and what it was.
    scene.crowd.ask_all(ports.step_by(7))?;
    ensure!(scene.translations()? == translations, "flows have moved");
    ensure!(scene.site.dropped("pool_exhausted")? == 0);
    scene.site.ensure_checksums_right()
}

#[test]
fn many_flows_v4() -> anyhow::Result<()> {
    many_flows("many4", Family::V4)
}

#[test]
fn many_flows_v6() -> anyhow::Result<()> {
    many_flows("many6", Family::V6)
}

/// With no port left, new flows are refused, old ones go on; a port is free
/// again when its flow has been idle for its timeout, and not before.
fn exhausted(name: &str, family: Family) -> anyhow::Result<()> {
    const PORTS: u16 = 100;
    const TIMEOUT: u32 = 4;
    let settings = json!({
        "nat_ports": {"first": 50_000, "last": 50_000 + PORTS - 1},
        "nat_timeouts": {"udp": TIMEOUT},
    });
    let scene = Scene::new(name, family, 1, &settings)?;
    let kept: BTreeSet<u16> = (2_000..2_000 + PORTS / 2).collect();
    let left: BTreeSet<u16> = (3_000..3_000 + PORTS / 2).collect();
    scene.crowd.ask_all(kept.clone())?;
    let last_of_left = Instant::now();
    scene.crowd.ask_all(left.clone())?;
    let before = scene.translations()?;
    ensure!(before.len() == usize::from(PORTS));

    let new: BTreeSet<u16> = (4_000..4_010).collect();
    let too_early = scene.crowd.ask(&new, Duration::from_millis(300))?;
    ensure!(too_early.is_empty(), "{too_early:?} had ports");
    ensure!(scene.site.dropped("pool_exhausted")? >= new.len() as u64);
    scene.wait_used(u64::from(PORTS), u64::from(PORTS))?;
    let warnings = scene.site.status()?["warnings"].to_string();
    ensure!(warnings.contains("nat_pool"), "no warning: {warnings}");

    // Half of the flows go on, and the others' ports become free.
    let deadline = last_of_left + LONG;
    loop {
        scene.crowd.ask_all(kept.clone())?;
        let mut asked = Instant::now();
        let served = scene.crowd.ask(&new, Duration::from_millis(300))?;
        if !served.is_empty() {
            // The clock of the packet path counts whole seconds.
            asked += Duration::from_secs(1);
            let idle = asked + Duration::from_millis(300) - last_of_left;
            ensure!(
                idle >= Duration::from_secs(TIMEOUT.into()),
                "a port was free after {idle:?}"
            );
            break;
        }
        ensure!(Instant::now() < deadline, "no port becomes free");
    }
    scene.crowd.ask_all(new.clone())?;
    let mut of_new = 0;
    for (from, ports) in scene.mirrors.iter().flat_map(Mirror::seen) {
        // A flow that goes on shares its port with nobody.
        ensure!(
            ports.len() == 1 || ports.is_disjoint(&kept),
            "{from} stands for {ports:?}"
        );
        of_new += ports.intersection(&new).count();
    }
    ensure!(of_new == new.len(), "{of_new} of {} new flows", new.len());
    for port in &kept {
        let seen: Vec<SocketAddr> = scene
            .mirrors
            .iter()
            .flat_map(Mirror::seen)
            .filter(|(_, ports)| ports.contains(port))
            .map(|(from, _)| from)
            .collect();
        ensure!(seen == [before[port]], "{port}: {seen:?}");
    }
    scene.site.ensure_checksums_right()
}

#[test]
fn an_exhausted_pool_refuses_new_flows_v4() -> anyhow::Result<()> {
    exhausted("exhaust4", Family::V4)
}

#[test]
fn an_exhausted_pool_refuses_new_flows_v6() -> anyhow::Result<()> {
    exhausted("exhaust6", Family::V6)
}
