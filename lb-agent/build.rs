//! Embeds the BPF object, so that an installed `lb-agent` needs no toolchain.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LB_EBPF_DIR");
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let directory = std::env::var_os("LB_EBPF_DIR")
        .map_or_else(|| workspace.join("target/ebpf"), PathBuf::from);
    let object = directory.join("backend.o");
    println!("cargo:rerun-if-changed={}", object.display());
    assert!(
        object.exists(),
        "there is no BPF object at {}: run `cargo xtask build-ebpf` first",
        object.display()
    );
    println!("cargo:rustc-env=LB_BACKEND_OBJECT={}", object.display());
}
