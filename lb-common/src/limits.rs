//! Sizes of the maps.

/// Services of one IP version.
pub const MAX_SERVICES: u32 = 16_384;

/// Backends of all services together, if `lb-ctl up` is not told otherwise.
pub const DEFAULT_MAX_BACKENDS: u32 = 16_384;

/// Entries of each flow table, if `lb-ctl up` is not told otherwise.
pub const DEFAULT_FLOW_TABLE_SIZE: u32 = 262_144;

/// Translated flows of each IP version, if `lb-ctl up` is not told otherwise.
pub const DEFAULT_NAT_TABLE_SIZE: u32 = 262_144;

/// Addresses that the director has itself.
pub const MAX_LOCAL_ADDRESSES: u32 = 65_536;

/// Interfaces to which packets can be redirected.
pub const MAX_INTERFACES: u32 = 1024;

/// VLAN devices of the host.
pub const MAX_VLANS: u32 = 8192;

/// Ring blocks for this many backends.
///
/// A ring has at most 1024 slots for five, and such are provided for. While slots
/// move a ring takes twice its size, and the one before it is still there:
/// there is room for 1,024 backends at a time to do so.
pub const fn ring_blocks(max_backends: u32) -> u32 {
    const EACH: u32 = 1024_u32.div_ceil(5 * crate::ring::SLOTS_PER_BLOCK);
    let changing = if max_backends < 1024 {
        max_backends
    } else {
        1024
    };
    max_backends * EACH + 2 * changing * EACH
}
