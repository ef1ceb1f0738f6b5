//! The tables of translated flows, and the free ports of the pool.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Pod;
use aya::maps::{MapData, MapError, Queue};
use lb_common::Address;
use lb_common::flow::{FlowKeyV4, FlowKeyV6};
use lb_common::nat::{NO_PORT, NatForward, NatReverse, PoolPort, Seen};

use super::ServiceKey;
use super::kernel::absent_is_fine;
use super::maps::{FamilyNatMaps, NatMaps, for_each};
use super::round::{Ports, go_round};

/// A translated flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatFlow {
    keys: Keys,
    /// VIP, protocol and port that the client speaks to.
    pub service: ServiceKey,
    /// Index of the backend entry.
    pub backend: u32,
    /// Generation of that entry when the flow began.
    pub generation: u32,
    /// The pool's port that it has taken, in full NAT.
    pub pool_port: Option<PoolPort>,
    /// What was seen of the client.
    pub client_seen: Seen,
    /// What was seen of the backend.
    pub backend_seen: Seen,
}

/// Where a flow is in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    V4(FamilyKeys<FlowKeyV4>),
    V6(FamilyKeys<FlowKeyV6>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FamilyKeys<K> {
    reverse: K,
    /// In full NAT, unless the client has another flow by now.
    forward: Option<K>,
}

impl NatFlow {
    /// Whether it is an IPv4 flow.
    pub const fn is_v4(&self) -> bool {
        matches!(self.keys, Keys::V4(_))
    }
}

/// The tables of translated flows.
pub trait NatTable: Send + Sync {
    /// Calls `visit` for each translated flow.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn scan(&self, visit: &mut dyn FnMut(NatFlow)) -> anyhow::Result<()>;

    /// Removes a flow, and with `give_back` gives its port back to the pool,
    /// unless the flow has had a packet since it was scanned.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn remove(&self, flow: &NatFlow, give_back: bool) -> anyhow::Result<()>;

    /// Looks at each free port and throws away those that `keep` does not want,
    /// and what is there twice.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn sift_ports(&self, is_v4: bool, keep: &mut dyn FnMut(PoolPort) -> bool)
    -> anyhow::Result<()>;

    /// Adds a free port; `false` if there is no room for another.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn add_port(&self, is_v4: bool, port: PoolPort) -> anyhow::Result<bool>;
}

/// The tables in the kernel.
pub(super) struct KernelNat {
    maps: Mutex<NatMaps>,
    size: u32,
}

impl KernelNat {
    pub(super) const fn new(maps: NatMaps, size: u32) -> Self {
        Self {
            maps: Mutex::new(maps),
            size,
        }
    }

    fn lock(&self) -> MutexGuard<'_, NatMaps> {
        // Handles to maps are whole at any time.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NatTable for KernelNat {
    fn scan(&self, visit: &mut dyn FnMut(NatFlow)) -> anyhow::Result<()> {
        let maps = self.lock();
        scan(&maps.v4, self.size, visit)?;
        scan(&maps.v6, self.size, visit)
    }

    fn remove(&self, flow: &NatFlow, give_back: bool) -> anyhow::Result<()> {
        let mut maps = self.lock();
        match &flow.keys {
            Keys::V4(keys) => remove(&mut maps.v4, keys, flow, give_back),
            Keys::V6(keys) => remove(&mut maps.v6, keys, flow, give_back),
        }
    }

    fn sift_ports(
        &self,
        is_v4: bool,
        keep: &mut dyn FnMut(PoolPort) -> bool,
    ) -> anyhow::Result<()> {
        let mut maps = self.lock();
        let ports = if is_v4 {
            &mut maps.v4.ports
        } else {
            &mut maps.v6.ports
        };
        go_round(ports, keep)
    }

    fn add_port(&self, is_v4: bool, port: PoolPort) -> anyhow::Result<bool> {
        let mut maps = self.lock();
        let ports = if is_v4 {
            &mut maps.v4.ports
        } else {
            &mut maps.v6.ports
        };
        push(ports, port)
    }
}

/// Adds a free port; `false` if the queue is full.
fn push(ports: &mut Queue<MapData, PoolPort>, port: PoolPort) -> anyhow::Result<bool> {
    match ports.push(port, 0) {
        Ok(()) => Ok(true),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(nix::libc::E2BIG) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

impl Ports for Queue<MapData, PoolPort> {
    fn pop(&mut self) -> anyhow::Result<Option<PoolPort>> {
        match Self::pop(self, 0) {
            Ok(port) => Ok(Some(port)),
            Err(MapError::ElementNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn push(&mut self, port: PoolPort) -> anyhow::Result<()> {
        Ok(Self::push(self, port, 0)?)
    }
}

/// A flow key of either IP version.
trait Key: Pod + Copy {
    type Address: Copy + PartialEq;

    fn keys(of: FamilyKeys<Self>) -> Keys;
    /// The other side's address, and the ports: the other side's first.
    fn parts(&self) -> (Self::Address, u32, u8);
    fn make(client: Self::Address, vip: Self::Address, ports: u32, protocol: u8) -> Self;
    fn ip(address: Self::Address) -> IpAddr;
}

impl Key for FlowKeyV4 {
    type Address = u32;

    fn keys(of: FamilyKeys<Self>) -> Keys {
        Keys::V4(of)
    }

    fn parts(&self) -> (u32, u32, u8) {
        let (_, pool, ports, protocol) = Self::parts(self);
        (pool, ports, protocol)
    }

    fn make(client: u32, vip: u32, ports: u32, protocol: u8) -> Self {
        Self::from_packet(client, vip, ports, protocol)
    }

    fn ip(address: u32) -> IpAddr {
        Address::from_v4_word(address).into()
    }
}

impl Key for FlowKeyV6 {
    type Address = Address;

    fn keys(of: FamilyKeys<Self>) -> Keys {
        Keys::V6(of)
    }

    fn parts(&self) -> (Address, u32, u8) {
        let (_, pool, ports, protocol) = Self::parts(self);
        (pool, ports, protocol)
    }

    fn make(client: Address, vip: Address, ports: u32, protocol: u8) -> Self {
        Self::from_packet(client, vip, ports, protocol)
    }

    fn ip(address: Address) -> IpAddr {
        address.into()
    }
}

fn scan<K: Key>(
    maps: &FamilyNatMaps<K, K::Address>,
    size: u32,
    visit: &mut dyn FnMut(NatFlow),
) -> anyhow::Result<()>
where
    NatForward<K::Address>: Pod,
    NatReverse<K::Address>: Pod,
{
    for_each(&maps.reverse, size, |key, value| {
        let (pool, ports, protocol) = Key::parts(&key);
        let mut client_seen = value.client_seen;
        let mut forward = None;
        if value.pool_port != NO_PORT {
            let client_ports = u32::from(value.client_port) | u32::from(value.port) << 16;
            let client_key = K::make(value.client, value.vip, client_ports, protocol);
            if let Ok(entry) = maps.forward.get(&client_key, 0)
                && entry.address == pool
                && u32::from(entry.port) == ports >> 16
            {
                forward = Some(client_key);
                client_seen = entry.seen;
            }
        }
        visit(NatFlow {
            keys: K::keys(FamilyKeys {
                reverse: key,
                forward,
            }),
            service: ServiceKey {
                vip: K::ip(value.vip),
                port: u16::from_be(value.port),
                protocol,
            },
            backend: value.backend,
            generation: value.generation,
            pool_port: (value.pool_port != NO_PORT).then_some(PoolPort(value.pool_port)),
            client_seen,
            backend_seen: value.backend_seen,
        });
    })?;
    Ok(())
}

fn remove<K: Key>(
    maps: &mut FamilyNatMaps<K, K::Address>,
    keys: &FamilyKeys<K>,
    flow: &NatFlow,
    give_back: bool,
) -> anyhow::Result<()>
where
    NatForward<K::Address>: Pod,
    NatReverse<K::Address>: Pod,
{
    let Ok(reverse) = maps.reverse.get(&keys.reverse, 0) else {
        return Ok(());
    };
    let client_seen = match &keys.forward {
        Some(forward) => maps.forward.get(forward, 0).map(|entry| entry.seen),
        None => Ok(reverse.client_seen),
    };
    if reverse.backend_seen != flow.backend_seen
        || client_seen.is_ok_and(|seen| seen != flow.client_seen)
    {
        return Ok(());
    }
    // The client's entry first: while it is there, packets rely on the other.
    if let Some(forward) = &keys.forward {
        absent_is_fine(maps.forward.remove(forward))?;
    }
    absent_is_fine(maps.reverse.remove(&keys.reverse))?;
    if let Some(port) = flow.pool_port.filter(|_| give_back) {
        push(&mut maps.ports, port)?;
    }
    Ok(())
}
