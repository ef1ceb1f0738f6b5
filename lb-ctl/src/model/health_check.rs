use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How to find out whether a backend is up.
///
/// One flat object whatever the type, so that an unknown or misplaced field
/// can be named; the `http` fields are refused for other types.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What a probe does.
    pub r#type: CheckType,
    /// Port to probe if not the service's; required if that is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Milliseconds from one probe to the next.
    #[serde(default = "HealthCheck::default_interval_ms")]
    #[schema(minimum = 50, default = 2000)]
    pub interval_ms: u32,
    /// Milliseconds after which a probe without an answer has failed, at most
    /// the interval; if absent 1000, or the interval if that is shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub timeout_ms: Option<u32>,
    /// Successes in a row that bring a backend up.
    #[serde(default = "HealthCheck::default_rise")]
    #[schema(minimum = 1, default = 2)]
    pub rise: u32,
    /// Failures in a row that take a backend down.
    #[serde(default = "HealthCheck::default_fall")]
    #[schema(minimum = 1, default = 3)]
    pub fall: u32,
    /// `http`: path to get, `/` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `http`: Host header, the backend's address if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// `http`: status codes that are a success, 200 to 399 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_status: Option<Vec<u16>>,
    /// `http`: text that the first 64 KiB of the body must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_body: Option<String>,
}

/// What a probe does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckType {
    /// Opens a TCP connection and closes it.
    Tcp,
    /// Gets a page by HTTP/1.1.
    Http,
}

impl HealthCheck {
    /// A check of this type with the defaults.
    pub const fn new(r#type: CheckType) -> Self {
        Self {
            r#type,
            port: None,
            interval_ms: Self::default_interval_ms(),
            timeout_ms: None,
            rise: Self::default_rise(),
            fall: Self::default_fall(),
            path: None,
            host: None,
            expect_status: None,
            expect_body: None,
        }
    }

    /// Time from one probe to the next.
    pub const fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms as u64)
    }

    /// Time after which a probe without an answer has failed.
    pub fn timeout(&self) -> Duration {
        let ms = self.timeout_ms.unwrap_or(1000).min(self.interval_ms);
        Duration::from_millis(ms.into())
    }

    /// Whether this HTTP status is a success.
    pub fn expects(&self, status: u16) -> bool {
        match &self.expect_status {
            Some(expected) => expected.contains(&status),
            None => (200..400).contains(&status),
        }
    }

    const fn default_interval_ms() -> u32 {
        2000
    }

    const fn default_rise() -> u32 {
        2
    }

    const fn default_fall() -> u32 {
        3
    }
}
