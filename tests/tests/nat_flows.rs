//! Flows through NAT: through everything that happens to a director and its
//! backends, and beside what else the director forwards.
//!
//! Needs root, and `lb-ctl` built: `cargo xtask build-ebpf && cargo build -p
//! lb-ctl -p lb-agent`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use integration::Host;
use integration::capture::Capture;
use integration::talk::{Echo, Pace, Protocol, Talkers};
use integration::topology::{Family, INTERFACE, Nat, Net, Place, Scene, Site};
use nix::sys::signal::Signal;
use serde_json::json;

/// More patient than a slow machine is slow: what is lost is lost.
const PACE: Pace = Pace {
    every: Duration::from_millis(250),
    patience: Duration::from_secs(4),
};

fn talk(host: &Host, protocol: Protocol, to: SocketAddr, count: usize) -> anyhow::Result<Talkers> {
    let pace = match protocol {
        Protocol::Tcp => Pace::CALM,
        Protocol::Udp => PACE,
    };
    Talkers::start(host, protocol, to, count, pace)
}

/// TCP and UDP through one VIP, and on the backends' wires nothing but what
/// was asked for: with full NAT no address of a client or a VIP.
fn flows_arrive(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    const FLOWS: usize = 40;
    let scene = Scene::new(Site::nat(name, nat, 3)?, Protocol::Tcp, family, family)?;
    let mut service = scene.service();
    service["name"] = json!("ask");
    service["protocol"] = json!("udp");
    scene.site.put_service(&service)?;
    let backend = &scene.site.backends[0].host;
    let (vip, client) = (family.vip(), Net::Clients.address(family, 100));
    let mut filter = format!("(tcp or udp) and (host {vip}");
    if nat.full {
        filter += &format!(" or host {client}");
    }
    filter += ")";
    let foreign = Capture::start(&scene.site.lab, backend, INTERFACE, &filter)?;
    let vip = SocketAddr::new(vip, Scene::PORT);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let talk = talk(&scene.site.client, protocol, vip, FLOWS)?;
        talk.round("through NAT")?;
        talk.ensure_steady("through NAT")?;
        let shares = talk.by_backend();
        ensure!(shares.len() == 3, "not all backends served: {shares:?}");
    }
    let foreign = foreign.finish()?;
    ensure!(foreign.is_empty(), "not translated: {:02x?}", foreign[0]);
    scene.site.ensure_checksums_right()
}

#[test]
fn flows_arrive_gateway_v4() -> anyhow::Result<()> {
    flows_arrive("natgo4", Nat::GATEWAY, Family::V4)
}

#[test]
fn flows_arrive_gateway_v6() -> anyhow::Result<()> {
    flows_arrive("natgo6", Nat::GATEWAY, Family::V6)
}

#[test]
fn flows_arrive_full_v4() -> anyhow::Result<()> {
    flows_arrive("fullgo4", Nat::FULL, Family::V4)
}

#[test]
fn flows_arrive_full_v6() -> anyhow::Result<()> {
    flows_arrive("fullgo6", Nat::FULL, Family::V6)
}

#[test]
fn flows_arrive_one_interface_v4() -> anyhow::Result<()> {
    let nat = Nat::GATEWAY.at(Place::BesideDirector);
    flows_arrive("onego4", nat, Family::V4)
}

#[test]
fn flows_arrive_one_interface_full_v6() -> anyhow::Result<()> {
    let nat = Nat::FULL.at(Place::BesideDirector);
    flows_arrive("onegofull6", nat, Family::V6)
}

#[test]
fn flows_arrive_behind_a_router_v6() -> anyhow::Result<()> {
    let nat = Nat::GATEWAY.at(Place::BehindRouter);
    flows_arrive("fargo6", nat, Family::V6)
}

#[test]
fn flows_arrive_behind_a_router_full_v4() -> anyhow::Result<()> {
    let nat = Nat::FULL.at(Place::BehindRouter);
    flows_arrive("fargofull4", nat, Family::V4)
}

fn flows_survive(name: &str, nat: Nat, protocol: Protocol, family: Family) -> anyhow::Result<()> {
    const FLOWS: usize = 100;
    let mut scene = Scene::new(Site::nat(name, nat, 3)?, protocol, family, family)?;
    let talk = scene.talk(FLOWS)?;
    let begun = talk.by_backend();
    ensure!(
        begun.len() == 3 && begun.values().all(|&n| n >= FLOWS / 8),
        "{begun:?}"
    );

    scene.add()?;
    talk.round("after a backend was added")?;
    let with_fourth = scene.talk(60)?;
    ensure!(
        with_fourth.by_backend().len() == 4 || protocol == Protocol::Udp,
        "{:?}",
        with_fourth.by_backend()
    );

    scene.set_weight(0, 0)?;
    scene.is(0, "draining")?;
    talk.round("after a backend was drained")?;
    scene.set_weight(1, 5)?;
    talk.round("after a backend was re-weighted")?;
    scene.remove(2)?;
    scene.is(2, "removed")?;
    talk.round("after a backend was removed")?;
    if protocol == Protocol::Tcp {
        scene.ensure_new_ones_avoid(0)?;
        scene.ensure_new_ones_avoid(2)?;
    }
    talk.ensure_steady("after all changes of backends")?;

    scene.site.end_director(Signal::SIGKILL)?;
    for _ in 0..3 {
        talk.round("while lb-ctl is dead")?;
    }
    if protocol == Protocol::Tcp {
        scene.ensure_new_ones_avoid(2)?;
    }
    scene.site.start_director(&[])?;
    talk.round("after lb-ctl was started again")?;
    scene.is(2, "removed")?;
    scene.is(0, "draining")?;
    scene.set_weight(0, 1)?;
    talk.round("after a drained backend was taken back")?;

    scene.site.end_director(Signal::SIGTERM)?;
    talk.round("while lb-ctl is stopped")?;
    scene.site.start_director(&[])?;
    talk.round("after lb-ctl was started once more")?;

    talk.ensure_steady("at the end")?;
    with_fourth.ensure_steady("at the end")?;
    ensure!(talk.by_backend() == begun, "{:?}", talk.by_backend());
    scene.site.ensure_checksums_right()
}

#[test]
fn connections_survive_gateway_v4() -> anyhow::Result<()> {
    flows_survive("natlive4", Nat::GATEWAY, Protocol::Tcp, Family::V4)
}

#[test]
fn connections_survive_gateway_v6() -> anyhow::Result<()> {
    flows_survive("natlive6", Nat::GATEWAY, Protocol::Tcp, Family::V6)
}

#[test]
fn connections_survive_full_v4() -> anyhow::Result<()> {
    flows_survive("fulllive4", Nat::FULL, Protocol::Tcp, Family::V4)
}

#[test]
fn connections_survive_full_v6() -> anyhow::Result<()> {
    flows_survive("fulllive6", Nat::FULL, Protocol::Tcp, Family::V6)
}

#[test]
fn udp_flows_survive_gateway_v4() -> anyhow::Result<()> {
    flows_survive("natudp4", Nat::GATEWAY, Protocol::Udp, Family::V4)
}

#[test]
fn udp_flows_survive_full_v6() -> anyhow::Result<()> {
    flows_survive("fulludp6", Nat::FULL, Protocol::Udp, Family::V6)
}

/// The director forgets its neighbours, clients' and backends' alike, and
/// finds them again without losing a flow.
fn neighbours_are_found_again(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    let scene = Scene::new(Site::nat(name, nat, 2)?, Protocol::Udp, family, family)?;
    let talk = scene.talk(40)?;
    for _ in 0..5 {
        scene.site.director.flush_neighbours()?;
        talk.round("after neighbours were forgotten")?;
    }
    talk.ensure_steady("after neighbours were forgotten")
}

#[test]
fn neighbours_are_found_again_gateway_v4() -> anyhow::Result<()> {
    neighbours_are_found_again("natneigh4", Nat::GATEWAY, Family::V4)
}

#[test]
fn neighbours_are_found_again_gateway_v6() -> anyhow::Result<()> {
    neighbours_are_found_again("natneigh6", Nat::GATEWAY, Family::V6)
}

#[test]
fn neighbours_are_found_again_full_v4() -> anyhow::Result<()> {
    neighbours_are_found_again("fullneigh4", Nat::FULL, Family::V4)
}

#[test]
fn neighbours_are_found_again_full_v6() -> anyhow::Result<()> {
    neighbours_are_found_again("fullneigh6", Nat::FULL, Family::V6)
}

/// Flows that are not the service's, to and from the very ports of its
/// backends: of clients past the VIP, of the director itself, and of the
/// backends.
fn others_are_left_alone(name: &str, nat: Nat, family: Family) -> anyhow::Result<()> {
    const FLOWS: usize = 20;
    const OUTSIDE: u16 = 9000;
    let scene = Scene::new(Site::nat(name, nat, 2)?, Protocol::Tcp, family, family)?;
    let mut service = scene.service();
    service["name"] = json!("ask");
    service["protocol"] = json!("udp");
    scene.site.put_service(&service)?;
    let Scene { site, .. } = &scene;
    let vip = SocketAddr::new(family.vip(), Scene::PORT);
    let server_port = site.server_port(Scene::PORT);
    let rip = SocketAddr::new(site.backends[0].address(family), server_port);
    let client = SocketAddr::new(Net::Clients.address(family, 100), OUTSIDE);
    let _outside = Echo::start(&site.client, &[client])?;
    let mut flows = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut add = |what: &'static str, host: &Host, to, server: Option<&str>| {
            let talk = talk(host, protocol, to, FLOWS)?;
            if let Some(server) = server {
                let shares = talk.by_backend();
                ensure!(
                    shares.contains_key(server) && shares.len() == 1,
                    "{shares:?}"
                );
            }
            flows.push((what, protocol, talk));
            Ok(())
        };
        add("the service's", &site.client, vip, None)?;
        add("the director's own", &site.director, rip, Some("b1"))?;
        // With full NAT nothing leads the backends to the clients. And where
        // they are on one segment with the director, that would see only the
        // answers.
        if !nat.full && nat.place == Place::BehindDirector {
            add("past the VIP", &site.client, rip, Some("b1"))?;
        }
        if !nat.full {
            add(
                "a backend's",
                &site.backends[0].host,
                client,
                Some("client"),
            )?;
        }
    }
    for _ in 0..2 {
        for (what, protocol, talk) in &flows {
            talk.round(&format!("{what}, {}, beside others", protocol.name()))?;
        }
    }
    for (what, protocol, talk) in &flows {
        talk.ensure_steady(&format!("{what}, {}, beside others", protocol.name()))?;
    }
    site.ensure_checksums_right()
}

#[test]
fn others_are_left_alone_gateway_v4() -> anyhow::Result<()> {
    others_are_left_alone("natother4", Nat::GATEWAY, Family::V4)
}

#[test]
fn others_are_left_alone_gateway_v6() -> anyhow::Result<()> {
    others_are_left_alone("natother6", Nat::GATEWAY, Family::V6)
}

#[test]
fn others_are_left_alone_full_v4() -> anyhow::Result<()> {
    others_are_left_alone("fullother4", Nat::FULL, Family::V4)
}

#[test]
fn others_are_left_alone_full_v6() -> anyhow::Result<()> {
    others_are_left_alone("fullother6", Nat::FULL, Family::V6)
}

#[test]
fn others_are_left_alone_one_interface_v4() -> anyhow::Result<()> {
    let nat = Nat::GATEWAY.at(Place::BesideDirector);
    others_are_left_alone("oneother4", nat, Family::V4)
}
