//! What demo and lab need before they start.

use crate::workspace::{call, cargo};
use crate::{build_ebpf, root, setup};

/// Sets up, builds the eBPF objects and the programs, and becomes root.
pub fn run(why_root: &str) -> anyhow::Result<()> {
    if !root::is_prepared() {
        setup::run()?;
        build_ebpf::run()?;
        call(cargo().args([
            "build",
            "--package",
            "lb-ctl",
            "--package",
            "lb-agent",
            "--bins",
        ]))?;
    }
    root::become_root(why_root)
}
