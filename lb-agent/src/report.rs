//! What a command says when it is done: to a person, or as JSON.

use serde::Serialize;
use serde_json::{Value, json};

use crate::check::Finding;
use crate::plan::Change;
use crate::state::Want;
use crate::tunnel::status::Status;

/// The result of a command.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// `apply`, `check`, `run` or `undo`.
    pub command: &'static str,
    /// Whether the host was changed, or would be without `--dry-run`.
    pub changed: bool,
    /// Whether nothing was done on purpose.
    pub dry_run: bool,
    /// The VIPs and interfaces in question.
    #[serde(flatten)]
    pub want: Want,
    /// What was or would be changed, in that order.
    pub changes: Vec<ChangeReport>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// How TUN mode is doing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// What else there is to know.
    pub notes: Vec<String>,
    /// Why the command failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangeReport {
    /// `sysctl` or `address`; in TUN mode also `programs`, `program`, `device`.
    pub kind: &'static str,
    /// The sysctl's name, or the address with prefix length and interface.
    pub name: String,
    /// Before: a number, `absent` or `present`.
    pub from: Value,
    /// After.
    pub to: Value,
}

impl From<&Change> for ChangeReport {
    fn from(change: &Change) -> Self {
        let (kind, name, from, to) = match change {
            Change::Sysctl { key, from, to } => ("sysctl", key.to_string(), json!(from), json!(to)),
            Change::Add(held) => (
                "address",
                held.to_string(),
                json!("absent"),
                json!("present"),
            ),
            Change::Remove(held) => (
                "address",
                held.to_string(),
                json!("present"),
                json!("absent"),
            ),
            Change::Tunnel(_, step) => {
                let (kind, name, from, to) = step.describe();
                (kind, name, json!(from), json!(to))
            }
        };
        Self {
            kind,
            name,
            from,
            to,
        }
    }
}

impl Report {
    /// Enters the changes and whether there are any.
    pub fn set_changes(&mut self, changes: &[Change]) {
        self.changes = changes.iter().map(ChangeReport::from).collect();
        self.changed = !changes.is_empty();
    }

    /// The process's exit status: 1 error, 2 something found, 0 all is well.
    pub fn exit_code(&self) -> u8 {
        match (&self.error, self.findings.is_empty()) {
            (Some(_), _) => 1,
            (None, false) => 2,
            (None, true) => 0,
        }
    }

    /// One JSON object on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|e| {
            json!({"command": self.command, "changed": self.changed, "error": e.to_string()})
                .to_string()
        })
    }

    /// For a person. The error is not in it: it goes to standard error.
    pub fn to_text(&self) -> String {
        let mut lines = vec![self.headline()];
        for change in &self.changes {
            lines.push(format!(
                "  {:<38} {} -> {}",
                change.name,
                plain(&change.from),
                plain(&change.to)
            ));
        }
        for finding in &self.findings {
            lines.push(format!("  {}", finding.problem));
            lines.push(format!("      mend it: {}", finding.fix));
        }
        if let Some(status) = &self.status {
            lines.extend(status.lines());
        }
        for note in &self.notes {
            lines.push(format!("  note: {note}"));
        }
        lines.join("\n")
    }

    fn headline(&self) -> String {
        let count = |n: usize, noun: &str| match n {
            1 => format!("1 {noun}"),
            n => format!("{n} {noun}s"),
        };
        let vips: Vec<String> = self.want.vips.iter().map(ToString::to_string).collect();
        let vips = vips.join(", ");
        let changes = count(self.changes.len(), "change");
        match (self.command, self.changes.len(), self.findings.len()) {
            ("check", _, 0) if self.want.tunnel.is_some() => {
                format!("check: {vips} held on lo, reached through the tunnel")
            }
            ("check", _, 0) => format!("check: {vips} held on lo, silent towards the segment"),
            (command, _, n @ 1..) => format!("{command}: {}", count(n, "thing") + " wrong"),
            (command, 0, _) if self.error.is_none() => format!("{command}: nothing to do"),
            (command, _, _) if self.dry_run => format!("{command}: {changes} to make (dry run)"),
            (command, _, _) => format!("{command}: {changes} made"),
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
