//! Writes to tables in memory that the packet path's own source reads: for
//! tests that run packets through both.

use std::net::IpAddr;

use lb_common::Address;
use lb_common::service::{LocalMacKey, ServiceKeyV4, ServiceKeyV6};
use lb_ebpf::host::HostTables;

use super::Op;

/// Makes a write.
///
/// # Panics
/// If it is to an entry that the tables have no room for.
pub fn apply(tables: &mut HostTables, op: &Op) {
    match op {
        Op::PutBackend(id, entry) => tables.backends[*id as usize] = *entry,
        Op::ResetCounters(id) => {
            tables.counters.borrow_mut().remove(id);
        }
        Op::WriteRing(first, blocks) => {
            let first = *first as usize;
            tables.rings[first..first + blocks.len()].copy_from_slice(blocks);
        }
        Op::PutService(key, value) => match key.vip {
            IpAddr::V4(ip) => {
                let key = ServiceKeyV4::new(ip, key.port, key.protocol);
                tables.v4.services.insert(key, *value);
            }
            IpAddr::V6(ip) => {
                let key = ServiceKeyV6::new(ip, key.port, key.protocol);
                tables.v6.services.insert(key, *value);
            }
        },
        Op::RemoveService(key) => match key.vip {
            IpAddr::V4(ip) => {
                let key = ServiceKeyV4::new(ip, key.port, key.protocol);
                tables.v4.services.remove(&key);
            }
            IpAddr::V6(ip) => {
                let key = ServiceKeyV6::new(ip, key.port, key.protocol);
                tables.v6.services.remove(&key);
            }
        },
        Op::PutVip(vip, value) => {
            tables.vips.insert((*vip).into(), *value);
        }
        Op::RemoveVip(vip) => {
            tables.vips.remove::<Address>(&(*vip).into());
        }
        Op::AddLocalMac(key) => {
            tables.local_macs.insert(*key);
        }
        Op::RemoveLocalMac(key) => {
            tables.local_macs.remove::<LocalMacKey>(key);
        }
        Op::PutVlan(device, vlan) => {
            tables.vlans.insert(*device, *vlan);
        }
        Op::RemoveVlan(device, _) => {
            tables.vlans.remove(device);
        }
        Op::AddInterface(index) => {
            tables.interfaces.insert(*index);
        }
        Op::RemoveInterface(index) => {
            tables.interfaces.remove(index);
        }
        Op::PutNatBackend(key, value) => match key.vip {
            IpAddr::V4(ip) => {
                let key = ServiceKeyV4::new(ip, key.port, key.protocol);
                tables.v4.nat_backends.insert(key, *value);
            }
            IpAddr::V6(ip) => {
                let key = ServiceKeyV6::new(ip, key.port, key.protocol);
                tables.v6.nat_backends.insert(key, *value);
            }
        },
        Op::RemoveNatBackend(key) => match key.vip {
            IpAddr::V4(ip) => {
                let key = ServiceKeyV4::new(ip, key.port, key.protocol);
                tables.v4.nat_backends.remove(&key);
            }
            IpAddr::V6(ip) => {
                let key = ServiceKeyV6::new(ip, key.port, key.protocol);
                tables.v6.nat_backends.remove(&key);
            }
        },
        Op::AddLocalAddress(ip) => {
            tables.local_addresses.insert((*ip).into());
        }
        Op::RemoveLocalAddress(ip) => {
            tables.local_addresses.remove::<Address>(&(*ip).into());
        }
        Op::PutRouter(interface, addresses) => {
            tables.routers.insert(*interface, *addresses);
        }
        Op::RemoveRouter(interface) => {
            tables.routers.remove(interface);
        }
        Op::PutPoolAddress(number, Some(address)) => {
            tables.pool.insert(*number, (*address).into());
        }
        Op::PutPoolAddress(number, None) => {
            tables.pool.remove(number);
        }
        Op::PutSettings(settings) => tables.settings = *settings,
    }
}
