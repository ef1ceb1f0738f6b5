//! A director, and what any packet may do to it.

use std::net::IpAddr;

use lb_common::Mac;
use lb_common::backend::{Backend, mode, state};
use lb_common::counters::IcmpBudget;
use lb_common::nat::{NatBackend, PoolPort, source};
use lb_common::protocol::{SCTP, TCP, UDP};
use lb_common::ring::{RingBlock, Slot};
use lb_common::service::{LocalMacKey, ServiceKeyV4, ServiceKeyV6, ServiceValue, flags};
use lb_common::vip::{VipValue, other_protocols, ping};
use lb_ebpf::host::{HostPacket, HostTables};
use lb_ebpf::process;
use lb_ebpf::tables::Route;
use lb_ebpf::verdict::{DropReason, Verdict};

use super::whole::{echoed, encapsulated, ip_packet, translated};
use super::{backends, pool, vips};

/// MAC address of the director.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

const INTERFACE: u32 = 2;

/// MTU of the paths to the clients.
const MTU: u16 = 1500;

/// What a packet did.
pub struct Done {
    /// Its bytes afterwards.
    pub bytes: Vec<u8>,
    /// The mode of the backend that it was sent to or came from.
    pub mode: Option<u8>,
    /// Whether it came from a backend.
    pub is_reply: bool,
}

/// Sends a packet through.
///
/// # Panics
/// If it is not forwarded whole, dropped under one reason, or passed untouched.
pub fn send(bytes: &[u8], tables: &HostTables) -> Done {
    tables.counters.borrow_mut().clear();
    tables.drops.borrow_mut().clear();
    let mut packet = HostPacket::new(bytes, INTERFACE);
    let verdict = process(&mut packet, tables);
    let counters = tables.counters.borrow();
    let forwarded: u64 = counters.values().map(|c| c.packets + c.reply_packets).sum();
    let drops = tables.drops.borrow();
    let dropped: u64 = drops.values().sum();
    let mut done = Done {
        bytes: packet.bytes().to_vec(),
        mode: None,
        is_reply: false,
    };
    match verdict {
        Verdict::Pass => {
            assert_eq!((forwarded, dropped), (0, 0));
            assert_eq!(done.bytes, bytes, "passed, but not untouched");
        }
        Verdict::Drop(reason) => {
            assert_eq!((forwarded, dropped), (0, 1));
            assert_eq!(drops.get(&reason), Some(&1));
        }
        Verdict::Transmit if (forwarded, dropped) == (0, 0) => {
            echoed(bytes, &done.bytes).expect("the reply to a ping");
        }
        Verdict::Transmit | Verdict::Redirect(_) | Verdict::Host => {
            // Either the packet, or the answer that says what is wrong.
            let count = |reason| drops.get(&reason).copied().unwrap_or(0);
            let answered = count(DropReason::TooBig) + count(DropReason::TtlExceeded);
            assert_eq!((forwarded, dropped), (1 - answered, answered));
            let packet = ip_packet(&done.bytes).expect("not cut short");
            if answered == 1 {
                assert_eq!(verdict, Verdict::Transmit);
                assert_eq!(packet.end, done.bytes.len());
                return done;
            }
            let (id, counted) = counters.first_key_value().expect("counted");
            let mode = tables.backends[*id as usize].mode;
            done.mode = Some(mode);
            done.is_reply = counted.reply_packets == 1;
            match mode {
                mode::DR => assert_eq!(done.bytes[12..], bytes[12..]),
                mode::TUN_V4 | mode::TUN_V6 => {
                    encapsulated(bytes, &done.bytes).expect("whole inside another")
                }
                _ => translated(bytes, &done.bytes).expect("translated and nothing else"),
            }
        }
    }
    done
}

/// Makes the tables forget what packets have left in them.
pub fn forget(tables: &HostTables) {
    tables.v4.flows.borrow_mut().clear();
    tables.v6.flows.borrow_mut().clear();
    tables.v4.fragments.borrow_mut().clear();
    tables.v6.fragments.borrow_mut().clear();
    tables.v4.nat_forward.borrow_mut().clear();
    tables.v6.nat_forward.borrow_mut().clear();
    tables.v4.nat_reverse.borrow_mut().clear();
    tables.v6.nat_reverse.borrow_mut().clear();
    let free = |number| {
        (1024..1032)
            .map(move |port| PoolPort::new(number, port))
            .collect()
    };
    tables.v4.ports.replace(free(0));
    tables.v6.ports.replace(free(1));
    tables.direct_seen.set(0);
    tables.icmp_budget.set(IcmpBudget::default());
    tables.now.set(1000);
}

/// Services in all modes and slot states, for both IP versions.
pub fn tables() -> HostTables {
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
    tables.routes = Some(Box::new(|destination| {
        let macs = [0x0302_0100, 0x0302_0504, 0x0706_0504];
        let via = Route::Via {
            interface: INTERFACE,
            macs,
        };
        let is_even = destination.words[1].is_multiple_of(2);
        (if is_even { via } else { Route::Host }, MTU)
    }));
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
            (443, TCP, mode::TUN_V4, Slot::settled),
            (0, TCP, mode::TUN_V4, Slot::pinned),
            (0, UDP, mode::DR, Slot::moving),
            (81, TCP, mode::NAT, Slot::settled),
            (82, TCP, mode::NAT, Slot::pinned),
            (83, TCP, mode::NAT, Slot::settled),
            (54, UDP, mode::NAT, Slot::settled),
            (83, UDP, mode::NAT, Slot::settled),
            (2905, SCTP, mode::DR, Slot::settled),
            (2906, SCTP, mode::NAT, Slot::settled),
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
                // SCTP's checksum does not let its ports change.
                let behind = if protocol == SCTP { port } else { 8000 + port };
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
                        let key = ServiceKeyV4::new(ip, behind, protocol);
                        tables.v4.nat_backends.insert(key, value);
                    }
                    IpAddr::V6(ip) => {
                        let key = ServiceKeyV6::new(ip, behind, protocol);
                        tables.v6.nat_backends.insert(key, value);
                    }
                }
                tables.backends[id as usize].port = u16::to_be(behind);
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
        mode: match (mode, address) {
            (mode::TUN_V4, IpAddr::V6(_)) => mode::TUN_V6,
            (mode, _) => mode,
        },
        state: state::ALIVE,
        source_spread: 8,
        generation: 1,
        service: id,
        ..Backend::default()
    };
    entry.set_macs([2, 0, 0, 0, 1, id as u8], MAC);
    entry
}
