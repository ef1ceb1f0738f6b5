//! Full NAT: the source is translated as well, so that backends need no
//! particular route. Each flow has an entry for either direction, and a port of
//! the pool while it lasts.

use lb_common::backend::{Backend, state};
use lb_common::counters::DropReason;
use lb_common::nat::{NatForward, NatReverse, PoolPort, Seen, seen};
use lb_common::protocol::UDP;
use lb_common::service::ServiceValue;

use super::track::{flags_of, has_ended};
use super::{GO_ON, Job, packed, send};
use crate::family::Family;
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::schedule::schedule_new;
use crate::tables::{FamilyTables, Insertion, Tables};
use crate::translate::Endpoints;
use crate::verdict::{Packed, Verdict, drop};

/// No flow is known that the packet could belong to: [`begin`] one.
pub const UNKNOWN: Packed = Packed::new(Ok(Verdict::Pass));

/// The flow has become known meanwhile: look again.
pub const AGAIN: Packed = Packed::new(Err(Verdict::Host));

/// Finds the flow that the packet belongs to.
#[inline(never)]
pub fn known<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    service: &ServiceValue,
    job: &mut Job<F>,
    tables: &T,
) -> Packed {
    let flags = flags_of(info);
    let now = tables.now();
    let recorded = tables.nat_forward(&info.flow_key(), |known| {
        // A SYN may begin another connection; then it does not count here.
        if !info.is_icmp && !info.syn {
            known.seen.note(now, flags);
        }
        *known
    });
    let unknown = if info.is_icmp || flags & seen::RST != 0 {
        Packed::new(Err(Verdict::Drop(DropReason::NoFlow)))
    } else {
        UNKNOWN
    };
    let Some(flow) = recorded else {
        return unknown;
    };
    let backend = match living(&flow, service, tables) {
        Some(backend) if !restarts(info, &flow, backend, tables) => backend,
        _ => return unknown,
    };
    if !info.is_for_us(packet.interface(), backend, tables) {
        return Packed::new(Err(Verdict::Pass));
    }
    assign(job, info, backend, &flow);
    GO_ON
}

/// Begins a new flow: chooses its backend, takes a port, and makes the entry
/// for replies. [`record`] makes the other: two functions, because one would
/// need more of the stack than there is.
#[inline(never)]
pub fn begin<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    service: &ServiceValue,
    job: &mut Job<F>,
    tables: &T,
) -> Packed {
    packed(try_begin(packet, info, service, job, tables))
}

/// Makes the entry for the client's packets of the flow that [`begin`] began.
#[inline(never)]
pub fn record<F: Family, T: Tables + FamilyTables<F>>(
    info: &PacketInfo<F>,
    job: &Job<F>,
    tables: &T,
) -> Packed {
    let Some(backend) = tables.backend(job.backend) else {
        return Packed::new(Err(Verdict::Drop(DropReason::RingCorrupt)));
    };
    let flow = NatForward {
        address: job.to.source,
        backend: job.backend,
        generation: backend.generation,
        seen: Seen {
            at: tables.now(),
            flags: flags_of(info),
        },
        port: job.to.source_port,
        address_index: job.port.address_index(),
        padding: 0,
    };
    let key = info.flow_key();
    // Of a flow that has ended, or whose backend has died. Its port is free
    // again when its other entry has timed out.
    let is_known = tables.nat_forward(&key, |_| ()).is_some();
    match tables.insert_nat_forward(&key, &flow, is_known) {
        Insertion::Done => GO_ON,
        failed => {
            tables.remove_nat_reverse(&reply_key(info, backend, &flow.address, flow.port));
            tables.return_port(job.port);
            if failed == Insertion::Exists {
                // Another CPU was faster with the same flow.
                AGAIN
            } else {
                Packed::new(Err(Verdict::Drop(DropReason::NatTableFull)))
            }
        }
    }
}

/// What the packet is to become, of this flow.
#[inline(always)]
fn assign<F: Family>(
    job: &mut Job<F>,
    info: &PacketInfo<F>,
    backend: &Backend,
    flow: &NatForward<F::Address>,
) {
    job.to = Endpoints {
        source: flow.address,
        destination: F::from_common(&backend.address),
        source_port: flow.port,
        destination_port: backend_port(info, backend),
    };
    job.backend = flow.backend;
    job.new_flow = info.syn;
    job.way = send::to_backend(info, backend);
}

/// The backend of a known flow, unless it has died since.
#[inline(always)]
fn living<'a, A, T: Tables>(
    flow: &NatForward<A>,
    service: &ServiceValue,
    tables: &'a T,
) -> Option<&'a Backend> {
    let backend = tables.backend(flow.backend)?;
    let is_alive = backend.state == state::ALIVE
        && backend.service == service.id
        && backend.generation == flow.generation;
    is_alive.then_some(backend)
}

#[inline(always)]
const fn backend_port<F: Family>(info: &PacketInfo<F>, backend: &Backend) -> u16 {
    if backend.port == 0 {
        info.port
    } else {
        backend.port
    }
}

/// The flow's key as its replies have it.
#[inline(always)]
fn reply_key<F: Family>(
    info: &PacketInfo<F>,
    backend: &Backend,
    address: &F::Address,
    port: u16,
) -> F::FlowKey {
    let ports = u32::from(backend_port(info, backend)) | u32::from(port) << 16;
    let backend = F::from_common(&backend.address);
    F::flow_key(&backend, address, ports, info.protocol)
}

/// Whether the packet begins a connection on the ports of one that has ended.
#[inline(always)]
fn restarts<F: Family, T: Tables + FamilyTables<F>>(
    info: &PacketInfo<F>,
    flow: &NatForward<F::Address>,
    backend: &Backend,
    tables: &T,
) -> bool {
    if !info.syn {
        return false;
    }
    let key = reply_key(info, backend, &flow.address, flow.port);
    let replied = tables.nat_reverse(&key, |reverse| reverse.backend_seen.flags);
    has_ended(flow.seen.flags, replied.unwrap_or(0))
}

#[inline(always)]
fn try_begin<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    service: &ServiceValue,
    job: &mut Job<F>,
    tables: &T,
) -> Result<(), Verdict> {
    let (id, backend) = schedule_new(info, service, tables)?;
    // Before anything is recorded: another director's packet is no flow of ours.
    if !info.is_for_us(packet.interface(), backend, tables) {
        return Err(Verdict::Pass);
    }
    job.port = take(info, id, backend, tables)?;
    // Looked up again rather than returned: it would come in pieces that the
    // verifier does not accept.
    let Some(address) = tables.pool_address(job.port.address_index()) else {
        return drop(DropReason::PoolExhausted);
    };
    job.to = Endpoints {
        source: F::from_common(&address),
        destination: F::from_common(&backend.address),
        source_port: job.port.port().to_be(),
        destination_port: backend_port(info, backend),
    };
    job.backend = id;
    job.new_flow = info.syn || info.protocol == UDP;
    job.way = send::to_backend(info, backend);
    Ok(())
}

/// Takes a port and makes the entry for replies, which nobody else may have.
#[inline(always)]
fn take<F: Family, T: Tables + FamilyTables<F>>(
    info: &PacketInfo<F>,
    id: u32,
    backend: &Backend,
    tables: &T,
) -> Result<PoolPort, Verdict> {
    /// A port that another flow has, or whose address is no longer in the
    /// pool, is rare: user space puts such things right.
    const ATTEMPTS: u32 = 4;
    for _ in 0..ATTEMPTS {
        let Some(port) = tables.take_port() else {
            return drop(DropReason::PoolExhausted);
        };
        let Some(address) = tables.pool_address(port.address_index()) else {
            continue;
        };
        let address = F::from_common(&address);
        let reply = NatReverse {
            client: info.client,
            vip: info.vip,
            client_port: info.client_port,
            port: info.port,
            backend: id,
            generation: backend.generation,
            pool_port: port.0,
            client_seen: Seen {
                at: tables.now(),
                flags: flags_of(info),
            },
            backend_seen: Seen::default(),
        };
        let key = reply_key(info, backend, &address, port.port().to_be());
        match tables.insert_nat_reverse(&key, &reply) {
            Insertion::Done => return Ok(port),
            Insertion::Exists => {}
            Insertion::Full => {
                tables.return_port(port);
                return drop(DropReason::NatTableFull);
            }
        }
    }
    drop(DropReason::PoolExhausted)
}
