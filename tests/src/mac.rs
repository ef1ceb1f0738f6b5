use std::fmt;
use std::str::FromStr;

/// An Ethernet address, in the order in which it stands on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// All zero: "not known", as an ARP request has it for its target.
    pub const ZERO: Self = Self([0; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let wrong = || anyhow::anyhow!("{text:?} is not a MAC address like 02:00:00:00:00:01");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_octets_agree() {
        let mac: Mac = "02:6c:62:00:0A:ff".parse().unwrap();
        assert_eq!(mac, Mac([0x02, 0x6c, 0x62, 0x00, 0x0a, 0xff]));
        assert_eq!(mac.to_string(), "02:6c:62:00:0a:ff");
        for wrong in ["", "02:6c:62:00:0a", "02:6c:62:00:0a:ff:00", "0g:0:0:0:0:0"] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
