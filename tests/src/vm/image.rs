//! The initramfs: a tree of links to files of this machine, packed by cpio.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::kernel::program;
use crate::command::run;

/// The tree of files.
pub(super) struct Image {
    root: PathBuf,
    /// Libraries that are in it.
    libraries: BTreeSet<PathBuf>,
}

impl Image {
    /// An empty tree at `root`, which must not exist yet.
    pub fn new(root: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self {
            root,
            libraries: BTreeSet::new(),
        })
    }

    /// A file of this machine. One that is there already stays.
    pub fn add_file(&self, source: &Path, target: &Path) -> anyhow::Result<()> {
        let source = fs::canonicalize(source)
            .with_context(|| format!("there is no file {}", source.display()))?;
        let target = self.place(target)?;
        if !target.exists() {
            symlink(source, target)?;
        }
        Ok(())
    }

    /// A file with this text.
    pub fn add_text(&self, text: &str, target: &Path) -> anyhow::Result<()> {
        let target = self.place(target)?;
        fs::write(&target, text)?;
        Ok(fs::set_permissions(
            &target,
            fs::Permissions::from_mode(0o755),
        )?)
    }

    /// A program of this machine with the libraries that it is linked with,
    /// without debugging information: that is most of what is built here, and
    /// all of it would have to fit into the machine's memory.
    pub fn add_program(&mut self, source: &Path, target: &Path) -> anyhow::Result<()> {
        for library in libraries(source)? {
            if self.libraries.insert(library.clone()) {
                self.add_file(&library, &library)?;
            }
        }
        let target = self.place(target)?;
        let mut strip = Command::new(program("strip")?);
        strip.args(["--strip-debug", "-o"]).arg(&target).arg(source);
        run(&mut strip)?;
        Ok(())
    }

    /// Packs the tree into `archive`.
    pub fn pack(&self, archive: &Path) -> anyhow::Result<()> {
        let mut names = Vec::new();
        list(&self.root, Path::new(""), &mut names)?;
        let mut cpio = Command::new(program("cpio")?);
        cpio.args(["--create", "--format=newc", "--dereference", "--quiet"])
            .args(["--owner=0:0", "--null"])
            .current_dir(&self.root)
            .stdin(Stdio::piped())
            .stdout(File::create(archive)?)
            .stderr(Stdio::piped());
        let mut child = cpio.spawn().context("cannot start cpio")?;
        let mut input = child.stdin.take().context("cpio has no standard input")?;
        // It reads all names before its errors could fill their pipe.
        std::io::Write::write_all(&mut input, &names)?;
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("cpio cannot pack {}: {errors}", self.root.display());
        }
        Ok(())
    }

    /// Path in the tree, with the directories above it.
    fn place(&self, target: &Path) -> anyhow::Result<PathBuf> {
        let inside = target
            .strip_prefix("/")
            .with_context(|| format!("{} is not absolute", target.display()))?;
        let path = self.root.join(inside);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        Ok(path)
    }
}

/// Adds the names of everything below `directory`, directories before their
/// content, each with a zero byte behind it.
fn list(root: &Path, directory: &Path, names: &mut Vec<u8>) -> anyhow::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let name = directory.join(entry.file_name());
        names.extend_from_slice(name.as_os_str().as_bytes());
        names.push(0);
        if entry.file_type()?.is_dir() {
            list(root, &name, names)?;
        }
    }
    Ok(())
}

/// Libraries of a program, its loader included; none if it is linked
/// statically.
fn libraries(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(path)
        .output()
        .context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        if errors.contains("not a dynamic executable") {
            return Ok(Vec::new());
        }
        bail!("ldd {}: {}", path.display(), errors.trim_end());
    }
    libraries_of(&text).with_context(|| format!("ldd {}", path.display()))
}

/// The paths in what ldd prints.
fn libraries_of(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if line.ends_with("not found") {
            bail!("a library is missing: {line}");
        }
        // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader; the
        // kernel's own library has no path.
        let path = line.rsplit_once(" => ").map_or(line, |(_, path)| path);
        if path.starts_with('/') {
            let path = path.split_once(" (").map_or(path, |(path, _)| path);
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f11)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f12)\n";
        let paths = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(libraries_of(text).unwrap(), paths.map(PathBuf::from));
        assert_eq!(
            libraries_of("\tstatically linked\n").unwrap(),
            Vec::<PathBuf>::new()
        );
        let error = libraries_of("\tlibx.so => not found\n").unwrap_err();
        assert!(error.to_string().contains("libx.so"), "{error}");
    }
}
