//! HTTP/1.1 over the gateway's Unix socket: a small pool of kept connections, one deadline per call, bounded answers.
//!
//! Knows no meaning of any call. A call that fails on a kept connection is repeated once on a fresh one, which is safe
//! because every call an adapter makes is idempotent.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use gatepost_api::Problem;
use gatepost_api::problem::Code;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

/// Largest answer that is read. A lease answer is held far below it by its `max_bytes`.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Kept connections beyond this many are closed after use.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// The gateway's host is this host.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

type Connection = SendRequest<Full<Bytes>>;

/// One request, kept whole so that it can be repeated.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
    pub(crate) deadline: Duration,
    /// Largest body of the answer.
    pub(crate) answer_bytes_max: usize,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>, deadline: Duration) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            headers: Vec::new(),
            body: Bytes::new(),
            deadline,
            answer_bytes_max: ANSWER_BYTES_MAX,
        }
    }

    pub(crate) fn post(
        path: impl Into<String>,
        media_type: &'static str,
        body: Bytes,
        deadline: Duration,
    ) -> Self {
        let headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static(media_type))];
        Self { method: Method::POST, headers, body, ..Self::get(path, deadline) }
    }

    pub(crate) fn post_json(
        path: impl Into<String>,
        body: &impl serde::Serialize,
        deadline: Duration,
    ) -> Result<Self, CallError> {
        let body = serde_json::to_vec(body).map_err(CallError::Unencodable)?;
        Ok(Self::post(path, "application/json", body.into(), deadline))
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// Why a call gave no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The gateway answered with a problem.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// No answer: whether the gateway acted on the call is unknown.
    #[error("the gateway did not answer")]
    Unreachable(#[source] TransportError),
    #[error("the gateway's answer with status {status} is not understood")]
    Garbled { status: u16 },
    #[error("the request cannot be written as JSON")]
    Unencodable(#[source] serde_json::Error),
}

impl CallError {
    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.problem.retryable,
            Self::Unreachable(_) => true,
            Self::Garbled { status } => *status >= 500,
            Self::Unencodable(_) => false,
        }
    }

    /// A newer session of this adapter is open: this process must write nothing more.
    pub fn superseded(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.problem.code == Code::Superseded.as_str())
    }
}

/// A problem that the gateway answered with.
#[derive(Debug, thiserror::Error)]
#[error("the gateway refused the call: {} ({})", problem.detail, problem.code)]
pub struct Refusal {
    pub problem: Problem,
    pub retry_after: Option<Duration>,
}

/// What went wrong between this process and the socket.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot connect to the gateway's socket")]
    Connect(#[source] std::io::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    #[error("the connection to the gateway broke")]
    Broken(#[source] hyper::Error),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the answer broke off")]
    AnswerBroken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the request is malformed")]
    Malformed(#[source] http::Error),
}

/// An answer whose body has been read.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

pub(crate) struct Client {
    socket: PathBuf,
    idle: Mutex<Vec<Connection>>,
    unreachable_since: Mutex<Option<Instant>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, idle: Mutex::new(Vec::new()), unreachable_since: Mutex::new(None) }
    }

    /// How long no connection could be made; zero after one was made.
    pub(crate) fn unreachable_for(&self) -> Duration {
        locked(&self.unreachable_since).map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Makes the call and reads its JSON answer.
    pub(crate) async fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T, CallError> {
        let answer = self.exchange(call).await?;
        serde_json::from_slice(&answer.body)
            .map_err(|_| CallError::Garbled { status: answer.status.as_u16() })
    }

    /// Makes the call and gives its answer if that is a success.
    pub(crate) async fn exchange(&self, call: &Call) -> Result<Answer, CallError> {
        let answer = match timeout(call.deadline, self.exchange_repeating(call)).await {
            Ok(answer) => answer.map_err(CallError::Unreachable)?,
            Err(_) => return Err(CallError::Unreachable(TransportError::Deadline(call.deadline))),
        };
        if answer.status.is_success() { Ok(answer) } else { Err(refused(&answer)) }
    }

    async fn exchange_repeating(&self, call: &Call) -> Result<Answer, TransportError> {
        let kept = locked(&self.idle).pop();
        if let Some(connection) = kept {
            match self.exchange_on(connection, call).await {
                // The gateway may have closed it while it was idle; that says nothing about the gateway.
                Err(TransportError::Broken(_)) => {}
                answer => return answer,
            }
        }
        let connection = self.connect().await?;
        self.exchange_on(connection, call).await
    }

    async fn exchange_on(&self, mut connection: Connection, call: &Call) -> Result<Answer, TransportError> {
        let mut request =
            Request::builder().method(call.method.clone()).uri(&call.path).header(header::HOST, "gatepost");
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(call.body.clone())).map_err(TransportError::Malformed)?;
        connection.ready().await.map_err(TransportError::Broken)?;
        let (head, body) =
            connection.send_request(request).await.map_err(TransportError::Broken)?.into_parts();
        let limit = call.answer_bytes_max;
        let body =
            Limited::new(body, limit).collect().await.map_err(|error| answer_error(error, limit))?.to_bytes();
        self.keep(connection);
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    fn keep(&self, connection: Connection) {
        let mut idle = locked(&self.idle);
        if idle.len() < IDLE_CONNECTIONS_MAX && !connection.is_closed() {
            idle.push(connection);
        }
    }

    async fn connect(&self) -> Result<Connection, TransportError> {
        let connected = timeout(CONNECT_DEADLINE, UnixStream::connect(&self.socket))
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let stream = match connected {
            Ok(stream) => {
                *locked(&self.unreachable_since) = None;
                stream
            }
            Err(error) => {
                locked(&self.unreachable_since).get_or_insert_with(Instant::now);
                return Err(TransportError::Connect(error));
            }
        };
        let (connection, driver) = handshake(TokioIo::new(stream)).await.map_err(TransportError::Broken)?;
        // Ends by itself when the connection closes or its handle is dropped; its error is the caller's error too.
        tokio::spawn(driver);
        Ok(connection)
    }
}

fn answer_error(error: Box<dyn std::error::Error + Send + Sync>, limit: usize) -> TransportError {
    if error.is::<LengthLimitError>() {
        TransportError::TooLarge(limit)
    } else {
        TransportError::AnswerBroken(error)
    }
}

fn refused(answer: &Answer) -> CallError {
    let Ok(problem) = serde_json::from_slice::<Problem>(&answer.body) else {
        return CallError::Garbled { status: answer.status.as_u16() };
    };
    let retry_after =
        answer.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    CallError::Refused(Box::new(Refusal { problem, retry_after: retry_after.map(Duration::from_secs) }))
}

/// Nothing that holds these locks can leave its data half changed, so a panic elsewhere does not spoil it.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
