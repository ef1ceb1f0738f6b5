//! Prefixes of addresses, such as those of the directors.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A prefix; a single address is one with all bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Accepts it if no bit is set beyond `length`; the error says what was
    /// probably meant.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, String> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        if length > most {
            return Err(format!(
                "{address}/{length}: the prefix length is at most {most}"
            ));
        }
        if let IpAddr::V6(v6) = address {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return Err(format!("{address}: write it as IPv4: {v4}"));
            }
            // IPv4 addresses are kept as mapped ones, ::ffff:0:0/96.
            if v6.is_unspecified() && length <= 80 {
                return Err(format!(
                    "{address}/{length} would take in every IPv4 address too; all global IPv6 \
                     addresses are 2000::/3"
                ));
            }
        }
        let network = cut(address, length);
        if network != address {
            return Err(format!(
                "{address}/{length} has bits beyond the prefix; write {network}/{length}, or \
                 {address} for this address alone"
            ));
        }
        Ok(Self { address, length })
    }

    /// The lowest address.
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// Number of bits that count.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// Whether this is an IPv4 prefix.
    pub const fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// An address to look for a route to: that of the first host.
    pub fn first_host(self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) if self.length < 31 => Ipv4Addr::from(u32::from(v4) | 1).into(),
            IpAddr::V6(v6) if self.length < 127 => Ipv6Addr::from(u128::from(v6) | 1).into(),
            address => address,
        }
    }

    fn is_single(self) -> bool {
        self.length == if self.is_ipv4() { 32 } else { 128 }
    }
}

fn cut(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from(u32::from(v4) & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from(u128::from(v6) & mask).into()
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() {
            self.address.fmt(f)
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || {
            format!(
                "`{text}` is neither an address nor a prefix such as 192.0.2.0/24 or 2001:db8::/64"
            )
        };
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        Self::new(address, length.unwrap_or(all))
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_a_prefix() {
        for (text, first) in [
            ("192.0.2.2", "192.0.2.2"),
            ("192.0.2.0/24", "192.0.2.1"),
            ("0.0.0.0/0", "0.0.0.1"),
            ("2001:db8::/64", "2001:db8::1"),
            ("2001:db8::2", "2001:db8::2"),
        ] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix.to_string(), text);
            assert_eq!(prefix.first_host().to_string(), first);
        }
        assert_eq!("192.0.2.2/32".parse(), "192.0.2.2".parse::<Prefix>());
        for (bad, reason) in [
            ("192.0.2.2/24", "write 192.0.2.0/24"),
            ("192.0.2.0/33", "at most 32"),
            ("director", "neither"),
            ("192.0.2.0/x", "neither"),
            ("::/0", "2000::/3"),
            ("::ffff:192.0.2.2", "write it as IPv4"),
        ] {
            let error = bad.parse::<Prefix>().unwrap_err();
            assert!(error.contains(reason), "{bad}: {error}");
        }
    }
}
