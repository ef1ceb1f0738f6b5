use std::fmt::Write;

use anyhow::Result;

use super::Connection;
use super::output::{Output, Table, short, span};
use crate::model::status::{self, BackendStatus, NatStatus, ServiceStatus, XdpMode, unix_now};

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// Print the API's JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Status {
    pub(super) async fn run(self) -> Result<Output> {
        let status: status::Status = self.connection.client().get("/v1/status").await?;
        Output::either(self.json, &status, |status| render(status, unix_now()))
    }
}

/// The status for a person: what is wrong first.
fn render(status: &status::Status, now: u64) -> String {
    let mut text = String::new();
    for warning in &status.warnings {
        text += &format!("! {warning}\n");
    }
    if !status.warnings.is_empty() {
        text.push('\n');
    }
    text += &format!(
        "lb-ctl {}, up {}, revision {}\n",
        status.version,
        span(now.saturating_sub(status.started_at)),
        status.revision.get(..8).unwrap_or(&status.revision),
    );
    let interfaces = status.interfaces.iter().map(|interface| {
        let xdp = match interface.xdp {
            XdpMode::Native => "native",
            XdpMode::Generic => "GENERIC",
        };
        format!("{} ({xdp})", interface.name)
    });
    listed(&mut text, "interfaces", interfaces);
    listed(
        &mut text,
        "VIPs",
        status.vips.iter().map(|vip| vip_line(vip, now)),
    );
    let drops = status.drops.iter().filter(|drop| drop.count > 0);
    let drops =
        drops.map(|drop| format!("{} {} ({})", short(drop.count), drop.reason, drop.meaning));
    listed(&mut text, "drops", drops);
    let table = &status.flow_table;
    let entries = [("IPv4", table.ipv4_entries), ("IPv6", table.ipv6_entries)];
    let entries = entries
        .iter()
        .filter_map(|(version, n)| n.map(|n| format!("{n} {version} of {}", table.capacity)));
    listed(&mut text, "flow table", entries);
    let nat = status.nat.iter();
    listed(&mut text, "NAT", nat.flat_map(nat_lines));
    for service in &status.services {
        text += &format!("\n{}", service_block(service));
    }
    if status.services.is_empty() {
        text += "\nno services: `lb-ctl service add --help` shows how to make one\n";
    }
    text
}

/// Translated flows and the pool.
fn nat_lines(nat: &NatStatus) -> Vec<String> {
    let flows = [("IPv4", nat.ipv4_flows), ("IPv6", nat.ipv6_flows)];
    let flows = flows
        .iter()
        .map(|(version, n)| format!("{n} {version} flows of {}", nat.capacity));
    let pools = nat.pools.iter().map(|pool| {
        format!(
            "IPv{} pool: {} of {} ports taken ({:.0}%)",
            pool.version,
            pool.used,
            pool.ports,
            pool.share * 100.0
        )
    });
    flows.chain(pools).collect()
}

/// One service with its backends.
pub(super) fn service_block(service: &ServiceStatus) -> String {
    let ring = &service.ring;
    let mut text = format!("{}  {}  {} slots", service.name, what(service), ring.slots);
    if ring.moving + ring.pinned > 0 {
        let _ = write!(text, " ({} moving, {} pinned)", ring.moving, ring.pinned);
    }
    if let Some(mtu) = service.mtu {
        let _ = write!(text, ", MTU {mtu}");
    }
    text.push('\n');
    for note in &service.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    if service.backends.is_empty() {
        text += "  no backends\n";
    } else {
        text += &backend_table(&service.backends, "  ");
    }
    text
}

/// All services, a line each.
pub(super) fn service_table(services: &[ServiceStatus]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "VIP",
        ">PORT",
        "PROTOCOL",
        "MODE",
        "SCHEDULER",
        "PING",
        ">BACKENDS",
        ">PACKETS",
        ">BYTES",
        ">FLOWS",
    ]);
    for service in services {
        let serving = service.backends.iter().filter(|b| b.share > 0.0).count();
        table.row([
            service.name.to_string(),
            service.vip.to_string(),
            port(service.port),
            service.protocol.to_string(),
            service.mode.to_string(),
            service.scheduler.to_string(),
            service.ping.to_string(),
            format!("{serving}/{}", service.backends.len()),
            short(service.packets),
            short(service.bytes),
            short(service.flows),
        ]);
    }
    table.render("")
}

/// Backends, a line each.
pub(super) fn backend_table(backends: &[BackendStatus], indent: &str) -> String {
    let mut table = Table::new(&[
        "BACKEND", ">WEIGHT", "STATE", ">SHARE", ">PACKETS", ">BYTES", ">FLOWS", "NEXT HOP", "WHY",
    ]);
    for backend in backends {
        let next_hop = backend.next_hop.as_ref();
        table.row([
            backend.address.to_string(),
            backend.weight.to_string(),
            backend.state.name().to_owned(),
            format!("{:.1}%", backend.share * 100.0),
            short(backend.packets),
            short(backend.bytes),
            short(backend.flows),
            next_hop.map_or_else(
                || "-".to_owned(),
                |hop| format!("{} {}", hop.mac, hop.interface),
            ),
            backend.reason.clone().unwrap_or_default(),
        ]);
    }
    table.render(indent)
}

fn what(service: &ServiceStatus) -> String {
    let full = if service.full_nat {
        " with full NAT"
    } else {
        ""
    };
    format!(
        "{} {} port {}, {}{full}, {}{}",
        service.vip,
        service.protocol,
        port(service.port),
        service.mode,
        service.scheduler,
        service.ping.note()
    )
}

fn port(port: u16) -> String {
    if port == 0 {
        "any".to_owned()
    } else {
        port.to_string()
    }
}

fn vip_line(vip: &status::VipStatus, now: u64) -> String {
    let mut line = vip.address.to_string();
    if !vip.interfaces.is_empty() {
        let _ = write!(line, " on {}", vip.interfaces.join(", "));
    }
    if !vip.managed {
        line += " (operator's)";
    }
    for thief in &vip.thieves {
        let seen = span(now.saturating_sub(thief.last_seen));
        let _ = write!(line, ", STOLEN by {} ({seen} ago)", thief.mac);
    }
    line
}

/// `label: item`, further items below the first.
fn listed(text: &mut String, label: &str, items: impl Iterator<Item = String>) {
    for (i, item) in items.enumerate() {
        let label = if i == 0 {
            format!("{label}:")
        } else {
            String::new()
        };
        let _ = writeln!(text, "{label:<12}{item}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryEngine;
    use crate::model::status::{
        BackendState, DropStatus, FlowTableStatus, InterfaceStatus, NextHop, Thief, VipStatus,
    };
    use crate::model::{Config, text};
    use crate::reconcile::Engine;

    #[test]
    fn a_person_sees_first_what_is_wrong() {
        let config: Config = text::from_json_value(serde_json::json!({"services": [
            {"name": "web", "vip": "203.0.113.10", "port": 80, "protocol": "tcp", "mode": "dr",
             "backends": [{"address": "203.0.113.21"}, {"address": "203.0.113.22"}]}]}))
        .unwrap();
        let mut services = MemoryEngine::default().status(&config).services;
        let backends = &mut services[0].backends;
        backends[0].next_hop = Some(NextHop {
            mac: "02:00:00:00:00:21".to_owned(),
            interface: "eth0".to_owned(),
        });
        backends[0].packets = 1234;
        backends[1].state = BackendState::Down;
        backends[1].reason = Some("connection refused".to_owned());
        backends[1].share = 0.0;
        let mut status = status::Status {
            version: "0.1.0".to_owned(),
            abi_version: 1,
            revision: "0123456789abcdef".to_owned(),
            started_at: 1000,
            warnings: Vec::new(),
            interfaces: vec![InterfaceStatus {
                name: "eth0".to_owned(),
                index: 2,
                xdp: XdpMode::Native,
                note: None,
            }],
            services,
            vips: vec![VipStatus {
                address: "203.0.113.10".parse().unwrap(),
                interfaces: vec!["eth0".to_owned()],
                managed: true,
                thieves: vec![Thief {
                    mac: "02:00:00:00:00:22".to_owned(),
                    interface: "eth0".to_owned(),
                    first_seen: 1100,
                    last_seen: 1297,
                }],
            }],
            drops: vec![DropStatus {
                reason: "no_backend".to_owned(),
                count: 7,
                meaning: "nobody there".to_owned(),
            }],
            nat: None,
            flow_table: FlowTableStatus {
                ipv4_entries: Some(12),
                ipv6_entries: None,
                capacity: 100,
            },
        };
        status.warnings = status.derive_warnings();
        let expected = "\
! the VIP 203.0.113.10 is answered for by 02:00:00:00:00:22 on eth0, so traffic bypasses this director: run `lb-agent check --vip 203.0.113.10` on the host with that MAC
! web: backend 203.0.113.22 is down: connection refused

lb-ctl 0.1.0, up 5 min, revision 01234567
interfaces: eth0 (native)
VIPs:       203.0.113.10 on eth0, STOLEN by 02:00:00:00:00:22 (3 s ago)
drops:      7 no_backend (nobody there)
flow table: 12 IPv4 of 100

web  203.0.113.10 tcp port 80, dr, mh  2 slots
  BACKEND       WEIGHT  STATE   SHARE  PACKETS  BYTES  FLOWS  NEXT HOP                WHY
  203.0.113.21       1  active  50.0%     1.2k      0      0  02:00:00:00:00:21 eth0
  203.0.113.22       1  down     0.0%        0      0      0  -                       connection refused
";
        assert_eq!(render(&status, 1300), expected);
    }
}
