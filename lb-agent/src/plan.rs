//! What to change, given what was found and what is recorded. No I/O.

use std::fmt;
use std::path::PathBuf;

use crate::arp::{ALL, Key, Setting, effective};
use crate::facts::Facts;
use crate::state::{AddressRecord, State, SysctlRecord, Want};
use crate::tunnel::Decapsulate;
use crate::tunnel::plan::{self as tunnel, Step};
use crate::vip::{Held, LOOPBACK, Scope, Vip};

/// One change to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A sysctl gets another value.
    Sysctl {
        /// Which one.
        key: Key,
        /// Value before.
        from: i32,
        /// Value after.
        to: i32,
    },
    /// An address is added.
    Add(Held),
    /// An address is removed.
    Remove(Held),
    /// What TUN mode needs is changed; programs are pinned in this directory.
    Tunnel(PathBuf, Step),
}

/// What to do, in this order: save `before`, carry out `changes`, save
/// `after` (or remove the state file).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Covers everything that may have been changed once the work has begun.
    pub before: State,
    /// The changes, in an order in which no ARP request for a VIP is ever
    /// answered in between.
    pub changes: Vec<Change>,
    /// What remains to be remembered when all is done.
    pub after: Option<State>,
    /// What the person who reads the report should know.
    pub notes: Vec<String>,
}

/// Makes the host hold what is wanted, and gives back what `state` recorded
/// for what is wanted no more.
pub fn apply(facts: &Facts, state: Option<&State>, want: &Want) -> Plan {
    let mut draft = Draft::new(facts, state, want);
    for key in managed_keys(facts, &draft.old, want) {
        draft.protect(key);
    }
    for vip in &want.vips {
        draft.hold(*vip);
    }
    draft.tunnel(want);
    draft.restore_the_rest();
    draft.finish(true)
}

/// Gives back everything that `state` recorded.
pub fn undo(facts: &Facts, state: &State) -> Plan {
    let mut draft = Draft::new(facts, Some(state), &Want::default());
    draft.tunnel(&Want::default());
    draft.restore_the_rest();
    draft.finish(false)
}

/// The sysctls to look after: those of `all`, `lo` and the wanted interfaces,
/// and any of another interface whose value would defeat that of `all`; in TUN
/// mode also the reverse path filters in the way of decapsulated packets.
/// None if no VIP is resolved by ARP.
pub fn managed_keys(facts: &Facts, state: &State, want: &Want) -> Vec<Key> {
    if !want.vips.iter().any(|vip| vip.is_ipv4()) {
        return Vec::new();
    }
    let named = [ALL, LOOPBACK].into_iter();
    let named = named.chain(want.interfaces.iter().map(String::as_str));
    let mut keys: Vec<Key> = named
        .flat_map(|name| Setting::EACH.map(|setting| Key::new(name, setting)))
        .collect();
    for name in facts.outer_interfaces() {
        for setting in Setting::EACH {
            let key = Key::new(name, setting);
            // What was found counts too: else the key would be given back as
            // soon as it has been put right.
            let found = state.sysctl(&key).map(|record| record.found);
            let now = facts.sysctls.get(&key).copied();
            if !keys.contains(&key)
                && [found, now]
                    .iter()
                    .flatten()
                    .any(|value| defeats_all(facts, setting, *value))
            {
                keys.push(key);
            }
        }
    }
    // The kernel's tunnel devices are not there before us: they have no value
    // to be restored.
    let tunnel = want.tunnel.as_ref();
    if tunnel.is_some_and(|t| t.decapsulate != Decapsulate::Kernel) {
        let filters = want.interfaces.iter();
        keys.extend(filters.map(|name| Key::new(name, Setting::RpFilter)));
    }
    keys
}

/// Whether an interface with this value is exposed although `all` is right.
pub fn defeats_all(facts: &Facts, setting: Setting, value: i32) -> bool {
    let all = facts.sysctls.get(&Key::new(ALL, setting)).copied();
    let all = all
        .filter(|value| setting.protects(*value))
        .unwrap_or(setting.wanted());
    !setting.protects(effective(all, value))
}

struct Draft<'a> {
    facts: &'a Facts,
    old: State,
    keep: State,
    protect: Vec<Change>,
    remove: Vec<Change>,
    add: Vec<Change>,
    restore: Vec<Change>,
    build: Vec<Change>,
    clear: Vec<Change>,
    notes: Vec<String>,
}

impl<'a> Draft<'a> {
    fn new(facts: &'a Facts, state: Option<&State>, want: &Want) -> Self {
        Self {
            facts,
            old: state.cloned().unwrap_or_default(),
            keep: State::new(want.clone()),
            protect: Vec::new(),
            remove: Vec::new(),
            add: Vec::new(),
            restore: Vec::new(),
            build: Vec::new(),
            clear: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn protect(&mut self, key: Key) {
        let setting = key.setting;
        let recorded = self.old.sysctl(&key).cloned();
        let Some(now) = self.facts.sysctls.get(&key).copied() else {
            self.note(format!(
                "there is no interface {}; it is looked after once it appears",
                key.interface
            ));
            self.keep.sysctls.extend(recorded);
            return;
        };
        let good = |value: i32| {
            if is_good(self.facts, setting, value) {
                value
            } else {
                setting.wanted()
            }
        };
        let record = recorded.unwrap_or_else(|| SysctlRecord {
            key: key.clone(),
            found: now,
            set: good(now),
        });
        if !is_good(self.facts, setting, now) {
            let to = good(record.set);
            self.protect.push(Change::Sysctl { key, from: now, to });
        }
        self.keep.sysctls.push(record);
    }

    fn hold(&mut self, vip: Vip) {
        let held = self.facts.held(vip);
        let record = self.old.address(vip).cloned();
        let record = record.unwrap_or_else(|| AddressRecord {
            vip,
            found: held.map(|held| held.scope),
        });
        if held.is_none() {
            self.add.push(Change::Add(on_loopback(vip, record.found)));
        }
        self.keep.addresses.push(record);
    }

    fn tunnel(&mut self, want: &Want) {
        let steps = tunnel::steps(self.facts, self.old.tunnel(), want);
        self.build = steps.build;
        self.clear = steps.clear;
    }

    fn restore_the_rest(&mut self) {
        for record in self.old.addresses.clone() {
            if self.keep.address(record.vip).is_some() {
                continue;
            }
            match (self.facts.held(record.vip), record.found) {
                (Some(held), None) => self.remove.push(Change::Remove(held.clone())),
                (None, Some(_)) => {
                    let lost = on_loopback(record.vip, record.found);
                    self.add.push(Change::Add(lost));
                }
                _ => {}
            }
        }
        for record in self.old.sysctls.clone() {
            if self.keep.sysctl(&record.key).is_some() {
                continue;
            }
            let SysctlRecord { key, found, .. } = record;
            match self.facts.sysctls.get(&key).copied() {
                Some(now) if now != found => {
                    let (from, to) = (now, found);
                    self.restore.push(Change::Sysctl { key, from, to });
                }
                Some(_) => {}
                None => self.note(format!(
                    "the interface {} is gone, so {key} could not get its {found} back",
                    key.interface
                )),
            }
        }
    }

    fn finish(self, keep: bool) -> Plan {
        let mut before = self.keep.clone();
        if keep {
            let leaving = self.old.tunnel();
            before.leaving = leaving
                .filter(|t| before.want.tunnel.as_ref() != Some(t))
                .cloned();
        } else {
            before.want = self.old.want.clone();
            before.leaving.clone_from(&self.old.leaving);
        }
        let forgotten = self.old.sysctls.iter();
        let forgotten = forgotten.filter(|record| self.keep.sysctl(&record.key).is_none());
        before.sysctls.extend(forgotten.cloned());
        let forgotten = self.old.addresses.iter();
        let forgotten = forgotten.filter(|record| self.keep.address(record.vip).is_none());
        before.addresses.extend(forgotten.cloned());
        Plan {
            before,
            changes: [
                self.protect,
                self.build,
                self.remove,
                self.add,
                self.clear,
                self.restore,
            ]
            .concat(),
            after: keep.then_some(self.keep),
            notes: self.notes,
        }
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Whether an interface may keep this value. For ARP it must do by itself,
/// whatever becomes of `all`; of the reverse path filters the greater counts.
pub fn is_good(facts: &Facts, setting: Setting, own: i32) -> bool {
    if setting != Setting::RpFilter {
        return setting.protects(own);
    }
    let all = facts.sysctls.get(&Key::new(ALL, setting)).copied();
    setting.protects(effective(all.unwrap_or_default(), own))
}

fn on_loopback(vip: Vip, scope: Option<Scope>) -> Held {
    Held {
        address: vip.address(),
        prefix: vip.prefix(),
        interface: LOOPBACK.to_owned(),
        scope: scope.unwrap_or(Scope::HOST),
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl { key, from, to } => write!(f, "{key}: {from} -> {to}"),
            Self::Add(held) => write!(f, "{held}: absent -> present"),
            Self::Remove(held) => write!(f, "{held}: present -> absent"),
            Self::Tunnel(_, step) => step.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::testing::{hold, host, set, vips};

    fn want(texts: &[&str]) -> Want {
        Want {
            vips: vips(texts),
            interfaces: vec!["eth0".to_owned()],
            tunnel: None,
        }
    }

    /// Does to the facts what the host would do.
    fn carry_out(facts: &mut Facts, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Sysctl { key, to, .. } => {
                    facts.sysctls.insert(key.clone(), *to);
                }
                Change::Add(held) => facts.addresses.push(held.clone()),
                Change::Remove(held) => facts.addresses.retain(|h| h != held),
                Change::Tunnel(..) => unreachable!("no TUN mode here"),
            }
        }
    }

    fn lines(plan: &Plan) -> Vec<String> {
        plan.changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_interrupted_change_of_mode_still_knows_what_was_set_up() {
        use crate::tunnel::Decapsulate::{Kernel, Xdp};
        use crate::tunnel::testing::tunnel;

        let facts = host(&["eth0"]);
        let with = |decapsulate| Want {
            tunnel: Some(tunnel(decapsulate, &["192.0.2.2"])),
            ..want(&["203.0.113.10"])
        };
        let dr = want(&["203.0.113.10"]);
        for (from, to, in_place) in [
            (with(Xdp), dr.clone(), with(Xdp)),
            (with(Kernel), dr.clone(), with(Kernel)),
            (with(Kernel), with(Xdp), with(Kernel)),
            (with(Xdp), with(Kernel), with(Kernel)),
        ] {
            let applied = apply(&facts, None, &from).after.unwrap();
            // What is on disk while the steps are made, and if they end early.
            let interrupted = apply(&facts, Some(&applied), &to).before;
            assert_eq!(interrupted.tunnel(), in_place.tunnel.as_ref());
            let undoing = undo(&facts, &interrupted).before;
            assert_eq!(undoing.tunnel(), in_place.tunnel.as_ref());
            let again = apply(&facts, Some(&interrupted), &to);
            assert_eq!(again.before.tunnel(), in_place.tunnel.as_ref());
            assert_eq!(again.after.unwrap().tunnel(), to.tunnel.as_ref());
        }
    }

    #[test]
    fn sysctls_come_before_the_address_and_after_it_on_the_way_back() {
        let mut facts = host(&["eth0"]);
        let before = facts.clone();
        let plan = apply(&facts, None, &want(&["203.0.113.10"]));
        assert_eq!(
            lines(&plan),
            [
                "net.ipv4.conf.all.arp_ignore: 0 -> 1",
                "net.ipv4.conf.all.arp_announce: 0 -> 2",
                "net.ipv4.conf.lo.arp_ignore: 0 -> 1",
                "net.ipv4.conf.lo.arp_announce: 0 -> 2",
                "net.ipv4.conf.eth0.arp_ignore: 0 -> 1",
                "net.ipv4.conf.eth0.arp_announce: 0 -> 2",
                "203.0.113.10/32 dev lo: absent -> present",
            ]
        );
        carry_out(&mut facts, &plan.changes);
        let state = plan.after.unwrap();
        let again = apply(&facts, Some(&state), &want(&["203.0.113.10"]));
        assert_eq!((lines(&again), again.after), (vec![], Some(state.clone())));

        let back = undo(&facts, &state);
        assert_eq!(lines(&back)[0], "203.0.113.10/32 dev lo: present -> absent");
        carry_out(&mut facts, &back.changes);
        assert_eq!(facts.sysctls, before.sysctls);
        assert_eq!(facts.addresses, before.addresses);
        assert_eq!(back.after, None);
    }

    #[test]
    fn only_what_does_not_protect_is_changed() {
        let mut facts = host(&["eth0"]);
        set(&mut facts, "all", 8, 2);
        set(&mut facts, "lo", 2, 7);
        set(&mut facts, "eth0", 3, 1);
        hold(&mut facts, "203.0.113.10", 32, "lo");
        let plan = apply(&facts, None, &want(&["203.0.113.10"]));
        assert_eq!(
            lines(&plan),
            [
                "net.ipv4.conf.lo.arp_announce: 7 -> 2",
                "net.ipv4.conf.eth0.arp_ignore: 3 -> 1",
                "net.ipv4.conf.eth0.arp_announce: 1 -> 2",
            ]
        );
        // A drifted value goes back to what it was, not to what we would choose.
        let state = plan.after.unwrap();
        carry_out(&mut facts, &plan.changes);
        set(&mut facts, "all", 0, 2);
        let repair = apply(&facts, Some(&state), &state.want);
        assert_eq!(lines(&repair), ["net.ipv4.conf.all.arp_ignore: 0 -> 8"]);
        // The address was there before and stays.
        set(&mut facts, "all", 8, 2);
        assert_eq!(
            lines(&undo(&facts, &state)),
            [
                "net.ipv4.conf.lo.arp_announce: 2 -> 7",
                "net.ipv4.conf.eth0.arp_ignore: 1 -> 3",
                "net.ipv4.conf.eth0.arp_announce: 2 -> 1",
            ]
        );
    }

    #[test]
    fn an_interface_that_defeats_all_is_looked_after_until_undo() {
        let mut facts = host(&["eth0", "eth1"]);
        set(&mut facts, "eth1", 4, 3);
        let want = want(&["203.0.113.10"]);
        let plan = apply(&facts, None, &want);
        assert!(lines(&plan).contains(&"net.ipv4.conf.eth1.arp_ignore: 4 -> 1".to_owned()));
        carry_out(&mut facts, &plan.changes);
        let state = plan.after.unwrap();
        assert_eq!(lines(&apply(&facts, Some(&state), &want)), [""; 0]);
        let back = undo(&facts, &state);
        carry_out(&mut facts, &back.changes);
        let value = |setting| facts.sysctls[&Key::new("eth1", setting)];
        assert_eq!(Setting::EACH.map(value), [4, 3]);
    }

    #[test]
    fn a_later_apply_removes_what_it_no_longer_wants_and_only_its_own() {
        let mut facts = host(&["eth0", "eth1"]);
        hold(&mut facts, "203.0.113.12", 32, "lo");
        let first = want(&["203.0.113.10", "203.0.113.12", "2001:db8::10"]);
        let plan = apply(&facts, None, &first);
        carry_out(&mut facts, &plan.changes);
        let state = plan.after.unwrap();

        let second = Want {
            vips: vips(&["203.0.113.11"]),
            interfaces: vec!["eth1".to_owned()],
            tunnel: None,
        };
        let plan = apply(&facts, Some(&state), &second);
        assert_eq!(
            lines(&plan),
            [
                "net.ipv4.conf.eth1.arp_ignore: 0 -> 1",
                "net.ipv4.conf.eth1.arp_announce: 0 -> 2",
                "203.0.113.10/32 dev lo: present -> absent",
                "2001:db8::10/128 dev lo: present -> absent",
                "203.0.113.11/32 dev lo: absent -> present",
                "net.ipv4.conf.eth0.arp_ignore: 1 -> 0",
                "net.ipv4.conf.eth0.arp_announce: 2 -> 0",
            ]
        );
        // Until all is done, everything that was ever found is on record.
        assert_eq!(plan.before.sysctls.len(), 8);
        assert_eq!(plan.before.addresses.len(), 4);
        assert_eq!(plan.after.unwrap().addresses.len(), 1);
    }

    #[test]
    fn after_a_reboot_undo_restores_what_can_be_restored() {
        let mut facts = host(&["eth0"]);
        set(&mut facts, "eth0", 3, 0);
        hold(&mut facts, "203.0.113.12", 32, "lo");
        let state = apply(&facts, None, &want(&["203.0.113.10", "203.0.113.12"]))
            .after
            .unwrap();
        let plan = undo(&host(&["eth9"]), &state);
        assert_eq!(lines(&plan), ["203.0.113.12/32 dev lo: absent -> present"]);
        assert_eq!(plan.notes.len(), 2, "{:?}", plan.notes);
        assert!(plan.notes[0].contains("eth0 is gone"), "{:?}", plan.notes);
        let rebooted = host(&["eth0"]);
        let lines = lines(&undo(&rebooted, &state));
        assert!(lines.contains(&"net.ipv4.conf.eth0.arp_ignore: 0 -> 3".to_owned()));
    }

    #[test]
    fn ipv6_needs_no_sysctls() {
        let plan = apply(&host(&["eth0"]), None, &want(&["2001:db8::10"]));
        assert_eq!(lines(&plan), ["2001:db8::10/128 dev lo: absent -> present"]);
    }
}
