//! The commands that are clients, as processes against a running API.

use std::path::Path;
use std::process::{Output, Stdio};

use lb_ctl::memory::MemoryEngine;
use lb_ctl::model::status::DropStatus;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::director::Director;

/// A director and the command that speaks to it.
struct Scene(Director);

impl Scene {
    async fn new() -> Self {
        Self::with(MemoryEngine::default()).await
    }

    async fn with(engine: MemoryEngine) -> Self {
        Self(Director::start(engine).await)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lb-ctl"));
        command
            .args(line.split_whitespace())
            .env("LB_LISTEN", format!("unix:{}", self.0.socket().display()))
            .stdin(Stdio::null());
        command
    }

    async fn run(&self, line: &str) -> Output {
        self.command(line).output().await.unwrap()
    }

    /// Standard output of a command that succeeds.
    #[track_caller]
    fn ok(&self, line: &str) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let output = self.run(line).await;
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{caller}: {line}: {error}");
            String::from_utf8(output.stdout).unwrap()
        }
    }

    /// Standard error of a command that fails.
    #[track_caller]
    fn error(&self, line: &str) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let output = self.run(line).await;
            let printed = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(1), "{caller}: {line}: {printed}");
            String::from_utf8(output.stderr).unwrap()
        }
    }

    async fn config(&self) -> Value {
        self.0.get("/v1/config").await.json()
    }
}

#[tokio::test]
async fn services_and_backends_are_managed_by_command() {
    let scene = Scene::new().await;
    scene
        .ok(
            "service add web --vip 203.0.113.10 --port 80 --backend 203.0.113.21 \
             --backend 203.0.113.22=2 --check http --check-path /up --check-status 200,204",
        )
        .await;
    let service = &scene.config().await["services"][0];
    assert_eq!(
        service["backends"][1],
        json!({"address": "203.0.113.22", "weight": 2})
    );
    assert_eq!(service["health_check"]["expect_status"], json!([200, 204]));
    let error = scene
        .error("service add web --vip 203.0.113.11 --port 80")
        .await;
    assert!(error.contains("web exists already"), "{error}");

    scene.ok("service set web --port 8080 --check-fall 5").await;
    let service = &scene.config().await["services"][0];
    assert_eq!(service["port"], 8080);
    assert_eq!(service["health_check"]["fall"], 5);
    assert_eq!(service["health_check"]["path"], "/up");
    scene.ok("service set web --check tcp").await;
    let check = &scene.config().await["services"][0]["health_check"];
    assert_eq!(check["type"], "tcp");
    assert_eq!(check["fall"], 5);
    scene.ok("service set web --check none").await;
    assert!(
        scene.config().await["services"][0]
            .get("health_check")
            .is_none()
    );

    scene.ok("backend add web 203.0.113.23 --weight 3").await;
    scene.ok("backend drain web 203.0.113.21").await;
    scene.ok("backend set web 203.0.113.22 --weight 9").await;
    let backends = scene.ok("backend list web --json").await;
    let backends: Value = serde_json::from_str(&backends).unwrap();
    let weights: Vec<_> = (0..3).map(|i| backends[i]["weight"].clone()).collect();
    assert_eq!(weights, [0, 9, 3]);
    let table = scene.ok("backend list web").await;
    assert!(table.contains("203.0.113.21       0  draining"), "{table}");
    scene.ok("backend remove web 203.0.113.21").await;
    let error = scene.error("backend remove web 203.0.113.21").await;
    assert!(error.contains("lb-ctl backend list web"), "{error}");

    assert!(scene.ok("service list").await.contains("203.0.113.10"));
    assert!(scene.ok("service get web").await.contains("203.0.113.23"));
    assert!(
        scene
            .ok("status")
            .await
            .contains("web  203.0.113.10 tcp port 8080")
    );
    let status: Value = serde_json::from_str(&scene.ok("status --json").await).unwrap();
    assert_eq!(status["services"][0]["name"], "web");
    scene.ok("service remove web").await;
    assert_eq!(scene.config().await["services"], json!([]));
}

#[tokio::test]
async fn who_answers_pings_is_said_and_shown() {
    let scene = Scene::new().await;
    let add = "service add web --vip 203.0.113.10 --port 80";
    scene.ok(add).await;
    let wish = |config: Value| config["services"][0].get("ping").cloned();
    assert_eq!(wish(scene.config().await), None);
    assert!(!scene.ok("service get web").await.contains("ping"));

    scene.ok("service set web --ping forward").await;
    assert_eq!(wish(scene.config().await), Some(json!("forward")));
    let shown = scene.ok("service get web").await;
    assert!(
        shown.contains("tcp port 80, dr, mh, ping forward"),
        "{shown}"
    );
    let list = scene.ok("service list").await;
    assert!(list.contains("SCHEDULER  PING "), "{list}");
    assert!(list.contains("mh         forward "), "{list}");
    let status: Value = serde_json::from_str(&scene.ok("service get web --json").await).unwrap();
    assert_eq!(status["ping"], "forward");

    let file = scene.0.socket().with_file_name("state.json");
    let mut wanted = scene.config().await;
    wanted["services"][0]["ping"] = json!("answer");
    wanted["settings"]["other_protocols"] = json!("drop");
    std::fs::write(&file, wanted.to_string()).unwrap();
    let done = scene.ok(&format!("apply -f {}", file.display())).await;
    assert_eq!(
        done,
        "+ settings: other_protocols: drop\n~ service web: ping: forward -> answer\n"
    );
    assert_eq!(scene.config().await, wanted);

    scene.ok("service remove web").await;
    let error = scene
        .error(&format!("{add} --mode nat --ping forward"))
        .await;
    assert!(error.starts_with("lb-ctl: ping: in nat mode"), "{error}");
    scene.ok(&format!("{add} --mode nat --ping answer")).await;
}

#[tokio::test]
async fn plan_shows_what_apply_then_does() {
    let scene = Scene::new().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/config.toml");
    std::fs::copy(example, &file).unwrap();
    let (plan, apply) = (
        format!("plan -f {}", file.display()),
        format!("apply -f {}", file.display()),
    );

    let planned = scene.run(&plan).await;
    assert_eq!(planned.status.code(), Some(2));
    let planned = String::from_utf8(planned.stdout).unwrap();
    assert!(
        planned.contains("+ service web: backend 203.0.113.22: weight: 2\n"),
        "{planned}"
    );
    assert_eq!(
        scene.config().await["services"],
        json!([]),
        "plan changes nothing"
    );
    assert_eq!(scene.ok(&apply).await, planned);
    assert_eq!(scene.ok(&plan).await, "nothing to change\n");
    let again: Value = serde_json::from_str(&scene.ok(&format!("{apply} --json")).await).unwrap();
    assert_eq!(again, json!({"changed": false, "differences": []}));

    // What is exported is what applies, in both forms; an orphan goes.
    scene
        .ok("service add orphan --vip 203.0.113.99 --port 1")
        .await;
    let toml = scene.ok("export --format toml").await;
    let planned = scene.run(&plan).await;
    assert_eq!(
        String::from_utf8(planned.stdout).unwrap(),
        "- service orphan: 203.0.113.99 tcp port 1, dr, mh\n"
    );
    std::fs::write(&file, toml).unwrap();
    assert_eq!(scene.ok(&plan).await, "nothing to change\n");
    let json = scene.ok("export").await;
    let mut command = scene.command("plan -f -");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(json.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.stdout, b"nothing to change\n");
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() {
    let scene = Scene::new().await;
    scene
        .ok("service add web --vip 203.0.113.10 --port 80")
        .await;
    let error = scene.error("backend add web 203.0.113.10").await;
    assert!(
        error.starts_with("lb-ctl: address: 203.0.113.10 is the VIP"),
        "{error}"
    );
    let status = scene.ok("status").await;
    assert!(
        status.starts_with("! the service web serves nobody: "),
        "{status}"
    );

    let file = scene.0.socket().with_file_name("wrong.toml");
    std::fs::write(&file, "[[services]]\nname = 'web'\nweight = 1\n").unwrap();
    let error = scene.error(&format!("plan -f {}", file.display())).await;
    assert!(
        error.contains("wrong.toml: services[0].weight: "),
        "{error}"
    );

    let error = scene
        .error("status --listen unix:/nonexistent/ctl.sock")
        .await;
    assert!(error.contains("is `lb-ctl up` running?"), "{error}");
    let usage = scene.run("backend set web 203.0.113.21 --weight -1").await;
    assert_eq!(usage.status.code(), Some(1));
    let usage = scene.run("backend add web web1").await;
    assert!(String::from_utf8_lossy(&usage.stderr).contains("is not an address"));
}

#[tokio::test]
async fn drops_are_listed_most_first() {
    let counts = [("none", 0), ("few", 2), ("nothing", 0), ("many", 7000)];
    let drop = |(reason, count): (&str, u64)| DropStatus {
        reason: reason.to_owned(),
        count,
        meaning: "what it means".to_owned(),
    };
    let scene = Scene::with(MemoryEngine {
        drops: counts.map(drop).to_vec(),
        ..MemoryEngine::default()
    })
    .await;
    let few = scene.ok("drops").await;
    let reason = |line: &str| line.split_whitespace().nth(1).unwrap().to_owned();
    let reasons = |text: &str| -> Vec<String> { text.lines().skip(1).map(reason).collect() };
    assert_eq!(reasons(&few), ["many", "few"]);
    let all = scene.ok("drops --all").await;
    assert_eq!(reasons(&all), ["many", "few", "none", "nothing"]);
    assert!(all.contains("7000  many     what it means\n"), "{all}");
    let json: Value = serde_json::from_str(&scene.ok("drops --json").await).unwrap();
    assert_eq!(json.as_array().unwrap().len(), counts.len());
    assert_eq!(
        json[0],
        json!({"reason": "many", "count": 7000, "meaning": "what it means"})
    );
    let error = scene
        .error("drops --listen unix:/nonexistent/ctl.sock")
        .await;
    assert!(error.contains("is `lb-ctl up` running?"), "{error}");
}
