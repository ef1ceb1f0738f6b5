//! A host: a network namespace and what can be done in it.

use std::ffi::{CString, OsStr};
use std::fs;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use serde_json::Value;

use crate::command::run;
use crate::{Mac, Process, Segment};

/// A host of a lab: a network namespace. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    namespace: String,
    path: PathBuf,
    c_path: CString,
    lab_dir: PathBuf,
}

impl Host {
    /// The namespace must exist.
    pub(crate) fn new(name: &str, namespace: &str, lab_dir: &Path) -> anyhow::Result<Self> {
        let path = Path::new(crate::lab::NETNS_DIR).join(namespace);
        let c_path = CString::new(path.as_os_str().as_bytes())?;
        Ok(Self(Arc::new(Inner {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            path,
            c_path,
            lab_dir: lab_dir.to_owned(),
        })))
    }

    /// The host's name within its lab.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Name of the namespace, as `ip netns` knows it.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The file that stands for the namespace.
    pub fn namespace_path(&self) -> &Path {
        &self.0.path
    }

    /// Connects the host to a segment: a veth named `ifname`, up, with these
    /// addresses (`address/prefix`), checksums finished in software, and a MAC
    /// address that is the same in every lab that is built in the same order.
    pub fn attach(
        &self,
        segment: &Segment,
        ifname: &str,
        addresses: &[&str],
    ) -> anyhow::Result<Mac> {
        let mac = segment.next_mac();
        self.attach_with_mac(segment, ifname, addresses, mac)?;
        Ok(mac)
    }

    /// Like [`Self::attach`], with a given MAC address.
    pub fn attach_with_mac(
        &self,
        segment: &Segment,
        ifname: &str,
        addresses: &[&str],
        mac: Mac,
    ) -> anyhow::Result<()> {
        let port = segment.add_veth(self, ifname, mac)?;
        // Frames of local sockets would otherwise carry unfinished checksums,
        // which XDP forwards as they are and the receiver then drops.
        self.run("ethtool", ["-K", ifname, "tx", "off"])?;
        let mut lines = vec![format!("link set dev {ifname} up")];
        lines.extend(addresses.iter().map(|a| address_line(ifname, a)));
        self.ip_batch(&lines)?;
        segment.connect(&port)
    }

    /// Adds an address (`address/prefix`) to an interface, without duplicate
    /// address detection.
    pub fn add_address(&self, ifname: &str, address: &str) -> anyhow::Result<()> {
        self.ip_batch(&[address_line(ifname, address)])
    }

    /// Runs `ip` once with these command lines, until one fails. Starting a
    /// program is what takes longest in an emulated machine.
    pub(crate) fn ip_batch(&self, lines: &[String]) -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new_in(&self.0.lab_dir)?;
        fs::write(&file, lines.join("\n") + "\n")?;
        let args = [OsStr::new("-batch"), file.path().as_os_str()];
        let ran = self.run("ip", args).map(drop);
        ran.with_context(|| lines.join("\n"))
    }

    /// A command that will run in the host's network namespace; everything
    /// else (files, PATH, mounts) is the machine's own. In particular /sys is:
    /// a program that looks into /sys/class/net sees the wrong interfaces, and
    /// one that pins in /sys/fs/bpf leaves things behind.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let inner = Arc::clone(&self.0);
        let enter = move || {
            // Inherited across exec: a program started by somebody who waits
            // for signals on a thread of its own would never hear of SIGTERM.
            SigSet::empty().thread_set_mask()?;
            inner.enter().map_err(std::io::Error::from)
        };
        // SAFETY: between fork and exec only open(2), setns(2), close(2) and
        // pthread_sigmask(3) are called, which are async-signal-safe, and
        // nothing is allocated.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program in the host to its end and returns its standard output.
    ///
    /// # Errors
    /// When it does not succeed: with command line, status and all output.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<String> {
        run(self.command(program).args(args)).with_context(|| format!("on host {}", self.0.name))
    }

    /// Starts a program that goes on running, made by [`Self::command`]. Its
    /// output goes to `HOST-NAME.log` in the lab's directory.
    pub fn spawn(&self, command: Command, log_name: &str) -> anyhow::Result<Process> {
        let file = format!("{}-{log_name}.log", self.0.name);
        Process::start(command, &self.0.lab_dir.join(file))
            .with_context(|| format!("on host {}", self.0.name))
    }

    /// Runs `closure` on a thread of its own inside the namespace: sockets
    /// opened there belong to the host for as long as they live.
    ///
    /// # Panics
    /// When the closure does, or when the namespace is gone.
    pub fn in_namespace<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> T {
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.0.enter().unwrap_or_else(|e| {
                        panic!("cannot enter the namespace {}: {e}", self.0.namespace)
                    });
                    closure()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Reads a sysctl such as `net.ipv4.conf.eth0.arp_ignore`. Write slashes
    /// for dots where an interface name has a dot.
    pub fn sysctl(&self, key: &str) -> anyhow::Result<String> {
        let path = sysctl_path(key);
        self.in_namespace(|| fs::read_to_string(&path))
            .map(|value| value.trim_end().to_owned())
            .with_context(|| format!("cannot read {} on {}", path.display(), self.0.name))
    }

    /// Sets a sysctl, see [`Self::sysctl`].
    pub fn set_sysctl(&self, key: &str, value: impl ToString) -> anyhow::Result<()> {
        let (path, value) = (sysctl_path(key), value.to_string());
        self.in_namespace(|| fs::write(&path, &value))
            .with_context(|| {
                format!(
                    "cannot write {value} to {} on {}",
                    path.display(),
                    self.0.name
                )
            })
    }

    /// The MAC address in the host's neighbour table, whatever the entry's state.
    pub fn neighbour(&self, ip: IpAddr, ifname: &str) -> anyhow::Result<Option<Mac>> {
        let ip = ip.to_string();
        let text = self.run("ip", ["-json", "neighbour", "show", &ip, "dev", ifname])?;
        let entries: Value = serde_json::from_str(&text)?;
        entries[0]["lladdr"].as_str().map(str::parse).transpose()
    }

    /// Empties the neighbour tables, IPv4 and IPv6.
    pub fn flush_neighbours(&self) -> anyhow::Result<()> {
        self.run("ip", ["-4", "neighbour", "flush", "all"])?;
        self.run("ip", ["-6", "neighbour", "flush", "all"])?;
        Ok(())
    }

    /// The MAC address of one of the host's interfaces.
    pub fn mac(&self, ifname: &str) -> anyhow::Result<Mac> {
        self.link(ifname)?["address"]
            .as_str()
            .with_context(|| format!("{ifname} has no MAC address"))?
            .parse()
    }

    /// What `ip -json -details link show` says of an interface.
    pub fn link(&self, ifname: &str) -> anyhow::Result<Value> {
        let text = self.run("ip", ["-json", "-details", "link", "show", "dev", ifname])?;
        let mut links: Value = serde_json::from_str(&text)?;
        Ok(links[0].take())
    }
}

impl Inner {
    /// Moves the calling thread into the namespace. Opens the namespace anew
    /// each time: a descriptor that is kept would keep the namespace alive
    /// after the lab.
    fn enter(&self) -> nix::Result<()> {
        let namespace = open(
            self.c_path.as_c_str(),
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        setns(namespace, CloneFlags::CLONE_NEWNET)
    }
}

fn address_line(ifname: &str, address: &str) -> String {
    let detection = if address.contains(':') { " nodad" } else { "" };
    format!("address add {address} dev {ifname}{detection}")
}

fn sysctl_path(key: &str) -> PathBuf {
    let key = if key.contains('/') {
        key.to_owned()
    } else {
        key.replace('.', "/")
    };
    Path::new("/proc/sys").join(key)
}
