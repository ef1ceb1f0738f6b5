//! What the fuzz targets share.

mod addresses;
pub mod director;
#[path = "../../src/hostile/layout.rs"]
mod layout;
/// What makes it true that a packet was sent on whole: as the suites have it.
#[path = "../../src/hostile/whole.rs"]
pub mod whole;

pub use addresses::{backends, pool, vips};
pub use layout::{Header, Kind, Place, headers};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
