//! Memory of the maps, as the kernel accounts for it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::Context as _;
use aya::maps::MapData;
use lb_common::ABI_VERSION;
use lb_common::limits::DEFAULT_NAT_TABLE_SIZE;
use lb_ctl::dataplane::{self, LoadOptions, XdpPolicy};
use serde_json::json;

/// A large installation.
const SERVICES: u32 = 1000;
const BACKENDS_EACH: u32 = 100;

/// The flow tables are as large as their operator wants them.
const FLOW_TABLES: [&str; 3] = ["FLOWS_", "NAT_FORWARD_", "NAT_REVERSE_"];

/// Loads the director's program for a large installation and prints the bytes
/// of its maps, by name, as JSON. All but the flow tables count, and most are
/// allocated whole when they are made.
pub fn run(bpffs: &Path) -> anyhow::Result<()> {
    let bpffs = bpffs.join("memory");
    dataplane::load(&LoadOptions {
        bpffs: bpffs.clone(),
        interfaces: Vec::new(),
        policy: XdpPolicy::Auto,
        max_backends: SERVICES * BACKENDS_EACH,
        flow_table_size: 1,
        nat_table_size: DEFAULT_NAT_TABLE_SIZE,
        log_drops: false,
    })?;
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(bpffs.join(format!("v{ABI_VERSION}")))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !FLOW_TABLES.iter().any(|table| name.starts_with(table)) {
            maps.insert(name, bytes(&entry.path())?);
        }
    }
    dataplane::unload(&bpffs)?;
    println!(
        "{}",
        json!({
            "services": SERVICES,
            "backends_each": BACKENDS_EACH,
            "cpus": aya::util::nr_cpus().map_err(|(_, e)| e)?,
            "bytes": maps.values().sum::<u64>(),
            "maps": maps,
        })
    );
    Ok(())
}

fn bytes(pin: &Path) -> anyhow::Result<u64> {
    let map = MapData::from_pin(pin)?;
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let number = line.with_context(|| format!("no memlock in {path}"))?;
    Ok(number.trim().parse()?)
}
