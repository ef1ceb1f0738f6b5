//! Programs for `cargo xtask bench`: a packet generator, and floors to compare
//! with.
//!
//! BPF_PROG_TEST_RUN with `repeat` does not restore the packet between
//! repetitions, so a program that changes packets would soon work on its own
//! output. The generator therefore runs in front: it undoes what the last
//! repetition did to the buffer, writes the next packet's headers, and
//! tail-calls the program under test. Its own cost is measured with
//! `floor_empty` in that place, and subtracted.

#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the xdp attribute drops the doc comments of its functions"
)]

#[path = "../bench/accesses.rs"]
mod accesses;
#[path = "../bench/floor.rs"]
mod floor;
#[path = "../bench/headers.rs"]
mod headers;
#[path = "../program.rs"]
mod program;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;
use headers::{CHECKSUM, HeadersV4, HeadersV6, MACS, at};
use lb_common::backend::Backend;
use lb_common::counters::BackendCounters;
use lb_common::protocol::TCP;
use lb_common::ring::RingBlock;

/// The program under test, at index 0.
#[map]
static UNDER_TEST: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// State of the generator: counter or random number.
#[map]
static STATE: Array<u32> = Array::with_max_entries(1, 0);

/// 4 or 6.
#[unsafe(no_mangle)]
static VERSION: Global<u32> = Global::new(4);
/// IP protocol number.
#[unsafe(no_mangle)]
static PROTOCOL: Global<u32> = Global::new(6);
/// Flags of the TCP header.
#[unsafe(no_mangle)]
static TCP_FLAGS: Global<u32> = Global::new(0x10);
/// Number of flows less one, a power of two less one; drawn at random.
#[unsafe(no_mangle)]
static FLOW_MASK: Global<u32> = Global::new(0);
/// Number of VIPs.
#[unsafe(no_mangle)]
static VIPS: Global<u32> = Global::new(1);
/// Address of the first client, host byte order.
#[unsafe(no_mangle)]
static SOURCE_V4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOURCE_V6_HIGH: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static SOURCE_V6_LOW: Global<u64> = Global::new(0);
/// Address of the first VIP, host byte order.
#[unsafe(no_mangle)]
static DESTINATION_V4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DESTINATION_V6_HIGH: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static DESTINATION_V6_LOW: Global<u64> = Global::new(0);
/// Source port of the first 2^16 flows, host byte order.
#[unsafe(no_mangle)]
static SOURCE_PORT: Global<u32> = Global::new(1024);
/// Destination port, host byte order.
#[unsafe(no_mangle)]
static PORT: Global<u32> = Global::new(80);
/// Bytes of a frame.
#[unsafe(no_mangle)]
static FRAME_LENGTH: Global<u32> = Global::new(64);

/// Packets that came to the sink as they should, and others.
#[map]
static ARRIVED: Array<u64> = Array::with_max_entries(2, 0);

/// First four octets of the destination MAC that the sink expects.
#[unsafe(no_mangle)]
static EXPECTED_MAC: Global<u32> = Global::new(0);
/// First octet of the IPv4 destination that the sink expects.
#[unsafe(no_mangle)]
static EXPECTED_DESTINATION: Global<u32> = Global::new(0);
/// IP protocol number that the sink expects.
#[unsafe(no_mangle)]
static EXPECTED_PROTOCOL: Global<u32> = Global::new(0);

/// Tables like the director's, of the size that user space gives them.
#[map]
static RINGS: Array<RingBlock> = Array::with_max_entries(1, 0);
#[map]
static ENTRIES: Array<Backend> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static COUNTERS: PerCpuArray<BackendCounters> = PerCpuArray::with_max_entries(1, 0);

/// How many slots and backend entries they have.
#[unsafe(no_mangle)]
static SLOT_COUNT: Global<u32> = Global::new(1);
#[unsafe(no_mangle)]
static ENTRY_COUNT: Global<u32> = Global::new(1);

#[xdp(frags)]
pub fn generator(context: XdpContext) -> u32 {
    match generate(&context) {
        Some(()) => {
            // SAFETY: the map holds XDP programs; the call does not return if
            // there is one.
            unsafe { UNDER_TEST.tail_call(&context, 0) };
            XDP_ABORTED
        }
        None => XDP_ABORTED,
    }
}

#[xdp(frags)]
pub fn floor_empty(_: XdpContext) -> u32 {
    XDP_TX
}

#[xdp(frags)]
pub fn floor_drop(_: XdpContext) -> u32 {
    XDP_DROP
}

#[xdp(frags)]
pub fn floor_mac_swap(context: XdpContext) -> u32 {
    match floor::mac_swap(&context) {
        Some(()) => XDP_TX,
        None => XDP_DROP,
    }
}

#[xdp(frags)]
pub fn floor_encapsulate(context: XdpContext) -> u32 {
    match floor::encapsulate(&context) {
        Some(()) => XDP_TX,
        None => XDP_DROP,
    }
}

#[xdp(frags)]
pub fn floor_accesses(context: XdpContext) -> u32 {
    match accesses::touch(&context) {
        Some(()) => XDP_TX,
        None => XDP_DROP,
    }
}

#[xdp(frags)]
pub fn sink(context: XdpContext) -> u32 {
    let index = if is_expected(&context) == Some(true) {
        0
    } else {
        1
    };
    if let Some(count) = ARRIVED.get_ptr_mut(index) {
        // SAFETY: one run at a time sends to the sink.
        unsafe { *count += 1 }
    }
    XDP_DROP
}

/// Writes the next packet.
#[inline(always)]
fn generate(context: &XdpContext) -> Option<()> {
    let wanted = FRAME_LENGTH.load();
    // The verifier allows the difference of packet pointers in 64 bits only,
    // and the compiler would narrow it.
    let length = core::hint::black_box(context.data_end() - context.data()) as u32;
    // Gives back the head that an encapsulating program has taken.
    let surplus = length.wrapping_sub(wanted) as i32;
    // SAFETY: the context is the kernel's.
    if unsafe { bpf_xdp_adjust_head(context.ctx, surplus) } != 0 {
        return None;
    }
    let flow = next_flow()?;
    let mixed = flow.wrapping_mul(0x9e37_79b1);
    let vip = ((u64::from(mixed) * u64::from(VIPS.load())) >> 32) as u32;
    // 2^16 clients with sixteen ports each: 2^20 flows, no two alike.
    let client = flow & 0xffff;
    let client_port = (SOURCE_PORT.load() + (flow >> 16)) as u16;
    let ports = u32::from(client_port.to_be()) | u32::from((PORT.load() as u16).to_be()) << 16;
    if VERSION.load() == 4 {
        write_v4(context, wanted, client, vip, ports)
    } else {
        write_v6(context, wanted, client, vip, ports)
    }
}

#[inline(always)]
fn next_flow() -> Option<u32> {
    let state = STATE.get_ptr_mut(0)?;
    // SAFETY: one run at a time uses the generator.
    unsafe {
        // xorshift, never 0.
        let mut x = *state | 1;
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        *state = x;
        Some(x >> 3 & FLOW_MASK.load())
    }
}

#[inline(always)]
fn write_v4(context: &XdpContext, frame: u32, client: u32, vip: u32, ports: u32) -> Option<()> {
    let headers = at::<HeadersV4>(context)?;
    let length = (frame as u16 - 14).to_be();
    let protocol = PROTOCOL.load() as u8;
    let source = SOURCE_V4.load().wrapping_add(client).to_be();
    let destination = DESTINATION_V4.load().wrapping_add(vip).to_be();
    let rest = [0, 0, 0x40, 0, 64, protocol];
    let mut sum = u32::from(u16::from_ne_bytes([0x45, 0])) + u32::from(length);
    sum += 0x40 + u32::from(u16::from_ne_bytes([64, protocol]));
    sum += (source & 0xffff) + (source >> 16) + (destination & 0xffff) + (destination >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    // SAFETY: `at` has checked the bounds.
    unsafe {
        (*headers).macs = MACS;
        (*headers).ethertype = 0x0800_u16.to_be();
        (*headers).start = [0x45, 0];
        (*headers).length = length;
        (*headers).rest = rest;
        (*headers).checksum = !(sum as u16);
        (*headers).source = source;
        (*headers).destination = destination;
        (*headers).ports = ports;
        if protocol == TCP {
            (*headers).offset_flags = [0x50, TCP_FLAGS.load() as u8, 0xff, 0xff];
            (*headers).checksum_urgent = CHECKSUM;
        } else {
            let length = u32::from((frame as u16 - 34).to_be());
            (*headers).sequence = length | CHECKSUM << 16;
        }
    }
    Some(())
}

#[inline(always)]
fn write_v6(context: &XdpContext, frame: u32, client: u32, vip: u32, ports: u32) -> Option<()> {
    let headers = at::<HeadersV6>(context)?;
    let protocol = PROTOCOL.load() as u8;
    // In words as large as a program may read them: a load that needs several
    // stores waits for them, which packets from a NIC do not make it do.
    let sum = |low: u64, n: u32| low.wrapping_add(u64::from(n));
    let source = [SOURCE_V6_HIGH.load(), sum(SOURCE_V6_LOW.load(), client)].map(u64::to_be);
    let destination = [
        DESTINATION_V6_HIGH.load(),
        sum(DESTINATION_V6_LOW.load(), vip),
    ]
    .map(u64::to_be);
    // SAFETY: `at` has checked the bounds.
    unsafe {
        (*headers).macs = MACS;
        (*headers).ethertype = 0x86dd_u16.to_be();
        (*headers).start = [0x60, 0, 0, 0];
        (*headers).length = (frame as u16 - 54).to_be();
        (*headers).next_header = protocol;
        (*headers).hop_limit = 64;
        (*headers).source = source;
        (*headers).destination = destination;
        (*headers).ports = ports;
        if protocol == TCP {
            (*headers).offset_flags = [0x50, TCP_FLAGS.load() as u8, 0xff, 0xff];
            (*headers).checksum_urgent = CHECKSUM;
        } else {
            let length = u32::from((frame as u16 - 54).to_be());
            (*headers).sequence = length | CHECKSUM << 16;
        }
    }
    Some(())
}

/// Whether a packet is the one that the sink waits for.
#[inline(always)]
fn is_expected(context: &XdpContext) -> Option<bool> {
    let headers = at::<HeadersV4>(context)?;
    // SAFETY: `at` has checked the bounds.
    let (macs, ethertype, rest, destination) = unsafe {
        let h = &raw const (*headers);
        ((*h).macs, (*h).ethertype, (*h).rest, (*h).destination)
    };
    let mac = u32::from_be_bytes([macs[0], macs[1], macs[2], macs[3]]);
    Some(
        mac == EXPECTED_MAC.load()
            && ethertype == 0x0800_u16.to_be()
            && u32::from_be(destination) >> 24 == EXPECTED_DESTINATION.load()
            && u32::from(rest[5]) == EXPECTED_PROTOCOL.load(),
    )
}
