//! The share of each backend as bars.

use std::collections::BTreeMap;

/// Width of a bar that stands for all requests. A whole line fits a terminal
/// of 80 columns: one that wraps could not be redrawn.
const WIDTH: usize = 24;

/// One line a backend: `names` holds name, address and a remark for each.
pub fn bars(names: &[(String, String, &str)], counts: &BTreeMap<String, u64>) -> Vec<String> {
    let total: u64 = counts.values().sum::<u64>().max(1);
    let count = |name: &str| counts.get(name).copied().unwrap_or_default();
    names
        .iter()
        .map(|(name, address, remark)| {
            let share = count(name) as f64 / total as f64;
            let full = (share * WIDTH as f64).round() as usize;
            let bar = "█".repeat(full) + &"·".repeat(WIDTH - full);
            let percent = share * 100.0;
            format!(
                "  {name} {address:16} {bar} {percent:5.1}% {:5}  {remark}",
                count(name)
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share() {
        let names = ["b1", "b2"].map(|name| (name.to_owned(), "address".to_owned(), ""));
        let counts = BTreeMap::from([("b1".to_owned(), 3), ("b2".to_owned(), 1)]);
        let lengths: Vec<usize> = bars(&names, &counts)
            .iter()
            .map(|line| line.matches('█').count())
            .collect();
        assert_eq!(lengths, [18, 6]);
        assert!(bars(&names, &BTreeMap::new())[0].contains("0.0%"));
    }
}
