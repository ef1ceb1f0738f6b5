//! Problems as responses.

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::debug;

use crate::model::{Kind, Problem};

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        // For `finish`, which knows the path.
        response.extensions_mut().insert(self);
        response
    }
}

/// Adds what only the outermost layer knows.
pub(super) async fn finish(request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        debug!(%method, path, %problem, "refused");
        let allow = response.headers_mut().remove(header::ALLOW);
        let problem = Problem {
            instance: Some(path.clone()),
            ..problem
        };
        response = problem.into_response();
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    debug!(%method, path, status = response.status().as_u16(), "answered");
    let headers = response.headers_mut();
    // What is observed is old at once.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// There is nothing at this path.
pub(super) async fn not_found(uri: Uri) -> Problem {
    let detail = format!(
        "there is nothing at {}: /openapi.json lists what there is",
        uri.path()
    );
    Problem::new(Kind::NotFound, detail)
}

/// The path exists but not this method.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!(
        "{method} is not possible on {}: /openapi.json lists what is",
        uri.path()
    );
    Problem::new(Kind::MethodNotAllowed, detail)
}
