//! The packet as the stages see it.

use crate::checksum::Sum;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of a packet, Ethernet header first.
///
/// Every access is checked against the packet's bounds. Values are copied, so
/// that none outlives a change of the packet.
pub trait Packet {
    /// Bytes that can be read.
    fn len(&self) -> usize;

    /// Bytes of the whole packet. More than [`Self::len`] if a driver keeps it in
    /// several buffers, as jumbo frames are: only the first can be read.
    fn total_len(&self) -> usize {
        self.len()
    }

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Index of the interface that received it.
    fn interface(&self) -> u32;

    /// Reads a `T` at `offset`; `None` if it does not lie inside.
    fn read<T: FromBytes>(&self, offset: usize) -> Option<T>;

    /// Sums `N` bytes at `offset`, a multiple of 8, for a checksum; `None` if
    /// they do not lie inside.
    ///
    /// A loop over [`Self::read`] would do the same, but compilers merge its
    /// bounds checks into arithmetic that the verifier refuses.
    fn sum<const N: usize>(&self, offset: usize) -> Option<Sum>;

    /// Writes a `T` at `offset`; `None`, and nothing written, if it does not
    /// fit inside.
    fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()>;

    /// Moves the start of the packet by `delta` bytes: below 0 makes room in
    /// front. `None` if there is no such room. All offsets change meaning.
    fn adjust_head(&mut self, delta: i32) -> Option<()>;

    /// Calls `seldom` with this packet, away from the path that most packets
    /// take: so that a function that is not inlined, and wants a reference, does
    /// not force the packet into memory on that path too. It may get a copy of
    /// `self`, of the same packet: what it changes of `self` may be lost, of the
    /// packet not.
    #[inline(always)]
    fn aside<R>(&mut self, seldom: impl FnOnce(&mut Self) -> R) -> R {
        seldom(self)
    }

    /// Moves the end of the packet by `delta` bytes: below 0 cuts it short.
    /// `None` if that is not possible.
    fn adjust_tail(&mut self, delta: i32) -> Option<()>;
}

/// A packet that may have come with VLAN tags.
pub trait Untagged: Packet {
    /// From now on it was received by the interface with this index: a VLAN
    /// device on top of the other, or the other again.
    fn set_interface(&mut self, interface: u32);
}
