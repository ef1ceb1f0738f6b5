//! Stage 3: the service that a packet is for.

use lb_common::service::ServiceValue;

use crate::family::Family;
use crate::packet::Packet;
use crate::packet_info::PacketInfo;
use crate::plain::Head;
use crate::tables::{FamilyTables, Tables};
use crate::verdict::Verdict;

/// Finds the service of a packet. `None` if there is none, but there are NAT
/// backends.
///
/// # Errors
/// [`Verdict::Pass`] if there are neither; a drop if there is one but the
/// packet's lengths are wrong, which is not judged before because it is the
/// host's business for every other packet.
#[inline(always)]
pub fn find<'a, F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    tables: &'a T,
) -> Result<Option<&'a ServiceValue>, Verdict> {
    let head = Head {
        vip: info.vip,
        port: info.port,
        protocol: info.protocol,
    };
    let service = look_up(&head, tables)?;
    if service.is_some() {
        info.check_lengths(packet)?;
    }
    Ok(service)
}

/// Finds a service by VIP, port and protocol, then the one on port 0. `None` if
/// there is none, but there are NAT backends.
///
/// # Errors
/// [`Verdict::Pass`] if there are neither.
#[inline(always)]
pub fn look_up<'a, F: Family, T: Tables + FamilyTables<F>>(
    head: &Head<F>,
    tables: &'a T,
) -> Result<Option<&'a ServiceValue>, Verdict> {
    let Head {
        vip,
        port,
        protocol,
    } = head;
    if let Some(exact) = tables.service(&F::service_key(vip, *port, *protocol)) {
        return Ok(Some(exact));
    }
    let Some(settings) = tables.settings() else {
        return Err(Verdict::Pass);
    };
    if settings.port_zero_services != 0
        && let Some(any_port) = tables.service(&F::service_key(vip, 0, *protocol))
    {
        return Ok(Some(any_port));
    }
    // It may be what a NAT backend answers.
    if settings.nat_backends != 0 {
        return Ok(None);
    }
    Err(Verdict::Pass)
}
