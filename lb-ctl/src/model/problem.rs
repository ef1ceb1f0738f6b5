use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "ProblemDocument")]
pub struct Problem {
    /// Kind of problem.
    pub kind: Kind,
    /// What is wrong this time, and what to do about it.
    pub detail: String,
    /// The field that is wrong, such as `backends[1].address`.
    pub field: Option<String>,
    /// Path of the request.
    pub instance: Option<String>,
    /// The other field if two contradict each other: whichever of them the
    /// request speaks of becomes `field`.
    pub(crate) other_field: Option<String>,
}

/// A [`Problem`] as it is sent, RFC 9457.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDocument {
    /// A URN for each kind of problem: `urn:lb:problem:…`.
    pub r#type: String,
    /// The kind in words.
    pub title: String,
    /// HTTP status code.
    pub status: u16,
    /// What is wrong this time, and what to do about it.
    pub detail: String,
    /// The field that is wrong, such as `backends[1].address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Path of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

impl From<Problem> for ProblemDocument {
    fn from(problem: Problem) -> Self {
        let (status, urn, title) = problem.kind.parts();
        Self {
            r#type: format!("urn:lb:problem:{urn}"),
            title: title.to_owned(),
            status,
            detail: problem.detail,
            field: problem.field,
            instance: problem.instance,
        }
    }
}

/// Kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is not JSON, or not HTTP as it should be.
    Malformed,
    /// A field has a wrong type, is unknown or is missing.
    Schema,
    /// A field has a value that cannot be.
    InvalidValue,
    /// The service, backend or page does not exist.
    NotFound,
    /// There is no such method here.
    MethodNotAllowed,
    /// It exists already, or contradicts what exists.
    Conflict,
    /// The desired state is no longer what the client thinks it is.
    PreconditionFailed,
    /// The body is too large.
    TooLarge,
    /// The body is not `application/json`.
    UnsupportedMediaType,
    /// The tables of the packet path are full.
    Full,
    /// The director itself is in trouble.
    Internal,
    /// `lb-ctl` is starting or stopping.
    Unavailable,
}

impl Kind {
    const fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Malformed => (400, "malformed", "Malformed request"),
            Self::Schema => (422, "schema", "Unexpected content"),
            Self::InvalidValue => (422, "invalid-value", "Invalid value"),
            Self::NotFound => (404, "not-found", "Not found"),
            Self::MethodNotAllowed => (405, "method-not-allowed", "Method not allowed"),
            Self::Conflict => (409, "conflict", "Conflict"),
            Self::PreconditionFailed => (412, "precondition-failed", "Precondition failed"),
            Self::TooLarge => (413, "too-large", "Body too large"),
            Self::UnsupportedMediaType => (415, "unsupported-media-type", "Unsupported media type"),
            Self::Full => (507, "full", "No room left"),
            Self::Internal => (500, "internal", "Internal error"),
            Self::Unavailable => (503, "unavailable", "Not available now"),
        }
    }
}

impl Problem {
    /// A problem of this kind.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            field: None,
            instance: None,
            other_field: None,
        }
    }

    /// A field has a value that cannot be.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Kind::InvalidValue, detail).at(field)
    }

    /// HTTP status code.
    pub const fn status(&self) -> u16 {
        self.kind.parts().0
    }

    /// Names the field.
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Names a second field that contradicts the first.
    pub fn and(mut self, field: impl Into<String>) -> Self {
        self.other_field = Some(field.into());
        self
    }

    /// Expresses the field as seen from `prefix`, the part of the desired
    /// state that the request speaks of, such as `services[3]`.
    pub fn relative_to(mut self, prefix: &str) -> Self {
        let strip = |field: &Option<String>| {
            let rest = field.as_deref()?.strip_prefix(prefix)?;
            rest.strip_prefix('.').map(str::to_owned)
        };
        if let Some(field) = strip(&self.field).or_else(|| strip(&self.other_field)) {
            self.field = Some(field);
        }
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{field}: {}", self.detail),
            None => f.write_str(&self.detail),
        }
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_shown_as_the_request_sees_it() {
        let field = |problem: Problem, prefix| problem.relative_to(prefix).field.unwrap();
        let p = || Problem::invalid("services[1].vip", "x").and("services[11].backends[0].address");
        assert_eq!(field(p(), "services[1]"), "vip");
        assert_eq!(field(p(), "services[11]"), "backends[0].address");
        assert_eq!(field(p(), "services[11].backends[0]"), "address");
        assert_eq!(field(p(), "services[2]"), "services[1].vip");
    }
}
