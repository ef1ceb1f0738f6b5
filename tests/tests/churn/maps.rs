//! What the maps hold, read as they are pinned.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, Queue};
use lb_common::ABI_VERSION;
use lb_common::backend::{Backend, state};
use lb_common::flow::{FlowKeyV4, FlowKeyV6};
use lb_common::nat::{NatBackend, NatReverse, PoolPort};
use lb_common::service::{ServiceKeyV4, ServiceKeyV6, VipKey};
use lb_common::service_table::{INDEX_BLOCKS, IndexBlock, ServiceEntryV4, ServiceEntryV6};
use lb_common::vip::VipValue;
use lb_common::{Address, limits};

/// How many there are of what.
#[derive(Debug, PartialEq, Eq)]
pub struct Counts {
    pub services: usize,
    /// Entries that are not free.
    pub backends: usize,
    pub vips: usize,
    pub nat_backends: usize,
    pub nat_flows: usize,
}

fn open<M: TryFrom<Map, Error = aya::maps::MapError>>(
    bpffs: &Path,
    name: &str,
) -> anyhow::Result<M> {
    let path = bpffs.join(format!("v{ABI_VERSION}/{name}"));
    let data = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
    Ok(M::try_from(Map::from_map_data(data)?)?)
}

fn count<K: Pod, V: Pod>(bpffs: &Path, name: &str) -> anyhow::Result<usize> {
    let map: HashMap<MapData, K, V> = open(bpffs, name)?;
    let mut count = 0;
    for key in map.keys() {
        key?;
        count += 1;
    }
    Ok(count)
}

fn services<E: Pod>(bpffs: &Path, version: &str, next: fn(E) -> u32) -> anyhow::Result<usize> {
    let index: Array<MapData, IndexBlock> = open(bpffs, &format!("SERVICE_INDEX_{version}"))?;
    let entries: Array<MapData, E> = open(bpffs, &format!("SERVICES_{version}"))?;
    let mut count = 0;
    for block in 0..INDEX_BLOCKS {
        for mut number in index.get(&block, 0)?.first {
            while number != 0 {
                count += 1;
                number = next(entries.get(&number, 0)?);
            }
        }
    }
    Ok(count)
}

impl Counts {
    pub fn read(bpffs: &Path) -> anyhow::Result<Self> {
        let entries: Array<MapData, Backend> = open(bpffs, "BACKENDS")?;
        let mut backends = 0;
        for index in 0..limits::DEFAULT_MAX_BACKENDS {
            if entries.get(&index, 0)?.state != state::FREE {
                backends += 1;
            }
        }
        Ok(Self {
            services: services::<ServiceEntryV4>(bpffs, "V4", |entry| entry.next)?
                + services::<ServiceEntryV6>(bpffs, "V6", |entry| entry.next)?,
            backends,
            vips: count::<VipKey, VipValue>(bpffs, "VIPS")?,
            nat_backends: count::<ServiceKeyV4, NatBackend>(bpffs, "NAT_BACKENDS_V4")?
                + count::<ServiceKeyV6, NatBackend>(bpffs, "NAT_BACKENDS_V6")?,
            nat_flows: count::<FlowKeyV4, NatReverse<u32>>(bpffs, "NAT_REVERSE_V4")?
                + count::<FlowKeyV6, NatReverse<Address>>(bpffs, "NAT_REVERSE_V6")?,
        })
    }
}

/// Takes every free port out of both pools: each must be there once.
///
/// # Errors
/// When one is missing, or is there twice.
pub fn ensure_ports_complete(bpffs: &Path, wanted: usize) -> anyhow::Result<()> {
    for name in ["POOL_PORTS_V4", "POOL_PORTS_V6"] {
        let mut queue: Queue<MapData, PoolPort> = open(bpffs, name)?;
        let mut found = BTreeSet::new();
        let mut taken = 0;
        while let Ok(port) = queue.pop(0) {
            taken += 1;
            found.insert(port.0);
        }
        ensure!(
            found.len() == wanted && taken == wanted,
            "{name} holds {taken} ports, {} of them different, in place of {wanted}",
            found.len()
        );
    }
    Ok(())
}
