//! The accesses to memory that a packet needs at least, and nothing else.

use aya_ebpf::programs::XdpContext;
use lb_common::ring::{SLOTS_PER_BLOCK, slot_index};

use super::headers::{HeadersV4, HeadersV6, at};
use crate::{COUNTERS, ENTRIES, ENTRY_COUNT, RINGS, SLOT_COUNT};

/// Reads a slot, the backend entry that it leads to, and counts there: each at
/// a place that depends on the flow alone, as a balancer's do. The tables are as
/// large as the balancer's, and empty.
#[inline(always)]
pub fn touch(context: &XdpContext) -> Option<()> {
    let flow = flow(context)?;
    let hash = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let index = slot_index(hash as u32, SLOT_COUNT.load());
    let block = RINGS.get(index / SLOTS_PER_BLOCK)?;
    let slot = block.slots[(index % SLOTS_PER_BLOCK) as usize];
    // Not before the slot has been read, though all slots are alike.
    let next = (flow ^ u64::from(slot.0)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f) >> 32;
    let id = slot_index(next as u32, ENTRY_COUNT.load());
    let entry = ENTRIES.get(id)?;
    let counters = COUNTERS.get_ptr_mut(id)?;
    // SAFETY: XDP programs on one CPU do not interrupt each other.
    unsafe {
        (*counters).packets += 1;
        (*counters).bytes += u64::from(entry.mtu);
    }
    Some(())
}

#[inline(always)]
fn flow(context: &XdpContext) -> Option<u64> {
    let v4 = at::<HeadersV4>(context)?;
    // SAFETY: `at` has checked the bounds.
    let (ethertype, v4) = unsafe {
        (
            (*v4).ethertype,
            [(*v4).source, (*v4).destination ^ (*v4).ports],
        )
    };
    let [high, low] = if ethertype == 0x0800_u16.to_be() {
        v4.map(u64::from)
    } else {
        let v6 = at::<HeadersV6>(context)?;
        // SAFETY: as above.
        unsafe {
            [
                (*v6).source[1] >> 32,
                (*v6).destination[1] >> 32 ^ u64::from((*v6).ports),
            ]
        }
    };
    Some(high << 32 ^ low)
}
