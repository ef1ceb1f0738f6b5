//! How many instructions a packet takes on its way through a director, ours
//! and IPVS.

use serde::{Deserialize, Serialize};

use super::machine::{self, KERNEL};

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

/// Counts in a machine.
pub fn run() -> anyhow::Result<Vec<Way>> {
    eprintln!("counting instructions of directors on kernel {KERNEL}");
    machine::run("--wire", |vm| {
        let programs = ["ip", "ethtool", "ipvsadm"];
        let vm = programs.iter().fold(vm, |vm, name| vm.program(name));
        MODULES.iter().fold(vm, |vm, name| vm.module(name))
    })
}

/// Prints a table.
pub fn print(ways: &[Way]) {
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
        "instructions per IPv4 TCP packet of 64 bytes over the whole path: source, veth, director, \
         veth, sink; for new flows the median, as tables fill; kernel {KERNEL}"
    );
    println!(
        "{:<24} {:>18} {:>18} {:>18}",
        "IPVS / ours", "whole path", "source apart", "and veth apart"
    );
    let find = |mode: &str, name: &str| ways.iter().find(|w| w.mode == mode && w.way == name);
    for ours in ways.iter().filter(|way| way.way == OURS) {
        let Some(ipvs) = find(&ours.mode, IPVS) else {
            continue;
        };
        for (flows, count) in [
            ("established flow", Way::established as fn(&Way) -> u64),
            ("new flows", Way::new_ones),
        ] {
            let ratio = |apart: Option<&Way>| {
                let apart = apart.map_or(0, count);
                count(ipvs).saturating_sub(apart) as f64 / count(ours).saturating_sub(apart) as f64
            };
            println!(
                "{:<24} {:>18.2} {:>18.2} {:>18.2}",
                format!("{}, {flows}", ours.mode),
                ratio(None),
                ratio(find("", SOURCE)),
                ratio(find("", VETH))
            );
        }
    }
}

impl Way {
    fn established(&self) -> u64 {
        self.established_flow
    }

    fn new_ones(&self) -> u64 {
        self.new_flows
    }
}
