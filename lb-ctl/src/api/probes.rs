//! `/healthz`, `/readyz` and `/metrics`: what machines ask.

use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use crate::metrics;
use crate::model::{Kind, Problem, ProblemDocument};
use crate::reconcile::Handle;

/// How long the reconciler may keep a probe waiting.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the process answers at all.
#[utoipa::path(get, path = "/healthz", tag = "probes", responses((status = 200)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the director follows its desired state.
#[utoipa::path(get, path = "/readyz", tag = "probes",
    responses((status = 200), (status = 503, body = ProblemDocument)))]
pub(super) async fn readyz(State(handle): State<Handle>) -> Result<&'static str, Problem> {
    timeout(PATIENCE, handle.config()).await.map_err(|_| {
        let detail = format!("the reconciler has not answered for {PATIENCE:?}");
        Problem::new(Kind::Unavailable, detail)
    })??;
    Ok("ready\n")
}

/// What is observed, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "probes",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(State(handle): State<Handle>) -> Result<Response, Problem> {
    let text = metrics::render(&handle.status().await?)
        .map_err(|error| Problem::new(Kind::Internal, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
