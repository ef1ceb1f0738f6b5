//! VLAN tags: taken off before stage 1, put on again after stage 7.
//!
//! In between a tagged packet is an untagged one that was received by the
//! host's VLAN device. Packets that leave by a VLAN device get its tags, also
//! if they came without any. In the kernel both are programs of their own,
//! which untagged packets do not pass.

use core::mem::offset_of;

use lb_common::Address;
use lb_common::counters::DropReason;
use lb_common::vlan::{Tag, Vlan};
use zerocopy::byteorder::native_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::headers::{
    ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ipv4Header, Ipv6Header, words,
};
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::{Verdict, drop};

/// EtherType of an 802.1Q tag, as it stands in the frame.
pub const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();
/// EtherType of an 802.1ad tag, as it stands in the frame.
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8_u16.to_be();

/// How a packet came, and how it leaves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Index of the interface that received it, which may be a VLAN device.
    pub interface: u32,
    /// Index of the interface that it leaves by, which may be a VLAN device;
    /// [`Self::TO_HOST`] for the host's own stack.
    pub egress: u32,
    /// The first tag that it came with, or [`Tag::NONE`].
    pub outer: Tag,
    /// The second.
    pub inner: Tag,
}

impl Frame {
    /// See [`Self::egress`].
    pub const TO_HOST: u32 = 0;

    /// A packet without tags.
    #[inline(always)]
    pub const fn untagged(interface: u32) -> Self {
        Self {
            interface,
            egress: Self::TO_HOST,
            outer: Tag::NONE,
            inner: Tag::NONE,
        }
    }

    /// Whether it came with tags.
    #[inline(always)]
    pub const fn is_tagged(&self) -> bool {
        self.outer.is_some()
    }
}

/// Whether this is the EtherType of a tag.
#[inline(always)]
pub const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN)
}

/// Takes off the tags, one or two, of a packet that may be for a service.
///
/// # Errors
/// [`Verdict::Pass`] if it cannot be: of a VLAN that the host is not in, with
/// more tags, or to none of our addresses. The packet is then as it was.
#[inline(always)]
pub fn untag<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Frame, Verdict> {
    let Some(one) = packet.read::<OneTag>(0) else {
        return Err(Verdict::Pass);
    };
    let outer = Tag::from_frame(one.tag.get());
    let mut inner = Tag::NONE;
    let mut ethertype = one.ethertype.get();
    let mut length = TAG_LENGTH;
    if is_tag(ethertype) {
        let Some(two) = packet.read::<TwoTags>(0) else {
            return Err(Verdict::Pass);
        };
        inner = Tag::from_frame(two.inner.get());
        ethertype = two.ethertype.get();
        length = 2 * TAG_LENGTH;
    }
    if !may_be_ours(packet, ethertype, length, tables) {
        return Err(Verdict::Pass);
    }
    let on_wire = on_wire(packet.interface(), outer, inner);
    let interface = if on_wire.outer.is_some() {
        tables.vlan_device(&on_wire).ok_or(Verdict::Pass)?
    } else {
        on_wire.interface
    };
    // Each with a constant, for the verifier.
    let moved = if length == TAG_LENGTH {
        packet.adjust_head(TAG_LENGTH as i32)
    } else {
        packet.adjust_head(2 * TAG_LENGTH as i32)
    };
    if moved.is_none() || packet.write(0, one.macs).is_none() {
        return drop(DropReason::Truncated);
    }
    Ok(Frame {
        interface,
        egress: Frame::TO_HOST,
        outer,
        inner,
    })
}

/// By which interface a packet leaves, see [`Frame::egress`], if it has to be
/// given tags or may have to.
#[inline(always)]
pub fn egress<T: Tables>(frame: &Frame, verdict: Verdict, tables: &T) -> Option<u32> {
    match verdict {
        Verdict::Pass | Verdict::Host if frame.is_tagged() => Some(Frame::TO_HOST),
        Verdict::Transmit if frame.is_tagged() => Some(frame.interface),
        Verdict::Redirect(interface) if frame.is_tagged() || !tables.can_redirect(interface) => {
            Some(interface)
        }
        _ => None,
    }
}

/// Puts on the tags that a packet leaves with: those that it came with if it
/// goes to the host's own stack, or else those of [`Frame::egress`].
///
/// # Errors
/// A drop if there is no room for them.
#[inline(always)]
pub fn retag<P: Packet, T: Tables>(
    packet: &mut P,
    frame: &Frame,
    tables: &T,
) -> Result<Verdict, Verdict> {
    if frame.egress == Frame::TO_HOST {
        put_on(packet, frame.outer, frame.inner)?;
        return Ok(Verdict::Pass);
    }
    let wire = match tables.vlan(frame.egress) {
        Some(vlan) => {
            put_on(packet, vlan.outer.with_priority_of(frame.outer), vlan.inner)?;
            vlan.interface
        }
        None => frame.egress,
    };
    Ok(if wire == packet.interface() {
        Verdict::Transmit
    } else {
        Verdict::Redirect(wire)
    })
}

const TAG_LENGTH: usize = size_of::<Tag>();

/// The MAC addresses of a frame.
type Macs = [U32; 3];

/// The beginning of a frame with one tag.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct OneTag {
    macs: Macs,
    tag: U32,
    ethertype: U16,
}

/// The beginning of a frame with two.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct TwoTags {
    macs: Macs,
    outer: U32,
    inner: U32,
    ethertype: U16,
}

/// Whether the packet behind `tags` bytes of tags may be for a service, or an
/// answer of a NAT backend. What is not is spared the moving.
#[inline(always)]
fn may_be_ours<P: Packet, T: Tables>(packet: &P, ethertype: u16, tags: usize, tables: &T) -> bool {
    let ip = ETHERNET_LENGTH + tags;
    let destination = match ethertype {
        ETHERTYPE_IPV4 => packet
            .read::<U32>(ip + offset_of!(Ipv4Header, destination))
            .map(|word| Address::from_v4_word(word.get())),
        ETHERTYPE_IPV6 => packet
            .read(ip + offset_of!(Ipv6Header, destination))
            .map(|header| words(&header)),
        _ => None,
    };
    let Some(destination) = destination else {
        return false;
    };
    tables.is_vip(&destination) || tables.settings().is_some_and(|s| s.nat_backends != 0)
}

/// The VLAN of these tags. Those that only carry a priority do not count.
#[inline(always)]
fn on_wire(interface: u32, outer: Tag, inner: Tag) -> Vlan {
    let (outer, inner) = (outer.without_priority(), inner.without_priority());
    let (outer, inner) = if !inner.names_vlan() {
        (outer, Tag::NONE)
    } else if !outer.names_vlan() {
        (inner, Tag::NONE)
    } else {
        (outer, inner)
    };
    Vlan {
        interface,
        outer: if outer.names_vlan() { outer } else { Tag::NONE },
        inner,
    }
}

#[inline(always)]
fn put_on<P: Packet>(packet: &mut P, outer: Tag, inner: Tag) -> Result<(), Verdict> {
    let Some(macs) = packet.read::<Macs>(0) else {
        return drop(DropReason::Truncated);
    };
    let outer = U32::new(outer.to_frame());
    let written = if inner.is_some() {
        let inner = U32::new(inner.to_frame());
        let [a, b, c] = macs;
        packet
            .adjust_head(-2 * TAG_LENGTH as i32)
            .and_then(|()| packet.write(0, [a, b, c, outer, inner]))
    } else {
        let [a, b, c] = macs;
        packet
            .adjust_head(-(TAG_LENGTH as i32))
            .and_then(|()| packet.write(0, [a, b, c, outer]))
    };
    match written {
        Some(()) => Ok(()),
        None => drop(DropReason::NoHeadroom),
    }
}
