//! Which packets belong to which service, and what becomes of the others.
//!
//! Needs root, and `lb-ctl` and `lb-agent` built: `cargo xtask build-ebpf &&
//! cargo build -p lb-ctl -p lb-agent`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::talk::{Echo, Pace, Protocol, Talkers};
use integration::topology::{DrLab, Family, INTERFACE};
use integration::{Host, try_eventually};
use lb_common::counters::DropReason;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(20);

/// Who answers a number of new flows to a port of the VIP.
fn who_answers(
    client: &Host,
    protocol: Protocol,
    family: Family,
    port: u16,
    flows: usize,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let vip = SocketAddr::new(family.vip(), port);
    let talk = Talkers::start(client, protocol, vip, flows, Pace::CALM)?;
    talk.ensure_steady("at once")?;
    Ok(talk.by_backend())
}

/// Makes each backend hold the VIPs and serve these ports of one.
fn serve(lab: &DrLab, family: Family, ports: &[u16]) -> anyhow::Result<Vec<Echo>> {
    let mut echoes = Vec::new();
    for (i, backend) in lab.backends.iter().enumerate() {
        lab.agent_apply(i)?;
        let addresses: Vec<_> = ports
            .iter()
            .map(|&port| SocketAddr::new(family.vip(), port))
            .collect();
        echoes.push(Echo::start(&backend.host, &addresses)?);
    }
    Ok(echoes)
}

/// An exact port goes before port 0, and TCP and UDP have nothing to do with
/// each other.
fn ports_and_protocols(name: &str, family: Family) -> anyhow::Result<()> {
    use Protocol::{Tcp, Udp};
    let mut lab = DrLab::new(name, 4)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab, family, &[5000, 5001, 6000])?;
    let answers = |protocol, port| {
        let seen = who_answers(&lab.client, protocol, family, port, 24)?;
        anyhow::Ok(seen.into_keys().collect::<Vec<_>>().join(" "))
    };
    lab.put_service(&lab.plain_service("exact", family, Tcp, 5000, &[0]))?;
    lab.put_service(&lab.plain_service("udp", family, Udp, 5000, &[1]))?;
    ensure!(answers(Tcp, 5000)? == "b1");
    ensure!(answers(Udp, 5000)? == "b2");

    lab.put_service(&lab.plain_service("every", family, Tcp, 0, &[2, 3]))?;
    ensure!(answers(Tcp, 5000)? == "b1");
    ensure!(answers(Tcp, 5001)? == "b3 b4");
    ensure!(answers(Tcp, 6000)? == "b3 b4");
    ensure!(answers(Udp, 5000)? == "b2");

    // UDP on port 0, next to all of these.
    lab.put_service(&lab.plain_service("udp-every", family, Udp, 0, &[3]))?;
    ensure!(answers(Udp, 6000)? == "b4");
    ensure!(answers(Udp, 5000)? == "b2");
    ensure!(answers(Tcp, 6000)? == "b3 b4");

    // Without the exact ones, port 0 has those ports too.
    for service in ["exact", "udp"] {
        lab.api().delete(&format!("/v1/services/{service}"))?.ok()?;
    }
    ensure!(answers(Tcp, 5000)? == "b3 b4");
    ensure!(answers(Udp, 5000)? == "b4");
    Ok(())
}

#[test]
fn ports_and_protocols_v4() -> anyhow::Result<()> {
    ports_and_protocols("ports4", Family::V4)
}

#[test]
fn ports_and_protocols_v6() -> anyhow::Result<()> {
    ports_and_protocols("ports6", Family::V6)
}

/// What is for no service is for the director itself.
fn the_rest_is_the_directors_own(name: &str, family: Family) -> anyhow::Result<()> {
    let mut lab = DrLab::new(name, 1)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab, family, &[7080])?;
    lab.put_service(&lab.plain_service("web", family, Protocol::Tcp, 7080, &[0]))?;
    let vip = family.vip();
    lab.wait_status("the VIP on the director", LONG, |_| {
        lab.director_has(vip).ok() == Some(true)
    })?;
    let _own = Echo::start(&lab.director, &[SocketAddr::new(vip, 2222)])
        .context("on the director's VIP")?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let seen = who_answers(&lab.client, protocol, family, 2222, 10)?;
        ensure!(seen.keys().eq(["director"]), "{seen:?}");
    }
    let seen = who_answers(&lab.client, Protocol::Tcp, family, 7080, 10)?;
    ensure!(seen.keys().eq(["b1"]), "{seen:?}");
    let target = vip.to_string();
    lab.client
        .run("ping", ["-c", "3", "-i", "0.2", "-W", "5", &target])?;
    // A closed port is refused by the director, not swallowed.
    let closed = SocketAddr::new(vip, 2223);
    let refused = lab
        .client
        .in_namespace(|| std::net::TcpStream::connect_timeout(&closed, LONG));
    let kind = refused.err().map(|e| e.kind());
    ensure!(
        kind == Some(std::io::ErrorKind::ConnectionRefused),
        "{kind:?}"
    );
    let drops = lab.status()?["drops"].take();
    let mut dropped = drops.as_array().into_iter().flatten();
    ensure!(dropped.all(|d| d["count"] == 0), "{drops}");
    Ok(())
}

#[test]
fn the_rest_is_the_directors_own_v4() -> anyhow::Result<()> {
    the_rest_is_the_directors_own("own4", Family::V4)
}

#[test]
fn the_rest_is_the_directors_own_v6() -> anyhow::Result<()> {
    the_rest_is_the_directors_own("own6", Family::V6)
}

/// A client behind a router whose other link carries less. Only if the
/// router's complaints, sent to the VIP, reach the backend that they are
/// about, does a download get through.
fn downloads_pass_a_narrow_link(name: &str, family: Family) -> anyhow::Result<()> {
    const SIZE: u64 = 5_000_000;
    const NARROW: &str = "1300";
    let mut lab = DrLab::new(name, 3)?;
    let outside = lab.lab.segment("outside")?;
    let router = lab.lab.host("router")?;
    let client = lab.lab.host("far")?;
    router.attach(
        &lab.segment,
        INTERFACE,
        &["203.0.113.1/24", "2001:db8:0:1::1/64"],
    )?;
    let second = ["198.51.100.1/24", "2001:db8:0:2::1/64"];
    router.attach(&outside, "eth1", &second)?;
    router.run("ip", ["link", "set", "dev", "eth1", "mtu", NARROW])?;
    for (key, value) in [
        ("net.ipv4.ip_forward", 1),
        ("net.ipv6.conf.all.forwarding", 1),
        ("net.ipv4.icmp_ratelimit", 0),
        ("net.ipv6.icmp.ratelimit", 0),
    ] {
        router.set_sysctl(key, value)?;
    }
    let far = ["198.51.100.100/24", "2001:db8:0:2::100/64"];
    client.attach(&outside, INTERFACE, &far)?;
    for (to, via) in [
        ("203.0.113.0/24", "198.51.100.1"),
        ("2001:db8:0:1::/64", "2001:db8:0:2::1"),
    ] {
        client.run("ip", ["route", "add", to, "via", via])?;
    }
    for (i, backend) in lab.backends.iter().enumerate() {
        for (to, via) in [
            ("198.51.100.0/24", "203.0.113.1"),
            ("2001:db8:0:2::/64", "2001:db8:0:1::1"),
        ] {
            backend.host.run("ip", ["route", "add", to, "via", via])?;
        }
        let nginx = backend.nginx.as_ref().context("nginx runs")?;
        nginx.add_file("large", SIZE)?;
        lab.agent_apply(i)?;
    }
    lab.start_director(&[])?;
    lab.put_service(&lab.plain_service("web", family, Protocol::Tcp, 80, &[0, 1, 2]))?;

    let url = format!("http://{}/files/large", family.vip_in_url());
    let mut served = BTreeMap::new();
    // A backend that nobody has asked yet does not know of the narrow link.
    try_eventually("all backends to have served", 3 * LONG, || {
        let format = "%{http_code} %{size_download} %header{x-backend}";
        let args = ["-sS", "-m", "20", "-o", "/dev/null", "-w", format, &url];
        let answer = client.run("curl", args).map_err(|e| format!("{e:#}"));
        // What fails once has failed.
        let answer = answer.unwrap_or_else(|e| panic!("{e}"));
        let words: Vec<&str> = answer.split(' ').collect();
        assert_eq!(words[..2], ["200", &SIZE.to_string()], "{answer}");
        *served.entry(words[2].to_owned()).or_insert(0) += 1;
        (served.len() == 3).then_some(()).ok_or("not all")
    })?;
    // They have learnt it from the router, not by trying.
    let client_ip = match family {
        Family::V4 => "198.51.100.100",
        Family::V6 => "2001:db8:0:2::100",
    };
    let vip = family.vip().to_string();
    for backend in &lab.backends {
        let args = ["route", "get", client_ip, "from", &vip];
        let route = backend.host.run("ip", args)?;
        ensure!(
            route.contains(&format!("mtu {NARROW}")),
            "{}: {route}",
            backend.name()
        );
    }
    Ok(())
}

#[test]
fn downloads_pass_a_narrow_link_v4() -> anyhow::Result<()> {
    downloads_pass_a_narrow_link("pmtu4", Family::V4)
}

#[test]
fn downloads_pass_a_narrow_link_v6() -> anyhow::Result<()> {
    downloads_pass_a_narrow_link("pmtu6", Family::V6)
}

/// Real connections spread as the weights say, within what chance allows.
fn weights_are_seen(name: &str, family: Family) -> anyhow::Result<()> {
    const PORT: u16 = 7000;
    const FLOWS: usize = 1200;
    let mut lab = DrLab::new(name, 3)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab, family, &[PORT])?;
    let mut service = lab.plain_service("talk", family, Protocol::Tcp, PORT, &[0, 1, 2]);
    let mut spread_as = |weights: [u32; 3]| -> anyhow::Result<()> {
        for (i, weight) in weights.into_iter().enumerate() {
            service["backends"][i]["weight"] = json!(weight);
        }
        lab.put_service(&service)?;
        let seen = who_answers(&lab.client, Protocol::Tcp, family, PORT, FLOWS)?;
        let total: u32 = weights.iter().sum();
        let mut chi2 = 0.0;
        for (backend, weight) in lab.backends.iter().zip(weights) {
            let seen = seen.get(backend.name()).copied().unwrap_or_default();
            let share = f64::from(weight) / f64::from(total);
            if weight == 0 {
                ensure!(seen == 0, "{} is drained: {seen}", backend.name());
                continue;
            }
            let expected = share * FLOWS as f64;
            chi2 += (seen as f64 - expected).powi(2) / expected;
        }
        // At most two degrees of freedom: by chance once in a million runs.
        ensure!(chi2 < 27.7, "{weights:?}: {seen:?}, chi-squared {chi2}");
        Ok(())
    };
    spread_as([1, 1, 1])?;
    spread_as([1, 2, 5])?;
    spread_as([0, 10, 1])?;
    // What the clients saw is what the director has counted.
    let status = lab.service_status("talk")?;
    let flows: u64 = counted(&status, "flows").iter().sum();
    // A SYN that had to be sent twice is counted twice.
    let expected = 3 * FLOWS as u64;
    ensure!(
        (expected..=expected + expected / 100).contains(&flows),
        "{flows}: {status}"
    );
    ensure!(status["flows"].as_u64() == Some(flows), "{status}");
    let packets = counted(&status, "packets");
    let bytes = counted(&status, "bytes");
    for (packets, bytes) in packets.iter().zip(&bytes) {
        let smallest = match family {
            Family::V4 => 40,
            Family::V6 => 60,
        };
        ensure!(*bytes >= packets * smallest, "{bytes} of {packets}");
    }
    Ok(())
}

fn counted(status: &Value, what: &str) -> Vec<u64> {
    let backends = status["backends"].as_array().into_iter().flatten();
    backends.filter_map(|b| b[what].as_u64()).collect()
}

#[test]
fn weights_are_seen_v4() -> anyhow::Result<()> {
    weights_are_seen("weights4", Family::V4)
}

#[test]
fn weights_are_seen_v6() -> anyhow::Result<()> {
    weights_are_seen("weights6", Family::V6)
}

/// What cannot be forwarded is dropped under a name, and said.
fn without_a_backend_drops_are_counted(name: &str, family: Family) -> anyhow::Result<()> {
    const PORT: u16 = 7000;
    let mut lab = DrLab::new(name, 1)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab, family, &[PORT])?;
    let try_once = || {
        let vip = SocketAddr::new(family.vip(), PORT);
        let short = Duration::from_millis(300);
        let tried = lab
            .client
            .in_namespace(|| std::net::TcpStream::connect_timeout(&vip, short));
        tried.map(drop).map_err(|e| e.kind())
    };
    let none = lab.plain_service("talk", family, Protocol::Tcp, PORT, &[]);
    let mut drained = lab.plain_service("talk", family, Protocol::Tcp, PORT, &[0]);
    drained["backends"][0]["weight"] = json!(0);
    let mut down = lab.plain_service("talk", family, Protocol::Tcp, PORT, &[0]);
    down["health_check"] = json!({
        "type": "tcp", "port": 9, "interval_ms": 100, "timeout_ms": 100, "fall": 1,
    });
    for (what, service, warning) in [
        ("no backends", &none, "has no backends"),
        ("a drained backend", &drained, "talk"),
        ("a dead backend", &down, "talk"),
    ] {
        lab.api().put("/v1/services/talk", service)?.ok()?;
        if what == "a dead backend" {
            let address: IpAddr = lab.backends[0].address(family);
            lab.wait_backend_state("talk", address, "down", LONG)?;
        }
        let before = drops(&lab.status()?, "no_backend");
        let tried = try_once();
        ensure!(
            tried == Err(std::io::ErrorKind::TimedOut),
            "{what}: {tried:?}"
        );
        let status = lab.status()?;
        ensure!(drops(&status, "no_backend") > before, "{what}: {status}");
        let warnings = status["warnings"].as_array().context("warnings")?;
        let of_it = |w: &&Value| {
            let is_it = |w: &str| w.contains("service talk") && w.contains(warning);
            w.as_str().is_some_and(is_it)
        };
        let told = warnings.iter().filter(of_it).count();
        ensure!(told == 1, "{what}, told {told} times: {warnings:?}");
        ensure!(lab.lb_ctl(&["status"])?.contains("no_backend"));
    }
    // And back to work.
    let service = lab.plain_service("talk", family, Protocol::Tcp, PORT, &[0]);
    lab.put_service(&service)?;
    let before = drops(&lab.status()?, "no_backend");
    who_answers(&lab.client, Protocol::Tcp, family, PORT, 10)?;
    let after = lab.status()?;
    ensure!(drops(&after, "no_backend") == before, "{after}");
    let warnings = after["warnings"].to_string();
    ensure!(!warnings.contains("talk"), "{warnings}");
    drops_are_listed(&lab, before)
}

/// `lb-ctl drops` tells as many packets as the status, and every reason.
fn drops_are_listed(lab: &DrLab, no_backend: u64) -> anyhow::Result<()> {
    let json: Value = serde_json::from_str(&lab.lb_ctl(&["drops", "--json"])?)?;
    let first = &json[0];
    ensure!(
        first["reason"] == "no_backend" && first["count"] == no_backend,
        "{json}"
    );
    let reasons = json.as_array().context("reasons")?;
    ensure!(reasons.len() == DropReason::ALL.len(), "{json}");
    let happened = reasons.iter().filter(|drop| drop["count"] != 0).count();
    let lines = |args: &[&str]| Ok::<_, anyhow::Error>(lab.lb_ctl(args)?.lines().count());
    let (short, all) = (lines(&["drops"])?, lines(&["drops", "--all"])?);
    ensure!(short == 1 + happened && all == 1 + reasons.len());
    let text = lab.lb_ctl(&["drops"])?;
    let row = text.lines().nth(1).context("no rows")?;
    let meaning = DropReason::NoBackend.meaning();
    ensure!(
        row.contains(&no_backend.to_string()) && row.ends_with(meaning),
        "{text}"
    );
    Ok(())
}

fn drops(status: &Value, reason: &str) -> u64 {
    let mut drops = status["drops"].as_array().into_iter().flatten();
    let drop = drops.find(|d| d["reason"] == reason);
    drop.and_then(|d| d["count"].as_u64()).unwrap_or_default()
}

#[test]
fn without_a_backend_drops_are_counted_v4() -> anyhow::Result<()> {
    without_a_backend_drops_are_counted("drops4", Family::V4)
}

#[test]
fn without_a_backend_drops_are_counted_v6() -> anyhow::Result<()> {
    without_a_backend_drops_are_counted("drops6", Family::V6)
}
