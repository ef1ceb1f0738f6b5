//! Building the suites, running them, and reading what they print.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use integration::vm::{Kernel, Vm};
use serde_json::Value;

use super::exceptions::Exceptions;
use super::place::Place;
use crate::workspace::{cargo, root};

/// The suite that prints how much the verifier had to look at.
pub const VERIFIER: &str = "verifier";

/// Suites that start virtual machines themselves.
const OF_MACHINES: &str = "vm_";

/// Suites that find the kernel's tunnel devices, where it has them.
const OF_TUNNELS: &str = "tun_";

/// The modules of those devices.
const TUNNEL_MODULES: [&str; 3] = ["ipip", "sit", "ip6_tunnel"];

/// Longest time of one suite in a machine: emulated, all is many times slower.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Tests at a time in a machine, which has one processor.
const THREADS_IN_MACHINE: &str = "1";

/// A suite of the integration tests.
pub struct Suite {
    /// Name of its target.
    pub name: String,
    executable: PathBuf,
    /// Part of the names of the tests that are to run.
    filter: String,
}

/// What a suite did on one kernel.
pub struct Outcome {
    /// Name of the suite.
    pub suite: String,
    /// How it ended, for people.
    pub end: String,
    /// Number of tests that passed.
    pub passed: u32,
    /// Number of tests that failed.
    pub failed: u32,
    /// Number of tests that were left out.
    filtered: u32,
    /// How long it took, the machine's start included.
    pub time: Duration,
    /// Instructions verified, by program.
    pub verified: BTreeMap<String, u32>,
    /// All that it printed.
    text: String,
}

/// Builds the suites of these names, each with a filter of its tests; all that
/// start no machine themselves if none is named.
///
/// # Errors
/// When one does not build, or there is none of such a name.
pub fn build(named: &[(&str, &str)]) -> anyhow::Result<Vec<Suite>> {
    let names: Vec<&str> = if named.is_empty() {
        vec!["*"]
    } else {
        named.iter().map(|&(name, _)| name).collect()
    };
    let built = build_targets("test", &names)?;
    if named.is_empty() {
        return Ok(built
            .into_iter()
            .filter(|(name, _)| !name.starts_with(OF_MACHINES))
            .map(|(name, executable)| Suite {
                name,
                executable,
                filter: String::new(),
            })
            .collect());
    }
    named
        .iter()
        .map(|&(name, filter)| {
            let Some(executable) = built.get(name) else {
                let names: Vec<&str> = built.keys().map(String::as_str).collect();
                bail!("there is no suite {name}; there are: {}", names.join(", "));
            };
            Ok(Suite {
                name: name.to_owned(),
                executable: executable.clone(),
                filter: filter.to_owned(),
            })
        })
        .collect()
}

/// Builds a benchmark of the integration tests as they themselves are built.
///
/// # Errors
/// When it does not build.
pub fn build_bench(name: &str) -> anyhow::Result<PathBuf> {
    let mut built = build_targets("bench", &[name])?;
    let executable = built.remove(name);
    executable.with_context(|| format!("there is no benchmark {name}"))
}

/// Builds targets of this kind, `test` or `bench`; returns those of the
/// integration tests.
fn build_targets(kind: &str, names: &[&str]) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    // The whole workspace, so that features are the same as in `cargo test
    // --workspace` and nothing is built twice.
    let mut build = cargo();
    build.args(["test", "--workspace", "--no-run", "--quiet"]);
    build.arg("--message-format=json-render-diagnostics");
    for name in names {
        build.args([&format!("--{kind}"), *name]);
    }
    let output = build
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("they do not build: {}", names.join(", "));
    }
    executables(kind, &String::from_utf8_lossy(&output.stdout))
}

/// The integration tests' targets of a kind in cargo's messages, by name.
fn executables(kind: &str, messages: &str) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line)
            .with_context(|| format!("cargo says something odd: {line}"))?;
        let target = &message["target"];
        let is_ours =
            message["manifest_path"] == *root().join("tests/Cargo.toml").to_string_lossy();
        let is_suite = is_ours && target["kind"][0] == kind;
        if is_suite
            && let Some(name) = target["name"].as_str()
            && let Some(executable) = message["executable"].as_str()
        {
            found.insert(name.to_owned(), PathBuf::from(executable));
        }
    }
    Ok(found)
}

impl Suite {
    /// Runs the suite.
    ///
    /// # Errors
    /// When it cannot be started. A failure of its tests or of the machine is
    /// an outcome.
    pub fn run(&self, place: Place, exceptions: &Exceptions) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let (skipped, (text, problem)) = match place {
            Place::Here => (0, self.run_here()?),
            Place::Machine(kernel) => {
                let skipped = exceptions.of(kernel, &self.name);
                (skipped.len(), self.run_in_machine(kernel, &skipped))
            }
        };
        let mut outcome = Outcome::new(&self.name, start.elapsed(), text, problem);
        outcome.except(skipped);
        Ok(outcome)
    }

    fn run_here(&self) -> anyhow::Result<(String, Option<String>)> {
        let mut command = Command::new(&self.executable);
        command.args(["--show-output", &self.filter]);
        let output = command
            .current_dir(root().join("tests"))
            .output()
            .with_context(|| format!("cannot start {}", self.executable.display()))?;
        let text = [output.stdout, output.stderr].concat();
        let problem = (!output.status.success()).then(|| output.status.to_string());
        Ok((String::from_utf8_lossy(&text).into_owned(), problem))
    }

    fn run_in_machine(&self, kernel: Kernel, skipped: &[&str]) -> (String, Option<String>) {
        let mut vm = Vm::builder(kernel)
            .lab()
            .binary(&self.executable, "/lb/suite")
            .env("RUST_TEST_THREADS", THREADS_IN_MACHINE)
            .env("LB_VM_KERNEL", kernel.series())
            .env("LB_EBPF_DIR", "/lb/ebpf");
        // Elsewhere they would add their fallback devices to every host.
        if self.name.starts_with(OF_TUNNELS) {
            for module in TUNNEL_MODULES {
                vm = vm.module(module);
            }
        }
        let objects = root().join("target/ebpf");
        for entry in fs::read_dir(&objects).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "o") {
                vm = vm.file(&path, format!("/lb/ebpf/{}", entry.file_name().display()));
            }
        }
        let mut command = "/lb/suite --show-output".to_owned();
        if self.filter.is_empty() {
            // Not also those whose names contain the name of one that is
            // skipped.
            command.push_str(" --exact");
        } else {
            command.push_str(&format!(" '{}'", self.filter));
        }
        for test in skipped {
            eprintln!("    not run, as the README says: {test}");
            command.push_str(&format!(" --skip '{test}'"));
        }
        match vm.run(&command, TIMEOUT) {
            Ok(output) => {
                let problem = (output.status != 0).then(|| format!("status {}", output.status));
                (output.output, problem)
            }
            Err(e) => (format!("{e:#}\n"), Some("the machine failed".to_owned())),
        }
    }
}

impl Outcome {
    fn new(suite: &str, time: Duration, text: String, problem: Option<String>) -> Self {
        let Counts {
            passed,
            failed,
            filtered,
        } = counts(&text).unwrap_or_default();
        let end = match problem {
            Some(problem) => format!("FAILED ({problem}; {failed} tests failed)"),
            None if passed == 0 => NOTHING_RAN.to_owned(),
            None => "ok".to_owned(),
        };
        Self {
            suite: suite.to_owned(),
            end,
            passed,
            failed,
            filtered,
            time,
            verified: verified(&text),
            text,
        }
    }

    /// Says that so many of the tests were not to run. That none did is no
    /// failure if these are all there are.
    fn except(&mut self, skipped: usize) {
        let are_all = skipped > 0 && self.filtered as usize == skipped;
        if self.end == NOTHING_RAN && are_all {
            self.end = ALL_EXCEPTED.to_owned();
        }
    }

    /// Whether the tests that were to run did, and all of them passed.
    pub fn is_good(&self) -> bool {
        self.end == "ok" || self.end == ALL_EXCEPTED
    }

    /// Tells the user how it ended, and everything about a failure.
    pub fn report(&self, place: Place) {
        if !self.is_good() {
            eprintln!("{}", self.text);
        }
        eprintln!(
            "    {} on {place}: {} passed in {} s: {}",
            self.suite,
            self.passed,
            self.time.as_secs(),
            self.end
        );
    }
}

/// How a suite ended of which no test ran.
const NOTHING_RAN: &str = "FAILED (no test ran)";

/// How one ended of which none was to run.
const ALL_EXCEPTED: &str = "not run, as the README says";

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    /// Left out.
    filtered: u32,
}

/// From the test runner's last line.
fn counts(text: &str) -> Option<Counts> {
    let (_, result) = text.rsplit_once("test result: ")?;
    let number = |what: &str| -> Option<u32> {
        let (before, _) = result.split_once(what)?;
        before.rsplit(' ').next()?.parse().ok()
    };
    Some(Counts {
        passed: number(" passed")?,
        failed: number(" failed")?,
        filtered: number(" filtered out")?,
    })
}

/// Instructions by program, from lines `verified: PROGRAM: NUMBER`.
fn verified(text: &str) -> BTreeMap<String, u32> {
    text.lines()
        .filter_map(|line| {
            let (program, number) = line.strip_prefix("verified: ")?.rsplit_once(": ")?;
            Some((program.to_owned(), number.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_runners_words_are_understood() {
        let text = "verified: director: 4711\nverified: director with logging: 5000\n\
                    test result: FAILED. 11 passed; 2 failed; 0 ignored; 0 measured; \
                    3 filtered out; finished in 1.20s\n";
        let expected = Counts {
            passed: 11,
            failed: 2,
            filtered: 3,
        };
        assert_eq!(counts(text), Some(expected));
        let programs: Vec<_> = verified(text).into_iter().collect();
        let expected = [("director", 4711), ("director with logging", 5000)];
        assert_eq!(programs, expected.map(|(name, n)| (name.to_owned(), n)));
        assert_eq!(counts("nothing"), None);
    }

    #[test]
    fn a_suite_that_runs_nothing_has_failed() {
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out\n";
        let mut outcome = Outcome::new("suite", Duration::ZERO, none.to_owned(), None);
        assert!(!outcome.is_good());
        outcome.except(8);
        assert!(!outcome.is_good());
        outcome.except(9);
        assert!(outcome.is_good());
        let one = none.replace("0 passed", "1 passed");
        assert!(Outcome::new("suite", Duration::ZERO, one, None).is_good());
    }
}
