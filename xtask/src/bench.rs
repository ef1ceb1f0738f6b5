//! `cargo xtask bench`: what a packet costs.

mod baseline;
mod control_plane;
mod instructions;
mod ipvs;
mod machine;
mod target;
mod time;

use serde_json::{Map, Value};

use crate::root::become_root;
use crate::{build_ebpf, root, setup};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON in place of tables
    #[arg(long)]
    json: bool,
    /// Shorter rounds and no 100,000 backends: a first impression
    #[arg(long)]
    quick: bool,
    /// Of the time of a packet only cases with this in their name
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    #[command(flatten)]
    parts: Parts,
    /// Write the instructions to xtask/instructions-baseline.json in place of
    /// comparing them with it
    #[arg(long)]
    raise: bool,
}

/// Parts of the benchmark; all if none is named.
#[derive(clap::Args, Clone, Copy)]
struct Parts {
    /// Only the time of a packet in the packet path, on this machine
    #[arg(long)]
    time: bool,
    /// Only the instructions of a packet in the packet path, in a virtual
    /// machine that counts them: the same for everybody
    #[arg(long)]
    instructions: bool,
    /// Only how long the control plane takes, and the memory of its maps
    #[arg(long)]
    control_plane: bool,
    /// Only the instructions of a packet on its way through a director, against
    /// IPVS, in such a machine
    #[arg(long)]
    ipvs: bool,
}

impl Parts {
    fn or_all(self) -> Self {
        if self.time || self.instructions || self.control_plane || self.ipvs {
            return self;
        }
        Self {
            time: true,
            instructions: true,
            control_plane: true,
            ipvs: true,
        }
    }
}

/// Builds and runs the benchmark.
///
/// # Errors
/// When a packet did not do what it should, takes more instructions than it
/// may, or something does not build.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let parts = args.parts.or_all();
    if !root::is_prepared() {
        setup::run()?;
        build_ebpf::run()?;
        if parts.instructions || parts.ipvs {
            setup::virtual_machines()?;
            machine::build()?;
        }
    }
    become_root("loading BPF programs")?;
    let mut results = Map::new();
    let measured = measure(args, &parts, &mut results);
    // Also what was measured before something failed: it took its time.
    if args.json {
        println!("{}", Value::Object(results));
    }
    measured
}

fn measure(args: &Args, parts: &Parts, results: &mut Map<String, Value>) -> anyhow::Result<()> {
    if parts.time {
        results.extend(time::run(args)?.map(|result| ("time".to_owned(), result)));
    }
    let mut risen = Ok(());
    if parts.instructions {
        let counted = instructions::run(args.raise)?;
        risen = instructions::judge(&counted, args.raise);
        if args.json {
            results.insert("instructions".to_owned(), serde_json::to_value(counted)?);
        } else {
            counted.print();
        }
    }
    if parts.control_plane {
        let measured = control_plane::run(args.quick)?;
        if args.json {
            results.insert("control_plane".to_owned(), serde_json::to_value(measured)?);
        } else {
            measured.print();
        }
    }
    if parts.ipvs {
        let counted = ipvs::run()?;
        if args.json {
            results.insert("ipvs".to_owned(), serde_json::to_value(counted)?);
        } else {
            counted.print();
        }
    }
    risen
}
