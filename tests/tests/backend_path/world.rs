//! A backend with VIPs and directors, twice: in the kernel and on the host.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use aya::TestRun as _;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use integration::Lab;
use lb_common::tunnel::{Counter, DropReason, TunnelSettings, role};
use lb_common::{ABI_VERSION, Address};
use lb_ebpf::backend::host::BackendTables;
use lb_ebpf::backend::{Verdict, decapsulate, mss};
use lb_ebpf::host::HostPacket;

use super::packet::address;

/// The addresses of the world, in either IP version.
pub fn director(version: u8) -> IpAddr {
    address(version, 0, 2)
}
/// Within the configured prefix, but no address of its own.
pub fn spread_director(version: u8) -> IpAddr {
    address(version, 0, 77)
}
/// Nobody's.
pub fn stranger(version: u8) -> IpAddr {
    address(version, 1, 66)
}
/// The backend's own.
pub fn backend(version: u8) -> IpAddr {
    address(version, 1, 21)
}
/// A VIP of the backend.
pub fn vip(version: u8) -> IpAddr {
    address(version, 2, 10)
}
/// A client.
pub fn client(version: u8) -> IpAddr {
    address(version, 1, 7)
}

/// The limits of the world.
pub const MSS: [u16; 2] = [1420, 1400];

/// What a packet did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of it.
    pub verdict: Verdict,
    /// Its bytes afterwards.
    pub bytes: Vec<u8>,
    /// Counters that moved, and by how much.
    pub counted: BTreeMap<Counter, u64>,
    /// Drop reasons that were counted.
    pub dropped: BTreeMap<DropReason, u64>,
}

/// The two backends.
pub struct World {
    tables: BackendTables,
    object: Ebpf,
    settings: Array<MapData, TunnelSettings>,
    counters: PerCpuArray<MapData, u64>,
    drops: PerCpuArray<MapData, u64>,
    _lab: Lab,
}

const PROGRAMS: [&str; 2] = ["lb_decapsulate", "lb_mss"];

impl World {
    /// Makes the world; maps are pinned in a lab of its own.
    pub fn new(name: &str) -> Self {
        let lab = Lab::new(name).unwrap();
        let object = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/backend.o");
        let object = std::env::var_os("LB_EBPF_DIR").map_or(object, |directory| {
            PathBuf::from(directory).join("backend.o")
        });
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(lab.bpffs())
            .load_file(&object)
            .unwrap_or_else(|e| panic!("{}: {e}", object.display()));
        let program: &mut Xdp = object.program_mut(PROGRAMS[0]).unwrap().try_into().unwrap();
        program.load().unwrap();
        let program: &mut SchedClassifier =
            object.program_mut(PROGRAMS[1]).unwrap().try_into().unwrap();
        program.load().unwrap();
        let tables = BackendTables {
            settings: TunnelSettings {
                abi_version: ABI_VERSION,
                build: 0,
                role: role::DECAPSULATE,
                mss_v4: MSS[0],
                mss_v6: MSS[1],
            },
            directors: vec![
                (address(4, 0, 0).into(), 96 + 24),
                (address(6, 0, 0).into(), 64),
            ],
            vips: [4, 6].map(|v| vip(v).into()).into(),
            locals: [4, 6].map(|v| backend(v).into()).into(),
            ..BackendTables::default()
        };
        let mut world = Self {
            settings: Array::try_from(object.take_map("SETTINGS").unwrap()).unwrap(),
            counters: PerCpuArray::try_from(object.take_map("COUNTERS").unwrap()).unwrap(),
            drops: PerCpuArray::try_from(object.take_map("DROPS").unwrap()).unwrap(),
            tables,
            object,
            _lab: lab,
        };
        world.fill();
        world
    }

    fn fill(&mut self) {
        self.set_role(role::DECAPSULATE);
        let map = self.object.take_map("DIRECTORS").unwrap();
        let mut directors = LpmTrie::<MapData, Address, u32>::try_from(map).unwrap();
        for (prefix, length) in &self.tables.directors {
            directors.insert(&Key::new(*length, *prefix), 0, 0).unwrap();
        }
        for (name, addresses) in [("VIPS", &self.tables.vips), ("LOCALS", &self.tables.locals)] {
            let map = self.object.take_map(name).unwrap();
            let mut map = HashMap::<MapData, Address, u32>::try_from(map).unwrap();
            for address in addresses {
                map.insert(address, 0, 0).unwrap();
            }
        }
    }

    /// Changes who takes the outer header off: [`role`].
    pub fn set_role(&mut self, role: u32) {
        self.tables.settings.role = role;
        self.settings.set(0, self.tables.settings, 0).unwrap();
    }

    /// A frame that arrives, in the kernel.
    pub fn arrives_in_kernel(&self, frame: &[u8]) -> Outcome {
        let before = self.kernel_counters();
        let program: &Xdp = self
            .object
            .program(PROGRAMS[0])
            .unwrap()
            .try_into()
            .unwrap();
        let (action, bytes) = run(frame, |options| program.test_run(options).unwrap());
        self.outcome(before, bytes, action == 2)
    }

    /// A frame that leaves, in the kernel.
    pub fn leaves_in_kernel(&self, frame: &[u8]) -> Outcome {
        let before = self.kernel_counters();
        let program = self.object.program(PROGRAMS[1]).unwrap();
        let program: &SchedClassifier = program.try_into().unwrap();
        let (action, bytes) = run(frame, |options| program.test_run(options).unwrap());
        assert_eq!(action as i32, -1, "the next program decides");
        self.outcome(before, bytes, true)
    }

    fn outcome(&self, before: Counters, bytes: Vec<u8>, passed: bool) -> Outcome {
        let (counted, dropped) = difference(&before, &self.kernel_counters());
        let reasons: Vec<_> = dropped.keys().copied().collect();
        let verdict = match (passed, reasons.as_slice()) {
            (true, []) => Verdict::Pass,
            (false, [reason]) => Verdict::Drop(*reason),
            _ => panic!("passed: {passed}, counted drops: {dropped:?}"),
        };
        Outcome {
            verdict,
            bytes,
            counted,
            dropped,
        }
    }

    /// A frame that arrives, on the host.
    pub fn arrives_on_host(&self, frame: &[u8]) -> Outcome {
        let before = self.host_counters();
        let mut packet = HostPacket::new(frame, 1);
        let verdict = decapsulate::receive(&mut packet, &self.tables);
        self.host_outcome(&before, &packet, verdict)
    }

    /// A frame that leaves, on the host.
    pub fn leaves_on_host(&self, frame: &[u8]) -> Outcome {
        let before = self.host_counters();
        let mut packet = HostPacket::new(frame, 1);
        mss::lower(&mut packet, &self.tables);
        self.host_outcome(&before, &packet, Verdict::Pass)
    }

    fn host_outcome(&self, before: &Counters, packet: &HostPacket, verdict: Verdict) -> Outcome {
        let (counted, dropped) = difference(before, &self.host_counters());
        Outcome {
            verdict,
            bytes: packet.bytes().to_vec(),
            counted,
            dropped,
        }
    }

    fn kernel_counters(&self) -> Counters {
        let sum = |map: &PerCpuArray<MapData, u64>, index| {
            map.get(&index, 0).unwrap().iter().sum::<u64>()
        };
        let counters = Counter::ALL.iter();
        let drops = DropReason::ALL.iter();
        (
            counters
                .map(|c| (*c, sum(&self.counters, *c as u32)))
                .collect(),
            drops.map(|r| (*r, sum(&self.drops, *r as u32))).collect(),
        )
    }

    fn host_counters(&self) -> Counters {
        let tables = &self.tables;
        (
            tables.counters.borrow().clone(),
            tables.drops.borrow().clone(),
        )
    }
}

type Counters = (BTreeMap<Counter, u64>, BTreeMap<DropReason, u64>);

fn difference(before: &Counters, after: &Counters) -> Counters {
    fn moved<K: Ord + Copy>(
        before: &BTreeMap<K, u64>,
        after: &BTreeMap<K, u64>,
    ) -> BTreeMap<K, u64> {
        let by = after
            .iter()
            .map(|(k, n)| (*k, n - before.get(k).copied().unwrap_or_default()));
        by.filter(|(_, n)| *n != 0).collect()
    }
    (moved(&before.0, &after.0), moved(&before.1, &after.1))
}

fn run(
    frame: &[u8],
    test_run: impl FnOnce(TestRunOptions<'_>) -> aya::programs::TestRunResult,
) -> (u32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 256];
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    let result = test_run(options);
    let (action, length) = (result.return_value, result.data_size_out as usize);
    out.truncate(length);
    (action, out)
}
