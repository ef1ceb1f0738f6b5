//! `cargo xtask build-ebpf`: the objects that lb-ctl and lb-agent embed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::setup;
use crate::toolchain::{TARGET, Toolchain, has_bpf_linker};
use crate::workspace::{call, root};

/// Profile in the workspace's Cargo.toml.
const PROFILE: &str = "bpf";

/// Builds every program in lb-ebpf/src/bin into target/ebpf/NAME.o. Sets up
/// the tools first if they are missing.
pub fn run() -> anyhow::Result<()> {
    if Toolchain::find().is_none() || !has_bpf_linker() {
        setup::run()?;
    }
    let toolchain = Toolchain::find().context("no toolchain for BPF: run `cargo xtask setup`")?;
    let programs = programs()?;
    // Of its own: the other builds must not throw these results away.
    let target_dir = root().join("target/ebpf-build");
    let mut build = toolchain.cargo_build();
    build
        .args(["--package", "lb-ebpf", "--features", "bpf", "--bins"])
        .args(["--profile", PROFILE, "--target-dir"])
        .arg(&target_dir);
    call(&mut build)?;
    let built = target_dir.join(TARGET).join(PROFILE);
    let objects = root().join("target/ebpf");
    fs::create_dir_all(&objects)?;
    for program in &programs {
        publish(&built.join(program), &objects.join(format!("{program}.o")))?;
    }
    Ok(())
}

/// Names of the programs.
fn programs() -> anyhow::Result<Vec<String>> {
    let dir = root().join("lb-ebpf/src/bin");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path: PathBuf = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.push(name.to_owned());
        }
    }
    if names.is_empty() {
        bail!("no programs in {}", dir.display());
    }
    names.sort();
    Ok(names)
}

/// Copies an object, but only if it changed: the crates that embed it are
/// built anew whenever the file is newer than they are.
fn publish(built: &Path, object: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    let state = if fs::read(object).is_ok_and(|old| old == bytes) {
        "unchanged"
    } else {
        // Whole or not at all, also for somebody who builds at the same time.
        let new = object.with_extension("o.new");
        fs::write(&new, &bytes)?;
        fs::rename(&new, object)?;
        "built"
    };
    eprintln!("{}: {} bytes, {state}", object.display(), bytes.len());
    Ok(())
}
