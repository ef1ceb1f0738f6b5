//! The kernel's routes and neighbours, by bpf_fib_lookup (bpf-helpers(7)).

use core::ffi::c_void;
use core::ptr::from_mut;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
    BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use lb_ebpf::family::{Family, V4, V6};
use lb_ebpf::tables::{Route, RouteQuery};

/// `struct bpf_fib_lookup` in words of 8 bytes. Compilers write its fields
/// several at a time wherever they lie, and the verifier wants writes to the
/// stack to be aligned.
struct Lookup([u64; 8]);
const _: () = assert!(size_of::<Lookup>() == size_of::<aya_ebpf::bindings::bpf_fib_lookup>());

/// The way of an IPv4 packet.
#[inline(always)]
pub fn route_v4(context: *mut c_void, packet: &RouteQuery<V4>) -> Route {
    const AF_INET: u8 = 2;
    let [first, second] = head(packet, AF_INET, u32::from(packet.traffic_class));
    let (source, destination) = (u64::from(packet.source), u64::from(packet.destination));
    let mut lookup = Lookup([first, second, source, 0, destination, 0, 0, 0]);
    ask(context, &mut lookup)
}

/// The way of an IPv6 packet.
#[inline(always)]
pub fn route_v6(context: *mut c_void, packet: &RouteQuery<V6>) -> Route {
    const AF_INET6: u8 = 10;
    let flow_info = (u32::from(packet.traffic_class) << 20).to_be();
    let [first, second] = head(packet, AF_INET6, flow_info);
    let [a, b] = packet.source.words;
    let [c, d] = packet.destination.words;
    ask(context, &mut Lookup([first, second, a, b, c, d, 0, 0]))
}

/// The first two words.
#[inline(always)]
fn head<F: Family>(packet: &RouteQuery<F>, family: u8, class: u32) -> [u64; 2] {
    let [source_port, destination_port] = packet.ports;
    let first = u64::from(family)
        | u64::from(packet.protocol) << 8
        | u64::from(source_port) << 16
        | u64::from(destination_port) << 32
        | u64::from(packet.length) << 48;
    [first, u64::from(packet.interface) | u64::from(class) << 32]
}

#[inline(always)]
fn ask(context: *mut c_void, lookup: &mut Lookup) -> Route {
    // SAFETY: context and structure are valid, and the size is that of the
    // structure.
    let answer = unsafe {
        bpf_fib_lookup(
            context,
            from_mut(lookup).cast(),
            size_of::<Lookup>() as i32,
            0,
        )
    };
    match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            // From the middle of the last but one word on: the interface's MAC
            // address, then the next hop's.
            let [a, b, c] = [lookup.0[6] >> 32, lookup.0[7], lookup.0[7] >> 32].map(|w| w as u32);
            Route::Via {
                interface: lookup.0[1] as u32,
                macs: [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16],
            }
        }
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Route::TooBig((lookup.0[0] >> 48) as u16),
        BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
            Route::Unreachable
        }
        BPF_FIB_LKUP_RET_FWD_DISABLED => Route::Disabled,
        // Not resolved, not plain Ethernet, or not to be forwarded at all.
        _ => Route::Host,
    }
}
