//! The XDP programs of a director: the stages of this crate, applied to an
//! [`XdpContext`] and the BPF maps.

#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the xdp attribute drops the doc comment of its function"
)]

#[path = "../fib.rs"]
mod fib;
#[path = "../kernel_packet.rs"]
mod kernel_packet;
#[path = "../maps.rs"]
mod maps;
#[path = "../program.rs"]
mod program;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use kernel_packet::XdpPacket;
use lb_common::program as programs;
use lb_ebpf::family::{V4, V6};
use lb_ebpf::parse::{ETHERTYPE_IPV4, ethertype};
use lb_ebpf::tables::Tables;
use lb_ebpf::verdict::{DropReason, Verdict};
use lb_ebpf::{Next, ask_vip, enter, process_echo, process_first, process_later, process_nat};
use maps::{INTERFACES, Maps, PROGRAMS};

/// Entry point, once a packet.
#[xdp(frags)]
pub fn director(context: XdpContext) -> u32 {
    let packet = &mut XdpPacket(&context);
    let next = match enter(packet, &Maps(&context)) {
        Ok(verdict) => return act(&context, verdict),
        Err(next) => next,
    };
    // Another than the one that most packets go through: functions that are not
    // inlined would have it in memory, not in registers.
    let again = XdpContext::new(context.ctx);
    let next = match ask_vip(next, &XdpPacket(&again), &Maps(&again)) {
        Ok(verdict) => return act(&context, verdict),
        Err(next) => next,
    };
    let program = match (next, ethertype(packet) == Some(ETHERTYPE_IPV4)) {
        (Next::Nat, true) => programs::NAT_V4,
        (Next::Nat, false) => programs::NAT_V6,
        (Next::First, true) => programs::FIRST_V4,
        (Next::First, false) => programs::FIRST_V6,
        (Next::Later, true) => programs::LATER_V4,
        (Next::Later, false) => programs::LATER_V6,
        (Next::Echo, true) => programs::ECHO_V4,
        (Next::Echo, false) => programs::ECHO_V6,
        (Next::Vip, _) => return xdp_action::XDP_PASS,
    };
    hand_over(&context, program)
}

/// NAT mode, IPv4.
#[xdp(frags)]
pub fn nat_v4(context: XdpContext) -> u32 {
    let verdict = process_nat::<false, V4, _, _>(&mut XdpPacket(&context), &Maps(&context));
    act(&context, verdict)
}

/// NAT mode, IPv6.
#[xdp(frags)]
pub fn nat_v6(context: XdpContext) -> u32 {
    let verdict = process_nat::<false, V6, _, _>(&mut XdpPacket(&context), &Maps(&context));
    act(&context, verdict)
}

/// NAT mode, first fragments, IPv4.
#[xdp(frags)]
pub fn nat_first_v4(context: XdpContext) -> u32 {
    let verdict = process_nat::<true, V4, _, _>(&mut XdpPacket(&context), &Maps(&context));
    act(&context, verdict)
}

/// NAT mode, first fragments, IPv6.
#[xdp(frags)]
pub fn nat_first_v6(context: XdpContext) -> u32 {
    let verdict = process_nat::<true, V6, _, _>(&mut XdpPacket(&context), &Maps(&context));
    act(&context, verdict)
}

/// First fragments, IPv4.
#[xdp(frags)]
pub fn first_v4(context: XdpContext) -> u32 {
    match process_first::<V4, _, _>(&mut XdpPacket(&context), &Maps(&context)) {
        Ok(verdict) => act(&context, verdict),
        Err(_) => hand_over(&context, programs::NAT_FIRST_V4),
    }
}

/// First fragments, IPv6.
#[xdp(frags)]
pub fn first_v6(context: XdpContext) -> u32 {
    match process_first::<V6, _, _>(&mut XdpPacket(&context), &Maps(&context)) {
        Ok(verdict) => act(&context, verdict),
        Err(_) => hand_over(&context, programs::NAT_FIRST_V6),
    }
}

/// Later fragments, IPv4.
#[xdp(frags)]
pub fn later_v4(context: XdpContext) -> u32 {
    let verdict = process_later::<V4, _, _>(&mut XdpPacket(&context), &Maps(&context));
    act(&context, verdict)
}

/// Later fragments, IPv6.
#[xdp(frags)]
pub fn later_v6(context: XdpContext) -> u32 {
    let verdict = process_later::<V6, _, _>(&mut XdpPacket(&context), &Maps(&context));
    act(&context, verdict)
}

/// Pings of a VIP, IPv4.
#[xdp(frags)]
pub fn echo_v4(context: XdpContext) -> u32 {
    let verdict = process_echo::<V4, _, _>(&mut XdpPacket(&context), &Maps(&context));
    act(&context, verdict)
}

/// Pings of a VIP, IPv6.
#[xdp(frags)]
pub fn echo_v6(context: XdpContext) -> u32 {
    let verdict = process_echo::<V6, _, _>(&mut XdpPacket(&context), &Maps(&context));
    act(&context, verdict)
}

#[inline(always)]
fn hand_over(context: &XdpContext, program: u32) -> u32 {
    // SAFETY: the map holds programs of this type only. A call that succeeds
    // does not return.
    unsafe { PROGRAMS.tail_call(context, program) };
    Maps(context).count_drop(DropReason::ProgramMissing);
    xdp_action::XDP_DROP
}

#[inline(always)]
fn act(context: &XdpContext, verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass | Verdict::Host => xdp_action::XDP_PASS,
        Verdict::Transmit => xdp_action::XDP_TX,
        Verdict::Redirect(interface) => redirect(context, interface),
        Verdict::Drop(reason) => {
            debug!(context, "dropped: reason {}", reason as u32);
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn redirect(context: &XdpContext, interface: u32) -> u32 {
    match INTERFACES.redirect(interface, 0) {
        Ok(action) => action,
        Err(_) => {
            Maps(context).count_drop(DropReason::NoInterface);
            debug!(
                context,
                "dropped: cannot redirect to interface {}", interface
            );
            xdp_action::XDP_DROP
        }
    }
}
