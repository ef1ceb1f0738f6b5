//! What is wrong on this host, and the command that mends it. No I/O.

use serde::Serialize;

use crate::arp::{ALL, Key, Setting, effective};
use crate::facts::Facts;
use crate::interface;
use crate::plan;
use crate::state::{State, Want};
use crate::tunnel;
use crate::vip::{LOOPBACK, Vip};

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An ARP sysctl does not protect.
    Sysctl,
    /// A sysctl that `apply` set protects no more; another one still does.
    Drift,
    /// A VIP is not on `lo`.
    VipMissing,
    /// A VIP is on another interface, which answers ARP or NDP for it.
    VipElsewhere,
    /// A VIP on `lo` brings its whole subnet with it.
    VipPrefix,
    /// Another kind of entry makes the host answer for the VIP.
    Proxy,
    /// `lo` is down or has no IPv6.
    Loopback,
    /// A configured interface does not exist.
    Interface,
    /// What was applied is not what is configured.
    State,
    /// There is no BPF file system to pin programs on.
    Bpffs,
    /// A program of TUN mode is not at work.
    Program,
    /// A tunnel device of the kernel is missing.
    Device,
}

/// One wrong thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its kind.
    pub kind: Kind,
    /// What is wrong and what comes of it.
    pub problem: String,
    /// The command that mends it.
    pub fix: String,
}

/// Everything that is wrong, in an order in which it can be mended from top
/// to bottom without the VIP being stolen in between.
pub fn check(facts: &Facts, state: Option<&State>, want: &Want) -> Vec<Finding> {
    let mut findings = Vec::new();
    if want.vips.iter().any(|vip| vip.is_ipv4()) {
        for setting in Setting::EACH {
            exposed(facts, setting, &mut findings);
        }
    }
    findings.extend(tunnel::check::check(facts, want));
    if let Some(state) = state {
        drifted(facts, state, want, &mut findings);
        differs(state, want, &mut findings);
    }
    for name in &want.interfaces {
        if facts.link(name).is_none() {
            findings.push(Finding {
                kind: Kind::Interface,
                problem: interface::unknown(facts, name),
                fix: format!("lb-agent apply --interface {}", replacement(facts, want)),
            });
        }
    }
    findings.extend(obstacles(facts, want));
    for vip in &want.vips {
        if facts.held(*vip).is_none() {
            findings.push(missing(*vip));
        }
    }
    findings
}

/// What `apply` must not work around, because it is not its to change: while
/// it is so, the VIP is stolen or cannot be held.
pub fn obstacles(facts: &Facts, want: &Want) -> Vec<Finding> {
    let vips = &want.vips;
    let mut findings = tunnel::check::obstacles(facts, want);
    if facts.link(LOOPBACK).is_none_or(|link| !link.up) {
        findings.push(Finding {
            kind: Kind::Loopback,
            problem: "the interface lo is down, so packets for the VIP are not accepted".to_owned(),
            fix: "ip link set dev lo up".to_owned(),
        });
    }
    if facts.ipv6_disabled && vips.iter().any(|vip| !vip.is_ipv4()) {
        findings.push(Finding {
            kind: Kind::Loopback,
            problem: "IPv6 is disabled on lo, so it cannot hold an IPv6 VIP".to_owned(),
            fix: "sysctl -w net.ipv6.conf.lo.disable_ipv6=0".to_owned(),
        });
    }
    for vip in vips {
        for held in facts.misplaced(*vip) {
            let (kind, problem) = if held.interface == LOOPBACK {
                let problem = format!(
                    "{vip} is on lo with prefix length {}: that makes every address of its \
                     subnet this host's own; it must be {}",
                    held.prefix,
                    vip.prefix()
                );
                (Kind::VipPrefix, problem)
            } else {
                let problem = format!(
                    "{vip} is on {}, so this host answers {} for it there and steals it from \
                     the director",
                    held.interface,
                    if vip.is_ipv4() { "ARP" } else { "NDP" },
                );
                (Kind::VipElsewhere, problem)
            };
            findings.push(Finding {
                kind,
                problem,
                fix: format!("ip address del {held}"),
            });
        }
        for (_, interface) in facts.proxies.iter().filter(|(a, _)| *a == vip.address()) {
            findings.push(Finding {
                kind: Kind::Proxy,
                problem: format!("a proxy entry makes {interface} answer for {vip}"),
                fix: format!("ip neighbour del proxy {vip} dev {interface}"),
            });
        }
    }
    findings
}

/// Effective values that leave an interface exposed.
fn exposed(facts: &Facts, setting: Setting, findings: &mut Vec<Finding>) {
    let all_key = Key::new(ALL, setting);
    let all = facts.sysctls.get(&all_key).copied().unwrap_or_default();
    let mut by_all = Vec::new();
    for name in facts.outer_interfaces() {
        let key = Key::new(name, setting);
        let own = facts.sysctls.get(&key).copied().unwrap_or_default();
        let value = effective(all, own);
        if setting.protects(value) {
            continue;
        }
        if plan::defeats_all(facts, setting, own) {
            findings.push(Finding {
                kind: Kind::Sysctl,
                problem: format!(
                    "{name}: the effective {} is {value} (all {all}, {name} {own}): {}",
                    setting.name(),
                    setting.harm(value)
                ),
                fix: key.command(setting.wanted()),
            });
        } else {
            by_all.push((name, value));
        }
    }
    let names: Vec<&str> = by_all.iter().map(|(name, _)| *name).collect();
    let worst = by_all.iter().map(|(_, value)| *value).max();
    if let Some(value) = worst.or_else(|| (!setting.protects(all)).then_some(all)) {
        // With every interface protected by its own value, `all` still
        // decides about those that appear later.
        let where_ = if names.is_empty() {
            "any new interface".to_owned()
        } else {
            names.join(", ")
        };
        findings.push(Finding {
            kind: Kind::Sysctl,
            problem: format!(
                "{where_}: the effective {} is {value} (all {all}): {}",
                setting.name(),
                setting.harm(value)
            ),
            fix: all_key.command(setting.wanted()),
        });
    }
}

/// What `apply` set and something else undid, where it does no harm yet.
fn drifted(facts: &Facts, state: &State, want: &Want, findings: &mut Vec<Finding>) {
    if want.vips.iter().all(|vip| !vip.is_ipv4()) {
        return;
    }
    for record in &state.sysctls {
        let setting = record.key.setting;
        // Judged by what it comes to, with its own command.
        if setting == Setting::RpFilter {
            continue;
        }
        let Some(now) = facts.sysctls.get(&record.key).copied() else {
            continue;
        };
        let fix = record.key.command(record.set);
        if !setting.protects(now) && !findings.iter().any(|finding| finding.fix == fix) {
            findings.push(Finding {
                kind: Kind::Drift,
                problem: format!(
                    "{} is {now}, and apply had left it at {}",
                    record.key, record.set
                ),
                fix,
            });
        }
    }
}

fn differs(state: &State, want: &Want, findings: &mut Vec<Finding>) {
    let mut report = |problem: String| {
        findings.push(Finding {
            kind: Kind::State,
            problem,
            fix: "lb-agent apply".to_owned(),
        });
    };
    match (&state.want.tunnel, &want.tunnel) {
        (Some(_), None) => report("TUN mode was applied and DR mode is configured".to_owned()),
        (None, Some(_)) => report("TUN mode is configured and was not applied yet".to_owned()),
        _ => {}
    }
    for vip in &state.want.vips {
        if !want.vips.contains(vip) {
            report(format!("{vip} was applied and is no longer configured"));
        }
    }
    for vip in &want.vips {
        if !state.want.vips.contains(vip) {
            report(format!("{vip} is configured and was not applied yet"));
        }
    }
}

/// The interface that was probably meant.
fn replacement(facts: &Facts, want: &Want) -> String {
    let chosen = interface::for_want(facts, want).unwrap_or_default();
    chosen
        .into_iter()
        .next()
        .unwrap_or_else(|| "NAME".to_owned())
}

fn missing(vip: Vip) -> Finding {
    // iproute2 knows scopes for IPv4 only; the kernel works out IPv6's itself.
    let scope = if vip.is_ipv4() { " scope host" } else { "" };
    Finding {
        kind: Kind::VipMissing,
        problem: format!("{vip} is not on lo, so packets for it are not accepted"),
        fix: format!("ip address add {vip}/{} dev lo{scope}", vip.prefix()),
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

    fn fixes(findings: &[Finding]) -> Vec<&str> {
        findings
            .iter()
            .map(|finding| finding.fix.as_str())
            .collect()
    }

    #[test]
    fn a_fresh_host_is_told_what_to_type_and_in_which_order() {
        let findings = check(
            &host(&["eth0", "eth1"]),
            None,
            &want(&["203.0.113.10", "2001:db8::10"]),
        );
        assert_eq!(
            fixes(&findings),
            [
                "sysctl -w net.ipv4.conf.all.arp_ignore=1",
                "sysctl -w net.ipv4.conf.all.arp_announce=2",
                "ip address add 203.0.113.10/32 dev lo scope host",
                "ip address add 2001:db8::10/128 dev lo",
            ]
        );
        assert!(findings[0].problem.contains("eth0, eth1"), "{findings:?}");
    }

    #[test]
    fn a_host_that_was_set_up_by_hand_is_right() {
        let mut facts = host(&["eth0"]);
        set(&mut facts, "all", 1, 2);
        hold(&mut facts, "203.0.113.10", 32, "lo");
        assert_eq!(check(&facts, None, &want(&["203.0.113.10"])), []);
    }

    #[test]
    fn the_greater_value_counts_and_may_be_the_wrong_one() {
        let mut facts = host(&["eth0", "eth1"]);
        set(&mut facts, "all", 1, 2);
        set(&mut facts, "eth1", 3, 4);
        hold(&mut facts, "203.0.113.10", 32, "lo");
        let findings = check(&facts, None, &want(&["203.0.113.10"]));
        assert_eq!(
            fixes(&findings),
            [
                "sysctl -w net.ipv4.conf.eth1.arp_ignore=1",
                "sysctl -w net.ipv4.conf.eth1.arp_announce=2",
            ]
        );
        // 8 on `all` outweighs the 3.
        set(&mut facts, "all", 8, 2);
        assert_eq!(
            fixes(&check(&facts, None, &want(&["203.0.113.10"]))),
            ["sysctl -w net.ipv4.conf.eth1.arp_announce=2"]
        );
        // A senseless value on `all` is found although each interface has its own.
        set(&mut facts, "all", 5, 2);
        set(&mut facts, "eth0", 1, 2);
        set(&mut facts, "eth1", 1, 2);
        assert_eq!(
            fixes(&check(&facts, None, &want(&["203.0.113.10"]))),
            ["sysctl -w net.ipv4.conf.all.arp_ignore=1"]
        );
    }

    #[test]
    fn a_misplaced_vip_is_named_with_its_place() {
        let mut facts = host(&["eth0"]);
        set(&mut facts, "all", 1, 2);
        hold(&mut facts, "203.0.113.10", 24, "lo");
        hold(&mut facts, "203.0.113.11", 32, "lo");
        hold(&mut facts, "203.0.113.11", 24, "eth0");
        hold(&mut facts, "2001:db8::10", 128, "lo");
        hold(&mut facts, "2001:db8::10", 64, "eth0");
        facts
            .proxies
            .push(("2001:db8::10".parse().unwrap(), "eth0".to_owned()));
        let vips = ["203.0.113.10", "203.0.113.11", "2001:db8::10"];
        let findings = check(&facts, None, &want(&vips));
        assert_eq!(
            fixes(&findings),
            [
                "ip address del 203.0.113.10/24 dev lo",
                "ip address del 203.0.113.11/24 dev eth0",
                "ip address del 2001:db8::10/64 dev eth0",
                "ip neighbour del proxy 2001:db8::10 dev eth0",
                "ip address add 203.0.113.10/32 dev lo scope host",
            ]
        );
        assert_eq!(
            findings.iter().map(|f| f.kind).collect::<Vec<_>>(),
            [
                Kind::VipPrefix,
                Kind::VipElsewhere,
                Kind::VipElsewhere,
                Kind::Proxy,
                Kind::VipMissing
            ]
        );
    }

    #[test]
    fn drift_is_found_where_it_does_no_harm_yet() {
        let mut facts = host(&["eth0"]);
        let want = want(&["203.0.113.10"]);
        let state = plan::apply(&facts, None, &want).after.unwrap();
        set(&mut facts, "all", 1, 2);
        set(&mut facts, "lo", 1, 2);
        set(&mut facts, "eth0", 0, 2);
        hold(&mut facts, "203.0.113.10", 32, "lo");
        let findings = check(&facts, Some(&state), &want);
        assert_eq!(
            fixes(&findings),
            ["sysctl -w net.ipv4.conf.eth0.arp_ignore=1"]
        );
        assert_eq!(findings[0].kind, Kind::Drift);
    }

    #[test]
    fn a_configuration_that_was_not_applied_is_found() {
        let mut facts = host(&["eth0"]);
        set(&mut facts, "all", 1, 2);
        set(&mut facts, "lo", 1, 2);
        set(&mut facts, "eth0", 1, 2);
        for vip in ["203.0.113.10", "203.0.113.11"] {
            hold(&mut facts, vip, 32, "lo");
        }
        let state = plan::apply(&facts, None, &want(&["203.0.113.10"])).after;
        let mut configured = want(&["203.0.113.11"]);
        configured.interfaces = vec!["eth7".to_owned()];
        let findings = check(&facts, state.as_ref(), &configured);
        assert_eq!(
            findings.iter().map(|f| f.kind).collect::<Vec<_>>(),
            [Kind::State, Kind::State, Kind::Interface]
        );
    }

    #[test]
    fn lo_must_be_up_and_speak_the_vips_language() {
        let mut facts = host(&["eth0"]);
        facts.links[0].up = false;
        facts.ipv6_disabled = true;
        let kinds = |facts: &Facts, texts: &[&str]| obstacles(facts, &want(texts)).len();
        assert_eq!(kinds(&facts, &["203.0.113.10"]), 1);
        assert_eq!(kinds(&facts, &["2001:db8::10"]), 2);
    }
}
