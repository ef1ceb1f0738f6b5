//! The two sysctls that decide whether a VIP on `lo` stays silent, and the one
//! that decides whether decapsulated packets get in.
//!
//! For an interface the kernel uses the greater of its own value and that of
//! `all`, for both. Greater is not safer, though: of the values of
//! `arp_ignore` only 1, 2 and 8 keep silent about an address of another
//! interface (3 does so only for scope host, 4 to 7 and those above 8 mean
//! nothing and answer), and an `arp_announce` above 2 counts as 0. Of
//! `rp_filter` only 1 does harm, so 2 on an interface outweighs a 1 on `all`.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The pseudo interface whose values hold for every interface.
pub const ALL: &str = "all";

/// One of the sysctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// For which addresses ARP requests are answered.
    ArpIgnore,
    /// Which sender address own ARP requests carry.
    ArpAnnounce,
    /// Whether the way back to a packet's source must be the way it came.
    RpFilter,
}

impl Setting {
    /// Those about ARP.
    pub const EACH: [Self; 2] = [Self::ArpIgnore, Self::ArpAnnounce];

    /// Its name below `net.ipv4.conf.INTERFACE`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ArpIgnore => "arp_ignore",
            Self::ArpAnnounce => "arp_announce",
            Self::RpFilter => "rp_filter",
        }
    }

    /// The value to set where the one found does not protect.
    pub const fn wanted(self) -> i32 {
        match self {
            Self::ArpIgnore => 1,
            Self::ArpAnnounce | Self::RpFilter => 2,
        }
    }

    /// Whether this effective value keeps a VIP on `lo` from being seen by
    /// ARP, whatever its scope and subnet; for `rp_filter`, whether it lets in
    /// what comes another way than the answer goes.
    pub const fn protects(self, effective: i32) -> bool {
        match self {
            Self::ArpIgnore => matches!(effective, 1 | 2 | 8),
            Self::ArpAnnounce => effective == 2,
            Self::RpFilter => effective != 1,
        }
    }

    /// What this effective value, which does not protect, lets happen.
    pub const fn harm(self, effective: i32) -> &'static str {
        match (self, effective) {
            (Self::ArpIgnore, 3) => "ARP requests are answered for a VIP of any scope but host",
            (Self::ArpIgnore, _) => "ARP requests for a VIP on lo are answered",
            (Self::ArpAnnounce, 1) => {
                "own ARP requests name the VIP as sender if it is in the interface's subnet"
            }
            (Self::ArpAnnounce, _) => "own ARP requests name the VIP as sender",
            (Self::RpFilter, _) => {
                "packets of clients are dropped unless the answer leaves by the same interface"
            }
        }
    }
}

/// The kernel's rule for all of them.
pub fn effective(all: i32, interface: i32) -> i32 {
    all.max(interface)
}

/// A sysctl of one interface, or of [`ALL`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Name of the interface.
    pub interface: String,
    /// Which sysctl.
    #[serde(rename = "name")]
    pub setting: Setting,
}

impl Key {
    /// The sysctl `setting` of `interface`.
    pub fn new(interface: &str, setting: Setting) -> Self {
        Self {
            interface: interface.to_owned(),
            setting,
        }
    }

    /// Reads the value in this process's network namespace. `None` if there
    /// is no such interface.
    pub fn read(&self) -> io::Result<Option<i32>> {
        match std::fs::read_to_string(self.path()) {
            Ok(text) => match text.trim().parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(io::Error::other(format!(
                    "{self} holds {text:?}, which is no number"
                ))),
            },
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes the value. `false` if there is no such interface.
    pub fn write(&self, value: i32) -> io::Result<bool> {
        // Not `fs::write`, which would ask to create what is gone.
        let file = std::fs::OpenOptions::new().write(true).open(self.path());
        match file.and_then(|mut f| io::Write::write_all(&mut f, value.to_string().as_bytes())) {
            Ok(()) => Ok(true),
            Err(e) if is_gone(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The command that sets it.
    pub fn command(&self, value: i32) -> String {
        format!("sysctl -w {self}={value}")
    }

    fn path(&self) -> PathBuf {
        let mut path = PathBuf::from("/proc/sys/net/ipv4/conf");
        path.push(&self.interface);
        path.push(self.setting.name());
        path
    }
}

/// As sysctl(8) writes it: a dot within the interface's name becomes a slash.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = self.interface.replace('.', "/");
        write!(f, "net.ipv4.conf.{interface}.{}", self.setting.name())
    }
}

fn is_gone(error: &io::Error) -> bool {
    // ENODEV: the directory was found, the interface went away meanwhile.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(19)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greater_is_not_safer() {
        let safe = |setting: Setting| (-1..12).filter(move |v| setting.protects(*v));
        assert_eq!(safe(Setting::ArpIgnore).collect::<Vec<_>>(), [1, 2, 8]);
        assert_eq!(safe(Setting::ArpAnnounce).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn keys_are_written_as_sysctl_wants_them() {
        assert_eq!(
            Key::new("eth0.100", Setting::ArpIgnore).command(1),
            "sysctl -w net.ipv4.conf.eth0/100.arp_ignore=1"
        );
    }
}
