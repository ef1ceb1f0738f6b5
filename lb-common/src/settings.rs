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
    /// Number of NAT backends. While there are none, a packet for no service
    /// is not looked up among them.
    pub nat_backends: u32,
    /// How many of these serve all ports.
    pub nat_port_zero_backends: u32,
    /// Not 0 if the program runs in generic mode, in which the kernel may
    /// still have to fill in a packet's checksum after the program.
    pub generic: u32,
}
abi!(Settings, size = 20, align = 4);
