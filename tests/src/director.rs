//! What suites of the director do with one: end it, start it again, watch it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::talk::Echo;
use crate::topology::{DrLab, Family, INTERFACE, Mode};
use crate::{paths, run, try_eventually};

/// How long a director may take to do what it shall.
const LONG: Duration = Duration::from_secs(20);

impl DrLab {
    /// `lb-ctl up` on the director with the lab's paths, not started yet.
    /// Interfaces are to be added.
    pub fn up_command(&self) -> anyhow::Result<Command> {
        let mut up = self.director.command(paths::binary("lb-ctl")?);
        up.args(["up", "--listen", &self.listen(), "--state"])
            .arg(Self::director_state_of(&self.lab))
            .arg("--bpffs")
            .arg(self.director_bpffs());
        Ok(up)
    }

    /// Runs an `lb-ctl` command other than `up` and `down` on the director.
    pub fn lb_ctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = self.director.command(paths::binary("lb-ctl")?);
        run(command.args(args).args(["--listen", &self.listen()]))
    }

    /// Runs `lb-ctl down`.
    pub fn down(&self) -> anyhow::Result<String> {
        let mut down = self.director.command(paths::binary("lb-ctl")?);
        down.args(["down", "--state"])
            .arg(Self::director_state_of(&self.lab))
            .arg("--bpffs")
            .arg(self.director_bpffs());
        run(&mut down)
    }

    /// Ends `lb-ctl up` with this signal. After SIGTERM it must end well.
    pub fn end_director(&mut self, signal: Signal) -> anyhow::Result<()> {
        let process = self.lb_ctl.take().context("no lb-ctl up is running")?;
        process.kill(signal)?;
        let status = process.wait_exit(LONG)?;
        ensure!(
            signal != Signal::SIGTERM || status.success(),
            "lb-ctl up ended with {status}: {}",
            process.log()
        );
        Ok(())
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> anyhow::Result<Value> {
        self.api().get("/v1/status")?.ok()?.json()
    }

    /// `GET /v1/services/NAME`.
    pub fn service_status(&self, name: &str) -> anyhow::Result<Value> {
        let path = format!("/v1/services/{name}");
        self.api().get(&path)?.ok()?.json()
    }

    /// Waits until the status of a service is as it shall be.
    pub fn wait_service(
        &self,
        name: &str,
        what: &str,
        deadline: Duration,
        is_so: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        try_eventually(&format!("service {name}: {what}"), deadline, || {
            let status = self.service_status(name).map_err(|e| format!("{e:#}"))?;
            if is_so(&status) {
                Ok(status)
            } else {
                Err(status.to_string())
            }
        })
    }

    /// Waits until the director's status is as it shall be.
    pub fn wait_status(
        &self,
        what: &str,
        deadline: Duration,
        is_so: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        try_eventually(what, deadline, || {
            let status = self.status().map_err(|e| format!("{e:#}"))?;
            if is_so(&status) {
                Ok(status)
            } else {
                Err(status.to_string())
            }
        })
    }

    /// PUTs a service and waits until all its backends with a weight get new
    /// flows.
    pub fn put_service(&self, service: &Value) -> anyhow::Result<()> {
        let name = service["name"].as_str().context("a service has a name")?;
        let path = format!("/v1/services/{name}");
        self.api().put(&path, service)?.ok()?;
        self.wait_service(name, "all backends active", LONG, |status| {
            let mut backends = status["backends"].as_array().into_iter().flatten();
            backends.all(|b| b["state"] == "active" || b["weight"] == 0 || b["state"] == "removed")
        })?;
        Ok(())
    }

    /// `/v1/services/NAME/backends/ADDRESS`.
    pub fn backend_path(&self, service: &str, family: Family, index: usize) -> String {
        let address = self.backends[index].address(family);
        format!("/v1/services/{service}/backends/{address}")
    }

    /// Makes a backend hold the VIPs and serve this port, TCP and UDP, on VIP
    /// and RIP; in NAT mode on the RIP, at the port that stands for it there.
    pub fn start_echo(&self, index: usize, family: Family, port: u16) -> anyhow::Result<Echo> {
        let backend = &self.backends[index];
        let rip = SocketAddr::new(backend.address(family), self.server_port(port));
        if let Mode::Nat(_) = self.mode() {
            return Echo::start(&backend.host, &[rip]);
        }
        self.agent_apply(index)?;
        Echo::start(&backend.host, &[SocketAddr::new(family.vip(), port), rip])
    }

    /// What the director's interface says of XDP: `None`, or `native` or
    /// `generic` and the program's id.
    pub fn xdp(&self) -> anyhow::Result<Option<(&'static str, u64)>> {
        let link = self.director.link(INTERFACE)?;
        let xdp = &link["xdp"];
        let Some(id) = xdp["prog"]["id"].as_u64() else {
            return Ok(None);
        };
        let mode = match xdp["mode"].as_u64() {
            Some(1) => "native",
            Some(2) => "generic",
            other => anyhow::bail!("XDP mode {other:?}: {link}"),
        };
        Ok(Some((mode, id)))
    }

    /// Whether the director has this address, of whatever prefix.
    pub fn director_has(&self, address: std::net::IpAddr) -> anyhow::Result<bool> {
        let text = self.director.run("ip", ["-json", "address", "show"])?;
        let links: Value = serde_json::from_str(&text)?;
        let links = links.as_array().into_iter().flatten();
        let mut addresses = links.flat_map(|l| l["addr_info"].as_array().into_iter().flatten());
        Ok(addresses.any(|a| a["local"] == address.to_string().as_str()))
    }
}
