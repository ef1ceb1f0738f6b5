//! Going once round a queue from whose front packets take ports meanwhile.

use std::collections::HashMap;

use lb_common::nat::PoolPort;

/// So many ports that were put back, in the order in which they were, mean that
/// the round is complete: one that is met again may only have been there twice.
const RUN: usize = 8;

/// A queue of free ports.
pub trait Ports {
    /// Takes the port at the front.
    fn pop(&mut self) -> anyhow::Result<Option<PoolPort>>;

    /// Puts a port at the back.
    fn push(&mut self, port: PoolPort) -> anyhow::Result<()>;
}

/// Looks at each port once. Those that `keep` wants are put back; what is there
/// twice is put back once.
///
/// # Errors
/// If the queue refuses.
pub fn go_round(
    ports: &mut impl Ports,
    keep: &mut dyn FnMut(PoolPort) -> bool,
) -> anyhow::Result<()> {
    let mut places: HashMap<PoolPort, usize> = HashMap::new();
    // Ports that are met again, in hand, as long as their order is that in
    // which they were put back. If it ends they were there twice.
    let mut again: Vec<PoolPort> = Vec::new();
    while let Some(port) = ports.pop()? {
        let Some(&place) = places.get(&port) else {
            again.clear();
            if keep(port) {
                places.insert(port, places.len());
                ports.push(port)?;
            }
            continue;
        };
        if again.last().is_some_and(|last| places[last] >= place) {
            again.clear();
        }
        again.push(port);
        if again.len() >= RUN {
            break;
        }
    }
    again.into_iter().try_for_each(|port| ports.push(port))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A queue, and how many packets take a port before each look at it.
    struct Fake {
        ports: VecDeque<PoolPort>,
        takers: VecDeque<usize>,
    }

    impl Ports for Fake {
        fn pop(&mut self) -> anyhow::Result<Option<PoolPort>> {
            let taken = self.takers.pop_front().unwrap_or(0);
            self.ports.drain(..taken.min(self.ports.len()));
            Ok(self.ports.pop_front())
        }

        fn push(&mut self, port: PoolPort) -> anyhow::Result<()> {
            self.ports.push_back(port);
            Ok(())
        }
    }

    fn after_round(before: &[u16], takers: &[usize]) -> Vec<u16> {
        let port = |&port: &u16| PoolPort::new(0, port);
        let mut fake = Fake {
            ports: before.iter().map(port).collect(),
            takers: takers.iter().copied().collect(),
        };
        go_round(&mut fake, &mut |port| port.port() < 1000).unwrap();
        let mut after: Vec<u16> = fake.ports.iter().map(|port| port.port()).collect();
        after.sort_unstable();
        after
    }

    #[test]
    fn every_port_is_kept() {
        for n in [0, 1, 2, 7, 8, 9, 100] {
            let ports: Vec<u16> = (0..n).collect();
            assert_eq!(after_round(&ports, &[]), ports, "{n}");
        }
        assert_eq!(after_round(&[1, 2000, 2, 2001, 2000], &[]), [1, 2]);
    }

    #[test]
    fn what_is_there_twice_does_not_end_the_round() {
        let ports: Vec<u16> = (0..100).collect();
        for twice in [&[3][..], &[0, 0], &[9, 7, 3, 1], &[50, 50, 50, 2]] {
            for at in [10, 60, 100] {
                let mut before = ports.clone();
                before.splice(at..at, twice.iter().copied());
                assert_eq!(after_round(&before, &[]), ports, "{twice:?} at {at}");
            }
        }
        let reversed: Vec<u16> = ports.iter().rev().copied().collect();
        assert_eq!(after_round(&[ports.clone(), reversed].concat(), &[]), ports);
        assert_eq!(after_round(&[1, 1, 2, 3], &[]), [1, 2, 3]);
    }

    #[test]
    fn packets_may_take_ports_meanwhile() {
        let ports: Vec<u16> = (0..50).collect();
        // Before the round is complete, and while it is seen to be.
        for look in [0, 5, 48, 50, 51, 53, 57] {
            let mut takers = vec![0; look];
            takers.push(3);
            let after = after_round(&ports, &takers);
            assert_eq!(after.len(), ports.len() - 3, "at look {look}: {after:?}");
        }
    }
}
