//! The director's API with a real packet path behind it: what is refused
//! changes nothing, and what is acknowledged is kept.
//!
//! Needs root, and `lb-ctl` built: `cargo xtask build-ebpf && cargo build -p lb-ctl`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::api::Reply;
use integration::topology::{DrLab, Family};
use integration::{paths, run};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(20);

/// The desired state as the API tells it, its etag, and the file's bytes.
fn snapshot(lab: &DrLab) -> anyhow::Result<(String, String, Vec<u8>)> {
    let reply = lab.api().get("/v1/config")?.ok()?;
    let etag = reply.header("etag").context("no etag")?.to_owned();
    let file = lab.lab.dir().join("director-state/config.json");
    Ok((reply.text, etag, fs::read(file)?))
}

fn with(mut document: Value, field: &str, value: Value) -> Value {
    document[field] = value;
    document
}

fn is_problem(reply: &Reply, status: u16, field: Option<&str>, reason: &str) -> anyhow::Result<()> {
    ensure!(reply.status == status, "expected {status}: {reply}");
    let content_type = reply.header("content-type");
    ensure!(
        content_type == Some("application/problem+json"),
        "{content_type:?}"
    );
    let problem = reply.json()?;
    ensure!(
        problem.get("field").and_then(Value::as_str) == field,
        "expected the field {field:?}: {problem}"
    );
    let detail = problem["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(reason), "expected {reason:?}: {problem}");
    Ok(())
}

#[test]
fn bad_input_is_named_and_changes_nothing() -> anyhow::Result<()> {
    let mut lab = DrLab::new("api-bad", 1)?;
    lab.start_director(&[])?;
    let api = lab.api();
    let (web, path) = (lab.service("web", Family::V4, &[0]), "/v1/services/web");
    ensure!(api.put(path, &web)?.status == 201);
    let backends = format!("{path}/backends");
    let before = snapshot(&lab)?;

    let rip = lab.backends[0].address(Family::V4).to_string();
    let other = |field: &str, value: Value| with(web.clone(), field, value);
    let twin = other("name", json!("twin"));
    let check = with(web["health_check"].clone(), "patience", json!(1));
    let refused = [
        (
            api.put(path, &other("vip", json!(rip)))?,
            422,
            Some("backends[0].address"),
            "is the VIP of the service web",
        ),
        (
            api.post(&backends, &json!({"address": Family::V4.vip()}))?,
            422,
            Some("address"),
            "is the VIP of the service web",
        ),
        (
            api.post(&backends, &json!({"address": "198.51.100.9"}))?,
            422,
            Some("address"),
            "not on a segment",
        ),
        (
            api.post(&backends, &json!({"address": "203.0.113.2"}))?,
            422,
            Some("address"),
            "this director",
        ),
        (
            api.post(&backends, &json!({"address": "203.0.113.99", "weight": -1}))?,
            422,
            Some("weight"),
            "not -1",
        ),
        (
            api.post(&backends, &json!({"address": rip}))?,
            409,
            Some("address"),
            "already",
        ),
        (
            api.put("/v1/services/twin", &twin)?,
            409,
            Some("vip"),
            "belongs to the service web already",
        ),
        (
            api.request(
                "PUT",
                path,
                &[("if-none-match", "*")],
                Some(&web.to_string()),
            )?,
            412,
            None,
            "exists already",
        ),
        (
            api.put(path, &other("colour", json!("red")))?,
            422,
            Some("colour"),
            "unknown field",
        ),
        (
            api.put(path, &other("health_check", check))?,
            422,
            Some("health_check.patience"),
            "unknown field",
        ),
        (
            api.put(path, &other("mode", json!("nat")))?,
            422,
            Some("backends[0].address"),
            "has a port",
        ),
        (
            api.request("PUT", path, &[], Some(&" ".repeat(2 << 20)))?,
            413,
            None,
            "at most",
        ),
        (
            api.request("PUT", path, &[], Some("{"))?,
            400,
            None,
            "line 1",
        ),
    ];
    for (reply, status, field, reason) in refused {
        is_problem(&reply, status, field, reason)?;
    }
    ensure!(snapshot(&lab)? == before, "something has changed");
    Ok(())
}

#[test]
fn what_was_acknowledged_survives_kill_9() -> anyhow::Result<()> {
    let mut lab = DrLab::new("api-kill", 2)?;
    lab.start_director(&[])?;
    let web = lab.service("web", Family::V4, &[0]);
    let address = lab.backends[1].address(Family::V4);
    let one = format!("/v1/services/web/backends/{address}");
    let steps: [(&str, &str, Option<Value>); 4] = [
        ("PUT", "/v1/services/web", Some(web)),
        ("PUT", &one, Some(json!({"weight": 3}))),
        ("PATCH", &one, Some(json!({"weight": 0}))),
        ("DELETE", &one, None),
    ];
    for (method, path, body) in steps {
        let body = body.map(|body| body.to_string());
        let reply = lab
            .api()
            .request(method, path, &[], body.as_deref())?
            .ok()?;
        let etag = reply.header("etag").context("no etag")?.to_owned();
        let process = lab.lb_ctl.take().context("no director")?;
        process.kill(Signal::SIGKILL)?;
        process.wait_exit(LONG)?;
        lab.start_director(&[])?;
        let after = snapshot(&lab)?.1;
        ensure!(after == etag, "{method} {path}: {etag} became {after}");
    }
    Ok(())
}

#[test]
fn commands_reach_the_director_and_a_second_one_is_refused() -> anyhow::Result<()> {
    let mut lab = DrLab::new("api-cli", 2)?;
    lab.start_director(&[])?;
    let lb_ctl = |arguments: &[&str]| {
        let mut command = lab.director.command(paths::binary("lb-ctl")?);
        command.args(arguments).env("LB_LISTEN", lab.listen());
        run(&mut command)
    };
    let vip = Family::V6.vip().to_string();
    let backend = lab.backends[0].address(Family::V6);
    let with_weight = format!("{backend}=2");
    let arguments = [
        "service",
        "add",
        "web",
        "--vip",
        &vip,
        "--port",
        "80",
        "--backend",
        &with_weight,
    ];
    lb_ctl(&arguments)?;
    lab.wait_backend_state("web", backend, "active", LONG)?;
    let second = lab.backends[1].address(Family::V6).to_string();
    lb_ctl(&["backend", "add", "web", &second])?;
    lb_ctl(&["backend", "drain", "web", &second])?;
    lab.wait_backend_state("web", second.parse()?, "draining", LONG)?;
    let status = lb_ctl(&["status"])?;
    ensure!(
        status.contains("draining") && status.contains(&vip),
        "{status}"
    );

    let file = lab.lab.dir().join("wanted.json");
    fs::write(&file, lb_ctl(&["export"])?)?;
    let file = file.to_str().context("not text")?;
    lb_ctl(&["service", "remove", "web"])?;
    lb_ctl(&["apply", "-f", file])?;
    let plan = lb_ctl(&["plan", "-f", file])?;
    ensure!(plan == "nothing to change\n", "{plan}");

    let state = lab.lab.dir().join("director-state");
    let state = state.to_str().context("not text")?;
    let other = format!("unix:{}", lab.lab.dir().join("second.sock").display());
    let bpffs = lab.director_bpffs();
    let bpffs = bpffs.to_str().context("not text")?;
    let up = [
        "up",
        "--interface",
        "eth0",
        "--state",
        state,
        "--bpffs",
        bpffs,
        "--listen",
        &other,
    ];
    let refusal = lb_ctl(&up).err().context("a second director runs")?;
    let refusal = format!("{refusal:#}");
    ensure!(refusal.contains("another lb-ctl up (process"), "{refusal}");
    Ok(())
}
