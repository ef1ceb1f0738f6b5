//! The command line.

mod backend;
mod check;
mod drops;
pub mod file;
pub mod options;
mod output;
mod service;
mod status;
mod whole;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::api::ListenAddress;
use crate::client::Client;
use crate::daemon;
use options::{DownOptions, UpOptions};
use output::Output;

/// Load balancer on a director: forwards packets in XDP, with LVS's methods.
///
/// `lb-ctl up` runs in the foreground and serves a REST API; the other
/// commands speak to it. Exit status: 0 done, 1 error or wrong usage; `plan`
/// ends with 2 if there are differences.
#[derive(Debug, Parser)]
#[command(name = "lb-ctl", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load and attach the packet path, follow the desired state, serve the API
    Up(Box<UpOptions>),
    /// Stop `lb-ctl up` and remove program, maps and VIPs: forwarding ends. The
    /// desired state stays, for the next `up`
    Down(DownOptions),
    /// Show what is going on, what is wrong first
    Status(status::Status),
    /// List why packets were dropped and how many, most first
    Drops(drops::Drops),
    /// Services
    #[command(subcommand)]
    Service(service::Command),
    /// Backends of a service
    #[command(subcommand)]
    Backend(backend::Command),
    /// Make the desired state what a file says
    Apply(whole::Apply),
    /// Show what `apply` would change; exit status 2 if anything
    Plan(whole::Plan),
    /// Print the desired state
    Export(whole::Export),
}

/// Where to find `lb-ctl up`.
#[derive(Clone, Debug, clap::Args)]
struct Connection {
    /// Where `lb-ctl up` listens: unix:PATH or ADDRESS:PORT
    #[arg(
        long,
        env = "LB_LISTEN",
        default_value = options::DEFAULT_LISTEN,
        value_name = "ADDRESS"
    )]
    listen: ListenAddress,
}

impl Connection {
    fn client(&self) -> Client {
        Client::new(self.listen.clone())
    }
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing to be done about a closed pipe.
            let _ = error.print();
            // clap's own 2 for a wrong command line is what `plan` means by
            // "there are differences".
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match execute(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lb-ctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(command))?.print()
}

async fn run(command: Command) -> Result<Output> {
    match command {
        Command::Up(options) => {
            options.log.start();
            daemon::up(*options).await.map(|()| Output::default())
        }
        Command::Down(options) => {
            options.log.start();
            daemon::down(options).await.map(|()| Output::default())
        }
        Command::Status(command) => command.run().await,
        Command::Drops(command) => command.run().await,
        Command::Service(command) => command.run().await,
        Command::Backend(command) => command.run().await,
        Command::Apply(command) => command.run().await,
        Command::Plan(command) => command.run().await,
        Command::Export(command) => command.run().await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
