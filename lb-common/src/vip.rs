//! What becomes of packets for a VIP that are for none of its services.

use crate::abi;

/// Value of the map of all VIPs; its key is [`crate::service::VipKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipValue {
    /// Port of the service whose ring chooses who answers pings, network byte
    /// order. Of importance only with [`ping::FORWARD`].
    pub port: u16,
    /// IP protocol number of that service.
    pub protocol: u8,
    /// One of [`ping`].
    pub ping: u8,
    /// One of [`other_protocols`].
    pub other_protocols: u8,
    /// Zero.
    pub padding: [u8; 3],
}
abi!(VipValue, size = 8, align = 2);

/// What to do with an echo request (RFC 792, RFC 4443) to a VIP, from the
/// weakest wish of a service to the strongest.
pub mod ping {
    /// The host's own stack answers it.
    pub const HOST: u8 = 0;
    /// The packet path answers it.
    pub const ANSWER: u8 = 1;
    /// A backend answers it.
    pub const FORWARD: u8 = 2;
}

/// What to do with a packet that is neither TCP, UDP, SCTP nor ICMP.
pub mod other_protocols {
    /// It is for the host's own stack.
    pub const HOST: u8 = 0;
    /// It is dropped.
    pub const DROP: u8 = 1;
}
