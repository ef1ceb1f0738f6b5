//! Which sysctls do not let packets of NAT pass as they are.
//!
//! The program asks the kernel for the way of a reply, which it tells only if
//! the interface forwards. A reply whose next hop is not known yet goes to the
//! host's own stack, with the VIP, an address of this host, as its source.

use std::fs;
use std::io;
use std::path::Path;

use super::Entry;
use super::sysctl::{Sysctl, Version};

/// The pseudo interfaces that stand for all and for those to come.
const ALL: &str = "all";
const DEFAULT: &str = "default";

/// What has to be set for these interfaces, in this order.
///
/// # Errors
/// When a sysctl cannot be read.
pub fn needs(root: &Path, interfaces: &[String]) -> io::Result<Vec<Entry>> {
    let mut needs = Needs {
        root,
        entries: Vec::new(),
    };
    let all_rp_filter = needs.read(Version::V4, ALL, "rp_filter")?.unwrap_or(0);
    // The kernel takes the two together: either is enough to send redirects.
    needs.want(Version::V4, ALL, "send_redirects", 0)?;
    for interface in interfaces {
        needs.want(Version::V4, interface, "send_redirects", 0)?;
        // The greater of the two counts, and of its values only 1 does harm.
        let rp_filter = needs.read(Version::V4, interface, "rp_filter")?;
        if rp_filter.is_some_and(|own| own.max(all_rp_filter) == 1) {
            needs.want(Version::V4, interface, "rp_filter", 2)?;
        }
        needs.want(Version::V4, interface, "accept_local", 1)?;
        needs.want(Version::V4, interface, "forwarding", 1)?;
    }
    // Without IPv6 there is no such file.
    if needs.read(Version::V6, ALL, "forwarding")? == Some(0) {
        needs.forward_v6()?;
    }
    Ok(needs.entries)
}

struct Needs<'a> {
    root: &'a Path,
    entries: Vec<Entry>,
}

impl Needs<'_> {
    fn read(&self, version: Version, interface: &str, name: &str) -> io::Result<Option<i32>> {
        let sysctl = Sysctl::new(version, interface, name);
        sysctl
            .read(self.root)
            .map_err(|error| io::Error::new(error.kind(), format!("reading {sysctl}: {error}")))
    }

    /// Unless it is so already, or there is no such interface.
    fn want(
        &mut self,
        version: Version,
        interface: &str,
        name: &str,
        value: i32,
    ) -> io::Result<()> {
        match self.read(version, interface, name)? {
            Some(found) if found != value => self.push(version, interface, name, found, value),
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, version: Version, interface: &str, name: &str, found: i32, set: i32) {
        self.entries.push(Entry {
            sysctl: Sysctl::new(version, interface, name),
            found,
            set,
        });
    }

    /// IPv6 forwards on all interfaces or none. Turning it on turns every
    /// interface into a router's, and those forget what other routers have
    /// told them, unless they are told not to before.
    fn forward_v6(&mut self) -> io::Result<()> {
        let mut hosts = Vec::new();
        let mut forwarding = Vec::new();
        for entry in fs::read_dir(self.root.join(Version::V6.directory()))? {
            let Ok(interface) = entry?.file_name().into_string() else {
                continue;
            };
            if interface == ALL {
                continue;
            }
            let Some(found) = self.read(Version::V6, &interface, "forwarding")? else {
                continue;
            };
            if found == 0 && self.read(Version::V6, &interface, "accept_ra")? == Some(1) {
                hosts.push(interface.clone());
            }
            forwarding.push((interface, found));
        }
        hosts.sort();
        // The pseudo interface first, as it gives its values to new ones.
        forwarding.sort_by_key(|(interface, _)| (interface != DEFAULT, interface.clone()));
        for interface in &hosts {
            self.push(Version::V6, interface, "accept_ra", 1, 2);
        }
        self.push(Version::V6, ALL, "forwarding", 0, 1);
        for (interface, found) in &forwarding {
            self.push(Version::V6, interface, "forwarding", *found, 1);
        }
        Ok(())
    }
}
