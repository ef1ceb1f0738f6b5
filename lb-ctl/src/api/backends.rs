//! `/v1/services/{name}/backends`

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::extract::{BackendPath, Conditions, Json, ServicePath, check_identity, with_identity};
use super::services::{etag, find, no_service, stored};
use crate::model::status::{BackendState, BackendStatus};
use crate::model::{
    Backend, BackendAddress, Config, Kind, Problem, ProblemDocument, Scope, Service, ServiceName,
    deserialize_weight, text,
};
use crate::reconcile::{Handle, Versioned};

/// What `PATCH` can change of a backend.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendPatch {
    /// Share of new flows relative to the service's other backends; 0 drains.
    #[serde(deserialize_with = "deserialize_weight")]
    #[schema(minimum = 0, maximum = 65535)]
    pub weight: u32,
}

/// The backends of a service with what is observed of them.
#[utoipa::path(get, path = "/v1/services/{name}/backends", tag = "backends",
    params(("name" = String, Path)),
    responses((status = 200, body = Vec<BackendStatus>), (status = 404, body = ProblemDocument)))]
pub(super) async fn list(
    State(handle): State<Handle>,
    ServicePath(name): ServicePath,
) -> Result<Response, Problem> {
    let service = find(handle.status().await?.services, &name)?;
    Ok(axum::Json(service.backends).into_response())
}

/// Adds a backend that the service does not have yet.
#[utoipa::path(post, path = "/v1/services/{name}/backends", tag = "backends",
    params(("name" = String, Path), ("If-Match" = Option<String>, Header)),
    request_body = Backend,
    responses(
        (status = 201, description = "added", body = Backend),
        (status = 409, description = "there already", body = ProblemDocument),
        (status = "4XX", body = ProblemDocument),
    ))]
pub(super) async fn post(
    State(handle): State<Handle>,
    ServicePath(name): ServicePath,
    conditions: Conditions,
    Json(backend): Json<Backend>,
) -> Result<Response, Problem> {
    let address = backend.address;
    let scope = Scope::Backend(name.clone(), address);
    let service = name.clone();
    let ((), versioned) = handle
        .change(conditions.if_match, scope, move |config| {
            let service = service_mut(config, &service)?;
            if service.backend(&address).is_some() {
                let detail = format!(
                    "the service {} has a backend {address} already: change its weight with PATCH",
                    service.name
                );
                return Err(Problem::new(Kind::Conflict, detail).at("address"));
            }
            service.backends.push(backend);
            Ok(())
        })
        .await?;
    Ok(answer(true, &name, address, &versioned))
}

/// One backend with what is observed of it.
#[utoipa::path(get, path = "/v1/services/{name}/backends/{address}", tag = "backends",
    params(("name" = String, Path), ("address" = String, Path)),
    responses((status = 200, body = BackendStatus), (status = 404, body = ProblemDocument)))]
pub(super) async fn get(
    State(handle): State<Handle>,
    BackendPath(name, address): BackendPath,
) -> Result<Response, Problem> {
    let service = find(handle.status().await?.services, &name)?;
    let backend = service
        .backends
        .into_iter()
        .find(|b| b.address == address && b.state != BackendState::Removed)
        .ok_or_else(|| no_backend(&name, address))?;
    Ok(axum::Json(backend).into_response())
}

/// Adds a backend or replaces it. `address` may be left out of the body.
#[utoipa::path(put, path = "/v1/services/{name}/backends/{address}", tag = "backends",
    params(
        ("name" = String, Path),
        ("address" = String, Path),
        ("If-Match" = Option<String>, Header),
        ("If-None-Match" = Option<String>, Header),
    ),
    request_body = Backend,
    responses(
        (status = 200, description = "replaced, or as it was", body = Backend),
        (status = 201, description = "added", body = Backend),
        (status = "4XX", body = ProblemDocument),
    ))]
pub(super) async fn put(
    State(handle): State<Handle>,
    BackendPath(name, address): BackendPath,
    conditions: Conditions,
    Json(body): Json<Value>,
) -> Result<Response, Problem> {
    let body = with_identity(body, "address", &address.to_string());
    let backend: Backend = text::from_json_value(body)?;
    check_identity("address", &address, &backend.address)?;
    let if_match = conditions.if_match.clone();
    let scope = Scope::Backend(name.clone(), address);
    let service = name.clone();
    let (created, versioned) = handle
        .change(if_match, scope, move |config| {
            let service = service_mut(config, &service)?;
            let existing = service.backend_mut(&address);
            conditions.check_new(existing.is_some(), format_args!("the backend {address}"))?;
            match existing {
                Some(existing) => {
                    *existing = backend;
                    Ok(false)
                }
                None => {
                    service.backends.push(backend);
                    Ok(true)
                }
            }
        })
        .await?;
    Ok(answer(created, &name, address, &versioned))
}

/// Changes the weight of a backend; 0 drains it.
#[utoipa::path(patch, path = "/v1/services/{name}/backends/{address}", tag = "backends",
    params(
        ("name" = String, Path),
        ("address" = String, Path),
        ("If-Match" = Option<String>, Header),
    ),
    request_body = BackendPatch,
    responses((status = 200, body = Backend), (status = "4XX", body = ProblemDocument)))]
pub(super) async fn patch(
    State(handle): State<Handle>,
    BackendPath(name, address): BackendPath,
    conditions: Conditions,
    Json(patch): Json<BackendPatch>,
) -> Result<Response, Problem> {
    let scope = Scope::Backend(name.clone(), address);
    let service = name.clone();
    let ((), versioned) = handle
        .change(conditions.if_match, scope, move |config| {
            let service = service_mut(config, &service)?;
            let name = service.name.clone();
            let backend = service
                .backend_mut(&address)
                .ok_or_else(|| no_backend(&name, address))?;
            backend.weight = patch.weight;
            Ok(())
        })
        .await?;
    Ok(answer(false, &name, address, &versioned))
}

/// Removes a backend. The flows it has may finish.
#[utoipa::path(delete, path = "/v1/services/{name}/backends/{address}", tag = "backends",
    params(
        ("name" = String, Path),
        ("address" = String, Path),
        ("If-Match" = Option<String>, Header),
    ),
    responses((status = 204), (status = 404, body = ProblemDocument)))]
pub(super) async fn delete(
    State(handle): State<Handle>,
    BackendPath(name, address): BackendPath,
    conditions: Conditions,
) -> Result<Response, Problem> {
    let scope = Scope::Service(name.clone());
    let ((), versioned) = handle
        .change(conditions.if_match, scope, move |config| {
            let service = service_mut(config, &name)?;
            let before = service.backends.len();
            service.backends.retain(|b| b.address != address);
            if service.backends.len() == before {
                return Err(no_backend(&name, address));
            }
            Ok(())
        })
        .await?;
    Ok((StatusCode::NO_CONTENT, etag(&versioned)).into_response())
}

fn answer(
    created: bool,
    name: &ServiceName,
    address: BackendAddress,
    versioned: &Versioned,
) -> Response {
    let backend = versioned
        .config
        .service(name)
        .and_then(|service| service.backend(&address));
    // A reference must not have brackets in its path (RFC 3986).
    let encoded = address.to_string().replace('[', "%5B").replace(']', "%5D");
    let location = format!("/v1/services/{name}/backends/{encoded}");
    stored(created, &location, versioned, backend)
}

fn service_mut<'a>(config: &'a mut Config, name: &ServiceName) -> Result<&'a mut Service, Problem> {
    config.service_mut(name).ok_or_else(|| no_service(name))
}

fn no_backend(name: &ServiceName, address: BackendAddress) -> Problem {
    let detail = format!(
        "the service {name} has no backend {address}: `lb-ctl backend list {name}` shows those it has"
    );
    Problem::new(Kind::NotFound, detail)
}
