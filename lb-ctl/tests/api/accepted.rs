//! What is accepted.

use axum::http::{Method, header};
use lb_ctl::memory::MemoryEngine;
use serde_json::{Value, json};

use crate::director::{Director, web};

#[tokio::test]
async fn services_are_made_shown_replaced_and_removed() {
    let director = Director::start(MemoryEngine::default()).await;
    let path = "/v1/services/web";
    let made = director.put(path, &web()).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.json(), web());
    assert_eq!(made.header(header::LOCATION), path);

    let etag = made.header(header::ETAG);
    let before = director.snapshot().await;
    let again = director.put(path, &web()).await;
    assert_eq!((again.status, again.json()), (200, web()));
    assert_eq!(again.header(header::ETAG), etag);
    assert_eq!(
        director.snapshot().await,
        before,
        "nothing is written twice"
    );

    let shown = director.get(path).await.json();
    assert_eq!(shown["backends"][1]["weight"], 2);
    assert_eq!(shown["backends"][0]["state"], "active");
    assert_eq!(director.get("/v1/services").await.json(), json!([shown]));

    let mut changed = web();
    changed["port"] = json!(0);
    changed.as_object_mut().unwrap().remove("name");
    let replaced = director.put(path, &changed).await;
    assert_eq!(
        (replaced.status, &replaced.json()["port"]),
        (200, &json!(0))
    );
    assert_ne!(replaced.header(header::ETAG), etag);

    assert_eq!(director.delete(path).await.status, 204);
    assert_eq!(director.get("/v1/services").await.json(), json!([]));
    director
        .delete(path)
        .await
        .is_problem(404, None, "no service web");
}

#[tokio::test]
async fn backends_are_added_weighted_and_removed() {
    let director = Director::start(MemoryEngine::default()).await;
    director.put("/v1/services/web", &web()).await;
    let mut v6 = web();
    v6["vip"] = json!("2001:db8::10");
    v6["backends"] = json!([]);
    v6.as_object_mut().unwrap().remove("name");
    assert_eq!(director.put("/v1/services/web6", &v6).await.status, 201);

    for (service, address, canonical) in [
        ("web", "203.0.113.23", "203.0.113.23"),
        ("web6", "2001:db8:0:0::21", "2001:db8::21"),
    ] {
        let all = format!("/v1/services/{service}/backends");
        let added = director.post(&all, &json!({"address": address})).await;
        assert_eq!(added.status, 201, "{}", added.text);
        assert_eq!(added.json(), json!({"address": canonical, "weight": 1}));
        let one = added.header(header::LOCATION).to_owned();
        assert_eq!(one, format!("{all}/{canonical}"));

        let drained = director.patch(&one, &json!({"weight": 0})).await;
        assert_eq!(drained.json(), json!({"address": canonical, "weight": 0}));
        assert_eq!(director.get(&one).await.json()["state"], "draining");
        let put = director.put(&one, &json!({"weight": 7})).await;
        assert_eq!((put.status, &put.json()["weight"]), (200, &json!(7)));
        let shown = director.get(&all).await.json();
        let shown = shown.as_array().unwrap().iter();
        assert!(shown.clone().any(|backend| backend["weight"] == 7));

        // The same address, written and encoded in another way.
        let encoded = format!("{all}/{}", address.replace(':', "%3a"));
        assert_eq!(director.delete(&encoded).await.status, 204);
        director.get(&one).await.is_problem(404, None, canonical);
        let put = director.put(&one, &json!({})).await;
        assert_eq!((put.status, &put.json()["weight"]), (201, &json!(1)));
    }
}

#[tokio::test]
async fn the_whole_state_is_read_and_replaced_under_its_etag() {
    let director = Director::start(MemoryEngine::default()).await;
    let empty = director.get("/v1/config").await;
    let etag = empty.header(header::ETAG).to_owned();
    assert!(etag.starts_with('"') && etag.len() > 10, "{etag}");
    let unchanged = [(header::IF_NONE_MATCH, etag.as_str())];
    let same = director.send(Method::GET, "/v1/config", &unchanged, Vec::new());
    assert_eq!(same.await.status, 304);

    let mut config = empty.json();
    config["services"] = json!([web()]);
    let if_match = [(header::IF_MATCH, etag.as_str())];
    let put = director
        .send_json(Method::PUT, "/v1/config", &if_match, &config)
        .await;
    assert_eq!((put.status, put.json()), (200, config.clone()));
    let revision = director.get("/v1/status").await.json()["revision"].clone();
    assert_eq!(
        put.header(header::ETAG),
        format!("\"{}\"", revision.as_str().unwrap())
    );

    // Now the first etag is out of date, on every path.
    let before = director.snapshot().await;
    for (method, path, body) in [
        (Method::PUT, "/v1/config", config.clone()),
        (Method::PUT, "/v1/services/web", web()),
        (Method::DELETE, "/v1/services/web", Value::Null),
        (
            Method::POST,
            "/v1/services/web/backends",
            json!({"address": "203.0.113.23"}),
        ),
        (
            Method::PATCH,
            "/v1/services/web/backends/203.0.113.21",
            json!({"weight": 5}),
        ),
        (
            Method::PUT,
            "/v1/services/web/backends/203.0.113.21",
            json!({"weight": 5}),
        ),
        (
            Method::DELETE,
            "/v1/services/web/backends/203.0.113.21",
            Value::Null,
        ),
    ] {
        let late = director.send_json(method, path, &if_match, &body).await;
        late.is_problem(412, None, "has changed meanwhile");
    }
    assert_eq!(director.snapshot().await, before);

    // Order means nothing.
    let mut turned = config.clone();
    turned["services"][0]["backends"]
        .as_array_mut()
        .unwrap()
        .reverse();
    let any = [(header::IF_MATCH, "*")];
    let put = director
        .send_json(Method::PUT, "/v1/config", &any, &turned)
        .await;
    assert_eq!((put.status, put.json()), (200, config));
    assert_eq!(director.snapshot().await, before);
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let director = Director::start(MemoryEngine::default()).await;
    director.put("/v1/services/web", &web()).await;
    let patch = json!({"weight": 9});
    let path = "/v1/services/web/backends/203.0.113.21";
    assert_eq!(director.patch(path, &patch).await.status, 200);
    let (config, etag, _) = director.snapshot().await;
    let directory = director.stop().await;

    let director = Director::start_in(directory, MemoryEngine::default()).await;
    let (config_now, etag_now, _) = director.snapshot().await;
    assert_eq!((config_now, etag_now), (config, etag));
    assert_eq!(director.get(path).await.json()["weight"], 9);
}

#[tokio::test]
async fn changes_from_many_clients_are_all_made() {
    let director = Director::start(MemoryEngine::default()).await;
    let mut service = web();
    service["backends"] = json!([]);
    director.put("/v1/services/web", &service).await;
    let add = |i: u8| {
        let body = json!({"address": format!("203.0.113.{}", 100 + i)});
        let director = &director;
        async move {
            director
                .post("/v1/services/web/backends", &body)
                .await
                .status
        }
    };
    let (a, b, c, d) = tokio::join!(add(1), add(2), add(3), add(4));
    assert_eq!([a, b, c, d], [201; 4]);
    let backends = director.get("/v1/services/web/backends").await.json();
    assert_eq!(backends.as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn machines_find_what_they_look_for() {
    let director = Director::start(MemoryEngine::default()).await;
    director.put("/v1/services/web", &web()).await;
    assert_eq!(director.get("/healthz").await.text, "ok\n");
    assert_eq!(director.get("/readyz").await.text, "ready\n");
    let metrics = director.get("/metrics").await;
    assert!(
        metrics
            .text
            .contains("\nlb_backend_packets_total{service=\"web\"")
    );
    assert!(
        metrics
            .header(header::CONTENT_TYPE)
            .starts_with("application/openmetrics-text")
    );
    let stats = director.get("/v1/stats").await.json();
    assert_eq!(
        stats["services"][0]["backends"][0]["counters"]["packets"],
        0
    );
    let status = director.get("/v1/status").await.json();
    assert_eq!(status["services"][0]["name"], "web");

    let openapi = director.get("/openapi.json").await.json();
    let paths = openapi["paths"].as_object().unwrap();
    for (path, methods) in [
        ("/v1/services", "get"),
        ("/v1/services/{name}", "get put delete"),
        ("/v1/services/{name}/backends", "get post"),
        (
            "/v1/services/{name}/backends/{address}",
            "get put patch delete",
        ),
        ("/v1/config", "get put"),
        ("/v1/stats", "get"),
        ("/v1/status", "get"),
        ("/healthz", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
    ] {
        for method in methods.split(' ') {
            assert!(paths[path][method].is_object(), "{method} {path}");
        }
    }
    let references = openapi.to_string();
    let references = references.split("#/components/schemas/").skip(1);
    for reference in references.map(|rest| rest.split('"').next().unwrap()) {
        let schema = &openapi["components"]["schemas"][reference];
        assert!(schema.is_object(), "{reference} is nowhere described");
    }
}
