//! Which interface faces the segment, when nobody says so.

use crate::facts::{Facts, Route};
use crate::vip::{LOOPBACK, Vip};

/// The interfaces by which the VIPs would be reached if this host did not
/// hold them: that of the most specific route of the main table (a connected
/// one, or the default route). Without any route, the only interface there is.
///
/// Only IPv4 VIPs count, because only ARP depends on sysctls. The error says
/// which interfaces there are.
pub fn choose(facts: &Facts, vips: &[Vip]) -> Result<Vec<String>, String> {
    let mut chosen: Vec<String> = Vec::new();
    for vip in vips.iter().filter(|vip| vip.is_ipv4()) {
        for name in facing(facts, *vip)? {
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

fn facing(facts: &Facts, vip: Vip) -> Result<Vec<String>, String> {
    let routes = facts.routes.iter().filter(|route| {
        covers(route, vip) && !route.interfaces.iter().any(|name| name == LOOPBACK)
    });
    if let Some(best) = routes.max_by_key(|r| (r.prefix, u32::MAX - r.metric)) {
        return Ok(best.interfaces.clone());
    }
    let names: Vec<&str> = facts.outer_interfaces().collect();
    match names[..] {
        [only] => Ok(vec![only.to_owned()]),
        [] => Err("this host has no interface but lo".to_owned()),
        _ => Err(format!(
            "cannot tell which interface faces the segment of {vip}: no route leads to it and \
             there are {}; name it: --interface {}",
            names.join(", "),
            names[0]
        )),
    }
}

fn covers(route: &Route, vip: Vip) -> bool {
    use std::net::IpAddr::{V4, V6};
    match (route.destination, vip.address()) {
        (V4(net), V4(vip)) => {
            let differ = u32::from(net) ^ u32::from(vip);
            differ.leading_zeros() >= route.prefix.into()
        }
        (V6(net), V6(vip)) => {
            let differ = u128::from(net) ^ u128::from(vip);
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
