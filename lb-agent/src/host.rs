//! This host: what is found on it, and what is changed.

use std::collections::BTreeSet;
use std::fs;

use anyhow::Context;
use rtnetlink::Handle;

use std::path::Path;

use crate::arp::{ALL, Key, Setting};
use crate::facts::Facts;
use crate::netlink;
use crate::packets;
use crate::plan::{Change, Plan};
use crate::state::{State, Store};
use crate::tunnel::Tunnel;
use crate::tunnel::device::Device;
use crate::tunnel::plan::Step;
use crate::tunnel::programs::{Hook, Pins, has_tcx};

/// A connection to the kernel of the network namespace that it was opened in.
#[derive(Clone, Debug)]
pub struct Host {
    handle: Handle,
}

/// How far a plan got.
#[derive(Debug, Default)]
pub struct Done {
    /// What was changed.
    pub changes: Vec<Change>,
    /// What could not be changed because it is gone.
    pub notes: Vec<String>,
    /// Why the rest was not done.
    pub error: Option<anyhow::Error>,
}

impl Host {
    /// Connects. Must be called within a tokio runtime.
    pub fn connect() -> anyhow::Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("cannot open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// For a connection that exists.
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// Looks at everything that matters; at programs and directors only for
    /// TUN mode.
    pub async fn facts(&self, tunnel: Option<&Tunnel>) -> anyhow::Result<Facts> {
        let mut facts = netlink::read(&self.handle).await?;
        let names = facts.links.iter().map(|link| link.name.as_str());
        for name in [ALL].into_iter().chain(names) {
            for setting in Setting::EACH.into_iter().chain([Setting::RpFilter]) {
                let key = Key::new(name, setting);
                let value = key.read();
                let value = value.with_context(|| format!("cannot read the sysctl {key}"))?;
                if let Some(value) = value {
                    facts.sysctls.insert(key, value);
                }
            }
        }
        // Without IPv6 in the kernel there is no such file.
        let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
        facts.ipv6_disabled = disabled.map_or(true, |text| text.trim() != "0");
        if let Some(tunnel) = tunnel {
            self.look_at_tunnel(tunnel, &mut facts).await?;
        }
        Ok(facts)
    }

    async fn look_at_tunnel(&self, tunnel: &Tunnel, facts: &mut Facts) -> anyhow::Result<()> {
        let devices = Device::EACH.into_iter();
        facts.devices = devices.filter(|device| device.is_available()).collect();
        let mut filtered = BTreeSet::new();
        if !has_tcx() {
            for link in &facts.links {
                if netlink::has_filter(&self.handle, link.index).await? {
                    filtered.insert(link.index);
                }
            }
        }
        let programs = Pins::new(&tunnel.bpffs).observe(&facts.links, &filtered)?;
        facts.programs = Some(programs);
        for director in &tunnel.directors {
            let path = netlink::path(&self.handle, *director, &facts.links).await;
            facts.paths.push(path);
        }
        Ok(())
    }

    /// Carries out a plan: first the record of what was found, then the
    /// changes in their order, then what remains to be remembered.
    pub async fn carry_out(&self, store: &Store, stored: Option<&State>, plan: &Plan) -> Done {
        let mut done = Done::default();
        let result = self.try_carry_out(store, stored, plan, &mut done).await;
        done.error = result.err();
        done
    }

    async fn try_carry_out(
        &self,
        store: &Store,
        stored: Option<&State>,
        plan: &Plan,
        done: &mut Done,
    ) -> anyhow::Result<()> {
        if stored != Some(&plan.before) {
            store.save(&plan.before)?;
        }
        let mut removed = false;
        for change in &plan.changes {
            // The kernel first looks whether an ARP request is for an address
            // of the host, then whether to be silent. A request may be between
            // the two.
            if matches!(change, Change::Sysctl { .. }) && std::mem::take(&mut removed) {
                packets::wait_for_those_under_way();
            }
            removed |= matches!(change, Change::Remove(_));
            if self.make(change, &mut done.notes).await? {
                done.changes.push(change.clone());
            } else {
                done.notes.push(format!("gone meanwhile: {change}"));
            }
        }
        match &plan.after {
            Some(after) if *after != plan.before => store.save(after),
            Some(_) => Ok(()),
            None => store.remove(),
        }
    }

    /// `false` if what was to be changed is gone.
    async fn make(&self, change: &Change, notes: &mut Vec<String>) -> anyhow::Result<bool> {
        let held = match change {
            Change::Sysctl { key, to, .. } => {
                let written = key.write(*to);
                return written.with_context(|| format!("cannot set {key} to {to}"));
            }
            Change::Tunnel(bpffs, step) => return self.take(bpffs, step, notes).await,
            Change::Add(held) | Change::Remove(held) => held,
        };
        let Some(index) = netlink::index(&self.handle, &held.interface).await? else {
            return Ok(false);
        };
        match change {
            Change::Remove(_) => netlink::remove(&self.handle, index, held).await?,
            _ => netlink::add(&self.handle, index, held).await?,
        }
        Ok(true)
    }

    /// `false` if the interface in question is gone.
    async fn take(
        &self,
        bpffs: &Path,
        step: &Step,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<bool> {
        let pins = Pins::new(bpffs);
        match step {
            Step::Programs {
                to: Some(contents), ..
            } => pins.write(contents)?,
            Step::Programs { to: None, .. } => pins.remove()?,
            Step::Attach(hook, name) => {
                let Some(link) = netlink::find(&self.handle, name).await? else {
                    return Ok(false);
                };
                notes.extend(pins.attach(*hook, &link)?);
            }
            Step::Detach(hook, name) => {
                let Some(link) = netlink::find(&self.handle, name).await? else {
                    return Ok(false);
                };
                pins.detach(*hook, &link)?;
                if *hook == Hook::Leaving && !has_tcx() {
                    netlink::remove_empty_clsact(&self.handle, link.index).await?;
                }
            }
            Step::AddDevice(device, interface) => {
                let parent = match interface {
                    Some(name) => netlink::index(&self.handle, name).await?,
                    None => None,
                };
                netlink::add_device(&self.handle, *device, parent).await?;
                if device.carries_ipv4() {
                    let key = Key::new(device.name(), Setting::RpFilter);
                    let value = Setting::RpFilter.wanted();
                    key.write(value)
                        .with_context(|| format!("cannot set {key} to {value}"))?;
                }
                if let Some(held) = device.address() {
                    let index = netlink::index(&self.handle, device.name()).await?;
                    netlink::add(&self.handle, index.unwrap_or_default(), &held).await?;
                }
                netlink::set_up(&self.handle, device.name()).await?;
            }
            Step::RemoveDevice(device) => {
                let Some(index) = netlink::index(&self.handle, device.name()).await? else {
                    return Ok(false);
                };
                netlink::remove_device(&self.handle, index, *device).await?;
            }
        }
        Ok(true)
    }
}
