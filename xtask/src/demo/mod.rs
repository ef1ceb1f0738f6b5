//! `cargo xtask demo`: a director balances real traffic, and one watches.

mod bars;
mod scenario;
mod tally;
mod traffic;

use std::time::Instant;

use anyhow::{bail, ensure};
use integration::Lab;
use integration::topology::{Family, Mode, Nat, Site};

use crate::console::Console;
use crate::{interrupt, lab, prepare};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    mode: ModeArgs,
    /// Print only the JSON on standard output
    #[arg(long)]
    json: bool,
    /// Leave the lab up and print how to look around in it
    #[arg(long)]
    keep: bool,
    /// Let the client speak IPv6
    #[arg(long)]
    ipv6: bool,
}

/// A mode as it is asked for on the command line.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ModeArgs {
    /// How packets reach the backends
    #[arg(long, value_enum, default_value_t = Choice::Dr)]
    mode: Choice,
    /// In NAT mode, translate the source too: the backends need no route to
    /// the clients
    #[arg(long)]
    full_nat: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum, PartialEq, Eq)]
enum Choice {
    /// All on one Ethernet segment
    Dr,
    /// Client, director and backends with a router between them
    Tun,
    /// The director between client and backends, which have no agent
    Nat,
}

impl ModeArgs {
    /// The mode.
    ///
    /// # Errors
    /// When there is no such variant of it.
    pub fn mode(self) -> anyhow::Result<Mode> {
        match (self.mode, self.full_nat) {
            (Choice::Dr, false) => Ok(Mode::Dr),
            (Choice::Tun, false) => Ok(Mode::Tun),
            (Choice::Nat, false) => Ok(Mode::Nat(Nat::GATEWAY)),
            (Choice::Nat, true) => Ok(Mode::Nat(Nat::FULL)),
            (_, true) => bail!("--full-nat is a variant of --mode nat"),
        }
    }
}

/// Backends of the lab; the service begins with all but the last.
const BACKENDS: u8 = 4;

/// Runs the demo: prepares, makes the lab, plays the scenario, removes the
/// lab and prints the result.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mode = args.mode.mode()?;
    let console = Console::new(args.json);
    console.step("installing what is missing, building");
    prepare::run("a demo in network namespaces")?;

    let family = if args.ipv6 { Family::V6 } else { Family::V4 };
    interrupt::block()?;
    let start = Instant::now();
    console.step(match mode {
        Mode::Dr => "making the lab: a client, a director and four web servers on one segment",
        Mode::Tun => "making the lab: a client, a director and four web servers around a router",
        Mode::Nat(_) => {
            "making the lab: a client, a router, a director, and four web servers behind it"
        }
    });
    let lab = if args.keep {
        lab::make()?
    } else {
        Lab::new("demo")?
    };
    interrupt::remove_lab_on_interrupt(lab.id());
    let mut site = Site::build(lab, mode, BACKENDS)?;
    let played = scenario::play(&console, &mut site, family);
    let result = match played {
        Ok(result) => result,
        Err(e) => bail!("{e:#}\n{}", scenario::director_log(&site)),
    };
    if args.keep {
        let text = lab::how_to_look_around(&site, &[family]);
        site.persist()?;
        console.line(&text);
    } else {
        console.step("removing the lab");
        drop(site);
    }
    console.line(&format!("took {:.1} s", start.elapsed().as_secs_f64()));
    println!("{}", result.json()?);
    ensure!(result.failed == 0, "{} requests failed", result.failed);
    ensure!(
        result.vip_mac_owner == "director",
        "{} was taken for the owner of the VIP",
        result.vip_mac_owner
    );
    let served = result.backends.iter().filter(|(_, n)| *n > 0).count();
    ensure!(served >= 3, "only {served} backends served requests");
    Ok(())
}
