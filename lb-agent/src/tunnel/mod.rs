//! TUN mode: packets arrive inside others, from directors anywhere.
//!
//! [`programs`] are ours, in the kernel: one lets in what comes from the
//! directors and, unless a [`device`] of the kernel does so, takes it out of
//! its outer packet; the other lowers the MSS in SYN-ACKs. [`contents`] is
//! what these programs are told, [`check`] what is wrong with all of it.

pub mod check;
pub mod contents;
pub mod device;
pub mod plan;
pub mod programs;
pub mod status;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::prefix::Prefix;

/// Where programs and maps are pinned unless told otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/lb-agent";

/// How packets come to this backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As they are, from a director on the same segment.
    Dr,
    /// Encapsulated in IP, from directors anywhere.
    Tun,
}

/// Who takes packets out of their outer packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Decapsulate {
    /// The kernel's tunnel devices if it has them, else our program.
    #[default]
    Auto,
    /// The kernel's tunnel devices (ipip, sit, ip6_tunnel).
    Kernel,
    /// Our XDP program.
    Xdp,
}

impl Decapsulate {
    /// As it is written in flags and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Xdp => "xdp",
        }
    }
}

/// The largest MSS that SYN-ACKs from a VIP may offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mss {
    /// What fits into the interface's MTU after encapsulation.
    #[default]
    Auto,
    /// Whatever the kernel offers.
    Off,
    /// So many bytes.
    At(u16),
}

impl fmt::Display for Mss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::At(bytes) => bytes.fmt(f),
        }
    }
}

impl FromStr for Mss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            number => match number.parse() {
                // RFC 9293: every host takes segments of 536 bytes.
                Ok(bytes @ 536..) => Ok(Self::At(bytes)),
                _ => Err(format!(
                    "`{number}` is no MSS: it is `auto`, `off`, or bytes from 536 to 65535"
                )),
            },
        }
    }
}

impl Serialize for Mss {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::At(bytes) => serializer.serialize_u16(*bytes),
            word => serializer.collect_str(word),
        }
    }
}

impl<'de> Deserialize<'de> for Mss {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(i64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What TUN mode asks of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Where encapsulated packets are accepted from.
    pub directors: Vec<Prefix>,
    /// Who takes them out of their outer packets.
    pub decapsulate: Decapsulate,
    /// The largest MSS to offer.
    pub mss: Mss,
    /// Where programs and maps are pinned.
    pub bpffs: PathBuf,
}

impl Tunnel {
    /// Bytes that the largest outer header adds.
    pub fn overhead(&self) -> u32 {
        if self.directors.iter().all(|prefix| prefix.is_ipv4()) {
            20
        } else {
            40
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// What `decapsulate` and a list of directors come to.
    pub fn tunnel(decapsulate: Decapsulate, directors: &[&str]) -> Tunnel {
        Tunnel {
            directors: directors.iter().map(|text| text.parse().unwrap()).collect(),
            decapsulate,
            mss: Mss::Auto,
            bpffs: DEFAULT_BPFFS.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mss_is_a_word_or_a_number() {
        for (json, mss) in [
            ("\"auto\"", Mss::Auto),
            ("\"off\"", Mss::Off),
            ("1400", Mss::At(1400)),
        ] {
            assert_eq!(serde_json::from_str::<Mss>(json).unwrap(), mss);
            assert_eq!(serde_json::to_string(&mss).unwrap(), json);
        }
        for bad in ["0", "535", "65536", "-1", "\"on\""] {
            let error = serde_json::from_str::<Mss>(bad).unwrap_err().to_string();
            assert!(error.contains("from 536"), "{bad}: {error}");
        }
    }
}
