//! Stage 5: the decision for a slot that is not settled. Pure.

use core::num::NonZeroU32;

use lb_common::ring::Slot;

/// What to do with a packet whose slot is moving or pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Where it goes.
    pub backend: u32,
    /// Whether to record that.
    pub record: bool,
}

/// Decides.
///
/// `recorded` is where the flow table says, if the entry is neither idle nor
/// of a dead backend. `old` is the slot's old backend, if it has one that is
/// alive.
///
/// | slot | TCP SYN | recorded | neither |
/// |---|---|---|---|
/// | moving | new backend, record unless it is recorded there | as recorded | old backend, record |
/// | pinned | the slot's, record if it is recorded elsewhere | as recorded | the slot's |
///
/// A SYN begins a flow, also where one is recorded: clients use their ports
/// again, and a backend that drains must not get what begins on them.
///
/// A packet that is no SYN and not recorded belongs to a flow from before the
/// change, or is of UDP and might: so it goes where it would have gone then.
#[inline(always)]
pub fn decide(
    slot: Slot,
    syn: bool,
    recorded: Option<NonZeroU32>,
    old: Option<NonZeroU32>,
) -> Remembered {
    if syn {
        return Remembered {
            backend: slot.backend(),
            record: match recorded {
                Some(backend) => backend.get() != slot.backend(),
                None => slot.is_moving(),
            },
        };
    }
    if let Some(backend) = recorded {
        return Remembered {
            backend: backend.get(),
            record: false,
        };
    }
    Remembered {
        backend: match old {
            Some(old) => old.get(),
            None => slot.backend(),
        },
        record: slot.is_moving(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: u32 = 1;
    const OLD: u32 = 2;
    const RECORDED: u32 = 3;

    fn some(backend: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(backend)
    }

    fn to(backend: u32, record: bool) -> Remembered {
        Remembered { backend, record }
    }

    #[test]
    fn moving() {
        let slot = Slot::moving(NEW);
        assert_eq!(decide(slot, true, None, some(OLD)), to(NEW, true));
        assert_eq!(decide(slot, true, some(RECORDED), some(OLD)), to(NEW, true));
        assert_eq!(decide(slot, true, some(NEW), some(OLD)), to(NEW, false));
        assert_eq!(
            decide(slot, false, some(RECORDED), some(OLD)),
            to(RECORDED, false)
        );
        assert_eq!(decide(slot, false, None, some(OLD)), to(OLD, true));
        assert_eq!(decide(slot, false, None, None), to(NEW, true));
    }

    #[test]
    fn pinned() {
        let slot = Slot::pinned(NEW);
        assert_eq!(decide(slot, true, None, None), to(NEW, false));
        assert_eq!(decide(slot, true, some(RECORDED), None), to(NEW, true));
        assert_eq!(decide(slot, true, some(NEW), None), to(NEW, false));
        assert_eq!(
            decide(slot, false, some(RECORDED), None),
            to(RECORDED, false)
        );
        assert_eq!(decide(slot, false, None, None), to(NEW, false));
    }
}
