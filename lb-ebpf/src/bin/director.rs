//! The XDP programs of a director: the stages of this crate, applied to an
//! [`XdpContext`] and the BPF maps.

#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the xdp attribute drops the doc comment of its function"
)]

#[path = "../clock.rs"]
mod clock;
#[path = "../fib.rs"]
mod fib;
#[path = "../kernel_packet.rs"]
mod kernel_packet;
#[path = "../kernel_tables.rs"]
mod kernel_tables;
#[path = "../maps.rs"]
mod maps;
#[path = "../program.rs"]
mod program;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use kernel_packet::{ContextPacket, XdpPacket};
use kernel_tables::Maps;
use lb_common::program as programs;
use lb_ebpf::family::{Family, V4, V6};
use lb_ebpf::headers::{ETHERTYPE_IPV4, ethertype};
use lb_ebpf::packet::Packet;
use lb_ebpf::tables::{FamilyTables, Tables};
use lb_ebpf::tag::{Frame, egress};
use lb_ebpf::verdict::{DropReason, Verdict};
use lb_ebpf::{
    Next, enter, process_echo, process_first, process_later, process_nat, process_other,
    process_retag, process_tagged,
};
use maps::{INTERFACES, PROGRAMS, frame, set_frame};

/// A packet that was handed over, by way of a VLAN perhaps.
type ToldPacket<'a> = ContextPacket<'a, true>;

/// Entry point, once a packet.
#[xdp(frags)]
pub fn director(context: XdpContext) -> u32 {
    begin(&context, XdpPacket::new(&context), Frame::untagged)
}

/// Packets with VLAN tags.
#[xdp(frags)]
pub fn tagged(context: XdpContext) -> u32 {
    match process_tagged(&mut XdpPacket::new(&context), &Maps(&context)) {
        Ok(frame) => {
            let packet = ToldPacket::received_by(frame.interface, &context);
            begin(&context, packet, |_| frame)
        }
        Err(verdict) => end(&context, verdict),
    }
}

/// NAT mode, IPv4.
#[xdp(frags)]
pub fn nat_v4(context: XdpContext) -> u32 {
    nat::<false, V4>(&context)
}

/// NAT mode, IPv6.
#[xdp(frags)]
pub fn nat_v6(context: XdpContext) -> u32 {
    nat::<false, V6>(&context)
}

/// NAT mode, first fragments, IPv4.
#[xdp(frags)]
pub fn nat_first_v4(context: XdpContext) -> u32 {
    nat::<true, V4>(&context)
}

/// NAT mode, first fragments, IPv6.
#[xdp(frags)]
pub fn nat_first_v6(context: XdpContext) -> u32 {
    nat::<true, V6>(&context)
}

/// Other than the usual headers, IPv4.
#[xdp(frags)]
pub fn other_v4(context: XdpContext) -> u32 {
    other::<V4>(&context)
}

/// Other than the usual headers, IPv6.
#[xdp(frags)]
pub fn other_v6(context: XdpContext) -> u32 {
    other::<V6>(&context)
}

/// First fragments, IPv4.
#[xdp(frags)]
pub fn first_v4(context: XdpContext) -> u32 {
    first::<V4>(&context, programs::NAT_FIRST_V4)
}

/// First fragments, IPv6.
#[xdp(frags)]
pub fn first_v6(context: XdpContext) -> u32 {
    first::<V6>(&context, programs::NAT_FIRST_V6)
}

/// Later fragments, IPv4.
#[xdp(frags)]
pub fn later_v4(context: XdpContext) -> u32 {
    later::<V4>(&context)
}

/// Later fragments, IPv6.
#[xdp(frags)]
pub fn later_v6(context: XdpContext) -> u32 {
    later::<V6>(&context)
}

/// Packets that leave by a VLAN, or go on to the host with their tags.
#[xdp(frags)]
pub fn retag(context: XdpContext) -> u32 {
    let Some(frame) = frame() else {
        return missing(&context);
    };
    let verdict = process_retag(&mut XdpPacket::new(&context), &frame, &Maps(&context));
    end(&context, verdict)
}

/// Tells user space the time. No packet comes here.
#[xdp]
pub fn now(_: XdpContext) -> u32 {
    clock::now()
}

/// `frame` says how a packet came that the interface with this index received.
#[inline(always)]
fn begin(context: &XdpContext, mut packet: impl Packet, frame: impl Fn(u32) -> Frame) -> u32 {
    let packet = &mut packet;
    let next = match enter(packet, &Maps(context)) {
        Ok(verdict) => return act(context, &frame(packet.interface()), verdict),
        Err(next) => next,
    };
    set_frame(frame(packet.interface()));
    let [v4, v6] = programs_of(next);
    let is_v4 = ethertype(packet) == Some(ETHERTYPE_IPV4);
    hand_over(context, if is_v4 { v4 } else { v6 })
}

/// The programs for what comes next, of IPv4 and IPv6.
#[inline(always)]
const fn programs_of(next: Next) -> [u32; 2] {
    match next {
        Next::Tagged => [programs::TAGGED; 2],
        Next::Nat => [programs::NAT_V4, programs::NAT_V6],
        Next::Other => [programs::OTHER_V4, programs::OTHER_V6],
        Next::First => [programs::FIRST_V4, programs::FIRST_V6],
        Next::Later => [programs::LATER_V4, programs::LATER_V6],
        Next::Echo => [programs::ECHO_V4, programs::ECHO_V6],
    }
}

#[inline(always)]
fn other<F: Family>(context: &XdpContext) -> u32
where
    for<'a> Maps<'a>: FamilyTables<F>,
{
    go_on(context, |packet, maps| {
        process_other::<F, _, _>(packet, maps).map_err(|next| {
            let [v4, v6] = programs_of(next);
            if F::IS_V4 { v4 } else { v6 }
        })
    })
}

#[inline(always)]
fn nat<const FIRSTS: bool, F: Family>(context: &XdpContext) -> u32
where
    for<'a> Maps<'a>: FamilyTables<F>,
{
    go_on(context, |packet, maps| {
        Ok(process_nat::<FIRSTS, F, _, _>(packet, maps))
    })
}

#[inline(always)]
fn first<F: Family>(context: &XdpContext, nat: u32) -> u32
where
    for<'a> Maps<'a>: FamilyTables<F>,
{
    go_on(context, |packet, maps| {
        process_first::<F, _, _>(packet, maps).map_err(|_| nat)
    })
}

#[inline(always)]
fn later<F: Family>(context: &XdpContext) -> u32
where
    for<'a> Maps<'a>: FamilyTables<F>,
{
    go_on(context, |packet, maps| {
        Ok(process_later::<F, _, _>(packet, maps))
    })
}

#[inline(always)]
fn echo<F: Family>(context: &XdpContext) -> u32
where
    for<'a> Maps<'a>: FamilyTables<F>,
{
    go_on(context, |packet, maps| {
        Ok(process_echo::<F, _, _>(packet, maps))
    })
}

/// Runs stages on a packet that was handed over. They end with a verdict, or
/// with the program that is next.
#[inline(always)]
fn go_on(
    context: &XdpContext,
    stages: impl FnOnce(&mut ToldPacket<'_>, &Maps<'_>) -> Result<Verdict, u32>,
) -> u32 {
    let Some(frame) = frame() else {
        return missing(context);
    };
    let packet = &mut ToldPacket::received_by(frame.interface, context);
    match stages(packet, &Maps(context)) {
        Ok(verdict) => act(context, &frame, verdict),
        Err(program) => hand_over(context, program),
    }
}

/// Pings of a VIP, IPv4.
#[xdp(frags)]
pub fn echo_v4(context: XdpContext) -> u32 {
    echo::<V4>(&context)
}

/// Pings of a VIP, IPv6.
#[xdp(frags)]
pub fn echo_v6(context: XdpContext) -> u32 {
    echo::<V6>(&context)
}

#[inline(always)]
fn hand_over(context: &XdpContext, program: u32) -> u32 {
    // SAFETY: the map holds programs of this type only. A call that succeeds
    // does not return.
    unsafe { PROGRAMS.tail_call(context, program) };
    missing(context)
}

#[inline(always)]
fn missing(context: &XdpContext) -> u32 {
    Maps(context).count_drop(DropReason::ProgramMissing);
    xdp_action::XDP_DROP
}

/// The action of a verdict, if the packet needs no tags; or else that of
/// [`retag`], as [`lb_ebpf::tag::egress`] has it.
#[inline(always)]
fn act(context: &XdpContext, frame: &Frame, verdict: Verdict) -> u32 {
    let egress = match verdict {
        Verdict::Redirect(interface) if !frame.is_tagged() => {
            match INTERFACES.redirect(interface, 0) {
                Ok(action) => return action,
                Err(_) => Some(interface),
            }
        }
        verdict => egress(frame, verdict, &Maps(context)),
    };
    let Some(egress) = egress else {
        return end(context, verdict);
    };
    set_frame(Frame { egress, ..*frame });
    hand_over(context, programs::RETAG)
}

/// The action of a verdict.
#[inline(always)]
fn end(context: &XdpContext, verdict: Verdict) -> u32 {
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
