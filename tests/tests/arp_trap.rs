//! What the kernel answers by ARP and NDP for a VIP that a backend holds, and
//! what it says about the VIP unasked. Real frames on an Ethernet segment.
//!
//! Needs root.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use integration::asker::Asker;
use integration::packets::{Arp, Ndp, NdpKind, Operation, PacketSocket};
use integration::{Host, Lab, Mac, Segment, eventually};
use serde_json::Value;

const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x10);
const RIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 21);
const RIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x21);
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 100);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x100);
/// In no subnet of the backend's.
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// A VIP that is in no subnet of the backend's.
const FAR_VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

const SOON: Duration = Duration::from_secs(10);

/// A client and a backend on a segment; the backend has another interface, on
/// a segment of its own.
struct Bench {
    client: Host,
    backend: Host,
    backend_mac: Mac,
    segment: Segment,
    lab: Lab,
}

impl Bench {
    fn new(name: &str) -> anyhow::Result<Self> {
        let lab = Lab::new(name)?;
        let segment = lab.segment("lan")?;
        let other = lab.segment("other")?;
        let client = lab.host("client")?;
        client.attach(
            &segment,
            "eth0",
            &[&format!("{CLIENT}/24"), &format!("{CLIENT6}/64")],
        )?;
        let backend = lab.host("backend")?;
        let backend_mac = backend.attach(
            &segment,
            "eth0",
            &[&format!("{RIP}/24"), &format!("{RIP6}/64")],
        )?;
        backend.attach(&other, "eth1", &["192.0.2.21/24"])?;
        Ok(Self {
            client,
            backend,
            backend_mac,
            segment,
            lab,
        })
    }

    fn asker(&self) -> anyhow::Result<Asker> {
        Asker::new(&self.client, "eth0", CLIENT6, self.backend_mac, RIP6)
    }

    /// Sets a sysctl of the backend: `arp_ignore` or `arp_announce`.
    fn set(&self, interface: &str, name: &str, value: i32) -> anyhow::Result<()> {
        self.backend
            .set_sysctl(&format!("net.ipv4.conf.{interface}.{name}"), value)
    }

    fn ip(&self, args: &str) -> anyhow::Result<String> {
        self.backend.run("ip", args.split_whitespace())
    }
}

/// Where the backend holds the VIP, always with /32.
const PLACES: [(&str, &str); 6] = [
    ("lo", "global"),
    ("lo", "host"),
    ("eth0", "global"),
    ("eth0", "link"),
    ("eth0", "host"),
    ("eth1", "global"),
];

/// The request arrives on eth0. `X` is an answer, `-` is silence.
#[rustfmt::skip]
const ARP_IGNORE: [(&str, &str, &str, [char; 5]); 12] = [
    // VIP on  scope     sender is in       0    1    2    3    8  = arp_ignore
    ("lo",   "global", "eth0's subnet",  ['X', '-', '-', 'X', '-']),
    ("lo",   "global", "no subnet",      ['X', '-', '-', 'X', '-']),
    ("lo",   "host",   "eth0's subnet",  ['X', '-', '-', '-', '-']),
    ("lo",   "host",   "no subnet",      ['X', '-', '-', '-', '-']),
    ("eth0", "global", "eth0's subnet",  ['X', 'X', 'X', 'X', '-']),
    ("eth0", "global", "no subnet",      ['X', 'X', '-', 'X', '-']),
    ("eth0", "link",   "eth0's subnet",  ['X', 'X', 'X', 'X', '-']),
    ("eth0", "link",   "no subnet",      ['X', 'X', '-', 'X', '-']),
    ("eth0", "host",   "eth0's subnet",  ['X', 'X', 'X', '-', '-']),
    ("eth0", "host",   "no subnet",      ['X', 'X', '-', '-', '-']),
    ("eth1", "global", "eth0's subnet",  ['X', '-', '-', 'X', '-']),
    ("eth1", "global", "no subnet",      ['X', '-', '-', 'X', '-']),
];

#[test]
fn arp_ignore_decides_for_which_addresses_requests_are_answered() -> anyhow::Result<()> {
    let bench = Bench::new("ignore")?;
    let asker = bench.asker()?;
    let mut wrong = Vec::new();
    for (place, scope) in PLACES {
        bench.ip(&format!("address add {VIP}/32 dev {place} scope {scope}"))?;
        let rows = ARP_IGNORE
            .iter()
            .filter(|row| (row.0, row.1) == (place, scope));
        assert_eq!(rows.clone().count(), 2, "{place} {scope}");
        for (_, _, sender, expected) in rows {
            let from = match *sender {
                "no subnet" => STRANGER,
                _ => CLIENT,
            };
            for (value, expected) in [0, 1, 2, 3, 8].into_iter().zip(expected) {
                bench.set("eth0", "arp_ignore", value)?;
                let seen = if asker.arp(from, VIP)? { 'X' } else { '-' };
                if seen != *expected {
                    wrong.push(format!(
                        "VIP on {place}, scope {scope}, sender in {sender}, arp_ignore {value}: \
                         expected {expected}, saw {seen}"
                    ));
                }
            }
        }
        bench.ip(&format!("address del {VIP}/32 dev {place}"))?;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A probe is a request of somebody who has no address yet (RFC 5227). With
/// arp_ignore 2 it counts as coming from the right subnet.
#[test]
fn probes_are_answered_like_requests() -> anyhow::Result<()> {
    let bench = Bench::new("probe")?;
    let asker = bench.asker()?;
    for (place, expected) in [
        ("lo", [true, false, false, true, false]),
        ("eth0", [true, true, true, true, false]),
    ] {
        bench.ip(&format!("address add {VIP}/32 dev {place}"))?;
        for (value, expected) in [0, 1, 2, 3, 8].into_iter().zip(expected) {
            bench.set("eth0", "arp_ignore", value)?;
            let seen = asker.arp(Ipv4Addr::UNSPECIFIED, VIP)?;
            assert_eq!(seen, expected, "VIP on {place}, arp_ignore {value}");
        }
        bench.ip(&format!("address del {VIP}/32 dev {place}"))?;
    }
    Ok(())
}

#[test]
fn of_all_and_the_interface_the_greater_value_counts_and_it_may_be_the_worse() -> anyhow::Result<()>
{
    let bench = Bench::new("greater")?;
    let asker = bench.asker()?;
    bench.ip(&format!("address add {VIP}/32 dev lo"))?;
    #[rustfmt::skip]
    let table = [
        // all  eth0  answered
        (0,     0,    true),
        (1,     0,    false),
        (0,     1,    false),
        (2,     1,    false),
        (1,     8,    false),
        // 3 keeps silent for scope host only,
        (1,     3,    true),
        (3,     1,    true),
        // 4 to 7 and everything above 8 mean nothing.
        (1,     4,    true),
        (7,     2,    true),
        (1,     9,    true),
        (100,   8,    true),
    ];
    for (all, eth0, expected) in table {
        bench.set("all", "arp_ignore", all)?;
        bench.set("eth0", "arp_ignore", eth0)?;
        assert_eq!(asker.arp(CLIENT, VIP)?, expected, "all {all}, eth0 {eth0}");
    }
    // `lo` is not asked: no request ever arrives there.
    bench.set("all", "arp_ignore", 0)?;
    bench.set("eth0", "arp_ignore", 0)?;
    bench.set("lo", "arp_ignore", 1)?;
    assert!(asker.arp(CLIENT, VIP)?, "arp_ignore on lo alone");
    Ok(())
}

/// The backend's own ARP requests while it talks from the VIP: which address
/// they name as sender, and what the router makes of it. The backend is told
/// to answer nothing for the VIP (arp_ignore 1), so this is all arp_announce.
#[test]
fn arp_announce_decides_whom_a_backend_claims_to_be() -> anyhow::Result<()> {
    let bench = Bench::new("announce")?;
    bench.set("all", "arp_ignore", 1)?;
    let (router, router_ip) = (&bench.client, CLIENT);
    let director = bench.lab.host("director")?;
    let director_mac = director.attach(
        &bench.segment,
        "eth0",
        &[
            "203.0.113.2/24",
            &format!("{VIP}/32"),
            &format!("{FAR_VIP}/32"),
        ],
    )?;
    for vip in [VIP, FAR_VIP] {
        bench.ip(&format!("address add {vip}/32 dev lo"))?;
    }
    router.run("ip", ["route", "add", "198.51.100.10/32", "dev", "eth0"])?;

    #[rustfmt::skip]
    let table = [
        // all  eth0  the VIP is   the sender is
        (0,     0,    VIP,         VIP),
        (0,     0,    FAR_VIP,     FAR_VIP),
        (0,     1,    VIP,         VIP),
        (0,     1,    FAR_VIP,     RIP),
        (1,     0,    FAR_VIP,     RIP),
        (0,     2,    VIP,         RIP),
        (0,     2,    FAR_VIP,     RIP),
        (2,     0,    VIP,         RIP),
        (2,     1,    VIP,         RIP),
        // Everything above 2 counts as 0.
        (2,     3,    VIP,         VIP),
    ];
    for (all, eth0, vip, sender) in table {
        let case = format!("all {all}, eth0 {eth0}, VIP {vip}");
        bench.set("all", "arp_announce", all)?;
        bench.set("eth0", "arp_announce", eth0)?;
        router.flush_neighbours()?;

        // The router knows the director as the one who has the VIP.
        send_udp(router, router_ip, vip)?;
        wait_for_neighbour(router, vip, director_mac);

        let wire = PacketSocket::open(router, "eth0")?;
        bench.backend.flush_neighbours()?;
        send_udp(&bench.backend, vip, router_ip)?;
        let request = wire.receive_where(SOON, |frame| {
            Arp::parse(frame).filter(|arp| {
                arp.operation == Operation::Request
                    && arp.sender_mac == bench.backend_mac
                    && arp.target_ip == router_ip
            })
        })?;
        let request = request.unwrap_or_else(|| panic!("{case}: the backend asks nothing"));
        assert_eq!(request.sender_ip, sender, "{case}");

        // The router has learnt from the request, whatever the sender was.
        wait_for_neighbour(router, sender, bench.backend_mac);
        let owner = if sender == vip {
            bench.backend_mac
        } else {
            director_mac
        };
        let known = router.neighbour(vip.into(), "eth0")?;
        assert_eq!(known, Some(owner), "{case}: the router's entry");
    }
    Ok(())
}

#[track_caller]
fn wait_for_neighbour(host: &Host, ip: Ipv4Addr, mac: Mac) {
    eventually(&format!("{ip} to be known at {mac}"), SOON, || {
        match host.neighbour(ip.into(), "eth0") {
            Ok(Some(known)) if known == mac => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

fn send_udp(
    from: &Host,
    source: impl Into<IpAddr>,
    target: impl Into<IpAddr>,
) -> anyhow::Result<()> {
    let (source, target) = (source.into(), target.into());
    from.in_namespace(|| {
        let socket = UdpSocket::bind((source, 0))?;
        socket.send_to(b"hello", (target, 9))?;
        Ok(())
    })
}

/// IPv6 has no such trap and no such sysctls: a solicitation is answered only
/// for an address of the interface on which it arrives.
#[test]
fn ndp_is_answered_on_the_interface_that_has_the_address() -> anyhow::Result<()> {
    let bench = Bench::new("ndp")?;
    let asker = bench.asker()?;
    wait_for_answer(&asker, RIP6);
    for (place, expected) in [("lo", false), ("eth1", false), ("eth0", true)] {
        bench.ip(&format!("address add {VIP6}/128 dev {place} nodad"))?;
        // A multicast solicitation reaches only who has joined the group,
        // which the kernel does some time after the address is there. All
        // addresses that end in the same 24 bits share a group; once one of
        // them is answered for, silence is not for lack of hearing.
        let same_group = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 0x10);
        bench.ip(&format!("address add {same_group}/128 dev eth0 nodad"))?;
        wait_for_answer(&asker, same_group);
        assert_eq!(asker.ndp(VIP6)?, expected, "VIP on {place}");
        bench.ip(&format!("address del {same_group}/128 dev eth0"))?;
        bench.ip(&format!("address del {VIP6}/128 dev {place}"))?;
    }
    // Unless it is told to answer for others.
    bench
        .backend
        .set_sysctl("net.ipv6.conf.all.forwarding", 1)?;
    bench
        .backend
        .set_sysctl("net.ipv6.conf.eth0.proxy_ndp", 1)?;
    bench.ip(&format!("route add {VIP6}/128 dev eth1"))?;
    bench.ip(&format!("neighbour add proxy {VIP6} dev eth0"))?;
    wait_for_answer(&asker, VIP6);
    Ok(())
}

#[track_caller]
fn wait_for_answer(asker: &Asker, target: Ipv6Addr) {
    eventually(&format!("an answer for {target}"), SOON, || {
        match asker.ndp(target) {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// Nor does IPv6 need anything like arp_announce: the source address of a
/// solicitation is always one of the interface that it leaves by.
#[test]
fn a_backend_that_talks_from_an_ipv6_vip_on_lo_does_not_claim_it() -> anyhow::Result<()> {
    let bench = Bench::new("ndpsrc")?;
    let wire = PacketSocket::open(&bench.client, "eth0")?;
    for (place, claims) in [("lo", false), ("eth0", true)] {
        bench.ip(&format!("address add {VIP6}/128 dev {place} nodad"))?;
        bench.backend.flush_neighbours()?;
        send_udp(&bench.backend, VIP6, CLIENT6)?;
        let solicitation = wire.receive_where(SOON, |frame| {
            Ndp::parse(frame)
                .filter(|ndp| ndp.kind == NdpKind::Solicitation && ndp.target == CLIENT6)
        })?;
        let source = solicitation.map(|ndp| ndp.source);
        assert_eq!(source == Some(VIP6), claims, "VIP on {place}: {source:?}");
        assert!(source.is_some());
        bench.ip(&format!("address del {VIP6}/128 dev {place}"))?;
    }
    Ok(())
}

/// On eth0, with duplicate address detection at work, the second holder of the
/// VIP gets to know; on lo there is nothing to detect.
#[test]
fn duplicate_address_detection_finds_a_vip_on_eth0_and_not_on_lo() -> anyhow::Result<()> {
    let bench = Bench::new("dad")?;
    let director = bench.lab.host("director")?;
    director.attach(&bench.segment, "eth0", &[&format!("{VIP6}/64")])?;
    bench
        .backend
        .set_sysctl("net.ipv6.conf.eth0.accept_dad", 1)?;
    bench.backend.set_sysctl("net.ipv6.conf.lo.accept_dad", 1)?;

    bench.ip(&format!("address add {VIP6}/64 dev eth0"))?;
    eventually("the collision to be found", SOON, || {
        let flags = vip6_flags(&bench, "eth0").map_err(|e| format!("{e:#}"))?;
        flags
            .iter()
            .any(|flag| flag == "dadfailed")
            .then_some(())
            .ok_or(format!("{flags:?}"))
    });
    bench.ip(&format!("address del {VIP6}/64 dev eth0"))?;

    // Tentative for the moment that the kernel takes to see that there is
    // nothing to do, unless it is told so.
    bench.ip(&format!("address add {VIP6}/128 dev lo"))?;
    eventually("the address on lo to be usable", SOON, || {
        let flags = vip6_flags(&bench, "lo").map_err(|e| format!("{e:#}"))?;
        flags.is_empty().then_some(()).ok_or(format!("{flags:?}"))
    });
    bench.ip(&format!("address del {VIP6}/128 dev lo"))?;
    bench.ip(&format!("address add {VIP6}/128 dev lo nodad"))?;
    assert_eq!(vip6_flags(&bench, "lo")?, [""; 0], "usable at once");
    Ok(())
}

/// Which of tentative and dadfailed the VIP's entry shows.
fn vip6_flags(bench: &Bench, ifname: &str) -> anyhow::Result<Vec<String>> {
    let text = bench.ip(&format!("-json -6 address show dev {ifname}"))?;
    let links: Value = serde_json::from_str(&text)?;
    let entries = links[0]["addr_info"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let entry = entries
        .iter()
        .find(|entry| entry["local"] == VIP6.to_string())
        .ok_or_else(|| anyhow::anyhow!("{VIP6} is not on {ifname}: {text}"))?;
    Ok(["tentative", "dadfailed"]
        .into_iter()
        .filter(|flag| entry[*flag] == true)
        .map(str::to_owned)
        .collect())
}
