//! The results as a table or as JSON.

use serde_json::json;

use crate::time::{Measured, Spread};

/// Prints all results.
pub fn print(results: &[Measured], as_json: bool) {
    if as_json {
        let cases: Vec<_> = results.iter().map(to_json).collect();
        println!("{}", json!({"unit": "net ns per packet", "cases": cases}));
        return;
    }
    println!(
        "{:<46} {:>7} {:>15} {:>10} {:>10}",
        "case", "net ns", "quartiles", "x encap", "x swap"
    );
    for result in results {
        let Spread { median, low, high } = result.net;
        println!(
            "{:<46} {median:>7.1} {:>15} {:>10.2} {:>10.1}",
            result.name,
            format!("{low:.1} to {high:.1}"),
            median / result.encapsulation.median,
            median / result.mac_swap.median,
        );
    }
    let floor = |spread: fn(&Measured) -> Spread| {
        let mut medians: Vec<f64> = results.iter().map(|r| spread(r).median).collect();
        medians.sort_by(f64::total_cmp);
        medians[medians.len() / 2]
    };
    println!(
        "floors, median over the cases: constant encapsulation {:.1} ns, MAC swap {:.1} ns",
        floor(|r| r.encapsulation),
        floor(|r| r.mac_swap)
    );
}

fn to_json(result: &Measured) -> serde_json::Value {
    let spread = |s: &Spread| json!({"median": s.median, "low": s.low, "high": s.high});
    json!({
        "name": result.name,
        "net": spread(&result.net),
        "constant_encapsulation": spread(&result.encapsulation),
        "mac_swap": spread(&result.mac_swap),
        "ratio_to_constant_encapsulation": result.net.median / result.encapsulation.median,
    })
}
