//! The planner and the packet path together: random changes under flows that
//! keep talking. Nothing here is the kernel's, so thousands of histories run
//! in a second.

use lb_common::flow::FlowKeyV4;
use lb_common::limits;
use lb_ebpf::host::{HostPacket, HostTables};
use lb_ebpf::process;
use lb_ebpf::verdict::Verdict;

use super::*;
use crate::dataplane::RecordedFlow;

/// What an operator, or fate, does.
#[derive(Clone, Debug)]
enum Event {
    /// Adds a backend or changes its weight.
    Set { n: u8, weight: u32 },
    /// Deletes a backend.
    Remove { n: u8 },
    /// The health check gives a backend up.
    Kill { n: u8 },
    /// The health check takes it back.
    Revive { n: u8 },
    /// The neighbour does not answer, but the host lives.
    LoseNeighbour { n: u8 },
    /// New flows.
    Open(u16),
    /// Flows end.
    Close(u16),
    /// Time passes, in seconds.
    Wait(u32),
    /// `lb-ctl` is killed and started again.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let n = 1_u8..7;
    prop_oneof![
        4 => (n.clone(), 0_u32..4).prop_map(|(n, weight)| Event::Set { n, weight }),
        2 => n.clone().prop_map(|n| Event::Remove { n }),
        1 => n.clone().prop_map(|n| Event::Kill { n }),
        2 => n.clone().prop_map(|n| Event::Revive { n }),
        1 => n.prop_map(|n| Event::LoseNeighbour { n }),
        4 => (1_u16..40).prop_map(Event::Open),
        1 => (1_u16..20).prop_map(Event::Close),
        5 => (1_u32..2 * TIMEOUT).prop_map(Event::Wait),
        1 => Just(Event::Restart),
    ]
}

/// A flow that has been opened and talks every second.
#[derive(Clone, Copy, Debug)]
struct Flow {
    port: u16,
    /// Last octet of the MAC that its first packet was sent to.
    backend: u8,
    /// Deaths of that backend up to then.
    deaths: u32,
}

struct World {
    tables: HostTables,
    state: State,
    wanted: Desired,
    flows: Vec<Flow>,
    deaths: [u32; 8],
    next_port: u16,
}

impl World {
    fn new() -> Self {
        let capacity = Capacity {
            backends: 64,
            ring_blocks: limits::ring_blocks(64),
            flows: 1024,
            nat: 1024,
        };
        let tables = HostTables {
            rings: vec![Default::default(); capacity.ring_blocks as usize],
            backends: vec![Backend::default(); capacity.backends as usize],
            ..HostTables::default()
        };
        let mut world = Self {
            tables,
            state: State::from_dump(Dump::default(), capacity, 0),
            wanted: desired(vec![backend(1, 1), backend(2, 1), backend(3, 2)]),
            flows: Vec::new(),
            deaths: [0; 8],
            next_port: 1024,
        };
        world.reconcile();
        world
    }

    fn backends(&mut self) -> &mut Vec<DesiredBackend> {
        &mut self.wanted.services.get_mut(&KEY).unwrap().backends
    }

    fn find(&mut self, n: u8) -> Option<&mut DesiredBackend> {
        let address = backend(n, 1).address;
        self.backends().iter_mut().find(|b| b.address == address)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Set { n, weight } => match self.find(n) {
                Some(b) => {
                    b.weight = weight;
                    b.removed = false;
                }
                None => self.backends().push(backend(n, weight)),
            },
            Event::Remove { n } => {
                if let Some(b) = self.find(n) {
                    b.removed = true;
                    b.weight = 0;
                }
            }
            Event::Kill { n } => {
                if let Some(b) = self.find(n) {
                    b.condition = Condition::Down;
                    self.deaths[usize::from(n)] += 1;
                }
            }
            Event::Revive { n } => {
                if let Some(b) = self.find(n) {
                    b.condition = Condition::Up(next_hop(n));
                }
            }
            Event::LoseNeighbour { n } => {
                if let Some(b) = self.find(n)
                    && b.condition != Condition::Down
                {
                    b.condition = Condition::Unresolved;
                }
            }
            Event::Open(count) => self.open(count),
            Event::Close(count) => {
                let keep = self.flows.len().saturating_sub(usize::from(count));
                self.flows.truncate(keep);
            }
            Event::Wait(seconds) => {
                for _ in 0..seconds {
                    self.tables.now.set(self.tables.now.get() + 1);
                    self.reconcile();
                    self.talk();
                }
            }
            Event::Restart => {
                let dump = self.dump();
                let capacity = self.state.capacity;
                self.state = State::from_dump(dump, capacity, self.tables.now.get());
            }
        }
        self.reconcile();
        self.talk();
    }

    fn open(&mut self, count: u16) {
        for _ in 0..count {
            let port = self.next_port;
            self.next_port += 1;
            if let Some(backend) = self.send(port, true) {
                let deaths = self.deaths[usize::from(backend)];
                self.flows.push(Flow {
                    port,
                    backend,
                    deaths,
                });
            }
        }
    }

    /// Every flow sends a packet; it must reach the backend of its first one,
    /// unless that backend has died since.
    fn talk(&mut self) {
        let deaths = self.deaths;
        self.flows
            .retain(|flow| deaths[usize::from(flow.backend)] == flow.deaths);
        for flow in self.flows.clone() {
            let to = self.send(flow.port, false);
            assert_eq!(to, Some(flow.backend), "{flow:?} is broken");
        }
    }

    /// Sends a TCP packet from this port; returns the last octet of the MAC
    /// that it is sent on to.
    fn send(&self, port: u16, syn: bool) -> Option<u8> {
        let mut frame = [0_u8; 54];
        frame[0..6].copy_from_slice(&[2, 0, 0, 0, 1, 0]);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14] = 0x45;
        frame[17] = 40;
        frame[23] = TCP;
        frame[26..30].copy_from_slice(&[198, 51, 100, 1]);
        frame[30..34].copy_from_slice(&[203, 0, 113, 10]);
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        frame[36..38].copy_from_slice(&80_u16.to_be_bytes());
        frame[46] = 0x50;
        frame[47] = if syn { 0x02 } else { 0x10 };
        let mut packet = HostPacket::new(&frame, 1);
        match process(&mut packet, &self.tables) {
            Verdict::Transmit => Some(packet.bytes()[5]),
            _ => None,
        }
    }

    fn reconcile(&mut self) {
        let now = self.tables.now.get();
        let request = ScanRequest::new(&self.state);
        let mut scan = request.begin();
        for (key, value) in &*self.tables.v4.flows.borrow() {
            scan.add(&request, &recorded(key, *value), now);
        }
        let planned = plan(&mut self.state, &self.wanted, Some(&scan), now).unwrap();
        planned.ops.into_iter().for_each(|op| self.write(op));
        // Those that have left are forgotten, as the control loop does.
        let entries = self.state.entries(&KEY);
        let alive: BTreeSet<IpAddr> = entries.iter().map(|(_, b)| b.address.into()).collect();
        self.backends()
            .retain(|b| !b.removed || alive.contains(&b.address));
    }

    fn write(&mut self, op: Op) {
        crate::dataplane::host::apply(&mut self.tables, &op);
    }

    fn dump(&self) -> Dump {
        let read = |offset: u32, slots: u32| {
            let blocks = &self.tables.rings[offset as usize..];
            let slots = slots as usize;
            blocks
                .iter()
                .flat_map(|b| b.slots)
                .take(slots)
                .collect::<Vec<_>>()
        };
        let services = self.tables.v4.services.values().map(|&value| {
            let slots = read(value.ring_offset, value.slots);
            let old = if slots.iter().any(|s| s.is_moving()) {
                read(
                    value.ring_offset + lb_common::ring::blocks(value.slots),
                    value.slots,
                )
            } else {
                Vec::new()
            };
            (KEY, (value, slots, old))
        });
        let backends = self.tables.backends.iter().copied().enumerate();
        Dump {
            services: services.collect(),
            backends: backends
                .filter(|(_, b)| *b != Backend::default())
                .map(|(id, b)| (id as u32, b))
                .collect(),
            vips: self
                .tables
                .vips
                .iter()
                .map(|(&vip, &value)| (vip.into(), value))
                .collect(),
            local_macs: self.wanted.local_macs.clone(),
            interfaces: self.wanted.interfaces.clone(),
            settings: self.state.settings,
            ..Dump::default()
        }
    }
}

fn recorded(key: &FlowKeyV4, value: lb_common::flow::FlowValue) -> RecordedFlow {
    RecordedFlow {
        key: key.service().into(),
        value,
        is_translated: false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn flows_survive_everything_but_their_backends_death(
        events in prop::collection::vec(event(), 1..40),
    ) {
        let mut world = World::new();
        world.happen(Event::Open(60));
        for event in events {
            world.happen(event);
        }
        // When everything has come to rest, the ring has forgotten.
        world.flows.clear();
        world.happen(Event::Wait(4 * TIMEOUT));
        let summary = world.state.ring_summary(&KEY).unwrap();
        prop_assert_eq!((summary.moving, summary.pinned), (0, 0));
        let leaving = world.wanted.services[&KEY].backends.iter().filter(|b| b.removed).count();
        prop_assert_eq!(leaving, 0);
    }
}
