//! Waiting for a condition, never for a time.

use std::fmt::Debug;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::bail;

/// What a condition can answer: a value, or why it does not hold yet.
pub trait Outcome {
    /// What there is once the condition holds.
    type Value;

    /// The value, or the state that was seen instead.
    fn settle(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();

    fn settle(self) -> Result<(), String> {
        self.then_some(()).ok_or_else(|| "false".to_owned())
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Debug> Outcome for Result<T, E> {
    type Value = T;

    fn settle(self) -> Result<T, String> {
        self.map_err(|e| format!("{e:?}"))
    }
}

/// Polls `condition` until it holds and returns its value.
///
/// # Panics
/// When it does not hold by the deadline, with `what` and the last state seen.
#[track_caller]
pub fn eventually<O: Outcome>(
    what: &str,
    deadline: Duration,
    condition: impl FnMut() -> O,
) -> O::Value {
    match try_eventually(what, deadline, condition) {
        Ok(value) => value,
        Err(e) => panic!("{e:#}"),
    }
}

/// Like [`eventually`], with an error in place of the panic.
pub fn try_eventually<O: Outcome>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> O,
) -> anyhow::Result<O::Value> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match condition().settle() {
            Ok(value) => return Ok(value),
            Err(seen) if start.elapsed() >= deadline => {
                bail!("waited {deadline:?} in vain for: {what}; last seen: {seen}")
            }
            Err(_) => {
                sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
    }
}
