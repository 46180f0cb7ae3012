//! HTTP/1.1 over the gateway's Unix socket: few connections, which are kept, one deadline per call, bounded answers.
//!
//! Knows of a call only what it takes its time for ([`Purpose`]), which says how many of its kind there are at a time. A call that fails on
//! a kept connection is repeated once on a fresh one, which is safe because every call an adapter makes is idempotent.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use gatepost_api::Problem;
use gatepost_api::problem::Code;
use gatepost_api::session::ADAPTER_CONNECTIONS_MAX;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// Largest answer that is read. A lease answer is held far below it by its `max_bytes`.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The gateway's host is this host.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

type Connection = SendRequest<Full<Bytes>>;

/// What a call takes its time for. Each kind has connections of its own, so that none waits for another: an outcome must not wait until
/// somebody has answered, nor until a large message has been taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Waits until there is something: work, an operator's call. Also what is made once or once a second.
    Poll,
    /// Tells what came of something.
    Report,
    /// Hands in an event.
    Accept,
    /// Waits for what becomes of an event.
    Ask,
    /// Fetches a large payload.
    Payload,
}

impl Purpose {
    const ALL: [Self; 5] = [Self::Poll, Self::Report, Self::Accept, Self::Ask, Self::Payload];

    /// Most calls at a time; further ones wait for their turn, and so do the partners behind them.
    pub(crate) const fn calls_max(self) -> usize {
        match self {
            // Of leasing, operators' calls and looking for the gateway there is one each, of opening a session one before them.
            Self::Poll => 4,
            Self::Report => 12,
            Self::Accept => 24,
            Self::Ask => 8,
            Self::Payload => 8,
        }
    }

    /// Of all kinds together. A call has one connection, and what is kept without a call is taken before one is made.
    pub(crate) const fn all_calls_max() -> usize {
        let (mut sum, mut at) = (0, 0);
        while at < Self::ALL.len() {
            sum += Self::ALL[at].calls_max();
            at += 1;
        }
        sum
    }
}

// Below what the gateway lets in by what it may not have seen close yet.
const _: () = assert!(Purpose::all_calls_max() + 8 <= ADAPTER_CONNECTIONS_MAX);

/// One request, kept whole so that it can be repeated.
pub(crate) struct Call {
    pub(crate) purpose: Purpose,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
    /// From when the call has its turn until its answer is there.
    pub(crate) deadline: Duration,
    /// Largest body of the answer.
    pub(crate) answer_bytes_max: usize,
}

impl Call {
    pub(crate) fn get(purpose: Purpose, path: impl Into<String>, deadline: Duration) -> Self {
        Self {
            purpose,
            method: Method::GET,
            path: path.into(),
            headers: Vec::new(),
            body: Bytes::new(),
            deadline,
            answer_bytes_max: ANSWER_BYTES_MAX,
        }
    }

    pub(crate) fn post(
        purpose: Purpose,
        path: impl Into<String>,
        media_type: &'static str,
        body: Bytes,
        deadline: Duration,
    ) -> Self {
        let headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static(media_type))];
        Self { method: Method::POST, headers, body, ..Self::get(purpose, path, deadline) }
    }

    pub(crate) fn post_json(
        purpose: Purpose,
        path: impl Into<String>,
        body: &impl serde::Serialize,
        deadline: Duration,
    ) -> Result<Self, CallError> {
        let body = serde_json::to_vec(body).map_err(CallError::Unencodable)?;
        Ok(Self::post(purpose, path, "application/json", body.into(), deadline))
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
    /// By the place in [`Purpose::ALL`].
    turns: [Semaphore; Purpose::ALL.len()],
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
        Self {
            socket,
            turns: Purpose::ALL.map(|purpose| Semaphore::new(purpose.calls_max())),
            idle: Mutex::new(Vec::new()),
            unreachable_since: Mutex::new(None),
        }
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

    /// Makes the call, once it is its turn, and gives its answer if that is a success.
    ///
    /// The deadline is the gateway's: what waits for others of this process says nothing about it, and whoever repeats a call would only
    /// come behind those who waited with it. Everybody before it ends within a deadline of theirs, so its turn comes.
    pub(crate) async fn exchange(&self, call: &Call) -> Result<Answer, CallError> {
        // Never closed while the client lives; if it were, the gateway's own limit still holds.
        let _turn = self.turns[call.purpose as usize].acquire().await.ok();
        let answer = match timeout(call.deadline, self.exchange_repeating(call)).await {
            Ok(answer) => answer.map_err(CallError::Unreachable)?,
            Err(_) => return Err(CallError::Unreachable(TransportError::Deadline(call.deadline))),
        };
        if answer.status.is_success() { Ok(answer) } else { Err(refused(&answer)) }
    }

    async fn exchange_repeating(&self, call: &Call) -> Result<Answer, TransportError> {
        let kept = self.kept();
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

    /// The one used last, so that those that are not needed grow old and the gateway closes them.
    fn kept(&self) -> Option<Connection> {
        let mut idle = locked(&self.idle);
        std::iter::from_fn(|| idle.pop()).find(|connection| !connection.is_closed())
    }

    /// All are kept: there are no more than calls have been at a time, and one that is closed and made anew counts twice until the gateway
    /// has seen that it is closed.
    fn keep(&self, connection: Connection) {
        if !connection.is_closed() {
            locked(&self.idle).push(connection);
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

#[cfg(test)]
mod tests;
