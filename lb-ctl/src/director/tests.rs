use lb_common::vip::ping;

use super::*;
use crate::dataplane::fake::Fake;
use crate::plan::NextHop;

fn config(backends: &[&str]) -> Config {
    let backends: Vec<_> = backends
        .iter()
        .map(|address| serde_json::json!({ "address": address }))
        .collect();
    let config = serde_json::json!({
        "services": [{
            "name": "web", "vip": "203.0.113.10", "port": 80, "protocol": "tcp", "mode": "dr",
            "backends": backends,
        }],
    });
    serde_json::from_value(config).unwrap()
}

/// Backends that are removed keep their entries until their flows have ended.
#[tokio::test(flavor = "multi_thread")]
async fn backends_that_are_leaving_count_as_well() {
    let mut fake = Fake::new(4);
    let first = config(&["203.0.113.21", "203.0.113.22"]);
    let next_hop = NextHop {
        interface: 1,
        mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 1, 0],
        mtu: 1500,
        source: None,
    };
    let backend = |b: &crate::model::Backend| DesiredBackend {
        address: b.address.ip,
        port: 0,
        mode: mode::DR,
        weight: b.weight,
        tunnel_source: None,
        removed: false,
        condition: Condition::Up(next_hop),
    };
    let service = DesiredService {
        hash_key: 0,
        idle_timeout: 10,
        nat: Nat::Gateway,
        ping: ping::HOST,
        backends: first.services[0].backends.iter().map(backend).collect(),
    };
    let desired = Desired {
        services: BTreeMap::from([(key(&first.services[0]), service)]),
        ..Desired::default()
    };
    let mut state = State::from_dump(fake.dump().unwrap(), fake.capacity(), 0);
    let planned = plan(&mut state, &desired, None, 0).unwrap();
    planned.ops.iter().for_each(|op| fake.apply(op).unwrap());

    let directory = tempfile::tempdir().unwrap();
    let director = Director::start(fake, Management::Operator, directory.path().to_owned())
        .await
        .unwrap();
    director.check(&first).unwrap();
    let one_other = config(&["203.0.113.21", "203.0.113.23"]);
    director.check(&one_other).unwrap();
    let others = config(&["203.0.113.23", "203.0.113.24"]);
    let problem = director.check(&others).unwrap_err();
    assert!(
        problem.to_string().contains("2 that are leaving"),
        "{problem}"
    );
}
