use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Config, Service};

/// One difference between two desired states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// What differs, such as `service web: backend 203.0.113.21: weight`.
    pub subject: String,
    /// Its value before; absent if it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// Its value after; absent if it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = &self.subject;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                write!(f, "~ {subject}: {} -> {}", Plain(before), Plain(after))
            }
            (None, Some(after)) => write!(f, "+ {subject}: {}", Plain(after)),
            (Some(before), None) => write!(f, "- {subject}: {}", Plain(before)),
            (None, None) => write!(f, "  {subject}"),
        }
    }
}

/// Shows strings without quotes.
struct Plain<'a>(&'a Value);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::String(text) => f.write_str(text),
            value => value.fmt(f),
        }
    }
}

impl Config {
    /// What must change for `self` to become `after`, over the union of what
    /// both have. Empty if and only if they are equal but for the order of
    /// services and backends.
    pub fn differences(&self, after: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        if self.settings != after.settings {
            let (a, b) = (json(&self.settings), json(&after.settings));
            fields("settings", &a, &b, &mut found);
        }
        let old: BTreeMap<_, _> = self.services.iter().map(|s| (&s.name, s)).collect();
        let new: BTreeMap<_, _> = after.services.iter().map(|s| (&s.name, s)).collect();
        let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
        for name in names {
            let subject = format!("service {name}");
            service(&subject, old.get(*name), new.get(*name), &mut found);
        }
        found
    }
}

fn service(
    subject: &str,
    old: Option<&&Service>,
    new: Option<&&Service>,
    found: &mut Vec<Difference>,
) {
    match (old, new) {
        (Some(old), Some(new)) => {
            let spec = |service: &Service| {
                let mut value = json(service);
                value
                    .as_object_mut()
                    .map(|fields| fields.remove("backends"));
                value
            };
            fields(subject, &spec(old), &spec(new), found);
        }
        _ => found.push(Difference {
            subject: subject.to_owned(),
            before: old.map(|service| summary(service)),
            after: new.map(|service| summary(service)),
        }),
    }
    let weights = |service: Option<&&Service>| -> BTreeMap<_, _> {
        let backends = service.into_iter().flat_map(|service| &service.backends);
        backends.map(|b| (b.address, b.weight)).collect()
    };
    let (old, new) = (weights(old), weights(new));
    let addresses: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for address in addresses {
        let (before, after) = (old.get(address), new.get(address));
        if before != after {
            found.push(Difference {
                subject: format!("{subject}: backend {address}: weight"),
                before: before.map(json),
                after: after.map(json),
            });
        }
    }
}

fn summary(service: &Service) -> Value {
    let Service {
        vip,
        port,
        protocol,
        mode,
        full_nat,
        scheduler,
        ping,
        ..
    } = service;
    let full = if *full_nat { " with full NAT" } else { "" };
    let ping = ping.note();
    Value::String(format!(
        "{vip} {protocol} port {port}, {mode}{full}, {scheduler}{ping}"
    ))
}

/// Differences between the fields of two objects, nested ones included.
fn fields(subject: &str, old: &Value, new: &Value, found: &mut Vec<Difference>) {
    if old == new {
        return;
    }
    let (Value::Object(a), Value::Object(b)) = (old, new) else {
        found.push(Difference {
            subject: subject.to_owned(),
            before: Some(old.clone()).filter(|value| !value.is_null()),
            after: Some(new.clone()).filter(|value| !value.is_null()),
        });
        return;
    };
    let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    for name in names {
        let subject = format!("{subject}: {name}");
        // Who may read a log may not know the key.
        if name == "hash_key" {
            if a.get(name) != b.get(name) {
                let hidden = || Some(Value::from("(secret)"));
                found.push(Difference {
                    subject,
                    before: hidden(),
                    after: hidden(),
                });
            }
            continue;
        }
        let value = |object: &serde_json::Map<String, Value>| {
            object.get(name).cloned().unwrap_or(Value::Null)
        };
        fields(&subject, &value(a), &value(b), found);
    }
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("the desired state is plain data")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use clap::ValueEnum;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        Backend, CheckType, HealthCheck, Mode, OtherProtocols, Ping, Protocol, Scheduler, Settings,
        text,
    };

    fn config(text: Value) -> Config {
        text::from_json_value(text).unwrap()
    }

    fn shown(old: &Config, new: &Config) -> Vec<String> {
        old.differences(new)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn differences_are_over_what_either_has() {
        let old = config(serde_json::json!({
            "settings": {"hash_key": "old"},
            "services": [
                {"name": "gone", "vip": "203.0.113.9", "port": 1, "protocol": "udp", "mode": "dr"},
                {"name": "web", "vip": "203.0.113.10", "port": 80, "protocol": "tcp", "mode": "dr",
                 "backends": [{"address": "203.0.113.21"}, {"address": "203.0.113.22"}]}],
        }));
        let new = config(serde_json::json!({
            "settings": {"hash_key": "new"},
            "services": [
                {"name": "web", "vip": "203.0.113.10", "port": 81, "protocol": "tcp", "mode": "dr",
                 "health_check": {"type": "tcp"},
                 "backends": [{"address": "203.0.113.23"}, {"address": "203.0.113.22", "weight": 0}]}],
        }));
        let lines = shown(&old, &new);
        assert_eq!(lines[0], "~ settings: hash_key: (secret) -> (secret)");
        assert_eq!(lines[1], "- service gone: 203.0.113.9 udp port 1, dr, mh");
        assert!(
            lines[2].starts_with("+ service web: health_check: {"),
            "{}",
            lines[2]
        );
        assert_eq!(
            lines[3..],
            [
                "~ service web: port: 80 -> 81",
                "- service web: backend 203.0.113.21: weight: 1",
                "~ service web: backend 203.0.113.22: weight: 1 -> 0",
                "+ service web: backend 203.0.113.23: weight: 1",
            ]
        );
        assert_eq!(old.differences(&new).len(), new.differences(&old).len());
    }

    #[test]
    fn order_is_no_difference() {
        let a = config(serde_json::json!({"services": [
            {"name": "a", "vip": "203.0.113.10", "port": 80, "protocol": "tcp", "mode": "dr",
             "backends": [{"address": "203.0.113.22"}, {"address": "203.0.113.21"}]},
            {"name": "0", "vip": "203.0.113.11", "port": 80, "protocol": "tcp", "mode": "dr"}]}));
        let mut b = a.clone();
        b.normalise();
        assert_ne!(a, b);
        assert_eq!(shown(&a, &b), [""; 0]);
    }

    fn service(name: u8) -> impl Strategy<Value = Service> {
        let check = prop::option::of((any::<bool>(), 50_u32..99, "[ -~]{1,9}").prop_map(
            |(http, interval_ms, text)| HealthCheck {
                interval_ms,
                expect_body: http.then_some(text),
                ..HealthCheck::new(if http {
                    CheckType::Http
                } else {
                    CheckType::Tcp
                })
            },
        ));
        let ping = prop::sample::select(Ping::value_variants());
        let backends = prop::collection::btree_map(1_u8..6, 0_u32..3, 0..4);
        (1_u16..3, any::<bool>(), ping, check, backends).prop_map(
            move |(port, is_tcp, ping, health_check, backends)| Service {
                name: format!("s{name}").parse().unwrap(),
                vip: [192, 0, 2, name].into(),
                port,
                protocol: if is_tcp { Protocol::Tcp } else { Protocol::Udp },
                mode: Mode::Dr,
                full_nat: false,
                scheduler: Scheduler::Mh,
                ping,
                health_check,
                backends: backends
                    .into_iter()
                    .map(|(last, weight)| Backend {
                        address: IpAddr::from([203, 0, 113, last]).into(),
                        weight,
                    })
                    .collect(),
            },
        )
    }

    /// Desired states that are alike often enough.
    fn configs() -> impl Strategy<Value = Config> {
        let services = (service(0), service(1), service(2))
            .prop_map(|(a, b, c)| vec![a, b, c])
            .prop_flat_map(|all| prop::sample::subsequence(all, 0..=3))
            .prop_shuffle();
        let other_protocols = prop::sample::select(OtherProtocols::value_variants());
        let settings = ("[a-b\u{e9}\"]?", other_protocols);
        (settings, services).prop_map(|((hash_key, other_protocols), services)| Config {
            settings: Settings {
                hash_key,
                other_protocols,
                ..Settings::default()
            },
            services,
        })
    }

    proptest! {
        #[test]
        fn no_difference_means_equal(a in configs(), b in configs()) {
            let normal = |config: &Config| {
                let mut config = config.clone();
                config.normalise();
                config
            };
            prop_assert_eq!(a.differences(&b).is_empty(), normal(&a) == normal(&b));
            prop_assert_eq!(a.differences(&normal(&a)), Vec::new());
        }

        #[test]
        fn every_desired_state_survives_json_and_toml(config in configs()) {
            config.validate().unwrap();
            let json = serde_json::to_vec(&config).unwrap();
            prop_assert_eq!(&text::from_json::<Config>(&json).unwrap(), &config);
            let toml = toml::to_string_pretty(&config).unwrap();
            prop_assert_eq!(&text::from_toml::<Config>(&toml).unwrap(), &config);
        }
    }
}
