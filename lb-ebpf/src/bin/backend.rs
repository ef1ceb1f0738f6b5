//! The programs of a backend: the stages of [`lb_ebpf::backend`], applied to
//! frames that arrive ([`XdpContext`]) and that leave ([`TcContext`]).

#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the attributes drop the doc comments of their functions"
)]

#[path = "../kernel_packet.rs"]
mod kernel_packet;
#[path = "../program.rs"]
mod program;

use aya_ebpf::bindings::{TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::bpf_l4_csum_replace;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use kernel_packet::{XdpPacket, read, sum, write};
use lb_common::Address;
use lb_common::tunnel::{
    COUNTERS as COUNTER_COUNT, Counter, DROP_REASONS, DropReason, MAX_DIRECTORS, MAX_LOCALS,
    MAX_VIPS, TunnelSettings,
};
use lb_ebpf::backend::{Segment, Tables, Verdict, decapsulate, mss};
use lb_ebpf::checksum::Sum;
use lb_ebpf::packet::Packet;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// [`TunnelSettings`], one value.
#[map]
static SETTINGS: Array<TunnelSettings> = Array::pinned(1, 0);

/// Prefixes of the directors. The value means nothing.
#[map]
static DIRECTORS: LpmTrie<Address, u32> = LpmTrie::pinned(MAX_DIRECTORS, 0);

/// VIPs.
#[map]
static VIPS: HashMap<Address, u32> = HashMap::pinned(MAX_VIPS, 0);

/// The host's other addresses.
#[map]
static LOCALS: HashMap<Address, u32> = HashMap::pinned(MAX_LOCALS, 0);

/// By [`Counter`].
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTER_COUNT, 0);

/// Packets dropped, by [`DropReason`].
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DROP_REASONS, 0);

/// What arrives.
#[xdp(frags)]
pub fn lb_decapsulate(context: XdpContext) -> u32 {
    match decapsulate::receive(&mut XdpPacket::new(&context), &Maps) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop(_) => xdp_action::XDP_DROP,
    }
}

/// What leaves. Other programs on the way out have their say after this one.
#[classifier]
pub fn lb_mss(context: TcContext) -> i32 {
    mss::lower(&mut TcPacket(&context), &Maps);
    TC_ACT_UNSPEC
}

struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn settings(&self) -> TunnelSettings {
        SETTINGS.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn is_director(&self, address: &Address) -> bool {
        DIRECTORS.get(Key::new(128, *address)).is_some()
    }

    #[inline(always)]
    fn is_vip(&self, address: &Address) -> bool {
        VIPS.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_local(&self, address: &Address) -> bool {
        LOCALS.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        add_one(COUNTERS.get_ptr_mut(counter as u32));
    }

    #[inline(always)]
    fn count_drop(&self, reason: DropReason) {
        add_one(DROPS.get_ptr_mut(reason as u32));
    }
}

#[inline(always)]
fn add_one(count: Option<*mut u64>) {
    if let Some(count) = count {
        // SAFETY: the value is this CPU's own.
        unsafe { *count += 1 }
    }
}

struct TcPacket<'a>(&'a TcContext);

impl Packet for TcPacket<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0.data_end() - self.0.data()
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context is the one that the kernel passed in.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    #[inline(always)]
    fn read<T: FromBytes>(&self, offset: usize) -> Option<T> {
        read(self.0.data(), self.0.data_end(), offset)
    }

    #[inline(always)]
    fn sum<const N: usize>(&self, offset: usize) -> Option<Sum> {
        sum::<N>(self.0.data(), self.0.data_end(), offset)
    }

    #[inline(always)]
    fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()> {
        write(self.0.data(), self.0.data_end(), offset, value)
    }

    #[inline(always)]
    fn adjust_head(&mut self, _: i32) -> Option<()> {
        None
    }

    #[inline(always)]
    fn adjust_tail(&mut self, _: i32) -> Option<()> {
        None
    }
}

impl Segment for TcPacket<'_> {
    #[inline(always)]
    fn replace_checksum(&mut self, offset: usize, from: u16, to: u16) -> Option<()> {
        let (from, to) = (u64::from(from), u64::from(to));
        let size = size_of::<u16>() as u64;
        // SAFETY: the context is the one that the kernel passed in.
        let failed = unsafe { bpf_l4_csum_replace(self.0.skb.skb, offset as u32, from, to, size) };
        (failed == 0).then_some(())
    }
}
