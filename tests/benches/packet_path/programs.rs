//! The generator with a program behind it, and how long both take.

use std::path::Path;

use anyhow::Context as _;
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, TestRun as _};
use aya_obj::programs::XdpAttachType;
use nix::time::{ClockId, clock_gettime};

/// What the generator writes.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// IP version.
    pub version: u32,
    /// IP protocol number.
    pub protocol: u32,
    /// TCP flags.
    pub flags: u32,
    /// Number of flows, a power of two.
    pub flows: u32,
    /// Number of VIPs.
    pub vips: u32,
    /// Destination port.
    pub port: u32,
}

/// Bytes of a frame: a small packet, as the worst case for a balancer.
const FRAME: u32 = 78;

/// The generator, ready for any program behind it.
pub struct Generator {
    object: Ebpf,
}

/// The floors, by name of their program.
pub const EMPTY: &str = "floor_empty";
/// Bounds check and MAC swap.
pub const MAC_SWAP: &str = "floor_mac_swap";
/// IPIP with constant addresses.
pub const ENCAPSULATE: &str = "floor_encapsulate";

impl Generator {
    /// Loads the generator for this traffic.
    pub fn new(traffic: &Traffic) -> anyhow::Result<Self> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/bench.o");
        let mut loader = EbpfLoader::new();
        let mask = traffic.flows - 1;
        loader
            .override_global("VERSION", &traffic.version, true)
            .override_global("PROTOCOL", &traffic.protocol, true)
            .override_global("TCP_FLAGS", &traffic.flags, true)
            .override_global("FLOW_MASK", &mask, true)
            .override_global("VIPS", &traffic.vips, true)
            .override_global("PORT", &traffic.port, true)
            .override_global("FRAME_LENGTH", &FRAME, true);
        let mut object = loader
            .load_file(path)
            .with_context(|| format!("loading {path}: run `cargo xtask build-ebpf`"))?;
        for name in ["generator", EMPTY, MAC_SWAP, ENCAPSULATE] {
            xdp(&mut object, name)?.load()?;
        }
        Ok(Self { object })
    }

    /// File descriptor of a floor.
    pub fn floor(&mut self, name: &str) -> anyhow::Result<ProgramFd> {
        Ok(xdp(&mut self.object, name)?.fd()?.try_clone()?)
    }

    /// CPU nanoseconds for each of `repeat` packets through generator and
    /// program. The last packet's verdict must be `verdict`.
    pub fn time(&mut self, program: &ProgramFd, repeat: u32, verdict: u32) -> anyhow::Result<f64> {
        let map = self.object.map_mut("UNDER_TEST").context("no UNDER_TEST")?;
        ProgramArray::try_from(map)?.set(0, program, 0)?;
        // The same flows in the same order every time.
        let map = self.object.map_mut("STATE").context("no STATE")?;
        Array::<_, u32>::try_from(map)?.set(0, 0x1234_5678_u32, 0)?;
        let generator = xdp(&mut self.object, "generator")?;
        let frame = vec![0; FRAME as usize];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.repeat = repeat;
        let before = thread_ns()?;
        let result = generator.test_run(options)?;
        let spent = thread_ns()? - before;
        anyhow::ensure!(
            result.return_value == verdict,
            "the program returned {}, not {verdict}",
            result.return_value
        );
        Ok(spent as f64 / f64::from(repeat))
    }
}

/// The director's program, from its pin.
pub fn director(bpffs: &Path) -> anyhow::Result<ProgramFd> {
    let program = Xdp::from_pin(bpffs.join("director"), XdpAttachType::Interface)?;
    Ok(program.fd()?.try_clone()?)
}

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = object
        .program_mut(name)
        .with_context(|| format!("bench.o has no program {name}"))?;
    Ok(program.try_into()?)
}

fn thread_ns() -> anyhow::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
