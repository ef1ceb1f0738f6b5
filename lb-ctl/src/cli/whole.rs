//! Commands that deal with the whole desired state.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use hyper::{Method, header};
use serde::Serialize;

use super::output::Output;
use super::{Connection, file};
use crate::client::Client;
use crate::model::{Config, Difference};

/// Exit status of `plan` if there are differences.
const DIFFERENT: u8 = 2;

#[derive(Debug, Args)]
pub(super) struct Apply {
    #[command(flatten)]
    input: Input,
}

#[derive(Debug, Args)]
pub(super) struct Plan {
    #[command(flatten)]
    input: Input,
}

#[derive(Debug, Args)]
struct Input {
    /// Desired state, .json or .toml; - reads JSON from standard input
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
    /// Print JSON, with `changed`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// Form of the desired state
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    Toml,
}

/// What `apply` did or `plan` would do.
#[derive(Debug, Serialize)]
struct Report {
    changed: bool,
    differences: Vec<Difference>,
}

impl Apply {
    pub(super) async fn run(self) -> Result<Output> {
        let client = self.input.connection.client();
        let (config, differences, etag) = compare(&client, &self.input.file).await?;
        if !differences.is_empty() {
            let unchanged = [(header::IF_MATCH, format!("\"{etag}\""))];
            client
                .send(Method::PUT, "/v1/config", &unchanged, &config)
                .await?;
        }
        report(self.input.json, differences)
    }
}

impl Plan {
    pub(super) async fn run(self) -> Result<Output> {
        let client = self.input.connection.client();
        let (_, differences, _) = compare(&client, &self.input.file).await?;
        let code = if differences.is_empty() { 0 } else { DIFFERENT };
        Ok(report(self.input.json, differences)?.with_code(code))
    }
}

impl Export {
    pub(super) async fn run(self) -> Result<Output> {
        let config: Config = self.connection.client().get("/v1/config").await?;
        Ok(Output::text(match self.format {
            Format::Json => serde_json::to_string_pretty(&config)?,
            Format::Toml => toml::to_string_pretty(&config)?,
        }))
    }
}

/// What a file asks for, how it differs from what is running, and the etag of
/// the latter.
async fn compare(client: &Client, path: &Path) -> Result<(Config, Vec<Difference>, String)> {
    let wanted = file::read(path)?;
    let answer = client.request(Method::GET, "/v1/config", &[], None).await?;
    let running: Config = client.read(&answer)?;
    let differences = running.differences(&wanted);
    Ok((wanted, differences, answer.etag.unwrap_or_default()))
}

fn report(json: bool, differences: Vec<Difference>) -> Result<Output> {
    let report = Report {
        changed: !differences.is_empty(),
        differences,
    };
    Output::either(json, &report, |report| {
        let lines = report.differences.iter().map(|d| format!("{d}\n"));
        let lines: String = lines.collect();
        if lines.is_empty() {
            "nothing to change".to_owned()
        } else {
            lines
        }
    })
}
