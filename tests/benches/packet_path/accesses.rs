//! The memory that a packet needs at least, as a floor: a slot, the backend
//! entry that it names, and that one's counters, in tables of the size that the
//! director has. Where these are larger than the caches, nothing that looks
//! them up is faster.

use anyhow::Context as _;
use aya::programs::ProgramFd;
use aya::{Ebpf, EbpfLoader};

use crate::programs::{object, xdp};
use crate::world::World;

/// Empty tables with the program that looks at them.
pub struct Accesses {
    object: Ebpf,
}

impl Accesses {
    /// Makes tables as large as those that a world has for packets of one IP
    /// version and protocol.
    pub fn like(world: &World) -> anyhow::Result<Self> {
        let (slots, entries) = (world.slots()?, world.layout.backends());
        let mut object = EbpfLoader::new()
            .override_global("SLOT_COUNT", &slots, true)
            .override_global("ENTRY_COUNT", &entries, true)
            .map_max_entries("RINGS", lb_common::ring::blocks(slots))
            .map_max_entries("ENTRIES", entries)
            .map_max_entries("COUNTERS", entries)
            .load_file(object())
            .context("tables of the director's size")?;
        xdp(&mut object, PROGRAM)?.load()?;
        Ok(Self { object })
    }

    /// What is to come behind the generator.
    pub fn program(&mut self) -> anyhow::Result<ProgramFd> {
        Ok(xdp(&mut self.object, PROGRAM)?.fd()?.try_clone()?)
    }
}

const PROGRAM: &str = "floor_accesses";
