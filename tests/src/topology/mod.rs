//! The lab that demo, hands-on lab and most suites share: a client, a director
//! and backends that run nginx, on one segment in DR mode, behind a router in
//! TUN mode, behind the director in NAT mode.

mod address;
mod backend;
mod nat;
mod routed;
mod scene;
mod services;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::api::Api;
use crate::nginx::Nginx;
use crate::{Host, Lab, Mac, Process, Segment, paths, try_eventually};

pub use address::{Family, Net};
pub use backend::Backend;
pub use nat::{Nat, Place};
pub use routed::{Routed, Router};
pub use scene::Scene;

/// The interface of every host but the routers; in NAT mode the director may
/// have another.
pub const INTERFACE: &str = "eth0";

/// How long `lb-ctl` may take to be ready. Where processors are emulated the
/// verifier is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// How packets reach the backends, and so where those are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// VS/DR: all on one segment.
    Dr,
    /// VS/TUN: client, director and backends on a segment each, with a router
    /// between them.
    Tun,
    /// VS/NAT: a router between client and director, and backends that need
    /// no agent.
    Nat(Nat),
}

impl Mode {
    /// The name, as the API has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dr => "dr",
            Self::Tun => "tun",
            Self::Nat(_) => "nat",
        }
    }
}

/// A site in DR mode, which is what [`Site::new`] makes.
pub type DrLab = Site;

/// The lab. Fields are dropped in this order: processes before namespaces.
#[derive(Debug)]
pub struct Site {
    /// `lb-ctl up`, once it is started; a suite may take and replace it.
    pub lb_ctl: Option<Process>,
    /// The backends, b1 first.
    pub backends: Vec<Backend>,
    /// 203.0.113.100 and 2001:db8:0:1::100, with routers 198.51.100.100 and
    /// 2001:db8:0:100::100.
    pub client: Host,
    /// 203.0.113.2, 2001:db8:0:1::2.
    pub director: Host,
    /// MAC address of the director's interface.
    pub director_mac: Mac,
    /// The segment of the director, and in DR mode of all.
    pub segment: Segment,
    /// What there is besides in TUN and NAT mode.
    pub routed: Option<Routed>,
    mode: Mode,
    /// The lab itself.
    pub lab: Lab,
}

impl Site {
    /// Client, director and that many backends with nginx (at most 50) on one
    /// segment, in a lab with a unique id. Neither `lb-ctl` nor `lb-agent` has
    /// run yet.
    pub fn new(name: &str, backends: u8) -> anyhow::Result<Self> {
        Self::build(Lab::new(name)?, Mode::Dr, backends)
    }

    /// The same for TUN mode.
    pub fn tun(name: &str, backends: u8) -> anyhow::Result<Self> {
        Self::build(Lab::new(name)?, Mode::Tun, backends)
    }

    /// The same in a lab that exists and is empty.
    pub fn build(lab: Lab, mode: Mode, backends: u8) -> anyhow::Result<Self> {
        let segment = lab.segment(match mode {
            Mode::Dr => "lan",
            Mode::Tun | Mode::Nat(_) => "directors",
        })?;
        let director = lab.host("director")?;
        let client = lab.host("client")?;
        let (director_mac, routed) = if mode == Mode::Dr {
            let director_mac = attach(&director, &segment, 2)?;
            attach(&client, &segment, 100)?;
            (director_mac, None)
        } else {
            let mac = routed::attach(&director, &segment, INTERFACE, Net::Director, 2)?;
            let mut routed = Routed::new(&lab, &segment, mode)?;
            routed.set_default_gateway(&director, Net::Director)?;
            routed.attach(&client, Net::Clients, 100)?;
            if let Mode::Nat(nat) = mode {
                nat.connect(&lab, &director, &segment, &mut routed)?;
            }
            (mac, Some(routed))
        };
        let mut this = Self {
            lb_ctl: None,
            backends: Vec::new(),
            client,
            director,
            director_mac,
            segment,
            routed,
            mode,
            lab,
        };
        for _ in 0..backends {
            this.add_backend()?;
        }
        Ok(this)
    }

    /// How packets reach the backends.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The router of a lab in TUN or NAT mode.
    ///
    /// # Errors
    /// In DR mode.
    pub fn router(&self) -> anyhow::Result<&Router> {
        let routed = self.routed.as_ref();
        Ok(&routed.context("a lab in DR mode has no router")?.router)
    }

    /// Makes another router between director and backends, over which no
    /// route leads yet.
    ///
    /// # Errors
    /// In DR mode, and the second time.
    pub fn add_router(&self) -> anyhow::Result<Router> {
        let routed = self.routed.as_ref();
        let routed = routed.context("a lab in DR mode has no routers")?;
        routed.add_router(&self.lab, &self.segment)
    }

    /// An address of the director.
    pub fn director_address(&self, family: Family) -> IpAddr {
        Net::Director.address(family, 2)
    }

    /// Makes one backend more, with nginx but without VIP, and returns its
    /// index.
    pub fn add_backend(&mut self) -> anyhow::Result<usize> {
        let index = self.backends.len();
        let number = u8::try_from(index)? + 1;
        if number > 50 {
            bail!("the lab's addresses are for 50 backends");
        }
        let host = self.lab.host(&format!("b{number}"))?;
        let address = 20 + number;
        let (net, mac) = match (&self.routed, self.mode) {
            (None, _) => (Net::Director, attach(&host, &self.segment, address)?),
            (Some(routed), Mode::Nat(nat)) => {
                let mac = nat.attach(&host, &self.segment, routed, address)?;
                (nat.net(), mac)
            }
            (Some(routed), _) => {
                let mac = routed.attach(&host, Net::Backends, address)?;
                (Net::Backends, mac)
            }
        };
        let nginx = self.start_nginx(&host)?;
        self.backends.push(Backend {
            nginx: Some(nginx),
            host,
            mac,
            net,
            number,
        });
        Ok(index)
    }

    /// Starts a killed nginx again.
    pub fn restart_nginx(&mut self, index: usize) -> anyhow::Result<()> {
        self.backends[index].nginx = None;
        let nginx = self.start_nginx(&self.backends[index].host)?;
        self.backends[index].nginx = Some(nginx);
        Ok(())
    }

    fn start_nginx(&self, host: &Host) -> anyhow::Result<Nginx> {
        let port = self.server_port(80).to_string();
        Nginx::start(host, self.lab.dir(), &[&port, &format!("[::]:{port}")])
    }

    /// Runs `lb-agent apply` for both VIPs on a backend.
    pub fn agent_apply(&self, index: usize) -> anyhow::Result<String> {
        self.agent(index, "apply", &[])
    }

    /// Runs an `lb-agent` command for both VIPs on a backend and returns its
    /// standard output.
    pub fn agent(&self, index: usize, command: &str, more: &[&str]) -> anyhow::Result<String> {
        let directors = [Family::V4, Family::V6].map(|f| self.director_address(f).to_string());
        self.agent_of(index, command, &directors.join(","), more)
    }

    /// The same; in TUN mode for these directors, addresses or prefixes with
    /// commas between them.
    pub fn agent_of(
        &self,
        index: usize,
        command: &str,
        directors: &str,
        more: &[&str],
    ) -> anyhow::Result<String> {
        let host = &self.backends[index].host;
        let state = Self::agent_state_of(&self.lab, host.name());
        let vips = format!("{},{}", Family::V4.vip(), Family::V6.vip());
        let mut agent = host.command(paths::binary("lb-agent")?);
        agent.args([command, "--vip", &vips, "--interface", INTERFACE, "--state"]);
        agent.arg(state).args(more);
        if self.mode() == Mode::Tun {
            agent.args(["--mode", "tun", "--director", directors, "--bpffs"]);
            agent.arg(self.lab.bpffs().join(format!("agent-{}", host.name())));
        }
        crate::run(&mut agent).with_context(|| format!("on host {}", host.name()))
    }

    /// Starts `lb-ctl up` on the director and waits until it is ready.
    pub fn start_director(&mut self, more: &[&str]) -> anyhow::Result<()> {
        let mut up = self.director.command(paths::binary("lb-ctl")?);
        up.args(["up", "--listen", &self.listen()]);
        for interface in self.interfaces() {
            up.args(["--interface", interface]);
        }
        up.arg("--state").arg(Self::director_state_of(&self.lab));
        up.arg("--bpffs")
            .arg(Self::director_bpffs_of(&self.lab))
            .args(more);
        let process = self.director.spawn(up, "lb-ctl")?;
        let api = self.api();
        let ready = try_eventually("lb-ctl to be ready", PATIENCE, || {
            if !process.is_running() {
                return Ok(Err("it has ended".to_owned()));
            }
            match api.get("/readyz").and_then(crate::api::Reply::ok) {
                Ok(_) => Ok(Ok(())),
                Err(e) => Err(format!("{e:#}")),
            }
        });
        let ready = ready.and_then(|result| result.map_err(anyhow::Error::msg));
        ready.with_context(|| format!("lb-ctl up printed:\n{}", process.log()))?;
        self.lb_ctl = Some(process);
        self.ensure_pool()
    }

    /// Path of the API's socket in such a lab.
    pub fn socket_of(lab: &Lab) -> PathBuf {
        lab.dir().join("director.sock")
    }

    /// Where `lb-ctl` pins in such a lab.
    pub fn director_bpffs_of(lab: &Lab) -> PathBuf {
        lab.bpffs().join("lb")
    }

    /// Where this lab's `lb-ctl` pins.
    pub fn director_bpffs(&self) -> PathBuf {
        Self::director_bpffs_of(&self.lab)
    }

    /// Where `lb-ctl` keeps the desired state in such a lab.
    pub fn director_state_of(lab: &Lab) -> PathBuf {
        lab.dir().join("director-state")
    }

    /// Where a backend's `lb-agent` remembers what it found.
    pub fn agent_state_of(lab: &Lab, backend: &str) -> PathBuf {
        lab.dir().join(format!("{backend}-agent"))
    }

    /// A client of the director's API.
    pub fn api(&self) -> Api {
        Api::new(Self::socket_of(&self.lab))
    }

    /// The director's `--listen`, for other `lb-ctl` commands too.
    pub fn listen(&self) -> String {
        format!("unix:{}", Self::socket_of(&self.lab).display())
    }

    /// Who is believed to have the VIP, by the client or by the router before
    /// it: the name of the host whose MAC address stands in the neighbour
    /// table.
    pub fn vip_owner(&self, family: Family) -> anyhow::Result<String> {
        let (seeker, ifname) = self.vip_seeker();
        let Some(mac) = seeker.neighbour(family.vip(), ifname)? else {
            return Ok("nobody".to_owned());
        };
        if mac == self.director_mac {
            return Ok(self.director.name().to_owned());
        }
        let backend = self.backends.iter().find(|backend| backend.mac == mac);
        Ok(backend.map_or_else(|| mac.to_string(), |backend| backend.name().to_owned()))
    }

    /// Who asks on the director's segment for the VIP, and by which interface:
    /// the client, or the router before it.
    pub fn vip_seeker(&self) -> (&Host, &'static str) {
        match &self.routed {
            None => (&self.client, INTERFACE),
            Some(routed) => (&routed.router.host, Router::TO_DIRECTOR),
        }
    }

    /// Lets the lab and all that runs in it outlive this process;
    /// [`Lab::remove`] ends it.
    pub fn persist(mut self) -> anyhow::Result<()> {
        if let Some(process) = self.lb_ctl.take() {
            process.leave();
        }
        for backend in self.backends {
            if let Some(nginx) = backend.nginx {
                nginx.leave();
            }
        }
        self.lab.persist()
    }
}

fn attach(host: &Host, segment: &Segment, number: u8) -> anyhow::Result<Mac> {
    let v4 = Net::Director.with_length(Family::V4, number);
    let v6 = Net::Director.with_length(Family::V6, number);
    host.attach(segment, INTERFACE, &[&v4, &v6])
}
