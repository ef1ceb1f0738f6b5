//! Any bytes through the director's packet path: each packet is forwarded,
//! dropped under one reason, or passed untouched.

#![no_main]

use std::cell::LazyCell;
use std::net::IpAddr;

use fuzz::{backends, pool, vips};
use lb_common::Mac;
use lb_common::backend::{Backend, mode, state};
use lb_common::nat::{NatBackend, PoolPort, source};
use lb_common::protocol::{TCP, UDP};
use lb_common::ring::{RingBlock, Slot};
use lb_common::service::{LocalMacKey, ServiceKeyV4, ServiceKeyV6, ServiceValue, flags};
use lb_common::vip::{VipValue, other_protocols, ping};
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
        tables.v4.flows.borrow_mut().clear();
        tables.v6.flows.borrow_mut().clear();
        tables.v4.nat_forward.borrow_mut().clear();
        tables.v6.nat_forward.borrow_mut().clear();
        tables.v4.nat_reverse.borrow_mut().clear();
        tables.v6.nat_reverse.borrow_mut().clear();
        tables.v4.ports.borrow_mut().push_back(PoolPort::new(0, 1024));
        tables.v6.ports.borrow_mut().push_back(PoolPort::new(1, 1024));
        tables.now.set(tables.now.get().wrapping_add(1));
        check(bytes, tables);
    });
});

fn check(bytes: &[u8], tables: &HostTables) {
    let mut packet = HostPacket::new(bytes, INTERFACE);
    let verdict = process(&mut packet, tables);
    let counters = tables.counters.borrow();
    let forwarded: u64 = counters.values().map(|c| c.packets + c.reply_packets).sum();
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
        Verdict::Host => {
            assert_eq!((forwarded, dropped), (1, 0));
            assert_eq!(packet.bytes().len(), bytes.len());
        }
        Verdict::Transmit | Verdict::Redirect(_) => {
            // Either the packet, or the answer that says what is wrong.
            let count = |reason| drops.get(&reason).copied().unwrap_or(0);
            let answered = count(DropReason::TooBig) + count(DropReason::TtlExceeded);
            // Of pings only the answers that the packet path gives count nowhere.
            let sent = u64::from(!is_echo_reply(packet.bytes()));
            assert_eq!((forwarded, dropped), (sent - answered, answered));
            assert!(packet.bytes().len() >= 14 + 20);
        }
    }
}

/// IPv4's, which is what the VIP of that version answers itself.
fn is_echo_reply(bytes: &[u8]) -> bool {
    let is = |at: usize, wanted: &[u8]| bytes.get(at..).is_some_and(|b| b.starts_with(wanted));
    is(12, &[8, 0, 0x45]) && is(23, &[1]) && is(34, &[0, 0])
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
    tables.settings.nat_backends = 1;
    tables.settings.port_zero_services = 1;
    for (version, vip) in vips().into_iter().enumerate() {
        tables.pool.insert(version as u16, pool()[version].into());
        let value = VipValue {
            port: u16::to_be(443),
            protocol: TCP,
            ping: [ping::ANSWER, ping::FORWARD][version],
            other_protocols: [other_protocols::HOST, other_protocols::DROP][version],
            ..VipValue::default()
        };
        tables.vips.insert(vip.into(), value);
        for (port, protocol, mode, slot) in [
            (80, TCP, mode::DR, Slot::settled as fn(u32) -> Slot),
            (53, UDP, mode::DR, Slot::moving),
            (443, TCP, mode::TUN, Slot::settled),
            (0, TCP, mode::TUN, Slot::pinned),
            (0, UDP, mode::DR, Slot::moving),
            (81, TCP, mode::NAT, Slot::settled),
            (82, TCP, mode::NAT, Slot::pinned),
            (83, TCP, mode::NAT, Slot::settled),
            (53, UDP, mode::NAT, Slot::settled),
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
                flags: match (mode, port) {
                    (mode::NAT, 82) => flags::NAT | flags::TRACKED,
                    (mode::NAT, 83) => flags::NAT | flags::FULL_NAT,
                    (mode::NAT, _) => flags::NAT,
                    _ => 0,
                },
            };
            tables.rings[2 * id as usize].slots = [slot(id); 16];
            tables.rings[2 * id as usize + 1].slots = [Slot::settled(id); 16];
            match vip {
                IpAddr::V4(vip) => {
                    let key = ServiceKeyV4::new(vip, port, protocol);
                    tables.v4.services.insert(key, value);
                }
                IpAddr::V6(vip) => {
                    let key = ServiceKeyV6::new(vip, port, protocol);
                    tables.v6.services.insert(key, value);
                }
            }
            if mode == mode::NAT {
                let value = NatBackend {
                    vip: vip.into(),
                    backend: id,
                    port: u16::to_be(port),
                    flags: match port {
                        82 => source::BACKEND | source::TABLE,
                        83 => source::TABLE,
                        _ => source::BACKEND,
                    },
                };
                match backends()[version] {
                    IpAddr::V4(ip) => {
                        let key = ServiceKeyV4::new(ip, 8000 + port, protocol);
                        tables.v4.nat_backends.insert(key, value);
                    }
                    IpAddr::V6(ip) => {
                        let key = ServiceKeyV6::new(ip, 8000 + port, protocol);
                        tables.v6.nat_backends.insert(key, value);
                    }
                }
                tables.backends[id as usize].port = u16::to_be(8000 + port);
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
