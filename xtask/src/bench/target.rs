//! What a measured number was to be.

use std::fmt;

use serde::{Serialize, Serializer};

/// A measured number against what was aimed at. Nothing fails by missing it:
/// times differ from machine to machine.
pub struct Target {
    /// What was measured, with its unit.
    pub what: &'static str,
    /// What came out.
    pub measured: f64,
    /// What should have.
    pub bound: Bound,
}

/// A bound and which side of it is good.
#[derive(Clone, Copy)]
pub enum Bound {
    /// Good are lower numbers.
    AtMost(f64),
    /// Good are higher numbers.
    AtLeast(f64),
}

impl Target {
    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.measured <= most,
            Bound::AtLeast(least) => self.measured >= least,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met = if self.is_met() { "met" } else { "missed" };
        let Self { what, measured, .. } = self;
        write!(f, "target {met}: {what}: {measured:.2}, ")?;
        match self.bound {
            Bound::AtMost(most) => write!(f, "at most {most}"),
            Bound::AtLeast(least) => write!(f, "at least {least}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, bound) = match self.bound {
            Bound::AtMost(most) => ("at_most", most),
            Bound::AtLeast(least) => ("at_least", least),
        };
        let fields = serde_json::json!({
            "what": self.what,
            "measured": self.measured,
            name: bound,
            "met": self.is_met(),
        });
        fields.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_side_of_a_bound_is_good() {
        let of = |measured, bound| Target {
            what: "milliseconds",
            measured,
            bound,
        };
        let most = Bound::AtMost(2.0);
        let words = of(1.5, most).to_string();
        assert_eq!(words, "target met: milliseconds: 1.50, at most 2");
        assert!(of(2.5, most).to_string().starts_with("target missed"));
        assert!(of(2.5, Bound::AtLeast(2.0)).is_met());
        let json = serde_json::to_value(of(1.5, Bound::AtLeast(2.0))).expect("plain JSON");
        let expected = serde_json::json!({
            "what": "milliseconds", "measured": 1.5, "at_least": 2.0, "met": false
        });
        assert_eq!(json, expected);
    }
}
