//! An Ethernet segment: a bridge in a namespace of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::Context;

use crate::{Host, Mac, try_eventually};

const BRIDGE: &str = "br0";

/// An Ethernet segment that hosts attach to. Clones are the same segment.
#[derive(Clone, Debug)]
pub struct Segment(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The namespace of the bridge.
    switch: Host,
    /// Number of the segment in its lab.
    number: u8,
    ports: AtomicU16,
    macs: AtomicU16,
    /// Where the program is pinned that passes everything.
    xdp_pass: PathBuf,
}

impl Segment {
    /// Makes the bridge in the namespace `switch`.
    pub(crate) fn new(switch: Host, number: u8, xdp_pass: &Path) -> anyhow::Result<Self> {
        // A switch has no business with IP.
        switch.set_sysctl("net.ipv6.conf.default.disable_ipv6", 1)?;
        switch.ip_batch(&[
            format!("link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0"),
            format!("link set dev {BRIDGE} up"),
        ])?;
        Ok(Self(Arc::new(Inner {
            switch,
            number,
            ports: AtomicU16::new(0),
            macs: AtomicU16::new(0),
            xdp_pass: xdp_pass.to_owned(),
        })))
    }

    /// The namespace that holds the bridge and the ports.
    pub fn switch(&self) -> &Host {
        &self.0.switch
    }

    /// Names of the ports, in the order in which hosts were attached.
    pub fn ports(&self) -> Vec<String> {
        (1..=self.0.ports.load(Ordering::Relaxed))
            .map(port_name)
            .collect()
    }

    /// A MAC address that no other in the lab has: locally administered, then
    /// "lb", the segment's number, and a counter.
    pub(crate) fn next_mac(&self) -> Mac {
        let [high, low] = (self.0.macs.fetch_add(1, Ordering::Relaxed) + 1).to_be_bytes();
        Mac([0x02, b'l', b'b', self.0.number, high, low])
    }

    /// Makes a veth pair between the host and a new port, whose name it returns.
    pub(crate) fn add_veth(&self, host: &Host, ifname: &str, mac: Mac) -> anyhow::Result<String> {
        let port = port_name(self.0.ports.fetch_add(1, Ordering::Relaxed) + 1);
        let switch = &self.0.switch;
        let pass = self.0.xdp_pass.to_str().context("lab path is not UTF-8")?;
        let netns = host.namespace();
        switch.ip_batch(&[
            format!(
                "link add name {port} type veth peer name {ifname} netns {netns} address {mac}"
            ),
            format!("link set dev {port} up xdpdrv pinned {pass}"),
        ])?;
        // A switch passes frames as they are. A port with an XDP program would
        // merge segments, and what comes of them when they are parted again
        // carries unfinished checksums, with which XDP forwards them.
        switch.run("ethtool", ["-K", &port, "gro", "off", "tx", "off"])?;
        Ok(port)
    }

    /// Puts a port into the bridge and waits until it forwards.
    pub(crate) fn connect(&self, port: &str) -> anyhow::Result<()> {
        let switch = &self.0.switch;
        switch.run("ip", ["link", "set", "dev", port, "master", BRIDGE])?;
        try_eventually(
            "a bridge port that forwards",
            Duration::from_secs(5),
            || {
                let link = switch.link(port).map_err(|e| format!("{e:#}"))?;
                let state = &link["linkinfo"]["info_slave_data"]["state"];
                (state == "forwarding")
                    .then_some(())
                    .ok_or(state.to_string())
            },
        )
    }
}

fn port_name(number: u16) -> String {
    format!("port{number}")
}
