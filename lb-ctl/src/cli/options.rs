//! Options of `lb-ctl up` and `lb-ctl down`.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lb_common::limits::{DEFAULT_FLOW_TABLE_SIZE, DEFAULT_MAX_BACKENDS, DEFAULT_NAT_TABLE_SIZE};
use tracing_subscriber::EnvFilter;

use crate::api::ListenAddress;

/// Where the API is served if nothing else is said.
pub const DEFAULT_LISTEN: &str = "unix:/run/lb/ctl.sock";

/// Where the desired state is kept if nothing else is said.
pub const DEFAULT_STATE: &str = "/var/lib/lb";

/// Where program, links and maps are pinned if nothing else is said.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/lb";

/// Options of `lb-ctl up`.
#[derive(Clone, Debug, Args)]
pub struct UpOptions {
    /// Interface on which packets for the VIPs arrive; may be repeated
    #[arg(
        long = "interface",
        short = 'i',
        value_name = "NAME",
        required = true,
        value_parser = interface_name
    )]
    pub interfaces: Vec<String>,
    /// Where to serve the API: unix:PATH, or a loopback ADDRESS:PORT (open to
    /// every user of this host); may be repeated
    #[arg(
        long,
        env = "LB_LISTEN",
        default_value = DEFAULT_LISTEN,
        value_name = "ADDRESS"
    )]
    pub listen: Vec<ListenAddress>,
    /// Desired state to start with (.json or .toml), in place of the saved one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory in which the desired state is kept
    #[arg(long, env = "LB_STATE", default_value = DEFAULT_STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// Directory on a bpffs in which program, links and maps are pinned
    #[arg(long, env = "LB_BPFFS", default_value = DEFAULT_BPFFS, value_name = "DIR")]
    pub bpffs: PathBuf,
    /// Who puts the VIPs on this host and makes them known
    #[arg(long, value_enum, default_value = "managed")]
    pub vip_address: VipAddress,
    /// Backends of all services together for which there is room
    #[arg(
        long,
        default_value_t = DEFAULT_MAX_BACKENDS,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_backends: u32,
    /// Flows that can be recorded, for IPv4 and IPv6 each
    #[arg(
        long,
        default_value_t = DEFAULT_FLOW_TABLE_SIZE,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1024..=67_108_864)
    )]
    pub flow_table_size: u32,
    /// NAT flows that can be remembered, for IPv4 and IPv6 each
    #[arg(
        long,
        default_value_t = DEFAULT_NAT_TABLE_SIZE,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1024..=16_777_216)
    )]
    pub nat_table_size: u32,
    /// How to attach the XDP program
    #[arg(long, value_enum, default_value = "auto")]
    pub xdp_mode: XdpChoice,
    /// Log the reason of each packet that is dropped, but not the packet (slow
    /// under attack)
    #[arg(long)]
    pub log_drops: bool,
    /// How to log.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Options of `lb-ctl down`.
#[derive(Clone, Debug, Args)]
pub struct DownOptions {
    /// Directory in which `up` keeps the desired state
    #[arg(long, env = "LB_STATE", default_value = DEFAULT_STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// Directory on a bpffs in which `up` has pinned program, links and maps
    #[arg(long, env = "LB_BPFFS", default_value = DEFAULT_BPFFS, value_name = "DIR")]
    pub bpffs: PathBuf,
    /// How to log.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Who puts the VIPs on the director and makes them known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VipAddress {
    /// lb-ctl puts them on the ingress interface and announces them by ARP and NDP
    Managed,
    /// The operator does, for example by BGP
    Operator,
}

/// How to attach the XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpChoice {
    /// Native; generic with a warning if the driver cannot
    Auto,
    /// Native or not at all
    Native,
    /// Generic: works with every driver, much slower
    Generic,
}

/// How to log. What is logged follows RUST_LOG, `info` if that is not set.
#[derive(Clone, Debug, Args)]
pub struct LogOptions {
    /// Form of the log on standard error
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

impl LogOptions {
    /// Starts to log.
    pub fn start(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false);
        // Somebody else's subscriber, in a test, is as good.
        let _ = match self.log_format {
            LogFormat::Text => log.try_init(),
            LogFormat::Json => log.json().flatten_event(true).try_init(),
        };
    }
}

fn interface_name(text: &str) -> Result<String, String> {
    // What the kernel's dev_valid_name allows.
    let valid = (1..16).contains(&text.len())
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
        && !matches!(text, "." | "..");
    if valid {
        Ok(text.to_owned())
    } else {
        Err("an interface has a name of 1 to 15 characters, see `ip link`".to_owned())
    }
}
