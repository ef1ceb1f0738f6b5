//! The host under test, and a wire to it.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use integration::agent::Agent;
use integration::packets::PacketSocket;
use integration::{Host, Lab, Mac, Process, Segment, eventually};
use lb_common::ABI_VERSION;
use serde_json::Value;

use crate::packet::{address, encapsulated, version};

pub const SOON: Duration = Duration::from_secs(20);

/// The addresses of this suite, in either IP version.
pub fn director(version: u8) -> IpAddr {
    address(version, 0, 2)
}
pub fn stranger(version: u8) -> IpAddr {
    address(version, 1, 66)
}
pub fn backend(version: u8) -> IpAddr {
    address(version, 1, 21)
}
pub fn client(version: u8) -> IpAddr {
    address(version, 1, 7)
}
pub fn vip(version: u8) -> IpAddr {
    address(version, 2, 10)
}

/// A backend with eth0, and the other end of the wire.
pub struct Bench {
    pub agent: Agent,
    pub host: Host,
    pub wire: PacketSocket,
    pub segment: Segment,
    pub lab: Lab,
    wire_mac: Mac,
}

impl Bench {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let lab = Lab::new(name)?;
        let segment = lab.segment("lan")?;
        let host = lab.host("b1")?;
        let peer = lab.host("wire")?;
        let wire_mac = peer.attach(&segment, "eth0", &[])?;
        let bench = Self {
            agent: Agent::new(&lab, &host)?,
            wire: PacketSocket::open(&peer, "eth0")?,
            host,
            segment,
            lab,
            wire_mac,
        };
        bench.attach_eth0()?;
        Ok(bench)
    }

    /// Every other address is at the other end of the wire.
    pub fn attach_eth0(&self) -> anyhow::Result<()> {
        let addresses = [4, 6].map(|v| format!("{}/{}", backend(v), if v == 4 { 24 } else { 64 }));
        let addresses = addresses.each_ref().map(String::as_str);
        self.host.attach(&self.segment, "eth0", &addresses)?;
        for v in [4, 6] {
            let (client, mac) = (client(v), self.wire_mac);
            self.ip(&format!("neighbour add {client} lladdr {mac} dev eth0"))?;
            let gateway = address(v, 1, 1);
            self.ip(&format!("neighbour add {gateway} lladdr {mac} dev eth0"))?;
            self.ip(&format!("-{v} route add default via {gateway}"))?;
        }
        Ok(())
    }

    pub fn bpffs(&self) -> PathBuf {
        self.lab.bpffs().join("agent")
    }

    /// The options of TUN mode for both IP versions.
    pub fn options(&self) -> Vec<String> {
        let list = |of: fn(u8) -> IpAddr| format!("{},{}", of(4), of(6));
        let bpffs = self.bpffs().display().to_string();
        [
            "--mode",
            "tun",
            "--vip",
            &list(vip),
            "--director",
            &list(director),
        ]
        .into_iter()
        .chain(["--bpffs", &bpffs])
        .map(str::to_owned)
        .collect()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str], code: i32) -> Value {
        self.agent.json(args, code)
    }

    /// `apply`, with these options besides.
    #[track_caller]
    pub fn apply(&self, more: &[&str]) -> Value {
        self.call("apply", more, 0)
    }

    #[track_caller]
    pub fn call(&self, command: &str, more: &[&str], code: i32) -> Value {
        let options = self.options();
        let options = options.iter().map(String::as_str);
        let args: Vec<&str> = [command]
            .into_iter()
            .chain(options)
            .chain(more.iter().copied())
            .collect();
        self.json(&args, code)
    }

    /// Starts `run` and waits until it watches.
    pub fn run(&self) -> anyhow::Result<Process> {
        let options = self.options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let process = self.agent.run(&options)?;
        eventually("lb-agent to watch", SOON, || {
            let log = process.log();
            log.contains("watching").then_some(()).ok_or(log)
        });
        Ok(process)
    }

    /// What `check` says, whatever it finds.
    pub fn check(&self) -> Value {
        let answer = self.agent.call(&["check", "--json"]);
        let answer = answer.expect("lb-agent can be called");
        serde_json::from_str(&answer.stdout).expect("check prints JSON")
    }

    /// The commands that `check` prints.
    pub fn fixes(&self) -> Vec<String> {
        let report = self.check();
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        let fixes = findings
            .iter()
            .filter_map(|finding| finding["fix"].as_str());
        fixes.map(str::to_owned).collect()
    }

    pub fn ip(&self, args: &str) -> anyhow::Result<String> {
        self.host.run("ip", args.split_whitespace())
    }

    /// Sends an IP packet to the host.
    pub fn send(&self, packet: &[u8]) -> anyhow::Result<()> {
        let mut frame = crate::packet::frame(packet);
        frame[..6].copy_from_slice(&self.host.mac("eth0")?.0);
        frame[6..12].copy_from_slice(&self.wire_mac.0);
        self.wire.send(&frame)
    }

    /// Sends a packet in one from `source`, of the outer version `outer`.
    pub fn send_inside(&self, source: IpAddr, packet: &[u8]) -> anyhow::Result<()> {
        let outer = if source.is_ipv4() { 4 } else { 6 };
        assert!(matches!(version(packet), 4 | 6));
        self.send(&encapsulated(source, backend(outer), 0, packet))
    }

    /// A number of `check`'s status: `counters` or `drops`, and its name.
    pub fn number(&self, table: &str, name: &str) -> u64 {
        let report = self.check();
        report["status"][table][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {table} {name}: {report}"))
    }

    /// Every sysctl, address, link and pin that `lb-agent` may change.
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
            let xdp = self.host.link(name)?["xdp"].clone();
            lines.push(format!("{name} is there, xdp {xdp}"));
            // Where there is no tcx, a qdisc holds the program.
            let qdiscs = self.host.run("tc", ["qdisc", "show", "dev", name])?;
            lines.push(format!("{name} clsact {}", qdiscs.contains("clsact")));
        }
        let names = links.iter().filter_map(|link| link["ifname"].as_str());
        for name in ["all", "default"].into_iter().chain(names) {
            for key in ["arp_ignore", "arp_announce", "rp_filter"] {
                let value = self.host.sysctl(&format!("net.ipv4.conf.{name}.{key}"))?;
                lines.push(format!("{name}.{key} = {value}"));
            }
        }
        lines.push(format!("pins {:?}", self.pins()));
        lines.sort();
        Ok(lines)
    }

    /// Names of the pins there are after `apply`.
    pub fn all_pins(&self) -> anyhow::Result<Vec<String>> {
        let index = self.host.link("eth0")?["ifindex"].clone();
        let mut names = vec![format!("arriving-{index}")];
        if has_tcx() {
            names.push(format!("leaving-{index}"));
        }
        names.push(format!("v{ABI_VERSION}"));
        Ok(names)
    }

    /// A command that detaches what leaves by eth0.
    pub fn detach_leaving(&self) -> String {
        if has_tcx() {
            format!("rm {}/leaving-*", self.bpffs().display())
        } else {
            "tc filter delete dev eth0 egress".to_owned()
        }
    }

    /// Names of what is pinned; empty also if there is no directory.
    pub fn pins(&self) -> Vec<String> {
        let entries = fs::read_dir(self.bpffs()).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// Whether the kernel has tcx links: from Linux 6.6 on.
fn has_tcx() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|text| text.parse().ok());
    let version: (u32, u32) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    version >= (6, 6)
}
