//! Services on a real dataplane, filled by the real planner.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use lb_common::backend::mode;
use lb_common::counters::DropReason;
use lb_common::protocol::{TCP, UDP};
use lb_ctl::dataplane::{self, Dataplane as _, Kernel, LoadOptions, ServiceKey, XdpPolicy};
use lb_ctl::plan::{Condition, Desired, DesiredBackend, DesiredService, Nat, NextHop, State, plan};

/// Forwarding mode of all services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// VS/DR.
    Dr,
    /// VS/TUN to backends of the same IP version.
    Tun,
}

/// State of all slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// Nothing has changed.
    Settled,
    /// All backends have just been replaced.
    Moving,
    /// They were replaced a while ago, and flows are still recorded.
    Pinned,
}

/// A director with services.
pub struct World {
    kernel: Kernel,
    backends: u32,
    in_transition: Option<(State, Desired)>,
    /// Where its program is pinned.
    pub bpffs: PathBuf,
}

/// The MAC that the generator sends to.
const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// BPF_PROG_TEST_RUN without a context receives on the loopback interface.
const LOOPBACK: u32 = 1;

const IDLE_TIMEOUT: u32 = 3600;

impl World {
    /// `services` services of `each` backends, for both IP versions, TCP and
    /// UDP on port 80.
    pub fn new(bpffs: &Path, mode: Mode, services: u32, each: u32) -> anyhow::Result<Self> {
        // IPv4 and IPv6, TCP and UDP, and as many again to replace them.
        let backends = services * each * 8;
        let kernel = dataplane::load(&LoadOptions {
            bpffs: bpffs.to_owned(),
            interfaces: Vec::new(),
            policy: XdpPolicy::Auto,
            max_backends: backends,
            flow_table_size: 1 << 20,
            nat_table_size: 1 << 20,
            log_drops: false,
        })?;
        let mut world = Self {
            kernel,
            backends,
            in_transition: None,
            bpffs: bpffs.to_owned(),
        };
        let mut state = world.state()?;
        world.follow(&mut state, &desired(mode, services, each, 0), 0)?;
        Ok(world)
    }

    /// Replaces all backends, so that every slot moves. Those of before drain.
    pub fn replace_backends(&mut self, mode: Mode, services: u32, each: u32) -> anyhow::Result<()> {
        let mut wanted = desired(mode, services, each, 1);
        for (key, before) in desired(mode, services, each, 0).services {
            if let Some(service) = wanted.services.get_mut(&key) {
                let drain = |b| DesiredBackend { weight: 0, ..b };
                service
                    .backends
                    .extend(before.backends.into_iter().map(drain));
            }
        }
        let mut state = self.state()?;
        self.follow(&mut state, &wanted, 0)?;
        self.in_transition = Some((state, wanted));
        Ok(())
    }

    /// Makes the planner believe that the slots have moved for long enough.
    pub fn let_the_window_pass(&mut self) -> anyhow::Result<()> {
        if let Some((mut state, wanted)) = self.in_transition.take() {
            self.follow(&mut state, &wanted, IDLE_TIMEOUT + 1)?;
        }
        Ok(())
    }

    fn state(&self) -> anyhow::Result<State> {
        let now = self.kernel.now();
        Ok(State::from_dump(
            self.kernel.dump()?,
            self.kernel.capacity(),
            now,
        ))
    }

    fn follow(&mut self, state: &mut State, desired: &Desired, later: u32) -> anyhow::Result<()> {
        let planned = plan(state, desired, None, self.kernel.now() + later)?;
        anyhow::ensure!(planned.deferred.is_none(), "{:?}", planned.deferred);
        for op in &planned.ops {
            self.kernel.apply(op)?;
        }
        Ok(())
    }

    /// Packets forwarded, and packets dropped.
    pub fn counted(&self) -> anyhow::Result<(u64, u64)> {
        let mut forwarded = 0;
        for id in 1..=self.backends {
            forwarded += self.kernel.counters(id)?.packets;
        }
        let mut dropped = 0;
        for &reason in DropReason::ALL {
            dropped += self.kernel.drops(reason)?;
        }
        Ok((forwarded, dropped))
    }
}

fn desired(mode: Mode, services: u32, each: u32, generation: u32) -> Desired {
    let mut desired = Desired {
        services: BTreeMap::new(),
        local_macs: BTreeSet::from([(LOOPBACK, DIRECTOR_MAC)]),
        interfaces: BTreeSet::new(),
        ..Desired::default()
    };
    for service in 0..services {
        for is_v4 in [true, false] {
            for protocol in [TCP, UDP] {
                let key = ServiceKey {
                    vip: vip(is_v4, service),
                    port: 80,
                    protocol,
                };
                let backends = (0..each)
                    .map(|i| backend(mode, is_v4, (generation * services + service) * each + i))
                    .collect();
                let service = DesiredService {
                    hash_key: 0x0123_4567_89ab_cdef,
                    idle_timeout: IDLE_TIMEOUT,
                    nat: Nat::Gateway,
                    backends,
                };
                desired.services.insert(key, service);
            }
        }
    }
    desired
}

/// As the generator counts them: RFC 2544's range, and documentation's.
fn vip(is_v4: bool, n: u32) -> IpAddr {
    if is_v4 {
        Ipv4Addr::from_bits(0xc613_0000 + n).into()
    } else {
        Ipv6Addr::from_bits((0x2001_0db8_0019_0000 << 64) | u128::from(n)).into()
    }
}

fn backend(selected: Mode, is_v4: bool, n: u32) -> DesiredBackend {
    let (address, source) = if is_v4 {
        let backend = Ipv4Addr::from_bits(0x0a00_0000 + n + 1);
        (backend.into(), IpAddr::from(Ipv4Addr::new(192, 0, 2, 2)))
    } else {
        let prefix = 0x2001_0db8_00be_0000 << 64;
        (
            Ipv6Addr::from_bits(prefix | u128::from(n + 1)).into(),
            Ipv6Addr::from_bits(prefix).into(),
        )
    };
    DesiredBackend {
        address,
        port: 0,
        mode: if selected == Mode::Dr {
            mode::DR
        } else {
            mode::TUN
        },
        weight: 1,
        tunnel_source: (selected == Mode::Tun).then_some((source, 0)),
        removed: false,
        condition: Condition::Up(NextHop {
            interface: LOOPBACK,
            mac: [2, 0, 1, (n >> 16) as u8, (n >> 8) as u8, n as u8],
            source_mac: DIRECTOR_MAC,
            mtu: 1500,
            source: None,
        }),
    }
}
