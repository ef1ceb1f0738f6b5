//! Settings that user space may change while packets flow.

use crate::abi;

/// The only value of the settings map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// [`crate::ABI_VERSION`] of the control plane that made the maps.
    pub abi_version: u32,
    /// Number of services on port 0. While there are none, a packet for no
    /// service costs one look-up instead of two.
    pub port_zero_services: u32,
}
abi!(Settings, size = 8, align = 4);
