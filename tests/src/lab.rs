//! A lab: namespaces on one machine, and their end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};

use crate::command::ip;
use crate::{Host, Segment, XdpAction, leftovers, xdp};

/// Where `ip netns` keeps namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";
/// Where labs keep their files.
pub(crate) const LABS_DIR: &str = "/run/lb-lab";

/// A set of namespaces on one machine. Dropping it removes everything:
/// processes first, then mounts, namespaces and files.
#[derive(Debug)]
pub struct Lab {
    id: String,
    dir: PathBuf,
    bpffs: PathBuf,
    segments: AtomicU8,
    /// Whether dropping it removes it.
    guarded: bool,
}

impl Lab {
    /// Makes a lab whose id is unique: `lb-NAME-PID-COUNTER`.
    ///
    /// # Errors
    /// Without root, or when the kernel has no bpffs or no XDP.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self::with_id(&format!("lb-{name}-{}-{number}", std::process::id()))
    }

    /// Makes a lab with a given id, which must begin with `lb-`.
    ///
    /// # Errors
    /// As [`Self::new`], and when there is such a lab already.
    pub fn with_id(id: &str) -> anyhow::Result<Self> {
        static SWEEP: Once = Once::new();
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "a lab of network namespaces needs root: use `cargo xtask test`, which asks for it, or sudo"
            );
        }
        if !id.starts_with("lb-") || id.contains(['/', '.']) {
            bail!("the lab id {id:?} must begin with \"lb-\" and hold neither slash nor dot");
        }
        SWEEP.call_once(leftovers::remove_ownerless);
        let dir = leftovers::create_dir(id)?;
        // From here on the guard cleans up, also when a step below fails.
        let lab = Self {
            id: id.to_owned(),
            bpffs: dir.join("bpf"),
            dir,
            segments: AtomicU8::new(0),
            guarded: true,
        };
        fs::create_dir(&lab.bpffs)?;
        mount(
            Some("bpf"),
            &lab.bpffs,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount a bpffs at {}", lab.bpffs.display()))?;
        Ok(lab)
    }

    /// Opens a lab that another process made and left. Dropping it changes
    /// nothing.
    pub fn open(id: &str) -> anyhow::Result<Self> {
        let dir = Path::new(LABS_DIR).join(id);
        if !dir.is_dir() {
            bail!("there is no lab {id}: {} does not exist", dir.display());
        }
        Ok(Self {
            id: id.to_owned(),
            bpffs: dir.join("bpf"),
            dir,
            segments: AtomicU8::new(0),
            guarded: false,
        })
    }

    /// Ends the processes of a lab and removes its mounts, namespaces and
    /// files. What is gone already is no error.
    pub fn remove(id: &str) -> anyhow::Result<()> {
        leftovers::remove(id)
    }

    /// The id, with which the names of its namespaces begin.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Directory for the lab's files: configurations, sockets, logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A bpffs of the lab's own. Unmounting it releases what is pinned there.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Makes an Ethernet segment.
    pub fn segment(&self, name: &str) -> anyhow::Result<Segment> {
        let number = self.segments.fetch_add(1, Ordering::Relaxed);
        let namespace = self.add_namespace(name)?;
        let switch = Host::new(name, &namespace, &self.dir)?;
        let pass = self.xdp_program(XdpAction::Pass)?;
        Segment::new(switch, number, &pass)
            .with_context(|| format!("cannot make the segment {name}"))
    }

    /// Makes a host: a namespace with `lo` up, the kernel's default ARP
    /// behaviour whatever the machine's own settings, and no duplicate
    /// address detection (which would make every address wait for seconds).
    pub fn host(&self, name: &str) -> anyhow::Result<Host> {
        let namespace = self.add_namespace(name)?;
        let host = Host::new(name, &namespace, &self.dir)?;
        for conf in ["all", "default"] {
            for key in ["arp_ignore", "arp_announce", "rp_filter"] {
                host.set_sysctl(&format!("net.ipv4.conf.{conf}.{key}"), 0)?;
            }
            for key in ["accept_dad", "accept_ra"] {
                host.set_sysctl(&format!("net.ipv6.conf.{conf}.{key}"), 0)?;
            }
        }
        host.run("ip", ["link", "set", "dev", "lo", "up"])?;
        Ok(host)
    }

    /// Path of a pinned XDP program that does the same with every packet, for
    /// `ip link set dev IFNAME xdpdrv pinned PATH`.
    pub fn xdp_program(&self, action: XdpAction) -> anyhow::Result<PathBuf> {
        let path = self.bpffs.join(format!("{action:?}").to_lowercase());
        if !path.exists() {
            xdp::load_and_pin(&path, action)?;
        }
        Ok(path)
    }

    /// A host that exists, for a lab from [`Self::open`].
    pub fn existing_host(&self, name: &str) -> anyhow::Result<Host> {
        let names = self.host_names()?;
        if !names.iter().any(|n| n == name) {
            bail!(
                "the lab {} has no host {name}; it has: {}",
                self.id,
                names.join(", ")
            );
        }
        Host::new(name, &self.namespace(name), &self.dir)
    }

    /// Names of the lab's namespaces, hosts and segments, sorted.
    pub fn host_names(&self) -> anyhow::Result<Vec<String>> {
        leftovers::host_names(&self.id)
    }

    /// Lets the lab outlive this process; [`Self::remove`] ends it.
    pub fn persist(mut self) -> anyhow::Result<()> {
        leftovers::disown(&self.dir)?;
        self.guarded = false;
        Ok(())
    }

    fn add_namespace(&self, name: &str) -> anyhow::Result<String> {
        let namespace = self.namespace(name);
        // The first `ip netns add` of a machine makes a mount point of
        // NETNS_DIR; two at once get in each other's way.
        let lock = fs::File::create(Path::new(LABS_DIR).join(".lock"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
        ip(["netns", "add", &namespace])?;
        Ok(namespace)
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}.{name}", self.id)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.guarded {
            return;
        }
        if let Err(e) = leftovers::remove(&self.id) {
            eprintln!("cannot remove the lab {}: {e:#}", self.id);
        }
    }
}
