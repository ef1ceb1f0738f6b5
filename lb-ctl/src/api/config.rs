//! `/v1/config`

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::MAX_CONFIG;
use super::extract::{Conditions, Json};
use super::services::{etag, stored};
use crate::model::{Config, Problem, ProblemDocument, Scope};
use crate::reconcile::Handle;

/// The whole desired state. Its etag is the revision in `/v1/status`.
#[utoipa::path(get, path = "/v1/config", tag = "config",
    params(("If-None-Match" = Option<String>, Header)),
    responses((status = 200, body = Config), (status = 304)))]
pub(super) async fn get(
    State(handle): State<Handle>,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let versioned = handle.config().await?;
    if conditions.if_none_match.as_ref() == Some(&versioned.etag) || conditions.must_be_new {
        return Ok((StatusCode::NOT_MODIFIED, etag(&versioned)).into_response());
    }
    Ok(stored(false, "", &versioned, &*versioned.config))
}

/// Replaces the whole desired state.
#[utoipa::path(put, path = "/v1/config", tag = "config",
    params(("If-Match" = Option<String>, Header)),
    request_body = Config,
    responses((status = 200, body = Config), (status = "4XX", body = ProblemDocument)))]
pub(super) async fn put(
    State(handle): State<Handle>,
    conditions: Conditions,
    Json(config): Json<Config, MAX_CONFIG>,
) -> Result<Response, Problem> {
    conditions.check_new(true, "the configuration")?;
    let ((), versioned) = handle
        .change(conditions.if_match, Scope::Config, move |current| {
            *current = config;
            Ok(())
        })
        .await?;
    Ok(stored(false, "", &versioned, &*versioned.config))
}
