//! Desired states in files.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};

use crate::model::{Config, text};

/// Reads a desired state from a file, TOML if it is named so, else JSON; `-`
/// is standard input.
///
/// # Errors
/// When it cannot be read or is not a valid desired state; the error names
/// the field.
pub fn read(path: &Path) -> Result<Config> {
    let shown = path.display();
    let mut content = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .read_to_string(&mut content)
            .context("cannot read standard input")?;
    } else {
        content = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    }
    let is_toml = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("toml"));
    let config = if is_toml {
        text::from_toml::<Config>(&content)
    } else {
        text::from_json::<Config>(content.as_bytes())
    };
    let config = config.with_context(|| shown.to_string())?;
    config.validate().with_context(|| shown.to_string())?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_and_the_field_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        let toml = "[[services]]\nname = 'web'\nvip = '203.0.113.10'\nport = 80\n\
                    protocol = 'tcp'\nmode = 'dr'\nscheduler = 'wlc'\n";
        std::fs::write(&path, toml).unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(
            error.contains("x.toml: services[0].scheduler: scheduler wlc"),
            "{error}"
        );
        std::fs::write(&path, toml.replace("wlc", "mh")).unwrap();
        assert_eq!(read(&path).unwrap().services.len(), 1);
        let error = format!("{:#}", read(&dir.path().join("none")).unwrap_err());
        assert!(error.contains("none: No such file"), "{error}");
    }
}
