//! How many instructions a packet takes on its way through a director, ours
//! and IPVS.

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::machine::{self, KERNEL};
use super::target::{Bound, Target};

/// What the ways need that is not built in. IPVS's own tunnels need no device.
const MODULES: [&str; 3] = ["veth", "ip_vs", "ip_vs_mh"];

/// Names of ways, as the benchmark gives them.
const SOURCE: &str = "source";
const VETH: &str = "MAC swap in XDP";
const IPVS: &str = "IPVS";
const OURS: &str = "ours";

/// Instructions per packet on one way.
#[derive(Deserialize, Serialize)]
pub struct Way {
    /// Empty for a way that is no director's.
    mode: String,
    way: String,
    established_flow: u64,
    new_flows: u64,
}

/// What was counted.
#[derive(Serialize)]
pub struct Counted {
    ways: Vec<Way>,
    targets: Vec<Target>,
}

/// How many times as many instructions as ours IPVS should take, in DR.
const DR_TARGET: f64 = 6.0;

/// Counts in a machine.
pub fn run() -> anyhow::Result<Counted> {
    eprintln!("counting instructions of directors on kernel {KERNEL}");
    let ways: Vec<Way> = machine::run("--wire", |vm| {
        let programs = ["ip", "ethtool", "ipvsadm"];
        let vm = programs.iter().fold(vm, |vm, name| vm.program(name));
        MODULES.iter().fold(vm, |vm, name| vm.module(name))
    })?;
    let ratio = ratio(&ways, "DR", Way::established, None).context("DR was not counted")?;
    Ok(Counted {
        ways,
        targets: vec![Target {
            what: "IPVS / ours, DR, established flow, whole path",
            measured: ratio,
            bound: Bound::AtLeast(DR_TARGET),
        }],
    })
}

impl Counted {
    /// Prints a table.
    pub fn print(&self) {
        let Self { ways, targets } = self;
        println!(
            "{:<24} {:>18} {:>18}",
            "way", "established flow", "new flows"
        );
        for way in ways {
            println!(
                "{:<24} {:>18} {:>18}",
                format!("{} {}", way.way, way.mode),
                way.established_flow,
                way.new_flows
            );
        }
        println!(
            "instructions per IPv4 TCP packet of 64 bytes over the whole path: source, veth, \
             director, veth, sink; for new flows the median, as tables fill; kernel {KERNEL}"
        );
        println!(
            "{:<24} {:>18} {:>18} {:>18}",
            "IPVS / ours", "whole path", "source apart", "and veth apart"
        );
        for Way { mode, .. } in ways.iter().filter(|way| way.way == OURS) {
            for (flows, count) in [
                ("established flow", Way::established as fn(&Way) -> u64),
                ("new flows", Way::new_ones),
            ] {
                let ratios = [None, Some(SOURCE), Some(VETH)]
                    .map(|apart| ratio(ways, mode, count, apart).unwrap_or(f64::NAN));
                println!(
                    "{:<24} {:>18.2} {:>18.2} {:>18.2}",
                    format!("{mode}, {flows}"),
                    ratios[0],
                    ratios[1],
                    ratios[2]
                );
            }
        }
        for target in targets {
            println!("{target}");
        }
    }
}

/// How many times as many instructions IPVS takes as ours in a mode, without
/// those of the way that is to be left `apart`. `None` if one was not counted.
fn ratio(ways: &[Way], mode: &str, count: fn(&Way) -> u64, apart: Option<&str>) -> Option<f64> {
    let find = |mode: &str, name: &str| ways.iter().find(|w| w.mode == mode && w.way == name);
    let apart = match apart {
        Some(name) => count(find("", name)?),
        None => 0,
    };
    let net = |name| Some(count(find(mode, name)?).saturating_sub(apart) as f64);
    Some(net(IPVS)? / net(OURS)?)
}

impl Way {
    fn established(&self) -> u64 {
        self.established_flow
    }

    fn new_ones(&self) -> u64 {
        self.new_flows
    }
}
