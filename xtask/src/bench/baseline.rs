//! How many instructions a packet may take, as committed.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use crate::workspace::root;

/// Net instructions per packet, by case.
pub type Counts = BTreeMap<String, u64>;

/// Rise in percent that is let pass. Counts are exact; this is for compilers
/// and kernels that differ a little.
const TOLERANCE: u64 = 3;

/// What to do about a problem.
pub const ADVICE: &str = "make the packet path faster, or if it must be so, run \
     `cargo xtask bench --instructions --raise` and commit xtask/instructions-baseline.json";

/// The committed counts.
pub struct Baseline(Counts);

impl Baseline {
    /// Reads the file.
    pub fn read() -> anyhow::Result<Self> {
        let path = path();
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let counts = serde_json::from_str(&text);
        Ok(Self(counts.with_context(|| path.display().to_string())?))
    }

    /// Writes these counts to the file.
    pub fn write(counts: &Counts) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(counts)?;
        Ok(fs::write(path(), text + "\n")?)
    }

    /// The committed count of a case.
    pub fn of(&self, case: &str) -> Option<u64> {
        self.0.get(case).copied()
    }

    /// What takes more instructions than it may, or is not the same cases.
    pub fn compare(&self, counts: &Counts) -> Vec<String> {
        let mut problems = Vec::new();
        for (case, &now) in counts {
            match self.of(case) {
                None => problems.push(format!("{case}: there is no committed count")),
                Some(before) if now * 100 > before * (100 + TOLERANCE) => problems.push(format!(
                    "{case}: {now} instructions, more than {TOLERANCE}% above the committed {before}"
                )),
                Some(_) => {}
            }
        }
        let gone = self.0.keys().filter(|case| !counts.contains_key(*case));
        problems.extend(gone.map(|case| format!("{case}: committed, but not counted any more")));
        problems
    }
}

fn path() -> PathBuf {
    root().join("xtask/instructions-baseline.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rise_beyond_the_tolerance_is_a_problem() {
        let counts = |n| Counts::from([("DR".to_owned(), n)]);
        let baseline = Baseline(counts(200));
        let problems = |n| baseline.compare(&counts(n)).len();
        assert_eq!([0, 100, 200, 206].map(problems), [0; 4]);
        assert_eq!(problems(207), 1);
        let other = Counts::from([("TUN".to_owned(), 1)]);
        assert_eq!(baseline.compare(&other).len(), 2);
    }
}
