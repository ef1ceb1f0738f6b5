//! What the director makes of the host's interfaces, addresses and routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::Address;
use lb_common::nat::RouterAddresses;

use crate::model::Mode;
use crate::neighbour::host::Interface;
use crate::neighbour::{Resolution, Snapshot, vlan};
use crate::plan::Desired;

/// How a backend is reached in this mode, or why it is not.
pub fn reach<'a>(
    mode: Mode,
    address: IpAddr,
    snapshot: &'a Snapshot,
    attached: &[u32],
) -> Result<&'a Resolution, String> {
    let interfaces = &snapshot.interfaces;
    match snapshot.resolutions.get(&address) {
        None => Err("its next hop has not been looked up yet".to_owned()),
        Some(Resolution::Unknown(why) | Resolution::Silent(why)) => Err(why.clone()),
        Some(Resolution::Known(_, Some(router))) if mode == Mode::Dr => Err(format!(
            "it is behind router {router}, but dr mode needs it on a segment of the director"
        )),
        Some(Resolution::Known(next_hop, _))
            if interfaces
                .get(&next_hop.interface)
                .is_some_and(|i| i.vlan.is_some() && i.lower.is_some())
                && vlan::vlan(interfaces, next_hop.interface).is_none() =>
        {
            Err(
                "its interface is a VLAN within two others, and the packet path knows two tags"
                    .to_owned(),
            )
        }
        Some(Resolution::Known(next_hop, _))
            if mode == Mode::Nat
                && !vlan::ports(interfaces, attached).contains(&next_hop.interface) =>
        {
            let interface = interfaces.get(&next_hop.interface);
            let name = interface.map_or("its interface", |i| i.name.as_str());
            Err(format!(
                "its replies would come in by {name}, where lb-ctl is not attached, and nat mode \
                 has to see them: start lb-ctl up with --interface {name} as well"
            ))
        }
        Some(known) => Ok(known),
    }
}

/// The addresses from which the host speaks for itself on the interfaces:
/// neither VIPs nor the pool's.
pub fn routers(
    ports: &[u32],
    desired: &Desired,
    snapshot: &Snapshot,
) -> BTreeMap<u32, RouterAddresses> {
    let vips: BTreeSet<IpAddr> = desired.services.keys().map(|key| key.vip).collect();
    let mut routers: BTreeMap<u32, RouterAddresses> = BTreeMap::new();
    for address in &snapshot.addresses {
        let is_own = !vips.contains(&address.ip) && !desired.pool.contains(&address.ip);
        if !is_own || !ports.contains(&address.interface) {
            continue;
        }
        let of = routers.entry(address.interface).or_default();
        match address.ip {
            IpAddr::V4(_) if of.v4 == 0 => of.v4 = Address::from(address.ip).v4_word(),
            IpAddr::V6(v6) if of.v6 == Address::default() && !v6.is_unicast_link_local() => {
                of.v6 = address.ip.into();
            }
            _ => {}
        }
    }
    routers
}

/// The MAC addresses under which frames are ours: the interfaces' own, and
/// those of macvlans on top of them, such as VRRP makes.
pub fn local_macs(ports: &[u32], snapshot: &Snapshot) -> BTreeSet<(u32, [u8; 6])> {
    let mut macs = BTreeSet::new();
    for (&index, interface) in &snapshot.interfaces {
        let Some(mac) = interface.mac else {
            continue;
        };
        for &ours in ports {
            let is_on_top = interface.lower == Some(ours) && interface.vlan.is_none();
            if index == ours || is_on_top {
                macs.insert((ours, mac));
            }
        }
    }
    macs
}

/// Names of the interfaces whose frames must keep their VLAN tags: those with
/// VLANs among the `attached` ones, and the cards that such a bond consists of.
pub fn taggers(interfaces: &BTreeMap<u32, Interface>, attached: &[u32]) -> BTreeSet<String> {
    let wires = vlan::all(interfaces).into_values().map(|v| v.interface);
    let wires: BTreeSet<u32> = wires.filter(|wire| attached.contains(wire)).collect();
    let is_tagger = |(index, interface): &(&u32, &Interface)| {
        let controller = interface.controller;
        wires.contains(*index) || controller.is_some_and(|index| wires.contains(&index))
    };
    let taggers = interfaces.iter().filter(is_tagger);
    taggers
        .map(|(_, interface)| interface.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use lb_common::vlan::Tag;

    use super::*;

    #[test]
    fn tags_are_kept_by_the_cards_of_a_bond_with_vlans() {
        let interface = |name: &str, controller: Option<u32>, lower: Option<u32>| Interface {
            name: name.to_owned(),
            controller,
            vlan: lower.map(|_| Tag::new(0x8100, 10)),
            lower,
            ..Interface::default()
        };
        let interfaces = BTreeMap::from([
            (1, interface("bond0", None, None)),
            (2, interface("eth0", Some(1), None)),
            (3, interface("eth1", Some(1), None)),
            (4, interface("bond0.10", None, Some(1))),
            (5, interface("eth2", None, None)),
            (6, interface("eth3", None, None)),
            (7, interface("eth3.10", None, Some(6))),
        ]);
        let names = |attached: &[u32]| Vec::from_iter(taggers(&interfaces, attached));
        assert_eq!(names(&[1, 5]), ["bond0", "eth0", "eth1"]);
        assert!(names(&[5]).is_empty());
    }
}
