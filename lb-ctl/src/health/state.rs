//! Whether a backend counts as up: a state machine without I/O and clock.

use crate::model::status::HealthStatus;

/// What a probe has met.
pub type ProbeResult = Result<(), String>;

/// What a backend counts as before it has been probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Up until `fall` probes have failed. For a backend that was in use
    /// already: after a restart of `lb-ctl`, or when a service gets its first
    /// health check, no backend leaves the ring without proof.
    Up,
    /// Down until one probe has succeeded. For a new backend: it gets no
    /// flows before it has been seen to work, and has nothing to prove twice.
    Unproven,
    /// Down until `rise` probes have succeeded.
    Down,
}

/// A change of what a backend counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It may be scheduled.
    Up,
    /// It may not.
    Down,
}

/// The health of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    rise: u32,
    fall: u32,
    verdict: Initial,
    /// Probes in a row that contradict the verdict.
    streak: u32,
    since: u64,
    last_error: Option<String>,
}

impl State {
    /// Health of a backend that is not probed yet. `rise` and `fall` are the
    /// numbers of successes and failures in a row that change what it counts
    /// as, `now` is Unix time.
    pub const fn new(initial: Initial, rise: u32, fall: u32, now: u64) -> Self {
        Self {
            rise,
            fall,
            verdict: initial,
            streak: 0,
            since: now,
            last_error: None,
        }
    }

    /// Takes note of a probe at `now`, Unix time.
    pub fn probed(&mut self, result: ProbeResult, now: u64) -> Option<Transition> {
        let succeeded = result.is_ok();
        if let Err(error) = result {
            self.last_error = Some(error);
        }
        if succeeded == self.is_up() && self.verdict != Initial::Unproven {
            self.streak = 0;
            return None;
        }
        self.streak += 1;
        let needed = match self.verdict {
            Initial::Up => self.fall,
            // Its first probe decides.
            Initial::Unproven => 1,
            Initial::Down => self.rise,
        };
        if self.streak < needed {
            return None;
        }
        self.streak = 0;
        self.since = now;
        if succeeded {
            self.verdict = Initial::Up;
            self.last_error = None;
            return Some(Transition::Up);
        }
        self.verdict = Initial::Down;
        Some(Transition::Down)
    }

    /// Goes by other thresholds from now on; what the backend counts as stays.
    pub const fn set_thresholds(&mut self, rise: u32, fall: u32) {
        self.rise = rise;
        self.fall = fall;
    }

    /// Whether the backend may be scheduled.
    pub fn is_up(&self) -> bool {
        self.verdict == Initial::Up
    }

    /// The health as it is shown.
    pub fn status(&self) -> HealthStatus {
        HealthStatus {
            up: self.is_up(),
            since: self.since,
            last_error: self.last_error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn result(succeeds: bool) -> ProbeResult {
        if succeeds {
            Ok(())
        } else {
            Err("connection refused".to_owned())
        }
    }

    /// Feeds probes, `+` for a success, and writes down what they change.
    fn changes(initial: Initial, probes: &str) -> String {
        let mut state = State::new(initial, 2, 3, 0);
        let probes = probes.chars().enumerate();
        probes
            .map(
                |(now, probe)| match state.probed(result(probe == '+'), now as u64) {
                    None => '.',
                    Some(Transition::Up) => 'U',
                    Some(Transition::Down) => 'D',
                },
            )
            .collect()
    }

    #[test]
    fn thresholds_are_counted_in_a_row() {
        assert_eq!(changes(Initial::Up, "--+---+-++"), ".....D...U");
        assert_eq!(changes(Initial::Up, "+++"), "...");
        assert_eq!(changes(Initial::Down, "---+-++"), "......U");
    }

    #[test]
    fn a_new_backend_is_judged_by_its_first_probe() {
        assert_eq!(changes(Initial::Unproven, "+"), "U");
        assert_eq!(changes(Initial::Unproven, "--++---"), "D..U..D");
    }

    #[test]
    fn the_last_error_is_shown_until_it_is_up_again() {
        let mut state = State::new(Initial::Up, 1, 2, 5);
        state.probed(result(false), 6);
        let status = state.status();
        assert!(status.up && status.since == 5);
        assert_eq!(status.last_error.as_deref(), Some("connection refused"));
        state.probed(result(false), 7);
        assert!(!state.status().up);
        assert_eq!(state.status().since, 7);
        state.probed(result(true), 8);
        let up = HealthStatus {
            up: true,
            since: 8,
            last_error: None,
        };
        assert_eq!(state.status(), up);
    }

    proptest! {
        /// Against the definition: up after `rise` successes in a row, down
        /// after `fall` failures in a row, else what it was.
        #[test]
        fn the_verdict_follows_from_the_last_probes(
            was_up: bool,
            rise in 1_u32..6,
            fall in 1_u32..6,
            probes in proptest::collection::vec(any::<bool>(), 0..60),
        ) {
            let initial = if was_up { Initial::Up } else { Initial::Down };
            let mut state = State::new(initial, rise, fall, 0);
            let mut expected = was_up;
            for (i, probe) in probes.iter().enumerate() {
                let in_a_row = probes[..=i].iter().rev().take_while(|p| *p == probe).count();
                let before = expected;
                if in_a_row >= if *probe { rise } else { fall } as usize {
                    expected = *probe;
                }
                let transition = state.probed(result(*probe), i as u64);
                prop_assert_eq!(state.is_up(), expected);
                let change = match (before, expected) {
                    (false, true) => Some(Transition::Up),
                    (true, false) => Some(Transition::Down),
                    _ => None,
                };
                prop_assert_eq!(transition, change);
            }
        }
    }
}
