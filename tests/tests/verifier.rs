//! Every program of every eBPF object is accepted by the verifier of the
//! kernel that runs, in each way in which it is loaded. How many instructions
//! the verifier looked at is printed: `cargo xtask kernels` compares that with
//! what is committed.
//!
//! Needs root, and the objects: `cargo xtask build-ebpf`, or LB_EBPF_DIR.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use aya::EbpfLoader;
use aya::programs::Program;
use integration::Lab;

/// Levels of the drop log: off, and on. What a program does not use, the
/// verifier does not see.
const QUIET: u8 = 0;
const LOUD: u8 = u8::MAX;

#[test]
fn programs_are_accepted() -> anyhow::Result<()> {
    for object in objects()? {
        let quiet = load(&object, QUIET)?;
        let loud = load(&object, LOUD)?;
        ensure!(!quiet.is_empty(), "no program in {}", object.display());
        // It only measures the others.
        if object.file_stem().is_some_and(|name| name == "bench") {
            continue;
        }
        for (program, instructions) in &quiet {
            println!("verified: {program}: {instructions}");
        }
        for (program, instructions) in loud.iter().filter(|figure| !quiet.contains(figure)) {
            println!("verified: {program} with logging: {instructions}");
        }
    }
    Ok(())
}

fn objects() -> anyhow::Result<Vec<PathBuf>> {
    let directory = env::var_os("LB_EBPF_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf"),
        PathBuf::from,
    );
    let entries = fs::read_dir(&directory)
        .with_context(|| format!("{}: run `cargo xtask build-ebpf`", directory.display()))?;
    let mut objects = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "o") {
            objects.push(path);
        }
    }
    if objects.is_empty() {
        bail!(
            "no objects in {}: run `cargo xtask build-ebpf`",
            directory.display()
        );
    }
    objects.sort();
    Ok(objects)
}

/// Loads all programs of an object; returns their names and the number of
/// instructions that the verifier looked at.
fn load(object: &Path, log_level: u8) -> anyhow::Result<Vec<(String, u32)>> {
    // Maps that are shared by name are pinned there.
    let lab = Lab::new("verifier")?;
    let mut loaded = EbpfLoader::new()
        .default_map_pin_directory(lab.bpffs())
        .override_global("AYA_LOG_LEVEL", &log_level, false)
        .load_file(object)
        .with_context(|| format!("cannot load {}", object.display()))?;
    let mut verified = Vec::new();
    for (name, program) in loaded.programs_mut() {
        let instructions = match program {
            Program::Xdp(program) => {
                program
                    .load()
                    .with_context(|| format!("the kernel refuses {name}"))?;
                program.info()?.verified_instruction_count()
            }
            Program::SchedClassifier(program) => {
                program
                    .load()
                    .with_context(|| format!("the kernel refuses {name}"))?;
                program.info()?.verified_instruction_count()
            }
            other => bail!(
                "{name} is a {:?}: teach this test to load it",
                other.prog_type()
            ),
        };
        let instructions =
            instructions.context("this kernel does not tell how much it has verified")?;
        verified.push((name.to_owned(), instructions));
    }
    verified.sort();
    Ok(verified)
}
