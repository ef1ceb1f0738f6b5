//! What the suite did and when, and whether that explains what befell a flow.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::crowd::{Event, Record, What};
use integration::talk::Protocol;

/// An answer that came may have been noted only after what followed it.
const SLACK: Duration = Duration::from_secs(1);
/// Until then a backend that begins to serve, or is there again, may not yet
/// have been found healthy, with all that can come between.
const PROOF: Duration = Duration::from_secs(8);
/// Longer than this the clients do not sleep, unless the machine does.
const STALL: Duration = Duration::from_secs(2);

/// From one moment to another, or on.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: Instant,
    until: Option<Instant>,
}

impl Span {
    fn overlaps(&self, from: Instant, until: Instant) -> bool {
        self.from <= until && self.until.is_none_or(|end| end >= from)
    }

    fn covers(&self, from: Instant, until: Instant) -> bool {
        self.from <= from && self.until.is_none_or(|end| end >= until)
    }
}

/// Spans of time in which something was so.
#[derive(Clone, Debug, Default)]
struct Spans(Vec<Span>);

impl Spans {
    fn set(&mut self, is_so: bool, at: Instant) {
        let open = self.0.iter_mut().find(|span| span.until.is_none());
        match (open, is_so) {
            (None, true) => self.0.push(Span {
                from: at,
                until: None,
            }),
            (Some(span), false) => span.until = Some(at),
            _ => {}
        }
    }

    fn overlap(&self, from: Instant, until: Instant) -> bool {
        self.0.iter().any(|span| span.overlaps(from, until))
    }

    fn cover(&self, from: Instant, until: Instant) -> bool {
        self.0.iter().any(|span| span.covers(from, until))
    }
}

/// What the suite did.
pub struct History {
    start: Instant,
    actions: Vec<(Instant, String)>,
    /// When a service was not there, or not yet ready, by name.
    absent: BTreeMap<String, Spans>,
    /// When a host's servers were dead.
    dead: BTreeMap<String, Spans>,
    /// When a host might get new flows of a service.
    eligible: BTreeMap<(String, String), Spans>,
    stalls: Spans,
}

impl History {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            actions: Vec::new(),
            absent: BTreeMap::new(),
            dead: BTreeMap::new(),
            eligible: BTreeMap::new(),
            stalls: Spans::default(),
        }
    }

    pub fn did(&mut self, what: impl Into<String>) {
        self.actions.push((Instant::now(), what.into()));
    }

    pub fn steps(&self) -> usize {
        self.actions.len()
    }

    pub fn absent(&mut self, service: &str, is_so: bool) {
        let spans = self.absent.entry(service.to_owned()).or_default();
        spans.set(is_so, Instant::now());
    }

    pub fn dead(&mut self, host: &str, is_so: bool) {
        let spans = self.dead.entry(host.to_owned()).or_default();
        spans.set(is_so, Instant::now());
    }

    /// To be called before a host may get new flows, and after it must not.
    pub fn eligible(&mut self, service: &str, host: &str, is_so: bool) {
        let key = (service.to_owned(), host.to_owned());
        let spans = self.eligible.entry(key).or_default();
        spans.set(is_so, Instant::now());
    }

    /// A host was seen to get new flows of a service.
    pub fn proven(&mut self, service: &str, host: &str) {
        let key = (service.to_owned(), host.to_owned());
        let spans = self.eligible.get_mut(&key);
        let open = spans.and_then(|spans| spans.0.iter_mut().find(|span| span.until.is_none()));
        if let Some(span) = open {
            span.from = span.from.checked_sub(PROOF).unwrap_or(span.from);
        }
    }

    /// The clients slept.
    pub fn slept(&mut self, from: Instant, until: Instant) {
        if until - from > STALL {
            let until = Some(until);
            self.stalls.0.push(Span { from, until });
        }
    }

    /// Whether what befell the flow is what it should be.
    pub fn explains(&self, flow: &Record, event: &Event) -> bool {
        let (service, at) = (flow.service.as_str(), event.at);
        let since = event.since.checked_sub(SLACK).unwrap_or(event.since);
        let was = |spans: Option<&Spans>| spans.is_some_and(|spans| spans.overlap(since, at));
        let host_died = |host: &str| was(self.dead.get(host));
        let excused = was(self.absent.get(service)) || self.stalls.overlap(since, at);
        match &event.what {
            What::Begun(host) => {
                let key = (service.to_owned(), host.clone());
                let Some(eligible) = self.eligible.get(&key) else {
                    return false;
                };
                // What is not recorded of UDP goes where it would have gone
                // before the changes.
                flow.protocol == Protocol::Udp || eligible.overlap(event.since, at)
            }
            What::Garbled(_) => false,
            What::Changed { .. } if flow.protocol == Protocol::Tcp => false,
            What::Changed { from, .. } => excused || host_died(from),
            What::Lost(_) | What::Broken(_) => {
                excused
                    || match &event.backend {
                        Some(host) => host_died(host),
                        None => self.is_poor(flow, since, at),
                    }
            }
            What::Refused(_) => excused || self.is_poor(flow, since, at),
        }
    }

    /// Whether a new flow may have found nobody.
    fn is_poor(&self, flow: &Record, from: Instant, until: Instant) -> bool {
        let before = from.checked_sub(PROOF).unwrap_or(from);
        // UDP may go where it would have gone before all changes of the window,
        // and each start of `lb-ctl` begins that anew. Who was removed
        // meanwhile is not probed.
        let served = match flow.protocol {
            Protocol::Tcp => before,
            Protocol::Udp => self.start,
        };
        let is_dead = |host: &str, from| {
            let dead = self.dead.get(host);
            dead.is_some_and(|spans| spans.overlap(from, until))
        };
        let mut hosts = self
            .eligible
            .iter()
            .filter(|((of, _), _)| *of == flow.service);
        if hosts
            .clone()
            .any(|((_, host), spans)| spans.overlap(served, until) && is_dead(host, from))
        {
            return true;
        }
        !hosts.any(|((_, host), spans)| spans.cover(before, until) && !is_dead(host, before))
    }

    /// A moment as seconds from the start.
    pub fn moment(&self, at: Instant) -> String {
        let seconds = at.saturating_duration_since(self.start).as_secs_f64();
        format!("{seconds:7.3} s")
    }

    /// All that was done, a line each.
    pub fn story(&self) -> String {
        let mut text = String::new();
        for (at, what) in &self.actions {
            let _ = writeln!(text, "  {} {what}", self.moment(*at));
        }
        text
    }

    /// A flow with all that befell it.
    pub fn tell(&self, flow: &Record) -> String {
        let mut text = format!(
            "{} flow of {} from {}, opened at {}, {} answers\n",
            flow.protocol.name(),
            flow.service,
            flow.local.map_or("?".to_owned(), |local| local.to_string()),
            self.moment(flow.opened),
            flow.answers
        );
        for event in &flow.events {
            let mark = if self.explains(flow, event) { ' ' } else { '!' };
            let _ = writeln!(
                text,
                "  {mark} {} {:?}, last answer {} by {}",
                self.moment(event.at),
                event.what,
                self.moment(event.since),
                event.backend.as_deref().unwrap_or("nobody")
            );
        }
        text
    }
}
