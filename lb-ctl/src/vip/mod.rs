//! The VIPs on the director: who holds them, who hears of it, who else claims
//! them.

mod frames;
mod keeper;
mod owned;
mod socket;
mod thieves;

pub use keeper::{Keeper, Management, Options};
pub use owned::{Owned, release};
