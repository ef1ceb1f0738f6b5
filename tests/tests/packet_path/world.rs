//! A director with services, twice: in the kernel and on the host.

mod batch;
mod layout;

pub use batch::Batch;
pub use layout::*;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use std::path::PathBuf;

use aya::TestRun as _;
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use integration::{Host, Lab, Mac};
use lb_common::backend::{Backend, mode};
use lb_common::counters::{BackendCounters, DropReason, IcmpBudget};
use lb_common::flow::{FlowKeyV4, FlowKeyV6};
use lb_common::limits;
use lb_common::nat::{NO_PORT, NatReverse, PoolPort, RouterAddresses, Seen};
use lb_common::protocol::{SCTP, TCP, UDP};
use lb_common::service::ServiceValue;
use lb_common::vip::{VipValue, other_protocols};
use lb_common::vlan::{Tag, Vlan};
use lb_common::{ABI_VERSION, Address};
use lb_ctl::dataplane::{
    self, Dataplane as _, Dump, Kernel, LoadOptions, NatFlow, Op, RecordedFlow, ServiceKey,
    XdpPolicy,
};
use lb_ctl::plan::{Desired, DesiredService, Nat, State, plan};
use lb_ebpf::host::{HostPacket, HostTables};
use lb_ebpf::tables::Route;
use lb_ebpf::verdict::Verdict;

/// What a packet did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of it.
    pub verdict: Verdict,
    /// Its bytes afterwards.
    pub bytes: Vec<u8>,
    /// Counters that moved, by backend number, and by how much.
    pub counted: BTreeMap<u8, BackendCounters>,
    /// Drop reasons that were counted.
    pub dropped: BTreeMap<DropReason, u64>,
    /// Recorded flows: VIP, backend number, hash.
    pub recorded: BTreeSet<(IpAddr, u8, u32)>,
    /// Translated flows that have an entry.
    pub translated: BTreeSet<Translated>,
}

/// A translated flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Translated {
    /// The VIP that the client speaks to.
    pub vip: IpAddr,
    /// The pool's port that stands for the client's.
    pub pool_port: Option<PoolPort>,
    /// What was seen of client and backend.
    pub seen: [u32; 2],
}

/// The two directors.
pub struct World {
    kernel: Kernel,
    program: Xdp,
    tables: HostTables,
    /// Number of the backend in each entry.
    numbers: BTreeMap<u32, u8>,
    bpffs: PathBuf,
    /// Indices of the two interfaces.
    pub interfaces: [u32; 2],
    /// Indices of the VLAN devices of [`ONE_TAG`], [`TWO_TAGS`] and
    /// [`ELSEWHERE`].
    vlans: [u32; 3],
}

impl World {
    /// Makes the world in a namespace of its own and runs `test` in it.
    pub fn with<T: Send>(name: &str, test: impl FnOnce(&mut Self) -> T + Send) -> T {
        let lab = Lab::new(name).unwrap();
        let host = lab.host("director").unwrap();
        let segment = lab.segment("lan").unwrap();
        host.attach_with_mac(&segment, "eth0", &["203.0.113.2/24"], Mac(DIRECTOR_MAC))
            .unwrap();
        host.attach_with_mac(&segment, "eth1", &[], Mac(SECOND_MAC))
            .unwrap();
        // They stand for VLAN devices, which not every kernel has.
        for name in VLAN_DEVICES {
            host.attach_with_mac(&segment, name, &[], Mac(DIRECTOR_MAC))
                .unwrap();
        }
        host.in_namespace(|| test(&mut Self::new(&lab, &host)))
    }

    fn new(lab: &Lab, host: &Host) -> Self {
        let index = |name: &str| {
            let text = host.run("ip", ["-o", "link", "show", name]).unwrap();
            text.split(':').next().unwrap().parse().unwrap()
        };
        let interfaces = [index("eth0"), index("eth1")];
        let vlans = VLAN_DEVICES.map(index);
        router(host);
        let bpffs = lab.bpffs().join("packets");
        let max_backends = 64;
        let kernel = dataplane::load(&LoadOptions {
            bpffs: bpffs.clone(),
            interfaces: Vec::new(),
            policy: XdpPolicy::Auto,
            max_backends,
            flow_table_size: 1024,
            nat_table_size: 1024,
            log_drops: false,
        })
        .unwrap();
        let program = Xdp::from_pin(bpffs.join("director"), XdpAttachType::Interface).unwrap();
        let tables = HostTables {
            rings: vec![Default::default(); limits::ring_blocks(max_backends) as usize],
            backends: vec![Backend::default(); max_backends as usize + 1],
            ..HostTables::default()
        };
        let mut world = Self {
            kernel,
            program,
            tables,
            numbers: BTreeMap::new(),
            bpffs,
            interfaces,
            vlans,
        };
        world.fill();
        world
    }

    fn vlans(&self) -> BTreeMap<u32, Vlan> {
        let [eth0, eth1] = self.interfaces;
        let wires = [(eth0, ONE_TAG), (eth0, TWO_TAGS), (eth1, ELSEWHERE)];
        let vlan = |(interface, [outer, inner]): (u32, [Tag; 2])| Vlan {
            interface,
            outer,
            inner,
        };
        self.vlans.into_iter().zip(wires.map(vlan)).collect()
    }

    fn fill(&mut self) {
        let next_hops = NextHops {
            interfaces: self.interfaces,
            vlans: self.vlans,
        };
        let mut state = State::from_dump(Dump::default(), self.kernel.capacity(), self.now());
        let mut desired = Desired {
            local_macs: BTreeSet::from([
                (self.interfaces[0], DIRECTOR_MAC),
                (self.interfaces[0], VIRTUAL_MAC),
                (self.interfaces[1], SECOND_MAC),
                (self.vlans[0], DIRECTOR_MAC),
                (self.vlans[1], DIRECTOR_MAC),
                (self.vlans[2], SECOND_MAC),
            ]),
            interfaces: BTreeSet::from(self.interfaces),
            vlans: self.vlans(),
            local_addresses: [4, 6].into_iter().map(own_address).collect(),
            routers: BTreeMap::from([(
                self.interfaces[0],
                RouterAddresses {
                    v4: Address::from(own_address(4)).v4_word(),
                    padding: 0,
                    v6: own_address(6).into(),
                },
            )]),
            pool: [4, 6].into_iter().map(pool_address).collect(),
            ..Desired::default()
        };
        for version in [4, 6] {
            let mut add = |vip: Vip, port, protocol, backends: &[u8]| {
                let service = DesiredService {
                    hash_key: 0x1234_5678_9abc_def0,
                    idle_timeout: 300,
                    nat: if vip == Vip::Full {
                        Nat::Full
                    } else {
                        Nat::Gateway
                    },
                    ping: vip.ping(),
                    backends: backends
                        .iter()
                        .map(|&n| backend(version, n, &next_hops))
                        .collect(),
                };
                desired
                    .services
                    .insert(vip.key(version, port, protocol), service);
            };
            add(Vip::Plain, 80, TCP, &[1]);
            add(Vip::Plain, 53, UDP, &[2]);
            add(Vip::Plain, 2905, SCTP, &[1]);
            add(Vip::Gateway, 2905, SCTP, &[14]);
            add(Vip::AnyPort, 0, TCP, &[3]);
            add(Vip::Behind, 80, TCP, &[4]);
            add(Vip::Empty, 80, TCP, &[]);
            add(Vip::Dead, 80, TCP, &[5]);
            add(Vip::Moving, 80, TCP, &[6]);
            add(Vip::Moving, 53, UDP, &[6]);
            add(Vip::Spread, 80, TCP, &[8, 9, 10]);
            add(Vip::TunV4, 80, TCP, &[11]);
            add(Vip::TunV6, 80, TCP, &[12]);
            add(Vip::TunSpread, 80, TCP, &[13]);
            add(Vip::Gateway, 80, TCP, &[14]);
            add(Vip::Gateway, 53, UDP, &[14]);
            add(Vip::Full, 80, TCP, &[15]);
            add(Vip::Full, 53, UDP, &[15]);
            add(Vip::Sharing, 80, TCP, &[16]);
            add(Vip::Shared, 80, TCP, &[16]);
            add(Vip::AllPorts, 0, UDP, &[17]);
            add(Vip::OneTag, 80, TCP, &[18]);
            add(Vip::TwoTags, 80, TCP, &[19]);
            add(Vip::TunInVlan, 80, TCP, &[20]);
            add(Vip::NatInVlan, 80, TCP, &[21]);
        }
        for service in desired.services.iter_mut() {
            let (key, service) = service;
            for backend in service.backends.iter_mut().filter(|b| b.mode == mode::NAT) {
                backend.port = backend_port(key.port);
            }
        }
        self.follow(&mut state, &desired);
        self.stock_pool(&state);
        for version in [4, 6] {
            let strict = VipValue {
                other_protocols: other_protocols::DROP,
                ..VipValue::default()
            };
            self.write(&Op::PutVip(Vip::Sharing.address(version), strict));
        }
        for version in [4, 6] {
            for (port, protocol) in [(80, TCP), (53, UDP)] {
                let key = Vip::Moving.key(version, port, protocol);
                let backends = &mut desired.services.get_mut(&key).unwrap().backends;
                backends[0].weight = 0;
                backends.push(backend(version, 7, &next_hops));
            }
        }
        self.follow(&mut state, &desired);
        // Dead behind the ring's back, as in the moment before it is told.
        for (&id, &n) in &self.numbers {
            if n == 5 {
                let mut entry = self.tables.backends[id as usize];
                entry.state = lb_common::backend::state::DEAD;
                self.tables.backends[id as usize] = entry;
                self.kernel.apply(&Op::PutBackend(id, entry)).unwrap();
            }
        }
    }

    fn follow(&mut self, state: &mut State, desired: &Desired) {
        for op in plan(state, desired, None, self.now()).unwrap().ops {
            self.write(&op);
            if let Op::PutBackend(id, entry) = &op {
                let mac: [u8; 6] = entry.next_hop_mac().into();
                self.numbers.insert(*id, mac[5]);
            }
        }
    }

    /// A service as it is in the kernel.
    pub fn service(&self, key: &ServiceKey) -> ServiceValue {
        self.kernel.dump().unwrap().services[key].0
    }

    /// Writes to the maps of both.
    pub fn write(&mut self, op: &Op) {
        self.kernel.apply(op).unwrap();
        dataplane::host::apply(&mut self.tables, op);
    }

    /// A few ports for each address of the pool, in a known order.
    fn stock_pool(&mut self, state: &State) {
        for (&number, address) in state.pool() {
            for port in POOL_PORTS {
                let port = PoolPort::new(number, port);
                let is_v4 = address.is_ipv4();
                self.kernel.nat().add_port(is_v4, port).unwrap();
                let ports = if is_v4 {
                    &self.tables.v4.ports
                } else {
                    &self.tables.v6.ports
                };
                ports.borrow_mut().push_back(port);
            }
        }
        let [eth0, _] = self.interfaces;
        let mut entry = Backend::default();
        entry.set_macs(ROUTER_MAC, DIRECTOR_MAC);
        let via = Route::Via {
            interface: eth0,
            macs: entry.macs,
        };
        let by_vlan = Route::Via {
            interface: self.vlans[0],
            macs: entry.macs,
        };
        // What `router` has told the kernel.
        self.tables.routes = Some(Box::new(move |&destination| {
            let destination = IpAddr::from(destination);
            let is_in = |prefix: &str| match (destination, prefix.parse::<IpAddr>().unwrap()) {
                (IpAddr::V4(ip), IpAddr::V4(prefix)) => ip.octets()[..3] == prefix.octets()[..3],
                (IpAddr::V6(ip), IpAddr::V6(prefix)) => {
                    ip.segments()[..4] == prefix.segments()[..4]
                }
                _ => false,
            };
            let mut routers = ROUTERS.iter().map(|ip| ip.parse::<IpAddr>().unwrap());
            let is_router = routers.any(|ip| ip == destination);
            if [4, 6]
                .iter()
                .any(|v| destination == client_address(*v, true))
            {
                (via, NARROW)
            } else if is_in("198.51.100.0") || is_in("2001:db8:c::") || is_router {
                (via, MTU)
            } else if is_in("192.0.2.0") || is_in("2001:db8:e::") {
                (by_vlan, MTU)
            } else if is_in("203.0.113.0") || is_in("2001:db8:0:10::") {
                (Route::Host, MTU)
            } else {
                (Route::Host, u16::MAX)
            }
        }));
    }

    /// Time by the packet path's clock.
    pub fn now(&self) -> u32 {
        self.kernel.now()
    }

    /// Leaves no CPU an ICMP error to send in this second.
    pub fn exhaust_icmp_budget(&self) {
        self.set_icmp_budget(IcmpBudget {
            second: self.now(),
            sent: IcmpBudget::PER_SECOND,
        });
    }

    fn set_icmp_budget(&self, budget: IcmpBudget) {
        let pin = self.bpffs.join(format!("v{ABI_VERSION}/ICMP_BUDGET"));
        let map = Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap();
        let mut budgets = PerCpuArray::<_, IcmpBudget>::try_from(map).unwrap();
        let cpus = aya::util::nr_cpus().unwrap();
        let values = PerCpuValues::try_from(vec![budget; cpus]).unwrap();
        budgets.set(0, values, 0).unwrap();
    }

    /// Runs a frame through the program in the kernel, as received by the
    /// first interface.
    pub fn in_kernel(&self, frame: &[u8]) -> Outcome {
        let before = self.kernel_counters();
        let (action, out) = self.run_in_kernel(frame);
        let (counted, dropped) = difference(&before, &self.kernel_counters());
        let (recorded, translated) = self.flows_in_kernel();
        let is_rewritten = action == 2 && out != frame;
        Outcome {
            verdict: if is_rewritten {
                Verdict::Host
            } else {
                self.verdict(action, &dropped)
            },
            bytes: out,
            counted,
            dropped,
            recorded,
            translated,
        }
    }

    /// XDP action, and the frame afterwards.
    fn run_in_kernel(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex,
        // rx_queue_index, egress_ifindex.
        let mut context = [0_u32; 6];
        context[1] = frame.len() as u32;
        context[3] = self.interfaces[0];
        let context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut out = vec![0; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        let result = self.program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    fn flows_in_kernel(&self) -> Flows {
        let mut recorded = BTreeSet::new();
        self.kernel
            .flows()
            .scan(&mut |flow: RecordedFlow| {
                let RecordedFlow { key, value, .. } = flow;
                if !flow.is_translated {
                    let number = self.number(value.backend);
                    recorded.insert((key.vip, number, value.hash));
                }
            })
            .unwrap();
        let mut translated = BTreeSet::new();
        self.kernel
            .nat()
            .scan(&mut |flow: NatFlow| {
                translated.insert(Translated {
                    vip: flow.service.vip,
                    pool_port: flow.pool_port,
                    seen: [flow.client_seen.flags, flow.backend_seen.flags],
                });
            })
            .unwrap();
        (recorded, translated)
    }

    fn verdict(&self, action: u32, dropped: &BTreeMap<DropReason, u64>) -> Verdict {
        match action {
            1 => {
                let reasons: Vec<_> = dropped.iter().collect();
                match reasons[..] {
                    [(&reason, 1)] => Verdict::Drop(reason),
                    _ => panic!("a drop must be counted once, not {dropped:?}"),
                }
            }
            2 => Verdict::Pass,
            3 => Verdict::Transmit,
            4 => Verdict::Redirect(self.interfaces[1]),
            other => panic!("XDP action {other}"),
        }
    }

    /// Runs a frame through the same source on the host.
    pub fn on_host(&self, frame: &[u8]) -> Outcome {
        self.packet_on_host(self.received(frame))
    }

    /// The same for a frame with no room in front of it, which the kernel's test
    /// run does not offer.
    pub fn on_host_without_headroom(&self, frame: &[u8]) -> Outcome {
        self.packet_on_host(self.received(frame).without_headroom())
    }

    fn received(&self, frame: &[u8]) -> HostPacket {
        HostPacket::new(frame, self.interfaces[0])
    }

    fn packet_on_host(&self, packet: HostPacket) -> Outcome {
        let before = self.host_counters();
        let (verdict, bytes) = self.run_on_host(packet);
        let (counted, dropped) = difference(&before, &self.host_counters());
        let (recorded, translated) = self.flows_on_host();
        Outcome {
            verdict,
            bytes,
            counted,
            dropped,
            recorded,
            translated,
        }
    }

    fn run_on_host(&self, mut packet: HostPacket) -> (Verdict, Vec<u8>) {
        self.tables.now.set(self.now());
        let verdict = lb_ebpf::process(&mut packet, &self.tables);
        (verdict, packet.bytes().to_vec())
    }

    fn flows_on_host(&self) -> Flows {
        let v4 = self.tables.v4.flows.borrow();
        let v6 = self.tables.v6.flows.borrow();
        let flows_v4 = v4.iter().map(|(key, value)| {
            let vip = Address::from_v4_word(key.service().vip());
            (IpAddr::from(vip), *value)
        });
        let flows_v6 = v6
            .iter()
            .map(|(key, value)| (IpAddr::from(key.service().vip()), *value));
        let recorded = flows_v4
            .chain(flows_v6)
            .map(|(vip, value)| (vip, self.number(value.backend), value.hash))
            .collect();
        (recorded, self.translated_on_host())
    }

    fn translated_on_host(&self) -> BTreeSet<Translated> {
        let mut found = BTreeSet::new();
        for (key, reverse) in &*self.tables.v4.nat_reverse.borrow() {
            let (_, pool, ports, protocol) = key.parts();
            let client_ports = u32::from(reverse.client_port) | u32::from(reverse.port) << 16;
            let forward =
                FlowKeyV4::from_packet(reverse.client, reverse.vip, client_ports, protocol);
            let forward = self.tables.v4.nat_forward.borrow().get(&forward).copied();
            let forward = forward.filter(|f| f.address == pool && u32::from(f.port) == ports >> 16);
            let vip = Address::from_v4_word(reverse.vip);
            found.insert(translated(vip, reverse, forward.map(|f| f.seen)));
        }
        for (key, reverse) in &*self.tables.v6.nat_reverse.borrow() {
            let (_, pool, ports, protocol) = key.parts();
            let client_ports = u32::from(reverse.client_port) | u32::from(reverse.port) << 16;
            let forward =
                FlowKeyV6::from_packet(reverse.client, reverse.vip, client_ports, protocol);
            let forward = self.tables.v6.nat_forward.borrow().get(&forward).copied();
            let forward = forward.filter(|f| f.address == pool && u32::from(f.port) == ports >> 16);
            found.insert(translated(reverse.vip, reverse, forward.map(|f| f.seen)));
        }
        found
    }

    /// Number of the backend in an entry; 0 if there is none.
    fn number(&self, id: u32) -> u8 {
        self.numbers.get(&id).copied().unwrap_or(0)
    }

    fn kernel_counters(&self) -> Counters {
        let mut counters = Counters::default();
        for (&id, &n) in &self.numbers {
            add(
                counters.0.entry(n).or_default(),
                &self.kernel.counters(id).unwrap(),
            );
        }
        for &reason in DropReason::ALL {
            counters
                .1
                .insert(reason, self.kernel.drops(reason).unwrap());
        }
        counters
    }

    fn host_counters(&self) -> Counters {
        let mut counters = Counters::default();
        for (id, value) in &*self.tables.counters.borrow() {
            add(counters.0.entry(self.numbers[id]).or_default(), value);
        }
        counters.1.clone_from(&self.tables.drops.borrow());
        counters
    }
}

/// See [`Outcome::recorded`] and [`Outcome::translated`].
type Flows = (BTreeSet<(IpAddr, u8, u32)>, BTreeSet<Translated>);

/// By backend number, and by drop reason.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counters(BTreeMap<u8, BackendCounters>, BTreeMap<DropReason, u64>);

fn add(sum: &mut BackendCounters, value: &BackendCounters) {
    sum.packets += value.packets;
    sum.bytes += value.bytes;
    sum.flows += value.flows;
    sum.reply_packets += value.reply_packets;
    sum.reply_bytes += value.reply_bytes;
}

/// What has moved.
fn difference(
    before: &Counters,
    after: &Counters,
) -> (BTreeMap<u8, BackendCounters>, BTreeMap<DropReason, u64>) {
    let mut counted = BTreeMap::new();
    for (&n, after) in &after.0 {
        let before = before.0.get(&n).copied().unwrap_or_default();
        let moved = BackendCounters {
            packets: after.packets - before.packets,
            bytes: after.bytes - before.bytes,
            flows: after.flows - before.flows,
            reply_packets: after.reply_packets - before.reply_packets,
            reply_bytes: after.reply_bytes - before.reply_bytes,
        };
        if moved != BackendCounters::default() {
            counted.insert(n, moved);
        }
    }
    let mut dropped = BTreeMap::new();
    for (&reason, &after) in &after.1 {
        let moved = after - before.1.get(&reason).copied().unwrap_or_default();
        if moved != 0 {
            dropped.insert(reason, moved);
        }
    }
    (counted, dropped)
}

fn translated<A>(vip: Address, reverse: &NatReverse<A>, client: Option<Seen>) -> Translated {
    let client = client.unwrap_or(reverse.client_seen);
    Translated {
        vip: vip.into(),
        pool_port: (reverse.pool_port != NO_PORT).then_some(PoolPort(reverse.pool_port)),
        seen: [client.flags, reverse.backend_seen.flags],
    }
}
