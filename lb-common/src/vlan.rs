//! VLANs: IEEE 802.1Q tags, and 802.1ad tags around them.

use crate::abi;

/// Frames of a VLAN as they are on the wire, and the interface at that wire.
///
/// The packet path knows VLANs by the host's VLAN devices: one map leads from
/// what is on the wire to the index of the device, another one back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vlan {
    /// Index of the interface on whose wire the frames are.
    pub interface: u32,
    /// The only tag, or the first of two.
    pub outer: Tag,
    /// The second of two, or [`Tag::NONE`].
    pub inner: Tag,
}
abi!(Vlan, size = 12, align = 4);

/// A tag as it stands in a frame: first its EtherType (TPID), then priority
/// and VLAN identifier (TCI).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(u32);
abi!(Tag, size = 4, align = 4);

impl Tag {
    /// No tag.
    pub const NONE: Self = Self(0);

    /// All but the priority.
    const IDENTITY: u32 = u32::from_ne_bytes([0xff, 0xff, 0x0f, 0xff]);
    /// The VLAN identifier alone.
    const ID: u32 = u32::from_ne_bytes([0, 0, 0x0f, 0xff]);

    /// A tag without priority of this EtherType and VLAN identifier, both in
    /// host byte order.
    pub const fn new(ethertype: u16, id: u16) -> Self {
        let ([a, b], [c, d]) = (ethertype.to_be_bytes(), id.to_be_bytes());
        Self(u32::from_ne_bytes([a, b, c & 0x0f, d]))
    }

    /// A tag of the four bytes of a frame, read as one word.
    #[inline(always)]
    pub const fn from_frame(word: u32) -> Self {
        Self(word)
    }

    /// The four bytes as one word.
    #[inline(always)]
    pub const fn to_frame(self) -> u32 {
        self.0
    }

    /// Whether there is a tag.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Whether it names a VLAN. One that does not, with the identifier 0, only
    /// carries a priority: the frame is the interface's own.
    #[inline(always)]
    pub const fn names_vlan(self) -> bool {
        self.0 & Self::ID != 0
    }

    /// The same VLAN without priority and drop eligibility.
    #[inline(always)]
    pub const fn without_priority(self) -> Self {
        Self(self.0 & Self::IDENTITY)
    }

    /// This VLAN with the priority and drop eligibility of `other`.
    #[inline(always)]
    pub const fn with_priority_of(self, other: Self) -> Self {
        const PRIORITY: u32 = u32::from_ne_bytes([0, 0, 0xf0, 0]);
        Self(self.0 | other.0 & PRIORITY)
    }

    /// EtherType, host byte order.
    pub const fn ethertype(self) -> u16 {
        let [a, b, _, _] = self.0.to_ne_bytes();
        u16::from_be_bytes([a, b])
    }

    /// VLAN identifier.
    pub const fn id(self) -> u16 {
        let [_, _, c, d] = self.0.to_ne_bytes();
        u16::from_be_bytes([c & 0x0f, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_what_stands_in_the_frame() {
        let frame = [0x81, 0x00, 0xa1, 0x23];
        let tag = Tag::from_frame(u32::from_ne_bytes(frame));
        assert_eq!((tag.ethertype(), tag.id()), (0x8100, 0x123));
        assert_eq!(tag.without_priority(), Tag::new(0x8100, 0x123));
        assert_eq!(Tag::new(0x8100, 0x123).with_priority_of(tag), tag);
        assert!(tag.is_some() && tag.names_vlan());
        let priority = Tag::from_frame(u32::from_ne_bytes([0x81, 0x00, 0xe0, 0]));
        assert!(priority.is_some() && !priority.names_vlan());
        assert!(!Tag::NONE.is_some());
    }
}
