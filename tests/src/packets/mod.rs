//! Frames, made and read by the tests themselves.

mod arp;
mod ethernet;
mod ndp;
mod socket;
mod udp;

pub use arp::{Arp, Operation};
pub use ethernet::{Ethernet, ethertype};
pub use ndp::{Ndp, NdpKind, solicited_node};
pub use socket::PacketSocket;
pub use udp::Udp;
