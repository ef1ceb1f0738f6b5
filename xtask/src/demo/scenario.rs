//! What happens in the demo.

use std::mem::take;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use integration::topology::{Family, Mode, Site};
use integration::try_eventually;
use nix::sys::signal::Signal;
use serde_json::json;

use super::bars::bars;
use super::tally::{Outage, Summary, Tally};
use super::traffic::{self, Answer};
use crate::console::Console;

const SERVICE: &str = "web";
/// Requests in each phase, that is between two changes.
const PHASE_REQUESTS: u64 = 440;
/// Requests that one curl sends, and how long that takes at least: a pace at
/// which one can watch.
const BATCH: usize = 20;
const BATCH_TIME: Duration = Duration::from_millis(100);
/// How often the client must ask anew who has the VIP in each phase.
const ARP_ROUNDS: u32 = 3;

/// Plays the scenario in a lab with four backends in which nothing runs yet
/// but nginx.
pub fn play(console: &Console, site: &mut Site, family: Family) -> anyhow::Result<Summary> {
    let preparation = match site.mode() {
        Mode::Dr => Some("the VIP on lo, and silence about it"),
        Mode::Tun => Some("the VIP on lo, silence, and decapsulation"),
        Mode::Nat(_) => None,
    };
    if let Some(preparation) = preparation {
        console.step(&format!("lb-agent apply on b1, b2, b3: {preparation}"));
        for index in 0..3 {
            site.agent_apply(index)?;
        }
    }
    console.step("lb-ctl up on the director");
    site.start_director(&[])?;
    let play = Play {
        console,
        site,
        family,
        tally: Mutex::default(),
        stop: AtomicBool::new(false),
        remarks: Mutex::new(["", "", "", "not there yet"]),
        owners: Mutex::default(),
    };
    play.create_service()?;
    thread::scope(|scope| {
        let client = scope.spawn(|| play.client());
        let changes = play.changes();
        play.stop.store(true, Ordering::Relaxed);
        let traffic = client
            .join()
            .unwrap_or_else(|e| std::panic::resume_unwind(e));
        traffic.and(changes)
    })?;
    Ok(play.summary())
}

/// What `lb-ctl up` printed last, for the case that something went wrong.
pub fn director_log(site: &Site) -> String {
    let Some(process) = &site.lb_ctl else {
        return String::new();
    };
    let log = process.log();
    let lines: Vec<&str> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(20)..];
    format!("lb-ctl printed last:\n{}", last.join("\n"))
}

/// A scenario that is under way: one thread is the client, the other makes
/// the changes and draws.
struct Play<'a> {
    console: &'a Console,
    site: &'a Site,
    family: Family,
    tally: Mutex<Tally>,
    stop: AtomicBool,
    /// What the bars say of each backend.
    remarks: Mutex<[&'static str; 4]>,
    /// Who had the VIP whenever the client had asked anew.
    owners: Mutex<Vec<String>>,
}

impl Play<'_> {
    fn create_service(&self) -> anyhow::Result<()> {
        self.console.step(&format!(
            "PUT /v1/services/{SERVICE}: {}, port 80, backends b1, b2, b3",
            self.family.vip()
        ));
        let mut service = self.site.service(SERVICE, self.family, &[0, 1, 2]);
        service["health_check"]["interval_ms"] = json!(250);
        service["health_check"]["timeout_ms"] = json!(250);
        let path = format!("/v1/services/{SERVICE}");
        self.site.api().put(&path, &service)?.ok()?;
        for index in 0..3 {
            self.wait_for(index, "active")?;
        }
        Ok(())
    }

    /// The changes, each followed by a phase of traffic.
    fn changes(&self) -> anyhow::Result<()> {
        let api = self.site.api();
        let backends = format!("/v1/services/{SERVICE}/backends");
        let backend = |index: usize| format!("{backends}/{}", self.address(index));

        self.console.step("traffic from the client");
        self.phase(&[])?;

        self.console.step("adding b4");
        if !matches!(self.site.mode(), Mode::Nat(_)) {
            self.site.agent_apply(3)?;
        }
        let body = json!({"address": self.address(3), "weight": 1});
        api.post(&backends, &body)?.ok()?;
        self.wait_for(3, "active")?;
        self.remark(3, "added");
        self.phase(&[])?;

        self.console.step("draining b1: weight 0");
        api.patch(&backend(0), &json!({"weight": 0}))?.ok()?;
        self.remark(0, "drained");
        self.phase(&["b1"])?;

        self.console.step("removing b2");
        api.delete(&backend(1))?.ok()?;
        self.remark(1, "removed");
        self.phase(&["b1", "b2"])?;

        self.console.step("killing the nginx of b3");
        self.kill_b3()?;
        self.phase(&["b1", "b2", "b3"])
    }

    fn kill_b3(&self) -> anyhow::Result<()> {
        let nginx = self.site.backends[2]
            .nginx
            .as_ref()
            .context("b3 has no nginx")?;
        let start = Instant::now();
        self.tally().outage = Outage {
            start: Some(start),
            end: None,
        };
        nginx.process().kill(Signal::SIGKILL)?;
        self.remark(2, "killed");
        self.wait_for(2, "down")?;
        let end = Instant::now();
        self.tally().outage.end = Some(end);
        let noticed = end - start;
        self.console.line(&format!(
            "  noticed after {:.1} s; requests that met it meanwhile are tried once more",
            noticed.as_secs_f64()
        ));
        Ok(())
    }

    /// Waits for traffic since the last change, makes the client ask anew who
    /// has the VIP, and shows the shares. The backends named in `idle` must
    /// get nothing any more.
    fn phase(&self, idle: &[&str]) -> anyhow::Result<()> {
        // Requests that were under way at the change may still tell of the
        // time before it.
        self.wait_for_requests(2 * BATCH as u64)?;
        self.tally().phase.clear();
        for _ in 0..ARP_ROUNDS {
            self.wait_for_requests(PHASE_REQUESTS / u64::from(ARP_ROUNDS))?;
            self.ask_anew()?;
        }
        let phase = take(&mut self.tally().phase);
        for line in bars(&self.names(), &phase) {
            self.console.line(&line);
        }
        for name in idle {
            let stray = phase.get(*name).copied().unwrap_or_default();
            ensure!(
                stray == 0,
                "{name} got {stray} new requests that it should not have got"
            );
        }
        Ok(())
    }

    fn wait_for_requests(&self, more: u64) -> anyhow::Result<()> {
        let goal = self.tally().requests + more;
        try_eventually("requests to be answered", Duration::from_secs(60), || {
            self.draw();
            let seen = self.tally().requests;
            (seen >= goal || self.stop.load(Ordering::Relaxed))
                .then_some(())
                .ok_or_else(|| format!("{seen} of {goal}"))
        })
    }

    /// Empties the neighbour table in which the VIP stands; the next request
    /// fills it.
    fn ask_anew(&self) -> anyhow::Result<()> {
        let (seeker, _) = self.site.vip_seeker();
        seeker.flush_neighbours()?;
        let owner = try_eventually(
            "the VIP to be found",
            Duration::from_secs(10),
            || match self.site.vip_owner(self.family) {
                Ok(owner) if owner != "nobody" => Ok(owner),
                Ok(owner) => Err(owner),
                Err(e) => Err(format!("{e:#}")),
            },
        )?;
        lock(&self.owners).push(owner);
        Ok(())
    }

    /// The client: requests until it is told to stop.
    fn client(&self) -> anyhow::Result<()> {
        let result = self.send_until_stopped();
        // Nobody waits for a client that has given up.
        self.stop.store(true, Ordering::Relaxed);
        result
    }

    fn send_until_stopped(&self) -> anyhow::Result<()> {
        let mut to_retry = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            let answers = traffic::send(&self.site.client, self.family, BATCH)?;
            let outage = self.tally().outage;
            for answer in answers {
                match answer {
                    Answer::From(backend) => self.tally().answered(&backend),
                    Answer::Failed(_) if outage.touches(start, Instant::now()) => to_retry += 1,
                    Answer::Failed(why) => self.tally().failed(why),
                }
            }
            if outage.end.is_some() && to_retry > 0 {
                self.retry(take(&mut to_retry))?;
            }
            sleep(BATCH_TIME.saturating_sub(start.elapsed()));
        }
        ensure!(to_retry == 0, "{to_retry} requests were never tried again");
        Ok(())
    }

    /// The second and last attempt of requests that met the dead backend.
    fn retry(&self, requests: usize) -> anyhow::Result<()> {
        for answer in traffic::send(&self.site.client, self.family, requests)? {
            let mut tally = self.tally();
            match answer {
                Answer::From(backend) => {
                    tally.retried += 1;
                    tally.answered(&backend);
                }
                Answer::Failed(why) => tally.failed(format!("{why}, at the second attempt")),
            }
        }
        Ok(())
    }

    fn summary(&self) -> Summary {
        let tally = self.tally();
        for failure in &tally.failures {
            self.console.line(&format!("  a request failed: {failure}"));
        }
        let owners = lock(&self.owners);
        let stranger = owners.iter().find(|owner| *owner != "director");
        let owner = stranger.or(owners.first()).map_or("nobody", String::as_str);
        self.console.step(&format!(
            "{} times the {} asked anew who has the VIP: {owner}",
            owners.len(),
            self.site.vip_seeker().0.name()
        ));
        let of = |name: &str| tally.total.get(name).copied().unwrap_or_default();
        Summary {
            mode: self.site.mode().name(),
            requests: tally.requests,
            failed: tally.failed,
            retried: tally.retried,
            backends: self
                .names()
                .iter()
                .map(|(name, address, _)| (address.clone(), of(name)))
                .collect(),
            vip_mac_owner: owner.to_owned(),
        }
    }

    fn wait_for(&self, index: usize, state: &str) -> anyhow::Result<()> {
        let patience = Duration::from_secs(15);
        self.site
            .wait_backend(SERVICE, &self.address(index), state, patience)
    }

    fn draw(&self) {
        let lines = bars(&self.names(), &self.tally().phase);
        self.console.live(lines);
    }

    fn names(&self) -> Vec<(String, String, &'static str)> {
        let remarks = *lock(&self.remarks);
        let backends = self.site.backends.iter().zip(remarks).enumerate();
        backends
            .map(|(i, (b, remark))| (b.name().to_owned(), self.address(i), remark))
            .collect()
    }

    fn address(&self, index: usize) -> String {
        self.site.backend_name(self.family, 80, index)
    }

    fn remark(&self, index: usize, remark: &'static str) {
        lock(&self.remarks)[index] = remark;
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
