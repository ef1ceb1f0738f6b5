//! Who has which address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Which of a host's two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The VIP: 203.0.113.10 or 2001:db8:0:1::10.
    pub fn vip(self) -> IpAddr {
        Net::Director.address(self, 10)
    }

    /// The VIP as it stands in a URL.
    pub fn vip_in_url(self) -> String {
        match self.vip() {
            IpAddr::V4(vip) => vip.to_string(),
            IpAddr::V6(vip) => format!("[{vip}]"),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A network of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// The director's, with the VIPs: 203.0.113.0/24, 2001:db8:0:1::/64.
    Director,
    /// The clients', in a lab with routers: 198.51.100.0/24, 2001:db8:0:100::/64.
    Clients,
    /// The backends', in a lab with routers: 192.0.2.0/24, 2001:db8:0:2::/64.
    Backends,
}

impl Net {
    /// The address that ends in `number`; in IPv6 its hexadecimal digits read
    /// the same.
    pub fn address(self, family: Family, number: u8) -> IpAddr {
        let (v4, v6) = match self {
            Self::Director => ([203, 0, 113], 0x1),
            Self::Clients => ([198, 51, 100], 0x100),
            Self::Backends => ([192, 0, 2], 0x2),
        };
        match family {
            Family::V4 => Ipv4Addr::new(v4[0], v4[1], v4[2], number).into(),
            Family::V6 => {
                let n = u16::from(number);
                let digits = ((n / 100) << 8) | ((n / 10 % 10) << 4) | (n % 10);
                Ipv6Addr::new(0x2001, 0xdb8, 0, v6, 0, 0, 0, digits).into()
            }
        }
    }

    /// The network, such as `192.0.2.0/24`.
    pub fn prefix(self, family: Family) -> String {
        self.with_length(family, 0)
    }

    /// An address with the length of the network's prefix, such as
    /// `192.0.2.21/24`.
    pub(super) fn with_length(self, family: Family, number: u8) -> String {
        let length = match family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        format!("{}/{length}", self.address(family, number))
    }
}
