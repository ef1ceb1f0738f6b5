//! Sizes of the maps.

/// Services of one IP version.
pub const MAX_SERVICES: u32 = 16_384;

/// Backends of all services together, if `lb-ctl up` is not told otherwise.
pub const DEFAULT_MAX_BACKENDS: u32 = 16_384;

/// Entries of each flow table, if `lb-ctl up` is not told otherwise.
pub const DEFAULT_FLOW_TABLE_SIZE: u32 = 262_144;

/// Interfaces to which packets can be redirected.
pub const MAX_INTERFACES: u32 = 64;

/// Ring blocks for this many backends: 256 slots each, which leaves room to
/// write a new ring beside the old one.
pub const fn ring_blocks(max_backends: u32) -> u32 {
    max_backends * 256 / crate::ring::SLOTS_PER_BLOCK
}
