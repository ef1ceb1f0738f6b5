//! Time per packet of the director's program, with real maps filled by the
//! real planner. Called by `cargo xtask bench`.
//!
//! Net time = generator and program, less generator and an empty program.
//! All programs are run in turn, round after round, so that what disturbs the
//! machine disturbs all of them; the median over the rounds counts.

mod cases;
mod programs;
mod report;
mod world;

use integration::Lab;

fn main() -> anyhow::Result<()> {
    let options = Options::from_arguments();
    let lab = Lab::new("bench")?;
    let host = lab.host("director")?;
    let segment = lab.segment("lan")?;
    host.attach(&segment, "eth0", &[])?;
    let results = host.in_namespace(|| cases::run(&lab, &options))?;
    report::print(&results, options.json);
    Ok(())
}

/// What is asked for.
struct Options {
    /// JSON instead of a table.
    json: bool,
    /// Fewer and shorter rounds.
    quick: bool,
}

impl Options {
    fn from_arguments() -> Self {
        let has = |name: &str| std::env::args().any(|argument| argument == name);
        Self {
            json: has("--json"),
            quick: has("--quick"),
        }
    }
}
