//! The packet path of a backend in TUN mode.
//!
//! Two programs, each one stage:
//!
//! - [`decapsulate`] runs where packets arrive. What a director has put into
//!   an outer packet for a VIP is taken out of it; a stranger's is dropped.
//! - [`mss`] runs where packets leave. The MSS in SYN-ACKs from a VIP is
//!   lowered, so that what clients send still fits after encapsulation.
//!
//! What is neither passes untouched.

pub mod decapsulate;
mod ecn;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod mss;
mod outer;

use lb_common::Address;
use lb_common::tunnel::{Counter, DropReason, TunnelSettings};

use crate::packet::Packet;

/// What becomes of a packet that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To the host's network stack.
    Pass,
    /// Dropped and counted.
    Drop(DropReason),
}

/// What the stages look up and count. In the kernel these are BPF maps.
pub trait Tables {
    /// The settings.
    fn settings(&self) -> TunnelSettings;
    /// Whether this is the address of a configured director.
    fn is_director(&self, address: &Address) -> bool;
    /// Whether this is a VIP of this backend.
    fn is_vip(&self, address: &Address) -> bool;
    /// Whether this is another address of this backend.
    fn is_local(&self, address: &Address) -> bool;
    /// Adds one to a counter.
    fn count(&self, counter: Counter);
    /// Adds one to the reason's counter.
    fn count_drop(&self, reason: DropReason);
}

/// A packet that leaves and whose layer 4 checksum can be kept right.
pub trait Segment: Packet {
    /// Adjusts the checksum at `offset` for a word, as it stands in the
    /// packet, that changes from `from` to `to` (RFC 1624). A checksum that is
    /// yet to be completed by the network card stays as it is.
    fn replace_checksum(&mut self, offset: usize, from: u16, to: u16) -> Option<()>;
}
