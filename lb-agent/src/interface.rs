//! Which interface faces the segment, when nobody says so.

use std::net::IpAddr;

use crate::facts::{Facts, Route};
use crate::state::Want;
use crate::vip::{LOOPBACK, Vip};

/// The interfaces that face the segment in DR mode and the directors in TUN
/// mode. The error says which interfaces there are.
pub fn for_want(facts: &Facts, want: &Want) -> Result<Vec<String>, String> {
    let Some(tunnel) = &want.tunnel else {
        return choose(facts, &want.vips);
    };
    let mut chosen: Vec<String> = Vec::new();
    for director in &tunnel.directors {
        for name in facing(facts, director.first_host(), "the director")? {
            if !chosen.contains(&name) {
                chosen.push(name);
            }
        }
    }
    Ok(chosen)
}

/// The interfaces by which the VIPs would be reached if this host did not
/// hold them: that of the most specific route of the main table (a connected
/// one, or the default route). Without any route, the only interface there is.
///
/// Only IPv4 VIPs count, because only ARP depends on sysctls. The error says
/// which interfaces there are.
pub fn choose(facts: &Facts, vips: &[Vip]) -> Result<Vec<String>, String> {
    let mut chosen: Vec<String> = Vec::new();
    for vip in vips.iter().filter(|vip| vip.is_ipv4()) {
        for name in facing(facts, vip.address(), "the segment of")? {
            if !chosen.contains(&name) {
                chosen.push(name);
            }
        }
    }
    Ok(chosen)
}

/// Says that an interface is missing, and which ones there are.
pub fn unknown(facts: &Facts, name: &str) -> String {
    let names: Vec<&str> = facts.outer_interfaces().collect();
    format!(
        "there is no interface {name}; this host has {}",
        names.join(", ")
    )
}

fn facing(facts: &Facts, address: IpAddr, what: &str) -> Result<Vec<String>, String> {
    let routes = facts.routes.iter().filter(|route| {
        covers(route, address) && !route.interfaces.iter().any(|name| name == LOOPBACK)
    });
    if let Some(best) = routes.max_by_key(|r| (r.prefix, u32::MAX - r.metric)) {
        return Ok(best.interfaces.clone());
    }
    let names: Vec<&str> = facts.outer_interfaces().collect();
    match names[..] {
        [only] => Ok(vec![only.to_owned()]),
        [] => Err("this host has no interface but lo".to_owned()),
        _ => Err(format!(
            "cannot tell which interface faces {what} {address}: no route leads to it and \
             there are {}; name it: --interface {}",
            names.join(", "),
            names[0]
        )),
    }
}

fn covers(route: &Route, address: IpAddr) -> bool {
    use std::net::IpAddr::{V4, V6};
    match (route.destination, address) {
        (V4(net), V4(address)) => {
            let differ = u32::from(net) ^ u32::from(address);
            differ.leading_zeros() >= route.prefix.into()
        }
        (V6(net), V6(address)) => {
            let differ = u128::from(net) ^ u128::from(address);
            differ.leading_zeros() >= route.prefix.into()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::testing::{host, vips};

    fn route(facts: &mut Facts, destination: &str, prefix: u8, metric: u32, interface: &str) {
        facts.routes.push(Route {
            destination: destination.parse().unwrap(),
            prefix,
            interfaces: vec![interface.to_owned()],
            metric,
        });
    }

    #[test]
    fn the_most_specific_route_then_the_lowest_metric() {
        let mut facts = host(&["eth0", "eth1", "eth2"]);
        route(&mut facts, "0.0.0.0", 0, 100, "eth1");
        route(&mut facts, "0.0.0.0", 0, 50, "eth2");
        route(&mut facts, "203.0.113.0", 24, 0, "eth0");
        let chosen = |texts: &[&str]| choose(&facts, &vips(texts)).unwrap();
        assert_eq!(chosen(&["203.0.113.10"]), ["eth0"]);
        assert_eq!(chosen(&["198.51.100.10"]), ["eth2"]);
        assert_eq!(chosen(&["203.0.113.10", "198.51.100.10"]), ["eth0", "eth2"]);
        assert!(chosen(&["2001:db8::10"]).is_empty());
    }

    #[test]
    fn without_a_route_only_a_single_interface_is_certain() {
        let vips = vips(&["203.0.113.10"]);
        assert_eq!(choose(&host(&["eth0"]), &vips).unwrap(), ["eth0"]);
        let error = choose(&host(&["eth0", "eth1"]), &vips).unwrap_err();
        assert!(error.contains("eth0, eth1"), "{error}");
        choose(&host(&[]), &vips).unwrap_err();
    }
}
