//! A client of the REST API.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::api::ListenAddress;
use crate::model::{Problem, ProblemDocument, text};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a request has failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "cannot reach lb-ctl at {0}: {1}; is `lb-ctl up` running? (--listen or LB_LISTEN say where)"
    )]
    Unreachable(ListenAddress, io::Error),
    /// We may not.
    #[error("may not speak to lb-ctl at {0}: use sudo, or join the group that owns the socket")]
    Forbidden(ListenAddress),
    /// The director refused.
    #[error("{}", shown(.0))]
    Problem(Box<ProblemDocument>),
    /// There is no answer.
    #[error("lb-ctl at {0} has not answered for {1:?}: look at its log")]
    Late(ListenAddress, Duration),
    /// What came is no answer of this API.
    #[error("lb-ctl at {0} gives no sensible answer: {1}")]
    Protocol(ListenAddress, String),
}

fn shown(problem: &ProblemDocument) -> String {
    match &problem.field {
        Some(field) => format!("{field}: {}", problem.detail),
        None => problem.detail.clone(),
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status, 2xx.
    pub status: StatusCode,
    /// The etag of the desired state, without quotes, if it was sent.
    pub etag: Option<String>,
    /// The body.
    pub body: Bytes,
}

/// Speaks to the `lb-ctl up` that listens at an address; one connection for
/// each request.
#[derive(Clone, Debug)]
pub struct Client {
    address: ListenAddress,
}

impl Client {
    /// A client of who listens at `address`.
    pub const fn new(address: ListenAddress) -> Self {
        Self { address }
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.request(Method::GET, path, &[], None).await?;
        self.read(&answer)
    }

    /// Sends a body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, String)],
        body: &impl Serialize,
    ) -> Result<Answer, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.protocol(error))?;
        self.request(method, path, headers, Some(body)).await
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, String)],
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "lb-ctl");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::from(body.unwrap_or_default()))
            .map_err(|error| self.protocol(error))?;
        timeout(PATIENCE, self.exchange(request))
            .await
            .map_err(|_| ClientError::Late(self.address.clone(), PATIENCE))?
    }

    /// Reads the body of an answer.
    ///
    /// # Errors
    /// When it is not what was asked for.
    pub fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, ClientError> {
        text::from_json(&answer.body).map_err(|problem: Problem| self.protocol(problem))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
        match &self.address {
            ListenAddress::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                self.exchange_over(self.connected(stream)?, request).await
            }
            ListenAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).await;
                self.exchange_over(self.connected(stream)?, request).await
            }
        }
    }

    fn connected<S>(&self, stream: io::Result<S>) -> Result<S, ClientError> {
        stream.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(self.address.clone()),
            _ => ClientError::Unreachable(self.address.clone(), error),
        })
    }

    async fn exchange_over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, ClientError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.protocol(error))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>((parts, body))
        };
        // The connection only moves while somebody polls it.
        let (parts, body) = tokio::select! {
            biased;
            outcome = exchange => outcome,
            outcome = connection => {
                let error = outcome.err().map_or_else(
                    || "the connection was closed".to_owned(),
                    |error| error.to_string(),
                );
                return Err(self.protocol(error));
            }
        }
        .map_err(|error| self.protocol(error))?;
        if !parts.status.is_success() {
            let problem = text::from_json(&body)
                .map_err(|_| self.protocol(format_args!("HTTP status {}", parts.status)))?;
            return Err(ClientError::Problem(Box::new(problem)));
        }
        let etag = parts
            .headers
            .get(header::ETAG)
            .and_then(|value| value.to_str().ok())
            .map(|value| value.trim_matches('"').to_owned());
        Ok(Answer {
            status: parts.status,
            etag,
            body,
        })
    }

    fn protocol(&self, error: impl ToString) -> ClientError {
        ClientError::Protocol(self.address.clone(), error.to_string())
    }
}
