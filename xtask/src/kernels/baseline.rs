//! How many instructions the verifier has to look at, as committed.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use integration::vm::Kernel;

use crate::workspace::root;

/// Instructions verified, by program.
pub type Figures = BTreeMap<String, u32>;

/// Rise in percent that is let pass: kernels of one series differ a little.
const TOLERANCE: u64 = 10;

/// What to do about a problem.
pub const ADVICE: &str = "make the programs easier to verify, or if it must be so, run \
     `cargo xtask kernels --short --raise` and commit xtask/verifier-baseline.json";

/// The committed figures, by series of kernel.
pub struct Baseline(BTreeMap<String, Figures>);

impl Baseline {
    /// Reads the file.
    pub fn read() -> anyhow::Result<Self> {
        let path = path();
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let figures = serde_json::from_str(&text);
        Ok(Self(figures.with_context(|| path.display().to_string())?))
    }

    /// Writes the file.
    pub fn write(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.0)?;
        Ok(fs::write(path(), text + "\n")?)
    }

    /// Replaces the figures of a kernel.
    pub fn set(&mut self, kernel: Kernel, figures: Figures) {
        self.0.insert(kernel.series().to_owned(), figures);
    }

    /// What has become much harder to verify, or is not known yet.
    pub fn compare(&self, kernel: Kernel, figures: &Figures) -> Vec<String> {
        let empty = Figures::new();
        let known = self.0.get(kernel.series()).unwrap_or(&empty);
        let mut problems = Vec::new();
        for (program, &now) in figures {
            let problem = match known.get(program) {
                None => "there is no committed figure for it".to_owned(),
                Some(&before) if u64::from(now) * 100 > u64::from(before) * (100 + TOLERANCE) => {
                    format!("more than {TOLERANCE}% above the committed {before}")
                }
                Some(_) => continue,
            };
            problems.push(format!(
                "{program} on {kernel}: {now} instructions to verify, {problem}"
            ));
        }
        problems
    }
}

fn path() -> PathBuf {
    root().join("xtask/verifier-baseline.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rise_beyond_the_tolerance_is_a_problem() {
        let figures = |n| Figures::from([("director".to_owned(), n)]);
        let mut baseline = Baseline(BTreeMap::new());
        baseline.set(Kernel::V6_1, figures(1000));
        let problems = |n| baseline.compare(Kernel::V6_1, &figures(n)).len();
        assert_eq!([0, 500, 1000, 1100].map(problems), [0; 4]);
        assert_eq!(problems(1101), 1);
        let unknown = baseline.compare(Kernel::V6_12, &figures(1));
        assert!(unknown[0].contains("no committed figure"), "{unknown:?}");
    }
}
