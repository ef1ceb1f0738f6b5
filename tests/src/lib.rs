//! The harness of the integration suites: network namespaces on one machine
//! that stand for hosts on Ethernet segments, and what runs in them.
//!
//! Everything is guarded: dropping a [`Lab`] removes its processes, mounts and
//! namespaces, also when a test panics. What a killed test run left behind is
//! removed by the next one.

pub mod agent;
pub mod api;
pub mod asker;
pub mod capture;
mod command;
mod director;
mod host;
pub mod hostile;
mod lab;
mod leftovers;
mod mac;
pub mod nginx;
pub mod packets;
pub mod paths;
mod process;
mod segment;
pub mod talk;
pub mod topology;
mod visit;
pub mod vm;
mod wait;
mod xdp;

pub use command::run;
pub use host::Host;
pub use lab::Lab;
pub use mac::Mac;
pub use process::Process;
pub use segment::Segment;
pub use wait::{Outcome, eventually, try_eventually};
pub use xdp::XdpAction;

/// Bytes that a socket may hold until a test comes to read them. The kernel
/// counts whole pages for packets that have been through XDP: with its default
/// fifty are too many.
const RECEIVE_BUFFER: usize = 4 << 20;
