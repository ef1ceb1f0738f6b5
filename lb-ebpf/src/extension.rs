//! IPv6 extension headers, RFC 8200 section 4.

use zerocopy::FromBytes;

use crate::packet::Packet;
use crate::packet_info::fragment;

/// Extension headers that are followed.
pub const MAX_EXTENSIONS: usize = 6;

/// Numbers of extension headers, RFC 8200 section 4.
pub const HOP_BY_HOP: u8 = 0;
/// Routing header.
pub const ROUTING: u8 = 43;
/// Fragment header.
pub const FRAGMENT: u8 = 44;
/// Destination options header.
pub const DESTINATION: u8 = 60;

/// The first four bytes of an IPv6 extension header.
#[repr(C)]
#[derive(Clone, Copy, FromBytes)]
pub struct ExtensionStart {
    /// Protocol of what follows.
    pub next_header: u8,
    /// Units of 8 bytes after the first 8; not in a fragment header.
    pub length: u8,
    /// Of a routing header: type and segments left. Of a fragment header:
    /// offset and the flag for more.
    pub specific: [u8; 2],
}

impl ExtensionStart {
    /// Of a fragment header, where its payload was in the packet's, bytes.
    #[inline(always)]
    pub fn fragment_offset(&self) -> u32 {
        u32::from(u16::from_be_bytes(self.specific) & 0xfff8)
    }
}

/// Where a chain of IPv6 extension headers leads.
pub enum Extensions {
    /// To this protocol at this offset; and see [`fragment`].
    End(u8, usize, u64),
    /// To a fragment that is not the first, whose header names this protocol.
    Later(u8),
    /// This host is a waypoint of a routing header, not the destination.
    NotFinal,
    /// Past the end of the frame.
    Truncated,
    /// Further than we follow.
    TooMany,
}

/// Follows extension headers from `offset`, RFC 8200 section 4, at most
/// [`MAX_EXTENSIONS`].
#[inline(always)]
pub fn extension_headers<P: Packet>(packet: &P, first: u8, offset: usize) -> Extensions {
    let mut next_header = first;
    let mut offset = offset;
    let mut fragment = fragment::NONE;
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(next_header) {
            return Extensions::End(next_header, offset, fragment);
        }
        let Some(start) = packet.read::<ExtensionStart>(offset) else {
            return Extensions::Truncated;
        };
        // A fragment header has a reserved byte where others have a length.
        let mut units = usize::from(start.length) + 1;
        if next_header == FRAGMENT {
            units = 1;
            if start.fragment_offset() != 0 {
                return Extensions::Later(start.next_header);
            }
            // With no more to come it is an atomic fragment, RFC 6946.
            if start.specific[1] & 1 != 0 {
                let Some(id) = packet.read::<u32>(offset + 4) else {
                    return Extensions::Truncated;
                };
                fragment = fragment::first(id, offset + 8);
            }
        } else if next_header == ROUTING && start.specific[1] != 0 {
            return Extensions::NotFinal;
        }
        next_header = start.next_header;
        offset += units * 8;
    }
    if is_extension(next_header) {
        Extensions::TooMany
    } else {
        Extensions::End(next_header, offset, fragment)
    }
}

#[inline(always)]
const fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
}
