//! Counters and the reasons for which packets are dropped.

use crate::abi;

/// Per-CPU value of the counter map; same index as the backend entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    /// Packets forwarded to the backend.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Flows begun: TCP SYNs forwarded, and for UDP flows recorded. A UDP
    /// flow through a settled slot leaves no trace, so it is not counted.
    pub flows: u64,
    /// Zero.
    pub padding: u64,
}
abi!(BackendCounters, size = 32, align = 8);

macro_rules! drop_reasons {
    ($($variant:ident = $number:literal, $name:literal, $meaning:literal;)*) => {
        /// Why a packet for a service was not forwarded.
        ///
        /// The number is the index in the map of drop counters.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason { $(#[doc = $meaning] $variant = $number,)* }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Short name, as the API and the metrics show it.
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

drop_reasons! {
    NoBackend = 0, "no_backend",
        "the service has no backend that is alive and may be scheduled";
    BackendDead = 1, "backend_dead",
        "the chosen backend died a moment ago and the ring does not know it yet";
    Truncated = 2, "truncated",
        "the packet ends before its headers do";
    Malformed = 3, "malformed",
        "a header contradicts itself: a length or an offset that cannot be";
    Fragment = 4, "fragment",
        "a fragment for a VIP; only its first one says which flow it is of";
    UnsupportedMode = 5, "unsupported_mode",
        "the backend entry asks for a forwarding mode that this program does not have";
    RingCorrupt = 6, "ring_corrupt",
        "a slot or a service points outside the maps: please report this";
    NoInterface = 7, "no_interface",
        "the backend's interface is not one that packets can be redirected to";
}

/// Number of drop reasons: the size of their map.
pub const DROP_REASONS: u32 = DropReason::ALL.len() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_without_gaps_and_named_once() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(
                DropReason::ALL
                    .iter()
                    .filter(|r| r.name() == reason.name())
                    .count(),
                1
            );
        }
    }
}
