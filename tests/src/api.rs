//! A client of the director's REST API, over its unix socket.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// The API behind a unix socket, which every namespace can reach.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status code.
    pub status: u16,
    /// Header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub text: String,
}

impl Api {
    /// How long an answer may take.
    const TIMEOUT: Duration = Duration::from_secs(20);

    /// The API at this socket, which need not exist yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// GET a path such as `/v1/services`.
    pub fn get(&self, path: &str) -> anyhow::Result<Reply> {
        self.request("GET", path, &[], None)
    }

    /// PUT a document.
    pub fn put(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.request("PUT", path, &[], Some(&body.to_string()))
    }

    /// POST a document.
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.request("POST", path, &[], Some(&body.to_string()))
    }

    /// PATCH with a document.
    pub fn patch(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.request("PATCH", path, &[], Some(&body.to_string()))
    }

    /// DELETE a path.
    pub fn delete(&self, path: &str) -> anyhow::Result<Reply> {
        self.request("DELETE", path, &[], None)
    }

    /// Any request, also a wrong one: more header fields, a body that need not
    /// be JSON (its content type says JSON all the same).
    ///
    /// # Errors
    /// When there is no answer. An answer with an error status is a [`Reply`].
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> anyhow::Result<Reply> {
        let mut stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("no API at {}: does lb-ctl run?", self.socket.display()))?;
        stream.set_read_timeout(Some(Self::TIMEOUT))?;
        stream.set_write_timeout(Some(Self::TIMEOUT))?;
        // 1.0: the answer ends with the connection and comes in one piece.
        let mut head = format!("{method} {path} HTTP/1.0\r\nhost: localhost\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = body {
            head += &format!(
                "content-type: application/json\r\ncontent-length: {}\r\n",
                body.len()
            );
        }
        head += "\r\n";
        let what = || format!("{method} {path} at {}", self.socket.display());
        stream.write_all(head.as_bytes()).with_context(what)?;
        // A server may answer and close before it has read a body that it
        // will not have.
        let sent = stream.write_all(body.unwrap_or_default().as_bytes());
        let mut answer = Vec::new();
        let received = stream.read_to_end(&mut answer);
        if answer.is_empty() {
            sent.with_context(what)?;
            received.with_context(what)?;
        }
        parse(&answer).with_context(what)
    }
}

impl Reply {
    /// The reply if its status is 2xx.
    ///
    /// # Errors
    /// Otherwise, with status and body.
    pub fn ok(self) -> anyhow::Result<Self> {
        if !(200..300).contains(&self.status) {
            bail!("{self}");
        }
        Ok(self)
    }

    /// The body as JSON; null if it is empty.
    pub fn json(&self) -> anyhow::Result<Value> {
        if self.text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.text).with_context(|| format!("not JSON: {self}"))
    }

    /// A header field; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let field = self.headers.iter().find(|(n, _)| n == name);
        field.map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP status {}: {}", self.status, self.text.trim_end())
    }
}

fn parse(answer: &[u8]) -> anyhow::Result<Reply> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("not an HTTP answer: {text:?}"))?;
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .with_context(|| format!("not an HTTP answer: {head:?}"))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    if let Some((_, length)) = length
        && length.parse() != Ok(body.len())
    {
        bail!("the answer has {} bytes of {length}", body.len());
    }
    Ok(Reply {
        status,
        headers,
        text: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let reply = parse(b"HTTP/1.0 404 Not Found\r\nContent-Length: 7\r\n\r\n{\"a\":1}").unwrap();
        assert_eq!(reply.status, 404);
        assert_eq!(reply.header("content-length"), Some("7"));
        assert_eq!(reply.json().unwrap()["a"], 1);
        assert!(reply.ok().unwrap_err().to_string().contains("404"));
        assert!(parse(b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\"").is_err());
        assert!(parse(b"nonsense").is_err());
    }
}
