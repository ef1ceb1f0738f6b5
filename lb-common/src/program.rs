//! Where programs that the director's calls are in the map of programs.

/// NAT mode, IPv4.
pub const NAT_V4: u32 = 0;
/// NAT mode, IPv6.
pub const NAT_V6: u32 = 1;
/// First fragments, IPv4.
pub const FIRST_V4: u32 = 2;
/// First fragments, IPv6.
pub const FIRST_V6: u32 = 3;
/// Later fragments, IPv4.
pub const LATER_V4: u32 = 4;
/// Later fragments, IPv6.
pub const LATER_V6: u32 = 5;

/// First fragments in NAT mode, IPv4.
pub const NAT_FIRST_V4: u32 = 6;
/// First fragments in NAT mode, IPv6.
pub const NAT_FIRST_V6: u32 = 7;

/// Packets with VLAN tags.
pub const TAGGED: u32 = 8;
/// Packets that leave by a VLAN, or go on to the host with the tags that they
/// came with.
pub const RETAG: u32 = 9;

/// Other than the usual headers, IPv4.
pub const OTHER_V4: u32 = 10;
/// Other than the usual headers, IPv6.
pub const OTHER_V6: u32 = 11;

/// Pings of a VIP, IPv4.
pub const ECHO_V4: u32 = 12;
/// Pings of a VIP, IPv6.
pub const ECHO_V6: u32 = 13;

/// Number of programs: the size of their map.
pub const COUNT: u32 = 14;
