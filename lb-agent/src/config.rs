//! The configuration file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::vip::Vip;

/// What the configuration file may say. Flags override it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The VIPs that this backend holds.
    pub vips: Vec<Vip>,
    /// Names of the interfaces that face the segment.
    pub interfaces: Vec<String>,
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
    fn mistakes_are_named() {
        for (text, reason) in [
            ("vip = [\"203.0.113.10\"]", "unknown field `vip`"),
            ("vips = [\"203.0.113.10/32\"]", "without a prefix length"),
        ] {
            let error = toml::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
