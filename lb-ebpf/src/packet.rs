//! The packet as the stages see it.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of a packet, Ethernet header first.
///
/// Every access is checked against the packet's bounds. Values are copied, so
/// that none outlives a change of the packet.
pub trait Packet {
    /// Bytes that can be read.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Index of the interface that received it.
    fn interface(&self) -> u32;

    /// Reads a `T` at `offset`; `None` if it does not lie inside.
    fn read<T: FromBytes>(&self, offset: usize) -> Option<T>;

    /// Writes a `T` at `offset`; `None`, and nothing written, if it does not
    /// fit inside.
    fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()>;

    /// Moves the start of the packet by `delta` bytes: below 0 makes room in
    /// front. `None` if there is no such room. All offsets change meaning.
    fn adjust_head(&mut self, delta: i32) -> Option<()>;
}
