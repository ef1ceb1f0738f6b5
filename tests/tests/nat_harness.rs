//! The labs of NAT mode lead replies where they shall, before any balancer is
//! there.

use anyhow::{Context, ensure};
use integration::topology::{Family, Nat, Net, Place, Site};

/// A request past the VIP.
fn ask_directly(site: &Site, family: Family) -> anyhow::Result<String> {
    let url = format!("http://{}/", site.backend_name(family, 80, 0));
    let curl = ["--silent", "--globoff", "--max-time", "2", &url];
    site.client.run("curl", curl)
}

fn set_forwarding(site: &Site, value: u8) -> anyhow::Result<()> {
    for key in [
        "net.ipv4.conf.all.forwarding",
        "net.ipv6.conf.all.forwarding",
    ] {
        site.director.set_sysctl(key, value)?;
    }
    Ok(())
}

/// What a backend sends comes through the director, wherever it is.
#[test]
fn backends_reach_clients_through_the_director() -> anyhow::Result<()> {
    for (name, place) in [
        ("nathop", Place::BehindDirector),
        ("natside", Place::BesideDirector),
        ("natfar", Place::BehindRouter),
    ] {
        let site = Site::nat(name, Nat::GATEWAY.at(place), 1)?;
        for family in [Family::V4, Family::V6] {
            set_forwarding(&site, 1)?;
            let what = || format!("{place:?}, {family}");
            let answer = ask_directly(&site, family).with_context(what)?;
            ensure!(answer == "b1\n", "{}: {answer}", what());
            set_forwarding(&site, 0)?;
            ensure!(
                ask_directly(&site, family).is_err(),
                "{}: not through the director",
                what()
            );
        }
    }
    Ok(())
}

/// With full NAT they reach the director, and clients not at all.
#[test]
fn backends_of_full_nat_reach_no_client() -> anyhow::Result<()> {
    for (name, place) in [
        ("fullhop", Place::BehindDirector),
        ("fullside", Place::BesideDirector),
    ] {
        let nat = Nat::FULL.at(place);
        let site = Site::nat(name, nat, 1)?;
        let backend = &site.backends[0].host;
        for family in [Family::V4, Family::V6] {
            let client = Net::Clients.address(family, 100).to_string();
            ensure!(backend.run("ip", ["route", "get", &client]).is_err());
            let pool = nat.pool(family).to_string();
            backend.run("ip", ["route", "get", &pool])?;
        }
    }
    Ok(())
}
