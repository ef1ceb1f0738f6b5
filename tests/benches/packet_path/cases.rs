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

/// How many times as long as a constant encapsulation a packet may take.
const TUN_TARGET: f64 = 3.3;
const DR_TARGET: f64 = 2.9;
const ELSEWHERE_TARGET: f64 = 1.5;
/// How many times as long as one flow's a packet to any of 100,000 backends
/// may take.
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
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// At most so many times as slow as the yardstick.
    pub at_most: f64,
    /// What it is compared with.
    pub yardstick: Yardstick,
}

/// What a case is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Yardstick {
    /// The encapsulation to a constant destination, in the same rounds.
    Encapsulation,
    /// The same packets, of one flow.
    OneFlow,
}

/// Name of the case that is [`Yardstick::OneFlow`].
pub const ONE_FLOW: &str = "DR, IPv4 TCP, one flow";

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
        settled.add("IPv4 TCP, one flow", one(4, TCP, ACK));
        settled.add("IPv4 TCP SYN, one flow", one(4, TCP, SYN));
        settled.add("IPv4 UDP, one flow", one(4, UDP, 0));
        settled.add("IPv6 TCP, one flow", one(6, TCP, ACK));
        settled.add("IPv6 TCP SYN, one flow", one(6, TCP, SYN));
        settled.add("IPv6 UDP, one flow", one(6, UDP, 0));
        settled.add_many("IPv4 TCP, 64 K flows", 4, 1 << 16);
        if !is_small {
            settled.add_many("IPv4 TCP, 1 M flows", 4, 1 << 20);
            settled.add_many("IPv6 TCP, 1 M flows", 6, 1 << 20);
        }
        settled.add("not for a service, IPv4", elsewhere(4));
        settled.add("not for a service, IPv6", elsewhere(6));
        groups.push(settled);
    }
    for slots in [Slots::Moving, Slots::Pinned] {
        let mut group = Group::new(Mode::Dr, slots, 1, 10);
        group.add("IPv4 TCP, one recorded flow", one(4, TCP, ACK));
        group.add("IPv4 TCP SYN, one recorded flow", one(4, TCP, SYN));
        group.add("IPv4 UDP, one recorded flow", one(4, UDP, 0));
        group.add("IPv6 TCP, one recorded flow", one(6, TCP, ACK));
        groups.push(group);
    }
    groups.extend([Mode::Nat, Mode::FullNat].map(|mode| translated(mode, services)));
    if extent == Extent::Full {
        let mut large = Group::new(Mode::Dr, Slots::Settled, 1000, 100);
        large.add_many("IPv4 TCP, 1 M flows", 4, 1 << 20);
        for case in &mut large.cases {
            case.target = Some(Target {
                at_most: LARGE_TARGET,
                yardstick: Yardstick::OneFlow,
            });
        }
        groups.push(large);
    }
    groups
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
            group.add(&format!("IPv{version} {name} reply, one flow"), traffic);
            if let Some(case) = group.cases.last_mut() {
                case.is_reply = true;
            }
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

    fn add(&mut self, packets: &str, traffic: Traffic) {
        let mode = self.layout.mode;
        let name = match self.slots {
            Slots::Settled => format!("{mode}, {packets}"),
            Slots::Moving => format!("{mode}, {packets}, slots moving"),
            Slots::Pinned => format!("{mode}, {packets}, slots pinned"),
        };
        self.cases.push(Case {
            name,
            traffic,
            is_reply: false,
            target: self.target(&traffic),
        });
    }

    /// What packets of one flow may take when nothing changes.
    fn target(&self, traffic: &Traffic) -> Option<Target> {
        if self.slots != Slots::Settled || traffic.flows != 1 {
            return None;
        }
        let at_most = match self.layout.mode {
            _ if traffic.port != PORT => ELSEWHERE_TARGET,
            Mode::Dr => DR_TARGET,
            Mode::Tun => TUN_TARGET,
            Mode::Nat | Mode::FullNat => return None,
        };
        Some(Target {
            at_most,
            yardstick: Yardstick::Encapsulation,
        })
    }

    /// Established flows over all services of the group.
    fn add_many(&mut self, packets: &str, version: u32, flows: u32) {
        let Layout { services, each, .. } = self.layout;
        let traffic = Traffic {
            flows,
            vips: services,
            ..one(version, TCP, ACK)
        };
        self.add(&format!("{packets}, {services} x {each}"), traffic);
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
