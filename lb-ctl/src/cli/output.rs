//! What a command prints.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

/// What a command prints, and how it ends.
#[derive(Debug, Default)]
pub struct Output {
    text: String,
    code: u8,
}

impl Output {
    /// Text as it is; a line feed is added if the last one is missing.
    pub fn text(text: impl Into<String>) -> Self {
        let mut text = text.into();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        Self { text, code: 0 }
    }

    /// JSON for programs, or text for people.
    pub fn either<T: Serialize>(
        json: bool,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<Self> {
        Ok(if json {
            Self::text(serde_json::to_string_pretty(value)?)
        } else {
            Self::text(text(value))
        })
    }

    /// Ends with another exit status than 0.
    pub const fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Prints to standard output. That nobody reads on is no error.
    pub fn print(&self) -> Result<ExitCode> {
        let mut out = std::io::stdout().lock();
        match out
            .write_all(self.text.as_bytes())
            .and_then(|()| out.flush())
        {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(ExitCode::from(self.code)),
        }
    }
}

/// Columns side by side; the numbers among them to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// A table with these headings; those that begin with `>` head numbers.
    pub fn new(headings: &[&str]) -> Self {
        let right = headings.iter().map(|h| h.starts_with('>')).collect();
        let headings = headings
            .iter()
            .map(|h| h.trim_start_matches('>').to_owned());
        Self {
            rows: vec![headings.collect()],
            right,
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table, each line after `indent`.
    pub fn render(&self, indent: &str) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).zip(&self.right);
            let cells = cells.map(|((cell, width), right)| {
                if *right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            text += &format!("{indent}{}\n", line.trim_end());
        }
        text
    }
}

/// A number that fits a column: `812`, `1.2k`, `34M`.
pub fn short(n: u64) -> String {
    const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    if n < 1000 {
        return n.to_string();
    }
    let mut value = n as f64;
    let mut unit = 0;
    // What would be rounded to 1000 belongs to the next unit.
    while value >= 999.5 {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$}{}", UNITS[unit])
}

/// A time span in its largest unit: `12 s`, `3 min`, `5 h`, `2 d`.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_their_column() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (9_949, "9.9k"),
            (9_951, "10k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
            (u64::MAX, "18E"),
        ] {
            assert_eq!(short(n), text);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", ">N", "WHY"]);
        table.row(["a".into(), "5".into(), String::new()]);
        table.row(["long".into(), "100".into(), "so".into()]);
        assert_eq!(
            table.render(" "),
            " NAME    N  WHY\n a       5\n long  100  so\n"
        );
    }
}
