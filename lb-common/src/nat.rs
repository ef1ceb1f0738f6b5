//! NAT mode: what the packet path and the control plane know of translated
//! flows, and when such a flow is over.
//!
//! A reply of a backend is recognised by its source: the address and port of a
//! backend. If these belong to one service only, the service's VIP and port
//! follow from them and nothing is remembered. Otherwise, and in full NAT
//! always, the flow has an entry in the *reverse* table, under the 5-tuple of
//! the reply. In full NAT it has one in the *forward* table as well, under the
//! 5-tuple of the client's packet.

use crate::flow::is_idle;
use crate::{Address, abi};

/// Value of the map of NAT backends; its key is the backend's address, port
/// and protocol as a [`crate::service::ServiceKeyV4`] or `V6`, with port 0 if
/// it serves all ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatBackend {
    /// VIP of the service that replies without an entry belong to.
    pub vip: Address,
    /// Index of the backend entry.
    pub backend: u32,
    /// Port of that service, network byte order; 0 leaves the port as it is.
    pub port: u16,
    /// Of [`source`].
    pub flags: u16,
}
abi!(NatBackend, size = 24, align = 8);

/// Where the translation of a backend's reply comes from.
pub mod source {
    /// From the flow's entry in the reverse table, if there is one.
    pub const TABLE: u16 = 1;
    /// Without an entry, from [`super::NatBackend`] itself.
    pub const BACKEND: u16 = 2;
}

/// What was seen of a flow in one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Time of the last packet, see [`crate::flow::seconds`].
    pub at: u32,
    /// Of [`seen`].
    pub flags: u32,
}
abi!(Seen, size = 8, align = 4);

/// What a direction has carried so far.
pub mod seen {
    /// A TCP segment with SYN.
    pub const SYN: u32 = 1;
    /// A TCP segment without SYN, or any UDP datagram.
    pub const DATA: u32 = 2;
    /// A TCP segment with FIN.
    pub const FIN: u32 = 4;
    /// A TCP segment with RST.
    pub const RST: u32 = 8;
}

impl Seen {
    /// Takes a packet into account; writes only what changes, so that a cache
    /// line is not fought over.
    #[inline(always)]
    pub const fn note(&mut self, now: u32, flags: u32) {
        if self.at != now {
            self.at = now;
        }
        if self.flags & flags != flags {
            self.flags |= flags;
        }
    }
}

/// Entry of the forward table, in full NAT.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatForward<A> {
    /// The pool's address that stands for the client's.
    pub address: A,
    /// Index of the backend entry.
    pub backend: u32,
    /// Generation of that entry when the flow began.
    pub generation: u32,
    /// Of the client.
    pub seen: Seen,
    /// The pool's port that stands for the client's, network byte order.
    pub port: u16,
    /// Number of the address in the pool.
    pub address_index: u16,
    /// Zero.
    pub padding: u32,
}
abi!(NatForward<u32>, size = 28, align = 4);
abi!(NatForward<Address>, size = 40, align = 8);

/// Entry of the reverse table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatReverse<A> {
    /// CIP.
    pub client: A,
    /// VIP.
    pub vip: A,
    /// The client's port, network byte order.
    pub client_port: u16,
    /// The service's port, network byte order.
    pub port: u16,
    /// Index of the backend entry.
    pub backend: u32,
    /// Generation of that entry when the flow began.
    pub generation: u32,
    /// [`NO_PORT`], or the pool's port that the flow has taken.
    pub pool_port: u32,
    /// Of the client; in full NAT the forward table has it.
    pub client_seen: Seen,
    /// Of the backend.
    pub backend_seen: Seen,
}
abi!(NatReverse<u32>, size = 40, align = 4);
abi!(NatReverse<Address>, size = 64, align = 8);

/// No port of the pool has been taken.
pub const NO_PORT: u32 = u32::MAX;

/// Addresses in the pool, of both IP versions together.
pub const MAX_POOL_ADDRESSES: u32 = 256;

/// A port of an address of the pool, as the queues of free ones hold it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolPort(pub u32);
abi!(PoolPort, size = 4, align = 4);

impl PoolPort {
    /// Puts it together; `port` is in host byte order.
    pub const fn new(address_index: u16, port: u16) -> Self {
        Self((address_index as u32) << 16 | port as u32)
    }

    /// Number of the address in the pool.
    #[inline(always)]
    pub const fn address_index(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The port, host byte order.
    #[inline(always)]
    pub const fn port(self) -> u16 {
        self.0 as u16
    }
}

/// Addresses under which this host speaks for itself on an interface: the
/// source of its ICMP errors.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterAddresses {
    /// IPv4, network byte order; 0 if there is none.
    pub v4: u32,
    /// Zero.
    pub padding: u32,
    /// IPv6; zero if there is none.
    pub v6: Address,
}
abi!(RouterAddresses, size = 24, align = 8);

/// Seconds without a packet after which a flow is over, by its state. The
/// defaults are those of IPVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP of which the handshake is not complete.
    pub syn: u32,
    /// TCP that is established.
    pub established: u32,
    /// TCP of which either side has ended its half.
    pub fin: u32,
    /// TCP that was reset.
    pub closed: u32,
    /// UDP.
    pub udp: u32,
}

impl Timeouts {
    /// IPVS's: SYN_RECV, ESTABLISHED, FIN_WAIT and TIME_WAIT, CLOSE, UDP.
    pub const IPVS: Self = Self {
        syn: 60,
        established: 900,
        fin: 120,
        closed: 10,
        udp: 300,
    };

    /// Seconds without a packet after which a flow of which this was seen is
    /// over.
    pub const fn of(&self, is_udp: bool, client: u32, backend: u32) -> u32 {
        let either = client | backend;
        if is_udp {
            self.udp
        } else if either & seen::RST != 0 {
            self.closed
        } else if either & seen::FIN != 0 {
            self.fin
        } else if client & seen::DATA != 0 && backend != 0 {
            self.established
        } else {
            self.syn
        }
    }

    /// Whether a flow of which this was seen is over at `now`.
    pub const fn is_over(&self, is_udp: bool, client: Seen, backend: Seen, now: u32) -> bool {
        let timeout = self.of(is_udp, client.flags, backend.flags);
        // A side that was not seen yet has no time.
        (client.flags == 0 || is_idle(client.at, now, timeout))
            && (backend.flags == 0 || is_idle(backend.at, now, timeout))
    }
}

/// For how long after the last packet from a client to a backend, past every
/// VIP, the table of such flows is asked. In [`crate::flow::seconds`].
pub const DIRECT_MEMORY: u32 = 7200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_the_timeout_of_its_state() {
        let of = |client, backend| Timeouts::IPVS.of(false, client, backend);
        let (syn, data, fin, rst) = (seen::SYN, seen::DATA, seen::FIN, seen::RST);
        assert_eq!(of(syn, 0), 60);
        assert_eq!(of(syn, syn), 60);
        assert_eq!(of(syn | data, 0), 60);
        assert_eq!(of(syn | data, syn), 900);
        assert_eq!(of(data, data), 900);
        assert_eq!(of(syn | data | fin, syn | data), 120);
        assert_eq!(of(syn | data, syn | data | fin), 120);
        assert_eq!(of(syn, rst), 10);
        assert_eq!(of(syn | data | fin, syn | data | fin | rst), 10);
        assert_eq!(Timeouts::IPVS.of(true, data, 0), 300);
    }

    #[test]
    fn either_side_keeps_a_flow_alive() {
        let at = |at, flags| Seen { at, flags };
        let is_over = |client, backend, now| Timeouts::IPVS.is_over(true, client, backend, now);
        let (old, new) = (at(10, seen::DATA), at(200, seen::DATA));
        assert!(!is_over(old, new, 500));
        assert!(!is_over(new, old, 500));
        assert!(is_over(new, old, 501));
        assert!(is_over(old, at(0, 0), 311));
        assert!(!is_over(old, at(0, 0), 310));
    }
}
