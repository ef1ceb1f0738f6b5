//! Next hops, from the kernel's own tables.

pub mod host;
mod path_mtu;
mod resolver;
pub mod vlan;

pub use host::Host;
pub use resolver::{Resolution, Resolver, Snapshot};
