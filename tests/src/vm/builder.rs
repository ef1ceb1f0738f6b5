//! What goes into a machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;

use super::image::Image;
use super::init;
use super::kernel::{Kernel, directory, program};
use super::machine::{Machine, Output};
use crate::paths;

/// Programs that labs call.
const LAB_PROGRAMS: [&str; 11] = [
    "ip",
    "tc",
    "ethtool",
    "nginx",
    "curl",
    "ping",
    "setpriv",
    "tcpdump",
    "iperf3",
    "traceroute",
    "nstat",
];

/// Modules of what labs are made of.
const LAB_MODULES: [&str; 6] = [
    "veth",
    "bridge",
    "macvlan",
    "sch_ingress",
    "cls_bpf",
    "dummy",
];

/// A virtual machine, not started yet.
#[derive(Debug)]
pub struct Vm;

impl Vm {
    /// A machine with nothing but a kernel and busybox.
    pub fn builder(kernel: Kernel) -> Builder {
        Builder {
            kernel,
            memory_mib: 2048,
            modules: Vec::new(),
            files: Vec::new(),
            programs: Vec::new(),
            system_programs: Vec::new(),
            environment: Vec::new(),
            is_lab: false,
        }
    }
}

/// What goes into a machine. Paths in the machine are absolute.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `run`"]
pub struct Builder {
    kernel: Kernel,
    memory_mib: u32,
    modules: Vec<String>,
    files: Vec<(PathBuf, PathBuf)>,
    programs: Vec<(PathBuf, PathBuf)>,
    system_programs: Vec<String>,
    environment: Vec<(String, String)>,
    is_lab: bool,
}

impl Builder {
    /// The kernel that it boots.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Memory in MiB; 2048 unless set.
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Loads a module, and before it those that it needs.
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Adds a file that is not a program.
    pub fn file(mut self, source: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        let (source, target) = (source.as_ref().to_owned(), target.as_ref().to_owned());
        self.files.push((source, target));
        self
    }

    /// Adds one of this system's programs, such as `ipvsadm`, and the
    /// libraries that it needs.
    pub fn program(mut self, name: &str) -> Self {
        self.system_programs.push(name.to_owned());
        self
    }

    /// Adds any program of this machine, and the libraries that it needs.
    pub fn binary(mut self, source: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        let (source, target) = (source.as_ref().to_owned(), target.as_ref().to_owned());
        self.programs.push((source, target));
        self
    }

    /// Sets a variable for the command.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds what labs of this crate need: `lb-ctl`, `lb-agent`, ip, tc, ethtool,
    /// nginx, curl and others, and modules for segments.
    pub fn lab(mut self) -> Self {
        self.is_lab = true;
        self
    }

    /// Boots the machine, runs a shell script in it as root, and
    /// waits until the machine is off. A nanosecond of the machine's clocks is an
    /// instruction, whatever the instruction and however busy this host is.
    /// `timeout` is in this host's time, from the start of the machine, not from
    /// the call: of each kernel one machine runs at a time.
    ///
    /// # Errors
    /// When something that was asked for is missing, the kernel panics, or the
    /// machine is not done in time. Not when the command fails: see
    /// [`Output::ok`].
    pub fn run(&self, command: &str, timeout: Duration) -> anyhow::Result<Output> {
        let place = Place::new()?;
        let archive = self
            .pack(command, &place)
            .with_context(|| format!("cannot prepare a machine with kernel {}", self.kernel))?;
        let machine = Machine {
            kernel: self.kernel,
            initramfs: &archive,
            memory_mib: self.memory_mib,
        };
        machine.run(&place.0, timeout)
    }

    fn pack(&self, command: &str, place: &Place) -> anyhow::Result<PathBuf> {
        let mut image = Image::new(place.0.join("tree"))?;
        image.add_program(&program("busybox")?, Path::new("/bin/busybox"))?;
        // Busybox's shell prefers its own commands to those of the same name
        // that are asked for.
        add_system_program(&mut image, "sh")?;
        let mut modules = self.modules.clone();
        if self.is_lab {
            modules.extend(LAB_MODULES.map(str::to_owned));
            add_lab(&mut image)?;
        }
        for (source, target) in &self.programs {
            image.add_program(source, target)?;
        }
        for name in &self.system_programs {
            add_system_program(&mut image, name)?;
        }
        for (source, target) in &self.files {
            image.add_file(source, target)?;
        }
        let modules = add_modules(&image, self.kernel, &modules)?;
        let mut environment = self.environment.clone();
        environment.push(("LB_BIN_DIR".to_owned(), init::BIN.to_owned()));
        let init = init::script(&modules, &environment);
        image.add_text(&init, Path::new("/init"))?;
        image.add_text(command, Path::new(init::COMMAND))?;
        let archive = place.0.join("initramfs");
        image.pack(&archive)?;
        Ok(archive)
    }
}

fn add_lab(image: &mut Image) -> anyhow::Result<()> {
    for name in ["lb-ctl", "lb-agent"] {
        image.add_program(&paths::binary(name)?, &Path::new(init::BIN).join(name))?;
    }
    for name in LAB_PROGRAMS {
        add_system_program(image, name)?;
    }
    // Users for those who give up being root, and iproute2's names of numbers.
    for file in ["/etc/passwd", "/etc/group"] {
        image.add_file(Path::new(file), Path::new(file))?;
    }
    for directory in ["/etc/iproute2", "/usr/share/iproute2"] {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry?.path();
            if path.is_file() {
                image.add_file(&path, &path)?;
            }
        }
    }
    Ok(())
}

fn add_system_program(image: &mut Image, name: &str) -> anyhow::Result<()> {
    image.add_program(&program(name)?, &Path::new("/usr/bin").join(name))
}

/// Adds the files of modules and returns their names, in order.
fn add_modules(image: &Image, kernel: Kernel, names: &[String]) -> anyhow::Result<Vec<String>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for name in names {
        for file in kernel.module(name)? {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    let mut added = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let name = init::module_name(i, file);
        image.add_file(file, &Path::new(init::MODULES).join(&name))?;
        added.push(name);
    }
    Ok(added)
}

/// A directory of one machine. Dropping it removes it.
struct Place(PathBuf);

impl Place {
    fn new() -> anyhow::Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let all = directory().join("run");
        remove_abandoned(&all)?;
        let path = all.join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

/// Removes what processes left that were killed.
fn remove_abandoned(all: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(all).into_iter().flatten() {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let owner = name.split('-').next().unwrap_or_default();
        let is_own = owner == std::process::id().to_string();
        if !is_own && !Path::new("/proc").join(owner).exists() {
            // Another process may be at it too.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {e}", self.0.display());
        }
    }
}
