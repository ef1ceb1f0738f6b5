//! Tests that are not run on a kernel, as the README says for all to read.

use std::fs;

use anyhow::{Context, ensure};
use integration::vm::Kernel;

use crate::workspace::root;

/// Heading of the table in README.md, whose columns are kernels, suite, test
/// and reason.
const HEADING: &str = "Not run in virtual machines";

/// A test that is not run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    kernels: Vec<String>,
    suite: String,
    test: String,
}

/// What the README excepts. Nothing else is left out.
pub struct Exceptions(Vec<Exception>);

impl Exceptions {
    /// Reads the README, which need not have such a table.
    ///
    /// # Errors
    /// When a row is not understood, or gives no reason.
    pub fn read() -> anyhow::Result<Self> {
        let path = root().join("README.md");
        let text = if path.exists() {
            fs::read_to_string(&path)?
        } else {
            String::new()
        };
        parse(&text).with_context(|| path.display().to_string())
    }

    /// Names of the tests of a suite that are not run on a kernel.
    pub fn of(&self, kernel: Kernel, suite: &str) -> Vec<&str> {
        let is_meant = |exception: &&Exception| {
            let mut kernels = exception.kernels.iter();
            exception.suite == suite && kernels.any(|series| series == kernel.series())
        };
        let meant = self.0.iter().filter(is_meant);
        meant.map(|exception| exception.test.as_str()).collect()
    }
}

fn parse(text: &str) -> anyhow::Result<Exceptions> {
    let after_heading = text
        .lines()
        .skip_while(|line| !(line.starts_with('#') && line.contains(HEADING)))
        .skip(1);
    let rows = after_heading
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with('|'))
        // The names of the columns, and the line below them.
        .skip(2);
    let mut exceptions = Vec::new();
    for row in rows {
        let cells: Vec<String> = row
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().replace('`', ""))
            .collect();
        let is_whole = cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty());
        ensure!(
            is_whole,
            "kernels, suite, test and reason are needed: {row}"
        );
        exceptions.push(Exception {
            kernels: cells[0].split(',').map(|k| k.trim().to_owned()).collect(),
            suite: cells[1].clone(),
            test: cells[2].clone(),
        });
    }
    Ok(Exceptions(exceptions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readmes_table_is_understood() {
        let text = "# Project\n| a | b |\n### Not run in virtual machines\n\nSome words.\n\n\
                    | Kernels | Suite | Test | Why |\n|---|---|---|---|\n\
                    | 6.1, 6.12 | `dr_udp` | `much_traffic` | too slow |\n\
                    | 6.1 | `agent` | `new_thing` | not there |\n# More\n| x | y |\n";
        let exceptions = parse(text).unwrap();
        assert_eq!(exceptions.of(Kernel::V6_12, "dr_udp"), ["much_traffic"]);
        assert_eq!(exceptions.of(Kernel::V6_1, "agent"), ["new_thing"]);
        assert!(exceptions.of(Kernel::V6_12, "agent").is_empty());
        assert!(parse("").unwrap().0.is_empty());
        let unreasoned = text.replace("too slow", "");
        assert!(parse(&unreasoned).is_err());
    }
}
