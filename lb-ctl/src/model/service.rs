use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use super::{Backend, BackendAddress, HealthCheck};

/// A VIP, protocol and port, how its packets are forwarded, and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "web", "vip": "203.0.113.10", "port": 80, "protocol": "tcp",
    "mode": "dr", "scheduler": "mh",
    "backends": [{"address": "203.0.113.21", "weight": 1}]
}))]
pub struct Service {
    /// Unique name.
    #[schema(value_type = String)]
    pub name: ServiceName,
    /// Address that clients speak to.
    #[schema(value_type = String)]
    pub vip: IpAddr,
    /// Port that clients speak to; 0 stands for every port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// How packets reach a backend.
    pub mode: Mode,
    /// In `nat` mode, translate the source as well, to an address and port of
    /// `settings.nat_pool`: backends then need no particular route. Otherwise
    /// the director must be on the backends' route to the clients.
    #[serde(default, skip_serializing_if = "is_false")]
    pub full_nat: bool,
    /// How a new flow gets its backend.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// Who answers pings of the VIP. If its services differ, the strongest wish
    /// decides: `forward`, then `answer`, then `host`.
    #[serde(default, skip_serializing_if = "Ping::is_default")]
    pub ping: Ping,
    /// How to find out whether a backend is up; without it every backend is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// The real servers.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

impl Service {
    /// The backend with this address.
    pub fn backend(&self, address: &BackendAddress) -> Option<&Backend> {
        self.backends.iter().find(|b| b.address == *address)
    }

    /// The backend with this address.
    pub fn backend_mut(&mut self, address: &BackendAddress) -> Option<&mut Backend> {
        self.backends.iter_mut().find(|b| b.address == *address)
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
pub(super) const fn is_false(value: &bool) -> bool {
    !*value
}

/// Name of a service: 1 to 63 letters, digits, `.`, `_` or `-`, the first of
/// them a letter or a digit. Safe in a path, a label and a shell.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ServiceName(String);

impl ServiceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(allowed)
        {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "{text:?} cannot be the name of a service: use 1 to 63 letters, digits, \
             \".\", \"_\" or \"-\", beginning with a letter or a digit"
        ))
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Declares an enum whose variants have one name in JSON, on the command line
/// and in messages.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
            ToSchema, clap::ValueEnum,
        )]
        #[serde(rename_all = "lowercase")]
        #[value(rename_all = "lowercase")]
        pub enum $type { $($(#[$variant_doc])* $variant,)* }

        impl $type {
            /// The name, as in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
pub(super) use named;

named! {
    /// Transport protocol of a service.
    Protocol {
        /// TCP, RFC 9293.
        Tcp = "tcp",
        /// UDP, RFC 768.
        Udp = "udp",
        /// SCTP, RFC 9260.
        Sctp = "sctp",
    }
}

impl Protocol {
    /// IP protocol number (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => lb_common::protocol::TCP,
            Self::Udp => lb_common::protocol::UDP,
            Self::Sctp => lb_common::protocol::SCTP,
        }
    }
}

named! {
    /// How packets reach a backend.
    Mode {
        /// VS/DR: rewrite the MAC addresses.
        Dr = "dr",
        /// VS/TUN: wrap in IP.
        Tun = "tun",
        /// VS/NAT: rewrite addresses and ports.
        Nat = "nat",
    }
}

named! {
    /// How a new flow gets its backend; the names are ipvsadm's.
    #[derive(Default)]
    Scheduler {
        /// Maglev hashing: computed from the packet, the same on every director.
        #[default]
        Mh = "mh",
        /// Source hashing.
        Sh = "sh",
        /// Destination hashing.
        Dh = "dh",
        /// Round robin.
        Rr = "rr",
        /// Weighted round robin.
        Wrr = "wrr",
        /// Least connections.
        Lc = "lc",
        /// Weighted least connections.
        Wlc = "wlc",
        /// Shortest expected delay.
        Sed = "sed",
        /// Never queue.
        Nq = "nq",
        /// Weighted failover.
        Fo = "fo",
        /// Weighted overflow.
        Ovf = "ovf",
    }
}

named! {
    /// Who answers pings of a VIP, from the weakest wish to the strongest.
    #[derive(Default)]
    Ping {
        /// The director's own stack.
        #[default]
        Host = "host",
        /// The packet path on the director, also when the host's stack would
        /// not. Pings with IP options or extension headers, and those that are
        /// larger than a frame, are left to the host's stack.
        Answer = "answer",
        /// A backend, in the modes `dr` and `tun`: the one that the service's
        /// ring has for the client's address and the ping's identifier. The
        /// same pings are left to the host's stack.
        Forward = "forward",
    }
}

impl Ping {
    /// As the packet path has it.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Host => lb_common::vip::ping::HOST,
            Self::Answer => lb_common::vip::ping::ANSWER,
            Self::Forward => lb_common::vip::ping::FORWARD,
        }
    }

    /// Whether nobody wants anything.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The wish as the end of a list of what a service is, for a person.
    pub(crate) const fn note(self) -> &'static str {
        match self {
            Self::Host => "",
            Self::Answer => ", ping answer",
            Self::Forward => ", ping forward",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn names_are_those_of_json_and_of_the_command_line() {
        for scheduler in Scheduler::value_variants() {
            let name = scheduler.name();
            assert_eq!(serde_json::to_value(scheduler).unwrap(), name);
            assert_eq!(scheduler.to_possible_value().unwrap().get_name(), name);
        }
        assert_eq!(serde_json::to_value(Mode::Dr).unwrap(), Mode::Dr.name());
        for ping in Ping::value_variants() {
            assert_eq!(serde_json::to_value(ping).unwrap(), ping.name());
        }
        assert_eq!(
            serde_json::to_value(Protocol::Udp).unwrap(),
            Protocol::Udp.name()
        );
    }

    #[test]
    fn service_names_are_safe_in_a_path() {
        for good in ["web", "Web-1.example_x", "0", &"a".repeat(63)] {
            assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".", "a b", "a/b", "é", "a%", &"a".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }
}
