//! Who answers pings of a VIP: real ones, in every mode and setting.
//!
//! Who may not answer is made deaf to pings, so that an answer proves who it
//! is from.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::time::Duration;

use anyhow::{Context, ensure};
use integration::Host;
use integration::talk::Protocol;
use integration::topology::{Family, Mode, Nat, Site};
use serde_json::{Value, json};

const SERVICE: &str = "talk";
const PORT: u16 = 7000;
const LONG: Duration = Duration::from_secs(20);

/// Pings that are sent when they are to be answered.
const PINGS: u64 = 5;

/// A site whose service has two backends, all active.
struct Scene {
    site: Site,
    family: Family,
}

impl Scene {
    fn new(mut site: Site, family: Family) -> anyhow::Result<Self> {
        site.start_director(&[])?;
        if !matches!(site.mode(), Mode::Nat(_)) {
            for i in 0..site.backends.len() {
                site.agent_apply(i)?;
            }
        }
        let this = Self { site, family };
        this.site.put_service(&this.service("host"))?;
        let vip = family.vip();
        this.site
            .wait_status("the VIP on the director", LONG, |_| {
                this.site.director_has(vip).ok() == Some(true)
            })?;
        Ok(this)
    }

    fn service(&self, ping: &str) -> Value {
        let mut service =
            self.site
                .plain_service(SERVICE, self.family, Protocol::Tcp, PORT, &[0, 1]);
        service["ping"] = json!(ping);
        service
    }

    /// Pings the VIP from the client.
    fn ping(&self, more: &[&str]) -> anyhow::Result<String> {
        let vip = self.family.vip().to_string();
        let version = match self.family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        let args = [&[version, "-n"], more, &[&vip]].concat();
        self.site.client.run("ping", args)
    }

    /// Every ping is answered.
    fn ensure_answered(&self) -> anyhow::Result<()> {
        let count = PINGS.to_string();
        self.ping(&["-c", &count, "-i", "0.2", "-W", "5"])?;
        Ok(())
    }

    /// None is.
    fn ensure_silent(&self) -> anyhow::Result<()> {
        let answer = self.ping(&["-c", "2", "-i", "0.2", "-W", "1"]);
        ensure!(answer.is_err(), "answered: {answer:?}");
        Ok(())
    }

    /// Pings that do not fit into one frame, which the host answers.
    fn ensure_large_ones_are_answered(&self) -> anyhow::Result<()> {
        self.ping(&["-c", "2", "-i", "0.2", "-W", "5", "-s", "4000"])?;
        Ok(())
    }

    /// Whether a host answers pings.
    fn set_deaf(&self, host: &Host, deaf: bool) -> anyhow::Result<()> {
        let key = match self.family {
            Family::V4 => "net.ipv4.icmp_echo_ignore_all",
            Family::V6 => "net.ipv6.icmp.echo_ignore_all",
        };
        host.set_sysctl(key, u8::from(deaf))
    }

    fn set_backends_deaf(&self, deaf: bool) -> anyhow::Result<()> {
        let mut backends = self.site.backends.iter();
        backends.try_for_each(|backend| self.set_deaf(&backend.host, deaf))
    }

    /// On the command line, as it is shown and exported afterwards.
    fn set_ping(&self, ping: &str) -> anyhow::Result<()> {
        let site = &self.site;
        site.lb_ctl(&["service", "set", SERVICE, "--ping", ping])?;
        let shown = site.lb_ctl(&["service", "get", SERVICE])?;
        ensure!(shown.contains(&format!("ping {ping}")), "{shown}");
        let exported = site.lb_ctl(&["export"])?;
        ensure!(
            exported.contains(&format!("\"ping\": \"{ping}\"")),
            "{exported}"
        );
        Ok(())
    }

    /// Packets that backends got.
    fn forwarded(&self) -> anyhow::Result<u64> {
        let status = self.site.service_status(SERVICE)?;
        status["packets"].as_u64().context("no packets")
    }

    fn host_answers(&self) -> anyhow::Result<()> {
        self.set_backends_deaf(true)?;
        self.ensure_answered()?;
        self.ensure_large_ones_are_answered()?;
        self.set_deaf(&self.site.director, true)?;
        self.ensure_silent()?;
        ensure!(self.forwarded()? == 0);
        self.set_deaf(&self.site.director, false)
    }

    fn packet_path_answers(&self) -> anyhow::Result<()> {
        self.set_ping("answer")?;
        self.set_backends_deaf(true)?;
        self.ensure_large_ones_are_answered()?;
        self.set_deaf(&self.site.director, true)?;
        self.ensure_answered()?;
        ensure!(self.forwarded()? == 0);
        self.set_deaf(&self.site.director, false)
    }

    fn a_backend_answers(&self) -> anyhow::Result<()> {
        self.set_ping("forward")?;
        self.ensure_large_ones_are_answered()?;
        self.set_deaf(&self.site.director, true)?;
        self.set_backends_deaf(false)?;
        let before = self.forwarded()?;
        self.ensure_answered()?;
        let forwarded = self.forwarded()? - before;
        ensure!(forwarded == PINGS, "{forwarded} packets for {PINGS} pings");
        self.set_backends_deaf(true)?;
        self.ensure_silent()
    }
}

fn answered_in_every_setting(site: Site, family: Family) -> anyhow::Result<()> {
    let scene = Scene::new(site, family)?;
    scene.host_answers().context("ping: host")?;
    scene.packet_path_answers().context("ping: answer")?;
    scene.a_backend_answers().context("ping: forward")
}

#[test]
fn answered_in_every_setting_dr_v4() -> anyhow::Result<()> {
    answered_in_every_setting(Site::new("pingdr4", 2)?, Family::V4)
}

#[test]
fn answered_in_every_setting_dr_v6() -> anyhow::Result<()> {
    answered_in_every_setting(Site::new("pingdr6", 2)?, Family::V6)
}

#[test]
fn answered_in_every_setting_tun_v4() -> anyhow::Result<()> {
    answered_in_every_setting(Site::tun("pingtun4", 2)?, Family::V4)
}

#[test]
fn answered_in_every_setting_tun_v6() -> anyhow::Result<()> {
    answered_in_every_setting(Site::tun("pingtun6", 2)?, Family::V6)
}

/// In NAT mode backends do not hold the VIP: who wants them to answer is told
/// so, by the API and on the command line.
fn nat_answers_by_itself(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    let scene = Scene::new(Site::nat(name, nat, 2)?, family)?;
    scene.host_answers().context("ping: host")?;
    scene.packet_path_answers().context("ping: answer")?;
    let path = format!("/v1/services/{SERVICE}");
    let reply = scene.site.api().put(&path, &scene.service("forward"))?;
    let problem = reply.json()?;
    ensure!(reply.status == 422 && problem["field"] == "ping", "{reply}");
    let set = ["service", "set", SERVICE, "--ping", "forward"];
    let refused = scene.site.lb_ctl(&set).map_err(|e| format!("{e:#}"));
    let refused = refused
        .err()
        .context("the command line did what it must not")?;
    ensure!(
        refused.contains("ping: in nat mode") && refused.contains("use answer"),
        "{refused}"
    );
    scene.ensure_answered().context("after the refusals")
}

#[test]
fn nat_answers_by_itself_gateway_v4() -> anyhow::Result<()> {
    nat_answers_by_itself("pingnat4", Nat::GATEWAY, Family::V4)
}

#[test]
fn nat_answers_by_itself_full_v6() -> anyhow::Result<()> {
    nat_answers_by_itself("pingfull6", Nat::FULL, Family::V6)
}
