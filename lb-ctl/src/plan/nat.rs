//! Plans what NAT needs besides services and entries: which replies are whose,
//! the host's own addresses, and the pool.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use lb_common::backend::{Backend, mode, state};
use lb_common::nat::{MAX_POOL_ADDRESSES, NatBackend, source};
use lb_common::service::flags;

use super::{Desired, DesiredService, Nat, Ops, State};
use crate::dataplane::{Op, ServiceKey};

/// Which NAT services have backends whose replies could be another's.
pub(super) struct Shared {
    /// For each backend's address and protocol, the ports and the services.
    users: HashMap<(IpAddr, u8), Vec<(u16, ServiceKey)>>,
    full: BTreeSet<ServiceKey>,
}

impl Shared {
    pub(super) fn of(desired: &Desired) -> Self {
        let mut users: HashMap<_, Vec<_>> = HashMap::new();
        let mut full = BTreeSet::new();
        for (&key, service) in &desired.services {
            for backend in service.backends.iter().filter(|b| b.mode == mode::NAT) {
                let user = (backend.port, key);
                let address = (backend.address, key.protocol);
                users.entry(address).or_default().push(user);
                if service.nat == Nat::Full {
                    full.insert(key);
                }
            }
        }
        Self { users, full }
    }

    /// Flags of a service.
    pub(super) fn flags(&self, key: &ServiceKey, service: &DesiredService) -> u32 {
        if !service.backends.iter().any(|b| b.mode == mode::NAT) {
            return 0;
        }
        if self.full.contains(key) {
            return flags::NAT | flags::FULL_NAT;
        }
        let is_shared = service
            .backends
            .iter()
            .filter(|b| b.mode == mode::NAT)
            .any(|b| self.is_shared(b.address, b.port, key));
        if is_shared {
            flags::NAT | flags::TRACKED
        } else {
            flags::NAT
        }
    }

    /// Whether a reply of this backend could be for another service's client
    /// as well. Full NAT's replies go to the pool, so they cannot.
    fn is_shared(&self, address: IpAddr, port: u16, key: &ServiceKey) -> bool {
        let users = self.users.get(&(address, key.protocol));
        users.into_iter().flatten().any(|(other_port, other)| {
            let overlaps = *other_port == port || *other_port == 0 || port == 0;
            other != key && overlaps && !self.full.contains(other)
        })
    }
}

/// Brings the NAT backends up to date: one for each address and port that an
/// entry has.
pub(super) fn plan_backends(state: &mut State, shared: &Shared, ops: &mut Ops) {
    let keys: HashMap<u32, ServiceKey> = state
        .services
        .iter()
        .map(|(&key, service)| (service.value.id, key))
        .collect();
    let mut owners: BTreeMap<ServiceKey, Vec<(ServiceKey, u32)>> = BTreeMap::new();
    let is_nat = |entry: &&Backend| entry.mode == mode::NAT && entry.state != state::FREE;
    for (&id, entry) in &state.backends {
        let Some(&service) = keys.get(&entry.service) else {
            continue;
        };
        if is_nat(&entry) {
            let own = ServiceKey {
                vip: entry.address.into(),
                port: u16::from_be(entry.port),
                protocol: service.protocol,
            };
            owners.entry(own).or_default().push((service, id));
        }
    }
    let desired: BTreeMap<ServiceKey, NatBackend> = owners
        .into_iter()
        .map(|(own, mut owners)| {
            owners.sort();
            let before = state.nat_backends.get(&own);
            (own, nat_backend(&own, &owners, before, shared))
        })
        .collect();
    for (own, value) in &desired {
        if state.nat_backends.get(own) != Some(value) {
            ops.before.push(Op::PutNatBackend(*own, *value));
        }
    }
    for own in state.nat_backends.keys() {
        if !desired.contains_key(own) {
            ops.after.push(Op::RemoveNatBackend(*own));
        }
    }
    state.nat_backends = desired;
}

/// What replies from this address and port are. If several services share it,
/// flows without an entry are from before they did: of the service that had it
/// alone.
fn nat_backend(
    own: &ServiceKey,
    owners: &[(ServiceKey, u32)],
    before: Option<&NatBackend>,
    shared: &Shared,
) -> NatBackend {
    // On port 0 every port stays what it is.
    let port_of = |service: &ServiceKey| {
        if own.port == 0 {
            0
        } else {
            service.port.to_be()
        }
    };
    let is_full = |(service, _): &&(ServiceKey, u32)| shared.full.contains(service);
    let gateways: Vec<_> = owners.iter().filter(|owner| !is_full(owner)).collect();
    let was_alone = |(service, _): &&&(ServiceKey, u32)| {
        before.is_some_and(|before| {
            before.flags & source::BACKEND != 0
                && before.vip == service.vip.into()
                && before.port == port_of(service)
        })
    };
    let alone = gateways.iter().find(was_alone).or(gateways.first());
    let any_table = owners.iter().any(|(service, _)| {
        shared.full.contains(service) || shared.is_shared(own.vip, own.port, service)
    });
    let table = if any_table { source::TABLE } else { 0 };
    match alone {
        Some(&&(service, id)) => NatBackend {
            vip: service.vip.into(),
            backend: id,
            port: port_of(&service),
            flags: table | source::BACKEND,
        },
        None => NatBackend {
            backend: owners.first().map_or(0, |(_, id)| *id),
            flags: table,
            ..NatBackend::default()
        },
    }
}

/// The host's own addresses and the pool.
pub(super) fn plan_addresses(state: &mut State, desired: &Desired, ops: &mut Ops) {
    for &added in desired.local_addresses.difference(&state.local_addresses) {
        ops.before.push(Op::AddLocalAddress(added));
    }
    for &removed in state.local_addresses.difference(&desired.local_addresses) {
        ops.after.push(Op::RemoveLocalAddress(removed));
    }
    state.local_addresses.clone_from(&desired.local_addresses);

    for (&interface, addresses) in &desired.routers {
        if state.routers.get(&interface) != Some(addresses) {
            ops.before.push(Op::PutRouter(interface, *addresses));
        }
    }
    for &interface in state.routers.keys() {
        if !desired.routers.contains_key(&interface) {
            ops.after.push(Op::RemoveRouter(interface));
        }
    }
    state.routers.clone_from(&desired.routers);

    let unwanted: Vec<u16> = state
        .pool
        .iter()
        .filter(|(_, address)| !desired.pool.contains(address))
        .map(|(&number, _)| number)
        .collect();
    for number in unwanted {
        state.pool.remove(&number);
        ops.before.push(Op::PutPoolAddress(number, None));
    }
    for &address in &desired.pool {
        if state.pool.values().any(|known| *known == address) {
            continue;
        }
        let free = (0..MAX_POOL_ADDRESSES as u16).find(|n| !state.pool.contains_key(n));
        if let Some(number) = free {
            state.pool.insert(number, address);
            ops.before.push(Op::PutPoolAddress(number, Some(address)));
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::protocol::TCP;

    use super::*;

    fn key(last: u8, port: u16) -> ServiceKey {
        ServiceKey {
            vip: IpAddr::from([203, 0, 113, last]),
            port,
            protocol: TCP,
        }
    }

    fn shared(users: &[(u16, ServiceKey)], full: &[ServiceKey]) -> Shared {
        Shared {
            users: HashMap::from([((rip(), TCP), users.to_vec())]),
            full: full.iter().copied().collect(),
        }
    }

    fn rip() -> IpAddr {
        IpAddr::from([192, 0, 2, 21])
    }

    fn own(port: u16) -> ServiceKey {
        ServiceKey {
            vip: rip(),
            port,
            protocol: TCP,
        }
    }

    #[test]
    fn a_backend_of_one_service_needs_no_entries() {
        let web = key(10, 80);
        let shared = shared(&[(8080, web)], &[]);
        let value = nat_backend(&own(8080), &[(web, 1)], None, &shared);
        assert_eq!(value.flags, source::BACKEND);
        assert_eq!(value.vip, web.vip.into());
        assert_eq!(u16::from_be(value.port), 80);
    }

    #[test]
    fn a_backend_that_comes_to_be_shared_keeps_the_flows_it_has() {
        let a = key(10, 80);
        // Of another VIP, and of another port of the same.
        for (b, alone) in [key(11, 80), key(10, 443)]
            .into_iter()
            .flat_map(|b| [(b, a), (b, b)])
        {
            let before = nat_backend(
                &own(8080),
                &[(alone, 1)],
                None,
                &shared(&[(8080, alone)], &[]),
            );
            let both = shared(&[(8080, a), (8080, b)], &[]);
            let value = nat_backend(&own(8080), &[(a, 1), (b, 2)], Some(&before), &both);
            assert_eq!(value.flags, source::BACKEND | source::TABLE);
            assert_eq!(value.vip, alone.vip.into());
            assert_eq!(u16::from_be(value.port), alone.port);
        }
    }

    #[test]
    fn all_ports_share_with_each_of_them() {
        let (all, one) = (key(10, 0), key(11, 80));
        let shared = shared(&[(0, all), (8080, one)], &[]);
        assert!(shared.is_shared(rip(), 8080, &one));
        assert!(shared.is_shared(rip(), 0, &all));
        assert!(!shared.is_shared(rip(), 8081, &one) || shared.is_shared(rip(), 0, &all));
    }

    #[test]
    fn full_nat_has_entries_and_leaves_others_without() {
        let (full, plain) = (key(10, 80), key(11, 80));
        let both = shared(&[(8080, full), (8080, plain)], &[full]);
        let alone = shared(&[(8080, full)], &[full]);
        let value = nat_backend(&own(8080), &[(full, 1)], None, &alone);
        assert_eq!((value.flags, value.backend), (source::TABLE, 1));
        assert!(!both.is_shared(rip(), 8080, &plain));
        let value = nat_backend(&own(8080), &[(full, 1), (plain, 2)], None, &both);
        assert_eq!(value.flags, source::TABLE | source::BACKEND);
        assert_eq!((value.vip, value.backend), (plain.vip.into(), 2));
    }
}
