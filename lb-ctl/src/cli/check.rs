use clap::{Args, ValueEnum};

use crate::model::{CheckType, HealthCheck};

/// The health check of a service. Options that are not given keep their value.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Health check")]
pub(super) struct CheckOptions {
    /// What a probe does; `none` takes the health check away
    #[arg(long, value_enum, value_name = "TYPE")]
    check: Option<CheckChoice>,
    /// Port to probe if not the service's
    #[arg(long, value_name = "PORT")]
    check_port: Option<u16>,
    /// Milliseconds from one probe to the next; 2000 unless set
    #[arg(long, value_name = "MS")]
    check_interval: Option<u32>,
    /// Milliseconds after which a probe without an answer has failed; 1000 unless set
    #[arg(long, value_name = "MS")]
    check_timeout: Option<u32>,
    /// Successes in a row that bring a backend up; 2 unless set
    #[arg(long, value_name = "N")]
    check_rise: Option<u32>,
    /// Failures in a row that take a backend down; 3 unless set
    #[arg(long, value_name = "N")]
    check_fall: Option<u32>,
    /// http: path to get
    #[arg(long, value_name = "PATH")]
    check_path: Option<String>,
    /// http: Host header
    #[arg(long, value_name = "NAME")]
    check_host: Option<String>,
    /// http: status codes that are a success
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    check_status: Option<Vec<u16>>,
    /// http: text that the body must contain
    #[arg(long, value_name = "TEXT")]
    check_body: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CheckChoice {
    None,
    Tcp,
    Http,
}

impl CheckOptions {
    /// What becomes of a service's health check.
    pub(super) fn merge(self, current: Option<HealthCheck>) -> Option<HealthCheck> {
        let wanted = match self.check {
            Some(CheckChoice::None) => return None,
            Some(CheckChoice::Tcp) => Some(CheckType::Tcp),
            Some(CheckChoice::Http) => Some(CheckType::Http),
            None => None,
        };
        let mut check = match (wanted, current) {
            // Of another type only the timing stays.
            (Some(r#type), Some(current)) if r#type != current.r#type => HealthCheck {
                r#type,
                path: None,
                host: None,
                expect_status: None,
                expect_body: None,
                ..current
            },
            (_, Some(current)) => current,
            (Some(r#type), None) => HealthCheck::new(r#type),
            (None, None) if self.any() => HealthCheck::new(CheckType::Tcp),
            (None, None) => return None,
        };
        fn set<T>(field: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *field = value;
            }
        }
        set(&mut check.interval_ms, self.check_interval);
        set(&mut check.rise, self.check_rise);
        set(&mut check.fall, self.check_fall);
        check.timeout_ms = self.check_timeout.or(check.timeout_ms);
        check.port = self.check_port.or(check.port);
        check.path = self.check_path.or(check.path);
        check.host = self.check_host.or(check.host);
        check.expect_status = self.check_status.or(check.expect_status);
        check.expect_body = self.check_body.or(check.expect_body);
        Some(check)
    }

    /// Whether anything is said of a health check.
    pub(super) const fn any(&self) -> bool {
        self.check.is_some()
            || self.check_port.is_some()
            || self.check_interval.is_some()
            || self.check_timeout.is_some()
            || self.check_rise.is_some()
            || self.check_fall.is_some()
            || self.check_path.is_some()
            || self.check_host.is_some()
            || self.check_status.is_some()
            || self.check_body.is_some()
    }
}
