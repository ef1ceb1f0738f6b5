//! Loads, attaches, pins, adopts and removes the program.
//!
//! Under the bpffs directory stand `v<ABI_VERSION>/<MAP>` for each map,
//! `director` for the program, and `link-<interface index>` for each interface
//! that it is attached to. A pin holds its object: while it is there, packets
//! are forwarded, whether `lb-ctl` lives or not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, ProgramArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lb_common::settings::Settings;
use lb_common::{ABI_VERSION, limits, program};
use nix::sys::statfs::statfs;
use tracing::{info, warn};

use super::clock::{self, Clock};
use super::kernel::Kernel;
use super::{Capacity, drop_log, maps};

/// The director's program, built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_DIRECTOR_OBJECT"));

const PROGRAM: &str = "director";

/// What to load, and where to.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Directory on a bpffs; made if it is missing.
    pub bpffs: PathBuf,
    /// Name and index of each interface.
    pub interfaces: Vec<(String, u32)>,
    /// How to attach.
    pub policy: XdpPolicy,
    /// Backends for which the maps have room.
    pub max_backends: u32,
    /// Entries of each flow table.
    pub flow_table_size: u32,
    /// Translated flows of each IP version for which there is room.
    pub nat_table_size: u32,
    /// Whether the program logs the packets that it drops.
    pub log_drops: bool,
}

/// How to attach an XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpPolicy {
    /// In the driver, and if it cannot, in the stack.
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the stack.
    Generic,
}

/// An interface on which the program runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the interface.
    pub name: String,
    /// Index of the interface.
    pub index: u32,
    /// Why the program does not run in the driver, if it does not and that was
    /// found out just now.
    pub generic_because: Option<String>,
}

/// Why the program could not be loaded, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory is not on a bpffs.
    #[error(
        "{0} is not on a BPF file system, where program and maps must be pinned so that \
         forwarding survives lb-ctl: run `mount -t bpf bpf /sys/fs/bpf`, or name another \
         one with --bpffs"
    )]
    NoBpffs(PathBuf),
    /// No privileges.
    #[error(
        "no permission to load BPF programs: run lb-ctl as root, or with the capabilities \
         CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    Permission,
    /// Another program is in the way.
    #[error(
        "interface {0} already has an XDP program that is not ours: look with \
         `ip link show dev {0}` and `bpftool net`, and if it is not needed, remove it with \
         `ip link set dev {0} xdp off` or by ending the program that attached it"
    )]
    Busy(String),
    /// The driver cannot.
    #[error(
        "the driver of {interface} cannot run XDP programs ({cause}): use \
         --xdp-mode generic if slow is better than not at all"
    )]
    NotNative {
        /// Name of the interface.
        interface: String,
        /// What the kernel said.
        cause: String,
    },
    /// Maps of another size are pinned.
    #[error(
        "the pinned map {map} has {pinned} entries, but {wanted} are asked for: start lb-ctl \
         with the --max-backends, --flow-table-size and --nat-table-size of before, or run `lb-ctl down` first \
         (that stops forwarding)"
    )]
    OtherSize {
        /// Name of the map.
        map: &'static str,
        /// Entries that it has.
        pinned: u32,
        /// Entries that are wanted.
        wanted: u32,
    },
    /// The pinned maps are of another version, whatever their directory says.
    #[error(
        "the maps pinned in {directory} are of version {found}, and this lb-ctl knows \
         {ABI_VERSION}: start the lb-ctl that made them, or run `lb-ctl down` first \
         (that stops forwarding)"
    )]
    OtherAbi {
        /// Where they are pinned.
        directory: PathBuf,
        /// What they say of themselves.
        found: u32,
    },
    /// The kernel refused the program.
    #[error(
        "the kernel refused the program (this version of lb-ctl needs Linux 6.1 or later, \
         this is {kernel}): {cause}"
    )]
    Refused {
        /// `uname -r`.
        kernel: String,
        /// What the kernel said.
        cause: String,
    },
    /// Anything else.
    #[error("{context}: {cause}")]
    Other {
        /// What was being done.
        context: String,
        /// What went wrong.
        cause: String,
    },
}

/// Loads the program and attaches it to the interfaces. What is pinned already
/// is adopted: maps with their content, links by replacing their program, so
/// that packets are forwarded all the time.
///
/// # Errors
/// See [`LoadError`]. What was attached before still is.
pub fn load(options: &LoadOptions) -> Result<Kernel, LoadError> {
    let capacity = Capacity {
        backends: options.max_backends + 1,
        ring_blocks: limits::ring_blocks(options.max_backends),
        flows: options.flow_table_size,
        nat: options.nat_table_size,
    };
    let map_directory = options.bpffs.join(format!("v{ABI_VERSION}"));
    require_bpffs(&options.bpffs)?;
    fs::create_dir_all(&map_directory).map_err(|e| on_path("creating", &map_directory, &e))?;
    require_sizes(&map_directory, &capacity)?;

    let mut object = load_object(options, &map_directory, &capacity)?;
    if options.log_drops {
        drop_log::follow(&mut object).map_err(|e| other("reading the program's log", &e))?;
    }
    let (maps, flows, nat) =
        maps::take(&mut object).map_err(|e| other("reading the BPF object", &e))?;
    let settings = maps.settings.get(&0, 0);
    let settings = settings.map_err(|e| other("reading the settings", &e))?;
    require_abi(&map_directory, &settings)?;
    // Before the program that calls them.
    let _programs = load_called(&mut object)?;
    let program = load_program(&mut object, PROGRAM)?;

    let mut attachments = Vec::new();
    for (name, index) in &options.interfaces {
        attachments.push(attach(program, options, name, *index)?);
    }
    release_other_links(options);
    repin_program(program, &options.bpffs)?;
    remove_other_versions(&options.bpffs, &map_directory);
    load_program(&mut object, clock::PROGRAM)?;
    let clock = Clock::new(object)
        .map_err(|e| other("reading the packet path's clock", &format!("{e:#}")))?;
    Ok(Kernel::new(maps, flows, nat, clock, capacity, attachments))
}

fn load_program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, LoadError> {
    let program: &mut Xdp = object
        .program_mut(name)
        .ok_or_else(|| {
            other(
                "reading the BPF object",
                &format!("it has no program {name}: rebuild lb-ctl"),
            )
        })?
        .try_into()
        .map_err(|e: ProgramError| other("reading the BPF object", &e))?;
    program.load().map_err(|error| match error {
        // Not EACCES: that is the verifier's.
        ProgramError::LoadError { ref io_error, .. }
            if io_error.raw_os_error() == Some(nix::libc::EPERM) =>
        {
            LoadError::Permission
        }
        error => LoadError::Refused {
            kernel: kernel_release(),
            cause: error.to_string(),
        },
    })?;
    Ok(program)
}

/// Loads the programs that packets are handed to, and puts them where the
/// director's program looks for them. Returns the map that holds them, which
/// must stay open while programs are loaded; it is pinned, so it holds them
/// afterwards as well.
fn load_called(object: &mut Ebpf) -> Result<ProgramArray<MapData>, LoadError> {
    let mut programs = maps::programs(object).map_err(|e| other("reading the BPF object", &e))?;
    for (index, name) in [
        (program::NAT_V4, "nat_v4"),
        (program::NAT_V6, "nat_v6"),
        (program::FIRST_V4, "first_v4"),
        (program::FIRST_V6, "first_v6"),
        (program::NAT_FIRST_V4, "nat_first_v4"),
        (program::NAT_FIRST_V6, "nat_first_v6"),
        (program::LATER_V4, "later_v4"),
        (program::LATER_V6, "later_v6"),
        (program::OTHER_V4, "other_v4"),
        (program::OTHER_V6, "other_v6"),
        (program::TAGGED, "tagged"),
        (program::RETAG, "retag"),
        (program::ECHO_V4, "echo_v4"),
        (program::ECHO_V6, "echo_v6"),
    ] {
        let program = load_program(object, name)?;
        let fd = program.fd().map_err(|e| other("loading the program", &e))?;
        programs
            .set(index, fd, 0)
            .map_err(|e| other(&format!("storing the program {name}"), &chain(&e)))?;
    }
    Ok(programs)
}

/// Detaches the program and removes all pins. Returns whether there were any.
///
/// # Errors
/// If a pin cannot be removed.
pub fn unload(bpffs: &Path) -> Result<bool, LoadError> {
    if !bpffs.exists() {
        return Ok(false);
    }
    let pins = pins(bpffs)?;
    for pin in &pins {
        let removed = if pin.is_dir() {
            fs::remove_dir_all(pin)
        } else {
            fs::remove_file(pin)
        };
        removed.map_err(|e| on_path("removing", pin, &e))?;
    }
    // The mount point itself cannot be removed and need not be.
    let _ = fs::remove_dir(bpffs);
    Ok(!pins.is_empty())
}

fn require_bpffs(directory: &Path) -> Result<(), LoadError> {
    /// BPF_FS_MAGIC of linux/magic.h.
    const MAGIC: i64 = 0xcafe_4a11;
    let existing = directory
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let stat = statfs(existing).map_err(|e| on_path("looking at", existing, &e.into()))?;
    if stat.filesystem_type().0 as i64 != MAGIC {
        return Err(LoadError::NoBpffs(directory.to_owned()));
    }
    Ok(())
}

/// New maps do not say anything yet.
fn require_abi(directory: &Path, settings: &Settings) -> Result<(), LoadError> {
    match settings.abi_version {
        0 | ABI_VERSION => Ok(()),
        found => Err(LoadError::OtherAbi {
            directory: directory.to_owned(),
            found,
        }),
    }
}

/// Reused maps keep the size that they have: it must be the one asked for.
fn require_sizes(directory: &Path, capacity: &Capacity) -> Result<(), LoadError> {
    for (map, wanted) in maps::sizes(capacity) {
        let pinned = maps::pinned_size(&directory.join(map))
            .map_err(|e| other(&format!("reading the pinned map {map}"), &e))?;
        match pinned {
            Some(pinned) if pinned != wanted => {
                return Err(LoadError::OtherSize {
                    map,
                    pinned,
                    wanted,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn load_object(
    options: &LoadOptions,
    map_directory: &Path,
    capacity: &Capacity,
) -> Result<Ebpf, LoadError> {
    let tick = clock::tick().map_err(|e| other("asking for the length of a tick", &e))?;
    let log_level: u8 = if options.log_drops { u8::MAX } else { 0 };
    let mut loader = EbpfLoader::new();
    loader
        .default_map_pin_directory(map_directory)
        .override_global("AYA_LOG_LEVEL", &log_level, true)
        .override_global("TICK", &tick, true);
    for (map, entries) in maps::sizes(capacity) {
        loader.map_max_entries(map, entries);
    }
    loader.load(OBJECT).map_err(|error| {
        let text = chain(&error);
        if text.contains("EPERM") || text.contains("not permitted") {
            LoadError::Permission
        } else {
            other("creating the maps", &text)
        }
    })
}

fn attach(
    program: &mut Xdp,
    options: &LoadOptions,
    name: &str,
    index: u32,
) -> Result<Attachment, LoadError> {
    let pin = link_pin(&options.bpffs, index);
    let mut attachment = Attachment {
        name: name.to_owned(),
        index,
        generic_because: None,
    };
    if pin.exists() {
        match adopt(program, &pin) {
            Ok(()) => {
                info!(interface = name, "adopted the attached program's link");
                return Ok(attachment);
            }
            Err(error) => {
                // The link of an interface that is gone; the index is another's now.
                warn!(interface = name, "cannot adopt {}: {error}", pin.display());
                fs::remove_file(&pin).map_err(|e| on_path("removing", &pin, &e))?;
            }
        }
    }
    let native = match options.policy {
        XdpPolicy::Generic => Err(None),
        _ => program
            .attach_to_if_index(index, XdpMode::Driver)
            .map_err(Some),
    };
    let link = match native {
        Ok(link) => link,
        Err(Some(error)) if is_busy(&error) => return Err(LoadError::Busy(name.to_owned())),
        Err(Some(error)) if options.policy == XdpPolicy::Native => {
            return Err(LoadError::NotNative {
                interface: name.to_owned(),
                cause: chain(&error),
            });
        }
        Err(error) => {
            let because = match &error {
                None => "asked for with --xdp-mode generic".to_owned(),
                Some(error) => format!("the driver cannot run it: {}", chain(error)),
            };
            warn!(
                interface = name,
                "XDP RUNS IN GENERIC MODE ({because}): the kernel allocates an skb for every packet \
                 first, which costs most of the speed"
            );
            attachment.generic_because = Some(because);
            match program.attach_to_if_index(index, XdpMode::Skb) {
                Ok(link) => link,
                Err(error) if is_busy(&error) => return Err(LoadError::Busy(name.to_owned())),
                Err(error) => {
                    return Err(other(&format!("attaching to {name}"), &chain(&error)));
                }
            }
        }
    };
    let pinned = program
        .take_link(link)
        .map_err(|e| chain(&e))
        .and_then(|link| FdLink::try_from(link).map_err(|e| chain(&e)))
        .and_then(|link| link.pin(&pin).map_err(|e| chain(&e)));
    match pinned {
        Ok(_) => Ok(attachment),
        Err(cause) => Err(other(&format!("pinning {}", pin.display()), &cause)),
    }
}

/// Replaces the program of a pinned link by ours.
fn adopt(program: &mut Xdp, pin: &Path) -> anyhow::Result<()> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    let id = program.attach_to_link(XdpLink::try_from(link)?)?;
    // Ours no longer: the pin alone holds it.
    drop(program.take_link(id)?);
    Ok(())
}

/// Detaches from interfaces that are no longer named.
fn release_other_links(options: &LoadOptions) {
    for pin in pins(&options.bpffs).unwrap_or_default() {
        let Some(index) = link_index(&pin) else {
            continue;
        };
        if options
            .interfaces
            .iter()
            .any(|(_, wanted)| *wanted == index)
        {
            continue;
        }
        match fs::remove_file(&pin) {
            Ok(()) => info!(index, "detached from an interface that is no longer named"),
            Err(error) => warn!("cannot remove {}: {error}", pin.display()),
        }
    }
}

fn repin_program(program: &mut Xdp, bpffs: &Path) -> Result<(), LoadError> {
    let pin = bpffs.join(PROGRAM);
    match fs::remove_file(&pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(on_path("removing", &pin, &error));
        }
        _ => {}
    }
    program
        .pin(&pin)
        .map_err(|e| other(&format!("pinning {}", pin.display()), &chain(&e)))
}

/// Maps of another ABI are of no use once no program refers to them.
fn remove_other_versions(bpffs: &Path, current: &Path) {
    for pin in pins(bpffs).unwrap_or_default() {
        if pin.is_dir() && pin != current {
            info!("removing the maps of another version: {}", pin.display());
            if let Err(error) = fs::remove_dir_all(&pin) {
                warn!("cannot remove {}: {error}", pin.display());
            }
        }
    }
}

/// Everything of ours under the directory; it may be shared with others.
fn pins(bpffs: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let entries = fs::read_dir(bpffs).map_err(|e| on_path("reading", bpffs, &e))?;
    let is_ours = |path: &PathBuf| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        let is_version = name
            .strip_prefix('v')
            .is_some_and(|n| n.parse::<u32>().is_ok());
        name == PROGRAM || is_version || link_index(path).is_some()
    };
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_ours)
        .collect())
}

fn link_pin(bpffs: &Path, index: u32) -> PathBuf {
    // Not the name: bpffs refuses names with dots.
    bpffs.join(format!("link-{index}"))
}

fn link_index(pin: &Path) -> Option<u32> {
    pin.file_name()?
        .to_str()?
        .strip_prefix("link-")?
        .parse()
        .ok()
}

fn is_permission(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn is_busy(error: &ProgramError) -> bool {
    use nix::libc::{EBUSY, EEXIST};
    match error {
        ProgramError::SyscallError(error) => {
            matches!(error.io_error.raw_os_error(), Some(EBUSY | EEXIST))
        }
        _ => false,
    }
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

fn on_path(doing: &str, path: &Path, error: &io::Error) -> LoadError {
    if is_permission(error) {
        return LoadError::Permission;
    }
    other(&format!("{doing} {}", path.display()), error)
}

fn other(context: &str, cause: &dyn std::fmt::Display) -> LoadError {
    LoadError::Other {
        context: context.to_owned(),
        cause: cause.to_string(),
    }
}

/// An error with all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_another_version_are_not_reused() {
        let require = |abi_version| {
            let settings = Settings {
                abi_version,
                ..Settings::default()
            };
            require_abi(Path::new("/sys/fs/bpf/lb/v1"), &settings)
        };
        require(0).unwrap();
        require(ABI_VERSION).unwrap();
        let error = require(ABI_VERSION + 1).unwrap_err().to_string();
        assert!(error.contains("lb-ctl down"), "{error}");
    }
}
