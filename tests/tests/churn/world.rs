//! The lab, what is wanted of it, and how one comes from one wish to the next.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use integration::talk::Echo;
use integration::topology::{Family, Place, Site};
use integration::try_eventually;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::crowd::{Crowd, What};
use crate::history::History;
use crate::place;
use crate::random::Random;
use crate::service::{Service, Services, outline};

/// How long a change may take to be seen.
pub const LONG: Duration = Duration::from_secs(30);
/// Seconds after which a flow is forgotten: several times what passes from one
/// question to the next, and short enough that slots settle meanwhile.
const IDLE: u32 = 4;
const HOSTS: u8 = 5;
/// Ports of the pool.
pub const POOL_PORTS: std::ops::RangeInclusive<u16> = 20_000..=23_999;

/// A request to the API.
pub struct Request {
    pub method: &'static str,
    pub path: String,
    pub body: Option<Value>,
}

/// How a change is made.
pub enum How {
    Request(Request),
    /// With `lb-ctl apply`.
    Apply,
}

pub struct World {
    /// Taken out when all flows shall end.
    pub crowd: Option<Crowd>,
    /// The servers of each host, unless they are dead.
    pub echoes: Vec<Option<Echo>>,
    pub site: Site,
    pub services: Services,
    /// Those that were removed and may come back.
    pub removed: Services,
    pub history: History,
    pub random: Random,
    /// Events of each flow that were judged.
    judged: Vec<usize>,
}

impl World {
    pub fn new(name: &str, place: Place, seed: u64) -> anyhow::Result<Self> {
        let site = place::build(name, place, HOSTS)?;
        let mut random = Random::new(seed);
        let hosts: Vec<usize> = (0..site.backends.len()).collect();
        let services = Service::first(&mut random, &hosts);
        let crowd = Crowd::start(&site.client, seed);
        let mut echoes = Vec::new();
        for &host in &hosts {
            echoes.push(Some(place::start_echo(&site, host)?));
        }
        Ok(Self {
            crowd: Some(crowd),
            echoes,
            site,
            services,
            removed: Services::new(),
            history: History::new(),
            random,
            judged: Vec::new(),
        })
    }

    /// Starts `lb-ctl`, gives it the first services, and opens the flows.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        self.site.start_director(&[])?;
        let services = std::mem::take(&mut self.services);
        let put = self.put_config(&services);
        self.change("the first services", services, How::Request(put))
    }

    pub fn name(&self, host: usize) -> String {
        self.site.backends[host].name().to_owned()
    }

    pub fn hosts(&self) -> Vec<usize> {
        (0..self.site.backends.len()).collect()
    }

    pub fn is_alive(&self, host: usize) -> bool {
        self.echoes[host].is_some()
    }

    /// The whole desired state.
    fn config(&self, services: &Services) -> Value {
        let place = match self.site.mode() {
            integration::topology::Mode::Nat(nat) => nat,
            _ => unreachable!("the lab is in NAT mode"),
        };
        let services = services.iter().map(|(name, s)| s.to_json(name, &self.site));
        json!({
            "settings": {
                "tcp_idle_timeout": IDLE, "udp_idle_timeout": IDLE,
                "nat_pool": [place.pool(Family::V4), place.pool(Family::V6)],
                "nat_ports": {"first": POOL_PORTS.start(), "last": POOL_PORTS.end()},
                "nat_timeouts": {
                    "syn": 4, "established": IDLE, "fin": 2, "closed": 2, "udp": IDLE,
                },
            },
            "services": services.collect::<Value>(),
        })
    }

    pub fn put_config(&self, services: &Services) -> Request {
        Request {
            method: "PUT",
            path: "/v1/config".to_owned(),
            body: Some(self.config(services)),
        }
    }

    /// Makes a change, and notes from when to when what may follow from it.
    pub fn change(&mut self, what: &str, after: Services, how: How) -> anyhow::Result<()> {
        self.announce(what, &after);
        match how {
            How::Request(request) => {
                send(&self.site.api(), &request)?;
            }
            How::Apply => self.apply(&after)?,
        }
        self.accept(after)
    }

    /// Makes a change and kills `lb-ctl` meanwhile. What became of the change
    /// is seen afterwards: all or nothing, and all if it was acknowledged.
    pub fn change_and_kill(
        &mut self,
        what: &str,
        after: Services,
        request: Request,
    ) -> anyhow::Result<()> {
        let what = format!("{what}, and kill -9 meanwhile");
        self.announce(&what, &after);
        let api = self.site.api();
        let pause = self
            .random
            .between(Duration::ZERO, Duration::from_millis(40));
        let sending = std::thread::spawn(move || send(&api, &request));
        sleep(pause);
        self.site.end_director(Signal::SIGKILL)?;
        let sent = sending.join();
        let was_acknowledged = matches!(sent, Ok(Ok(())));
        self.site.start_director(&[])?;
        let running = self.outline()?;
        let after_outline = outline(&self.config(&after));
        let before_outline = outline(&self.config(&self.services));
        if running == after_outline {
            self.history.did("started again: the change was made");
            self.accept(after)
        } else if running == before_outline && !was_acknowledged {
            self.history.did("started again: the change was not made");
            self.accept(self.services.clone())
        } else {
            bail!(
                "after kill -9, with the change acknowledged: {was_acknowledged}, there is \
                 {running:?}, which is neither {before_outline:?} nor {after_outline:?}"
            )
        }
    }

    /// Before a change: what may be so from now on.
    fn announce(&mut self, what: &str, after: &Services) {
        self.history.did(what);
        for (name, host) in eligible(after) {
            let host = self.name(host);
            self.history.eligible(&name, &host, true);
        }
        let gone = self.services.keys().filter(|n| !after.contains_key(*n));
        for name in gone.cloned().collect::<Vec<_>>() {
            if let Some(crowd) = &self.crowd {
                crowd.leave(&name);
            }
            self.history.absent(&name, true);
        }
        let new = after.keys().filter(|n| !self.services.contains_key(*n));
        for name in new {
            self.history.absent(name, true);
        }
    }

    /// After a change: what must be so from now on.
    fn accept(&mut self, after: Services) -> anyhow::Result<()> {
        let running = self.outline()?;
        let wanted = outline(&self.config(&after));
        ensure!(running == wanted, "{running:?} in place of {wanted:?}");
        let may: BTreeSet<_> = eligible(&after).collect();
        for name in after.keys().chain(self.services.keys()) {
            for host in self.hosts() {
                if !may.contains(&(name.clone(), host)) {
                    let host = self.name(host);
                    self.history.eligible(name, &host, false);
                }
            }
        }
        let before = std::mem::replace(&mut self.services, after);
        for name in self.services.keys().cloned().collect::<Vec<_>>() {
            if !before.contains_key(&name) {
                self.removed.remove(&name);
                self.welcome(&name)?;
            }
        }
        let gone = before.into_iter();
        let gone = gone.filter(|(name, _)| !self.services.contains_key(name));
        self.removed.extend(gone.collect::<Services>());
        Ok(())
    }

    /// Waits until a new service serves, and opens flows to it.
    fn welcome(&mut self, name: &str) -> anyhow::Result<()> {
        self.wait_active(name)?;
        let service = &self.services[name];
        let active = service.weighted().filter(|host| self.is_alive(*host));
        for host in active.collect::<Vec<_>>() {
            let host = self.name(host);
            self.history.proven(name, &host);
        }
        self.history.absent(name, false);
        if let Some(crowd) = &self.crowd {
            // Of a predecessor, perhaps with another address.
            crowd.close(name);
            crowd.open(service.line(name));
        }
        Ok(())
    }

    /// Waits until all backends that shall get new flows do.
    pub fn wait_active(&self, name: &str) -> anyhow::Result<()> {
        let service = &self.services[name];
        let wanted = service.weighted().filter(|host| self.is_alive(*host));
        let wanted: BTreeSet<String> = wanted.map(|h| service.address(&self.site, h)).collect();
        self.site
            .wait_service(name, "its backends active", LONG, |status| {
                let backends = status["backends"].as_array().into_iter().flatten();
                let active = backends.filter(|b| b["state"] == "active");
                let active: BTreeSet<&str> = active.filter_map(|b| b["address"].as_str()).collect();
                wanted.iter().all(|address| active.contains(&**address))
            })?;
        Ok(())
    }

    fn outline(&self) -> anyhow::Result<crate::service::Outline> {
        Ok(outline(&self.site.api().get("/v1/config")?.ok()?.json()?))
    }

    /// `lb-ctl plan` says that there is something to do, `lb-ctl apply` does
    /// it, and then there is nothing.
    fn apply(&self, services: &Services) -> anyhow::Result<()> {
        let file = self.site.lab.dir().join("wanted.json");
        std::fs::write(&file, self.config(services).to_string())?;
        let file = file.to_str().context("not text")?;
        self.site.lb_ctl(&["apply", "-f", file])?;
        let plan = self.site.lb_ctl(&["plan", "-f", file])?;
        ensure!(plan == "nothing to change\n", "{plan}");
        Ok(())
    }

    /// Looks at all that befell flows since the last time.
    ///
    /// # Errors
    /// When something is not explained by what was done.
    pub fn judge(&mut self) -> anyhow::Result<()> {
        let Some(crowd) = &self.crowd else {
            return Ok(());
        };
        ensure!(!crowd.has_panicked(), "the clients have panicked");
        for (from, until) in crowd.slept() {
            self.history.slept(from, until);
        }
        let records = crowd.records();
        self.judged.resize(records.len(), 0);
        let mut wrong = Vec::new();
        for (record, judged) in records.iter().zip(&mut self.judged) {
            let new = record.events[*judged..].iter();
            if new.clone().any(|e| !self.history.explains(record, e)) {
                wrong.push(self.history.tell(record));
            }
            *judged = record.events.len();
        }
        ensure!(
            wrong.is_empty(),
            "of {} flows {} met what nothing explains:\n{}",
            records.len(),
            wrong.len(),
            wrong[..wrong.len().min(12)].join("")
        );
        Ok(())
    }

    /// Prints what the flows went through.
    pub fn tally(&self) {
        let records = self.crowd.as_ref().map_or(Vec::new(), Crowd::records);
        let events = |is_it: fn(&What) -> bool| {
            let events = records.iter().flat_map(|record| &record.events);
            events.filter(|event| is_it(&event.what)).count()
        };
        eprintln!(
            "{} steps; {} flows, {} answers, {} broken, {} refused, {} moved, {} answers lost",
            self.history.steps(),
            records.len(),
            records.iter().map(|record| record.answers).sum::<u64>(),
            events(|what| matches!(what, What::Broken(_))),
            events(|what| matches!(what, What::Refused(_))),
            events(|what| matches!(what, What::Changed { .. })),
            events(|what| matches!(what, What::Lost(_))),
        );
    }

    /// Waits until every open flow has had an answer, or has ended, since this
    /// was called.
    pub fn round(&self, when: &str) -> anyhow::Result<()> {
        let Some(crowd) = &self.crowd else {
            return Ok(());
        };
        let (begin, before) = (Instant::now(), crowd.records());
        try_eventually(&format!("every flow to talk {when}"), LONG, || {
            let now = crowd.records();
            let pairs = now.iter().zip(&before);
            let silent = pairs.filter(|(now, before)| {
                now.is_open
                    && now.answers < before.answers + 2
                    && self.services.contains_key(&now.service)
            });
            let silent: Vec<String> = silent.map(|(now, _)| self.history.tell(now)).collect();
            match silent.first() {
                None => Ok(()),
                Some(first) => Err(format!(
                    "{} silent since {}, such as {first}",
                    silent.len(),
                    self.history.moment(begin)
                )),
            }
        })
    }
}

fn eligible(services: &Services) -> impl Iterator<Item = (String, usize)> {
    let services = services.iter();
    services.flat_map(|(name, s)| s.weighted().map(|host| (name.clone(), host)))
}

fn send(api: &integration::api::Api, request: &Request) -> anyhow::Result<()> {
    let Request { method, path, body } = request;
    let body = body.as_ref().map(Value::to_string);
    let reply = api.request(method, path, &[], body.as_deref())?;
    reply.ok().with_context(|| format!("{method} {path}"))?;
    Ok(())
}
