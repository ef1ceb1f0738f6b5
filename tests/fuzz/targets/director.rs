//! Any bytes through the director's packet path: each packet is forwarded,
//! dropped under one reason, or passed untouched.

#![no_main]

use std::cell::LazyCell;
use std::net::IpAddr;

use fuzz::{backends, vips};
use lb_common::Mac;
use lb_common::backend::{Backend, mode, state};
use lb_common::protocol::{TCP, UDP};
use lb_common::ring::{RingBlock, Slot};
use lb_common::service::{LocalMacKey, ServiceKeyV4, ServiceKeyV6, ServiceValue};
use lb_ebpf::host::{HostPacket, HostTables};
use lb_ebpf::process;
use lb_ebpf::verdict::{DropReason, Verdict};
use libfuzzer_sys::fuzz_target;

const INTERFACE: u32 = 2;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

thread_local! {
    static TABLES: LazyCell<HostTables> = LazyCell::new(tables);
}

fuzz_target!(|bytes: &[u8]| {
    TABLES.with(|tables| {
        tables.counters.borrow_mut().clear();
        tables.drops.borrow_mut().clear();
        // Not for ever the same flows.
        tables.flows_v4.borrow_mut().clear();
        tables.flows_v6.borrow_mut().clear();
        tables.now.set(tables.now.get().wrapping_add(1));
        check(bytes, tables);
    });
});

fn check(bytes: &[u8], tables: &HostTables) {
    let mut packet = HostPacket::new(bytes, INTERFACE);
    let verdict = process(&mut packet, tables);
    let forwarded: u64 = tables.counters.borrow().values().map(|c| c.packets).sum();
    let drops = tables.drops.borrow();
    let dropped: u64 = drops.values().sum();
    match verdict {
        Verdict::Pass => {
            assert_eq!((forwarded, dropped), (0, 0));
            assert_eq!(packet.bytes(), bytes, "passed, but not untouched");
        }
        Verdict::Drop(reason) => {
            assert_eq!((forwarded, dropped), (0, 1));
            assert_eq!(drops.get(&reason), Some(&1));
        }
        Verdict::Transmit | Verdict::Redirect(_) => {
            // Either the packet, or the answer that it is too big.
            let answered = drops.get(&DropReason::TooBig).copied().unwrap_or(0);
            assert_eq!((forwarded, dropped), (1 - answered, answered));
            assert!(packet.bytes().len() >= 14 + 20);
        }
    }
}

/// Services in all modes and slot states, for both IP versions.
fn tables() -> HostTables {
    let mut tables = HostTables {
        rings: vec![RingBlock::default(); 64],
        backends: vec![Backend::default()],
        ..HostTables::default()
    };
    tables
        .local_macs
        .insert(LocalMacKey::new(INTERFACE, Mac::from(MAC)));
    for (version, vip) in vips().into_iter().enumerate() {
        tables.vips.insert(vip.into());
        for (port, protocol, mode, slot) in [
            (80, TCP, mode::DR, Slot::settled as fn(u32) -> Slot),
            (53, UDP, mode::DR, Slot::moving),
            (443, TCP, mode::TUN, Slot::settled),
            (0, TCP, mode::TUN, Slot::pinned),
            (0, UDP, mode::DR, Slot::moving),
        ] {
            let id = tables.backends.len() as u32;
            tables.backends.push(backend(id, mode, backends()[version]));
            let value = ServiceValue {
                hash_key: 1,
                ring_offset: 2 * id,
                slots: 16,
                id,
                generation: 1,
                idle_timeout: 300,
                padding: 0,
            };
            tables.rings[2 * id as usize].slots = [slot(id); 16];
            tables.rings[2 * id as usize + 1].slots = [Slot::settled(id); 16];
            match vip {
                IpAddr::V4(vip) => {
                    let key = ServiceKeyV4::new(vip, port, protocol);
                    tables.services_v4.insert(key, value);
                }
                IpAddr::V6(vip) => {
                    let key = ServiceKeyV6::new(vip, port, protocol);
                    tables.services_v6.insert(key, value);
                }
            }
        }
    }
    tables
}

fn backend(id: u32, mode: u8, address: IpAddr) -> Backend {
    let mut entry = Backend {
        interface: INTERFACE + id % 2,
        address: address.into(),
        source: address.into(),
        // Small, so that small inputs are too large.
        mtu: 700,
        mode,
        state: state::ALIVE,
        source_spread: 8,
        generation: 1,
        service: id,
        ..Backend::default()
    };
    entry.set_macs([2, 0, 0, 0, 1, id as u8], MAC);
    entry
}
