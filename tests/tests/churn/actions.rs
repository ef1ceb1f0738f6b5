//! What is done at random.

use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::place;
use crate::service::{Service, Services};
use crate::world::{How, Request, World};

/// Of so many changes that leave a service without anybody for new flows, one
/// is made.
const DESERTED: usize = 5;
/// Of so many changes, `lb-ctl` is killed in the middle of one.
const KILLED: usize = 10;
/// Of so many times that a host could be started again, it is once.
const REVIVED: usize = 3;
/// How many hosts are dead at a time.
const DEAD: usize = 1;

/// A change of one thing.
struct Change {
    what: String,
    after: Services,
    request: Request,
}

impl World {
    /// Does anything.
    pub fn act(&mut self) -> anyhow::Result<()> {
        match self.random.below(24) {
            0..=3 => self.edit(Self::add),
            4..=6 => self.edit(Self::remove),
            7..=8 => self.edit(|world| world.weigh(true)),
            9..=12 => self.edit(|world| world.weigh(false)),
            13..=14 => self.edit(Self::create),
            15 => self.edit(Self::abolish),
            16..=17 => self.apply_any(),
            18 => self.restart(Signal::SIGTERM, "restart"),
            19 => self.restart(Signal::SIGKILL, "kill -9, then start"),
            _ => self.die_or_live(),
        }
    }

    /// Makes a change, if there is such a one now.
    fn edit(&mut self, change: impl Fn(&mut Self) -> Option<Change>) -> anyhow::Result<()> {
        let Some(change) = change(self) else {
            return Ok(());
        };
        let Change {
            what,
            after,
            request,
        } = change;
        if self.random.one_in(KILLED) {
            self.change_and_kill(&what, after, request)
        } else {
            self.change(&what, after, How::Request(request))
        }
    }

    fn any_service(&mut self) -> Option<String> {
        let names: Vec<&String> = self.services.keys().collect();
        self.random.pick(&names).cloned()
    }

    fn any_member(&mut self) -> Option<(String, usize)> {
        let name = self.any_service()?;
        let members: Vec<usize> = self.services[&name].members.keys().copied().collect();
        Some((name, self.random.pick(&members)?))
    }

    fn add(&mut self) -> Option<Change> {
        let name = self.any_service()?;
        let hosts = self.hosts().into_iter();
        let others = hosts.filter(|h| !self.services[&name].members.contains_key(h));
        let host = self.random.pick(&others.collect::<Vec<_>>())?;
        let weight = 1 + self.random.below(4) as u32;
        let mut after = self.services.clone();
        let service = after.get_mut(&name)?;
        service.members.insert(host, weight);
        let address = service.address(&self.site, host);
        Some(Change {
            what: format!("{name}: add {} with weight {weight}", self.name(host)),
            request: Request {
                method: "POST",
                path: format!("/v1/services/{name}/backends"),
                body: Some(serde_json::json!({"address": address, "weight": weight})),
            },
            after,
        })
    }

    fn remove(&mut self) -> Option<Change> {
        let (name, host) = self.any_member()?;
        let mut after = self.services.clone();
        let service = after.get_mut(&name)?;
        service.members.remove(&host);
        let request = Request {
            method: "DELETE",
            path: service.path(&name, &self.site, host),
            body: None,
        };
        let what = format!("{name}: remove {}", self.name(host));
        self.unless_deserted(&name, what, after, request)
    }

    fn weigh(&mut self, drain: bool) -> Option<Change> {
        let (name, host) = self.any_member()?;
        let weight = if drain {
            0
        } else {
            1 + self.random.below(6) as u32
        };
        let mut after = self.services.clone();
        let service = after.get_mut(&name)?;
        service.members.insert(host, weight);
        let request = Request {
            method: "PATCH",
            path: service.path(&name, &self.site, host),
            body: Some(serde_json::json!({"weight": weight})),
        };
        let what = format!("{name}: weight of {} {weight}", self.name(host));
        self.unless_deserted(&name, what, after, request)
    }

    /// Most of the time there is somebody for new flows.
    fn unless_deserted(
        &mut self,
        name: &str,
        what: String,
        after: Services,
        request: Request,
    ) -> Option<Change> {
        let is_served = after[name].weighted().any(|host| self.is_alive(host));
        if !is_served && !self.random.one_in(DESERTED) {
            return None;
        }
        Some(Change {
            what,
            after,
            request,
        })
    }

    /// A new service, or one that was removed.
    fn create(&mut self) -> Option<Change> {
        let names: Vec<&String> = self.removed.keys().collect();
        let returning = self.random.pick(&names).cloned();
        let returning = returning.filter(|name| !name.starts_with("more"));
        let (name, mut service) = match returning {
            Some(name) => (name.clone(), self.removed[&name].clone()),
            None => Service::another(&mut self.random, &self.services)?,
        };
        let hosts = self.hosts();
        service.populate(&mut self.random, &hosts);
        if !service.weighted().any(|host| self.is_alive(host)) {
            return None;
        }
        let body = service.to_json(&name, &self.site);
        let mut after = self.services.clone();
        after.insert(name.clone(), service);
        Some(Change {
            what: format!("new service {body}"),
            request: Request {
                method: "PUT",
                path: format!("/v1/services/{name}"),
                body: Some(body),
            },
            after,
        })
    }

    fn abolish(&mut self) -> Option<Change> {
        let name = self.any_service()?;
        let mut after = self.services.clone();
        after.remove(&name);
        Some(Change {
            what: format!("remove service {name}"),
            request: Request {
                method: "DELETE",
                path: format!("/v1/services/{name}"),
                body: None,
            },
            after,
        })
    }

    /// Another whole desired state, some services with other backends, perhaps
    /// one gone and one back.
    fn apply_any(&mut self) -> anyhow::Result<()> {
        let mut after = self.services.clone();
        for _ in 0..1 + self.random.below(6) {
            let Some(name) = self.any_service() else {
                break;
            };
            let hosts = self.hosts();
            let Some(service) = after.get_mut(&name) else {
                continue;
            };
            if self.random.one_in(8) {
                after.remove(&name);
                continue;
            }
            service.populate(&mut self.random, &hosts);
            let served: Vec<usize> = after[&name].weighted().collect();
            if !served.iter().any(|host| self.is_alive(*host)) {
                after.insert(name.clone(), self.services[&name].clone());
            }
        }
        let what = "apply a whole configuration";
        let changed: Vec<String> = after
            .iter()
            .filter(|(name, service)| self.services.get(*name) != Some(service))
            .map(|(name, service)| format!("{name}: {:?}", service.members))
            .collect();
        let what = format!("{what} with {}", changed.join(", "));
        if self.random.one_in(KILLED) {
            let put = self.put_config(&after);
            return self.change_and_kill(&what, after, put);
        }
        self.change(&what, after, How::Apply)
    }

    fn restart(&mut self, signal: Signal, what: &str) -> anyhow::Result<()> {
        self.history.did(what);
        self.site.end_director(signal)?;
        // For a while there is none.
        sleep(
            self.random
                .between(Duration::ZERO, Duration::from_millis(1500)),
        );
        self.site.start_director(&[])?;
        self.history.did("lb-ctl is ready again");
        Ok(())
    }

    /// A host's servers die, or those of the dead one are started again.
    fn die_or_live(&mut self) -> anyhow::Result<()> {
        let dead: Vec<usize> = self
            .hosts()
            .into_iter()
            .filter(|host| !self.is_alive(*host))
            .collect();
        if dead.len() >= DEAD {
            // Not at once: that it is dead takes time to be found out.
            if !self.random.one_in(REVIVED) {
                return Ok(());
            }
            return dead.into_iter().try_for_each(|host| self.revive(host));
        }
        let hosts = self.hosts();
        let Some(host) = self.random.pick(&hosts) else {
            return Ok(());
        };
        let name = self.name(host);
        self.history.did(format!("{name} dies"));
        self.history.dead(&name, true);
        self.echoes[host] = None;
        Ok(())
    }

    /// Starts a dead host's servers again.
    pub fn revive(&mut self, host: usize) -> anyhow::Result<()> {
        let name = self.name(host);
        self.echoes[host] = Some(place::start_echo(&self.site, host)?);
        self.history.dead(&name, false);
        self.history.did(format!("{name} lives again"));
        Ok(())
    }
}
