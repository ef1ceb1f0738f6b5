//! Headers as generator and floors write and read them.

use aya_ebpf::programs::XdpContext;

/// Ethernet, IPv4 and the start of layer 4.
#[repr(C, packed)]
pub struct HeadersV4 {
    pub macs: [u8; 12],
    pub ethertype: u16,
    pub start: [u8; 2],
    pub length: u16,
    pub rest: [u8; 6],
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
    pub ports: u32,
    /// In UDP length and checksum.
    pub sequence: u32,
    pub acknowledgement: u32,
    pub offset_flags: [u8; 4],
    pub checksum_urgent: u32,
}

/// Ethernet, IPv6 and the start of layer 4.
#[repr(C, packed)]
pub struct HeadersV6 {
    pub macs: [u8; 12],
    pub ethertype: u16,
    pub start: [u8; 4],
    pub length: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u64; 2],
    pub destination: [u64; 2],
    pub ports: u32,
    /// In UDP length and checksum.
    pub sequence: u32,
    pub acknowledgement: u32,
    pub offset_flags: [u8; 4],
    pub checksum_urgent: u32,
}

/// Checksum of layer 4; 0 would stand for none. Wrong, and whoever changes it by
/// what changes leaves it just as wrong.
pub const CHECKSUM: u32 = 0x1234;

/// To the director's MAC 02:00:00:00:00:01 from the client's.
pub const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// The start of the packet as a `T`, if all of it is there.
#[inline(always)]
pub fn at<T>(context: &XdpContext) -> Option<*mut T> {
    let address = context.data();
    (address + size_of::<T>() <= context.data_end()).then_some(address as *mut T)
}
