//! What is noted of a flow that has an entry.

use lb_common::nat::seen;
use lb_common::protocol::TCP;

use crate::family::Family;
use crate::headers::tcp_flags;
use crate::packet_info::PacketInfo;

/// What a packet shows of its direction, of [`seen`].
#[inline(always)]
pub const fn flags_of<F: Family>(info: &PacketInfo<F>) -> u32 {
    if info.protocol != TCP {
        return seen::DATA;
    }
    let mut flags = if info.tcp_flags & tcp_flags::SYN != 0 {
        seen::SYN
    } else {
        seen::DATA
    };
    if info.tcp_flags & tcp_flags::FIN != 0 {
        flags |= seen::FIN;
    }
    if info.tcp_flags & tcp_flags::RST != 0 {
        flags |= seen::RST;
    }
    flags
}

/// Whether a TCP connection has ended, or is about to: a SYN then begins
/// another.
#[inline(always)]
pub const fn has_ended(client: u32, backend: u32) -> bool {
    (client | backend) & (seen::FIN | seen::RST) != 0
}
