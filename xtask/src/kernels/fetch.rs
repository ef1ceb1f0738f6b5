//! Debian's kernels, downloaded and unpacked.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use integration::vm::Kernel;

use crate::workspace::{call, has_program, output_of};

/// Whether a kernel is there.
pub fn is_there(kernel: Kernel) -> bool {
    kernel.directory().join("vmlinuz").is_file() && kernel.release().is_ok()
}

/// Fetches a kernel; `update` brings apt's lists up to date.
///
/// # Errors
/// When it cannot be had: with what to put where by hand.
pub fn fetch(kernel: Kernel, update: &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if ARCH != "x86_64" {
        bail!(
            "the virtual machines run the programs that are built here on amd64 kernels, but \
             this machine is {ARCH}"
        );
    }
    try_fetch(kernel, update).with_context(|| {
        let series = kernel.series();
        format!(
            "the tests on kernel {series} need one under {0}: from a package \
             linux-image-{series}.*-cloud-amd64-unsigned of Debian 12, boot/vmlinuz-RELEASE as \
             {0}/vmlinuz, lib/modules/RELEASE as {0}/lib/modules/RELEASE with all .ko.xz \
             unpacked and then `depmod --basedir {0} RELEASE`, and {0}/release that holds RELEASE",
            kernel.directory().display()
        )
    })
}

fn try_fetch(kernel: Kernel, update: &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if !has_program("apt-get") {
        bail!("this system has no apt-get");
    }
    let package = match newest_package(kernel) {
        Some(package) => package,
        None => {
            update()?;
            newest_package(kernel).context("apt knows no such package")?
        }
    };
    eprintln!("fetching {package} into {}", kernel.directory().display());
    // Whole or not at all.
    let new = kernel.directory().with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    fs::create_dir_all(&new)?;
    let mut package = package;
    if download(&package, &new).is_err() {
        // Old lists name packages that are gone.
        update()?;
        package = newest_package(kernel).context("apt knows no such package")?;
        download(&package, &new)?;
    }
    unpack(&package, &new)?;
    if kernel.directory().exists() {
        fs::remove_dir_all(kernel.directory())?;
    }
    Ok(fs::rename(new, kernel.directory())?)
}

/// The newest unsigned kernel for clouds in what apt knows.
fn newest_package(kernel: Kernel) -> Option<String> {
    let series = kernel.series().replace('.', r"\.");
    let pattern = format!(r"^linux-image-{series}\..*cloud-amd64-unsigned$");
    let text = output_of(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    let names = text.lines().filter_map(|line| line.split(' ').next());
    names.max_by_key(|name| numbers(name)).map(str::to_owned)
}

/// The numbers in a name, by which versions are compared.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect()
}

fn download(package: &str, directory: &Path) -> anyhow::Result<()> {
    let mut apt = Command::new("apt-get");
    // As root, apt would rather download as a user who may not write there.
    apt.args([
        "-o",
        "APT::Sandbox::User=root",
        "--quiet",
        "download",
        package,
    ]);
    call(apt.current_dir(directory))
}

/// Takes kernel and modules out of the package.
fn unpack(package: &str, directory: &Path) -> anyhow::Result<()> {
    let archive = only_entry(directory)?;
    let tree = directory.join("tree");
    call(
        Command::new("dpkg-deb")
            .arg("--extract")
            .args([&archive, &tree]),
    )?;
    fs::remove_file(archive)?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|path| tree.join(path))
        .into_iter()
        .find(|path| path.is_dir())
        .with_context(|| format!("{package} holds no modules"))?;
    let own_modules = only_entry(&modules)?;
    let release = own_modules.file_name().unwrap_or_default().to_owned();
    let release = release.to_str().context("odd name of modules")?;
    let boot = tree.join("boot").join(format!("vmlinuz-{release}"));
    fs::rename(&boot, directory.join("vmlinuz")).with_context(|| boot.display().to_string())?;
    fs::create_dir(directory.join("lib"))?;
    fs::rename(&modules, directory.join("lib/modules"))?;
    fs::remove_dir_all(tree)?;
    // Not everything that loads modules can read compressed ones.
    let mut xz = Command::new("find");
    xz.arg(directory).args([
        "-name",
        "*.ko.xz",
        "-exec",
        "xz",
        "--decompress",
        "--threads=0",
        "{}",
        "+",
    ]);
    call(&mut xz)?;
    let mut depmod = Command::new(if Path::new("/sbin/depmod").exists() {
        "/sbin/depmod"
    } else {
        "depmod"
    });
    call(depmod.arg("--basedir").arg(directory).arg(release))?;
    Ok(fs::write(
        directory.join("release"),
        format!("{release}\n"),
    )?)
}

fn only_entry(directory: &Path) -> anyhow::Result<PathBuf> {
    let mut entries = fs::read_dir(directory)?;
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry?.path()),
        _ => bail!("there should be one thing in {}", directory.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let older = numbers("linux-image-6.1.0-9-cloud-amd64-unsigned");
        let newer = numbers("linux-image-6.1.0-56-cloud-amd64-unsigned");
        assert!(newer > older);
    }
}
