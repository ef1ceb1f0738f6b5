//! One probe of one backend.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::state::ProbeResult;
use crate::model::{CheckType, HealthCheck};

/// How much of a body is searched, in bytes.
const MAX_BODY: usize = 64 << 10;

/// Probes once. It never takes longer than the check's timeout.
///
/// # Errors
/// What was met, in words.
pub async fn probe(address: SocketAddr, check: &HealthCheck) -> Result<(), Failure> {
    let probe = async {
        match check.r#type {
            CheckType::Tcp => connect(address).await.map(drop),
            CheckType::Http => http(address, check).await,
        }
    };
    timeout(check.timeout(), probe).await.unwrap_or_else(|_| {
        let patience = check.timeout().as_millis();
        Err(Failure::Theirs(format!("no answer within {patience} ms")))
    })
}

/// Why a probe did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The backend's doing.
    Theirs(String),
    /// This host has no file, port or memory for a connection: that says nothing
    /// about the backend.
    Ours(String),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Theirs(reason)
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address).await;
    stream.map_err(|error| not_connected(address, &error))
}

fn not_connected(address: SocketAddr, error: &std::io::Error) -> Failure {
    use Errno::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    let reason = format!("cannot connect to {address}: {error}");
    match error.raw_os_error().map(Errno::from_raw) {
        Some(EMFILE | ENFILE | ENOBUFS | ENOMEM | EADDRNOTAVAIL) => Failure::Ours(reason),
        _ => Failure::Theirs(reason),
    }
}

async fn http(address: SocketAddr, check: &HealthCheck) -> Result<(), Failure> {
    let stream = connect(address).await?;
    let request = request(address, check).map_err(|error| error.to_string())?;
    let failed = |error: hyper::Error| format!("HTTP to {address}: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        judge(response, check).await
    };
    // The connection only moves while somebody polls it, and may end before
    // its last bytes have been read.
    tokio::pin!(exchange);
    let outcome = tokio::select! {
        biased;
        outcome = &mut exchange => outcome,
        outcome = connection => {
            outcome.map_err(failed)?;
            exchange.await
        }
    };
    Ok(outcome?)
}

fn request(
    address: SocketAddr,
    check: &HealthCheck,
) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let host = check.host.clone().unwrap_or_else(|| address.to_string());
    Request::get(check.path.as_deref().unwrap_or("/"))
        .header(header::HOST, host)
        .header(
            header::USER_AGENT,
            concat!("lb-ctl/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::CONNECTION, "close")
        .body(Empty::new())
}

async fn judge(response: Response<Incoming>, check: &HealthCheck) -> ProbeResult {
    let status = response.status().as_u16();
    if !check.expects(status) {
        let expected = match &check.expect_status {
            None => "200 to 399".to_owned(),
            Some(codes) => codes
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        };
        return Err(format!("HTTP status {status}, expected {expected}"));
    }
    let Some(text) = &check.expect_body else {
        return Ok(());
    };
    let mut body = response.into_body();
    let mut read = Vec::new();
    while read.len() < MAX_BODY
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| format!("the body broke off: {error}"))?;
        if let Some(data) = frame.data_ref() {
            let room = MAX_BODY - read.len();
            read.extend_from_slice(&data[..data.len().min(room)]);
        }
        if contains(&read, text.as_bytes()) {
            return Ok(());
        }
    }
    Err(format!("the body does not contain {text:?}"))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    /// Answers one connection and returns what was asked.
    async fn server(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut buffer = [0; 1024];
                let n = stream.read(&mut buffer).await.unwrap();
                assert_ne!(n, 0, "closed before the request was complete");
                asked.extend_from_slice(&buffer[..n]);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        (address, task)
    }

    fn http_check() -> HealthCheck {
        HealthCheck {
            timeout_ms: Some(2000),
            ..HealthCheck::new(CheckType::Http)
        }
    }

    async fn outcome(answer: &'static str, check: HealthCheck) -> Result<(), String> {
        let (address, _task) = server(answer).await;
        probe(address, &check).await.map_err(theirs)
    }

    fn theirs(failure: Failure) -> String {
        match failure {
            Failure::Theirs(reason) => reason,
            Failure::Ours(reason) => panic!("{reason}"),
        }
    }

    #[test]
    fn what_this_host_lacks_says_nothing_about_the_backend() {
        let address = "192.0.2.21:80".parse().unwrap();
        let is_ours = |errno: Errno| {
            let error = std::io::Error::from(errno);
            matches!(not_connected(address, &error), Failure::Ours(_))
        };
        assert!(is_ours(Errno::EMFILE) && is_ours(Errno::EADDRNOTAVAIL));
        assert!(!is_ours(Errno::ECONNREFUSED) && !is_ours(Errno::EHOSTUNREACH));
    }

    #[tokio::test]
    async fn http_asks_for_what_the_check_says() {
        let (address, task) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
        let check = HealthCheck {
            path: Some("/up?deep=1".to_owned()),
            host: Some("www.example.net".to_owned()),
            ..http_check()
        };
        probe(address, &check).await.unwrap();
        let asked = task.await.unwrap();
        assert!(asked.starts_with("GET /up?deep=1 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("host: www.example.net\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn status_and_body_decide() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nall is well\n";
        let with = |change: fn(&mut HealthCheck)| {
            let mut check = http_check();
            change(&mut check);
            check
        };
        outcome(ok, http_check()).await.unwrap();
        outcome(ok, with(|c| c.expect_body = Some("is well".to_owned())))
            .await
            .unwrap();
        let error = outcome(ok, with(|c| c.expect_body = Some("ill".to_owned()))).await;
        assert_eq!(error.unwrap_err(), "the body does not contain \"ill\"");
        let error = outcome(ok, with(|c| c.expect_status = Some(vec![204, 301]))).await;
        assert_eq!(error.unwrap_err(), "HTTP status 200, expected 204, 301");
        let error = outcome("HTTP/1.1 503 No\r\n\r\n", http_check()).await;
        assert_eq!(error.unwrap_err(), "HTTP status 503, expected 200 to 399");
        // Without a length the body ends with the connection.
        outcome(
            "HTTP/1.1 200 OK\r\n\r\nwell",
            with(|c| c.expect_body = Some("well".to_owned())),
        )
        .await
        .unwrap();
        assert!(
            outcome("220 smtp.example.net\r\n", http_check())
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn tcp_only_connects() {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let check = HealthCheck::new(CheckType::Tcp);
        probe(address, &check).await.unwrap();
        drop(listener);
        let error = theirs(probe(address, &check).await.unwrap_err());
        assert!(error.contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn silence_ends_with_the_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let check = HealthCheck {
            timeout_ms: Some(50),
            ..http_check()
        };
        let before = Instant::now();
        let error = probe(listener.local_addr().unwrap(), &check).await;
        assert_eq!(theirs(error.unwrap_err()), "no answer within 50 ms");
        assert!(before.elapsed() >= Duration::from_millis(50));
    }
}
