//! `cargo xtask setup`: installs what is missing and says why.

use std::env::consts::ARCH;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use integration::vm::Kernel;

use crate::kernels::fetch;
use crate::root::sudo;
use crate::toolchain::{BPF_LINKER_VERSION, NIGHTLY, Toolchain, has_bpf_linker};
use crate::workspace::{call, cargo, has_program, output_of, tools};

/// Something that is needed, how one sees that it is there, and the Debian
/// package that brings it.
struct Need {
    name: &'static str,
    why: &'static str,
    package: &'static str,
    is_there: fn(&Need) -> bool,
}

const fn program(name: &'static str, package: &'static str, why: &'static str) -> Need {
    Need {
        name,
        why,
        package,
        is_there: |need| has_program(need.name),
    }
}

const fn library(package: &'static str, why: &'static str) -> Need {
    Need {
        name: package,
        why,
        package,
        is_there: |need| has_package(need.package),
    }
}

/// For demo, lab and tests.
const LAB: [Need; 8] = [
    program("ip", "iproute2", "makes namespaces, bridges and veth pairs"),
    program(
        "ethtool",
        "ethtool",
        "has checksums finished before XDP sees the packets",
    ),
    program("nginx", "nginx-light", "the web servers that are balanced"),
    program("curl", "curl", "the client that sends requests"),
    program("ping", "iputils-ping", "reachability in tests and by hand"),
    program("tcpdump", "tcpdump", "to watch the lab's wires by hand"),
    program("iperf3", "iperf3", "measures transfers in tests, both ways"),
    program(
        "traceroute",
        "traceroute",
        "counts the hops to a VIP in tests",
    ),
];

/// For tests on other kernels, and counting on them.
const MACHINES: [Need; 7] = [
    program(
        "qemu-system-x86_64",
        "qemu-system-x86",
        "boots other kernels, to test on them",
    ),
    program(
        "ipvsadm",
        "ipvsadm",
        "sets up the kernel's own balancer there, to compare",
    ),
    program("busybox", "busybox-static", "starts those machines"),
    program("cpio", "cpio", "packs what is in those machines"),
    program("modprobe", "kmod", "knows which kernel modules go together"),
    program("xz", "xz-utils", "unpacks kernel modules"),
    program(
        "strip",
        "binutils",
        "makes programs small enough for those machines",
    ),
];

/// Debian's toolchain for BPF.
const DEBIAN_RUST: [Need; 3] = [
    library("rustc-web", "a Rust compiler that has a core for BPF"),
    library("cargo-web", "the cargo that goes with it"),
    library("libstd-rust-web-dev-bpf", "the prebuilt core for BPF"),
];

/// For building bpf-linker on Debian.
const DEBIAN_LINKER: [Need; 5] = [
    library(
        "llvm-22-dev",
        "bpf-linker generates code with the LLVM of that compiler",
    ),
    library("libpolly-22-dev", "part of that LLVM"),
    library("libzstd-dev", "that LLVM links it"),
    library("zlib1g-dev", "that LLVM links it"),
    program("c++", "g++", "that LLVM needs the C++ runtime"),
];

/// Installs what is missing. Does nothing if nothing is.
pub fn run() -> anyhow::Result<()> {
    let mut missing: Vec<&Need> = Vec::new();
    let mut require = |needs: &'static [Need]| {
        for need in needs {
            let there = (need.is_there)(need);
            report(need.name, need.why, there);
            if !there {
                missing.push(need);
            }
        }
    };
    require(&LAB);
    let found = Toolchain::find();
    if let Some(toolchain) = found {
        report("Rust for BPF", toolchain.describe(), true);
    }
    let linker = has_bpf_linker();
    report(
        "bpf-linker",
        "links eBPF programs and makes their BTF",
        linker,
    );
    let wants_debian = match found {
        Some(toolchain) => toolchain == Toolchain::Debian && !linker,
        None => is_on_offer(&DEBIAN_RUST) && is_on_offer(&DEBIAN_LINKER),
    };
    if found.is_none() && wants_debian {
        require(&DEBIAN_RUST);
    }
    if wants_debian && !linker {
        require(&DEBIAN_LINKER);
    }
    install_packages(&missing)?;
    let toolchain = match Toolchain::find() {
        Some(toolchain) => toolchain,
        None => install_nightly()?,
    };
    if !linker {
        install_linker(toolchain)?;
    }
    Ok(())
}

/// Installs what virtual machines with other kernels need, and fetches the
/// kernels. Does nothing if all is there.
pub fn virtual_machines() -> anyhow::Result<()> {
    let mut missing: Vec<&Need> = Vec::new();
    for need in &MACHINES {
        let there = (need.is_there)(need);
        report(need.name, need.why, there);
        if !there {
            missing.push(need);
        }
    }
    install_packages(&missing)?;
    for kernel in Kernel::ALL {
        let there = fetch::is_there(kernel);
        report(
            &format!("kernel {kernel}"),
            "Debian's, to test on in a virtual machine",
            there,
        );
        if !there {
            fetch::fetch(kernel, &apt_update)?;
        }
    }
    Ok(())
}

fn report(name: &str, why: &str, there: bool) {
    let state = if there { "already there" } else { "missing" };
    eprintln!("  {name:24} {state:14} {why}");
}

fn has_package(name: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", name]);
    output_of(&mut query).is_some_and(|status| status == "installed")
}

/// Whether apt knows a package to install for each of them. Its lists may be
/// missing on a fresh machine: fetches them once if so.
fn is_on_offer(needs: &[Need]) -> bool {
    let offered = || {
        needs.iter().all(|need| {
            let mut show = Command::new("apt-cache");
            show.args(["show", "--no-all-versions", need.package]);
            output_of(&mut show).is_some()
        })
    };
    has_program("apt-get") && (offered() || (apt_update().is_ok() && offered()))
}

fn apt_update() -> anyhow::Result<()> {
    as_root(&["apt-get", "update", "--quiet"], "apt-get update")
}

fn install_packages(missing: &[&Need]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !has_program("apt-get") {
        let list: Vec<String> = missing
            .iter()
            .map(|need| {
                format!(
                    "  {:24} {} (Debian's package {})",
                    need.name, need.why, need.package
                )
            })
            .collect();
        bail!(
            "this system has no apt-get, so please install by its own means:\n{}\nthen run \
             `cargo xtask setup` again",
            list.join("\n")
        );
    }
    eprintln!("installing Debian packages: {}", packages.join(" "));
    let list = packages.join(" ");
    // Debian starts a service as soon as it is installed, unless a policy
    // forbids it; the machine's port 80 is none of our business.
    let script = format!(
        "set -e
         policy=/usr/sbin/policy-rc.d
         if [ ! -e $policy ]; then
             trap 'rm -f '$policy EXIT
             printf '#!/bin/sh\\nexit 101\\n' >$policy
             chmod 755 $policy
         fi
         DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends {list}"
    );
    let hint = format!("apt-get install --no-install-recommends {list}");
    let install = || as_root(&["sh", "-c", &script], &hint);
    // Lists that are missing or old are the usual reason for a failure.
    install().or_else(|_| apt_update().and_then(|()| install()))
}

/// Runs a command as root, by sudo if need be; `hint` is what to type instead.
fn as_root(words: &[&str], hint: &str) -> anyhow::Result<()> {
    let prefix = sudo("installing packages").with_context(|| format!("as root, type: {hint}"))?;
    let all: Vec<_> = prefix
        .into_iter()
        .chain(words.iter().map(Into::into))
        .collect();
    call(Command::new(&all[0]).args(&all[1..]))
}

/// The other way to a toolchain, where Debian's packages cannot be had.
fn install_nightly() -> anyhow::Result<Toolchain> {
    eprintln!("installing rustup's {NIGHTLY} with the sources of core, to build core for BPF");
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", NIGHTLY, "--profile", "minimal"]);
    let installed = call(rustup.args(["--component", "rust-src"]));
    Toolchain::find().with_context(|| {
        let reason = installed
            .err()
            .map_or_else(String::new, |e| format!(" ({e:#})"));
        let packages: Vec<&str> = DEBIAN_RUST.iter().map(|need| need.package).collect();
        format!(
            "no Rust that can build for BPF, and none could be installed{reason}. One of these \
             is needed:\n  the Debian packages {}\n  rustup toolchain install {NIGHTLY} \
             --component rust-src",
            packages.join(" ")
        )
    })
}

fn install_linker(toolchain: Toolchain) -> anyhow::Result<()> {
    eprintln!(
        "installing bpf-linker {BPF_LINKER_VERSION} into {}",
        tools().display()
    );
    match toolchain {
        Toolchain::Debian => build_linker()?,
        Toolchain::Rustup => download_linker()?,
    }
    if !has_bpf_linker() {
        bail!("{}/bin/bpf-linker does not run", tools().display());
    }
    Ok(())
}

/// Built against the LLVM with which Debian's compiler was built.
fn build_linker() -> anyhow::Result<()> {
    let mut install = cargo();
    install
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER_VERSION,
            "--locked",
            "--force",
        ])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(tools())
        .env("LLVM_PREFIX", "/usr/lib/llvm-22");
    call(&mut install)
}

/// As its makers advise for a Rust from rustup: linked with the nightly's LLVM.
fn download_linker() -> anyhow::Result<()> {
    let url = format!(
        "https://github.com/aya-rs/bpf-linker/releases/download/v{BPF_LINKER_VERSION}/\
         bpf-linker-{ARCH}-unknown-linux-musl.tar.zst"
    );
    let bin = tools().join("bin");
    std::fs::create_dir_all(&bin)?;
    let archive = tools().join("bpf-linker.tar.zst");
    let mut curl = Command::new("curl");
    curl.args([
        "--fail",
        "--location",
        "--show-error",
        "--silent",
        "--output",
    ]);
    call(curl.arg(&archive).arg(&url)).with_context(|| {
        format!(
            "cannot download bpf-linker: put it into {} by hand",
            bin.display()
        )
    })?;
    call(
        Command::new("tar")
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(&bin),
    )
    .context("tar needs zstd for this archive: install zstd")?;
    let unpacked: &Path = &bin.join("bpf-linker");
    if !unpacked.is_file() {
        bail!("{url} holds no bpf-linker");
    }
    Ok(std::fs::remove_file(archive)?)
}
