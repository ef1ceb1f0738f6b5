//! How long the control plane takes: for a ring, and for all services of a
//! large installation. Called by `cargo xtask bench`.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use lb_common::backend::mode;
use lb_common::protocol::TCP;
use lb_common::vip::ping;
use lb_ctl::dataplane::fake::Fake;
use lb_ctl::dataplane::{Dataplane as _, ServiceKey};
use lb_ctl::maglev::{self, Candidate};
use lb_ctl::plan::{Condition, Desired, DesiredBackend, DesiredService, Nat, NextHop, State, plan};

const SERVICES: u32 = 1000;
const BACKENDS_EACH: u32 = 100;

fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    group.sample_size(20);
    for backends in [10, 100, 1_000, 10_000] {
        let candidates: Vec<Candidate> = (0..backends).map(candidate).collect();
        let slots = maglev::ring_size(candidates.iter().map(|c| c.weight));
        let id = BenchmarkId::from_parameter(format!("{backends} backends"));
        group.bench_with_input(id, &candidates, |bencher, candidates| {
            bencher.iter(|| maglev::build(black_box(candidates), slots));
        });
    }
    group.finish();
}

fn services(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("{SERVICES} services of {BACKENDS_EACH}"));
    group.sample_size(10);
    let wanted = desired();
    group.bench_function("plan and apply all", |bencher| {
        bencher.iter_batched_ref(empty, |to| follow(to, &wanted), BatchSize::PerIteration);
    });

    let mut full = empty();
    follow(&mut full, &wanted);
    let mut changed = wanted.clone();
    let service = changed.services.values_mut().next();
    service.expect("there are services").backends[0].weight = 0;
    group.bench_function("plan and apply one drained backend", |bencher| {
        // The maps are shared between clones, which changes nothing: only the
        // state decides what is written.
        let setup = || (full.0.clone(), full.1.clone());
        bencher.iter_batched_ref(setup, |to| follow(to, &changed), BatchSize::PerIteration);
    });
    group.finish();
}

fn empty() -> (Fake, State) {
    let fake = Fake::new(SERVICES * BACKENDS_EACH + 1);
    let dump = fake.dump().expect("memory can be read");
    let state = State::from_dump(dump, fake.capacity(), fake.now());
    (fake, state)
}

fn follow((fake, state): &mut (Fake, State), desired: &Desired) {
    let now = fake.now();
    let planned = plan(state, desired, None, now).expect("there is room");
    assert_eq!(planned.deferred, None);
    assert!(!planned.ops.is_empty());
    for op in &planned.ops {
        fake.apply(op).expect("memory can be written");
    }
}

fn candidate(n: u32) -> Candidate {
    let mut identity = [0; 18];
    identity[..16].copy_from_slice(&backend_address(n).to_ipv6_mapped().octets());
    Candidate {
        identity,
        weight: 1,
    }
}

fn backend_address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + n + 1)
}

fn desired() -> Desired {
    let service = |n: u32| {
        let key = ServiceKey {
            vip: IpAddr::V4(Ipv4Addr::from_bits(0xc613_0000 + n)),
            port: 80,
            protocol: TCP,
        };
        let backends = (0..BACKENDS_EACH)
            .map(|i| backend(n * BACKENDS_EACH + i))
            .collect();
        let service = DesiredService {
            hash_key: 7,
            idle_timeout: 3600,
            nat: Nat::Gateway,
            ping: ping::HOST,
            backends,
        };
        (key, service)
    };
    Desired {
        services: (0..SERVICES).map(service).collect::<BTreeMap<_, _>>(),
        local_macs: BTreeSet::from([(1, [2, 0, 0, 0, 0, 1])]),
        interfaces: BTreeSet::from([1]),
        ..Desired::default()
    }
}

fn backend(n: u32) -> DesiredBackend {
    DesiredBackend {
        address: backend_address(n).into(),
        port: 0,
        mode: mode::DR,
        weight: 1,
        tunnel_source: None,
        removed: false,
        condition: Condition::Up(NextHop {
            interface: 1,
            mac: [2, 0, 1, (n >> 16) as u8, (n >> 8) as u8, n as u8],
            source_mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            source: None,
        }),
    }
}

criterion_group!(benches, ring, services);
criterion_main!(benches);
