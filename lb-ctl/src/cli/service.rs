use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use hyper::{Method, header};

use super::Connection;
use super::check::CheckOptions;
use super::output::Output;
use super::status::{service_block, service_table};
use crate::model::status::ServiceStatus;
use crate::model::{
    Backend, BackendAddress, Config, Mode, Ping, Protocol, Scheduler, Service, ServiceName, text,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List all services
    List {
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show one service
    Get {
        /// Name of the service
        name: ServiceName,
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Make a new service
    Add(Box<Add>),
    /// Change an existing service
    Set(Box<Set>),
    /// Remove a service and its backends
    Remove {
        /// Name of the service
        name: ServiceName,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// Name of the service
    name: ServiceName,
    /// Address that clients speak to
    #[arg(long)]
    vip: IpAddr,
    /// Port that clients speak to; 0 stands for every port
    #[arg(long)]
    port: u16,
    /// Transport protocol
    #[arg(long, value_enum, default_value = "tcp")]
    protocol: Protocol,
    /// How packets reach a backend
    #[arg(long, value_enum, default_value = "dr")]
    mode: Mode,
    /// In nat mode, translate the source as well, to an address of
    /// settings.nat_pool
    #[arg(long)]
    full_nat: bool,
    /// How a new flow gets its backend: so far only mh is served
    #[arg(long, value_enum, default_value = "mh")]
    scheduler: Scheduler,
    /// Who answers pings of the VIP; of its services' wishes the strongest
    /// decides: forward, then answer, then host
    #[arg(long, value_enum, default_value = "host")]
    ping: Ping,
    /// A backend, with its weight if that is not 1; may be repeated
    #[arg(long = "backend", value_name = "ADDRESS[=WEIGHT]", value_parser = backend)]
    backends: Vec<Backend>,
    // Its options first: the check's come under a heading of their own.
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    check: CheckOptions,
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// Name of the service
    name: ServiceName,
    /// Address that clients speak to
    #[arg(long)]
    vip: Option<IpAddr>,
    /// Port that clients speak to; 0 stands for every port
    #[arg(long)]
    port: Option<u16>,
    /// Transport protocol
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// How packets reach a backend
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// In nat mode, whether to translate the source as well
    #[arg(long, value_name = "true|false")]
    full_nat: Option<bool>,
    /// How a new flow gets its backend: so far only mh is served
    #[arg(long, value_enum)]
    scheduler: Option<Scheduler>,
    /// Who answers pings of the VIP
    #[arg(long, value_enum)]
    ping: Option<Ping>,
    // Its options first: the check's come under a heading of their own.
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    check: CheckOptions,
}

impl Command {
    pub(super) async fn run(self) -> Result<Output> {
        match self {
            Self::List { json, connection } => {
                let services: Vec<ServiceStatus> = connection.client().get("/v1/services").await?;
                Output::either(json, &services, |services| service_table(services))
            }
            Self::Get {
                name,
                json,
                connection,
            } => {
                let service: ServiceStatus = connection.client().get(&path(&name)).await?;
                Output::either(json, &service, service_block)
            }
            Self::Add(command) => command.run().await,
            Self::Set(command) => command.run().await,
            Self::Remove { name, connection } => {
                let client = connection.client();
                client
                    .request(Method::DELETE, &path(&name), &[], None)
                    .await?;
                Ok(Output::text(format!("removed the service {name}")))
            }
        }
    }
}

impl Add {
    async fn run(self) -> Result<Output> {
        let service = Service {
            name: self.name,
            vip: self.vip,
            port: self.port,
            protocol: self.protocol,
            mode: self.mode,
            full_nat: self.full_nat,
            scheduler: self.scheduler,
            ping: self.ping,
            health_check: self.check.merge(None),
            backends: self.backends,
        };
        let only_if_new = [(header::IF_NONE_MATCH, "*".to_owned())];
        let client = self.connection.client();
        client
            .send(Method::PUT, &path(&service.name), &only_if_new, &service)
            .await?;
        let status: ServiceStatus = client.get(&path(&service.name)).await?;
        let notes = status.notes.iter().map(|note| format!("\nnote: {note}"));
        let notes: String = notes.collect();
        Ok(Output::text(format!(
            "added the service {}{notes}",
            service.name
        )))
    }
}

impl Set {
    async fn run(self) -> Result<Output> {
        let given = self.vip.is_some()
            || self.port.is_some()
            || self.protocol.is_some()
            || self.mode.is_some()
            || self.full_nat.is_some()
            || self.scheduler.is_some()
            || self.ping.is_some()
            || self.check.any();
        ensure!(given, "say what to change, see `lb-ctl service set --help`");
        let client = self.connection.client();
        let answer = client.request(Method::GET, "/v1/config", &[], None).await?;
        let config: Config = client.read(&answer)?;
        let name = self.name;
        let old = config
            .service(&name)
            .with_context(|| format!("there is no service {name}: see `lb-ctl service list`"))?
            .clone();
        let new = Service {
            vip: self.vip.unwrap_or(old.vip),
            port: self.port.unwrap_or(old.port),
            protocol: self.protocol.unwrap_or(old.protocol),
            mode: self.mode.unwrap_or(old.mode),
            full_nat: self.full_nat.unwrap_or(old.full_nat),
            scheduler: self.scheduler.unwrap_or(old.scheduler),
            ping: self.ping.unwrap_or(old.ping),
            health_check: self.check.merge(old.health_check.clone()),
            ..old
        };
        // Nobody may have changed it since we read it.
        let etag = answer.etag.unwrap_or_default();
        let unchanged = [(header::IF_MATCH, format!("\"{etag}\""))];
        client
            .send(Method::PUT, &path(&name), &unchanged, &new)
            .await?;
        Ok(Output::text(format!("changed the service {name}")))
    }
}

/// Path of a service in the API.
pub(super) fn path(name: &ServiceName) -> String {
    format!("/v1/services/{name}")
}

/// Reads `ADDRESS[=WEIGHT]`.
fn backend(argument: &str) -> Result<Backend, String> {
    let (address, weight) = match argument.split_once('=') {
        Some((address, weight)) => (address, Some(weight)),
        None => (argument, None),
    };
    let address: BackendAddress = address.parse()?;
    let weight = weight.map_or(Ok(1), text::weight)?;
    Ok(Backend { address, weight })
}
