//! What is observed, in the text format of Prometheus.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

use crate::model::Mode;
use crate::model::status::{BackendState, NatStatus, Status, XdpMode};

/// Media type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Counters<L> = Family<L, Counter>;
type Gauges<L> = Family<L, Gauge>;
type Shares<L> = Family<L, Gauge<f64, AtomicU64>>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Service {
    service: String,
    vip: String,
    protocol: String,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Backend {
    service: String,
    vip: String,
    protocol: String,
    port: u16,
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Slots {
    service: String,
    vip: String,
    protocol: String,
    port: u16,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Vip {
    vip: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Interface {
    interface: String,
    xdp: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IpVersion {
    ip_version: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: String,
    abi_version: u32,
}

/// Renders the metrics of a status.
///
/// # Errors
/// When formatting fails, which it does not for any status.
pub fn render(status: &Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("lb");
    director(&mut registry, status);
    services(&mut registry, status);
    backends(&mut registry, status);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn director(registry: &mut Registry, status: &Status) {
    let build: Gauges<Build> = register(registry, "build_info", "The lb-ctl that runs");
    let labels = Build {
        version: status.version.clone(),
        abi_version: status.abi_version,
    };
    build.get_or_create(&labels).set(1);

    let started = Gauge::<i64>::default();
    started.set(signed(status.started_at));
    let help = "When lb-ctl up started, Unix time";
    registry.register("start_time_seconds", help, started);

    let warnings = Gauge::<i64>::default();
    warnings.set(signed(status.warnings.len() as u64));
    let help = "Warnings that lb-ctl status shows";
    registry.register("warnings", help, warnings);

    let attached: Gauges<Interface> = register(
        registry,
        "interface_attached",
        "Interfaces on which the XDP program runs",
    );
    for interface in &status.interfaces {
        let labels = Interface {
            interface: interface.name.clone(),
            xdp: match interface.xdp {
                XdpMode::Native => "native",
                XdpMode::Generic => "generic",
            },
        };
        attached.get_or_create(&labels).set(1);
    }

    let drops: Counters<Reason> = register(
        registry,
        "drops",
        "Packets for a VIP that were not forwarded",
    );
    for drop in &status.drops {
        let reason = drop.reason.clone();
        let labels = Reason { reason };
        drops.get_or_create(&labels).inc_by(drop.count);
    }

    let thieves: Gauges<Vip> = register(
        registry,
        "vip_thieves",
        "Other hosts that answer ARP or NDP for the VIP",
    );
    for vip in &status.vips {
        let labels = Vip {
            vip: vip.address.to_string(),
        };
        let n = signed(vip.thieves.len() as u64);
        thieves.get_or_create(&labels).set(n);
    }

    let table = &status.flow_table;
    let entries: Gauges<IpVersion> = register(registry, "flow_table_entries", "Recorded flows");
    for (ip_version, n) in [(4, table.ipv4_entries), (6, table.ipv6_entries)] {
        if let Some(n) = n {
            let labels = IpVersion { ip_version };
            entries.get_or_create(&labels).set(signed(n));
        }
    }
    let capacity = Gauge::<i64>::default();
    capacity.set(signed(table.capacity));
    let help = "Entries for which each flow table has room";
    registry.register("flow_table_capacity", help, capacity);
    if let Some(status) = &status.nat {
        nat(registry, status);
    }
}

fn nat(registry: &mut Registry, status: &NatStatus) {
    let help = "Translated flows that have an entry";
    let flows: Gauges<IpVersion> = register(registry, "nat_flows", help);
    for (ip_version, n) in [(4, status.ipv4_flows), (6, status.ipv6_flows)] {
        let labels = IpVersion { ip_version };
        flows.get_or_create(&labels).set(signed(n));
    }
    let capacity = Gauge::<i64>::default();
    capacity.set(signed(status.capacity));
    let help = "Translated flows of each IP version for which there is room";
    registry.register("nat_flow_capacity", help, capacity);

    let ports: Gauges<IpVersion> = register(registry, "nat_pool_ports", "Ports for full NAT");
    let help = "Ports for full NAT that flows have taken";
    let used: Gauges<IpVersion> = register(registry, "nat_pool_ports_used", help);
    for pool in &status.pools {
        let labels = IpVersion {
            ip_version: pool.version,
        };
        ports.get_or_create(&labels).set(signed(pool.ports));
        used.get_or_create(&labels).set(signed(pool.used));
    }
}

fn services(registry: &mut Registry, status: &Status) {
    let slots: Gauges<Service> = register(
        registry,
        "service_slots",
        "Slots of the ring; 0 if no backend can be scheduled",
    );
    let states: Gauges<Slots> = register(
        registry,
        "service_slots_by_state",
        "Slots of the ring by state",
    );
    for s in &status.services {
        let (service, vip) = (s.name.to_string(), s.vip.to_string());
        let (protocol, port) = (s.protocol.to_string(), s.port);
        for (state, n) in [
            ("settled", s.ring.settled),
            ("moving", s.ring.moving),
            ("pinned", s.ring.pinned),
        ] {
            let labels = Slots {
                service: service.clone(),
                vip: vip.clone(),
                protocol: protocol.clone(),
                port,
                state,
            };
            states.get_or_create(&labels).set(n.into());
        }
        let labels = Service {
            service,
            vip,
            protocol,
            port,
        };
        slots.get_or_create(&labels).set(s.ring.slots.into());
    }
}

fn backends(registry: &mut Registry, status: &Status) {
    let packets: Counters<Backend> = register(registry, "backend_packets", "Packets forwarded");
    let bytes: Counters<Backend> = register(
        registry,
        "backend_bytes",
        "Bytes forwarded, from the IP header on",
    );
    let flows: Counters<Backend> = register(
        registry,
        "backend_flows",
        "Flows begun: TCP SYNs forwarded, UDP flows recorded",
    );
    let help = "Packets from NAT backends that were translated back";
    let reply_packets: Counters<Backend> = register(registry, "backend_reply_packets", help);
    let help = "Bytes from NAT backends that were translated back, from the IP header on";
    let reply_bytes: Counters<Backend> = register(registry, "backend_reply_bytes", help);
    let up: Gauges<Backend> = register(
        registry,
        "backend_up",
        "Whether packets may be forwarded to the backend: neither down nor unresolved",
    );
    let weight: Gauges<Backend> = register(registry, "backend_weight", "Desired weight");
    let share: Shares<Backend> = register(
        registry,
        "backend_share",
        "Part of the service's slots that the backend owns",
    );
    for service in &status.services {
        for backend in &service.backends {
            let labels = Backend {
                service: service.name.to_string(),
                vip: service.vip.to_string(),
                protocol: service.protocol.to_string(),
                port: service.port,
                backend: backend.address.to_string(),
            };
            packets.get_or_create(&labels).inc_by(backend.packets);
            bytes.get_or_create(&labels).inc_by(backend.bytes);
            flows.get_or_create(&labels).inc_by(backend.flows);
            if service.mode == Mode::Nat {
                let (packets, bytes) = (backend.reply_packets, backend.reply_bytes);
                reply_packets.get_or_create(&labels).inc_by(packets);
                reply_bytes.get_or_create(&labels).inc_by(bytes);
            }
            let alive = !matches!(backend.state, BackendState::Down | BackendState::Unresolved);
            up.get_or_create(&labels).set(alive.into());
            weight.get_or_create(&labels).set(backend.weight.into());
            share.get_or_create(&labels).set(backend.share);
        }
    }
}

fn register<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: prometheus_client::registry::Metric + Default + Clone,
{
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::{DropStatus, FlowTableStatus, PoolStatus, Thief, VipStatus};
    use crate::model::{Config, text};
    use crate::reconcile::Engine;

    #[test]
    fn figures_get_the_names_that_dashboards_use() {
        let config: Config = text::from_json_value(serde_json::json!({"services": [
            {"name": "web", "vip": "2001:db8::10", "port": 80, "protocol": "tcp", "mode": "dr",
             "backends": [{"address": "2001:db8::21", "weight": 3}]}]}))
        .unwrap();
        let mut services = crate::memory::MemoryEngine::default()
            .status(&config)
            .services;
        services[0].backends[0].packets = 7;
        services[0].backends[0].bytes = u64::MAX;
        let status = Status {
            version: "1.2.3".to_owned(),
            abi_version: 1,
            revision: String::new(),
            started_at: 5,
            warnings: Vec::new(),
            interfaces: Vec::new(),
            services,
            vips: vec![VipStatus {
                address: "2001:db8::10".parse().unwrap(),
                interfaces: Vec::new(),
                managed: true,
                thieves: vec![Thief {
                    mac: "02:00:00:00:00:01".to_owned(),
                    interface: "eth0".to_owned(),
                    first_seen: 1,
                    last_seen: 2,
                }],
            }],
            drops: vec![DropStatus {
                reason: "no_backend".to_owned(),
                count: 9,
                meaning: String::new(),
            }],
            flow_table: FlowTableStatus::default(),
            nat: Some(NatStatus {
                ipv4_flows: 12,
                pools: vec![PoolStatus {
                    version: 4,
                    addresses: vec!["203.0.113.3".parse().unwrap()],
                    ports: 100,
                    used: 11,
                    share: 0.11,
                }],
                ..NatStatus::default()
            }),
        };
        let text = render(&status).unwrap();
        let labels = "service=\"web\",vip=\"2001:db8::10\",protocol=\"tcp\",port=\"80\"";
        for line in [
            format!("lb_backend_packets_total{{{labels},backend=\"2001:db8::21\"}} 7"),
            format!(
                "lb_backend_bytes_total{{{labels},backend=\"2001:db8::21\"}} 18446744073709551615"
            ),
            format!("lb_backend_up{{{labels},backend=\"2001:db8::21\"}} 1"),
            format!("lb_backend_weight{{{labels},backend=\"2001:db8::21\"}} 3"),
            format!("lb_service_slots{{{labels}}} 3"),
            "lb_nat_flows{ip_version=\"4\"} 12".to_owned(),
            "lb_nat_pool_ports{ip_version=\"4\"} 100".to_owned(),
            "lb_nat_pool_ports_used{ip_version=\"4\"} 11".to_owned(),
            "lb_drops_total{reason=\"no_backend\"} 9".to_owned(),
            "lb_vip_thieves{vip=\"2001:db8::10\"} 1".to_owned(),
            "lb_build_info{version=\"1.2.3\",abi_version=\"1\"} 1".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
