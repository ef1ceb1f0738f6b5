//! The XDP program of a director: the stages of this crate, applied to an
//! [`XdpContext`] and the BPF maps.

#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the xdp attribute drops the doc comment of its function"
)]

#[path = "../maps.rs"]
mod maps;
#[path = "../program.rs"]
mod program;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use lb_ebpf::checksum::Sum;
use lb_ebpf::packet::Packet;
use lb_ebpf::process;
use lb_ebpf::tables::Tables;
use lb_ebpf::verdict::{DropReason, Verdict};
use maps::{INTERFACES, Maps};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Entry point, once a packet.
#[xdp]
pub fn director(context: XdpContext) -> u32 {
    match process(&mut XdpPacket(&context), &Maps) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Transmit => xdp_action::XDP_TX,
        Verdict::Redirect(interface) => redirect(&context, interface),
        Verdict::Drop(reason) => {
            debug!(&context, "dropped: reason {}", reason as u32);
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn redirect(context: &XdpContext, interface: u32) -> u32 {
    match INTERFACES.redirect(interface, 0) {
        Ok(action) => action,
        Err(_) => {
            Maps.count_drop(DropReason::NoInterface);
            debug!(
                context,
                "dropped: cannot redirect to interface {}", interface
            );
            xdp_action::XDP_DROP
        }
    }
}

struct XdpPacket<'a>(&'a XdpContext);

impl XdpPacket<'_> {
    /// Address of `size` bytes at `offset`, if they lie inside the packet.
    #[inline(always)]
    fn at(&self, offset: usize, size: usize) -> Option<usize> {
        let address = self.0.data() + offset;
        (address + size <= self.0.data_end()).then_some(address)
    }
}

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0.data_end() - self.0.data()
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn read<T: FromBytes>(&self, offset: usize) -> Option<T> {
        let address = self.at(offset, size_of::<T>())?;
        // SAFETY: the bytes lie inside the packet, and any are a `T`.
        Some(unsafe { (address as *const T).read_unaligned() })
    }

    #[inline(always)]
    fn sum<const N: usize>(&self, offset: usize) -> Option<Sum> {
        let address = self.at(offset, N)?;
        let mut sum = Sum::new();
        for i in 0..N / 8 {
            // SAFETY: these 8 bytes are among the `N` that lie inside.
            let words = unsafe { (address as *const u64).add(i).read_unaligned() };
            sum = sum.add_u64(words);
        }
        Some(sum)
    }

    #[inline(always)]
    fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()> {
        let address = self.at(offset, size_of::<T>())?;
        // SAFETY: the bytes lie inside the packet; `T` has no padding.
        unsafe { (address as *mut T).write_unaligned(value) };
        Some(())
    }

    #[inline(always)]
    fn adjust_head(&mut self, delta: i32) -> Option<()> {
        // SAFETY: the context is the one that the kernel passed in.
        let failed = unsafe { bpf_xdp_adjust_head(self.0.ctx, delta) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn adjust_tail(&mut self, delta: i32) -> Option<()> {
        // SAFETY: as above.
        let failed = unsafe { bpf_xdp_adjust_tail(self.0.ctx, delta) };
        (failed == 0).then_some(())
    }
}
