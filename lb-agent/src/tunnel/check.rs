//! What is wrong with TUN mode on this host. No I/O.

use crate::arp::{ALL, Key, Setting, effective};
use crate::check::{Finding, Kind};
use crate::facts::{Facts, Link};
use crate::state::{Want, list};
use crate::tunnel::contents::Contents;
use crate::tunnel::device::{self, Device};
use crate::tunnel::plan::{attachments, emerging, has_ipv4, is_device};
use crate::tunnel::programs::{Hook, no_bpffs};
use crate::tunnel::{DEFAULT_BPFFS, Decapsulate, Mss, Tunnel};
use crate::vip::LOOPBACK;

/// Everything that is wrong and that `apply` mends.
pub fn check(facts: &Facts, want: &Want) -> Vec<Finding> {
    let Some(tunnel) = &want.tunnel else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    strict(facts, want, tunnel, &mut findings);
    programs(facts, want, tunnel, &mut findings);
    if tunnel.decapsulate == Decapsulate::Kernel {
        devices(facts, want, tunnel, &mut findings);
        unfiltered(facts, want, &mut findings);
    }
    findings
}

/// What `apply` must not work around.
pub fn obstacles(facts: &Facts, want: &Want) -> Vec<Finding> {
    let (Some(tunnel), Some(programs)) = (&want.tunnel, &facts.programs) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    if !programs.has_bpffs {
        findings.push(Finding {
            kind: Kind::Bpffs,
            problem: no_bpffs(&tunnel.bpffs),
            fix: "mount -t bpf bpf /sys/fs/bpf".to_owned(),
        });
    }
    for name in &want.interfaces {
        if let Some(program) = programs.foreign.get(name) {
            findings.push(Finding {
                kind: Kind::Program,
                problem: format!("{name} has an XDP program (id {program}) that is not lb-agent's"),
                fix: format!("ip link set dev {name} xdp off"),
            });
        }
    }
    if tunnel.decapsulate == Decapsulate::Kernel {
        for device in device::needed(want, tunnel) {
            kernel_device(facts, device, &mut findings);
        }
    }
    findings
}

fn kernel_device(facts: &Facts, device: Device, findings: &mut Vec<Finding>) {
    let name = device.name();
    if facts.link(name).is_some() && is_device(facts, device).is_none() {
        findings.push(Finding {
            kind: Kind::Device,
            problem: format!(
                "the interface {name} is of another kind than {}",
                device.kind()
            ),
            fix: format!("ip link del {name}"),
        });
    } else if !facts.devices.contains(&device) {
        findings.push(Finding {
            kind: Kind::Device,
            problem: format!(
                "this kernel has no module {}, so it cannot decapsulate; lb-agent's own program \
                 can: --decapsulate xdp",
                device.module()
            ),
            fix: format!("modprobe {}", device.module()),
        });
    }
}

/// Reverse path filters that drop what clients send.
fn strict(facts: &Facts, want: &Want, tunnel: &Tunnel, findings: &mut Vec<Finding>) {
    if !want.vips.iter().any(|vip| vip.is_ipv4()) {
        return;
    }
    let value = |name: &str| {
        let key = Key::new(name, Setting::RpFilter);
        facts.sysctls.get(&key).copied()
    };
    let all = value(ALL).unwrap_or_default();
    for name in emerging(want, tunnel) {
        let Some(own) = value(&name) else { continue };
        let now = effective(all, own);
        if now != 0 && facts.link(&name).is_some() && !has_ipv4(facts, &name) {
            let (problem, fix) = without_address(&name, now);
            findings.push(Finding {
                kind: Kind::Sysctl,
                problem,
                fix,
            });
        }
        if !Setting::RpFilter.protects(now) {
            findings.push(Finding {
                kind: Kind::Sysctl,
                problem: format!(
                    "{name}: the effective rp_filter is {now} (all {all}, {name} {own}): {}",
                    Setting::RpFilter.harm(now)
                ),
                fix: Key::new(&name, Setting::RpFilter).command(Setting::RpFilter.wanted()),
            });
        }
    }
}

/// Where there is no address, only 0 is loose enough.
fn without_address(name: &str, now: i32) -> (String, String) {
    let problem = format!(
        "{name} has no IPv4 address, so the effective rp_filter of {now} drops all IPv4 packets \
         of clients"
    );
    let device = Device::EACH
        .into_iter()
        .find(|device| device.name() == name);
    let fix = match device.and_then(Device::address) {
        Some(held) => format!("ip address add {held} scope host"),
        None => format!(
            "sysctl -w net.ipv4.conf.all.rp_filter=0 {}=0",
            Key::new(name, Setting::RpFilter)
        ),
    };
    (problem, fix)
}

fn programs(facts: &Facts, want: &Want, tunnel: &Tunnel, findings: &mut Vec<Finding>) {
    let Some(programs) = &facts.programs else {
        return;
    };
    let mut found = |problem: String| {
        findings.push(Finding {
            kind: Kind::Program,
            problem,
            fix: command(want, tunnel),
        });
    };
    let contents = Contents::wanted(facts, want, tunnel);
    match &programs.contents {
        Some(now) if *now == contents => {}
        Some(now) if now.build != contents.build => {
            found("the programs in the kernel are those of another lb-agent".to_owned());
        }
        Some(now) => found(format!(
            "the programs were told `{now}`, and it should be `{contents}`"
        )),
        None => found("lb-agent's programs are not in the kernel".to_owned()),
    }
    for (hook, name) in attachments(facts, want, tunnel).difference(&programs.attached) {
        let harm = match (hook, tunnel.decapsulate) {
            (Hook::Arriving, Decapsulate::Kernel) => {
                "anybody's encapsulated packets are let in, not only the directors'"
            }
            (Hook::Arriving, _) => "the directors' packets are not taken out of their tunnel",
            (Hook::Leaving, _) => "clients may send segments that do not fit into the tunnel",
        };
        let program = hook.program();
        found(format!("{program} is not attached to {name}: {harm}"));
    }
}

fn devices(facts: &Facts, want: &Want, tunnel: &Tunnel, findings: &mut Vec<Finding>) {
    for device in device::needed(want, tunnel) {
        let name = device.name();
        let (problem, fix) = match is_device(facts, device) {
            Some(true) => continue,
            Some(false) => (
                format!("the tunnel device {name} is down"),
                format!("ip link set dev {name} up"),
            ),
            None => {
                let interface = want.interfaces.first().map_or("NAME", String::as_str);
                (
                    format!(
                        "there is no tunnel device {name}: the directors' packets are not \
                         taken out of their tunnel"
                    ),
                    device.command(interface),
                )
            }
        };
        findings.push(Finding {
            kind: Kind::Device,
            problem,
            fix,
        });
    }
}

/// The kernel's devices take packets from every interface.
fn unfiltered(facts: &Facts, want: &Want, findings: &mut Vec<Finding>) {
    let has_address = |link: &&Link| {
        let mut addresses = facts.addresses.iter();
        addresses.any(|held| held.interface == link.name)
    };
    let open = facts.links.iter().filter(|link| {
        let is_named = want.interfaces.contains(&link.name);
        link.up && link.name != LOOPBACK && link.is_ethernet && !is_named
    });
    for link in open.filter(has_address) {
        let mut wider = want.clone();
        wider.interfaces.push(link.name.clone());
        let Some(tunnel) = &wider.tunnel else {
            continue;
        };
        findings.push(Finding {
            kind: Kind::Program,
            problem: format!(
                "encapsulated packets that arrive by {} are not filtered, and the kernel's \
                 tunnel devices take them from anybody; filter them there too, or let \
                 lb-agent's program decapsulate: --decapsulate xdp",
                link.name
            ),
            fix: command(&wider, tunnel),
        });
    }
}

/// The command that applies all of it.
pub fn command(want: &Want, tunnel: &Tunnel) -> String {
    let mut words = vec![
        "lb-agent apply --mode tun".to_owned(),
        format!("--vip {}", list(&want.vips)),
        format!("--director {}", list(&tunnel.directors)),
        format!("--interface {}", list(&want.interfaces)),
        format!("--decapsulate {}", tunnel.decapsulate.name()),
    ];
    if tunnel.mss != Mss::Auto {
        words.push(format!("--mss {}", tunnel.mss));
    }
    if tunnel.bpffs.as_os_str() != DEFAULT_BPFFS {
        words.push(format!("--bpffs {}", tunnel.bpffs.display()));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::testing::{hold, host, vips};
    use crate::plan;
    use crate::tunnel::programs::Programs;
    use crate::tunnel::testing::tunnel;

    fn world(decapsulate: Decapsulate) -> (Facts, Want) {
        let mut facts = host(&["eth0", "eth1"]);
        hold(&mut facts, "198.51.100.21", 24, "eth0");
        facts.programs = Some(Programs {
            has_bpffs: true,
            ..Programs::default()
        });
        let want = Want {
            vips: vips(&["203.0.113.10", "2001:db8::10"]),
            interfaces: vec!["eth0".to_owned()],
            tunnel: Some(tunnel(decapsulate, &["192.0.2.2"])),
        };
        (facts, want)
    }

    fn problems(facts: &Facts, want: &Want) -> Vec<String> {
        let findings = check(facts, want);
        findings.into_iter().map(|f| f.problem).collect()
    }

    fn lines(facts: &Facts, want: &Want) -> Vec<String> {
        let steps = crate::tunnel::plan::steps(facts, None, want);
        steps.build.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_missing_is_what_apply_does() {
        let (mut facts, want) = world(Decapsulate::Xdp);
        let told = lines(&facts, &want);
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].starts_with("tunnel settings: absent -> xdp mss 1440/1420"));
        assert_eq!(told[1], "lb_decapsulate on eth0: absent -> present");
        assert_eq!(told[2], "lb_mss on eth0: absent -> present");
        assert_eq!(problems(&facts, &want).len(), 3);

        let contents = Contents::wanted(&facts, &want, want.tunnel.as_ref().unwrap());
        let programs = facts.programs.as_mut().unwrap();
        programs.contents = Some(contents);
        for hook in [Hook::Arriving, Hook::Leaving] {
            programs.attached.insert((hook, "eth0".to_owned()));
        }
        assert_eq!(lines(&facts, &want), [""; 0]);
        assert_eq!(problems(&facts, &want), [""; 0]);

        // Those of another lb-agent are replaced, and what holds them by itself
        // one by one.
        for by_filter in [false, true] {
            let mut facts = facts.clone();
            let programs = facts.programs.as_mut().unwrap();
            programs.by_filter = by_filter;
            programs.contents.as_mut().unwrap().build += 1;
            let told = lines(&facts, &want);
            let kept = told.iter().filter(|line| line.starts_with("lb_mss"));
            assert_eq!(kept.count(), usize::from(by_filter), "{told:?}");
        }

        // A new address is something the programs must be told.
        hold(&mut facts, "198.51.100.22", 24, "eth0");
        let told = problems(&facts, &want);
        assert!(told[0].contains("198.51.100.22"), "{told:?}");
    }

    #[test]
    fn the_greater_rp_filter_counts() {
        let (mut facts, want) = world(Decapsulate::Xdp);
        let mended = |facts: &Facts| {
            let mut findings = Vec::new();
            strict(facts, &want, want.tunnel.as_ref().unwrap(), &mut findings);
            findings.pop().map(|finding| finding.fix)
        };
        let fix = Some("sysctl -w net.ipv4.conf.eth0.rp_filter=2".to_owned());
        for (all, own, expected) in [
            (0, 0, &None),
            (0, 1, &fix),
            (1, 0, &fix),
            (1, 2, &None),
            (2, 1, &None),
        ] {
            for (name, value) in [(ALL, all), ("eth0", own)] {
                let key = Key::new(name, Setting::RpFilter);
                facts.sysctls.insert(key, value);
            }
            assert_eq!(&mended(&facts), expected, "all {all}, eth0 {own}");
            let plan = plan::apply(&facts, None, &want);
            let changed = plan.changes.iter().any(|change| {
                change.to_string() == format!("net.ipv4.conf.eth0.rp_filter: {own} -> 2")
            });
            assert_eq!(changed, expected.is_some(), "all {all}, eth0 {own}");
        }
    }

    #[test]
    fn the_kernels_devices_are_made_behind_the_filter_and_removed_first() {
        let (mut facts, want) = world(Decapsulate::Kernel);
        facts.devices = Device::EACH.into();
        assert_eq!(obstacles(&facts, &want), []);
        let told = lines(&facts, &want);
        let filter = told.iter().position(|l| l.starts_with("lb_decapsulate"));
        let device = told.iter().position(|l| l.starts_with("lbtun4:"));
        assert!(filter < device && device.is_some(), "{told:?}");
        assert!(told.contains(&"lbtun64: absent -> present".to_owned()));
        assert!(
            problems(&facts, &want)
                .iter()
                .any(|p| p.contains("lbtun64"))
        );

        for device in [Device::Ipip, Device::Sit] {
            facts.links.push(Link {
                index: 10,
                name: device.name().to_owned(),
                up: true,
                mtu: 1480,
                is_ethernet: false,
                kind: Some(device.kind().to_owned()),
                xdp: None,
            });
        }
        let key = Key::new("lbtun4", Setting::RpFilter);
        facts.sysctls.insert(key, 1);
        let told = lines(&facts, &want);
        for line in [
            "127.0.0.4/32 dev lbtun4: absent -> present",
            "net.ipv4.conf.lbtun4.rp_filter: 1 -> 2",
        ] {
            assert!(told.contains(&line.to_owned()), "{told:?}");
        }
        let findings = check(&facts, &want);
        let fix = "ip address add 127.0.0.4/32 dev lbtun4 scope host";
        assert!(findings.iter().any(|f| f.fix == fix), "{findings:?}");
        assert!(
            !told.iter().any(|line| line.starts_with("lbtun")),
            "{told:?}"
        );

        let programs = facts.programs.as_mut().unwrap();
        programs.is_pinned = true;
        programs
            .attached
            .insert((Hook::Arriving, "eth0".to_owned()));
        let steps = crate::tunnel::plan::steps(&facts, want.tunnel.as_ref(), &Want::default());
        let told: Vec<String> = steps.clear.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "lbtun4: present -> absent",
                "lbtun64: present -> absent",
                "lb_decapsulate on eth0: present -> absent",
                "tunnel settings: absent -> absent",
            ]
        );

        // A second interface with an address is a way round the filter.
        hold(&mut facts, "192.0.2.21", 24, "eth1");
        let findings = check(&facts, &want);
        let open = findings.iter().find(|f| f.problem.contains("by eth1 are"));
        assert!(open.unwrap().fix.contains("--interface eth0,eth1"));
    }

    #[test]
    fn obstacles_are_named() {
        let (mut facts, want) = world(Decapsulate::Kernel);
        let programs = facts.programs.as_mut().unwrap();
        programs.has_bpffs = false;
        programs.foreign.insert("eth0".to_owned(), 7);
        let fixes: Vec<String> = obstacles(&facts, &want)
            .into_iter()
            .map(|f| f.fix)
            .collect();
        assert_eq!(
            fixes,
            [
                "mount -t bpf bpf /sys/fs/bpf",
                "ip link set dev eth0 xdp off",
                "modprobe ipip",
                "modprobe sit",
            ]
        );
    }
}
