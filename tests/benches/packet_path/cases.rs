//! What is measured: worlds, and packets in them.

use std::path::Path;

use lb_common::protocol::{TCP, UDP};

use crate::programs::{Generator, Traffic, director};
use crate::router;
use crate::world::{CLIENT_PORT, LOOPBACK, Layout, Mode, PORT, Slots, World, client, vip};

const XDP_PASS: u32 = 2;
/// What all programs but those that pass return.
pub const XDP_TX: u32 = 3;
/// Flags of an established flow's packet.
pub const ACK: u32 = 0x10;
/// Flags of a flow's first packet.
pub const SYN: u32 = 0x02;
/// Of no service.
const OTHER_PORT: u16 = 81;

/// How many times as long as a constant encapsulation a packet of one
/// established flow may take, or one of no service.
const TUN_TARGET: f64 = 3.3;
const DR_TARGET: f64 = 2.9;
const ELSEWHERE_TARGET: f64 = 1.5;

/// How many times as long as one established flow's may take: of a flow that is
/// just as dear, but for what a measurement cannot tell apart;
const ALIKE_TARGET: f64 = 1.05;
/// of IPv6 in place of IPv4;
const IPV6_TARGET: f64 = 1.25;
/// of a million flows to 1,000 backends;
const MANY_TARGET: f64 = 1.5;
/// of a flow that is recorded;
const RECORDED_TARGET: f64 = 2.5;
/// of a million flows to 100,000 backends.
const LARGE_TARGET: f64 = 6.0;

/// Packets of one kind in a world.
pub struct Case {
    /// Mode, packets and, if it is not settled, state of the slots.
    pub name: String,
    /// The client's packets.
    pub traffic: Traffic,
    /// Whether what a backend answers to them is measured in their place.
    pub is_reply: bool,
    /// How fast it should be.
    pub target: Option<Target>,
}

/// How fast a case should be.
#[derive(Clone, Debug)]
pub struct Target {
    /// At most so many times as slow as the yardstick.
    pub at_most: f64,
    /// What it is compared with.
    pub yardstick: Yardstick,
}

/// What a case is compared with.
#[derive(Clone, Debug)]
pub enum Yardstick {
    /// The encapsulation to a constant destination, in the same rounds.
    Encapsulation,
    /// The case of this name.
    Case(String),
}

impl Case {
    /// A generator of its packets.
    pub fn generator(&self, world: &World) -> anyhow::Result<Generator> {
        let interface = world.layout.interface;
        let mut generator = Generator::new(&self.traffic, interface)?;
        if !self.is_reply {
            return Ok(generator);
        }
        let sent = generator.outputs(&director(&world.bpffs)?, 1, XDP_TX)?;
        Generator::new(&self.traffic.answer(&sent[0]), interface)
    }

    /// Whether they are forwarded.
    pub fn is_for_a_service(&self) -> bool {
        self.traffic.port == PORT
    }

    /// What the program returns for each of them.
    pub fn verdict(&self) -> u32 {
        if self.is_for_a_service() {
            XDP_TX
        } else {
            XDP_PASS
        }
    }
}

/// Cases that share their maps.
pub struct Group {
    layout: Layout,
    slots: Slots,
    /// The cases.
    pub cases: Vec<Case>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything.
    Full,
    /// But for the 100,000 backends.
    Quick,
    /// Worlds as small as they can be without being simple: how many flows,
    /// services and backends there are makes no instruction more or less, but
    /// it takes instructions to plan for them.
    Small,
}

/// All cases, by world.
pub fn groups(extent: Extent) -> Vec<Group> {
    let is_small = extent == Extent::Small;
    let services = if is_small { 4 } else { 100 };
    let mut groups = Vec::new();
    for mode in [Mode::Dr, Mode::Tun] {
        let mut settled = Group::new(mode, Slots::Settled, services, 10);
        for version in [4, 6] {
            settled.add_single_flows(version);
        }
        settled.add_many(4, "64 K", 1 << 16);
        if !is_small {
            for version in [4, 6] {
                let case = settled.add_many(version, "1 M", 1 << 20);
                if (mode, version) == (Mode::Tun, 4) {
                    case.target = times_one_flow(mode, version, MANY_TARGET);
                }
            }
        }
        for version in [4, 6] {
            let name = format!("not for a service, IPv{version}");
            settled.add(&name, elsewhere(version)).target = times_floor(ELSEWHERE_TARGET);
        }
        groups.push(settled);
    }
    for slots in [Slots::Moving, Slots::Pinned] {
        let mut group = Group::new(Mode::Dr, slots, 1, 10);
        for (name, traffic) in [
            ("IPv4 TCP", one(4, TCP, ACK)),
            ("IPv4 TCP SYN", one(4, TCP, SYN)),
            ("IPv4 UDP", one(4, UDP, 0)),
            ("IPv6 TCP", one(6, TCP, ACK)),
        ] {
            let version = if name.starts_with("IPv6") { 6 } else { 4 };
            let case = group.add(&format!("{name}, one recorded flow"), traffic);
            case.target = times_one_flow(Mode::Dr, version, RECORDED_TARGET);
        }
        groups.push(group);
    }
    groups.extend([Mode::Nat, Mode::FullNat].map(|mode| translated(mode, services)));
    if !is_small {
        let mut many = Group::new(Mode::Nat, Slots::Settled, services, 10);
        many.add_many(4, "64 K", 1 << 16);
        groups.push(many);
    }
    if extent == Extent::Full {
        for mode in [Mode::Dr, Mode::Tun] {
            let mut large = Group::new(mode, Slots::Settled, 1000, 100);
            let case = large.add_many(4, "1 M", 1 << 20);
            case.target = times_one_flow(mode, 4, LARGE_TARGET);
            groups.push(large);
        }
    }
    groups
}

/// At most so many times as slow as a constant encapsulation.
fn times_floor(at_most: f64) -> Option<Target> {
    Some(Target {
        at_most,
        yardstick: Yardstick::Encapsulation,
    })
}

/// At most so many times as slow as one established flow of TCP.
fn times_one_flow(mode: Mode, version: u32, at_most: f64) -> Option<Target> {
    Some(Target {
        at_most,
        yardstick: Yardstick::Case(format!("{mode}, {}", one_flow(version))),
    })
}

/// Name of an established flow of TCP, without the mode.
fn one_flow(version: u32) -> String {
    format!("IPv{version} TCP, one flow")
}

/// Packets of flows that are translated, there and back.
fn translated(mode: Mode, services: u32) -> Group {
    let mut group = Group::new(mode, Slots::Settled, services, 10);
    for version in [4, 6] {
        let tcp = one(version, TCP, ACK);
        let udp = one(version, UDP, 0);
        group.add(&format!("IPv{version} TCP, one flow"), tcp);
        if mode == Mode::Nat {
            let syn = one(version, TCP, SYN);
            group.add(&format!("IPv{version} TCP SYN, one flow"), syn);
        }
        group.add(&format!("IPv{version} UDP, one flow"), udp);
        for (name, traffic) in [("TCP", tcp), ("UDP", udp)] {
            let case = group.add(&format!("IPv{version} {name} reply, one flow"), traffic);
            case.is_reply = true;
        }
    }
    group
}

/// Packets of one flow to the first service.
pub fn one(version: u32, protocol: u8, flags: u32) -> Traffic {
    let is_v4 = version == 4;
    Traffic {
        from: (client(is_v4), CLIENT_PORT),
        to: vip(is_v4, 0),
        protocol: protocol.into(),
        flags,
        flows: 1,
        vips: 1,
        port: PORT,
    }
}

fn elsewhere(version: u32) -> Traffic {
    Traffic {
        port: OTHER_PORT,
        ..one(version, TCP, ACK)
    }
}

impl Group {
    fn new(mode: Mode, slots: Slots, services: u32, each: u32) -> Self {
        Self {
            layout: Layout {
                mode,
                services,
                each,
                interface: match mode {
                    Mode::Dr | Mode::Tun => LOOPBACK,
                    Mode::Nat | Mode::FullNat => router::INTERFACE,
                },
            },
            slots,
            cases: Vec::new(),
        }
    }

    /// Packets of one flow when nothing changes, and what they may take.
    fn add_single_flows(&mut self, version: u32) {
        let mode = self.layout.mode;
        let established = self.add(&one_flow(version), one(version, TCP, ACK));
        established.target = match (mode, version) {
            (Mode::Dr, 4) => times_floor(DR_TARGET),
            (Mode::Tun, 4) => times_floor(TUN_TARGET),
            (Mode::Dr | Mode::Tun, _) => times_one_flow(mode, 4, IPV6_TARGET),
            (Mode::Nat | Mode::FullNat, _) => None,
        };
        for (name, protocol, flags) in [("TCP SYN", TCP, SYN), ("UDP", UDP, 0)] {
            let packets = format!("IPv{version} {name}, one flow");
            let case = self.add(&packets, one(version, protocol, flags));
            case.target = times_one_flow(mode, version, ALIKE_TARGET);
        }
    }

    fn add(&mut self, packets: &str, traffic: Traffic) -> &mut Case {
        let mode = self.layout.mode;
        let name = match self.slots {
            Slots::Settled => format!("{mode}, {packets}"),
            Slots::Moving => format!("{mode}, {packets}, slots moving"),
            Slots::Pinned => format!("{mode}, {packets}, slots pinned"),
        };
        self.cases.push_mut(Case {
            name,
            traffic,
            is_reply: false,
            target: None,
        })
    }

    /// Established flows of TCP over all services of the group.
    fn add_many(&mut self, version: u32, number: &str, flows: u32) -> &mut Case {
        let Layout { services, each, .. } = self.layout;
        let traffic = Traffic {
            flows,
            vips: services,
            ..one(version, TCP, ACK)
        };
        let packets = format!("IPv{version} TCP, {number} flows, {services} x {each}");
        self.add(&packets, traffic)
    }

    /// A world in which the cases can be measured.
    pub fn world(&self, bpffs: &Path) -> anyhow::Result<World> {
        let mut world = World::new(bpffs, self.layout)?;
        if self.slots != Slots::Settled {
            // Record the flows that are measured, while they are the old ones.
            world.replace_backends()?;
            for case in &self.cases {
                let program = director(bpffs)?;
                let flows = case.traffic.flows;
                let mut generator = case.generator(&world)?;
                generator.run(&program, flows, case.verdict())?;
            }
        }
        if self.slots == Slots::Pinned {
            world.let_the_window_pass()?;
        }
        Ok(world)
    }
}
