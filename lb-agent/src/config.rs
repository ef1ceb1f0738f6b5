//! The configuration file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::prefix::Prefix;
use crate::tunnel::{Decapsulate, Mode, Mss};
use crate::vip::Vip;

/// What the configuration file may say. Flags override it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The VIPs that this backend holds.
    pub vips: Vec<Vip>,
    /// Names of the interfaces that face the segment.
    pub interfaces: Vec<String>,
    /// How packets come to this backend.
    pub mode: Option<Mode>,
    /// Where encapsulated packets are accepted from.
    pub directors: Vec<Prefix>,
    /// Who takes them out of their outer packets.
    pub decapsulate: Option<Decapsulate>,
    /// The largest MSS to offer.
    pub mss: Option<Mss>,
    /// Where programs and maps are pinned.
    pub bpffs: Option<PathBuf>,
    /// Directory of the state file.
    pub state: Option<PathBuf>,
}

impl Config {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// When it cannot be read, or says something it may not: with the line.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        toml::from_str(&text)
            .with_context(|| format!("the configuration {} is wrong", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_valid() {
        let config: Config = toml::from_str(include_str!("../deploy/agent.toml")).unwrap();
        assert_eq!(config.vips.len(), 2);
    }

    #[test]
    fn tun_mode_is_a_few_lines() {
        let text = "mode = \"tun\"\ndirectors = [\"192.0.2.2\", \"2001:db8::/64\"]\n\
                    decapsulate = \"xdp\"\nmss = 1400\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.mode, Some(Mode::Tun));
        assert_eq!(config.directors.len(), 2);
        assert_eq!(config.decapsulate, Some(Decapsulate::Xdp));
        assert_eq!(config.mss, Some(Mss::At(1400)));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, reason) in [
            ("vip = [\"203.0.113.10\"]", "unknown field `vip`"),
            ("vips = [\"203.0.113.10/32\"]", "without a prefix length"),
            ("directors = [\"192.0.2.2/24\"]", "write 192.0.2.0/24"),
            ("mss = 100", "from 536"),
            ("mode = \"nat\"", "unknown variant `nat`"),
        ] {
            let error = toml::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
