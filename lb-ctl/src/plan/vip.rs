//! Plans the VIPs, and what becomes of packets for them that are for none of
//! their services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::vip::{VipValue, ping};

use super::{Desired, Ops, State};
use crate::dataplane::Op;

/// Brings the VIPs up to date.
pub(super) fn plan_vips(state: &mut State, desired: &Desired, ops: &mut Ops) {
    let vips = vips(desired);
    for (vip, value) in &vips {
        if state.vips.get(vip) != Some(value) {
            ops.before.push(Op::PutVip(*vip, *value));
        }
    }
    for vip in state.vips.keys() {
        if !vips.contains_key(vip) {
            ops.after.push(Op::RemoveVip(*vip));
        }
    }
    state.vips = vips;
}

/// The VIPs of all services. The strongest wish of a VIP's services decides who
/// answers its pings; of several that would forward them, the first by port,
/// then by protocol.
fn vips(desired: &Desired) -> BTreeMap<IpAddr, VipValue> {
    let mut vips: BTreeMap<IpAddr, VipValue> = BTreeMap::new();
    // In the order of their keys: VIP, port, protocol.
    for (key, service) in &desired.services {
        let value = vips.entry(key.vip).or_insert(VipValue {
            other_protocols: desired.other_protocols,
            ..VipValue::default()
        });
        if service.ping <= value.ping {
            continue;
        }
        value.ping = service.ping;
        if service.ping == ping::FORWARD {
            value.port = key.port.to_be();
            value.protocol = key.protocol;
        }
    }
    vips
}

#[cfg(test)]
mod tests {
    use lb_common::protocol::{TCP, UDP};
    use lb_common::vip::other_protocols;

    use super::super::tests::{KEY, backend, desired};
    use super::*;
    use crate::dataplane::ServiceKey;
    use crate::dataplane::fake::Fake;
    use crate::dataplane::{Dataplane as _, Dump};
    use crate::plan::plan;

    /// What is desired of one VIP whose services, by port and protocol, have
    /// these wishes.
    fn wishes(services: &[(u16, u8, u8)]) -> Desired {
        let mut wanted = desired(vec![backend(1, 1)]);
        let service = wanted.services.remove(&KEY).unwrap();
        for &(port, protocol, ping) in services {
            let key = ServiceKey {
                port,
                protocol,
                ..KEY
            };
            let service = super::super::DesiredService {
                ping,
                ..service.clone()
            };
            wanted.services.insert(key, service);
        }
        wanted
    }

    fn value(services: &[(u16, u8, u8)]) -> VipValue {
        vips(&wishes(services))[&KEY.vip]
    }

    #[test]
    fn nobody_wants_anything() {
        let services = [(80, TCP, ping::HOST), (53, UDP, ping::HOST)];
        assert_eq!(value(&services), VipValue::default());
    }

    #[test]
    fn the_strongest_wish_decides() {
        let (web, dns) = ((80, TCP), (443, UDP));
        let all = [ping::HOST, ping::ANSWER, ping::FORWARD];
        for a in all {
            for b in all {
                let value = value(&[(web.0, web.1, a), (dns.0, dns.1, b)]);
                assert_eq!(value.ping, a.max(b));
            }
        }
    }

    #[test]
    fn of_several_that_forward_the_first_by_port_and_protocol_does() {
        let forwards = |port, protocol| (port, protocol, ping::FORWARD);
        for (services, (port, protocol)) in [
            ([forwards(443, TCP), forwards(80, UDP)], (80, UDP)),
            ([forwards(80, UDP), forwards(80, TCP)], (80, TCP)),
            (
                [(1, TCP, ping::ANSWER), forwards(0x1234, TCP)],
                (0x1234, TCP),
            ),
        ] {
            let value = value(&services);
            assert_eq!((u16::from_be(value.port), value.protocol), (port, protocol));
        }
    }

    #[test]
    fn other_protocols_are_dropped_for_every_vip_or_none() {
        let mut wanted = wishes(&[(80, TCP, ping::ANSWER)]);
        let other = ServiceKey {
            vip: [203, 0, 113, 11].into(),
            ..KEY
        };
        let service = wanted.services[&KEY].clone();
        wanted.services.insert(other, service);
        wanted.other_protocols = other_protocols::DROP;
        let vips = vips(&wanted);
        let is_dropped = |value: &VipValue| value.other_protocols == other_protocols::DROP;
        assert_eq!(vips.len(), 2);
        assert!(vips.values().all(is_dropped));
    }

    /// Every change of a wish reaches the maps, and nothing else does; what
    /// they hold is what a new plan begins with.
    #[test]
    fn wishes_come_and_go() {
        let mut fake = Fake::default();
        let mut state = State::from_dump(Dump::default(), fake.capacity(), 0);
        let steps = [
            vec![(80, TCP, ping::HOST)],
            vec![(80, TCP, ping::ANSWER)],
            vec![(80, TCP, ping::ANSWER), (443, TCP, ping::FORWARD)],
            vec![(80, TCP, ping::FORWARD), (443, TCP, ping::FORWARD)],
            vec![(443, TCP, ping::FORWARD)],
            vec![(443, TCP, ping::HOST)],
            vec![],
        ];
        for services in steps {
            let wanted = wishes(&services);
            for op in plan(&mut state, &wanted, None, 0).unwrap().ops {
                fake.apply(&op).unwrap();
            }
            let dump = fake.dump().unwrap();
            assert_eq!(dump.vips, vips(&wanted));
            let mut restarted = State::from_dump(dump, fake.capacity(), 0);
            let again = plan(&mut restarted, &wanted, None, 0).unwrap();
            assert_eq!(again.ops, []);
        }
    }
}
