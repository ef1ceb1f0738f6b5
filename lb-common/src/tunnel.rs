//! What the programs of a backend and `lb-agent` agree on: settings, counters
//! and drop reasons of decapsulation and of the MSS clamp.

use crate::abi;

/// Prefixes from which encapsulated packets are accepted.
pub const MAX_DIRECTORS: u32 = 1024;

/// VIPs of one backend.
pub const MAX_VIPS: u32 = 16_384;

/// Addresses of one backend.
pub const MAX_LOCALS: u32 = 4096;

/// The only value of the settings map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelSettings {
    /// [`crate::ABI_VERSION`] of the `lb-agent` that made the maps.
    pub abi_version: u32,
    /// Identifies the object that the programs are from: they are replaced if
    /// `lb-agent` has another one.
    pub build: u32,
    /// One of the [`role`] constants.
    pub role: u32,
    /// Largest MSS in bytes that a SYN-ACK from an IPv4 VIP may offer; 0 for
    /// no limit.
    pub mss_v4: u16,
    /// The same for IPv6 VIPs.
    pub mss_v6: u16,
}
abi!(TunnelSettings, size = 16, align = 4);

/// What the program on the receiving interface does with a director's packets.
pub mod role {
    /// Takes the outer header off.
    pub const DECAPSULATE: u32 = 0;
    /// Lets them pass to the kernel's own tunnel device, and nobody else's.
    pub const FILTER: u32 = 1;
}

macro_rules! numbered {
    ($(#[$doc:meta])* $enum:ident { $($variant:ident = $number:literal, $name:literal, $meaning:literal;)* }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $enum { $(#[doc = $meaning] $variant = $number,)* }

        impl $enum {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Short name, as `lb-agent check` shows it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means and where to look, for a person.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

numbered! {
    /// Why an encapsulated packet was dropped.
    ///
    /// The number is the index in the map of drop counters.
    DropReason {
        Stranger = 0, "stranger",
            "an encapsulated packet from an address that is no configured director";
        NotVip = 1, "not_vip",
            "a director's packet for an address that is no VIP of this backend";
        Truncated = 2, "truncated",
            "the frame ends before the outer packet does, or that before the inner header";
        Malformed = 3, "malformed",
            "a header contradicts itself: a version, a length or an offset that cannot be";
        InnerLength = 4, "inner_length",
            "the inner packet claims more bytes than the outer one carries";
        Nested = 5, "nested",
            "the inner packet is itself an encapsulated one";
        Fragment = 6, "fragment",
            "the outer packet is a fragment: something between director and backend has a smaller MTU";
        Congested = 7, "congested",
            "marked as congested on the way, for a client that knows no ECN (RFC 6040)";
        NotStripped = 8, "not_stripped",
            "the kernel did not let the outer header be removed: please report this";
    }
}

numbered! {
    /// What else is counted; the number is the index in the map of counters.
    Counter {
        Decapsulated = 0, "decapsulated",
            "packets from a director to a VIP that were let in";
        MssLowered = 1, "mss_lowered",
            "SYN-ACKs from a VIP whose MSS was lowered";
    }
}

/// Number of drop reasons: the size of their map.
pub const DROP_REASONS: u32 = DropReason::ALL.len() as u32;

/// Number of counters: the size of their map.
pub const COUNTERS: u32 = Counter::ALL.len() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_gaps_and_names_occur_once() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            let same = DropReason::ALL.iter().filter(|r| r.name() == reason.name());
            assert_eq!(same.count(), 1);
        }
        for (i, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, i);
        }
    }
}
