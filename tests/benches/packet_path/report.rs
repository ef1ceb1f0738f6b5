//! The results as a table or as JSON.

use serde_json::json;

use crate::cases::Yardstick;
use crate::scaling::Scaling;
use crate::time::{Measured, Spread};

/// Prints all results.
pub fn print(results: &[Measured], scaling: &[Scaling], as_json: bool) {
    if as_json {
        let cases: Vec<_> = results.iter().map(|r| to_json(r, results)).collect();
        let scaling: Vec<_> = scaling.iter().map(scaling_to_json).collect();
        println!(
            "{}",
            json!({"unit": "net ns per packet", "cases": cases, "two_cpus": scaling})
        );
        return;
    }
    println!(
        "{:<46} {:>7} {:>15} {:>8} {:>8} {:>8}  target",
        "case", "net ns", "quartiles", "x encap", "x swap", "x memory"
    );
    for result in results {
        let Spread { median, low, high } = result.net;
        println!(
            "{:<46} {median:>7.1} {:>15} {:>8.2} {:>8.1} {:>8.1}  {}",
            result.name,
            format!("{low:.1} to {high:.1}"),
            median / result.encapsulation.median,
            median / result.mac_swap.median,
            median / result.accesses.median,
            Judgement::of(result, results).map_or_else(String::new, |j| j.in_words()),
        );
    }
    let floor = |spread: fn(&Measured) -> Spread| {
        let mut medians: Vec<f64> = results.iter().map(|r| spread(r).median).collect();
        medians.sort_by(f64::total_cmp);
        medians[medians.len() / 2]
    };
    if !results.is_empty() {
        println!(
            "floors, median over the cases: constant encapsulation {:.1} ns, MAC swap {:.1} ns",
            floor(|r| r.encapsulation),
            floor(|r| r.mac_swap)
        );
    }
    if scaling.is_empty() {
        return;
    }
    println!(
        "{:<46} {:>7} {:>15} {:>8}",
        "M packets/s, generator included", "one CPU", "two CPUs", "ratio"
    );
    for result in scaling {
        println!(
            "{:<46} {:>7.2} {:>15.2} {:>8.2}",
            result.name,
            result.one,
            result.two,
            result.ratio()
        );
    }
}

fn scaling_to_json(result: &Scaling) -> serde_json::Value {
    json!({
        "name": result.name,
        "one_cpu_mpps": result.one,
        "two_cpus_mpps": result.two,
        "ratio": result.ratio(),
    })
}

/// A result against its target.
struct Judgement<'a> {
    yardstick: &'a str,
    ratio: f64,
    at_most: f64,
}

impl<'a> Judgement<'a> {
    /// `None` also where what it is compared with was not measured.
    fn of(result: &'a Measured, results: &[Measured]) -> Option<Self> {
        let target = result.target.as_ref()?;
        let (yardstick, one) = match &target.yardstick {
            Yardstick::Encapsulation => ("constant encapsulation", &result.encapsulation),
            Yardstick::Case(name) => {
                let case = results.iter().find(|r| r.name == *name)?;
                (name.as_str(), &case.net)
            }
        };
        Some(Self {
            yardstick,
            ratio: result.net.median / one.median,
            at_most: target.at_most,
        })
    }

    fn is_met(&self) -> bool {
        self.ratio <= self.at_most
    }

    fn in_words(&self) -> String {
        let met = if self.is_met() { "met" } else { "missed" };
        let Self {
            yardstick,
            ratio,
            at_most,
        } = self;
        format!("{met}: {ratio:.2} x {yardstick}, at most {at_most:.2}")
    }

    fn to_json(&self) -> serde_json::Value {
        json!({
            "yardstick": self.yardstick,
            "ratio": self.ratio,
            "at_most": self.at_most,
            "met": self.is_met(),
        })
    }
}

fn to_json(result: &Measured, results: &[Measured]) -> serde_json::Value {
    let spread = |s: &Spread| json!({"median": s.median, "low": s.low, "high": s.high});
    json!({
        "name": result.name,
        "net": spread(&result.net),
        "constant_encapsulation": spread(&result.encapsulation),
        "mac_swap": spread(&result.mac_swap),
        "memory_accesses_alone": spread(&result.accesses),
        "ratio_to_constant_encapsulation": result.net.median / result.encapsulation.median,
        "target": Judgement::of(result, results).map(|j| j.to_json()),
    })
}
