//! What there must be when the churn is over: what was asked for, and after
//! `lb-ctl down` nothing.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::try_eventually;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::maps::{Counts, ensure_ports_complete};
use crate::place::FAMILIES;
use crate::service::Kind;
use crate::world::{LONG, POOL_PORTS, World};

/// How long slots may take to settle: a flow's idle time for the window, one
/// for those that are recorded, and the looks at them in between.
const SETTLE: Duration = Duration::from_secs(60);

/// Reasons for which nothing here may be dropped, whatever happens.
const NEVER: [&str; 13] = [
    "truncated",
    "malformed",
    "fragment",
    "unsupported_mode",
    "ring_corrupt",
    "no_interface",
    "too_big",
    "too_big_untold",
    "no_headroom",
    "pool_exhausted",
    "nat_table_full",
    "nat_clash",
    "program_missing",
];

/// What `lb-ctl down` must bring back.
#[derive(Debug, PartialEq, Eq)]
pub struct Host(String);

/// The sysctls of all interfaces, as the calling thread's namespace has them.
fn sysctls() -> anyhow::Result<String> {
    let mut text = String::new();
    for version in ["ipv4", "ipv6"] {
        for interface in fs::read_dir(format!("/proc/sys/net/{version}/conf"))? {
            for sysctl in fs::read_dir(interface?.path())? {
                let path = sysctl?.path();
                // Some cannot be read.
                if let Ok(value) = fs::read_to_string(&path) {
                    text += &format!("{} = {}\n", path.display(), value.trim_end());
                }
            }
        }
    }
    Ok(text)
}

impl World {
    /// Addresses, routes, rules and sysctls of the director.
    pub fn host(&self) -> anyhow::Result<Host> {
        let run = |args: &[&str]| self.site.director.run("ip", args);
        let mut text = run(&["-oneline", "address", "show"])?;
        text += &run(&["route", "show", "table", "all"])?;
        text += &run(&["-6", "route", "show", "table", "all"])?;
        text += &self.site.director.in_namespace(sysctls)?;
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        Ok(Host(lines.join("\n")))
    }

    /// With everybody alive, every flow talks, and new ones find everybody.
    pub fn calm_down(&mut self) -> anyhow::Result<()> {
        for host in self.hosts() {
            if !self.is_alive(host) {
                self.revive(host)?;
            }
        }
        for name in self.services.keys() {
            self.wait_active(name)?;
        }
        self.round("when all is calm")?;
        self.judge()
    }

    /// Without flows, everything settles at what is wanted.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        self.crowd = None;
        self.history.did("no flows any more");
        let begin = self.site.status()?;
        let status = try_eventually("everything to settle", SETTLE, || {
            let status = self.site.status().map_err(|e| format!("{e:#}"))?;
            match self.unsettled(&status) {
                None => Ok(status),
                Some(what) => Err(what),
            }
        })?;
        let drops = status["drops"].as_array().context("drops")?;
        let wrong = drops.iter().filter(|drop| {
            drop["count"] != 0 && NEVER.iter().any(|reason| drop["reason"] == *reason)
        });
        let wrong: Vec<String> = wrong.map(Value::to_string).collect();
        ensure!(wrong.is_empty(), "dropped: {wrong:?}");
        ensure!(begin["revision"] == status["revision"]);
        self.ensure_maps()
    }

    /// What is not as it is wanted.
    fn unsettled(&self, status: &Value) -> Option<String> {
        let services = status["services"].as_array()?;
        if services.len() != self.services.len() {
            return Some(format!("{} services", services.len()));
        }
        for service in services {
            let name = service["name"].as_str()?;
            let wanted = self.services.get(name)?;
            let backends = service["backends"].as_array()?;
            let weighted = wanted.weighted().count();
            let active = backends.iter().filter(|b| b["state"] == "active").count();
            let ring = &service["ring"];
            let is_nobodys = wanted.members.is_empty() && ring["slots"] != 0;
            let settled = ring["settled"] == ring["slots"] && !is_nobodys;
            if backends.len() != wanted.members.len() || active != weighted || !settled {
                return Some(service.to_string());
            }
        }
        let nat = &status["nat"];
        let pools = nat["pools"].as_array().into_iter().flatten();
        let taken: u64 = pools.filter_map(|pool| pool["used"].as_u64()).sum();
        let flows = ["ipv4_flows", "ipv6_flows"].map(|f| nat[f].as_u64().unwrap_or(0));
        (taken + flows.iter().sum::<u64>() > 0).then(|| nat.to_string())
    }

    /// The maps hold what is wanted and nothing else.
    fn ensure_maps(&self) -> anyhow::Result<()> {
        let services = self.services.values();
        let members = |s: &crate::service::Service| s.members.len();
        let is_nat = |s: &&crate::service::Service| matches!(s.kind, Kind::Gateway | Kind::Full);
        let families: BTreeSet<&str> = services
            .clone()
            .map(|s| match s.family {
                integration::topology::Family::V4 => "4",
                integration::topology::Family::V6 => "6",
            })
            .collect();
        let wanted = Counts {
            services: self.services.len(),
            backends: services.clone().map(members).sum(),
            vips: families.len(),
            nat_backends: services.filter(is_nat).map(members).sum(),
            nat_flows: 0,
        };
        let found = Counts::read(&self.site.director_bpffs())?;
        ensure!(found == wanted, "the maps hold {found:?}, not {wanted:?}");
        Ok(())
    }

    /// What is exported is what runs, and after another kill -9 the next
    /// `lb-ctl up` finds nothing to write.
    pub fn ensure_empty_plan(&mut self) -> anyhow::Result<()> {
        let file = self.site.lab.dir().join("exported.json");
        fs::write(&file, self.site.lb_ctl(&["export"])?)?;
        let plan = self
            .site
            .lb_ctl(&["plan", "-f", file.to_str().context("not text")?])?;
        ensure!(plan == "nothing to change\n", "{plan}");

        let before = self.site.status()?;
        self.site.end_director(Signal::SIGKILL)?;
        let mut up = self.site.up_command()?;
        for interface in self.site.interfaces() {
            up.args(["--interface", interface]);
        }
        up.env("RUST_LOG", "info,lb_ctl=debug");
        let process = self.site.director.spawn(up, "lb-ctl-again")?;
        self.site.lb_ctl = Some(process);
        try_eventually("lb-ctl to be ready again", LONG, || {
            let ready = self.site.api().get("/readyz");
            ready
                .and_then(integration::api::Reply::ok)
                .map_err(|e| format!("{e:#}"))
        })?;
        for name in self.services.keys() {
            self.wait_active(name)?;
        }
        let after = self.site.status()?;
        let services = |status: &Value| status["services"].as_array().cloned().unwrap_or_default();
        for (before, after) in services(&before).iter().zip(services(&after)) {
            let is_same = before["ring"] == after["ring"];
            ensure!(is_same, "the ring is another:\n{before}\n{after}");
        }
        let log = self.site.lb_ctl.as_ref().map_or(String::new(), |p| p.log());
        ensure!(
            !log.contains("maps brought up to date"),
            "there was something to write:\n{log}"
        );
        self.ensure_maps()
    }

    /// `lb-ctl down` leaves the host as it was found.
    pub fn ensure_nothing_is_left(&mut self, found: &Host) -> anyhow::Result<()> {
        // Nobody forwards any more, so the free ports can be counted.
        self.site.end_director(Signal::SIGTERM)?;
        let bpffs = self.site.director_bpffs();
        ensure_ports_complete(&bpffs, POOL_PORTS.count())?;
        self.site.down()?;
        ensure!(!bpffs.exists(), "{} is left", bpffs.display());
        for interface in self.site.interfaces() {
            // The kernel ends what is no longer pinned in its own time.
            try_eventually("the program to be gone", LONG, || {
                let link = self.site.director.link(interface);
                let link = link.map_err(|e| format!("{e:#}"))?;
                let is_gone = link["xdp"]["prog"].is_null();
                is_gone.then_some(()).ok_or_else(|| link.to_string())
            })?;
        }
        for family in FAMILIES {
            let vip = family.vip();
            ensure!(!self.site.director_has(vip)?, "the director has {vip}");
        }
        let left = self.host()?;
        let lines = |host: &Host| host.0.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let (found, left) = (lines(found), lines(&left));
        let difference: Vec<&String> = found.symmetric_difference(&left).collect();
        ensure!(difference.is_empty(), "left or lost: {difference:#?}");
        Ok(())
    }
}
