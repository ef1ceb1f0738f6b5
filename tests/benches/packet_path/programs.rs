//! The generator with a program behind it, and how long both take.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunAttrs};
use aya_obj::programs::XdpAttachType;
use nix::net::if_::if_nametoindex;
use nix::time::{ClockId, clock_gettime};

use crate::headers::Headers;
use crate::world::LOOPBACK;

/// What the generator writes.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// First client, and its port.
    pub from: (IpAddr, u16),
    /// First VIP.
    pub to: IpAddr,
    /// IP protocol number.
    pub protocol: u32,
    /// TCP flags.
    pub flags: u32,
    /// Number of flows, a power of two.
    pub flows: u32,
    /// Number of VIPs.
    pub vips: u32,
    /// Destination port.
    pub port: u16,
}

impl Traffic {
    /// What a receiver answers to one of these packets as it has become.
    pub fn answer(self, received: &[u8]) -> Self {
        let received = Headers::of(received);
        let (to, port) = received.source;
        Self {
            from: received.destination,
            to,
            port,
            ..self
        }
    }
}

/// What each packet took, the generator's share included.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// CPU time of this thread.
    pub cpu_ns: f64,
    /// What test_run says: whole nanoseconds, rounded down.
    pub reported_ns: u64,
}

/// Bytes of a frame: a small packet, as the worst case for a balancer.
const FRAME: u32 = 78;

/// Packets that a driver takes at a time.
const BATCH: u32 = 64;

/// The generator, ready for any program behind it.
pub struct Generator {
    object: Ebpf,
    /// As BPF_PROG_TEST_RUN is told where packets come by.
    context: Option<Vec<u8>>,
}

/// The floors, by name of their program.
pub const EMPTY: &str = "floor_empty";
/// Drops what the generator has made.
pub const DROP: &str = "floor_drop";
/// Bounds check and MAC swap.
pub const MAC_SWAP: &str = "floor_mac_swap";
/// IPIP with constant addresses.
pub const ENCAPSULATE: &str = "floor_encapsulate";

impl Generator {
    /// Loads the generator for this traffic, which comes by an interface of
    /// this namespace.
    pub fn new(traffic: &Traffic, interface: &str) -> anyhow::Result<Self> {
        let path = object();
        let mut loader = EbpfLoader::new();
        let mask = traffic.flows - 1;
        let version: u32 = if traffic.to.is_ipv4() { 4 } else { 6 };
        let (client, port) = traffic.from;
        let ends = [
            ("SOURCE", words(client)),
            ("DESTINATION", words(traffic.to)),
        ];
        let ends = ends.map(|(end, words)| (global_names(end), words));
        for ([v4, high, low], words) in &ends {
            loader
                .override_global(v4, &words.v4, true)
                .override_global(high, &words.high, true)
                .override_global(low, &words.low, true);
        }
        let ports = [port, traffic.port].map(u32::from);
        loader
            .override_global("VERSION", &version, true)
            .override_global("SOURCE_PORT", &ports[0], true)
            .override_global("PROTOCOL", &traffic.protocol, true)
            .override_global("TCP_FLAGS", &traffic.flags, true)
            .override_global("FLOW_MASK", &mask, true)
            .override_global("VIPS", &traffic.vips, true)
            .override_global("PORT", &ports[1], true)
            .override_global("FRAME_LENGTH", &FRAME, true);
        let mut object = loader
            .load_file(&path)
            .with_context(|| format!("loading {}: run `cargo xtask build-ebpf`", path.display()))?;
        for name in ["generator", EMPTY, DROP, MAC_SWAP, ENCAPSULATE] {
            xdp(&mut object, name)?.load()?;
        }
        // Without a context they come by the loopback interface.
        let context = if interface == LOOPBACK {
            None
        } else {
            Some(context(if_nametoindex(interface)?))
        };
        Ok(Self { object, context })
    }

    /// File descriptor of a floor.
    pub fn floor(&mut self, name: &str) -> anyhow::Result<ProgramFd> {
        Ok(xdp(&mut self.object, name)?.fd()?.try_clone()?)
    }

    /// Runs `repeat` packets through generator and program. The last packet's
    /// verdict must be `verdict`.
    pub fn run(&mut self, program: &ProgramFd, repeat: u32, verdict: u32) -> anyhow::Result<Spent> {
        self.begin(program)?;
        self.go_on(repeat, verdict)
    }

    /// Like [`Self::run`], with the program and the flows of before.
    pub fn go_on(&mut self, repeat: u32, verdict: u32) -> anyhow::Result<Spent> {
        let generator = xdp(&mut self.object, "generator")?;
        let frame = vec![0; FRAME as usize];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.ctx_in = self.context.as_deref();
        options.repeat = repeat;
        let before = thread_ns()?;
        let result = generator.test_run(options)?;
        let spent = thread_ns()? - before;
        ensure_verdict(&result, verdict)?;
        Ok(Spent {
            cpu_ns: spent as f64 / f64::from(repeat),
            reported_ns: result.duration.as_nanos() as u64,
        })
    }

    /// What becomes of the first `packets` packets of [`Self::run`], one by
    /// one. The verdict of each must be `verdict`.
    pub fn outputs(
        &mut self,
        program: &ProgramFd,
        packets: u32,
        verdict: u32,
    ) -> anyhow::Result<Vec<Vec<u8>>> {
        self.begin(program)?;
        let generator = xdp(&mut self.object, "generator")?;
        let frame = vec![0; FRAME as usize];
        (0..packets)
            .map(|_| {
                let mut output = vec![0; 2 * FRAME as usize];
                let mut options = TestRunOptions::new();
                options.data_in = Some(&frame);
                options.data_out = Some(&mut output);
                options.ctx_in = self.context.as_deref();
                let result = generator.test_run(options)?;
                ensure_verdict(&result, verdict)?;
                output.truncate(result.data_size_out as usize);
                Ok(output)
            })
            .collect()
    }

    /// Sends `packets` packets, after those of before, out of an interface of this namespace as a NIC's
    /// driver has them: frames without the kernel's own structures. Returns
    /// nanoseconds per packet as test_run counts them, rounded down, with all
    /// that the packets led to before the next batch of them. [`Self::begin`]
    /// says what is to be done with them: sent, by [`EMPTY`].
    pub fn send(&mut self, interface: u32, packets: u32) -> anyhow::Result<u64> {
        let generator = xdp(&mut self.object, "generator")?;
        let frame = vec![0; FRAME as usize];
        let context = context(interface);
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.ctx_in = Some(&context);
        options.repeat = packets;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let result = generator.test_run(options)?;
        Ok(result.duration.as_nanos() as u64)
    }

    /// Puts a program behind the generator, which begins again.
    pub fn begin(&mut self, program: &ProgramFd) -> anyhow::Result<()> {
        let map = self.object.map_mut("UNDER_TEST").context("no UNDER_TEST")?;
        ProgramArray::try_from(map)?.set(0, program, 0)?;
        // The same flows in the same order every time.
        let map = self.object.map_mut("STATE").context("no STATE")?;
        Ok(Array::<_, u32>::try_from(map)?.set(0, 0x1234_5678_u32, 0)?)
    }
}

/// `struct xdp_md`: where the packet begins, ends and has its metadata,
/// interface and queue that it came by, interface that it leaves by.
fn context(interface: u32) -> Vec<u8> {
    [0, FRAME, 0, interface, 0, 0]
        .map(u32::to_ne_bytes)
        .concat()
}

/// An address as the generator's globals have it, in host byte order.
#[derive(Default)]
struct Words {
    v4: u32,
    high: u64,
    low: u64,
}

fn words(address: IpAddr) -> Words {
    match address {
        IpAddr::V4(address) => Words {
            v4: address.to_bits(),
            ..Words::default()
        },
        IpAddr::V6(address) => Words {
            high: (address.to_bits() >> 64) as u64,
            low: address.to_bits() as u64,
            ..Words::default()
        },
    }
}

fn global_names(end: &str) -> [String; 3] {
    ["V4", "V6_HIGH", "V6_LOW"].map(|word| format!("{end}_{word}"))
}

/// The director's program, from its pin.
pub fn director(bpffs: &Path) -> anyhow::Result<ProgramFd> {
    let program = Xdp::from_pin(bpffs.join("director"), XdpAttachType::Interface)?;
    Ok(program.fd()?.try_clone()?)
}

/// A program of an object.
pub fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = object
        .program_mut(name)
        .with_context(|| format!("bench.o has no program {name}"))?;
    Ok(program.try_into()?)
}

/// The programs' object; elsewhere than here in a virtual machine.
pub fn object() -> PathBuf {
    let directory = std::env::var_os("LB_EBPF_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf"),
        PathBuf::from,
    );
    directory.join("bench.o")
}

fn ensure_verdict(result: &TestRunResult, verdict: u32) -> anyhow::Result<()> {
    let returned = result.return_value;
    anyhow::ensure!(
        returned == verdict,
        "the program returned {returned}, not {verdict}"
    );
    Ok(())
}

fn thread_ns() -> anyhow::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
