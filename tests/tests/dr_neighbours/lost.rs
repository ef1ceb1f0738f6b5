//! Backends that the kernel cannot find any more, without a health check that
//! would say so.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use integration::talk::{Flow, Pace, Protocol, Talkers};
use integration::topology::{DrLab, Family, INTERFACE};

use super::{FAMILIES, LONG, PORT, echo, name, serve, talk};

/// The director's kernel gives a neighbour up sooner than by default.
fn impatient(lab: &DrLab) -> anyhow::Result<()> {
    for (key, value) in [("base_reachable_time_ms", 1000), ("retrans_time_ms", 100)] {
        for version in ["ipv4", "ipv6"] {
            let key = format!("net.{version}.neigh.{INTERFACE}.{key}");
            lab.director.set_sysctl(&key, value)?;
        }
    }
    Ok(())
}

/// It gets no new connections.
#[test]
fn a_backend_that_goes_away_is_not_scheduled() -> anyhow::Result<()> {
    let mut lab = DrLab::new("away", 2)?;
    impatient(&lab)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab, &[0, 1])?;
    let host = &lab.backends[1].host;
    host.run("ip", ["link", "set", "dev", INTERFACE, "down"])?;
    for family in FAMILIES {
        let address = lab.backends[1].address(family);
        lab.wait_backend_state(&name(family), address, "unresolved", LONG)?;
        let alone = talk(&lab.client, family, 30)?.by_backend();
        ensure!(alone.keys().eq(["b1"]), "{alone:?}");
    }
    Ok(())
}

fn ask(lab: &DrLab, family: Family, count: usize) -> anyhow::Result<Talkers> {
    const PACE: Pace = Pace {
        every: Duration::from_millis(100),
        patience: Duration::from_secs(1),
    };
    let vip = SocketAddr::new(family.vip(), PORT);
    Talkers::start(&lab.client, Protocol::Udp, vip, count, PACE)
}

/// UDP has no SYN that would tell a new flow: so that none is lost on a
/// backend that cannot be reached, all its flows go to another.
#[test]
fn udp_flows_leave_a_backend_that_goes_away() -> anyhow::Result<()> {
    let mut lab = DrLab::new("udpaway", 3)?;
    impatient(&lab)?;
    lab.start_director(&[])?;
    let _echoes = [echo(&lab, 0)?, echo(&lab, 1)?, echo(&lab, 2)?];
    for family in FAMILIES {
        let service = lab.plain_service(&name(family), family, Protocol::Udp, PORT, &[0, 1]);
        lab.put_service(&service)?;
    }
    let talks = FAMILIES.map(|family| ask(&lab, family, 60));
    let talks = talks.into_iter().collect::<Result<Vec<_>, _>>()?;
    // Another backend: some flows of the one that is to go are recorded.
    for family in FAMILIES {
        let service = lab.plain_service(&name(family), family, Protocol::Udp, PORT, &[0, 1, 2]);
        lab.put_service(&service)?;
    }
    for talk in &talks {
        talk.round("before")?;
        talk.ensure_steady("before")?;
    }
    let host = &lab.backends[1].host;
    host.run("ip", ["link", "set", "dev", INTERFACE, "down"])?;
    for (family, talk) in FAMILIES.into_iter().zip(&talks) {
        let address = lab.backends[1].address(family);
        lab.wait_backend_state(&name(family), address, "unresolved", LONG)?;
        talk.round("after the kernel has given it up")?;
        let stays = |flow: &Flow| flow.backends[0] != "b2";
        talk.ensure_steady_of("on the other backends", stays)?;
        ensure!(
            !talk.by_backend().contains_key("b2"),
            "{:?}",
            talk.by_backend()
        );
        ask(&lab, family, 60)?.ensure_steady("as new flows")?;
    }
    Ok(())
}

/// An empty neighbour table is filled again in a moment: no reason to move
/// anything.
#[test]
fn a_flushed_neighbour_table_moves_no_flow() -> anyhow::Result<()> {
    let mut lab = DrLab::new("flushed", 2)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab, &[0, 1])?;
    for family in FAMILIES {
        let mut service = lab.plain_service("udp", family, Protocol::Udp, PORT, &[0, 1]);
        service["name"] = format!("udp-{family}").into();
        lab.put_service(&service)?;
    }
    let mut talks = Vec::new();
    for family in FAMILIES {
        talks.push(talk(&lab.client, family, 10)?);
        talks.push(ask(&lab, family, 10)?);
    }
    let generations = || -> anyhow::Result<Vec<Option<u64>>> {
        let names = FAMILIES.iter().flat_map(|f| [name(*f), format!("udp-{f}")]);
        let rings = names.map(|name| lab.service_status(&name));
        let rings = rings.map(|s| Ok(s?["ring"]["generation"].as_u64()));
        rings.collect()
    };
    let before = generations()?;
    for _ in 0..5 {
        lab.director.flush_neighbours()?;
        for talk in &talks {
            talk.round("after the neighbour table was flushed")?;
        }
    }
    for talk in &talks {
        talk.ensure_steady("at the end")?;
    }
    let after = generations()?;
    ensure!(before == after, "{before:?} {after:?}");
    Ok(())
}
