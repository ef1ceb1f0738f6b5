//! The REST API. Handlers speak to the reconciler and to nothing else.

mod backends;
mod config;
mod extract;
mod listen;
mod openapi;
mod probes;
mod problem;
mod services;
mod stats;

use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::middleware;
use axum::routing::get;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

pub use listen::{ListenAddress, Listener};
pub use openapi::document as openapi_document;

use crate::reconcile::Handle;

/// Largest request body in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// Largest desired state in bytes: of a few hundred thousand backends.
pub const MAX_CONFIG: usize = 16 << 20;

/// How long requests may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// All paths of the API.
pub fn router(handle: Handle) -> Router {
    Router::new()
        .route("/v1/services", get(services::list))
        .route(
            "/v1/services/{name}",
            get(services::get)
                .put(services::put)
                .delete(services::delete),
        )
        .route(
            "/v1/services/{name}/backends",
            get(backends::list).post(backends::post),
        )
        .route(
            "/v1/services/{name}/backends/{address}",
            get(backends::get)
                .put(backends::put)
                .patch(backends::patch)
                .delete(backends::delete),
        )
        .route("/v1/config", get(config::get).put(config::put))
        .route("/v1/stats", get(stats::stats))
        .route("/v1/status", get(stats::status))
        .route("/healthz", get(probes::healthz))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(probes::metrics))
        .route("/openapi.json", get(openapi::get))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(middleware::from_fn(problem::finish))
        .with_state(handle)
}

/// Serves on every listener until `stop` becomes true, then lets requests
/// that have begun come to their end.
///
/// # Errors
/// When a listener fails.
pub async fn serve(
    listeners: Vec<Listener>,
    router: Router,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let mut servers = JoinSet::new();
    for listener in listeners {
        info!(address = %listener.address(), "listening");
        servers.spawn(listener.serve(router.clone(), stop.clone()));
    }
    let all = async {
        while let Some(server) = servers.join_next().await {
            server??;
        }
        Ok(())
    };
    let overdue = async {
        stopped(stop).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        outcome = all => outcome,
        () = overdue => {
            warn!("some requests did not end within {GRACE:?}: cutting them off");
            Ok(())
        }
    }
}

/// Returns when `stop` is true or nobody is left who could make it so.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
