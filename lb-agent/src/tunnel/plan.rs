//! What TUN mode changes on the host. No I/O.

use std::collections::BTreeSet;
use std::fmt;

use crate::arp::{ALL, Key, Setting, effective};
use crate::facts::Facts;
use crate::plan::Change;
use crate::state::Want;
use crate::tunnel::contents::Contents;
use crate::tunnel::device::{self, Device};
use crate::tunnel::programs::{Hook, Programs};
use crate::tunnel::{Decapsulate, Mss, Tunnel};
use crate::vip::LOOPBACK;

/// A change to what TUN mode needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The programs are told something else, or removed.
    Programs {
        /// Before; none if they are not loaded.
        from: Option<Contents>,
        /// After; none to remove them.
        to: Option<Contents>,
    },
    /// A program is attached to an interface.
    Attach(Hook, String),
    /// A program is detached from an interface.
    Detach(Hook, String),
    /// A tunnel device is made; `sit` is bound to the interface.
    AddDevice(Device, Option<String>),
    /// A tunnel device is removed.
    RemoveDevice(Device),
}

/// Steps before the VIPs are there, and steps after those no longer wanted are
/// gone. Nothing encapsulated is let in before the filter is attached.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// Before.
    pub build: Vec<Change>,
    /// After.
    pub clear: Vec<Change>,
}

/// From what was found, and what `old` recorded, to what is wanted.
pub fn steps(facts: &Facts, old: Option<&Tunnel>, want: &Want) -> Steps {
    let mut steps = Steps::default();
    let Some(programs) = &facts.programs else {
        return steps;
    };
    let Some(bpffs) = want.tunnel.as_ref().or(old).map(|t| t.bpffs.clone()) else {
        return steps;
    };
    let change = |step| Change::Tunnel(bpffs.clone(), step);
    let attached = &programs.attached;
    let mut wanted = BTreeSet::new();
    if let Some(tunnel) = &want.tunnel {
        let contents = Contents::wanted(facts, want, tunnel);
        let build = contents.build;
        if programs.contents.as_ref() != Some(&contents) {
            steps.build.push(change(Step::Programs {
                from: programs.contents.clone(),
                to: Some(contents),
            }));
        }
        wanted = attachments(facts, want, tunnel);
        for (hook, name) in &wanted {
            let place = (*hook, name.clone());
            if !attached.contains(&place) || keeps_another(programs, *hook, build) {
                steps.build.push(change(Step::Attach(*hook, name.clone())));
            }
        }
        if tunnel.decapsulate == Decapsulate::Kernel {
            devices(facts, want, tunnel, &mut steps.build, &change);
        }
    }
    let was_kernel = |t: &&Tunnel| t.decapsulate == Decapsulate::Kernel;
    let needed = |device| {
        let tunnel = want.tunnel.as_ref().filter(was_kernel);
        tunnel.is_some_and(|tunnel| device::needed(want, tunnel).contains(&device))
    };
    for device in Device::EACH {
        let is_ours = old.is_some_and(|t| was_kernel(&t)) && is_device(facts, device).is_some();
        if is_ours && !needed(device) {
            steps.clear.push(change(Step::RemoveDevice(device)));
        }
    }
    for (hook, name) in attached.difference(&wanted) {
        steps.clear.push(change(Step::Detach(*hook, name.clone())));
    }
    if want.tunnel.is_none() && programs.is_pinned {
        steps.clear.push(change(Step::Programs {
            from: programs.contents.clone(),
            to: None,
        }));
    }
    steps
}

/// Whether what is attached there is the program of another build, and stays so
/// when those that links hold are replaced.
fn keeps_another(programs: &Programs, hook: Hook, build: u32) -> bool {
    let now = programs.contents.as_ref().map(|contents| contents.build);
    hook == Hook::Leaving && programs.by_filter && now != Some(build)
}

/// Where programs must be attached, as far as the interfaces are there.
pub fn attachments(facts: &Facts, want: &Want, tunnel: &Tunnel) -> BTreeSet<(Hook, String)> {
    let named = want.interfaces.iter().map(String::as_str);
    let present = named.filter(|name| facts.link(name).is_some());
    let mut wanted: BTreeSet<(Hook, String)> = present
        .map(|name| (Hook::Arriving, name.to_owned()))
        .collect();
    if tunnel.mss != Mss::Off {
        let leaving = leaving(facts, want).into_iter();
        wanted.extend(leaving.map(|name| (Hook::Leaving, name)));
    }
    wanted
}

/// The interfaces by which answers may leave: every one with a route, and
/// those that face the directors. Frames must be Ethernet's.
fn leaving(facts: &Facts, want: &Want) -> BTreeSet<String> {
    let routed = facts.routes.iter().flat_map(|route| &route.interfaces);
    let names = routed.chain(&want.interfaces);
    names
        .filter(|name| {
            let link = facts.link(name);
            *name != LOOPBACK && link.is_some_and(|link| link.is_ethernet)
        })
        .cloned()
        .collect()
}

/// The interfaces on which clients' packets appear once they are decapsulated.
pub fn emerging(want: &Want, tunnel: &Tunnel) -> Vec<String> {
    if tunnel.decapsulate != Decapsulate::Kernel {
        return want.interfaces.clone();
    }
    let devices = device::needed(want, tunnel).into_iter();
    let devices = devices.filter(|device| device.carries_ipv4());
    devices.map(|device| device.name().to_owned()).collect()
}

/// Whether there is such a device: and if so, whether it is up.
pub fn is_device(facts: &Facts, device: Device) -> Option<bool> {
    let link = facts.link(device.name())?;
    (link.kind.as_deref() == Some(device.kind())).then_some(link.up)
}

/// Whether an interface has an IPv4 address.
pub fn has_ipv4(facts: &Facts, name: &str) -> bool {
    let mut addresses = facts.addresses.iter();
    addresses.any(|held| held.interface == name && held.address.is_ipv4())
}

fn devices(
    facts: &Facts,
    want: &Want,
    tunnel: &Tunnel,
    build: &mut Vec<Change>,
    change: &impl Fn(Step) -> Change,
) {
    for device in device::needed(want, tunnel) {
        if is_device(facts, device) != Some(true) {
            let interface = want.interfaces.first().cloned();
            build.push(change(Step::AddDevice(device, interface)));
            continue;
        }
        if let Some(held) = device
            .address()
            .filter(|held| !has_ipv4(facts, &held.interface))
        {
            build.push(Change::Add(held));
        }
        // Devices are ours: nothing to restore, they go as a whole.
        let key = Key::new(device.name(), Setting::RpFilter);
        let value = |name| facts.sysctls.get(&Key::new(name, Setting::RpFilter));
        let now = value(device.name()).copied().unwrap_or_default();
        let all = value(ALL).copied().unwrap_or_default();
        if device.carries_ipv4() && !Setting::RpFilter.protects(effective(all, now)) {
            let to = Setting::RpFilter.wanted();
            build.push(Change::Sysctl { key, from: now, to });
        }
    }
}

impl Step {
    /// Kind, name, state before and after, for reports.
    pub fn describe(&self) -> (&'static str, String, String, String) {
        let (absent, present) = ("absent".to_owned(), "present".to_owned());
        let on = |hook: &Hook, name| format!("{} on {name}", hook.program());
        match self {
            Self::Programs { from, to } => {
                let text = |contents: &Option<Contents>| match contents {
                    Some(contents) => contents.to_string(),
                    None => "absent".to_owned(),
                };
                let name = "tunnel settings".to_owned();
                ("programs", name, text(from), text(to))
            }
            Self::Attach(hook, name) => ("program", on(hook, name), absent, present),
            Self::Detach(hook, name) => ("program", on(hook, name), present, absent),
            Self::AddDevice(device, _) => ("device", device.name().to_owned(), absent, present),
            Self::RemoveDevice(device) => ("device", device.name().to_owned(), present, absent),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name, from, to) = self.describe();
        write!(f, "{name}: {from} -> {to}")
    }
}
