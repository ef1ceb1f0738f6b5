//! A running API over an engine without a packet path.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{HeaderMap, Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use lb_ctl::api::{self, ListenAddress, Listener};
use lb_ctl::memory::MemoryEngine;
use lb_ctl::reconcile;
use lb_ctl::store::Store;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// An API that serves until it is dropped.
pub struct Director {
    directory: TempDir,
    stop: watch::Sender<bool>,
    server: JoinHandle<anyhow::Result<()>>,
    reconciler: JoinHandle<()>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("{error}: not JSON: {}", self.text))
    }

    pub fn header(&self, name: header::HeaderName) -> &str {
        let value = self.headers.get(&name);
        value
            .unwrap_or_else(|| panic!("no {name}: {self:?}"))
            .to_str()
            .unwrap()
    }

    /// Asserts that this is a problem document with this status, naming this
    /// field and containing this reason.
    #[track_caller]
    pub fn is_problem(&self, status: u16, field: Option<&str>, reason: &str) {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(
            self.header(header::CONTENT_TYPE),
            "application/problem+json"
        );
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(
            problem.get("field").and_then(Value::as_str),
            field,
            "{problem}"
        );
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(reason), "{reason:?} is not in {detail:?}");
        for field in ["type", "title", "instance"] {
            assert!(problem[field].is_string(), "no {field}: {problem}");
        }
    }
}

impl Director {
    pub async fn start(engine: MemoryEngine) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), engine).await
    }

    pub async fn start_in(directory: TempDir, engine: MemoryEngine) -> Self {
        let store = Store::open(&directory.path().join("state")).unwrap();
        let config = store.load().unwrap().unwrap_or_default();
        let (handle, reconciler) = reconcile::spawn(store, engine, config).unwrap();
        let address = ListenAddress::Unix(directory.path().join("ctl.sock"));
        let listener = Listener::bind(&address).await.unwrap();
        let (stop, stopping) = watch::channel(false);
        let router = api::router(handle);
        let server = tokio::spawn(api::serve(vec![listener], router, stopping));
        Self {
            directory,
            stop,
            server,
            reconciler,
        }
    }

    /// Stops it as a signal would; returns the directory with its state.
    pub async fn stop(self) -> TempDir {
        self.stop.send_replace(true);
        let patience = Duration::from_secs(20);
        let server = timeout(patience, self.server).await;
        server.unwrap().unwrap().unwrap();
        timeout(patience, self.reconciler).await.unwrap().unwrap();
        self.directory
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("ctl.sock")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Vec::new()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], Vec::new()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send_json(Method::PUT, path, &[], body).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send_json(Method::POST, path, &[], body).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send_json(Method::PATCH, path, &[], body).await
    }

    pub async fn send_json(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, &str)],
        body: &Value,
    ) -> Answer {
        let mut all = vec![(header::CONTENT_TYPE, "application/json")];
        all.extend_from_slice(headers);
        self.send(method, path, &all, body.to_string().into_bytes())
            .await
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "lb");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::<Bytes>::from(body)).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        drop(sender);
        connection.await.unwrap().unwrap();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// Everything that a change would change: the desired state with its
    /// etag, and the bytes of every file.
    pub async fn snapshot(&self) -> (String, String, Vec<(PathBuf, Vec<u8>)>) {
        let config = self.get("/v1/config").await;
        assert_eq!(config.status, StatusCode::OK.as_u16());
        let etag = config.header(header::ETAG).to_owned();
        (
            config.text,
            etag,
            files(&self.directory.path().join("state")),
        )
    }
}

fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect();
    files.sort();
    files
}

/// A service with two backends.
pub fn web() -> Value {
    json!({
        "name": "web", "vip": "203.0.113.10", "port": 80, "protocol": "tcp",
        "mode": "dr", "scheduler": "mh",
        "backends": [
            {"address": "203.0.113.21", "weight": 1},
            {"address": "203.0.113.22", "weight": 2},
        ],
    })
}
