//! How many instructions a packet takes.

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};

use super::baseline::{ADVICE, Baseline, Counts};
use super::machine::{self, KERNEL};

/// What was counted.
#[derive(Deserialize, Serialize)]
pub struct Counted {
    unit: String,
    /// Least and most instructions per packet of test_run, generator and an
    /// empty program, over the cases: subtracted from each case.
    harness: [u64; 2],
    /// Net instructions of a bounds check and a swap of the MAC addresses.
    mac_swap: u64,
    cases: Counts,
}

/// Counts in a machine; before counts are committed to, also in another one.
///
/// # Errors
/// When a packet did not do what it should, or the two differ.
pub fn run(raise: bool) -> anyhow::Result<Counted> {
    eprintln!("counting instructions on kernel {KERNEL}");
    let count = || machine::run("--instructions", |vm| vm.program("ip").module("veth"));
    let counted: Counted = count()?;
    if raise {
        eprintln!("counting them again");
        let again: Counted = count()?;
        ensure!(
            again.cases == counted.cases,
            "two machines counted {:?} and {:?}",
            counted.cases,
            again.cases
        );
    }
    Ok(counted)
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
            "net of the harness (test_run, generator, tail call and an empty program: {} to {} \
             instructions) and exact to one instruction; kernel {KERNEL}; a bounds check and \
             MAC swap: {}",
            self.harness[0], self.harness[1], self.mac_swap
        );
    }
}
