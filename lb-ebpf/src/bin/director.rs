//! The XDP program of a director: the stages of this crate, applied to an
//! [`XdpContext`] and the BPF maps.

#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the xdp attribute drops the doc comment of its function"
)]

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
use lb_ebpf::process;
use lb_ebpf::tables::Tables;
use lb_ebpf::verdict::{DropReason, Verdict};
use maps::{INTERFACES, Maps};

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
