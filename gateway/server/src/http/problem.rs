//! Refusals: how every failure of the API becomes an RFC 9457 problem.
//!
//! **Architecture invariant:** status codes of failures are known here and in the catalogue (`gatepost_api::problem`), nowhere
//! else. The text that leaves never holds a payload, a secret or the value of an event's attribute; what only operators of
//! the host may see goes into `cause`, which is logged once and never sent.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gatepost_api::problem::{Code, PROBLEM_MEDIA_TYPE, Problem};
use gatepost_api::settle::SettledItem;
use gatepost_core::delivery::Refusal as ProtocolRefusal;
use gatepost_store::{AcceptError, LeaseError, MoveError, OperateError, SenderFull, SettleError, StoreError};

use super::settle::settled_items;
use crate::config::SIZE_BYTES_MAX;

/// When a client that was refused for a passing reason should ask again, seconds.
const RETRY_SOON_S: u32 = 1;
const RETRY_LATER_S: u32 = 5;

/// Why a request is refused.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    detail: Cow<'static, str>,
    results: Option<Vec<SettledItem>>,
    cause: Option<String>,
    /// When it may be asked again, seconds; where nothing is said, by the code.
    retry_after_s: Option<u32>,
}

impl Refusal {
    pub(crate) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), results: None, cause: None, retry_after_s: None }
    }

    pub(crate) fn invalid(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    pub(crate) fn forbidden(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Forbidden, detail)
    }

    pub(crate) fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NotFound, detail)
    }

    /// A failure of the gateway itself; `cause` is for its log.
    pub(crate) fn internal(cause: impl fmt::Display) -> Self {
        let detail =
            "the request could not be carried out; the gateway's log has the cause under this request id";
        Self { cause: Some(cause.to_string()), ..Self::new(Code::Internal, detail) }
    }

    pub(crate) fn retry_after(self, wait: Duration) -> Self {
        // Rounded up: who asks a moment too early is refused again.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self { retry_after_s: Some(u32::try_from(seconds.max(1)).unwrap_or(u32::MAX)), ..self }
    }

    fn caused_by(self, cause: impl fmt::Display) -> Self {
        Self { cause: Some(cause.to_string()), ..self }
    }

    /// What the gateway's log says besides the detail.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Whether it stands in the audit log: somebody asked for what it may not have.
    pub(crate) fn is_security_event(&self) -> bool {
        matches!(
            self.code,
            Code::Unauthenticated | Code::AmbiguousIdentity | Code::Forbidden | Code::TypeNotAllowed
        )
    }

    /// The answer, complete.
    pub(crate) fn render(&self, request_id: &str) -> Response {
        let mut problem = Problem::new(self.code, self.detail.as_ref(), request_id);
        problem.results.clone_from(&self.results);
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        if let Some(seconds) = self.retry_after_s() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// What the client is told.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn retry_after_s(&self) -> Option<u32> {
        if self.retry_after_s.is_some() {
            return self.retry_after_s;
        }
        match self.code {
            Code::ReceiptPending
            | Code::TooManyRequests
            | Code::QueueFull
            | Code::BacklogFull
            | Code::RateLimited
            | Code::BytesInFlight => Some(RETRY_SOON_S),
            Code::AdapterAbsent | Code::Stopping | Code::StoreUnavailable => Some(RETRY_LATER_S),
            _ => None,
        }
    }
}

/// Handlers know no request id: the refusal travels in the response's extensions to the middleware, which renders it.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Full => {
                Self::new(Code::StorageFull, "nothing was stored; free space on the gateway's disk")
            }
            StoreError::ReadOnly(_) => {
                Self::new(Code::StoreUnavailable, "the store does not take writes at present")
                    .caused_by(error)
            }
            StoreError::Stopping => {
                Self::new(Code::Stopping, "the gateway is stopping; ask again when it is back")
            }
            StoreError::Busy => {
                Self::new(Code::StoreUnavailable, "the store is overloaded; nothing was stored")
            }
            StoreError::NoQueue(queue) => Self::not_found(format!("there is no queue `{queue}`")),
            StoreError::BadCursor => Self::invalid("`cursor` is not one that this list gave"),
            StoreError::Erased => Self::new(Code::PayloadPurged, "it has been erased"),
            StoreError::DataKeyUnknown { .. }
            | StoreError::SealKey(_)
            | StoreError::Corrupt { .. }
            | StoreError::Database(_)
            | StoreError::Audit(_) => Self::internal(error),
        }
    }
}

impl From<AcceptError> for Refusal {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::Mismatch(index) => mismatch(index),
            AcceptError::QueueFull(queue) => queue_full(&queue),
            AcceptError::SenderFull(full) => backlog_full(&full),
            AcceptError::Superseded => superseded(),
            AcceptError::Store(error) => error.into(),
        }
    }
}

impl From<LeaseError> for Refusal {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Superseded => superseded(),
            LeaseError::Store(error) => error.into(),
        }
    }
}

impl From<SettleError> for Refusal {
    fn from(error: SettleError) -> Self {
        match error {
            SettleError::Superseded => superseded(),
            SettleError::Refused(items) => Self {
                results: Some(settled_items(&items)),
                ..Self::new(
                    Code::SettleRefused,
                    "an item of the atomic settle is stale; `results` says which",
                )
            },
            SettleError::Protocol { delivery, refusal } => {
                let code = match refusal {
                    ProtocolRefusal::NotBegun => Code::NotBegun,
                    ProtocolRefusal::EvidenceTooWeak { .. } => Code::EvidenceTooWeak,
                };
                Self::new(code, format!("delivery {delivery}: {refusal}; nothing was written"))
            }
            SettleError::Mismatch(index) => mismatch(index),
            SettleError::QueueFull(queue) => queue_full(&queue),
            SettleError::SenderFull(full) => backlog_full(&full),
            SettleError::Store(error) => error.into(),
        }
    }
}

impl From<OperateError> for Refusal {
    fn from(error: OperateError) -> Self {
        match error {
            OperateError::NotFound => Self::not_found("there is no such delivery"),
            OperateError::Illegal(illegal) => Self::new(Code::IllegalState, illegal.to_string()),
            OperateError::Store(error) => error.into(),
        }
    }
}

impl From<MoveError> for Refusal {
    fn from(error: MoveError) -> Self {
        match error {
            MoveError::Same(queue) => Self::invalid(format!("`to` names `{queue}` itself")),
            MoveError::NotServed(queue) => Self::new(
                Code::IllegalState,
                format!("`{queue}` is no destination of the configuration; nothing was moved"),
            ),
            MoveError::Store(error) => error.into(),
        }
    }
}

fn mismatch(index: usize) -> Refusal {
    let detail =
        format!("event {index} uses an idempotency key that was used with other content; nothing was stored");
    Refusal::new(Code::IdempotencyMismatch, detail)
}

fn queue_full(queue: &str) -> Refusal {
    Refusal::new(Code::QueueFull, format!("the backlog of `{queue}` is full; nothing was stored"))
}

fn backlog_full(full: &SenderFull) -> Refusal {
    let SenderFull { backlog, deliveries, bytes } = full;
    let most = backlog.limit.map(|limit| {
        let bytes = (limit.bytes < SIZE_BYTES_MAX).then(|| format!("{} bytes", limit.bytes));
        let deliveries = (limit.messages < SIZE_BYTES_MAX).then(|| format!("{} deliveries", limit.messages));
        deliveries.into_iter().chain(bytes).collect::<Vec<_>>().join(" and ")
    });
    let detail = format!(
        "`{}` has {} deliveries of {} bytes that are not settled, this would add {deliveries} of {bytes} bytes, and {} is the limit; \
         nothing was stored",
        backlog.sender,
        backlog.deliveries,
        backlog.bytes,
        most.unwrap_or_default()
    );
    Refusal::new(Code::BacklogFull, detail)
}

fn superseded() -> Refusal {
    Refusal::new(Code::Superseded, "a newer session of this adapter is open; nothing was written")
}
