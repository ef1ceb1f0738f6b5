use std::net::Ipv4Addr;

use lb_common::backend::mode;
use lb_common::protocol::TCP;
use lb_common::vip::ping;
use proptest::prelude::*;

use super::*;
use crate::dataplane::Dataplane as _;
use crate::dataplane::fake::Fake;

mod simulation;

pub(super) const TIMEOUT: u32 = 10;

pub(super) const KEY: ServiceKey = ServiceKey {
    vip: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
    port: 80,
    protocol: TCP,
};

pub(super) fn next_hop(n: u8) -> NextHop {
    NextHop {
        interface: 1,
        mac: [2, 0, 0, 0, 0, n],
        source_mac: [2, 0, 0, 0, 1, 0],
        mtu: 1500,
        source: None,
    }
}

pub(super) fn backend(n: u8, weight: u32) -> DesiredBackend {
    DesiredBackend {
        address: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 20 + n)),
        port: 0,
        mode: mode::DR,
        weight,
        tunnel_source: None,
        removed: false,
        condition: Condition::Up(next_hop(n)),
    }
}

pub(super) fn desired(backends: Vec<DesiredBackend>) -> Desired {
    let service = DesiredService {
        hash_key: 7,
        idle_timeout: TIMEOUT,
        nat: Nat::Gateway,
        ping: ping::HOST,
        backends,
    };
    Desired {
        services: BTreeMap::from([(KEY, service)]),
        local_macs: BTreeSet::from([(1, [2, 0, 0, 0, 1, 0])]),
        interfaces: BTreeSet::from([1]),
        ..Desired::default()
    }
}

fn new_state(fake: &Fake) -> State {
    State::from_dump(fake.dump().unwrap(), fake.capacity(), fake.now())
}

fn apply(fake: &mut Fake, state: &mut State, desired: &Desired) -> usize {
    let now = fake.now();
    let Plan { ops, deferred } = plan(state, desired, None, now).unwrap();
    assert_eq!(deferred, None);
    for op in &ops {
        fake.apply(op).unwrap();
    }
    ops.len()
}

#[test]
fn a_second_plan_is_empty_and_so_is_one_after_a_restart() {
    let mut fake = Fake::default();
    let mut state = new_state(&fake);
    let wanted = desired(vec![backend(1, 1), backend(2, 3), backend(3, 0)]);
    assert!(apply(&mut fake, &mut state, &wanted) > 0);
    assert_eq!(apply(&mut fake, &mut state, &wanted), 0);
    let mut restarted = new_state(&fake);
    assert_eq!(apply(&mut fake, &mut restarted, &wanted), 0);
}

#[test]
fn what_is_not_desired_goes_whoever_made_it() {
    let mut fake = Fake::default();
    let mut state = new_state(&fake);
    let mut wanted = desired(vec![backend(1, 1)]);
    let orphan = ServiceKey { port: 0, ..KEY };
    let service = wanted.services[&KEY].clone();
    wanted.services.insert(orphan, service);
    apply(&mut fake, &mut state, &wanted);
    assert_eq!(fake.dump().unwrap().settings.port_zero_services, 1);

    let mut restarted = new_state(&fake);
    let nothing = Desired::default();
    apply(&mut fake, &mut restarted, &nothing);
    let dump = fake.dump().unwrap();
    assert!(dump.services.is_empty() && dump.vips.is_empty());
    assert!(dump.local_macs.is_empty() && dump.interfaces.is_empty());
    assert!(dump.backends.values().all(|b| b.state == state::FREE));
    assert_eq!(dump.settings.port_zero_services, 0);
    assert_eq!(apply(&mut fake, &mut restarted, &nothing), 0);
}

#[test]
fn a_service_takes_the_place_of_another_at_once() {
    let mut fake = Fake::default();
    let mut state = new_state(&fake);
    let mut wanted = desired(vec![backend(1, 1), backend(2, 1)]);
    apply(&mut fake, &mut state, &wanted);
    let service = wanted.services.remove(&KEY).unwrap();
    let moved = ServiceKey { port: 443, ..KEY };
    wanted.services.insert(moved, service);
    apply(&mut fake, &mut state, &wanted);
    let dump = fake.dump().unwrap();
    let (value, slots, _) = &dump.services[&moved];
    for slot in slots {
        let entry = &dump.backends[&slot.backend()];
        assert_eq!((entry.state, entry.service), (state::ALIVE, value.id));
    }
    let mut restarted = new_state(&fake);
    assert_eq!(apply(&mut fake, &mut restarted, &wanted), 0);
}

/// As a crash leaves them between the writes of one plan.
#[test]
fn entries_of_no_service_are_freed() {
    let mut fake = Fake::default();
    let mut state = new_state(&fake);
    let wanted = desired(vec![backend(1, 1)]);
    apply(&mut fake, &mut state, &wanted);
    fake.apply(&Op::RemoveService(KEY)).unwrap();
    let mut restarted = new_state(&fake);
    apply(&mut fake, &mut restarted, &Desired::default());
    let dump = fake.dump().unwrap();
    assert!(dump.backends.values().all(|b| b.state == state::FREE));
}

/// A new service, and one that takes the place of another: killed after any
/// write, the next `lb-ctl` ends with what is desired, in the maps as in what
/// it believes of them.
#[test]
fn a_plan_may_be_cut_off_after_any_write() {
    let first = desired(vec![backend(1, 1), backend(2, 1)]);
    let mut moved = desired(vec![backend(2, 1), backend(3, 1)]);
    let service = moved.services.remove(&KEY).unwrap();
    moved
        .services
        .insert(ServiceKey { port: 443, ..KEY }, service);
    for done in 0.. {
        let mut fake = Fake::default();
        let mut left = done;
        let mut state = new_state(&fake);
        for wanted in [&first, &moved] {
            let ops = plan(&mut state, wanted, None, fake.now()).unwrap().ops;
            for op in ops.iter().take(left) {
                fake.apply(op).unwrap();
            }
            let was_cut = left < ops.len();
            left = left.saturating_sub(ops.len());
            if !was_cut {
                continue;
            }
            let mut restarted = new_state(&fake);
            apply(&mut fake, &mut restarted, wanted);
            let dump = fake.dump().unwrap();
            assert_eq!(dump.services.len(), 1, "after {done} writes");
            for (value, slots, _) in dump.services.values() {
                assert!(!slots.is_empty());
                for slot in slots {
                    let entry = &dump.backends[&slot.backend()];
                    let is_good = entry.state == state::ALIVE && entry.service == value.id;
                    assert!(is_good, "after {done} writes: {entry:?}");
                }
            }
            assert_eq!(dump.backends, restarted.backends, "after {done} writes");
            break;
        }
        if left > 0 {
            return;
        }
    }
}

/// After a restart, until its next hop has been looked up.
#[test]
fn a_backend_that_was_alive_stays_scheduled_while_it_is_looked_up() {
    let mut fake = Fake::default();
    let mut state = new_state(&fake);
    let mut wanted = desired(vec![backend(1, 1), backend(2, 1)]);
    apply(&mut fake, &mut state, &wanted);
    let mut restarted = new_state(&fake);
    let mut unknown = backend(3, 1);
    unknown.condition = Condition::Pending;
    let service = wanted.services.get_mut(&KEY).unwrap();
    for backend in &mut service.backends {
        backend.condition = Condition::Pending;
    }
    assert_eq!(apply(&mut fake, &mut restarted, &wanted), 0);
    // One that is new has to be looked up first.
    let service = wanted.services.get_mut(&KEY).unwrap();
    service.backends.push(unknown);
    apply(&mut fake, &mut restarted, &wanted);
    let owned = restarted.ring_summary(&KEY).unwrap().owned;
    assert_eq!(owned.len(), 2);
}

#[test]
fn the_ring_shares_by_weight_and_leaves_out_who_cannot_be_reached() {
    let mut fake = Fake::default();
    let mut state = new_state(&fake);
    let mut unresolved = backend(3, 1);
    unresolved.condition = Condition::Unresolved;
    let wanted = desired(vec![backend(1, 1), backend(2, 3), unresolved]);
    apply(&mut fake, &mut state, &wanted);
    let owners = fake.owners(&KEY);
    let share = |n: usize| {
        let address = Some(wanted.services[&KEY].backends[n].address);
        owners.iter().filter(|owner| **owner == address).count() as f64 / owners.len() as f64
    };
    assert!((share(0) - 0.25).abs() < 0.0025, "{}", share(0));
    assert!((share(1) - 0.75).abs() < 0.0075, "{}", share(1));
    assert_eq!(share(2), 0.0);
}

#[test]
fn a_backend_that_dies_raises_its_generation_and_one_that_is_slow_does_not() {
    let mut fake = Fake::default();
    let mut state = new_state(&fake);
    let mut wanted = desired(vec![backend(1, 1), backend(2, 1)]);
    apply(&mut fake, &mut state, &wanted);
    let entry = |fake: &Fake| fake.dump().unwrap().backends[&1];

    let mut set = |condition, fake: &mut Fake| {
        wanted.services.get_mut(&KEY).unwrap().backends[0].condition = condition;
        apply(fake, &mut state, &wanted);
        entry(fake)
    };
    let before = entry(&fake);
    let slow = set(Condition::Unresolved, &mut fake);
    assert_eq!(
        (slow.state, slow.generation),
        (state::ALIVE, before.generation)
    );
    let dead = set(Condition::Down, &mut fake);
    assert_eq!(
        (dead.state, dead.generation),
        (state::DEAD, before.generation + 1)
    );
    let back = set(Condition::Up(next_hop(9)), &mut fake);
    assert_eq!(
        (back.state, back.generation),
        (state::ALIVE, dead.generation)
    );
    assert_eq!(back.next_hop_mac(), next_hop(9).mac.into());
}

/// Were it an error, nothing would be written, and so no entry ever freed.
#[test]
fn without_a_free_entry_a_backend_waits_and_the_rest_goes_on() {
    let mut fake = Fake::new(3);
    let mut state = new_state(&fake);
    apply(
        &mut fake,
        &mut state,
        &desired(vec![backend(1, 1), backend(2, 1)]),
    );
    let mut first = backend(1, 1);
    first.removed = true;
    first.condition = Condition::Down;
    let wanted = desired(vec![first, backend(2, 1), backend(3, 1)]);
    let planned = plan(&mut state, &wanted, None, 0).unwrap();
    let why = planned.deferred.unwrap().to_string();
    assert!(why.contains("--max-backends"), "{why}");
    planned.ops.iter().for_each(|op| fake.apply(op).unwrap());
    let wanted = desired(vec![backend(2, 1), backend(3, 1)]);
    apply(&mut fake, &mut state, &wanted);
    let third = Some(backend(3, 1).address);
    assert!(fake.owners(&KEY).contains(&third));
}

#[test]
fn a_ring_without_room_keeps_its_predecessor_until_there_is() {
    let mut fake = Fake::new(17);
    let mut state = new_state(&fake);
    let all = |weight| desired((1..=16).map(|n| backend(n, weight)).collect());
    apply(&mut fake, &mut state, &all(1));
    let before = fake.owners(&KEY);
    // Takes all that is left, as other services' changes would.
    let mut hoard = Vec::new();
    while let Some(first) = state.space.allocate(1) {
        hoard.push(first);
    }
    let mut wanted = all(1);
    wanted.services.get_mut(&KEY).unwrap().backends[0].weight = 0;
    let planned = plan(&mut state, &wanted, None, 0).unwrap();
    assert!(matches!(planned.deferred, Some(Full::Ring(_))));
    planned.ops.iter().for_each(|op| fake.apply(op).unwrap());
    assert_eq!(fake.owners(&KEY), before);

    hoard
        .into_iter()
        .for_each(|first| state.space.release(first, 1, 0));
    fake.maps().now = 10;
    apply(&mut fake, &mut state, &wanted);
    assert_ne!(fake.owners(&KEY), before);
}

proptest! {
    /// From any state to any other: the maps hold what is desired, and a
    /// second plan has nothing to do.
    #[test]
    fn plans_converge(
        steps in prop::collection::vec(
            prop::collection::vec((1_u8..12, 0_u32..5, 0_u8..3), 0..8),
            1..6,
        ),
    ) {
        let mut fake = Fake::default();
        let mut state = new_state(&fake);
        for step in steps {
            let mut backends: BTreeMap<u8, DesiredBackend> = BTreeMap::new();
            for (n, weight, condition) in step {
                let mut b = backend(n, weight);
                b.condition = match condition {
                    0 => Condition::Down,
                    1 => Condition::Unresolved,
                    _ => b.condition,
                };
                backends.insert(n, b);
            }
            let wanted = desired(backends.into_values().collect());
            apply(&mut fake, &mut state, &wanted);
            prop_assert_eq!(apply(&mut fake, &mut state, &wanted), 0);
            let mut restarted = new_state(&fake);
            prop_assert_eq!(apply(&mut fake, &mut restarted, &wanted), 0);
            fake.maps().now += 1;
        }
    }
}
