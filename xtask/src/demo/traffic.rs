//! The client's requests, by curl.

use std::collections::HashMap;

use anyhow::{Context, bail, ensure};
use integration::Host;
use integration::topology::Family;

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Answered by the backend of this name.
    From(String),
    /// Not answered, and why.
    Failed(String),
}

/// Sends that many requests, up to eight at a time, each over a connection of
/// its own: a flow goes to one backend, so one connection would show nothing.
pub fn send(client: &Host, family: Family, requests: usize) -> anyhow::Result<Vec<Answer>> {
    let url = format!("http://{}/", family.vip_in_url());
    let mut curl = client.command("curl");
    // Without --globoff it would take an IPv6 address for a range.
    curl.args(["--silent", "--globoff"])
        .args(["--parallel", "--parallel-immediate", "--parallel-max", "8"])
        .args(["--connect-timeout", "3", "--max-time", "5"])
        .args(["--header", "Connection: close"])
        .args([
            "--write-out",
            "%{http_code} %{exitcode} %{num_connects} %header{x-backend}\\n",
        ]);
    for _ in 0..requests {
        curl.args(["--output", "/dev/null", &url]);
    }
    // Its status only says whether any request failed.
    let output = curl.output().context("cannot start curl")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<Answer> = text.lines().map(answer).collect::<anyhow::Result<_>>()?;
    ensure!(
        answers.len() == requests,
        "curl told of {} of {requests} requests: {}",
        answers.len(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(answers)
}

fn answer(line: &str) -> anyhow::Result<Answer> {
    let words: Vec<&str> = line.split(' ').collect();
    let [status, exit, connects, backend] = words[..] else {
        bail!("odd line from curl (version 7.84 or later is needed): {line:?}");
    };
    if exit != "0" {
        return Ok(Answer::Failed(format!(
            "curl's error {exit}{}",
            meaning(exit)
        )));
    }
    if status != "200" || backend.is_empty() {
        return Ok(Answer::Failed(format!("HTTP status {status}")));
    }
    ensure!(
        connects == "1",
        "a request went over {connects} new connections, not one"
    );
    Ok(Answer::From(backend.to_owned()))
}

fn meaning(exit: &str) -> &'static str {
    let known = HashMap::from([
        ("7", " (could not connect)"),
        ("28", " (timed out)"),
        ("52", " (empty answer)"),
        ("56", " (connection broke)"),
    ]);
    known.get(exit).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curls_lines_are_understood() {
        assert_eq!(answer("200 0 1 b1").unwrap(), Answer::From("b1".to_owned()));
        let refused = Answer::Failed("curl's error 7 (could not connect)".to_owned());
        assert_eq!(answer("000 7 0 ").unwrap(), refused);
        let unavailable = Answer::Failed("HTTP status 503".to_owned());
        assert_eq!(answer("503 0 1 ").unwrap(), unavailable);
    }

    #[test]
    fn a_connection_that_is_used_again_is_an_error() {
        assert!(answer("200 0 0 b1").is_err());
        assert!(answer("nonsense").is_err());
    }
}
