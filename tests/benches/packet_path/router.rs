//! The director as NAT backends' gateway: it forwards, and knows the way to
//! the clients.

use integration::Host;

use crate::world::{DIRECTOR_MAC, ROUTER_MAC};

/// Where its packets come from and go to.
pub const INTERFACE: &str = "nat0";
/// The other end.
const PEER: &str = "nat1";

/// Addresses of the director, of the clients' router, and the clients.
const NETWORKS: [[&str; 3]; 2] = [
    ["192.0.2.2/24", "192.0.2.1", "198.18.0.0/16"],
    ["2001:db8:2::2/64", "2001:db8:2::1", "2001:db8:18::/64"],
];

/// Makes a host such a gateway.
pub fn set_up(host: &Host) -> anyhow::Result<()> {
    let [own, router] = [DIRECTOR_MAC, ROUTER_MAC].map(text);
    let pair = ["link", "add", "name", INTERFACE, "address", &own];
    host.run(
        "ip",
        [&pair[..], &["type", "veth", "peer", "name", PEER]].concat(),
    )?;
    for interface in [PEER, INTERFACE] {
        host.run("ip", ["link", "set", "dev", interface, "up"])?;
    }
    host.set_sysctl(&format!("net.ipv4.conf.{INTERFACE}.forwarding"), 1)?;
    host.set_sysctl("net.ipv6.conf.all.forwarding", 1)?;
    for [address, via, clients] in NETWORKS {
        host.add_address(INTERFACE, address)?;
        let entry = ["neighbour", "replace", via, "lladdr", &router];
        let state = ["nud", "permanent", "dev", INTERFACE];
        host.run("ip", [&entry[..], &state].concat())?;
        host.run("ip", ["route", "add", clients, "via", via])?;
    }
    Ok(())
}

/// A MAC address as `ip` reads it.
pub fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
