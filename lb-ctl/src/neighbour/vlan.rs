//! The host's VLAN devices, and what they put on which wire.

use std::collections::BTreeMap;

use lb_common::vlan::{Tag, Vlan};

use super::host::Interface;

/// Interfaces by index.
type Interfaces = BTreeMap<u32, Interface>;

/// What the frames of a VLAN device are on the wire; `None` if it is none, or
/// one with more than two tags.
pub fn vlan(interfaces: &Interfaces, device: u32) -> Option<Vlan> {
    let device = interfaces.get(&device)?;
    let (tag, lower) = (device.vlan?, device.lower?);
    let below = interfaces.get(&lower)?;
    match below.vlan {
        None => Some(Vlan {
            interface: lower,
            outer: tag,
            inner: Tag::NONE,
        }),
        Some(outer) => {
            let interface = below.lower?;
            let is_wire = interfaces.get(&interface)?.vlan.is_none();
            is_wire.then_some(Vlan {
                interface,
                outer,
                inner: tag,
            })
        }
    }
}

/// All VLAN devices, by index.
pub fn all(interfaces: &Interfaces) -> BTreeMap<u32, Vlan> {
    let indices = interfaces.keys();
    indices
        .filter_map(|&index| Some((index, vlan(interfaces, index)?)))
        .collect()
}

/// The interfaces on which packets arrive for the program: those that it is
/// attached to, each followed by the VLAN devices on top of it.
pub fn ports(interfaces: &Interfaces, attached: &[u32]) -> Vec<u32> {
    let vlans = all(interfaces);
    let with_vlans = |&ours: &u32| {
        let on_top = vlans.iter().filter(move |(_, v)| v.interface == ours);
        std::iter::once(ours).chain(on_top.map(|(&device, _)| device))
    };
    attached.iter().flat_map(with_vlans).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Index, EtherType and identifier of a VLAN, index of the lower interface.
    type Link = (u32, Option<(u16, u16)>, Option<u32>);

    fn interfaces(links: &[Link]) -> Interfaces {
        let interface = |&(index, tag, lower): &Link| {
            let interface = Interface {
                vlan: tag.map(|(ethertype, id)| Tag::new(ethertype, id)),
                lower,
                ..Interface::default()
            };
            (index, interface)
        };
        links.iter().map(interface).collect()
    }

    #[test]
    fn a_device_has_the_tags_of_those_below_it() {
        let interfaces = interfaces(&[
            (1, None, None),
            (2, Some((0x8100, 10)), Some(1)),
            (3, Some((0x88a8, 20)), Some(1)),
            (4, Some((0x8100, 30)), Some(3)),
            (5, Some((0x8100, 40)), Some(4)),
            (6, None, Some(1)),
            (7, Some((0x8100, 10)), Some(9)),
        ]);
        let expected = |outer: (u16, u16), inner: Option<(u16, u16)>| {
            Some(Vlan {
                interface: 1,
                outer: Tag::new(outer.0, outer.1),
                inner: inner.map_or(Tag::NONE, |(ethertype, id)| Tag::new(ethertype, id)),
            })
        };
        assert_eq!(vlan(&interfaces, 2), expected((0x8100, 10), None));
        assert_eq!(
            vlan(&interfaces, 4),
            expected((0x88a8, 20), Some((0x8100, 30)))
        );
        // The wire itself, three tags, a macvlan, one whose wire is elsewhere.
        for none in [1, 5, 6, 7] {
            assert_eq!(vlan(&interfaces, none), None, "{none}");
        }
        assert_eq!(ports(&interfaces, &[6, 1]), [6, 1, 2, 3, 4]);
    }
}
