//! The command line.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{ArgAction, Args, Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::apply::{self, Absent};
use crate::check;
use crate::config::Config;
use crate::host::Host;
use crate::interface;
use crate::prefix::Prefix;
use crate::report::Report;
use crate::run;
use crate::state::{self, Store, Want, list};
use crate::tunnel::status::status;
use crate::tunnel::{DEFAULT_BPFFS, Decapsulate, Mode, Mss, Tunnel};
use crate::undo;
use crate::vip::Vip;

/// Holds a VIP on a backend without letting ARP or NDP know, and takes the
/// directors' packets out of their tunnel.
#[derive(Debug, Parser)]
#[command(
    name = "lb-agent",
    version,
    after_help = "Exit status: 0 nothing to do, or done; 2 check found something wrong; 1 error."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
enum Command {
    /// Hold exactly these VIPs: set the ARP sysctls, then put them on lo. Those
    /// applied before and not named now are given up. What was there is remembered
    Apply,
    /// Name each wrong thing and the command that mends it
    Check,
    /// Apply, then watch and put back what drifts, until SIGTERM
    Run,
    /// Restore exactly what the first apply found, all VIPs and settings; to give
    /// up one VIP of several, apply the others
    Undo,
}

#[derive(Debug, Args)]
struct Options {
    /// VIP to hold, IPv4 or IPv6; repeat it or separate with commas
    #[arg(long = "vip", global = true, value_name = "IP", value_delimiter = ',')]
    vips: Vec<Vip>,
    /// Interface that faces the segment, or the directors [default: the one by
    /// which the VIP, or the directors, would be reached]
    #[arg(
        long = "interface",
        global = true,
        value_name = "NAME",
        value_delimiter = ','
    )]
    interfaces: Vec<String>,
    /// How packets come here [default: dr]
    #[arg(long, global = true, value_enum)]
    mode: Option<Mode>,
    /// In TUN mode: address or prefix to accept encapsulated packets from;
    /// repeat it or separate with commas
    #[arg(
        long = "director",
        global = true,
        value_name = "PREFIX",
        value_delimiter = ','
    )]
    directors: Vec<Prefix>,
    /// In TUN mode: who takes packets out of their tunnel [default: auto]
    #[arg(long, global = true, value_enum)]
    decapsulate: Option<Decapsulate>,
    /// In TUN mode: the largest MSS that SYN-ACKs from a VIP offer: auto, off,
    /// or bytes [default: auto]
    #[arg(long, global = true, value_name = "MSS")]
    mss: Option<Mss>,
    /// In TUN mode: where programs are pinned [default: /sys/fs/bpf/lb-agent]
    #[arg(long, global = true, value_name = "DIR")]
    bpffs: Option<PathBuf>,
    /// Configuration in TOML; the other options override it
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to remember what apply found [default: /var/lib/lb-agent]
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Say what would be changed, change nothing
    #[arg(long, global = true)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
    /// Log more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

/// Parses the command line, does what it says, prints what came of it.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Nothing to be done about a closed pipe.
            let _ = e.print();
            // clap's own 2 for a wrong command line is what `check` means by
            // "something is wrong".
            return ExitCode::from(u8::from(e.use_stderr()));
        }
    };
    log_to_stderr(&cli);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(&cli)),
        Err(e) => Err(e.into()),
    };
    let report = result.unwrap_or_else(|e| Some(failure(&cli, &e)));
    match report {
        Some(report) => {
            print(&cli, &report);
            ExitCode::from(report.exit_code())
        }
        None => ExitCode::SUCCESS,
    }
}

async fn dispatch(cli: &Cli) -> anyhow::Result<Option<Report>> {
    let options = &cli.options;
    let config = match &options.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    let mode = options.mode.or(config.mode);
    let (store, want) = merge(options, config)?;
    match cli.command {
        Command::Apply => {
            let host = Host::connect()?;
            let report = apply::apply(&host, &store, &want, options.dry_run, Absent::Refuse);
            Ok(Some(report.await?))
        }
        Command::Undo => {
            refuse_part(&store, &options.vips)?;
            let host = Host::connect()?;
            Ok(Some(undo::undo(&host, &store, options.dry_run).await?))
        }
        Command::Check => Ok(Some(checked(&store, want, mode, options).await?)),
        Command::Run if options.dry_run => {
            bail!("`run` has no dry run; see what it would do first: lb-agent apply --dry-run")
        }
        Command::Run => run::run(&store, &want, |report| print(cli, report)).await,
    }
}

/// `undo` is for all VIPs: naming only some of them means something else.
fn refuse_part(store: &Store, named: &[Vip]) -> anyhow::Result<()> {
    let held = store.load()?.map(|state| state.want.vips);
    let held = held.unwrap_or_default();
    let others: Vec<Vip> = held
        .iter()
        .copied()
        .filter(|v| !named.contains(v))
        .collect();
    if !named.is_empty() && !others.is_empty() {
        bail!(
            "undo gives back all that apply changed, also {0}: leave --vip out if that is meant; \
             to give up the VIPs named, apply the others: lb-agent apply --vip {0}",
            list(&others)
        );
    }
    Ok(())
}

/// Flags override the file, each list as a whole.
fn merge(options: &Options, config: Config) -> anyhow::Result<(Store, Want)> {
    fn choose<T: Clone + PartialEq>(flags: &[T], file: Vec<T>) -> Vec<T> {
        let given = if flags.is_empty() {
            file
        } else {
            flags.to_vec()
        };
        let mut unique: Vec<T> = Vec::new();
        for item in given {
            if !unique.contains(&item) {
                unique.push(item);
            }
        }
        unique
    }
    let dir = options.state.clone().or(config.state);
    let mode = options.mode.or(config.mode);
    let directors = choose(&options.directors, config.directors);
    let tunnel = match (mode, directors.is_empty()) {
        (Some(Mode::Tun), false) => {
            let bpffs = options.bpffs.clone().or(config.bpffs);
            Some(Tunnel {
                directors,
                decapsulate: options
                    .decapsulate
                    .or(config.decapsulate)
                    .unwrap_or_default(),
                mss: options.mss.or(config.mss).unwrap_or_default(),
                bpffs: bpffs.unwrap_or_else(|| DEFAULT_BPFFS.into()),
            })
        }
        (Some(Mode::Tun), true) => bail!(
            "TUN mode must know the directors, to let in nobody else; name them: --director \
             192.0.2.2, or a prefix, or in a file: directors = [\"192.0.2.0/24\"]"
        ),
        (_, false) => bail!("directors are for TUN mode; if that is what you want: --mode tun"),
        (_, true) => None,
    };
    let want = Want {
        vips: choose(&options.vips, config.vips),
        interfaces: choose(&options.interfaces, config.interfaces),
        tunnel,
    };
    let dir = dir.unwrap_or_else(|| state::DEFAULT_DIR.into());
    Ok((Store::new(dir), want))
}

async fn checked(
    store: &Store,
    mut want: Want,
    mode: Option<Mode>,
    options: &Options,
) -> anyhow::Result<Report> {
    let state = store.load()?;
    if let Some(state) = &state {
        if want.vips.is_empty() {
            want.vips = state.want.vips.clone();
        }
        if want.interfaces.is_empty() {
            want.interfaces = state.want.interfaces.clone();
        }
        match (&mut want.tunnel, &state.want.tunnel) {
            (None, applied) if mode.is_none() => want.tunnel.clone_from(applied),
            (Some(tunnel), Some(applied)) if tunnel.decapsulate == Decapsulate::Auto => {
                tunnel.decapsulate = applied.decapsulate;
            }
            _ => {}
        }
    }
    if want.vips.is_empty() {
        bail!(
            "no VIP to check: nothing was applied and none is named; name it: --vip 203.0.113.10, \
             or in a file: --config FILE"
        );
    }
    // Before defaults are filled in.
    let asked = arguments(&want, options);
    let applied = state.as_ref().and_then(|state| state.want.tunnel.as_ref());
    let tunnel = want.tunnel.as_ref().or(applied);
    let facts = Host::connect()?.facts(tunnel).await?;
    let mut notes = Vec::new();
    if state.is_none() {
        notes.push("nothing was applied by lb-agent, so undo has nothing to restore".to_owned());
    }
    // Every interface is checked anyway; which one faces the segment does not
    // matter, so not being able to tell is no error here.
    if want.interfaces.is_empty() {
        want.interfaces = interface::for_want(&facts, &want).unwrap_or_default();
    }
    notes.extend(apply::decide(&facts, &mut want));
    let status = status(&facts, &want, &mut notes);
    let mut findings = check::check(&facts, state.as_ref(), &want);
    for finding in &mut findings {
        // One that says all that the host shall hold is complete.
        if finding.fix.starts_with("lb-agent apply") && !finding.fix.contains(" --vip ") {
            finding.fix += &asked;
        }
    }
    Ok(Report {
        command: "check",
        findings,
        want,
        status,
        notes,
        ..Report::default()
    })
}

/// What to tell `lb-agent apply` so that the host holds all this.
fn arguments(want: &Want, options: &Options) -> String {
    let mut text = String::new();
    if let Some(config) = &options.config {
        text += &format!(" --config {}", config.display());
    }
    if options.config.is_none() || !options.vips.is_empty() {
        text += &format!(" --vip {}", list(&want.vips));
    }
    if let (None, Some(tunnel)) = (&options.config, &want.tunnel) {
        text += &format!(" --mode tun --director {}", list(&tunnel.directors));
    }
    if let Some(state) = &options.state {
        text += &format!(" --state {}", state.display());
    }
    text
}

fn failure(cli: &Cli, error: &anyhow::Error) -> Report {
    Report {
        command: match cli.command {
            Command::Apply => "apply",
            Command::Check => "check",
            Command::Run => "run",
            Command::Undo => "undo",
        },
        dry_run: cli.options.dry_run,
        error: Some(format!("{error:#}")),
        ..Report::default()
    }
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the command line"
)]
fn print(cli: &Cli, report: &Report) {
    if cli.options.json {
        println!("{}", report.to_json());
    } else if report.error.is_none() || report.changed {
        println!("{}", report.to_text());
    }
    if let Some(error) = &report.error {
        eprintln!("lb-agent: {error}");
        if error.contains("os error 1)") || error.contains("os error 13)") {
            eprintln!("lb-agent: changing sysctls, addresses and programs takes root: try sudo");
        }
    }
}

fn log_to_stderr(cli: &Cli) {
    let level = match cli.options.verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if cli.options.json {
        builder.json().init();
    } else {
        builder.init();
    }
}
