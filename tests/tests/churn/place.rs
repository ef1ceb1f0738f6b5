//! A lab in which all modes work at once: backends answer from the VIP past
//! the director, and from their own addresses through it.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use integration::talk::Echo;
use integration::topology::{Family, INTERFACE, Nat, Net, Place, Site};
use integration::{paths, run};

use crate::service::{SHIFT, Service};

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Routes for what is sent from the VIPs.
const TABLE: &str = "100";

/// The lab with hosts that are ready to serve.
pub fn build(name: &str, place: Place, hosts: u8) -> anyhow::Result<Site> {
    let site = Site::nat(name, Nat::GATEWAY.at(place), hosts)?;
    let gateway: fn(Family) -> IpAddr = match place {
        Place::BesideDirector | Place::BehindRouter => |family| Net::Director.address(family, 1),
        Place::BehindDirector => {
            let second = site.add_router()?.host;
            for family in FAMILIES {
                let (clients, via) = (
                    Net::Clients.prefix(family),
                    Net::Director.address(family, 1).to_string(),
                );
                second.run("ip", ["route", "add", &clients, "via", &via])?;
            }
            |family| Net::Backends.address(family, 3)
        }
    };
    for i in 0..site.backends.len() {
        serve_all_modes(&site, i, gateway)?;
    }
    Ok(site)
}

/// What the director sends from in tunnels, by where the backends are.
fn directors() -> String {
    let nets = [Net::Director, Net::Backends];
    let addresses = nets.iter().flat_map(|net| {
        FAMILIES
            .iter()
            .map(|family| net.address(*family, 2).to_string())
    });
    addresses.collect::<Vec<_>>().join(",")
}

fn serve_all_modes(site: &Site, i: usize, gateway: fn(Family) -> IpAddr) -> anyhow::Result<()> {
    let host = &site.backends[i].host;
    let vips = FAMILIES.map(|family| family.vip().to_string());
    let mut agent = host.command(paths::binary("lb-agent")?);
    agent.args(["apply", "--vip", &vips.join(","), "--interface", INTERFACE]);
    agent
        .arg("--state")
        .arg(Site::agent_state_of(&site.lab, host.name()))
        .args(["--mode", "tun", "--director", &directors(), "--bpffs"])
        .arg(site.lab.bpffs().join(format!("agent-{}", host.name())));
    run(&mut agent).with_context(|| format!("on host {}", host.name()))?;
    for (family, vip) in FAMILIES.into_iter().zip(vips) {
        let version = match family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        let via = gateway(family).to_string();
        let route = ["route", "add", "default", "via", &via, "table", TABLE];
        host.run("ip", [&[version], &route[..]].concat())?;
        let rule = ["rule", "add", "from", &vip, "lookup", TABLE];
        host.run("ip", [&[version], &rule[..]].concat())?;
    }
    Ok(())
}

/// Serves every service on a host, whether it has it or not.
pub fn start_echo(site: &Site, i: usize) -> anyhow::Result<Echo> {
    let backend = &site.backends[i];
    let addresses = FAMILIES.into_iter().flat_map(|family| {
        let (vip, rip) = (family.vip(), backend.address(family));
        Service::ports().flat_map(move |port| {
            [(vip, port), (rip, port), (rip, port + SHIFT)]
                .map(|(ip, port)| SocketAddr::new(ip, port))
        })
    });
    Echo::start(&backend.host, &addresses.collect::<Vec<_>>())
}
