//! Services on a real dataplane, filled by the real planner.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lb_common::backend::mode;
use lb_common::counters::DropReason;
use lb_common::nat::PoolPort;
use lb_common::protocol::{TCP, UDP};
use lb_common::vip::ping;
use lb_ctl::dataplane::{self, Dataplane as _, Kernel, LoadOptions, ServiceKey, XdpPolicy};
use lb_ctl::plan::{Condition, Desired, DesiredBackend, DesiredService, Nat, NextHop, State, plan};
use nix::net::if_::if_nametoindex;

use crate::cases::Case;

/// Forwarding mode of all services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// VS/DR.
    Dr,
    /// VS/TUN to backends of the same IP version.
    Tun,
    /// VS/NAT, the director being the backends' gateway.
    Nat,
    /// VS/NAT of both ends.
    FullNat,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dr => "DR",
            Self::Tun => "TUN",
            Self::Nat => "NAT",
            Self::FullNat => "full NAT",
        })
    }
}

/// What a director has to know: services for both IP versions, TCP and UDP on
/// port 80.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Mode of all of them.
    pub mode: Mode,
    /// VIPs of each IP version.
    pub services: u32,
    /// Backends of each service.
    pub each: u32,
    /// Where packets come from and go to.
    pub interface: &'static str,
}

impl Layout {
    /// IPv4 and IPv6, TCP and UDP, and as many again to replace them.
    fn max_backends(&self) -> u32 {
        self.backends() * 8
    }

    /// Backends of all services of one IP version and protocol.
    pub const fn backends(&self) -> u32 {
        self.services * self.each
    }

    /// Number of the VIP whose backend this is.
    pub fn service_of(&self, backend: u32) -> u32 {
        backend / self.each % self.services
    }
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
    /// What it has to know.
    pub layout: Layout,
    index: u32,
    in_transition: Option<(State, Desired)>,
    /// Where its program is pinned.
    pub bpffs: PathBuf,
}

/// The MAC that the generator sends to.
pub const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// MAC of the router to the clients.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// Of every service.
pub const PORT: u16 = 80;
/// Of every backend in NAT mode.
pub const NAT_PORT: u16 = 8080;
/// Of the first client.
pub const CLIENT_PORT: u16 = 1024;
/// Of each address of the pool.
pub const POOL_PORTS: RangeInclusive<u16> = 20_000..=20_063;

/// BPF_PROG_TEST_RUN without a context receives on the loopback interface.
pub const LOOPBACK: &str = "lo";

/// Room for so many backends, so that hardly ever two of them share a bucket of
/// a hash table: whether they do is chance, and makes an instruction or two.
const LEAST_BACKENDS: u32 = 1 << 16;

const IDLE_TIMEOUT: u32 = 3600;

impl World {
    /// Loads the director's program, attaches it to any interface but the
    /// loopback, and fills its maps.
    pub fn new(bpffs: &Path, layout: Layout) -> anyhow::Result<Self> {
        let index = if_nametoindex(layout.interface)?;
        let is_real = layout.interface != LOOPBACK;
        let attached = is_real.then(|| (layout.interface.to_owned(), index));
        let kernel = dataplane::load(&LoadOptions {
            bpffs: bpffs.to_owned(),
            interfaces: attached.into_iter().collect(),
            policy: XdpPolicy::Auto,
            max_backends: layout.max_backends().max(LEAST_BACKENDS),
            flow_table_size: 1 << 20,
            nat_table_size: 1 << 20,
            log_drops: false,
        })?;
        let mut world = Self {
            kernel,
            layout,
            index,
            in_transition: None,
            bpffs: bpffs.to_owned(),
        };
        let mut state = world.state()?;
        world.follow(&mut state, &desired(layout, index, 0), 0)?;
        for (&number, address) in state.pool() {
            for port in POOL_PORTS {
                let port = PoolPort::new(number, port);
                world.kernel.nat().add_port(address.is_ipv4(), port)?;
            }
        }
        Ok(world)
    }

    /// Replaces all backends, so that every slot moves. Those of before drain.
    pub fn replace_backends(&mut self) -> anyhow::Result<()> {
        let mut wanted = desired(self.layout, self.index, 1);
        for (key, before) in desired(self.layout, self.index, 0).services {
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

    /// Slots of all services of one IP version and protocol.
    pub fn slots(&self) -> anyhow::Result<u32> {
        let key = ServiceKey {
            vip: vip(true, 0),
            port: PORT,
            protocol: TCP,
        };
        let ring = self.state()?.ring_summary(&key).context("no ring")?;
        Ok((ring.settled + ring.moving + ring.pinned) * self.layout.services)
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

    /// Checks that every one of a case's packets has been forwarded since
    /// `before`, or none, if they are not for a service: a fast wrong answer
    /// does not count.
    pub fn ensure_counted(
        &self,
        case: &Case,
        before: (u64, u64),
        packets: u64,
    ) -> anyhow::Result<()> {
        let after = self.counted()?;
        let expected = if case.is_for_a_service() { packets } else { 0 };
        let (forwarded, dropped) = (after.0 - before.0, after.1 - before.1);
        anyhow::ensure!(
            (forwarded, dropped) == (expected, 0),
            "{}: {forwarded} forwarded and {dropped} dropped, {expected} expected",
            case.name
        );
        Ok(())
    }

    /// Packets forwarded, and packets dropped.
    pub fn counted(&self) -> anyhow::Result<(u64, u64)> {
        let mut forwarded = 0;
        for id in 1..=self.layout.max_backends() {
            let counters = self.kernel.counters(id)?;
            forwarded += counters.packets + counters.reply_packets;
        }
        let mut dropped = 0;
        for &reason in DropReason::ALL {
            dropped += self.kernel.drops(reason)?;
        }
        Ok((forwarded, dropped))
    }
}

fn desired(layout: Layout, interface: u32, generation: u32) -> Desired {
    let Layout {
        mode,
        services,
        each,
        ..
    } = layout;
    let mut desired = Desired {
        services: BTreeMap::new(),
        local_macs: BTreeSet::from([(interface, DIRECTOR_MAC)]),
        interfaces: BTreeSet::new(),
        ..Desired::default()
    };
    if mode == Mode::FullNat {
        desired.pool = [true, false].map(pool_address).into();
    }
    for service in 0..services {
        for is_v4 in [true, false] {
            for protocol in [TCP, UDP] {
                let key = ServiceKey {
                    vip: vip(is_v4, service),
                    port: PORT,
                    protocol,
                };
                let backends = (0..each)
                    .map(|i| {
                        backend(
                            mode,
                            interface,
                            is_v4,
                            (generation * services + service) * each + i,
                        )
                    })
                    .collect();
                let service = DesiredService {
                    hash_key: 0x0123_4567_89ab_cdef,
                    idle_timeout: IDLE_TIMEOUT,
                    nat: if mode == Mode::FullNat {
                        Nat::Full
                    } else {
                        Nat::Gateway
                    },
                    ping: ping::HOST,
                    backends,
                };
                desired.services.insert(key, service);
            }
        }
    }
    desired
}

/// The first client, as the generator counts them: of RFC 2544's range, and
/// documentation's.
pub fn client(is_v4: bool) -> IpAddr {
    if is_v4 {
        client_v4(0)
    } else {
        Ipv6Addr::from_bits(0x2001_0db8_0018_0000 << 64).into()
    }
}

/// The IPv4 client with this number.
pub fn client_v4(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0xc612_0000 + n).into()
}

/// The pool's address of an IP version.
pub fn pool_address(is_v4: bool) -> IpAddr {
    if is_v4 {
        Ipv4Addr::new(192, 0, 2, 3).into()
    } else {
        Ipv6Addr::from_bits((0x2001_0db8_0002_0000 << 64) | 3).into()
    }
}

/// As the generator counts them: RFC 2544's range, and documentation's.
pub fn vip(is_v4: bool, n: u32) -> IpAddr {
    if is_v4 {
        Ipv4Addr::from_bits(0xc613_0000 + n).into()
    } else {
        Ipv6Addr::from_bits((0x2001_0db8_0019_0000 << 64) | u128::from(n)).into()
    }
}

/// Number of a VIP.
pub fn vip_number(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.to_bits() & 0xffff,
        IpAddr::V6(address) => address.to_bits() as u32 & 0xffff,
    }
}

/// Address of a backend.
pub fn backend_address(is_v4: bool, n: u32) -> IpAddr {
    if is_v4 {
        Ipv4Addr::from_bits(0x0a00_0000 + n + 1).into()
    } else {
        Ipv6Addr::from_bits(BACKENDS_V6 | u128::from(n + 1)).into()
    }
}

/// Prefix of the IPv6 backends.
const BACKENDS_V6: u128 = 0x2001_0db8_00be_0000 << 64;

/// MAC address of a backend, or of its router.
pub fn backend_mac(n: u32) -> [u8; 6] {
    [2, 0, 1, (n >> 16) as u8, (n >> 8) as u8, n as u8]
}

/// The backend that has this MAC address.
pub fn backend_of_mac(mac: &[u8]) -> Option<u32> {
    match mac {
        &[2, 0, 1, a, b, c] => Some(u32::from_be_bytes([0, a, b, c])),
        _ => None,
    }
}

fn backend(selected: Mode, interface: u32, is_v4: bool, n: u32) -> DesiredBackend {
    let source: IpAddr = if is_v4 {
        Ipv4Addr::new(192, 0, 2, 2).into()
    } else {
        Ipv6Addr::from_bits(BACKENDS_V6).into()
    };
    DesiredBackend {
        address: backend_address(is_v4, n),
        port: match selected {
            Mode::Dr | Mode::Tun => 0,
            Mode::Nat | Mode::FullNat => NAT_PORT,
        },
        mode: match selected {
            Mode::Dr => mode::DR,
            Mode::Tun if is_v4 => mode::TUN_V4,
            Mode::Tun => mode::TUN_V6,
            Mode::Nat | Mode::FullNat => mode::NAT,
        },
        weight: 1,
        tunnel_source: (selected == Mode::Tun).then_some((source, 0)),
        removed: false,
        condition: Condition::Up(NextHop {
            interface,
            mac: backend_mac(n),
            source_mac: DIRECTOR_MAC,
            mtu: 1500,
            source: None,
        }),
    }
}
