use std::cmp::Reverse;

use anyhow::Result;

use super::Connection;
use super::output::{Output, Table};
use crate::model::status::{DropStatus, Stats};

#[derive(Debug, clap::Args)]
pub(super) struct Drops {
    /// List the reasons for which nothing was dropped, too
    #[arg(long)]
    all: bool,
    /// Print the API's JSON, always with all reasons
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Drops {
    pub(super) async fn run(self) -> Result<Output> {
        let stats: Stats = self.connection.client().get("/v1/stats").await?;
        let mut drops = stats.drops;
        // Stable: those without a packet keep the order of the packet path's
        // list.
        drops.sort_by_key(|drop| Reverse(drop.count));
        Output::either(self.json, &drops, |drops| render(drops, self.all))
    }
}

/// The reasons for a person, sorted as they are.
fn render(drops: &[DropStatus], all: bool) -> String {
    let shown = drops.iter().filter(|drop| all || drop.count > 0);
    let mut table = Table::new(&[">PACKETS", "REASON", "MEANING"]);
    let mut rows = 0;
    for drop in shown {
        table.row([
            drop.count.to_string(),
            drop.reason.clone(),
            drop.meaning.clone(),
        ]);
        rows += 1;
    }
    if rows == 0 {
        return "no packet was dropped; --all lists what could be a reason\n".to_owned();
    }
    table.render("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop(reason: &str, count: u64) -> DropStatus {
        DropStatus {
            reason: reason.to_owned(),
            count,
            meaning: format!("what {reason} means"),
        }
    }

    #[test]
    fn the_rest_is_shown_if_asked_for() {
        let drops = [drop("many", 1234), drop("few", 2), drop("none", 0)];
        let text = "\
PACKETS  REASON  MEANING
   1234  many    what many means
      2  few     what few means
";
        assert_eq!(render(&drops, false), text);
        let all = format!("{text}      0  none    what none means\n");
        assert_eq!(render(&drops, true), all);
        let nothing = render(&drops[2..], false);
        assert!(nothing.starts_with("no packet was dropped"), "{nothing}");
    }
}
