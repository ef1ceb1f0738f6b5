//! What became of the requests so far.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::ser::{Serialize, SerializeMap, Serializer};

/// Counts of requests, for all of the demo and for the phase since the last
/// change. A request that was retried counts once.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests that have come to an end.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that succeeded at the second attempt.
    pub retried: u64,
    /// Answers by name of the backend.
    pub total: BTreeMap<String, u64>,
    /// The same since the phase began.
    pub phase: BTreeMap<String, u64>,
    /// What the first failures were.
    pub failures: Vec<String>,
    /// From the death of a web server until it was noticed.
    pub outage: Outage,
}

/// The time in which a backend was dead and still got requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outage {
    /// When the backend was about to die.
    pub start: Option<Instant>,
    /// When the director was seen to know it.
    pub end: Option<Instant>,
}

impl Outage {
    /// Whether a request in this time can have met the dead backend.
    pub fn touches(&self, from: Instant, to: Instant) -> bool {
        self.start.is_some_and(|start| start <= to) && self.end.is_none_or(|end| from <= end)
    }
}

impl Tally {
    /// A request was answered.
    pub fn answered(&mut self, backend: &str) {
        self.requests += 1;
        *self.total.entry(backend.to_owned()).or_default() += 1;
        *self.phase.entry(backend.to_owned()).or_default() += 1;
    }

    /// A request was not answered.
    pub fn failed(&mut self, why: String) {
        self.requests += 1;
        self.failed += 1;
        if self.failures.len() < 5 {
            self.failures.push(why);
        }
    }
}

/// The result of the demo.
#[derive(Debug)]
pub struct Summary {
    /// How packets reached the backends: dr, tun or nat.
    pub mode: &'static str,
    /// Requests sent; a retry is not another request.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that needed a second attempt.
    pub retried: u64,
    /// Requests answered by each backend's address.
    pub backends: Vec<(String, u64)>,
    /// Who the client, or the router before it, took for the owner of the VIP.
    pub vip_mac_owner: String,
}

impl Summary {
    /// In one line.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

impl Serialize for Summary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("mode", self.mode)?;
        map.serialize_entry("requests", &self.requests)?;
        map.serialize_entry("ok", &(self.requests - self.failed))?;
        map.serialize_entry("failed", &self.failed)?;
        map.serialize_entry("retried", &self.retried)?;
        map.serialize_entry("backends", &Counts(&self.backends))?;
        map.serialize_entry("vip_mac_owner", &self.vip_mac_owner)?;
        map.end()
    }
}

/// A map in the order of the list.
struct Counts<'a>(&'a [(String, u64)]);

impl Serialize for Counts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, count)| (name, count)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_requests_during_the_outage_may_meet_the_dead() {
        let at = |s| Instant::now() + Duration::from_secs(s);
        let (t1, t2, t3, t4) = (at(1), at(2), at(3), at(4));
        let none = Outage::default();
        assert!(!none.touches(t1, t4));
        let open = Outage {
            start: Some(t2),
            end: None,
        };
        assert!(open.touches(t1, t3) && open.touches(t3, t4) && !open.touches(t1, t1));
        let over = Outage {
            end: Some(t3),
            ..open
        };
        assert!(over.touches(t1, t4) && over.touches(t3, t4) && !over.touches(t4, t4));
    }

    #[test]
    fn the_summary_has_the_promised_fields() {
        let summary = Summary {
            mode: "dr",
            requests: 10,
            failed: 1,
            retried: 2,
            backends: vec![("203.0.113.21".to_owned(), 9)],
            vip_mac_owner: "director".to_owned(),
        };
        let expected = r#"{"mode":"dr","requests":10,"ok":9,"failed":1,"retried":2,"backends":{"203.0.113.21":9},"vip_mac_owner":"director"}"#;
        assert_eq!(summary.json().unwrap(), expected);
    }
}
