//! From a request to the model.

use std::str::FromStr;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::MAX_BODY;
use crate::model::{BackendAddress, Kind, Problem, ServiceName, text};

/// How much of a body that is too large is read and thrown away, so that the
/// client gets to read the answer before the connection closes.
const MAX_DISCARDED: usize = 16 << 20;

/// A JSON body of at most so many bytes.
pub(super) struct Json<T, const MAX: usize = MAX_BODY>(pub T);

impl<S: Send + Sync, T: DeserializeOwned, const MAX: usize> FromRequest<S> for Json<T, MAX> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        // Read first: a connection with an unread body cannot be answered.
        let bytes = read(body, MAX).await?;
        check_media_type(&parts.headers)?;
        text::from_json(&bytes).map(Self)
    }
}

async fn read(mut body: Body, max: usize) -> Result<Bytes, Problem> {
    let mut bytes = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Problem::new(
                Kind::Malformed,
                format!("the body could not be read: {error}"),
            )
        })?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        length += data.len();
        if length <= max {
            bytes.extend_from_slice(data);
        } else if length > max + MAX_DISCARDED {
            break;
        }
    }
    if length > max {
        let detail = format!("a body has at most {max} bytes");
        return Err(Problem::new(Kind::TooLarge, detail));
    }
    Ok(bytes.into())
}

/// A browser sends other types to any address without asking, but this one
/// only to whom allows it: no web page can change the configuration.
fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = text_of(headers, &header::CONTENT_TYPE)?.unwrap_or_default();
    let media_type = given.split(';').next().unwrap_or_default().trim();
    let expected = ["application/json", "application/merge-patch+json"];
    if expected.iter().any(|e| media_type.eq_ignore_ascii_case(e)) {
        return Ok(());
    }
    let detail = format!(
        "the body must be application/json, not {given:?}: with curl, use --json in place of -d"
    );
    Err(Problem::new(Kind::UnsupportedMediaType, detail))
}

/// Puts the identity that stands in the path into the body, where it may be
/// left out.
pub(super) fn with_identity(mut body: Value, field: &str, identity: &str) -> Value {
    if let Value::Object(fields) = &mut body {
        fields.entry(field).or_insert_with(|| identity.into());
    }
    body
}

/// Refuses a body that speaks of another than the path.
pub(super) fn check_identity<T: PartialEq + std::fmt::Display>(
    field: &str,
    path: &T,
    body: &T,
) -> Result<(), Problem> {
    if path == body {
        return Ok(());
    }
    let detail = format!("the path says {path}, the body {body}: leave it out of the body");
    Err(Problem::invalid(field, detail))
}

/// `{name}` of the path.
pub(super) struct ServicePath(pub ServiceName);

impl<S: Send + Sync> FromRequestParts<S> for ServicePath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(name) = path::<String, S>(parts, state).await?;
        Ok(Self(parse("name", &name)?))
    }
}

/// `{name}` and `{address}` of the path.
pub(super) struct BackendPath(pub ServiceName, pub BackendAddress);

impl<S: Send + Sync> FromRequestParts<S> for BackendPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((name, address)) = path::<(String, String), S>(parts, state).await?;
        Ok(Self(parse("name", &name)?, parse("address", &address)?))
    }
}

async fn path<T: DeserializeOwned + Send, S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
) -> Result<Path<T>, Problem> {
    Path::from_request_parts(parts, state)
        .await
        .map_err(|error| Problem::new(Kind::Malformed, error.body_text()))
}

fn parse<T: FromStr<Err = String>>(field: &str, text: &str) -> Result<T, Problem> {
    text.parse()
        .map_err(|detail| Problem::invalid(field, detail))
}

/// The conditions of a request, RFC 9110 section 13.
pub(super) struct Conditions {
    /// The etag that the desired state must have.
    pub if_match: Option<String>,
    /// Whether the resource must not exist yet: `If-None-Match: *`.
    pub must_be_new: bool,
    /// The etag that the client has already.
    pub if_none_match: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Conditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let if_match = etag(&parts.headers, &header::IF_MATCH)?;
        let if_none_match = etag(&parts.headers, &header::IF_NONE_MATCH)?;
        Ok(Self {
            // "*" asks for any desired state, and there always is one.
            if_match: if_match.filter(|etag| etag != "*"),
            must_be_new: if_none_match.as_deref() == Some("*"),
            if_none_match,
        })
    }
}

impl Conditions {
    /// Refuses to replace what exists if it must be new.
    pub fn check_new(&self, exists: bool, what: impl std::fmt::Display) -> Result<(), Problem> {
        if self.must_be_new && exists {
            let detail = format!("{what} exists already");
            return Err(Problem::new(Kind::PreconditionFailed, detail));
        }
        Ok(())
    }
}

fn etag(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Problem> {
    let Some(value) = text_of(headers, name)? else {
        return Ok(None);
    };
    let strong = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .filter(|value| !value.contains('"'));
    match strong {
        _ if value == "*" => Ok(Some(value.to_owned())),
        Some(etag) => Ok(Some(etag.to_owned())),
        None => {
            let detail = format!("{name} must be * or one strong etag in quotes, not {value}");
            Err(Problem::new(Kind::Malformed, detail))
        }
    }
}

fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    headers
        .get(name)
        .map(|value| {
            value.to_str().map(str::trim).map_err(|_| {
                Problem::new(Kind::Malformed, format!("the header {name} is not text"))
            })
        })
        .transpose()
}
