//! What a lab leaves in the system, how it is found and removed.
//!
//! A lab is known by its directory, /run/lb-lab/ID, and by its namespaces,
//! ID.HOST. The directory names the process that owns it, so that a later run
//! can tell what a killed one left behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::ip;
use crate::lab::{LABS_DIR, NETNS_DIR};
use crate::try_eventually;

const OWNER: &str = "owner";
/// Owner of a lab that was left on purpose.
const KEPT: &str = "kept";

/// Makes the directory of a lab, owned by this process.
pub(crate) fn create_dir(id: &str) -> anyhow::Result<PathBuf> {
    let dir = Path::new(LABS_DIR).join(id);
    // Under a hidden name until the owner stands in it: nobody ever sees a
    // lab without owner.
    let unborn = Path::new(LABS_DIR).join(format!(".{id}.{}", std::process::id()));
    fs::create_dir_all(&unborn).with_context(|| format!("cannot make {}", unborn.display()))?;
    fs::write(unborn.join(OWNER), owner_text(std::process::id())?)?;
    let named = if dir.exists() {
        Err(std::io::Error::other("there is such a lab already"))
    } else {
        fs::rename(&unborn, &dir)
    };
    if let Err(e) = named {
        fs::remove_dir_all(&unborn)?;
        bail!("cannot make the lab {id} at {}: {e}", dir.display());
    }
    Ok(dir)
}

/// Marks a lab as left on purpose.
pub(crate) fn disown(dir: &Path) -> anyhow::Result<()> {
    fs::write(dir.join(OWNER), KEPT).context("cannot mark the lab as kept")
}

/// Names of the lab's namespaces without the lab's id, sorted.
pub(crate) fn host_names(id: &str) -> anyhow::Result<Vec<String>> {
    let prefix = format!("{id}.");
    let mut names = Vec::new();
    for name in entries(Path::new(NETNS_DIR))? {
        if let Some(host) = name.strip_prefix(&prefix) {
            names.push(host.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Removes every lab whose owner no longer lives. Failures are reported, not
/// returned: they need not hinder a new lab.
pub(crate) fn remove_ownerless() {
    let ids = entries(Path::new(LABS_DIR)).unwrap_or_default();
    for id in ids.iter().filter(|id| id.starts_with("lb-")) {
        let owner = fs::read_to_string(Path::new(LABS_DIR).join(id).join(OWNER));
        let abandoned = owner.is_ok_and(|owner| owner != KEPT && !lives(&owner));
        if abandoned && let Err(e) = remove(id) {
            eprintln!("cannot remove the lab {id} that an earlier run left: {e:#}");
        }
    }
}

/// Removes a lab, see [`crate::Lab::remove`].
pub(crate) fn remove(id: &str) -> anyhow::Result<()> {
    let hosts = host_names(id)?;
    let namespaces: Vec<String> = hosts.iter().map(|host| format!("{id}.{host}")).collect();
    let mut problems = Vec::new();
    // Each step is tried, whatever became of the one before.
    let mut attempt = |result: anyhow::Result<()>| {
        if let Err(e) = result {
            problems.push(format!("{e:#}"));
        }
    };
    attempt(end_processes(&namespaces));
    let dir = Path::new(LABS_DIR).join(id);
    let mounted = unmount(&dir.join("bpf"));
    let unmounted = mounted.is_ok();
    attempt(mounted);
    for namespace in &namespaces {
        attempt(ip(["netns", "delete", namespace]).map(drop));
    }
    if unmounted {
        attempt(match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", dir.display()))
            }
            _ => Ok(()),
        });
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("; "));
    }
    Ok(())
}

/// Ends all processes that run in these namespaces.
fn end_processes(namespaces: &[String]) -> anyhow::Result<()> {
    let namespaces = inodes(namespaces);
    for (signal, patience) in [(Signal::SIGTERM, 2), (Signal::SIGKILL, 10)] {
        for pid in processes_in(&namespaces)? {
            match kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => bail!("cannot end process {pid}: {e}"),
            }
        }
        let gone = try_eventually(
            "end of the lab's processes",
            Duration::from_secs(patience),
            || processes_in(&namespaces).is_ok_and(|left| left.is_empty()),
        );
        if gone.is_ok() {
            return Ok(());
        }
    }
    bail!(
        "processes outlive SIGKILL: {:?}",
        processes_in(&namespaces)?
    )
}

/// Device and inode of each namespace that exists.
fn inodes(namespaces: &[String]) -> BTreeSet<(u64, u64)> {
    namespaces
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NETNS_DIR).join(name)).ok())
        .map(|metadata| (metadata.dev(), metadata.ino()))
        .collect()
}

/// Processes other than this one whose network namespace is one of these.
fn processes_in(namespaces: &BTreeSet<(u64, u64)>) -> anyhow::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for name in entries(Path::new("/proc"))? {
        let Ok(pid) = name.parse::<u32>() else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        // Processes end while one looks, and a zombie has no namespace.
        let Ok(metadata) = fs::metadata(format!("/proc/{pid}/ns/net")) else {
            continue;
        };
        if namespaces.contains(&(metadata.dev(), metadata.ino())) {
            found.push(Pid::from_raw(pid.cast_signed()));
        }
    }
    Ok(found)
}

fn unmount(bpffs: &Path) -> anyhow::Result<()> {
    loop {
        match umount2(bpffs, MntFlags::MNT_DETACH) {
            // Mounts can lie upon each other.
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(e) => bail!("cannot unmount {}: {e}", bpffs.display()),
        }
    }
}

/// Process id and start time: ids are used again, the pair is not.
fn owner_text(pid: u32) -> anyhow::Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets, with spaces and
    // brackets in it as it likes; the start time is the 22nd.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    if after_name.trim_start().starts_with('Z') {
        bail!("process {pid} has ended");
    }
    let start = after_name.split_whitespace().nth(19);
    Ok(format!(
        "{pid} {}",
        start.context("unreadable /proc/PID/stat")?
    ))
}

fn lives(owner: &str) -> bool {
    owner
        .split_once(' ')
        .and_then(|(pid, _)| pid.parse().ok())
        .and_then(|pid| owner_text(pid).ok())
        .is_some_and(|now| now == owner)
}

fn entries(dir: &Path) -> anyhow::Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labs_of_ended_processes_are_removed() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = format!("{} 1", child.id());
        child.wait().unwrap();
        let own = std::process::id();
        let make = |name: &str, owner: &str| {
            let dir = create_dir(&format!("lb-{name}-{own}")).unwrap();
            fs::write(dir.join(OWNER), owner).unwrap();
            dir
        };
        let abandoned = make("abandoned", &ended);
        let owned = make("owned", &owner_text(own).unwrap());
        // The number is in use again, by a process that started later.
        let reused = make("reused", &format!("{own} 1"));
        let kept = make("keep", KEPT);
        remove_ownerless();
        let left = [&abandoned, &owned, &reused, &kept].map(|dir| dir.exists());
        for dir in [abandoned, owned, reused, kept] {
            remove(dir.file_name().unwrap().to_str().unwrap()).unwrap();
        }
        assert_eq!(left, [false, true, false, true]);
    }
}
