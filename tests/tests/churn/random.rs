//! Chance that can be repeated.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A sequence of numbers that follows from its seed: SplitMix64 (Steele, Lea,
/// Flood, OOPSLA 2014).
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Whether something happens that does so once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len())])
    }

    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = (most - least).as_micros() as usize + 1;
        least + Duration::from_micros(self.below(span) as u64)
    }
}

/// The seed that LB_CHURN_SEED names, or else any.
pub fn seed() -> anyhow::Result<u64> {
    match std::env::var("LB_CHURN_SEED") {
        Ok(seed) => Ok(seed.parse()?),
        Err(_) => Ok(SystemTime::now()
            .duration_since(UNIX_EPOCH)?
            .subsec_nanos()
            .into()),
    }
}

/// How long it goes on: LB_CHURN_SECONDS, or else 20 seconds.
pub fn duration() -> anyhow::Result<Duration> {
    let seconds = std::env::var("LB_CHURN_SECONDS").unwrap_or_else(|_| "20".to_owned());
    Ok(Duration::from_secs(seconds.parse()?))
}
