//! What is measured.

use integration::Lab;
use lb_common::protocol::{TCP, UDP};

use crate::Options;
use crate::programs::{EMPTY, ENCAPSULATE, Generator, MAC_SWAP, Traffic, director};
use crate::world::{Mode, Slots, World};

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const ACK: u32 = 0x10;
const SYN: u32 = 0x02;

/// Net nanoseconds per packet of one case.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was measured.
    pub name: String,
    /// The program.
    pub net: Spread,
    /// Constant encapsulation, in the same rounds.
    pub encapsulation: Spread,
    /// MAC swap, in the same rounds.
    pub mac_swap: Spread,
}

/// Median and quartiles over the rounds, nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Lower quartile.
    pub low: f64,
    /// Upper quartile.
    pub high: f64,
}

/// A group of cases that share their maps.
struct Group {
    mode: Mode,
    slots: Slots,
    services: u32,
    each: u32,
    cases: Vec<(&'static str, Traffic)>,
}

/// Measures everything.
pub fn run(lab: &Lab, options: &Options) -> anyhow::Result<Vec<Measured>> {
    let mut results = Vec::new();
    for (i, group) in groups(options.quick).iter().enumerate() {
        let bpffs = lab.bpffs().join(format!("bench{i}"));
        let mut world = World::new(&bpffs, group.mode, group.services, group.each)?;
        if group.slots != Slots::Settled {
            // Record the flows that are measured, while they are the old ones.
            world.replace_backends(group.mode, group.services, group.each)?;
            for (_, traffic) in &group.cases {
                pass_once(&world, traffic)?;
            }
        }
        if group.slots == Slots::Pinned {
            world.let_the_window_pass()?;
        }
        for (name, traffic) in &group.cases {
            eprintln!("{name}");
            results.push(measure(&world, name, traffic, options)?);
        }
        lb_ctl::dataplane::unload(&bpffs)?;
    }
    Ok(results)
}

fn groups(quick: bool) -> Vec<Group> {
    let one = |version, protocol, flags| Traffic {
        version,
        protocol: u32::from(protocol),
        flags,
        flows: 1,
        vips: 1,
        port: 80,
    };
    let many = |version, flows, vips| Traffic {
        flows,
        vips,
        ..one(version, TCP, ACK)
    };
    let mut groups = Vec::new();
    for (mode, names) in [
        (
            Mode::Dr,
            [
                "DR, IPv4 TCP, one flow",
                "DR, IPv4 TCP SYN, one flow",
                "DR, IPv4 UDP, one flow",
                "DR, IPv6 TCP, one flow",
                "DR, IPv6 UDP, one flow",
                "DR, IPv4 TCP, 64 K flows, 100 x 10",
                "DR, IPv4 TCP, 1 M flows, 100 x 10",
                "DR, IPv6 TCP, 1 M flows, 100 x 10",
                "DR, not for a service, IPv4",
            ],
        ),
        (
            Mode::Tun,
            [
                "TUN, IPv4 TCP, one flow",
                "TUN, IPv4 TCP SYN, one flow",
                "TUN, IPv4 UDP, one flow",
                "TUN, IPv6 TCP, one flow",
                "TUN, IPv6 UDP, one flow",
                "TUN, IPv4 TCP, 64 K flows, 100 x 10",
                "TUN, IPv4 TCP, 1 M flows, 100 x 10",
                "TUN, IPv6 TCP, 1 M flows, 100 x 10",
                "TUN, not for a service, IPv6",
            ],
        ),
    ] {
        let elsewhere = Traffic {
            port: 81,
            ..one(if mode == Mode::Dr { 4 } else { 6 }, TCP, ACK)
        };
        let traffic = [
            one(4, TCP, ACK),
            one(4, TCP, SYN),
            one(4, UDP, 0),
            one(6, TCP, ACK),
            one(6, UDP, 0),
            many(4, 1 << 16, 100),
            many(4, 1 << 20, 100),
            many(6, 1 << 20, 100),
            elsewhere,
        ];
        groups.push(Group {
            mode,
            slots: Slots::Settled,
            services: 100,
            each: 10,
            cases: names.into_iter().zip(traffic).collect(),
        });
    }
    for (slots, name) in [
        (
            Slots::Moving,
            "DR, IPv4 TCP, one recorded flow, slots moving",
        ),
        (
            Slots::Pinned,
            "DR, IPv4 TCP, one recorded flow, slots pinned",
        ),
    ] {
        groups.push(Group {
            mode: Mode::Dr,
            slots,
            services: 1,
            each: 10,
            cases: vec![(name, one(4, TCP, ACK))],
        });
    }
    if !quick {
        groups.push(Group {
            mode: Mode::Dr,
            slots: Slots::Settled,
            services: 1000,
            each: 100,
            cases: vec![(
                "DR, IPv4 TCP, 1 M flows, 1,000 x 100",
                many(4, 1 << 20, 1000),
            )],
        });
    }
    groups
}

fn pass_once(world: &World, traffic: &Traffic) -> anyhow::Result<()> {
    let program = director(&world.bpffs)?;
    Generator::new(traffic)?.time(&program, traffic.flows, XDP_TX)?;
    Ok(())
}

fn measure(
    world: &World,
    name: &str,
    traffic: &Traffic,
    options: &Options,
) -> anyhow::Result<Measured> {
    let (rounds, repeat) = if options.quick {
        (7, 200_000)
    } else {
        (15, 1_000_000)
    };
    let for_a_service = traffic.port == 80;
    let verdict = if for_a_service { XDP_TX } else { XDP_PASS };
    let mut generator = Generator::new(traffic)?;
    let empty = generator.floor(EMPTY)?;
    let swap = generator.floor(MAC_SWAP)?;
    let encapsulate = generator.floor(ENCAPSULATE)?;
    let program = director(&world.bpffs)?;
    // Warms the caches up as they are in steady state.
    generator.time(&program, repeat, verdict)?;
    let before = world.counted()?;
    let mut net = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let base = generator.time(&empty, repeat, XDP_TX)?;
        net[0].push(generator.time(&program, repeat, verdict)? - base);
        net[1].push(generator.time(&encapsulate, repeat, XDP_TX)? - base);
        net[2].push(generator.time(&swap, repeat, XDP_TX)? - base);
    }
    // A fast wrong answer does not count: every packet was forwarded, or none.
    let after = world.counted()?;
    let packets = if for_a_service {
        rounds * u64::from(repeat)
    } else {
        0
    };
    anyhow::ensure!(
        (after.0 - before.0, after.1 - before.1) == (packets, 0),
        "{name}: {} forwarded and {} dropped, {packets} expected",
        after.0 - before.0,
        after.1 - before.1
    );
    let [program, encapsulation, mac_swap] = net.map(Spread::of);
    Ok(Measured {
        name: name.to_owned(),
        net: program,
        encapsulation,
        mac_swap,
    })
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| values[(part * (values.len() - 1) as f64).round() as usize];
        Self {
            median: at(0.5),
            low: at(0.25),
            high: at(0.75),
        }
    }
}
