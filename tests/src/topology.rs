//! The lab that demo, hands-on lab and most suites share: one segment with a
//! client, a director and backends that run nginx, in DR mode.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::api::Api;
use crate::nginx::Nginx;
use crate::{Host, Lab, Mac, Process, Segment, paths, try_eventually};

/// The interface of every host.
pub const INTERFACE: &str = "eth0";

/// Which of a host's two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4: 203.0.113.0/24.
    V4,
    /// IPv6: 2001:db8:0:1::/64.
    V6,
}

impl Family {
    /// The VIP: 203.0.113.10 or 2001:db8:0:1::10.
    pub fn vip(self) -> IpAddr {
        self.address(10)
    }

    /// The VIP as it stands in a URL.
    pub fn vip_in_url(self) -> String {
        match self.vip() {
            IpAddr::V4(vip) => vip.to_string(),
            IpAddr::V6(vip) => format!("[{vip}]"),
        }
    }

    /// The address that ends in `number`; in IPv6 its hexadecimal digits read
    /// the same.
    fn address(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(203, 0, 113, number).into(),
            Self::V6 => {
                let n = u16::from(number);
                let digits = ((n / 100) << 8) | ((n / 10 % 10) << 4) | (n % 10);
                Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, digits).into()
            }
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One backend of the lab: a host with nginx on port 80 of all its addresses.
#[derive(Debug)]
pub struct Backend {
    /// Taken out when it is killed.
    pub nginx: Option<Nginx>,
    /// The host, named b1, b2, …
    pub host: Host,
    /// MAC address of its interface.
    pub mac: Mac,
    number: u8,
}

impl Backend {
    /// b1, b2, …: what its nginx answers with.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// The RIP: b1 has 203.0.113.21 and 2001:db8:0:1::21, and so on.
    pub fn address(&self, family: Family) -> IpAddr {
        family.address(20 + self.number)
    }
}

/// The lab. Fields are dropped in this order: processes before namespaces.
#[derive(Debug)]
pub struct DrLab {
    /// `lb-ctl up`, once it is started; a suite may take and replace it.
    pub lb_ctl: Option<Process>,
    /// The backends, b1 first.
    pub backends: Vec<Backend>,
    /// 203.0.113.100, 2001:db8:0:1::100.
    pub client: Host,
    /// 203.0.113.2, 2001:db8:0:1::2.
    pub director: Host,
    /// MAC address of the director's interface.
    pub director_mac: Mac,
    /// The segment that all are on.
    pub segment: Segment,
    /// The lab itself.
    pub lab: Lab,
}

impl DrLab {
    /// Client, director and that many backends with nginx (at most 50), in a
    /// lab with a unique id. Neither `lb-ctl` nor `lb-agent` has run yet.
    pub fn new(name: &str, backends: u8) -> anyhow::Result<Self> {
        Self::build(Lab::new(name)?, backends)
    }

    /// The same in a lab that exists and is empty.
    pub fn build(lab: Lab, backends: u8) -> anyhow::Result<Self> {
        let segment = lab.segment("lan")?;
        let director = lab.host("director")?;
        let director_mac = attach(&director, &segment, 2)?;
        let client = lab.host("client")?;
        attach(&client, &segment, 100)?;
        let mut this = Self {
            lb_ctl: None,
            backends: Vec::new(),
            client,
            director,
            director_mac,
            segment,
            lab,
        };
        for _ in 0..backends {
            this.add_backend()?;
        }
        Ok(this)
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
        let mac = attach(&host, &self.segment, 20 + number)?;
        let nginx = Nginx::start(&host, self.lab.dir(), &["80", "[::]:80"])?;
        self.backends.push(Backend {
            nginx: Some(nginx),
            host,
            mac,
            number,
        });
        Ok(index)
    }

    /// Starts a killed nginx again.
    pub fn restart_nginx(&mut self, index: usize) -> anyhow::Result<()> {
        let backend = &mut self.backends[index];
        backend.nginx = None;
        backend.nginx = Some(Nginx::start(
            &backend.host,
            self.lab.dir(),
            &["80", "[::]:80"],
        )?);
        Ok(())
    }

    /// Runs `lb-agent apply` for both VIPs on a backend.
    pub fn agent_apply(&self, index: usize) -> anyhow::Result<String> {
        self.agent(index, "apply", &[])
    }

    /// Runs an `lb-agent` command for both VIPs on a backend and returns its
    /// standard output.
    pub fn agent(&self, index: usize, command: &str, more: &[&str]) -> anyhow::Result<String> {
        let host = &self.backends[index].host;
        let state = Self::agent_state_of(&self.lab, host.name());
        let vips = format!("{},{}", Family::V4.vip(), Family::V6.vip());
        let mut agent = host.command(paths::binary("lb-agent")?);
        agent.args([command, "--vip", &vips, "--interface", INTERFACE, "--state"]);
        agent.arg(state).args(more);
        crate::run(&mut agent).with_context(|| format!("on host {}", host.name()))
    }

    /// Starts `lb-ctl up` on the director and waits until it is ready.
    pub fn start_director(&mut self, more: &[&str]) -> anyhow::Result<()> {
        let mut up = self.director.command(paths::binary("lb-ctl")?);
        up.args(["up", "--interface", INTERFACE, "--listen", &self.listen()]);
        up.arg("--state").arg(Self::director_state_of(&self.lab));
        up.arg("--bpffs")
            .arg(Self::director_bpffs_of(&self.lab))
            .args(more);
        let process = self.director.spawn(up, "lb-ctl")?;
        let api = self.api();
        let ready = try_eventually("lb-ctl to be ready", Duration::from_secs(20), || {
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
        Ok(())
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

    /// Body of `PUT /v1/services/NAME`: a DR service on the VIP's port 80 with
    /// these backends, weight 1, and a quick HTTP health check.
    pub fn service(&self, name: &str, family: Family, backends: &[usize]) -> Value {
        let backends: Vec<Value> = backends
            .iter()
            .map(|&i| json!({"address": self.backends[i].address(family), "weight": 1}))
            .collect();
        json!({
            "name": name, "vip": family.vip(), "port": 80, "protocol": "tcp",
            "mode": "dr", "scheduler": "mh", "backends": backends,
            "health_check": {
                "type": "http", "path": "/",
                "interval_ms": 500, "timeout_ms": 500, "rise": 2, "fall": 2,
            },
        })
    }

    /// Waits until a service's backend is in a state such as `active` or
    /// `down`, as `GET /v1/services/NAME` tells it.
    pub fn wait_backend_state(
        &self,
        service: &str,
        address: IpAddr,
        state: &str,
        deadline: Duration,
    ) -> anyhow::Result<()> {
        let api = self.api();
        let what = format!("backend {address} of service {service} to be {state}");
        try_eventually(&what, deadline, || {
            let reply = api.get(&format!("/v1/services/{service}"));
            let document = reply
                .and_then(|r| r.ok()?.json())
                .map_err(|e| format!("{e:#}"))?;
            let backends = document["backends"].as_array().ok_or("no backends")?;
            let address = address.to_string();
            match backends.iter().find(|b| b["address"] == address.as_str()) {
                Some(backend) if backend["state"] == state => Ok(()),
                Some(backend) => Err(backend.to_string()),
                None => Err(format!("not in {document}")),
            }
        })
    }

    /// Who the client believes to have the VIP: the name of the host whose
    /// MAC address stands in its neighbour table.
    pub fn vip_owner(&self, family: Family) -> anyhow::Result<String> {
        let Some(mac) = self.client.neighbour(family.vip(), INTERFACE)? else {
            return Ok("nobody".to_owned());
        };
        if mac == self.director_mac {
            return Ok(self.director.name().to_owned());
        }
        let backend = self.backends.iter().find(|backend| backend.mac == mac);
        Ok(backend.map_or_else(|| mac.to_string(), |backend| backend.name().to_owned()))
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
    let v4 = format!("{}/24", Family::V4.address(number));
    let v6 = format!("{}/64", Family::V6.address(number));
    host.attach(segment, INTERFACE, &[&v4, &v6])
}
