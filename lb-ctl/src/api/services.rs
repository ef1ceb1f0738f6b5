//! `/v1/services`

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::extract::{Conditions, Json, ServicePath, check_identity, with_identity};
use crate::model::status::ServiceStatus;
use crate::model::{Kind, Problem, ProblemDocument, Scope, Service, ServiceName, text};
use crate::reconcile::{Handle, Versioned};

/// All services with what is observed of them.
#[utoipa::path(get, path = "/v1/services", tag = "services",
    responses((status = 200, body = Vec<ServiceStatus>)))]
pub(super) async fn list(State(handle): State<Handle>) -> Result<Response, Problem> {
    let status = handle.status().await?;
    Ok(axum::Json(status.services).into_response())
}

/// One service with what is observed of it.
#[utoipa::path(get, path = "/v1/services/{name}", tag = "services",
    params(("name" = String, Path)),
    responses((status = 200, body = ServiceStatus), (status = 404, body = ProblemDocument)))]
pub(super) async fn get(
    State(handle): State<Handle>,
    ServicePath(name): ServicePath,
) -> Result<Response, Problem> {
    let status = handle.status().await?;
    let service = find(status.services, &name)?;
    Ok(axum::Json(service).into_response())
}

/// Creates a service or replaces it. `name` may be left out of the body.
#[utoipa::path(put, path = "/v1/services/{name}", tag = "services",
    params(
        ("name" = String, Path),
        ("If-Match" = Option<String>, Header, description = "etag of the whole desired state"),
        ("If-None-Match" = Option<String>, Header, description = "\"*\": only if it does not exist"),
    ),
    request_body = Service,
    responses(
        (status = 200, description = "replaced, or as it was", body = Service),
        (status = 201, description = "created", body = Service),
        (status = "4XX", body = ProblemDocument),
    ))]
pub(super) async fn put(
    State(handle): State<Handle>,
    ServicePath(name): ServicePath,
    conditions: Conditions,
    Json(body): Json<Value>,
) -> Result<Response, Problem> {
    let service: Service = text::from_json_value(with_identity(body, "name", name.as_str()))?;
    check_identity("name", &name, &service.name)?;
    let if_match = conditions.if_match.clone();
    let scope = Scope::Service(name.clone());
    let (created, versioned) = handle
        .change(if_match, scope, move |config| {
            let existing = config.service_mut(&service.name);
            conditions.check_new(
                existing.is_some(),
                format_args!("the service {}", service.name),
            )?;
            match existing {
                Some(existing) => {
                    *existing = service;
                    Ok(false)
                }
                None => {
                    config.services.push(service);
                    Ok(true)
                }
            }
        })
        .await?;
    let service = versioned.config.service(&name).cloned();
    let location = format!("/v1/services/{name}");
    Ok(stored(created, &location, &versioned, service))
}

/// Removes a service and its backends.
#[utoipa::path(delete, path = "/v1/services/{name}", tag = "services",
    params(("name" = String, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = 404, body = ProblemDocument)))]
pub(super) async fn delete(
    State(handle): State<Handle>,
    ServicePath(name): ServicePath,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let scope = Scope::Service(name.clone());
    let ((), versioned) = handle
        .change(conditions.if_match, scope, move |config| {
            let before = config.services.len();
            config.services.retain(|service| service.name != name);
            if config.services.len() == before {
                return Err(no_service(&name));
            }
            Ok(())
        })
        .await?;
    Ok((StatusCode::NO_CONTENT, etag(&versioned)).into_response())
}

/// The status of one service.
pub(super) fn find(
    services: Vec<ServiceStatus>,
    name: &ServiceName,
) -> Result<ServiceStatus, Problem> {
    services
        .into_iter()
        .find(|service| service.name == *name)
        .ok_or_else(|| no_service(name))
}

pub(super) fn no_service(name: &ServiceName) -> Problem {
    let detail = format!("there is no service {name}: `lb-ctl service list` shows those there are");
    Problem::new(Kind::NotFound, detail)
}

/// The answer to a request that has stored something.
pub(super) fn stored<T: serde::Serialize>(
    created: bool,
    location: &str,
    versioned: &Versioned,
    body: T,
) -> Response {
    let mut headers = etag(versioned);
    if created && let Ok(location) = location.parse() {
        headers.insert(header::LOCATION, location);
    }
    let status = if created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    (status, headers, axum::Json(body)).into_response()
}

/// The etag of the desired state as a header.
pub(super) fn etag(versioned: &Versioned) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(etag) = format!("\"{}\"", versioned.etag).parse() {
        headers.insert(header::ETAG, etag);
    }
    headers
}
