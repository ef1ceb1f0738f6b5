//! Who else claims a VIP. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::status::Thief;

/// Seconds after which a thief that is heard no more is forgotten.
const MEMORY: u64 = 10;

/// The thieves heard of late.
#[derive(Debug, Default)]
pub struct Thieves {
    heard: BTreeMap<(IpAddr, [u8; 6], String), Times>,
}

#[derive(Debug)]
struct Times {
    first: u64,
    last: u64,
}

impl Thieves {
    /// Takes a claim into account; returns whether it is the first of a thief.
    /// `ours` are the director's own MAC addresses; `now` is Unix time.
    pub fn hear(
        &mut self,
        address: IpAddr,
        mac: [u8; 6],
        interface: &str,
        ours: &BTreeSet<[u8; 6]>,
        now: u64,
    ) -> bool {
        if ours.contains(&mac) {
            return false;
        }
        let key = (address, mac, interface.to_owned());
        match self.heard.get_mut(&key) {
            Some(times) => {
                times.last = now;
                false
            }
            None => {
                let times = Times {
                    first: now,
                    last: now,
                };
                self.heard.insert(key, times);
                true
            }
        }
    }

    /// Forgets those that have not been heard of late, and those of addresses
    /// that are no VIP any more. Returns the former.
    pub fn forget(&mut self, vips: &BTreeSet<IpAddr>, now: u64) -> Vec<(IpAddr, String)> {
        let mut silent = Vec::new();
        self.heard.retain(|(address, mac, _), times| {
            let is_silent = now > times.last + MEMORY;
            if is_silent {
                silent.push((*address, text(mac)));
            }
            !is_silent && vips.contains(address)
        });
        silent
    }

    /// The thieves of one VIP.
    pub fn of(&self, vip: IpAddr) -> Vec<Thief> {
        self.heard
            .iter()
            .filter(|((address, ..), _)| *address == vip)
            .map(|((_, mac, interface), times)| Thief {
                mac: text(mac),
                interface: interface.clone(),
                first_seen: times.first,
                last_seen: times.last,
            })
            .collect()
    }
}

/// A MAC address as people write it.
pub fn text(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thief_is_told_once_and_forgotten_when_silent() {
        let vip: IpAddr = "203.0.113.10".parse().unwrap();
        let (ours, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 0xab]);
        let our_macs = BTreeSet::from([ours]);
        let vips = BTreeSet::from([vip]);
        let mut thieves = Thieves::default();
        assert!(!thieves.hear(vip, ours, "eth0", &our_macs, 100));
        assert!(thieves.hear(vip, other, "eth0", &our_macs, 100));
        assert!(!thieves.hear(vip, other, "eth0", &our_macs, 105));
        let [thief] = &thieves.of(vip)[..] else {
            panic!("one thief expected");
        };
        assert_eq!(thief.mac, "02:00:00:00:00:ab");
        assert_eq!((thief.first_seen, thief.last_seen), (100, 105));
        assert!(thieves.forget(&vips, 115).is_empty());
        assert_eq!(thieves.forget(&vips, 116).len(), 1);
        assert!(thieves.of(vip).is_empty());
    }
}
