//! Which Rust builds the eBPF objects.

use std::path::Path;
use std::process::Command;

use crate::workspace::{output_of, root, tools};

/// A Rust that can build for BPF. The stable one from rustup cannot: it has
/// neither a `core` for that target nor the means to build one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// Debian's rustc-web with its prebuilt `core` for BPF.
    Debian,
    /// [`NIGHTLY`] from rustup with the sources of `core`.
    Rustup,
}

/// Of the linker that fits both of them.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// One nightly for everybody: its LLVM is the one in that linker's release,
/// and what the user calls `nightly` stays as it is.
pub const NIGHTLY: &str = "nightly-2026-10-30";

/// The target: BPF, little-endian.
pub const TARGET: &str = "bpfel-unknown-none";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// Set by the rustup's cargo that runs this task; they would lead another
/// toolchain astray.
const MISLEADING: [&str; 10] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

impl Toolchain {
    /// The toolchain to use, if there is one. This is the only place where the
    /// choice is made: Debian's first, because it needs no network any more.
    pub fn find() -> Option<Self> {
        if debian_is_complete() {
            return Some(Self::Debian);
        }
        nightly_has_sources().then_some(Self::Rustup)
    }

    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Debian => "Debian's rustc-web, with a prebuilt core for BPF",
            Self::Rustup => "a nightly from rustup, with the sources of core",
        }
    }

    /// A `cargo build` for BPF, without packages and directories.
    pub fn cargo_build(self) -> Command {
        let mut command = match self {
            Self::Debian => {
                let mut cargo = Command::new(DEBIAN_CARGO);
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo.arg("build");
                cargo
            }
            Self::Rustup => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", NIGHTLY, "cargo", "build", "-Zbuild-std=core"]);
                rustup
            }
        };
        let set: Vec<_> = command
            .get_envs()
            .map(|(name, _)| name.to_owned())
            .collect();
        for name in MISLEADING {
            if !set.iter().any(|s| s == name) {
                command.env_remove(name);
            }
        }
        let linker = format!("-Clinker={}", tools().join("bin/bpf-linker").display());
        let flags = [
            &linker,
            // BTF is made from debug information.
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
            // Linux 5.1 and later: 32-bit operations and all jumps. The
            // compiler hands it on to the linker.
            "-Ctarget-cpu=v3",
            // Headers are not aligned; XDP's processors do not mind.
            "-Clink-arg=--cpu-features=+allows-misaligned-mem-access,+alu32",
        ];
        command
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .args(["--target", TARGET])
            .current_dir(root());
        command
    }
}

/// Whether the linker is there in the version that is wanted.
pub fn has_bpf_linker() -> bool {
    let mut command = Command::new(tools().join("bin/bpf-linker"));
    output_of(command.arg("--version")).is_some_and(|text| text.ends_with(BPF_LINKER_VERSION))
}

fn debian_is_complete() -> bool {
    let core = Path::new("/usr/lib/rustlib").join(TARGET).join("lib");
    Path::new(DEBIAN_CARGO).is_file() && Path::new(DEBIAN_RUSTC).is_file() && core.is_dir()
}

fn nightly_has_sources() -> bool {
    let mut rustc = Command::new("rustup");
    rustc.args(["run", NIGHTLY, "rustc", "--print", "sysroot"]);
    output_of(&mut rustc).is_some_and(|sysroot| {
        Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
    })
}
