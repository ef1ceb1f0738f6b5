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
    /// In NAT mode, packets from the backend that were translated back.
    pub reply_packets: u64,
    /// Their bytes, from the IP header on.
    pub reply_bytes: u64,
}
abi!(BackendCounters, size = 40, align = 8);

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

            /// The reason with this number; the first if there is none.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Self {
                match number {
                    $($number => Self::$variant,)*
                    _ => Self::NoBackend,
                }
            }

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
        "a fragment that came before the first of its packet, which alone says where they go, or long after it";
    UnsupportedMode = 5, "unsupported_mode",
        "the backend entry asks for a forwarding mode that this program does not have";
    RingCorrupt = 6, "ring_corrupt",
        "a slot or a service points outside the maps: please report this";
    NoInterface = 7, "no_interface",
        "the backend's interface is not one that packets can be redirected to";
    TooBig = 8, "too_big",
        "larger than the path to the backend carries; the sender was told the right size (path MTU discovery)";
    TooBigUntold = 9, "too_big_untold",
        "larger than the path to the backend carries, and the sender was not told because too many others were in this second";
    NeedsFragmenting = 10, "needs_fragmenting",
        "IPv4 without the don't-fragment flag and larger than the path to the backend carries: the director does not fragment, so raise the MTU of the path or clamp the clients' MSS";
    NoHeadroom = 11, "no_headroom",
        "the driver leaves no room in front of the packet for an outer header";
    TtlExceeded = 12, "ttl_exceeded",
        "a NAT packet at the end of its time to live; the sender was told, as traceroute wants it";
    TtlExceededUntold = 13, "ttl_exceeded_untold",
        "a NAT packet at the end of its time to live; the sender was not told because it is an ICMP error itself or too many others were told in this second";
    PoolExhausted = 14, "pool_exhausted",
        "full NAT has no source port left: name more addresses in settings.nat_pool, or shorten settings.nat_timeouts";
    NatTableFull = 15, "nat_table_full",
        "the tables of translated flows are full: start lb-ctl anew with a larger --nat-table-size after `lb-ctl down`";
    NatClash = 16, "nat_clash",
        "a client uses one port for two VIPs whose services share a backend, which could not tell the flows apart: use full_nat for one of the services";
    NoFlow = 17, "no_flow",
        "a reset or an ICMP error for full NAT that belongs to no known flow";
    NoRoute = 18, "no_route",
        "the kernel has no route from a NAT backend back to the client: see `ip route get`";
    NotForwarding = 19, "not_forwarding",
        "a NAT backend's reply came in by an interface on which forwarding is off: see `sysctl net.ipv4.conf` and `net.ipv6.conf`, lb-ctl up turns it on";
    ProgramMissing = 20, "program_missing",
        "a program that packets are handed to is not where it should be: start lb-ctl up again, and please report this";
    FragmentTiny = 21, "fragment_tiny",
        "a first fragment that ends within its TCP or UDP header, as only attackers send it";
    FragmentOverlap = 22, "fragment_overlap",
        "a fragment that overlaps the first of its packet, as only attackers send it";
    OtherProtocol = 23, "other_protocol",
        "a packet for a VIP that is neither TCP, UDP, SCTP nor ICMP, as settings.other_protocols wants it";
}

/// Per-CPU value of the map that limits how many ICMP errors are sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IcmpBudget {
    /// The second ([`crate::flow::seconds`]) that `sent` counts.
    pub second: u32,
    /// Errors sent in it.
    pub sent: u32,
}
abi!(IcmpBudget, size = 8, align = 4);

impl IcmpBudget {
    /// ICMP errors that one CPU sends in a second at most.
    pub const PER_SECOND: u32 = 1000;

    /// Takes one error out of the budget of this second; `false` if there is
    /// none left.
    #[inline(always)]
    pub const fn take(&mut self, now: u32) -> bool {
        if self.second != now {
            self.second = now;
            self.sent = 0;
        }
        if self.sent >= Self::PER_SECOND {
            return false;
        }
        self.sent += 1;
        true
    }
}

/// Number of drop reasons: the size of their map.
pub const DROP_REASONS: u32 = DropReason::ALL.len() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_lasts_for_its_second() {
        let mut budget = IcmpBudget::default();
        for _ in 0..IcmpBudget::PER_SECOND {
            assert!(budget.take(1));
        }
        assert!(!budget.take(1));
        assert!(budget.take(2));
    }

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
