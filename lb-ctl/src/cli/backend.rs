use anyhow::Result;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::json;

use super::Connection;
use super::output::Output;
use super::service;
use super::status::backend_table;
use crate::model::status::BackendStatus;
use crate::model::{Backend, BackendAddress, ServiceName, text};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the backends of a service
    List {
        /// Name of the service
        service: ServiceName,
        /// Print the API's JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Add a backend
    Add {
        #[command(flatten)]
        target: Target,
        /// Share of new flows relative to the other backends
        #[arg(long, default_value = "1", value_parser = text::weight)]
        weight: u32,
    },
    /// Change the weight of a backend
    Set {
        #[command(flatten)]
        target: Target,
        /// Share of new flows relative to the other backends; 0 drains
        #[arg(long, value_parser = text::weight)]
        weight: u32,
    },
    /// Set the weight to 0: the backend keeps the flows it has, gets no new ones
    Drain {
        #[command(flatten)]
        target: Target,
    },
    /// Remove a backend; the flows it has may finish
    Remove {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
pub(super) struct Target {
    /// Name of the service
    service: ServiceName,
    /// Address of the backend
    address: BackendAddress,
    #[command(flatten)]
    connection: Connection,
}

impl Command {
    pub(super) async fn run(self) -> Result<Output> {
        match self {
            Self::List {
                service,
                json,
                connection,
            } => {
                let path = format!("{}/backends", service::path(&service));
                let backends: Vec<BackendStatus> = connection.client().get(&path).await?;
                Output::either(json, &backends, |backends| backend_table(backends, ""))
            }
            Self::Add { target, weight } => target.add(weight).await,
            Self::Set { target, weight } => target.set(weight).await,
            Self::Drain { target } => target.set(0).await,
            Self::Remove { target } => target.remove().await,
        }
    }
}

impl Target {
    async fn add(self, weight: u32) -> Result<Output> {
        let Self {
            service,
            address,
            connection,
        } = self;
        let path = format!("{}/backends", service::path(&service));
        let backend = Backend { address, weight };
        connection
            .client()
            .send(Method::POST, &path, &[], &backend)
            .await?;
        let text = format!("added the backend {address} to {service}, weight {weight}");
        Ok(Output::text(text))
    }

    async fn set(self, weight: u32) -> Result<Output> {
        let client = self.connection.client();
        let patch = json!({"weight": weight});
        client
            .send(Method::PATCH, &self.path(), &[], &patch)
            .await?;
        let Self {
            service, address, ..
        } = self;
        let text = if weight == 0 {
            format!("draining the backend {address} of {service}")
        } else {
            format!("the backend {address} of {service} has weight {weight} now")
        };
        Ok(Output::text(text))
    }

    async fn remove(self) -> Result<Output> {
        let client = self.connection.client();
        client
            .request(Method::DELETE, &self.path(), &[], None)
            .await?;
        let Self {
            service, address, ..
        } = self;
        Ok(Output::text(format!(
            "removed the backend {address} of {service}"
        )))
    }

    fn path(&self) -> String {
        // A path must not have brackets (RFC 3986).
        let address = self.address.to_string();
        let address = address.replace('[', "%5B").replace(']', "%5D");
        format!("{}/backends/{address}", service::path(&self.service))
    }
}
