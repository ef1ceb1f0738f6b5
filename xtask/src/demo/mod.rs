//! `cargo xtask demo`: a director balances real traffic, and one watches.

mod bars;
mod scenario;
mod tally;
mod traffic;

use std::time::Instant;

use anyhow::{bail, ensure};
use integration::Lab;
use integration::topology::{DrLab, Family};

use crate::console::Console;
use crate::{interrupt, lab, prepare};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// How packets reach the backends
    #[arg(long, value_enum, default_value_t = Mode::Dr)]
    mode: Mode,
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

#[derive(Clone, Copy, clap::ValueEnum, PartialEq, Eq)]
enum Mode {
    Dr,
    Tun,
    Nat,
}

/// Backends of the lab; the service begins with all but the last.
const BACKENDS: u8 = 4;

/// Runs the demo: prepares, makes the lab, plays the scenario, removes the
/// lab and prints the result.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.mode != Mode::Dr {
        bail!("only --mode dr is built yet: tun and nat are not");
    }
    let console = Console::new(args.json);
    console.step("installing what is missing, building");
    prepare::run("a demo in network namespaces")?;

    let family = if args.ipv6 { Family::V6 } else { Family::V4 };
    interrupt::block()?;
    let start = Instant::now();
    console.step("making the lab: a client, a director and four web servers on one segment");
    let lab = if args.keep {
        lab::make()?
    } else {
        Lab::new("demo")?
    };
    interrupt::remove_lab_on_interrupt(lab.id());
    let mut dr = DrLab::build(lab, BACKENDS)?;
    let played = scenario::play(&console, &mut dr, family);
    let result = match played {
        Ok(result) => result,
        Err(e) => bail!("{e:#}\n{}", scenario::director_log(&dr)),
    };
    if args.keep {
        let text = lab::how_to_look_around(&dr, &[family]);
        dr.persist()?;
        console.line(&text);
    } else {
        console.step("removing the lab");
        drop(dr);
    }
    console.line(&format!("took {:.1} s", start.elapsed().as_secs_f64()));
    println!("{}", result.json()?);
    ensure!(result.failed == 0, "{} requests failed", result.failed);
    ensure!(
        result.vip_mac_owner == "director",
        "the client took {} for the owner of the VIP",
        result.vip_mac_owner
    );
    let served = result.backends.iter().filter(|(_, n)| *n > 0).count();
    ensure!(served >= 3, "only {served} backends served requests");
    Ok(())
}
