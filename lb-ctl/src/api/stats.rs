//! `/v1/stats` and `/v1/status`

use axum::Json;
use axum::extract::State;

use crate::model::Problem;
use crate::model::status::{Stats, Status};
use crate::reconcile::Handle;

/// What is counted.
#[utoipa::path(get, path = "/v1/stats", tag = "status", responses((status = 200, body = Stats)))]
pub(super) async fn stats(State(handle): State<Handle>) -> Result<Json<Stats>, Problem> {
    Ok(Json(Stats::from(&handle.status().await?)))
}

/// Everything that is observed.
#[utoipa::path(get, path = "/v1/status", tag = "status", responses((status = 200, body = Status)))]
pub(super) async fn status(State(handle): State<Handle>) -> Result<Json<Status>, Problem> {
    Ok(Json(handle.status().await?))
}
