//! What takes packets at their end, and looks at each of them.

use anyhow::{Context as _, ensure};
use aya::maps::Array;
use aya::programs::XdpMode;
use aya::{Ebpf, EbpfLoader};

use crate::programs::{object, xdp};

/// What an IPv4 packet must look like when it arrives.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// First four octets of its destination MAC address.
    pub mac: [u8; 4],
    /// First octet of its destination address.
    pub destination: u8,
    /// Its protocol number.
    pub protocol: u8,
}

/// An XDP program that drops and counts.
pub struct Sink {
    object: Ebpf,
}

impl Sink {
    /// Attaches it to an interface of this namespace.
    pub fn attach(interface: &str, expected: Expected) -> anyhow::Result<Self> {
        let mac = u32::from_be_bytes(expected.mac);
        let mut object = EbpfLoader::new()
            .override_global("EXPECTED_MAC", &mac, true)
            .override_global(
                "EXPECTED_DESTINATION",
                &u32::from(expected.destination),
                true,
            )
            .override_global("EXPECTED_PROTOCOL", &u32::from(expected.protocol), true)
            .load_file(object())?;
        let program = xdp(&mut object, "sink")?;
        program.load()?;
        program.attach(interface, XdpMode::Driver)?;
        Ok(Self { object })
    }

    /// Checks that so many packets have arrived since the last time, each of
    /// them as it should, and no other.
    pub fn take(&mut self, packets: u32) -> anyhow::Result<()> {
        let map = self.object.map_mut("ARRIVED").context("no ARRIVED")?;
        let mut arrived = Array::<_, u64>::try_from(map)?;
        let (good, bad) = (arrived.get(&0, 0)?, arrived.get(&1, 0)?);
        ensure!(
            (good, bad) == (packets.into(), 0),
            "of {packets} packets {good} arrived as they should, and {bad} others"
        );
        arrived.set(0, 0, 0)?;
        Ok(())
    }
}
