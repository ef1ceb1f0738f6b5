//! Features of a network device that can be turned on and off, by the ioctl
//! SIOCETHTOOL (netdevice(7), linux/ethtool.h).

use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;
use socket2::{Domain, Socket, Type};

/// A device's features.
#[derive(Debug)]
pub struct Features {
    socket: Socket,
    interface: [libc::c_char; libc::IFNAMSIZ],
    names: Vec<String>,
    /// By number of the feature, in words of 32.
    blocks: Vec<Block>,
}

/// `struct ethtool_get_features_block`.
#[derive(Clone, Copy, Debug)]
struct Block {
    available: u32,
    active: u32,
    never_changed: u32,
}

impl Features {
    /// Reads the features of an interface.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses.
    pub fn of(interface: &str) -> io::Result<Self> {
        let mut features = Self {
            socket: Socket::new(Domain::IPV4, Type::DGRAM, None)?,
            interface: interface_name(interface)?,
            names: Vec::new(),
            blocks: Vec::new(),
        };
        features.read_names()?;
        features.read_blocks()?;
        Ok(features)
    }

    /// Whether the feature is on, and can be turned off.
    pub fn can_turn_off(&self, name: &str) -> bool {
        self.find(name).is_some_and(|(block, bit)| {
            block.active & bit != 0 && block.available & bit != 0 && block.never_changed & bit == 0
        })
    }

    /// Whether the feature is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.find(name)
            .is_some_and(|(block, bit)| block.active & bit != 0)
    }

    /// Turns a feature on or off.
    ///
    /// # Errors
    /// If the device has none of this name, or does not let it be changed.
    pub fn set(&mut self, name: &str, on: bool) -> io::Result<()> {
        let number = self.number(name).ok_or(io::ErrorKind::NotFound)?;
        // `struct ethtool_sfeatures`: command, number of blocks, and for each
        // which to change and how.
        let mut request = vec![ETHTOOL_SFEATURES, self.blocks.len() as u32];
        for block in 0..self.blocks.len() {
            let bit = if block == number / 32 {
                1 << (number % 32)
            } else {
                0
            };
            request.extend([bit, if on { bit } else { 0 }]);
        }
        self.call(&mut request)?;
        self.read_blocks()?;
        if self.is_on(name) == on {
            Ok(())
        } else {
            Err(io::Error::other("the driver left it as it was"))
        }
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    fn find(&self, name: &str) -> Option<(&Block, u32)> {
        let number = self.number(name)?;
        Some((self.blocks.get(number / 32)?, 1 << (number % 32)))
    }

    fn read_names(&mut self) -> io::Result<()> {
        /// ETH_SS_FEATURES.
        const FEATURES: u32 = 4;
        /// Words of a name, ETH_GSTRING_LEN bytes.
        const WORDS: usize = 8;
        // `struct ethtool_sset_info`: command, nothing, a set of 64 bits, the
        // answer.
        let mut count = [ETHTOOL_GSSET_INFO, 0, 1 << FEATURES, 0, 0];
        self.call(&mut count)?;
        let count = count[4] as usize;
        // `struct ethtool_gstrings`: command, which, how many, names.
        let mut strings = vec![0; 3 + count * WORDS];
        strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, FEATURES, count as u32]);
        self.call(&mut strings)?;
        let name = |words: &[u32]| {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        self.names = strings[3..].chunks(WORDS).map(name).collect();
        Ok(())
    }

    fn read_blocks(&mut self) -> io::Result<()> {
        let count = self.names.len().div_ceil(32);
        // `struct ethtool_gfeatures`: command, number of blocks, and for each
        // what can be changed, is asked for, is on, and never changes.
        let mut answer = vec![0; 2 + count * 4];
        answer[..2].copy_from_slice(&[ETHTOOL_GFEATURES, count as u32]);
        self.call(&mut answer)?;
        let block = |words: &[u32]| Block {
            available: words[0],
            active: words[2],
            never_changed: words[3],
        };
        self.blocks = answer[2..].chunks(4).map(block).collect();
        Ok(())
    }

    /// Makes the request, and puts the answer in its place.
    fn call(&self, request: &mut [u32]) -> io::Result<()> {
        let mut parameter = libc::ifreq {
            ifr_name: self.interface,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: request.as_mut_ptr().cast(),
            },
        };
        // SAFETY: the parameter names an interface and points to a request
        // whose own length fields say how much of it the kernel may write.
        let done = unsafe {
            libc::ioctl(
                self.socket.as_raw_fd(),
                SIOCETHTOOL,
                std::ptr::from_mut(&mut parameter),
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Commands of linux/ethtool.h.
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// Of linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;

fn interface_name(name: &str) -> io::Result<[libc::c_char; libc::IFNAMSIZ]> {
    let mut padded = [0; libc::IFNAMSIZ];
    if name.len() >= padded.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_features() {
        let features = Features::of("lo").unwrap();
        assert!(
            features.names.iter().any(|n| n == "loopback"),
            "{features:?}"
        );
        assert!(features.is_on("loopback") && !features.can_turn_off("loopback"));
        assert!(!features.is_on("rx-vlan-hw-parse"));
    }

    #[test]
    fn who_does_not_exist_has_none() {
        let error = Features::of("no-such-0").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert!(Features::of("a-name-longer-than-any").is_err());
    }
}
