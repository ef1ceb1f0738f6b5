//! One sysctl: where it is, reading it, writing it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use nix::libc;
use serde::{Deserialize, Serialize};

/// A sysctl by its path, such as `net/ipv4/conf/eth0.100/forwarding`. sysctl(8)
/// takes it in this form too, in which a dot in an interface's name is only
/// that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sysctl(String);

/// The IP version that a sysctl is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Version {
    /// The directory with a directory for each interface.
    pub const fn directory(self) -> &'static str {
        match self {
            Self::V4 => "net/ipv4/conf",
            Self::V6 => "net/ipv6/conf",
        }
    }
}

impl Sysctl {
    /// A sysctl of an interface.
    pub fn new(version: Version, interface: &str, name: &str) -> Self {
        Self(format!("{}/{interface}/{name}", version.directory()))
    }

    /// The interface, if it is a sysctl of this IP version.
    pub fn interface(&self, version: Version) -> Option<&str> {
        let rest = self.0.strip_prefix(version.directory())?;
        let (interface, _) = rest.strip_prefix('/')?.rsplit_once('/')?;
        Some(interface)
    }

    /// Whether it decides what becomes of router advertisements.
    pub fn is_about_announcements(&self) -> bool {
        self.0.ends_with("/accept_ra")
    }

    /// Reads it below `root`; `None` if there is none such, because the
    /// interface is gone.
    ///
    /// # Errors
    /// When it cannot be read, or is no number.
    pub fn read(&self, root: &Path) -> io::Result<Option<i32>> {
        match fs::read_to_string(self.path(root)) {
            Ok(text) => match text.trim().parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(io::Error::other(format!("{text:?} is no number"))),
            },
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it below `root`; `false` if there is none such.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, root: &Path, value: i32) -> io::Result<bool> {
        // Not `fs::write`, which would ask to create what is gone.
        let file = OpenOptions::new().write(true).open(self.path(root));
        match file.and_then(|mut file| file.write_all(format!("{value}\n").as_bytes())) {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn path(&self, root: &Path) -> PathBuf {
        root.join(&self.0)
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_gone(error: &io::Error) -> bool {
    // ENODEV: the file was found, the interface went away meanwhile.
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_may_have_dots() {
        let sysctl = Sysctl::new(Version::V4, "eth0.100", "forwarding");
        assert_eq!(sysctl.to_string(), "net/ipv4/conf/eth0.100/forwarding");
        assert_eq!(sysctl.interface(Version::V4), Some("eth0.100"));
        assert_eq!(sysctl.interface(Version::V6), None);
    }
}
