//! How many instructions a packet takes.

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::baseline::{ADVICE, Baseline, Counts};
use super::machine::{self, KERNEL};

/// What was counted.
#[derive(Deserialize, Serialize)]
pub struct Counted {
    unit: String,
    /// Instructions per packet of test_run, generator and an empty program:
    /// subtracted everywhere.
    harness: u64,
    /// Net instructions of a bounds check and a swap of the MAC addresses.
    mac_swap: u64,
    cases: Counts,
}

/// Counts in a machine.
pub fn run() -> anyhow::Result<Counted> {
    eprintln!("counting instructions on kernel {KERNEL}");
    machine::run("--instructions", |vm| vm)
}

/// Compares with what is committed, or commits to it.
///
/// # Errors
/// When a packet takes more instructions than it may.
pub fn judge(counted: &Counted, raise: bool) -> anyhow::Result<()> {
    if raise {
        return Baseline::write(&counted.cases);
    }
    let problems = Baseline::read()?.compare(&counted.cases);
    if !problems.is_empty() {
        bail!("{}\n{ADVICE}", problems.join("\n"));
    }
    Ok(())
}

impl Counted {
    /// Prints a table.
    pub fn print(&self) {
        let baseline = Baseline::read().ok();
        println!("{:<50} {:>12} {:>12}", "case", "instructions", "committed");
        for (case, count) in &self.cases {
            let committed = baseline.as_ref().and_then(|b| b.of(case));
            let committed = committed.map_or_else(|| "none".to_owned(), |n| n.to_string());
            println!("{case:<50} {count:>12} {committed:>12}");
        }
        println!(
            "net of the harness (test_run, generator, tail call and an empty program: {} \
             instructions) and exact to one instruction; kernel {KERNEL}; a bounds check and \
             MAC swap: {}",
            self.harness, self.mac_swap
        );
    }
}
