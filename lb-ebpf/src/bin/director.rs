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
use lb_common::nat;
use lb_ebpf::family::{V4, V6};
use lb_ebpf::parse::{ETHERTYPE_IPV4, ethertype};
use lb_ebpf::tables::Tables;
use lb_ebpf::verdict::{DropReason, Verdict};
use lb_ebpf::{enter, process_nat};
use maps::{INTERFACES, Maps, NAT_PROGRAMS};

/// Entry point, once a packet.
#[xdp]
pub fn director(context: XdpContext) -> u32 {
    let packet = &mut XdpPacket(&context);
    match enter(packet, &Maps(&context)) {
        Some(verdict) => act(&context, verdict),
        None => {
            let program = if ethertype(packet) == Some(ETHERTYPE_IPV4) {
                nat::PROGRAM_V4
            } else {
                nat::PROGRAM_V6
            };
            // SAFETY: the map holds programs of this type only. A call that
            // succeeds does not return.
            let _ = unsafe { NAT_PROGRAMS.tail_call(&context, program) };
            Maps(&context).count_drop(DropReason::ProgramMissing);
            xdp_action::XDP_DROP
        }
    }
}

/// NAT mode, IPv4.
#[xdp]
pub fn nat_v4(context: XdpContext) -> u32 {
    let verdict = process_nat::<V4, _, _>(&mut XdpPacket(&context), &Maps(&context));
    act(&context, verdict)
}

/// NAT mode, IPv6.
#[xdp]
pub fn nat_v6(context: XdpContext) -> u32 {
    let verdict = process_nat::<V6, _, _>(&mut XdpPacket(&context), &Maps(&context));
    act(&context, verdict)
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
