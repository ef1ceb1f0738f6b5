//! The way to the backends changes: gateways, routes, MTUs; the director
//! follows.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::time::Duration;

use anyhow::ensure;
use integration::Mac;
use integration::capture::{Capture, ENCAPSULATED};
use integration::talk::Protocol;
use integration::topology::{Family, INTERFACE, Net, Router, Scene, Site};

const SOON: Duration = Duration::from_secs(10);
const FLOWS: usize = 60;

fn scene(name: &str, family: Family) -> anyhow::Result<Scene> {
    Scene::new(Site::tun(name, 3)?, Protocol::Tcp, family, family)
}

/// The gateway is replaced by another one with its address.
fn a_new_gateway_mac_is_followed(name: &str, family: Family) -> anyhow::Result<()> {
    let scene = scene(name, family)?;
    let talk = scene.talk(FLOWS)?;
    let router = &scene.site.router()?.host;
    // As one that takes over does.
    router.set_sysctl("net.ipv4.conf.directors.arp_notify", 1)?;
    router.set_sysctl("net.ipv6.conf.directors.ndisc_notify", 1)?;
    let mac = Mac([2, 0, 0, 0, 0, 0x77]).to_string();
    let to_it = format!("({ENCAPSULATED}) and ether dst {mac}");
    let to_it = Capture::start(&scene.site.lab, router, Router::TO_DIRECTOR, &to_it)?;
    router.run(
        "ip",
        ["link", "set", "dev", Router::TO_DIRECTOR, "address", &mac],
    )?;
    to_it.wait(SOON)?;
    talk.round("through the new gateway")?;
    talk.ensure_steady("through the new gateway")
}

#[test]
fn a_new_gateway_mac_is_followed_v4() -> anyhow::Result<()> {
    a_new_gateway_mac_is_followed("gw4", Family::V4)
}

#[test]
fn a_new_gateway_mac_is_followed_v6() -> anyhow::Result<()> {
    a_new_gateway_mac_is_followed("gw6", Family::V6)
}

/// The route to the backends leads to another router, and back.
fn a_new_route_is_followed(name: &str, family: Family) -> anyhow::Result<()> {
    let scene = scene(name, family)?;
    let talk = scene.talk(FLOWS)?;
    let site = &scene.site;
    let first = site.router()?;
    let second = site.add_router()?;
    for (router, when) in [
        (&second, "through the second router"),
        (first, "through the first router again"),
    ] {
        let host = &router.host;
        let through = Capture::start(&site.lab, host, Router::TO_BACKENDS, ENCAPSULATED)?;
        set_route(site, family, router, &[])?;
        through.wait(SOON)?;
        talk.round(when)?;
        talk.ensure_steady(when)?;
    }
    Ok(())
}

fn set_route(site: &Site, family: Family, via: &Router, more: &[&str]) -> anyhow::Result<()> {
    let prefix = Net::Backends.prefix(family);
    let gateway = via.address(Net::Director, family).to_string();
    let route = ["route", "replace", &prefix, "via", &gateway];
    site.director.run("ip", route.iter().chain(more).copied())?;
    Ok(())
}

#[test]
fn a_new_route_is_followed_v4() -> anyhow::Result<()> {
    a_new_route_is_followed("route4", Family::V4)
}

#[test]
fn a_new_route_is_followed_v6() -> anyhow::Result<()> {
    a_new_route_is_followed("route6", Family::V6)
}

/// Whoever withdraws the route makes the backends unreachable, and says so;
/// with the route they are back.
fn a_lost_route_is_told(name: &str, family: Family) -> anyhow::Result<()> {
    let scene = scene(name, family)?;
    let director = &scene.site.director;
    let prefix = Net::Backends.prefix(family);
    director.run("ip", ["route", "add", "unreachable", &prefix])?;
    for i in 0..3 {
        scene.is(i, "unresolved")?;
    }
    director.run("ip", ["route", "delete", "unreachable", &prefix])?;
    for i in 0..3 {
        scene.is(i, "active")?;
    }
    scene.talk(FLOWS)?.ensure_steady("with the route")
}

#[test]
fn a_lost_route_is_told_v4() -> anyhow::Result<()> {
    a_lost_route_is_told("noroute4", Family::V4)
}

#[test]
fn a_lost_route_is_told_v6() -> anyhow::Result<()> {
    a_lost_route_is_told("noroute6", Family::V6)
}

/// MTUs of routes and interfaces, less the outer header, are what clients can
/// use.
fn the_mtu_is_followed(name: &str, family: Family, overhead: u16) -> anyhow::Result<()> {
    let scene = scene(name, family)?;
    let talk = scene.talk(FLOWS)?;
    let site = &scene.site;
    let router = site.router()?;
    scene.wait_mtu(1500 - overhead)?;
    set_route(site, family, router, &["mtu", "1400"])?;
    scene.wait_mtu(1400 - overhead)?;
    set_route(site, family, router, &[])?;
    scene.wait_mtu(1500 - overhead)?;
    let set_mtu = |mtu: &str| {
        let link = ["link", "set", "dev", INTERFACE, "mtu", mtu];
        site.director.run("ip", link).map(drop)
    };
    set_mtu("1450")?;
    scene.wait_mtu(1450 - overhead)?;
    let text = site.lb_ctl(&["service", "get", Scene::SERVICE])?;
    let usable = (1450 - overhead).to_string();
    ensure!(text.contains(&usable), "no {usable} in: {text}");
    set_mtu("1500")?;
    scene.wait_mtu(1500 - overhead)?;
    talk.round("after all changes of MTUs")?;
    talk.ensure_steady("after all changes of MTUs")
}

#[test]
fn the_mtu_is_followed_v4() -> anyhow::Result<()> {
    the_mtu_is_followed("mtu4", Family::V4, 20)
}

#[test]
fn the_mtu_is_followed_v6() -> anyhow::Result<()> {
    the_mtu_is_followed("mtu6", Family::V6, 40)
}
