//! The director's program, with real maps filled by the real planner: time per
//! packet, instructions per packet, memory. Called by `cargo xtask bench`.

mod accesses;
mod cases;
mod forwarded;
mod headers;
mod instructions;
mod memory;
mod programs;
mod report;
mod router;
mod scaling;
mod sink;
mod time;
mod wire;
mod world;

use integration::Lab;

fn main() -> anyhow::Result<()> {
    let has = |name: &str| std::env::args().any(|argument| argument == name);
    if has("--wire") {
        return wire::run();
    }
    let lab = Lab::new("bench")?;
    if has("--memory") {
        return memory::run(lab.bpffs());
    }
    let host = lab.host("director")?;
    router::set_up(&host)?;
    if has("--instructions") {
        return host.in_namespace(|| instructions::run(lab.bpffs()));
    }
    let is_quick = has("--quick");
    let mut arguments = std::env::args().skip_while(|argument| argument != "--only");
    let only = arguments.nth(1).unwrap_or_default();
    let results = host.in_namespace(|| time::run(lab.bpffs(), is_quick, &only))?;
    let scaling = if only.is_empty() || only == scaling::NAME {
        host.in_namespace(|| scaling::run(lab.bpffs(), is_quick))?
    } else {
        Vec::new()
    };
    report::print(&results, &scaling, has("--json"));
    Ok(())
}
