//! `/openapi.json`

use axum::Json;
use utoipa::OpenApi;

use super::{backends, config, probes, services, stats};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "lb-ctl",
        description = "REST API of a director. Errors are RFC 9457 problem documents."
    ),
    paths(
        services::list,
        services::get,
        services::put,
        services::delete,
        backends::list,
        backends::post,
        backends::get,
        backends::put,
        backends::patch,
        backends::delete,
        config::get,
        config::put,
        stats::stats,
        stats::status,
        probes::healthz,
        probes::readyz,
        probes::metrics,
    )
)]
struct Document;

/// The OpenAPI description of the API.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

pub(super) async fn get() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}
