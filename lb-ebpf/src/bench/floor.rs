//! Floors: what a packet takes at least.

use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use lb_common::protocol::TCP;

use super::headers::{HeadersV4, HeadersV6, MACS, at};

/// Swaps the MAC addresses, after the bounds check that every balancer needs.
#[inline(always)]
pub fn mac_swap(context: &XdpContext) -> Option<()> {
    let headers = at::<HeadersV4>(context)?;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        let macs = (*headers).macs;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = macs;
        (*headers).macs = [g, h, i, j, k, l, a, b, c, d, e, f];
    }
    Some(())
}

/// Lengths of headers.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// Layer 4 without options.
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Bits of the IPv4 header that only a fragment has.
const FRAGMENT: u16 = 0x3fff;

/// Protocol numbers (IANA) of the inner packet.
const IPV4_INSIDE: u8 = 4;
const IPV6_INSIDE: u8 = 41;

/// Encapsulates in IPIP, IPv4 in IPv4 and IPv6 in IPv6, with the checks that
/// every balancer needs but to a constant destination: no map at all. The low
/// bits of the source differ from flow to flow.
#[inline(always)]
pub fn encapsulate(context: &XdpContext) -> Option<()> {
    let start = context.data();
    if start + ETHERNET > context.data_end() {
        return None;
    }
    let headers = start as *const HeadersV4;
    // SAFETY: the bounds were checked.
    let ethertype = unsafe { (*headers).ethertype };
    if ethertype == 0x0800_u16.to_be() {
        encapsulate_v4(context)
    } else if ethertype == 0x86dd_u16.to_be() {
        encapsulate_v6(context)
    } else {
        None
    }
}

#[inline(always)]
fn encapsulate_v4(context: &XdpContext) -> Option<()> {
    let (start, end) = (context.data(), context.data_end());
    let layer4 = start + ETHERNET + IPV4;
    if layer4 + UDP_HEADER > end {
        return None;
    }
    let inner = start as *const HeadersV4;
    // SAFETY: the bounds were checked, up to the ports and beyond.
    let ([version, tos], length, rest, client, ports) = unsafe {
        (
            (*inner).start,
            (*inner).length,
            (*inner).rest,
            (*inner).source,
            (*inner).ports,
        )
    };
    let [_, _, fragment_high, fragment_low, _, protocol] = rest;
    let fragment = u16::from_be_bytes([fragment_high, fragment_low]) & FRAGMENT;
    if version != 0x45 || fragment != 0 {
        return None;
    }
    if protocol == TCP && layer4 + TCP_HEADER > end {
        return None;
    }
    // SAFETY: the context is the kernel's.
    if unsafe { bpf_xdp_adjust_head(context.ctx, -(IPV4 as i32)) } != 0 {
        return None;
    }
    let outer = at::<HeadersV4>(context)?;
    let total = (u16::from_be(length) + IPV4 as u16).to_be();
    let source = u32::from_ne_bytes([172, 16, 0, 0]) | (client ^ (ports << 16)) & 0xffff_0000;
    let destination = u32::from_ne_bytes([10, 0, 0, 1]);
    let mut sum = u32::from(u16::from_ne_bytes([0x45, tos])) + u32::from(total);
    sum += u32::from(u16::from_ne_bytes([64, IPV4_INSIDE]));
    sum += (source & 0xffff) + (source >> 16) + (destination & 0xffff) + (destination >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    // SAFETY: `at` has checked the bounds.
    unsafe {
        (*outer).macs = MACS;
        (*outer).ethertype = 0x0800_u16.to_be();
        (*outer).start = [0x45, tos];
        (*outer).length = total;
        (*outer).rest = [0, 0, 0, 0, 64, IPV4_INSIDE];
        (*outer).checksum = !(sum as u16);
        (*outer).source = source;
        (*outer).destination = destination;
    }
    Some(())
}

#[inline(always)]
fn encapsulate_v6(context: &XdpContext) -> Option<()> {
    let (start, end) = (context.data(), context.data_end());
    if start + ETHERNET + IPV6 + TCP_HEADER > end {
        return None;
    }
    let inner = start as *const HeadersV6;
    // SAFETY: the bounds were checked.
    let (length, [_, client], ports) =
        unsafe { ((*inner).length, (*inner).source, (*inner).ports) };
    // SAFETY: the context is the kernel's.
    if unsafe { bpf_xdp_adjust_head(context.ctx, -(IPV6 as i32)) } != 0 {
        return None;
    }
    let outer = at::<HeadersV6>(context)?;
    let prefix = 0x2001_0db8_u64.to_be() >> 32;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        (*outer).macs = MACS;
        (*outer).ethertype = 0x86dd_u16.to_be();
        (*outer).start = [0x60, 0, 0, 0];
        (*outer).length = (u16::from_be(length) + IPV6 as u16).to_be();
        (*outer).next_header = IPV6_INSIDE;
        (*outer).hop_limit = 64;
        (*outer).source = [prefix, client ^ u64::from(ports & 0xffff)];
        (*outer).destination = [prefix, 1_u64.to_be()];
    }
    Some(())
}
