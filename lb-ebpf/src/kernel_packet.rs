//! Packets in the kernel's memory, as the stages see them.
//!
//! Every access compares with the end of the packet first: so the verifier
//! demands it, and so it is safe.

use core::hint::black_box;
use core::ptr::null_mut;

use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
};
use aya_ebpf::programs::XdpContext;
use lb_ebpf::checksum::Sum;
use lb_ebpf::packet::Packet;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The packet of an XDP program, as received by the interface that the context
/// names.
pub type XdpPacket<'a> = ContextPacket<'a, false>;

/// The same; if `TOLD` as received by an interface that is told, a VLAN device
/// perhaps. Apart by type, because a branch would double the ways that the
/// verifier has to follow.
#[derive(Clone, Copy)]
pub struct ContextPacket<'a, const TOLD: bool> {
    context: &'a XdpContext,
    interface: u32,
}

impl<'a> XdpPacket<'a> {
    /// The packet that the program runs on.
    #[inline(always)]
    pub const fn new(context: &'a XdpContext) -> Self {
        Self::received_by(0, context)
    }
}

impl<'a, const TOLD: bool> ContextPacket<'a, TOLD> {
    /// The packet that the program runs on, and the index of the interface.
    #[inline(always)]
    pub const fn received_by(interface: u32, context: &'a XdpContext) -> Self {
        Self { context, interface }
    }
}

impl<const TOLD: bool> Packet for ContextPacket<'_, TOLD> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.context.data_end() - self.context.data()
    }

    #[inline(always)]
    fn total_len(&self) -> usize {
        // SAFETY: the context is the one that the kernel passed in.
        unsafe { bpf_xdp_get_buff_len(self.context.ctx) as usize }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        if TOLD {
            self.interface
        } else {
            self.context.ingress_ifindex() as u32
        }
    }

    #[inline(always)]
    fn read<T: FromBytes>(&self, offset: usize) -> Option<T> {
        read(self.context.data(), self.context.data_end(), offset)
    }

    #[inline(always)]
    fn sum<const N: usize>(&self, offset: usize) -> Option<Sum> {
        sum::<N>(self.context.data(), self.context.data_end(), offset)
    }

    #[inline(always)]
    fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()> {
        write(self.context.data(), self.context.data_end(), offset, value)
    }

    #[inline(always)]
    fn aside<R>(&mut self, seldom: impl FnOnce(&mut Self) -> R) -> R {
        // A copy that compilers do not see through.
        seldom(&mut black_box(*self))
    }

    #[inline(always)]
    fn adjust_head(&mut self, delta: i32) -> Option<()> {
        // SAFETY: the context is the one that the kernel passed in.
        let failed = unsafe { bpf_xdp_adjust_head(self.context.ctx, delta) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn adjust_tail(&mut self, delta: i32) -> Option<()> {
        // SAFETY: as above.
        let failed = unsafe { bpf_xdp_adjust_tail(self.context.ctx, delta) };
        (failed == 0).then_some(())
    }
}

/// Address of `size` bytes at `offset`, if they lie inside the packet.
#[inline(always)]
fn at(start: usize, end: usize, offset: usize, size: usize) -> Option<usize> {
    let address = start + offset;
    let past = if size == 1 {
        // Compilers would compare the address itself, from which the verifier
        // learns nothing. They do not see through this.
        black_box(address + 1)
    } else {
        address + size
    };
    (past <= end).then_some(address)
}

/// [`Packet::read`] of the packet from `start` to `end`.
#[inline(always)]
pub fn read<T: FromBytes>(start: usize, end: usize, offset: usize) -> Option<T> {
    let address = at(start, end, offset, size_of::<T>())?;
    // SAFETY: the bytes lie inside the packet, and any are a `T`.
    Some(unsafe { (address as *const T).read_unaligned() })
}

/// [`Packet::sum`] of the packet from `start` to `end`.
#[inline(always)]
pub fn sum<const N: usize>(start: usize, end: usize, offset: usize) -> Option<Sum> {
    // In a loop compilers compare with the end plus one, and the verifier
    // forbids arithmetic on the end. They do not see through this.
    let end = black_box(end);
    let address = at(start, end, offset, N)?;
    /// From here on the helper is faster, and less for the verifier to follow.
    const MANY: usize = 32;
    if N >= MANY {
        // SAFETY: the `N` bytes lie inside the packet.
        let sum = unsafe { bpf_csum_diff(null_mut(), 0, address as *mut u32, N as u32, 0) };
        return Some(Sum::new().add_u32(sum as u32));
    }
    let mut sum = Sum::new();
    for i in 0..N / 8 {
        // SAFETY: these 8 bytes are among the `N` that lie inside.
        sum = sum.add_u64(unsafe { (address as *const u64).add(i).read_unaligned() });
    }
    Some(sum)
}

/// [`Packet::write`] to the packet from `start` to `end`.
#[inline(always)]
pub fn write<T: IntoBytes + Immutable>(
    start: usize,
    end: usize,
    offset: usize,
    value: T,
) -> Option<()> {
    let address = at(start, end, offset, size_of::<T>())?;
    // SAFETY: the bytes lie inside the packet; `T` has no padding.
    unsafe { (address as *mut T).write_unaligned(value) };
    Some(())
}
