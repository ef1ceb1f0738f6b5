//! Stage 3: the service that a packet is for.

use lb_common::service::ServiceValue;

use crate::family::Family;
use crate::packet::Packet;
use crate::parse::PacketInfo;
use crate::tables::Tables;
use crate::verdict::Verdict;

/// Finds the service by VIP, port and protocol, then the one on port 0.
///
/// # Errors
/// [`Verdict::Pass`] if there is none; a drop if there is one but the packet's
/// lengths are wrong, which is not judged before because it is the host's
/// business for every other packet.
#[inline(always)]
pub fn find<F: Family, P: Packet, T: Tables>(
    packet: &P,
    info: &PacketInfo<F>,
    tables: &T,
) -> Result<ServiceValue, Verdict> {
    let service = match F::service(tables, &info.vip, info.port, info.protocol) {
        Some(service) => service,
        None if tables.has_port_zero_services() => {
            F::service(tables, &info.vip, 0, info.protocol).ok_or(Verdict::Pass)?
        }
        None => return Err(Verdict::Pass),
    };
    info.check_lengths(packet)?;
    Ok(service)
}
