//! Our programs in the kernel: loading, pinning, attaching, looking at them.
//!
//! Under the bpffs directory stand `v<ABI_VERSION>/<MAP>` for each map, and
//! `arriving-<index>` and `leaving-<index>` for each interface that a program
//! is attached to. What is pinned works on without `lb-agent`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::links::{FdLink, Link as _, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::xdp::XdpLink;
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode, loaded_programs, tc,
};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use lb_common::tunnel::{Counter, DropReason, TunnelSettings, role};
use lb_common::{ABI_VERSION, Address};

use crate::facts::Link;
use crate::prefix::Prefix;
use crate::tunnel::contents::Contents;

/// The programs, built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_BACKEND_OBJECT"));

/// Priority and handle of our filter where there is no tcx (before Linux 6.6).
pub const FILTER_PRIORITY: u16 = 0x6c62;
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 1);

/// Where a program is attached on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// XDP: packets from directors.
    Arriving,
    /// tc egress: SYN-ACKs.
    Leaving,
}

impl Hook {
    /// Name of the program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Arriving => "lb_decapsulate",
            Self::Leaving => "lb_mss",
        }
    }

    const fn pin(self) -> &'static str {
        match self {
            Self::Arriving => "arriving",
            Self::Leaving => "leaving",
        }
    }
}

/// What was found of our programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programs {
    /// Whether the directory is on a bpffs.
    pub has_bpffs: bool,
    /// What the maps say; none if there are no maps.
    pub contents: Option<Contents>,
    /// Where programs are attached and at work, by interface name.
    pub attached: BTreeSet<(Hook, String)>,
    /// Whether what leaves is held by tc filters, one by one: where there is no
    /// tcx. They keep their program when that of the links is replaced.
    pub by_filter: bool,
    /// XDP programs on interfaces that are not lb-agent's, by name of the
    /// interface. One of ours that nothing pins is about to go.
    pub foreign: BTreeMap<String, u32>,
    /// Whether anything of ours is pinned.
    pub is_pinned: bool,
    /// By [`Counter::name`].
    pub counters: BTreeMap<&'static str, u64>,
    /// By [`DropReason::name`].
    pub drops: BTreeMap<&'static str, u64>,
}

/// Whether the kernel has tcx links, which can be pinned.
pub fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// Identifies the embedded object (FNV-1a).
pub fn build() -> u32 {
    OBJECT.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

/// A directory on a bpffs with our pins.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The directory need not exist yet.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Looks at what is there. `filtered`: indices of the interfaces that have
    /// our filter, where there is no tcx.
    ///
    /// # Errors
    /// Without the privileges to look.
    pub fn observe(&self, links: &[Link], filtered: &BTreeSet<u32>) -> anyhow::Result<Programs> {
        let mut found = Programs {
            has_bpffs: is_on_bpffs(&self.directory),
            by_filter: !has_tcx(),
            is_pinned: !self.pins().is_empty(),
            ..Programs::default()
        };
        for link in links {
            let id = self.linked_program(Hook::Arriving, link.index);
            if id.is_some() && id == link.xdp.map(|xdp| xdp.program) {
                found.attached.insert((Hook::Arriving, link.name.clone()));
            }
            if let Some(xdp) = link.xdp.filter(|xdp| Some(xdp.program) != id)
                && !is_named(xdp.program, Hook::Arriving.program())
            {
                found.foreign.insert(link.name.clone(), xdp.program);
            }
            let leaves = if has_tcx() {
                self.linked_program(Hook::Leaving, link.index)
                    .is_some_and(|id| has_tcx_program(&link.name, id))
            } else {
                filtered.contains(&link.index)
            };
            if leaves {
                found.attached.insert((Hook::Leaving, link.name.clone()));
            }
        }
        if !self.maps().exists() {
            return Ok(found);
        }
        let failed = || {
            format!(
                "cannot read the maps in {}; if they are not lb-agent's, name another \
                 directory: --bpffs DIR",
                self.maps().display()
            )
        };
        self.read_maps(&mut found).with_context(failed)?;
        Ok(found)
    }

    /// Loads the programs if they are not, tells them what they must know, and
    /// puts them in the place of older ones that links hold.
    pub fn write(&self, contents: &Contents) -> anyhow::Result<()> {
        let mut object = self.load()?;
        // Until every link has its new program, the build is nobody's: were we
        // killed before, the next `lb-agent` would take the old ones for ours.
        let unfinished = Contents {
            build: 0,
            ..contents.clone()
        };
        write_maps(&mut object, &unfinished).context("cannot write the programs' maps")?;
        for (hook, index, pin) in self.links() {
            // A link whose interface is gone is of no use any more.
            if adopt(&mut object, hook, &pin).is_err() {
                tracing::debug!(index, "removing a link that is dead: {}", pin.display());
                remove_file(&pin)?;
            }
        }
        write_settings(&mut object, contents).context("cannot write the programs' settings")
    }

    /// Attaches a program. The note says what is not as good as it could be.
    pub fn attach(&self, hook: Hook, link: &Link) -> anyhow::Result<Option<String>> {
        let mut object = self.load()?;
        let pin = self.pin(hook, link.index);
        remove_file(&pin)?;
        match hook {
            Hook::Arriving => attach_xdp(&mut object, link, &pin),
            Hook::Leaving => attach_tc(&mut object, link, &pin).map(|()| None),
        }
        .with_context(|| format!("cannot attach {} to {}", hook.program(), link.name))
    }

    /// Detaches a program.
    pub fn detach(&self, hook: Hook, link: &Link) -> anyhow::Result<()> {
        remove_file(&self.pin(hook, link.index))?;
        if hook == Hook::Leaving && !has_tcx() {
            filter(link)?
                .detach()
                .with_context(|| format!("cannot detach {} from {}", hook.program(), link.name))?;
        }
        Ok(())
    }

    /// Removes all that is pinned, which detaches what is attached.
    pub fn remove(&self) -> anyhow::Result<()> {
        for pin in self.pins() {
            if pin.is_dir() {
                fs::remove_dir_all(&pin)
            } else {
                fs::remove_file(&pin)
            }
            .with_context(|| format!("cannot remove {}", pin.display()))?;
        }
        // A mount point cannot be removed and need not be.
        let _ = fs::remove_dir(&self.directory);
        Ok(())
    }

    fn maps(&self) -> PathBuf {
        self.directory.join(format!("v{ABI_VERSION}"))
    }

    fn pin(&self, hook: Hook, index: u32) -> PathBuf {
        // Not the name: bpffs refuses names with dots.
        self.directory.join(format!("{}-{index}", hook.pin()))
    }

    fn links(&self) -> Vec<(Hook, u32, PathBuf)> {
        let pins = self.pins();
        pins.into_iter()
            .filter_map(|pin| {
                let name = pin.file_name()?.to_str()?;
                let (hook, index) = name.split_once('-')?;
                let hook = [Hook::Arriving, Hook::Leaving]
                    .into_iter()
                    .find(|h| h.pin() == hook)?;
                Some((hook, index.parse().ok()?, pin))
            })
            .collect()
    }

    /// Everything of ours; the directory may be shared with others.
    fn pins(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.unwrap_or_default();
            let is_number = |text: &str| text.parse::<u32>().is_ok();
            name.strip_prefix('v').is_some_and(is_number)
                || [Hook::Arriving, Hook::Leaving].iter().any(|hook| {
                    let rest = name.strip_prefix(hook.pin());
                    rest.and_then(|r| r.strip_prefix('-'))
                        .is_some_and(is_number)
                })
        };
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(is_ours)
            .collect()
    }

    /// The program that a pinned link holds.
    fn linked_program(&self, hook: Hook, index: u32) -> Option<u32> {
        let pin = self.pin(hook, index);
        if !pin.exists() {
            return None;
        }
        let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
        Some(link.info().ok()?.program_id())
    }

    fn load(&self) -> anyhow::Result<Ebpf> {
        let directory = &self.directory;
        if !is_on_bpffs(directory) {
            bail!(no_bpffs(directory));
        }
        let maps = self.maps();
        fs::create_dir_all(&maps).with_context(|| format!("cannot make {}", maps.display()))?;
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(&maps)
            .load(OBJECT)
            .context("cannot make the programs' maps")?;
        for hook in [Hook::Arriving, Hook::Leaving] {
            let name = hook.program();
            let program = object.program_mut(name);
            let program = program.ok_or_else(|| anyhow!("the BPF object has no {name}"))?;
            match hook {
                Hook::Arriving => <&mut Xdp>::try_from(program)?.load(),
                Hook::Leaving => <&mut SchedClassifier>::try_from(program)?.load(),
            }
            .with_context(|| format!("the kernel refused {name} (Linux 6.1 or later is needed)"))?;
        }
        Ok(object)
    }

    fn read_maps(&self, found: &mut Programs) -> anyhow::Result<()> {
        let open = |name: &str| MapData::from_pin(self.maps().join(name));
        let settings = Array::<_, TunnelSettings>::try_from(Map::Array(open("SETTINGS")?))?;
        let settings = settings.get(&0, 0)?;
        let directors = LpmTrie::<_, Address, u32>::try_from(Map::LpmTrie(open("DIRECTORS")?))?;
        let directors: Result<Vec<_>, MapError> = directors.keys().collect();
        let addresses = |name: &str| -> anyhow::Result<BTreeSet<IpAddr>> {
            let map = HashMap::<_, Address, u32>::try_from(Map::HashMap(open(name)?))?;
            let keys: Result<Vec<Address>, MapError> = map.keys().collect();
            Ok(keys?.into_iter().map(IpAddr::from).collect())
        };
        if settings.abi_version == ABI_VERSION {
            found.contents = Some(Contents {
                build: settings.build,
                only_filters: settings.role == role::FILTER,
                mss_v4: settings.mss_v4,
                mss_v6: settings.mss_v6,
                directors: directors?.iter().filter_map(prefix).collect(),
                vips: addresses("VIPS")?,
                locals: addresses("LOCALS")?,
            });
        }
        let numbers = |name: &str| {
            let map = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(open(name)?))?;
            anyhow::Ok(move |index: u32| anyhow::Ok(map.get(&index, 0)?.iter().sum::<u64>()))
        };
        let counters = numbers("COUNTERS")?;
        for counter in Counter::ALL {
            let count = counters(*counter as u32)?;
            found.counters.insert(counter.name(), count);
        }
        let drops = numbers("DROPS")?;
        for reason in DropReason::ALL {
            found.drops.insert(reason.name(), drops(*reason as u32)?);
        }
        Ok(())
    }
}

/// Says that a directory is not on a bpffs, and what to do about it.
pub fn no_bpffs(directory: &Path) -> String {
    format!(
        "{} is not on a BPF file system, where the programs must be pinned so that they \
         outlive lb-agent",
        directory.display()
    )
}

fn is_on_bpffs(directory: &Path) -> bool {
    let existing = directory.ancestors().find(|path| path.exists());
    let stat = nix::sys::statfs::statfs(existing.unwrap_or(Path::new("/")));
    stat.is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

fn is_named(program: u32, name: &str) -> bool {
    let mut programs = loaded_programs().filter_map(Result::ok);
    programs.any(|p| p.id() == program && p.name() == name.as_bytes())
}

fn has_tcx_program(interface: &str, id: u32) -> bool {
    SchedClassifier::query_tcx(interface, TcAttachType::Egress)
        .is_ok_and(|(_, programs)| programs.iter().any(|program| program.id() == id))
}

fn write_maps(object: &mut Ebpf, contents: &Contents) -> anyhow::Result<()> {
    let mut take = |name: &str| {
        let map = object.take_map(name);
        map.ok_or_else(|| anyhow!("the BPF object has no map {name}"))
    };
    let mut directors = LpmTrie::<_, Address, u32>::try_from(take("DIRECTORS")?)?;
    let wanted: BTreeMap<(u32, [u64; 2]), Key<Address>> = contents
        .directors
        .iter()
        .map(|prefix| key(*prefix))
        .map(|key| (bits(&key), key))
        .collect();
    let old: Result<Vec<Key<Address>>, MapError> = directors.keys().collect();
    for key in wanted.values() {
        directors.insert(key, 0, 0)?;
    }
    for key in old?.iter().filter(|key| !wanted.contains_key(&bits(key))) {
        directors.remove(key)?;
    }
    for (name, wanted) in [("VIPS", &contents.vips), ("LOCALS", &contents.locals)] {
        let mut map = HashMap::<_, Address, u32>::try_from(take(name)?)?;
        let old: Result<Vec<Address>, MapError> = map.keys().collect();
        for address in wanted {
            map.insert(Address::from(*address), 0, 0)?;
        }
        for address in old? {
            if !wanted.contains(&IpAddr::from(address)) {
                map.remove(&address)?;
            }
        }
    }
    // Last: until it is there, nothing above counts as written.
    write_settings(object, contents)
}

fn write_settings(object: &mut Ebpf, contents: &Contents) -> anyhow::Result<()> {
    let map = object.map_mut("SETTINGS").context("no map SETTINGS")?;
    let mut settings = Array::<_, TunnelSettings>::try_from(map)?;
    let role = if contents.only_filters {
        role::FILTER
    } else {
        role::DECAPSULATE
    };
    let value = TunnelSettings {
        abi_version: ABI_VERSION,
        build: contents.build,
        role,
        mss_v4: contents.mss_v4,
        mss_v6: contents.mss_v6,
    };
    settings.set(0, value, 0)?;
    Ok(())
}

/// An IPv4 prefix is one of mapped addresses.
fn key(prefix: Prefix) -> Key<Address> {
    let mapped = if prefix.is_ipv4() { 96 } else { 0 };
    let length = mapped + u32::from(prefix.length());
    Key::new(length, Address::from(prefix.address()))
}

fn prefix(key: &Key<Address>) -> Option<Prefix> {
    let address = IpAddr::from(key.data());
    let mapped = if address.is_ipv4() { 96 } else { 0 };
    let length = key.prefix_len().checked_sub(mapped)?;
    Prefix::new(address, u8::try_from(length).ok()?).ok()
}

fn bits(key: &Key<Address>) -> (u32, [u64; 2]) {
    (key.prefix_len(), key.data().words)
}

/// Replaces the program of a pinned link by ours.
fn adopt(object: &mut Ebpf, hook: Hook, pin: &Path) -> anyhow::Result<()> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    let program = object.program_mut(hook.program());
    let program = program.ok_or_else(|| anyhow!("no program"))?;
    // Ours no longer once it is taken out: the pin alone holds the link.
    match hook {
        Hook::Arriving => {
            let program = <&mut Xdp>::try_from(program)?;
            let id = program.attach_to_link(XdpLink::try_from(link)?)?;
            drop(program.take_link(id)?);
        }
        Hook::Leaving => {
            let program = <&mut SchedClassifier>::try_from(program)?;
            let id = program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
            drop(program.take_link(id)?);
        }
    }
    Ok(())
}

fn attach_xdp(object: &mut Ebpf, link: &Link, pin: &Path) -> anyhow::Result<Option<String>> {
    let program = object.program_mut(Hook::Arriving.program());
    let program = <&mut Xdp>::try_from(program.ok_or_else(|| anyhow!("no program"))?)?;
    let mut attempt = program.attach_to_if_index(link.index, XdpMode::Driver);
    // A link whose pin was removed goes only after a moment.
    let patience = Instant::now() + Duration::from_secs(2);
    while attempt.as_ref().is_err_and(is_busy) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
        attempt = program.attach_to_if_index(link.index, XdpMode::Driver);
    }
    let (id, note) = match attempt {
        Ok(id) => (id, None),
        Err(error) if is_busy(&error) => {
            return Err(anyhow!(error).context("another XDP program is in the way"));
        }
        Err(error) => {
            let cause = anyhow!(error);
            let note = format!(
                "XDP RUNS IN GENERIC MODE on {}, which is slower: the driver cannot run it: \
                 {cause:#}",
                link.name
            );
            tracing::warn!("{note}");
            (
                program.attach_to_if_index(link.index, XdpMode::Skb)?,
                Some(note),
            )
        }
    };
    FdLink::try_from(program.take_link(id)?)?.pin(pin)?;
    Ok(note)
}

fn attach_tc(object: &mut Ebpf, link: &Link, pin: &Path) -> anyhow::Result<()> {
    let program = object.program_mut(Hook::Leaving.program());
    let program = <&mut SchedClassifier>::try_from(program.ok_or_else(|| anyhow!("no program"))?)?;
    if has_tcx() {
        // The first: one before it could end the way of the packet.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(&link.name, TcAttachType::Egress, order)?;
        FdLink::try_from(program.take_link(id)?)?.pin(pin)?;
        return Ok(());
    }
    // There already, for us or somebody else: the filter says if not.
    let _ = tc::qdisc_add_clsact(&link.name);
    let id = match program.attach_to_link(filter(link)?) {
        Ok(replaced) => replaced,
        // There is none yet; whatever else it was, the next attempt says.
        Err(_) => {
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: FILTER_PRIORITY,
                handle: FILTER_HANDLE,
                classid: None,
            });
            program.attach_with_options(&link.name, TcAttachType::Egress, options)?
        }
    };
    // Dropping the link would detach the filter.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Our filter on an interface, whether it is there or not.
fn filter(link: &Link) -> io::Result<SchedClassifierLink> {
    let direction = TcAttachType::Egress;
    SchedClassifierLink::attached(&link.name, direction, FILTER_PRIORITY, FILTER_HANDLE, None)
}

fn is_busy(error: &ProgramError) -> bool {
    const EEXIST: i32 = 17;
    const EBUSY: i32 = 16;
    match error {
        ProgramError::SyscallError(error) => {
            matches!(error.io_error.raw_os_error(), Some(EBUSY | EEXIST))
        }
        _ => false,
    }
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_survive_the_map() {
        for text in [
            "192.0.2.0/24",
            "192.0.2.2",
            "2001:db8::/64",
            "2001:db8::2",
            "0.0.0.0/0",
        ] {
            let expected: Prefix = text.parse().unwrap();
            assert_eq!(prefix(&key(expected)), Some(expected));
        }
    }
}
