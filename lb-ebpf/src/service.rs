//! Stage 3: the service that a packet is for.

use lb_common::service::ServiceValue;

use crate::family::Family;
use crate::packet::Packet;
use crate::parse::PacketInfo;
use crate::tables::{FamilyTables, Tables};
use crate::verdict::Verdict;

/// Finds the service by VIP, port and protocol, then the one on port 0. `None`
/// if there is none, but there are NAT backends.
///
/// # Errors
/// [`Verdict::Pass`] if there are neither; a drop if there is one but the packet's lengths are wrong, which is not
/// judged before because it is the host's business for every other packet.
#[inline(always)]
pub fn find<F: Family, P: Packet, T: Tables + FamilyTables<F>>(
    packet: &P,
    info: &PacketInfo<F>,
    tables: &T,
) -> Result<Option<ServiceValue>, Verdict> {
    let exact = tables.service(&F::service_key(&info.vip, info.port, info.protocol));
    let service = match exact {
        Some(service) => service,
        None => {
            let Some(settings) = tables.settings() else {
                return Err(Verdict::Pass);
            };
            let any_port = if settings.port_zero_services != 0 {
                tables.service(&F::service_key(&info.vip, 0, info.protocol))
            } else {
                None
            };
            match any_port {
                Some(service) => service,
                // It may be what a NAT backend answers.
                None if settings.nat_backends != 0 => return Ok(None),
                None => return Err(Verdict::Pass),
            }
        }
    };
    info.check_lengths(packet)?;
    Ok(Some(service))
}
