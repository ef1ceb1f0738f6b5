//! The host under test.

use std::time::Duration;

use integration::agent::Agent;
use integration::{Host, Lab, Process, Segment, eventually};
use serde_json::Value;

pub const SOON: Duration = Duration::from_secs(20);
pub const VIPS: &str = "203.0.113.10,2001:db8:0:1::10";

/// A backend with eth0 and eth1 on a segment.
pub struct Bench {
    pub agent: Agent,
    pub host: Host,
    pub segment: Segment,
    pub lab: Lab,
}

impl Bench {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let lab = Lab::new(name)?;
        let segment = lab.segment("lan")?;
        let host = lab.host("b1")?;
        let agent = Agent::new(&lab, &host)?;
        let bench = Self {
            agent,
            host,
            segment,
            lab,
        };
        bench.attach_eth0()?;
        bench
            .host
            .attach(&bench.segment, "eth1", &["192.0.2.21/24"])?;
        Ok(bench)
    }

    pub fn attach_eth0(&self) -> anyhow::Result<()> {
        let addresses = ["203.0.113.21/24", "2001:db8:0:1::21/64"];
        self.host
            .attach(&self.segment, "eth0", &addresses)
            .map(drop)
    }

    /// Sets a sysctl: `all.arp_ignore`.
    pub fn set(&self, key: &str, value: i32) -> anyhow::Result<()> {
        self.host.set_sysctl(&format!("net.ipv4.conf.{key}"), value)
    }

    pub fn get(&self, key: &str) -> anyhow::Result<String> {
        self.host.sysctl(&format!("net.ipv4.conf.{key}"))
    }

    pub fn ip(&self, args: &str) -> anyhow::Result<String> {
        self.host.run("ip", args.split_whitespace())
    }

    /// Every ARP sysctl, and every address with prefix length and scope.
    pub fn snapshot(&self) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        let links: Value = serde_json::from_str(&self.ip("-json address show")?)?;
        let links = links.as_array().cloned().unwrap_or_default();
        for link in &links {
            let name = link["ifname"].as_str().unwrap_or_default();
            for address in link["addr_info"].as_array().into_iter().flatten() {
                let [local, prefix, scope] =
                    ["local", "prefixlen", "scope"].map(|key| address[key].to_string());
                lines.push(format!("{name} {local}/{prefix} {scope}"));
            }
        }
        let names = links.iter().filter_map(|link| link["ifname"].as_str());
        for name in ["all", "default"].into_iter().chain(names) {
            for key in ["arp_ignore", "arp_announce"] {
                let key = format!("{name}.{key}");
                lines.push(format!("{key} = {}", self.get(&key)?));
            }
        }
        lines.sort();
        Ok(lines)
    }

    /// Whether `lo` holds this, such as `203.0.113.10/32`.
    pub fn lo_holds(&self, address: &str) -> anyhow::Result<bool> {
        let text = self.ip("-oneline address show dev lo")?;
        Ok(text.split_whitespace().any(|word| word == address))
    }

    /// Starts `run` and waits until it watches.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Process> {
        let process = self.agent.run(args)?;
        eventually("lb-agent to watch", SOON, || {
            let log = process.log();
            log.contains("watching").then_some(()).ok_or(log)
        });
        Ok(process)
    }
}

/// The commands that `check` prints.
#[track_caller]
pub fn fixes(bench: &Bench, args: &[&str]) -> Vec<String> {
    let args: Vec<&str> = ["check"].iter().chain(args).copied().collect();
    let answer = bench.agent.call(&[&args[..], &["--json"]].concat());
    let answer = answer.expect("lb-agent can be called");
    let report: Value = serde_json::from_str(&answer.stdout).expect("check prints JSON");
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    assert_eq!(
        answer.code,
        if findings.is_empty() { 0 } else { 2 },
        "{answer:?}"
    );
    assert_eq!(report["changed"], false);
    findings
        .iter()
        .map(|finding| {
            assert!(finding["problem"].as_str().is_some_and(|p| !p.is_empty()));
            assert!(finding["kind"].is_string());
            finding["fix"].as_str().expect("a fix").to_owned()
        })
        .collect()
}
