//! The BPF maps by name and type.

use aya::maps::{
    Array, DevMapHash, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray, ProgramArray, Queue,
};
use aya::{Ebpf, Pod};
use lb_common::Address;
use lb_common::backend::Backend;
use lb_common::counters::BackendCounters;
use lb_common::flow::{FlowKeyV4, FlowKeyV6, FlowValue};
use lb_common::nat::{NatBackend, NatForward, NatReverse, PoolPort, RouterAddresses};
use lb_common::ring::RingBlock;
use lb_common::service::{LocalMacKey, ServiceKeyV4, ServiceKeyV6, VipKey};
use lb_common::service_table::{PADDING_V4, PADDING_V6};
use lb_common::settings::Settings;
use lb_common::vip::VipValue;
use lb_common::vlan::Vlan;

use super::Capacity;
use super::services::{ServiceMaps, ServiceTable};

/// Names of the maps whose size depends on the installation.
pub mod name {
    /// Backend entries.
    pub const BACKENDS: &str = "BACKENDS";
    /// Counters, one for each backend entry.
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring blocks.
    pub const RINGS: &str = "RINGS";
    /// IPv4 flow table.
    pub const FLOWS_V4: &str = "FLOWS_V4";
    /// IPv6 flow table.
    pub const FLOWS_V6: &str = "FLOWS_V6";
    /// NAT backends, IPv4.
    pub const NAT_BACKENDS_V4: &str = "NAT_BACKENDS_V4";
    /// NAT backends, IPv6.
    pub const NAT_BACKENDS_V6: &str = "NAT_BACKENDS_V6";
    /// Translated flows as clients have them, IPv4.
    pub const NAT_FORWARD_V4: &str = "NAT_FORWARD_V4";
    /// Translated flows as clients have them, IPv6.
    pub const NAT_FORWARD_V6: &str = "NAT_FORWARD_V6";
    /// Translated flows as backends have them, IPv4.
    pub const NAT_REVERSE_V4: &str = "NAT_REVERSE_V4";
    /// Translated flows as backends have them, IPv6.
    pub const NAT_REVERSE_V6: &str = "NAT_REVERSE_V6";
    /// Free ports of the pool's IPv4 addresses.
    pub const POOL_PORTS_V4: &str = "POOL_PORTS_V4";
    /// Free ports of the pool's IPv6 addresses.
    pub const POOL_PORTS_V6: &str = "POOL_PORTS_V6";
}

/// The maps that are read and written by the control loop.
pub struct Maps {
    pub settings: Array<MapData, Settings>,
    pub services_v4: ServiceTable<ServiceMaps<ServiceKeyV4, PADDING_V4>>,
    pub services_v6: ServiceTable<ServiceMaps<ServiceKeyV6, PADDING_V6>>,
    pub vips: HashMap<MapData, VipKey, VipValue>,
    pub local_macs: HashMap<MapData, LocalMacKey, u32>,
    pub rings: Array<MapData, RingBlock>,
    pub backends: Array<MapData, Backend>,
    pub counters: PerCpuArray<MapData, BackendCounters>,
    pub drops: PerCpuArray<MapData, u64>,
    pub interfaces: DevMapHash<MapData>,
    /// VLANs by device.
    pub vlans: HashMap<MapData, u32, Vlan>,
    /// Devices by VLAN.
    pub vlan_devices: HashMap<MapData, Vlan, u32>,
    pub nat_backends_v4: HashMap<MapData, ServiceKeyV4, NatBackend>,
    pub nat_backends_v6: HashMap<MapData, ServiceKeyV6, NatBackend>,
    pub local_addresses: HashMap<MapData, VipKey, u32>,
    pub routers: HashMap<MapData, u32, RouterAddresses>,
    pub pool: Array<MapData, Address>,
}

/// The flow tables; read from another thread, because they can be large.
pub struct Flows {
    pub v4: HashMap<MapData, FlowKeyV4, FlowValue>,
    pub v6: HashMap<MapData, FlowKeyV6, FlowValue>,
}

/// The tables of translated flows; looked after by another thread.
pub struct NatMaps {
    pub v4: FamilyNatMaps<FlowKeyV4, u32>,
    pub v6: FamilyNatMaps<FlowKeyV6, Address>,
}

/// Those of one IP version.
pub struct FamilyNatMaps<K: Pod, A>
where
    NatForward<A>: Pod,
    NatReverse<A>: Pod,
{
    pub forward: HashMap<MapData, K, NatForward<A>>,
    pub reverse: HashMap<MapData, K, NatReverse<A>>,
    pub ports: Queue<MapData, PoolPort>,
}

/// Takes the maps out of a loaded object.
///
/// # Errors
/// If a map is missing or of another type: then the object is not the one
/// that this `lb-ctl` was built for.
pub fn take(object: &mut Ebpf) -> anyhow::Result<(Maps, Flows, NatMaps)> {
    let maps = Maps {
        settings: take_one(object, "SETTINGS")?,
        services_v4: ServiceTable::new(ServiceMaps {
            index: take_one(object, "SERVICE_INDEX_V4")?,
            entries: take_one(object, "SERVICES_V4")?,
        })?,
        services_v6: ServiceTable::new(ServiceMaps {
            index: take_one(object, "SERVICE_INDEX_V6")?,
            entries: take_one(object, "SERVICES_V6")?,
        })?,
        vips: take_one(object, "VIPS")?,
        local_macs: take_one(object, "LOCAL_MACS")?,
        rings: take_one(object, name::RINGS)?,
        backends: take_one(object, name::BACKENDS)?,
        counters: take_one(object, name::COUNTERS)?,
        drops: take_one(object, "DROPS")?,
        interfaces: take_one(object, "INTERFACES")?,
        vlans: take_one(object, "VLANS")?,
        vlan_devices: take_one(object, "VLAN_DEVICES")?,
        nat_backends_v4: take_one(object, name::NAT_BACKENDS_V4)?,
        nat_backends_v6: take_one(object, name::NAT_BACKENDS_V6)?,
        local_addresses: take_one(object, "LOCAL_ADDRESSES")?,
        routers: take_one(object, "ROUTERS")?,
        pool: take_one(object, "POOL")?,
    };
    let flows = Flows {
        v4: take_one(object, name::FLOWS_V4)?,
        v6: take_one(object, name::FLOWS_V6)?,
    };
    let nat = NatMaps {
        v4: FamilyNatMaps {
            forward: take_one(object, name::NAT_FORWARD_V4)?,
            reverse: take_one(object, name::NAT_REVERSE_V4)?,
            ports: take_one(object, name::POOL_PORTS_V4)?,
        },
        v6: FamilyNatMaps {
            forward: take_one(object, name::NAT_FORWARD_V6)?,
            reverse: take_one(object, name::NAT_REVERSE_V6)?,
            ports: take_one(object, name::POOL_PORTS_V6)?,
        },
    };
    Ok((maps, flows, nat))
}

/// Takes the map of programs that packets are handed to out of a loaded object.
///
/// # Errors
/// As for [`take`].
pub fn programs(object: &mut Ebpf) -> anyhow::Result<ProgramArray<MapData>> {
    take_one(object, "PROGRAMS")
}

/// What to call maps of the given sizes, for the loader.
pub fn sizes(capacity: &Capacity) -> [(&'static str, u32); 13] {
    [
        (name::BACKENDS, capacity.backends),
        (name::COUNTERS, capacity.backends),
        (name::RINGS, capacity.ring_blocks),
        (name::FLOWS_V4, capacity.flows),
        (name::FLOWS_V6, capacity.flows),
        (name::NAT_BACKENDS_V4, capacity.backends),
        (name::NAT_BACKENDS_V6, capacity.backends),
        (name::NAT_FORWARD_V4, capacity.nat),
        (name::NAT_FORWARD_V6, capacity.nat),
        (name::NAT_REVERSE_V4, capacity.nat),
        (name::NAT_REVERSE_V6, capacity.nat),
        (name::POOL_PORTS_V4, capacity.nat),
        (name::POOL_PORTS_V6, capacity.nat),
    ]
}

/// Number of entries of a pinned map; `None` if there is no such pin.
///
/// # Errors
/// If the kernel refuses to say.
pub fn pinned_size(path: &std::path::Path) -> Result<Option<u32>, MapError> {
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(MapInfo::from_pin(path)?.max_entries()))
}

fn take_one<T: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &str) -> anyhow::Result<T> {
    let map = object
        .take_map(name)
        .ok_or_else(|| anyhow::anyhow!("the BPF object has no map {name}: rebuild lb-ctl"))?;
    T::try_from(map).map_err(|error| anyhow::anyhow!("map {name}: {error}: rebuild lb-ctl"))
}

/// Every entry of a hash map, also while others change it. Returns how many
/// there were.
///
/// Deleting a key under the iteration makes the kernel start over, so the
/// number of steps is bounded by twice the map's size.
///
/// # Errors
/// If the kernel refuses, or if the map changes too fast for its end to be
/// reached: what has been visited then may lack some entries.
pub fn for_each<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    size: u32,
    visit: impl FnMut(K, V),
) -> anyhow::Result<u64> {
    look_up_each(map.keys(), |key| map.get(key, 0), size, visit)
}

fn look_up_each<K, V>(
    keys: impl Iterator<Item = Result<K, MapError>>,
    get: impl Fn(&K) -> Result<V, MapError>,
    size: u32,
    mut visit: impl FnMut(K, V),
) -> anyhow::Result<u64> {
    let mut count = 0;
    for (step, key) in (0..).zip(keys) {
        anyhow::ensure!(
            step < 2 * u64::from(size),
            "the map changes faster than it can be read, trying again: if that does not help, \
             start lb-ctl anew with a larger --flow-table-size after `lb-ctl down`"
        );
        let key = key?;
        match get(&key) {
            Ok(value) => {
                count += 1;
                visit(key, value);
            }
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_whose_end_was_not_reached_was_not_read() {
        let read = |keys: u32| {
            let keys = (0..keys).map(Ok);
            look_up_each(keys, |&key| Ok(key), 4, |_, _| {}).map_err(drop)
        };
        assert_eq!(read(4), Ok(4));
        assert_eq!(read(8), Ok(8));
        assert_eq!(read(9), Err(()));
    }
}
