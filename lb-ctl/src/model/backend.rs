use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

/// A real server within one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// RIP, in `nat` mode with the port.
    #[schema(value_type = String, example = "203.0.113.21")]
    pub address: BackendAddress,
    /// Share of new flows relative to the service's other backends; 0 drains.
    #[serde(
        default = "Backend::default_weight",
        deserialize_with = "deserialize_weight"
    )]
    #[schema(minimum = 0, maximum = 65535, default = 1)]
    pub weight: u32,
}

impl Backend {
    /// Largest weight.
    pub const MAX_WEIGHT: u32 = 65_535;

    const fn default_weight() -> u32 {
        1
    }
}

/// Address of a backend: `ip` in the modes `dr` and `tun`, `ip:port` or
/// `[ip]:port` in `nat`. Its text form is canonical (RFC 5952 for IPv6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendAddress {
    /// RIP.
    pub ip: IpAddr,
    /// The backend's port, in `nat` mode only.
    pub port: Option<u16>,
}

impl From<IpAddr> for BackendAddress {
    fn from(ip: IpAddr) -> Self {
        Self { ip, port: None }
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => self.ip.fmt(f),
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
        }
    }
}

impl FromStr for BackendAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(ip) = text.parse() {
            return Ok(Self { ip, port: None });
        }
        // SocketAddr would accept a zone ("[fe80::1%2]:80") and drop it.
        match text.parse::<SocketAddr>() {
            Ok(address) if !text.contains('%') => Ok(Self {
                ip: address.ip(),
                port: Some(address.port()),
            }),
            _ => Err(format!(
                "{text:?} is not an address: write 203.0.113.21 or 2001:db8::21, \
                 in nat mode 203.0.113.21:8080 or [2001:db8::21]:8080"
            )),
        }
    }
}

impl Serialize for BackendAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackendAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Reads a weight with an error that says what a weight can be.
pub(crate) fn deserialize_weight<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<u32, D::Error> {
    let weight = i64::deserialize(deserializer)?;
    u32::try_from(weight)
        .ok()
        .filter(|weight| *weight <= Backend::MAX_WEIGHT)
        .ok_or_else(|| {
            de::Error::custom(format_args!(
                "a weight is a whole number from 0 (drain) to {}, not {weight}",
                Backend::MAX_WEIGHT
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_in_canonical_form() {
        for (text, canonical) in [
            ("203.0.113.21", "203.0.113.21"),
            ("2001:DB8:0::21", "2001:db8::21"),
            ("203.0.113.21:8080", "203.0.113.21:8080"),
            ("[2001:db8:0::21]:8080", "[2001:db8::21]:8080"),
        ] {
            let address: BackendAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), canonical);
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for text in [
            "",
            "web1",
            "203.0.113",
            "203.0.113.21:",
            "203.0.113.21:65536",
            "[2001:db8::21]",
            "[fe80::1%2]:80",
        ] {
            let error = text.parse::<BackendAddress>().unwrap_err();
            assert!(error.contains("is not an address"), "{text}: {error}");
        }
    }
}
