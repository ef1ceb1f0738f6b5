//! What the first fragment of a packet leaves for the others, which carry no
//! ports (RFC 791, RFC 8200 section 4.5).
//!
//! The key of a trace is that of a flow, with the packet's identification in
//! place of the ports.

use crate::{Address, abi};

/// Where the fragments of one packet go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentTrace<A> {
    /// The source that they get: the one they have, but in NAT mode.
    pub source: A,
    /// The destination that they get, likewise.
    pub destination: A,
    /// Index of the backend entry.
    pub backend: u32,
    /// Generation of that entry when the first fragment came.
    pub generation: u32,
    /// The flow's hash.
    pub hash: u32,
    /// When the first fragment came, see [`crate::flow::seconds`].
    pub seen: u32,
    /// Where the first fragment ends, bytes from where the packet's layer 4
    /// begins.
    pub first_end: u16,
    /// Not 0 if they come from the backend.
    pub is_reply: u16,
    /// Zero.
    pub padding: u32,
}
abi!(FragmentTrace<u32>, size = 32, align = 4);
abi!(FragmentTrace<Address>, size = 56, align = 8);

/// How long a trace is good for: as long as Linux waits for the fragments of an
/// IPv4 packet (ip_frag_time). In [`crate::flow::seconds`].
pub const LIFETIME: u32 = 30;

/// Packets in fragments of each IP version whose traces are kept.
pub const MAX_TRACES: u32 = 16_384;
