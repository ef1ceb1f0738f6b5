//! Which addresses `lb-ctl` added, so that `lb-ctl down` removes these and no
//! others, also after a crash.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::neighbour::Host;

/// Addresses that `lb-ctl` added, on disk in the state directory.
#[derive(Debug)]
pub struct Owned {
    path: PathBuf,
    addresses: BTreeSet<OwnedAddress>,
}

/// An address on an interface. By name: an index does not survive a reboot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnedAddress {
    /// Name of the interface.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
}

impl Owned {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(state: &Path) -> Result<Self> {
        let path = state.join("vips.json");
        let addresses = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "{} is damaged: remove it, and VIPs that it named with `ip addr del`",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
        };
        Ok(Self { path, addresses })
    }

    /// The addresses.
    pub const fn addresses(&self) -> &BTreeSet<OwnedAddress> {
        &self.addresses
    }

    /// Remembers an address. Call it before adding the address.
    ///
    /// # Errors
    /// If it cannot be written; then it is not remembered.
    pub fn insert(&mut self, address: OwnedAddress) -> Result<()> {
        let mut addresses = self.addresses.clone();
        if addresses.insert(address) {
            self.write(&addresses)?;
            self.addresses = addresses;
        }
        Ok(())
    }

    /// Forgets an address. Call it after removing the address.
    ///
    /// # Errors
    /// If it cannot be written; then it is still remembered.
    pub fn remove(&mut self, address: &OwnedAddress) -> Result<()> {
        let mut addresses = self.addresses.clone();
        if addresses.remove(address) {
            self.write(&addresses)?;
            self.addresses = addresses;
        }
        Ok(())
    }

    fn write(&self, addresses: &BTreeSet<OwnedAddress>) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let temporary = self.path.with_extension("json.new");
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(addresses)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)
        };
        write().with_context(|| format!("writing {}", self.path.display()))
    }
}

/// Removes from the interfaces every address that `lb-ctl` added.
///
/// # Errors
/// If one cannot be removed.
pub async fn release(state: &Path) -> Result<()> {
    let mut owned = Owned::open(state)?;
    let host = Host::open()?;
    let interfaces = host.interfaces().await?;
    for address in owned.addresses().clone() {
        let index = interfaces
            .iter()
            .find(|(_, interface)| interface.name == address.interface)
            .map(|(&index, _)| index);
        if let Some(index) = index {
            host.remove_address(index, address.address).await?;
            info!(vip = %address.address, interface = address.interface, "VIP removed");
        }
        owned.remove(&address)?;
    }
    Ok(())
}
