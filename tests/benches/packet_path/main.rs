//! The director's program, with real maps filled by the real planner: time per
//! packet, instructions per packet, memory. Called by `cargo xtask bench`.

mod cases;
mod clock;
mod forwarded;
mod instructions;
mod memory;
mod programs;
mod report;
mod sink;
mod time;
mod wire;
mod world;

use std::path::Path;

use integration::Lab;

/// Where a machine that counts has its BPF file system.
const MACHINES_BPFFS: &str = "/sys/fs/bpf";

fn main() -> anyhow::Result<()> {
    let has = |name: &str| std::env::args().any(|argument| argument == name);
    if has("--instructions") {
        return instructions::run(Path::new(MACHINES_BPFFS));
    }
    if has("--wire") {
        return wire::run();
    }
    let lab = Lab::new("bench")?;
    if has("--memory") {
        return memory::run(lab.bpffs());
    }
    let host = lab.host("director")?;
    let results = host.in_namespace(|| time::run(lab.bpffs(), has("--quick")))?;
    report::print(&results, has("--json"));
    Ok(())
}
