//! VIPs, and the addresses that a host holds.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The loopback interface, which is where a backend holds its VIPs.
pub const LOOPBACK: &str = "lo";

/// An address that a service can have: unicast, global, no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Vip(IpAddr);

impl Vip {
    /// Accepts `address` if a service can have it; the error says why not.
    pub fn new(address: IpAddr) -> Result<Self, String> {
        let kind = match address {
            _ if address.is_unspecified() => "the unspecified address",
            _ if address.is_loopback() => "a loopback address",
            _ if address.is_multicast() => "a multicast address",
            IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
            IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
                "an IPv4 address in IPv6 notation; write it as IPv4"
            }
            _ => return Ok(Self(address)),
        };
        Err(format!("{address} cannot be a VIP: it is {kind}"))
    }

    /// The address itself.
    pub const fn address(self) -> IpAddr {
        self.0
    }

    /// Whether ARP is what resolves it.
    pub const fn is_ipv4(self) -> bool {
        self.0.is_ipv4()
    }

    /// Prefix length with which a backend holds it: all bits. A shorter one
    /// on `lo` would make the whole subnet local.
    pub const fn prefix(self) -> u8 {
        if self.is_ipv4() { 32 } else { 128 }
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Vip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.parse() {
            Ok(address) => Self::new(address),
            Err(_) if text.contains('/') => Err(format!(
                "`{text}`: a VIP is written without a prefix length, like 203.0.113.10"
            )),
            Err(_) => Err(format!(
                "`{text}` is not an IP address; a VIP looks like 203.0.113.10 or 2001:db8::10"
            )),
        }
    }
}

impl TryFrom<String> for Vip {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Vip> for String {
    fn from(vip: Vip) -> Self {
        vip.to_string()
    }
}

/// How far the kernel lets an address be known: RT_SCOPE_* of rtnetlink(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scope(pub u8);

impl Scope {
    /// Never chosen as the source address for somebody outside this host,
    /// which is why VIPs are added with it.
    pub const HOST: Self = Self(254);
    /// What `ip address add` gives an address unless told otherwise.
    pub const GLOBAL: Self = Self(0);
}

/// An address on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The host's own address, not that of a point-to-point peer.
    pub address: IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// Name of the interface.
    pub interface: String,
    /// Scope.
    pub scope: Scope,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} dev {}", self.address, self.prefix, self.interface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_a_vip() {
        for good in ["203.0.113.10", " 2001:db8::10 "] {
            assert_eq!(good.parse::<Vip>().unwrap().to_string(), good.trim());
        }
        for (bad, reason) in [
            ("203.0.113.10/32", "without a prefix"),
            ("web", "not an IP address"),
            ("0.0.0.0", "unspecified"),
            ("::", "unspecified"),
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("fe80::1", "link-local"),
            ("::ffff:203.0.113.10", "IPv4"),
        ] {
            let error = bad.parse::<Vip>().unwrap_err();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }
}
