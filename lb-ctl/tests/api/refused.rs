//! What is refused. Each refusal names the field and the reason and changes
//! nothing, neither in memory nor on disk.

use axum::http::{Method, header};
use lb_ctl::memory::MemoryEngine;
use serde_json::{Value, json};

use crate::director::{Answer, Director, web};

const WEB: &str = "/v1/services/web";
const BACKENDS: &str = "/v1/services/web/backends";
const BACKEND: &str = "/v1/services/web/backends/203.0.113.21";

/// A director that has the service `web`.
async fn director() -> Director {
    let engine = MemoryEngine {
        off_link: ["198.51.100.9".parse().unwrap()].into(),
        local: ["203.0.113.1".parse().unwrap()].into(),
        max_backends: 4,
        ..MemoryEngine::default()
    };
    let director = Director::start(engine).await;
    assert_eq!(director.put(WEB, &web()).await.status, 201);
    director
}

/// `web` with another value at a JSON pointer.
fn web_with(pointer: &str, value: Value) -> Value {
    let mut service = web();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    service.pointer_mut(parent).unwrap()[key] = value;
    service
}

#[tokio::test]
async fn a_service_that_cannot_be_is_refused() {
    let director = director().await;
    let before = director.snapshot().await;
    let cases = [
        (
            "/vip",
            json!("203.0.113.21"),
            "backends[0].address",
            "is the VIP of the service web",
        ),
        ("/vip", json!("224.0.0.1"), "vip", "multicast"),
        ("/vip", json!("nonsense"), "vip", "invalid IP address"),
        (
            "/vip",
            json!("2001:db8::10"),
            "backends[0].address",
            "same IP version",
        ),
        ("/port", json!(65536), "port", "65536"),
        ("/port", json!("80"), "port", "invalid type"),
        (
            "/protocol",
            json!("icmp"),
            "protocol",
            "unknown variant `icmp`",
        ),
        (
            "/mode",
            json!("nat"),
            "backends[0].address",
            "in nat mode a backend has a port",
        ),
        (
            "/scheduler",
            json!("rr"),
            "scheduler",
            "not available in this version",
        ),
        ("/name", json!("other"), "name", "the path says web"),
        ("/name", json!("a b"), "name", "cannot be the name"),
        ("/colour", json!("red"), "colour", "unknown field `colour`"),
        ("/backends", json!(null), "backends", "invalid type"),
        (
            "/backends/0/weight",
            json!(-1),
            "backends[0].weight",
            "not -1",
        ),
        (
            "/backends/0/weight",
            json!(65536),
            "backends[0].weight",
            "not 65536",
        ),
        (
            "/backends/0/weight",
            json!(1.5),
            "backends[0].weight",
            "invalid type",
        ),
        (
            "/backends/1/address",
            json!("203.0.113.21"),
            "backends[1].address",
            "already",
        ),
        (
            "/backends/1/address",
            json!("203.0.113.22:80"),
            "backends[1].address",
            "has no port",
        ),
        (
            "/backends/1/address",
            json!("198.51.100.9"),
            "backends[1].address",
            "not on a segment",
        ),
        (
            "/backends/1/address",
            json!("203.0.113.1"),
            "backends[1].address",
            "this director",
        ),
        (
            "/health_check",
            json!({}),
            "health_check",
            "missing field `type`",
        ),
        (
            "/health_check",
            json!({"type": "icmp"}),
            "health_check.type",
            "unknown variant",
        ),
        (
            "/health_check",
            json!({"type": "tcp", "intervall_ms": 50}),
            "health_check.intervall_ms",
            "unknown field",
        ),
        (
            "/health_check",
            json!({"type": "tcp", "interval_ms": 10}),
            "health_check.interval_ms",
            "from 50",
        ),
    ];
    for (pointer, value, field, reason) in cases {
        let answer = director.put(WEB, &web_with(pointer, value)).await;
        answer.is_problem(422, Some(field), reason);
        assert_eq!(answer.json()["instance"], WEB);
        assert_eq!(director.snapshot().await, before, "{field}: {reason}");
    }
    let mut incomplete = web();
    incomplete.as_object_mut().unwrap().remove("vip");
    let answer = director.put(WEB, &incomplete).await;
    answer.is_problem(422, None, "missing field `vip`");
    assert_eq!(director.snapshot().await, before);
}

#[tokio::test]
async fn backends_that_do_not_hold_the_vip_cannot_answer_for_it() {
    let director = director().await;
    let before = director.snapshot().await;
    let mut service = web_with("/ping", json!("forward"));
    service["mode"] = json!("nat");
    service["backends"] = json!([]);
    let answer = director.put(WEB, &service).await;
    answer.is_problem(422, Some("ping"), "use answer, or host");
    let config = json!({"services": [service]});
    let answer = director.put("/v1/config", &config).await;
    answer.is_problem(422, Some("services[0].ping"), "use answer, or host");
    let answer = director.put(WEB, &web_with("/ping", json!("drop"))).await;
    answer.is_problem(422, Some("ping"), "unknown variant `drop`");
    let config = json!({"settings": {"other_protocols": "answer"}});
    let answer = director.put("/v1/config", &config).await;
    answer.is_problem(422, Some("settings.other_protocols"), "unknown variant");
    assert_eq!(director.snapshot().await, before);
}

#[tokio::test]
async fn a_backend_that_cannot_be_is_refused() {
    let director = director().await;
    let before = director.snapshot().await;
    let cases = [
        (
            json!({"address": "203.0.113.10"}),
            422,
            Some("address"),
            "is the VIP",
        ),
        (
            json!({"address": "198.51.100.9"}),
            422,
            Some("address"),
            "not on a segment",
        ),
        (
            json!({"address": "203.0.113.1"}),
            422,
            Some("address"),
            "this director",
        ),
        (
            json!({"address": "203.0.113.21"}),
            409,
            Some("address"),
            "already",
        ),
        (
            json!({"address": "203.0.113.23:80"}),
            422,
            Some("address"),
            "no port",
        ),
        (
            json!({"address": "web1"}),
            422,
            Some("address"),
            "is not an address",
        ),
        (
            json!({"address": "203.0.113.23", "weight": -1}),
            422,
            Some("weight"),
            "not -1",
        ),
        (
            json!({"address": "203.0.113.23", "wait": 1}),
            422,
            Some("wait"),
            "unknown field",
        ),
        (json!({"weight": 1}), 422, None, "missing field `address`"),
        (json!([]), 422, None, "invalid"),
    ];
    for (body, status, field, reason) in cases {
        let answer = director.post(BACKENDS, &body).await;
        answer.is_problem(status, field, reason);
        assert_eq!(director.snapshot().await, before, "{body}");
    }
    let patches = [
        (json!({"weight": -1}), Some("weight"), "not -1"),
        (
            json!({"weight": 1, "address": "x"}),
            Some("address"),
            "unknown field",
        ),
        (json!({}), None, "missing field `weight`"),
    ];
    for (body, field, reason) in patches {
        let answer = director.patch(BACKEND, &body).await;
        answer.is_problem(422, field, reason);
        assert_eq!(director.snapshot().await, before, "{body}");
    }
    let other = json!({"address": "203.0.113.22", "weight": 5});
    let answer = director.put(BACKEND, &other).await;
    answer.is_problem(422, Some("address"), "the path says 203.0.113.21");
    let path = format!("{BACKENDS}/nonsense");
    let answer = director.put(&path, &json!({})).await;
    answer.is_problem(422, Some("address"), "is not an address");
    assert_eq!(director.snapshot().await, before);
}

#[tokio::test]
async fn what_exists_already_is_not_made_twice() {
    let director = director().await;
    let before = director.snapshot().await;
    let mut twin = web();
    twin["name"] = json!("twin");
    twin["backends"] = json!([]);
    let answer = director.put("/v1/services/twin", &twin).await;
    answer.is_problem(409, Some("vip"), "belongs to the service web already");

    let only_new = [(header::IF_NONE_MATCH, "*")];
    for (path, body) in [
        (WEB, web_with("/port", json!(81))),
        (BACKEND, json!({"weight": 5})),
    ] {
        let answer = director
            .send_json(Method::PUT, path, &only_new, &body)
            .await;
        answer.is_problem(412, None, "exists already");
    }
    let both = json!({"services": [web(), web()]});
    let answer = director.put("/v1/config", &both).await;
    answer.is_problem(409, Some("services[1].name"), "a service web already");
    // The VIP of a new service is a backend of one that is there.
    twin["vip"] = json!("203.0.113.22");
    let answer = director.put("/v1/services/twin", &twin).await;
    answer.is_problem(422, Some("vip"), "a backend needs an address of its own");
    assert_eq!(director.snapshot().await, before);

    twin["vip"] = json!("203.0.113.11");
    let answer = director
        .send_json(Method::PUT, "/v1/services/twin", &only_new, &twin)
        .await;
    assert_eq!(answer.status, 201);
}

#[tokio::test]
async fn a_table_that_is_full_says_so() {
    let director = director().await;
    for i in 23..25 {
        let body = json!({"address": format!("203.0.113.{i}")});
        assert_eq!(director.post(BACKENDS, &body).await.status, 201);
    }
    let before = director.snapshot().await;
    let answer = director
        .post(BACKENDS, &json!({"address": "203.0.113.25"}))
        .await;
    answer.is_problem(507, Some("services"), "room for 4 backends");
    assert_eq!(director.snapshot().await, before);
}

#[tokio::test]
async fn a_backend_that_went_off_the_segment_is_in_nobodys_way() {
    let director = director().await;
    let directory = director.stop().await;
    let engine = MemoryEngine {
        off_link: ["203.0.113.21".parse().unwrap()].into(),
        ..MemoryEngine::default()
    };
    let director = Director::start_in(directory, engine).await;
    let answer = director
        .post(BACKENDS, &json!({"address": "203.0.113.23"}))
        .await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    assert_eq!(
        director.patch(BACKEND, &json!({"weight": 0})).await.status,
        200
    );
    assert_eq!(director.delete(BACKEND).await.status, 204);
    let answer = director.put(BACKEND, &json!({})).await;
    answer.is_problem(422, Some("address"), "not on a segment");
}

#[tokio::test]
async fn what_is_no_proper_request_is_refused() {
    let director = director().await;
    let before = director.snapshot().await;
    let json_type = [(header::CONTENT_TYPE, "application/json")];
    let put = |headers: Vec<(header::HeaderName, &'static str)>, body: Vec<u8>| {
        let director = &director;
        async move { director.send(Method::PUT, WEB, &headers, body).await }
    };
    let answer = put(json_type.to_vec(), b"{\"name\": ".to_vec()).await;
    answer.is_problem(400, None, "line 1");
    let answer = put(json_type.to_vec(), Vec::new()).await;
    answer.is_problem(400, None, "EOF");
    let answer = put(json_type.to_vec(), b"{} {}".to_vec()).await;
    answer.is_problem(400, None, "trailing characters");
    let answer = put(json_type.to_vec(), vec![b'['; 100_000]).await;
    answer.is_problem(400, None, "recursion limit");

    let two_megabytes = vec![b' '; 2 << 20];
    let answer = put(json_type.to_vec(), two_megabytes).await;
    answer.is_problem(413, None, "at most 1048576 bytes");
    // All services together may have more, but not without end.
    let whole = |bytes| director.send(Method::PUT, "/v1/config", &json_type, vec![b' '; bytes]);
    whole(2 << 20).await.is_problem(400, None, "EOF");
    let answer = whole((16 << 20) + 1).await;
    answer.is_problem(413, None, "at most 16777216 bytes");
    let mut almost = web().to_string().into_bytes();
    almost.resize(1 << 20, b' ');
    assert_eq!(put(json_type.to_vec(), almost).await.status, 200);

    let form = vec![(header::CONTENT_TYPE, "application/x-www-form-urlencoded")];
    let answer = put(form, web().to_string().into_bytes()).await;
    answer.is_problem(415, None, "--json");
    let answer = put(Vec::new(), web().to_string().into_bytes()).await;
    answer.is_problem(415, None, "must be application/json");

    for etag in ["abc", "W/\"abc\"", "\"a\", \"b\""] {
        let headers = [(header::IF_MATCH, etag)];
        let answer = director.send_json(Method::PUT, WEB, &headers, &web()).await;
        answer.is_problem(400, None, "one strong etag");
    }
    assert_eq!(director.snapshot().await, before);
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_too() {
    let director = director().await;
    let before = director.snapshot().await;
    let nothing = Value::Null;
    let service = web_with("/vip", json!("203.0.113.11"));
    let cases: [(Method, &str, &Value, &str); 11] = [
        (Method::GET, "/", &nothing, "nothing at /"),
        (
            Method::GET,
            "/v1/serivces",
            &nothing,
            "nothing at /v1/serivces",
        ),
        (Method::PUT, "/v2/config", &service, "nothing at"),
        (
            Method::GET,
            "/v1/services/none",
            &nothing,
            "no service none",
        ),
        (
            Method::DELETE,
            "/v1/services/none",
            &nothing,
            "no service none",
        ),
        (
            Method::GET,
            "/v1/services/none/backends",
            &nothing,
            "no service none",
        ),
        (
            Method::POST,
            "/v1/services/none/backends",
            &json!({"address": "203.0.113.9"}),
            "none",
        ),
        (
            Method::PUT,
            "/v1/services/none/backends/203.0.113.9",
            &json!({}),
            "no service none",
        ),
        (
            Method::GET,
            "/v1/services/web/backends/203.0.113.9",
            &nothing,
            "no backend",
        ),
        (
            Method::PATCH,
            "/v1/services/web/backends/203.0.113.9",
            &json!({"weight": 1}),
            "no backend",
        ),
        (
            Method::DELETE,
            "/v1/services/web/backends/203.0.113.9",
            &nothing,
            "no backend",
        ),
    ];
    for (method, path, body, reason) in cases {
        let answer = director.send_json(method, path, &[], body).await;
        answer.is_problem(404, None, reason);
    }
    for (method, path, allowed) in [
        (Method::POST, "/v1/services", "GET,HEAD"),
        (Method::PATCH, WEB, "GET,HEAD,PUT,DELETE"),
        (Method::DELETE, BACKENDS, "GET,HEAD,POST"),
        (Method::POST, "/v1/config", "GET,HEAD,PUT"),
        (Method::PUT, "/metrics", "GET,HEAD"),
    ] {
        let answer: Answer = director.send_json(method, path, &[], &web()).await;
        answer.is_problem(405, None, "is not possible on");
        assert_eq!(answer.header(header::ALLOW), allowed);
    }
    assert_eq!(director.snapshot().await, before);
}
