//! Stage 3: the service that a packet is for.

use lb_common::service::ServiceValue;

use crate::family::Family;
use crate::packet::Packet;
use crate::parse::PacketInfo;
use crate::tables::{FamilyTables, Tables};
use crate::verdict::Verdict;

/// Finds the service by VIP, port and protocol, then the one on port 0.
///
/// # Errors
/// A drop if there is one but the packet's lengths are wrong, which is not
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
            let has_port_zero = tables.settings().is_some_and(|s| s.port_zero_services != 0);
            if !has_port_zero {
                return Ok(None);
            }
            match tables.service(&F::service_key(&info.vip, 0, info.protocol)) {
                Some(service) => service,
                None => return Ok(None),
            }
        }
    };
    info.check_lengths(packet)?;
    Ok(Some(service))
}
