//! The catalogue of problems (RFC 9457): every error that the API can answer, with its status and whether a retry helps.

use serde::{Deserialize, Serialize};

/// Media type of a problem (RFC 9457 §3).
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// A problem as it stands in an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// Address of the help page's entry.
    #[serde(rename = "type")]
    pub kind: String,
    /// Stable; programs decide by it.
    pub code: String,
    pub title: String,
    pub status: u16,
    /// What was wrong in this request; never a payload or a secret.
    pub detail: String,
    pub request_id: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Results of a refused atomic settle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<Vec<crate::settle::SettledItem>>,
}

macro_rules! catalogue {
    ($($variant:ident, $code:literal, $status:literal, $retryable:literal, $title:literal;)+) => {
        /// Every problem code of the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($variant),+ }

        impl Code {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }

            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status),+ }
            }

            pub const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable),+ }
            }

            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),+ }
            }
        }
    };
}

catalogue! {
    InvalidRequest, "invalid_request", 400, false, "The request is malformed";
    InvalidEvent, "invalid_event", 400, false, "The event is not a valid CloudEvent";
    IdempotencyKeyWithBatch, "idempotency_key_with_batch", 400, false, "Idempotency-Key takes one event, not a batch";
    Unauthenticated, "unauthenticated", 401, false, "No principal matches this peer";
    AmbiguousIdentity, "ambiguous_identity", 403, false, "More than one principal matches this peer";
    Forbidden, "forbidden", 403, false, "The principal may not do this";
    TypeNotAllowed, "type_not_allowed", 403, false, "The principal may not send this type";
    NotFound, "not_found", 404, false, "There is no such thing";
    MethodNotAllowed, "method_not_allowed", 405, false, "The resource does not take this method";
    RequestTimeout, "request_timeout", 408, true, "The request did not arrive in time";
    NotBegun, "not_begun", 409, false, "The delivery has not begun";
    Superseded, "superseded", 409, false, "A newer session of this adapter is open";
    SettleRefused, "settle_refused", 409, false, "The atomic settle was refused; nothing was written";
    IllegalState, "illegal_state", 409, false, "The delivery's state does not allow this";
    PayloadPurged, "payload_purged", 410, false, "The payload has been purged";
    TooLarge, "too_large", 413, false, "The request is over a limit of size";
    UnsupportedMediaType, "unsupported_media_type", 415, false, "The media type is not supported";
    NoRoute, "no_route", 422, false, "No route takes this message";
    RouteFailed, "route_failed", 422, false, "A route's condition failed on this message";
    CallRefused, "call_refused", 422, false, "The adapter refused the call";
    IdempotencyMismatch, "idempotency_mismatch", 422, false, "The idempotency key was used with other content";
    EvidenceTooWeak, "evidence_too_weak", 422, false, "The evidence is below what the destination asks for";
    QueueFull, "queue_full", 429, true, "A destination's backlog is full";
    BacklogFull, "backlog_full", 429, true, "Too much of what this principal has handed in is not settled";
    TooManyRequests, "too_many_requests", 429, true, "Too many requests of this principal are open";
    RateLimited, "rate_limited", 429, true, "This principal sends messages or requests faster than it may";
    BytesInFlight, "bytes_in_flight", 429, true, "This principal has too many bytes on their way";
    HeadersTooLarge, "headers_too_large", 431, false, "The request's head is over the limit";
    Internal, "internal", 500, true, "The gateway failed";
    AdapterAbsent, "adapter_absent", 503, true, "The adapter takes no calls now";
    Stopping, "stopping", 503, true, "The gateway is stopping";
    ReceiptPending, "receipt_pending", 503, true, "No checkpoint covers the receipt yet";
    StoreUnavailable, "store_unavailable", 503, true, "The store cannot take writes";
    CallUnanswered, "call_unanswered", 504, false, "The adapter has the call and has not answered";
    StorageFull, "storage_full", 507, true, "The disk is full";
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>, request_id: impl Into<String>) -> Self {
        Self {
            kind: format!("/v1/problems#{}", code.as_str()),
            code: code.as_str().to_owned(),
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            request_id: request_id.into(),
            retryable: code.retryable(),
            results: None,
        }
    }
}
