//! A backend of the lab.

use std::net::IpAddr;

use super::{Family, Net};
use crate::nginx::Nginx;
use crate::{Host, Mac};

/// One backend of the lab: a host with nginx on port 80 of all its addresses,
/// in NAT mode on port 8080.
#[derive(Debug)]
pub struct Backend {
    /// Taken out when it is killed.
    pub nginx: Option<Nginx>,
    /// The host, named b1, b2, …
    pub host: Host,
    /// MAC address of its interface.
    pub mac: Mac,
    pub(super) net: Net,
    pub(super) number: u8,
}

impl Backend {
    /// b1, b2, …: what its nginx answers with.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// The RIP: in DR mode b1 has 203.0.113.21 and 2001:db8:0:1::21, in TUN
    /// mode, and where it is not beside the director in NAT mode, 192.0.2.21
    /// and 2001:db8:0:2::21, and so on.
    pub fn address(&self, family: Family) -> IpAddr {
        self.net.address(family, 20 + self.number)
    }
}
