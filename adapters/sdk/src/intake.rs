//! Taking in what partners send: one event, durable in the gateway before the caller may acknowledge it.

use std::time::Duration;

use bytes::Bytes;
use gatepost_api::event::Event;
use gatepost_api::messages::{AcceptResponse, AcceptedDelivery, AcceptedMessage, Reply};
use gatepost_api::{BATCH_MEDIA_TYPE, EVENT_MEDIA_TYPE, Problem};
use http::{HeaderName, HeaderValue, Method};
use uuid::Uuid;

use crate::binary;
use crate::client::{Call, CallError, Purpose};
use crate::patience::Chain;
use crate::session::Session;

pub(crate) const EPOCH: HeaderName = HeaderName::from_static(gatepost_api::EPOCH_HEADER);
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(gatepost_api::IDEMPOTENCY_HEADER);

/// Most events that are accepted in one; the gateway's limit.
pub const ACCEPT_EVENTS_MAX: usize = 1000;
const PREFER: HeaderName = HeaderName::from_static("prefer");
const ACCEPT_DEADLINE: Duration = Duration::from_secs(20);

/// The event is on stable storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub id: Uuid,
    /// It had been accepted before under the same idempotency key.
    pub duplicate: bool,
}

struct Answered {
    accepted: Accepted,
    reply: Option<Reply>,
}

/// The event was not, or not certainly, stored.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It may be stored when sent again: the gateway is full, stopping, unreachable, did not answer in time, or has given
    /// the adapter's work to a newer session.
    #[error("the gateway does not take the message now")]
    Later {
        #[source]
        source: CallError,
    },
    /// It will not be stored as it is.
    #[error("the gateway refuses the message: {} ({})", .0.title, .0.code)]
    Refused(Problem),
}

impl Session {
    /// Hands an event to the gateway. `Ok` means that its commit has reached stable storage.
    pub async fn accept(&self, event: &Event, idempotency_key: &str) -> Result<Accepted, AcceptError> {
        let accepted = self.accept_now(event, Some(idempotency_key), None).await;
        accepted.map(|message| message.accepted).map_err(|error| self.refused(error))
    }

    /// Hands in an event whose data is these bytes, without a copy of them. For large payloads; the event's own data is not
    /// looked at.
    pub async fn accept_bytes(
        &self,
        event: &Event,
        data: Bytes,
        idempotency_key: &str,
    ) -> Result<Accepted, AcceptError> {
        let accepted = self.accept_bytes_now(event, data, idempotency_key).await;
        accepted.map(|message| message.accepted).map_err(|error| self.refused(error))
    }

    /// Hands an event to the gateway, as [`Session::accept`], and waits so long for what becomes of it: the reply of whoever
    /// it was delivered to, if that gave one. For a message that was accepted before it waits likewise, so that what must be
    /// acknowledged first can be accepted first and asked about afterwards. `wait` counts in whole seconds.
    ///
    /// `idempotency_key` is the one that the event was accepted with; `None` for its source and id, as where it was emitted by a settlement.
    pub async fn ask(
        &self,
        event: &Event,
        idempotency_key: Option<&str>,
        wait: Duration,
    ) -> Result<Option<Reply>, AcceptError> {
        let accepted = self.accept_now(event, idempotency_key, Some(wait)).await;
        accepted.map(|message| message.reply).map_err(|error| self.refused(error))
    }

    /// Hands events to the gateway, all or none: `Ok` means that all have reached stable storage. Each one's source and id
    /// are its idempotency key. At most [`ACCEPT_EVENTS_MAX`].
    pub async fn accept_all(&self, events: &[Event]) -> Result<Vec<Accepted>, AcceptError> {
        let accepted = self.accept_all_now(events).await;
        accepted.map_err(|error| self.refused(error))
    }

    async fn accept_all_now(&self, events: &[Event]) -> Result<Vec<Accepted>, CallError> {
        let body = serde_json::to_vec(events).map_err(CallError::Unencodable)?;
        let call =
            Call::post(Purpose::Accept, "/v1/messages", BATCH_MEDIA_TYPE, body.into(), ACCEPT_DEADLINE)
                .header(EPOCH, HeaderValue::from(self.epoch()));
        let answer: AcceptResponse = self.client().call(&call).await?;
        if answer.messages.len() != events.len() {
            return Err(CallError::Garbled { status: 202 });
        }
        let accepted = |message: AcceptedMessage| Accepted { id: message.id, duplicate: message.duplicate };
        Ok(answer.messages.into_iter().map(accepted).collect())
    }

    /// What a call's failure means for whoever handed the event in.
    fn refused(&self, error: CallError) -> AcceptError {
        self.end_if_superseded(Some(&error));
        match error {
            // Of this session and not of the message, which the newer session takes.
            error if error.superseded() => AcceptError::Later { source: error },
            CallError::Refused(refusal) if !refusal.problem.retryable => {
                AcceptError::Refused(refusal.problem)
            }
            error => AcceptError::Later { source: error },
        }
    }

    async fn accept_now(
        &self,
        event: &Event,
        idempotency_key: Option<&str>,
        wait: Option<Duration>,
    ) -> Result<Answered, CallError> {
        let body = serde_json::to_vec(event).map_err(CallError::Unencodable)?;
        let deadline = ACCEPT_DEADLINE + wait.unwrap_or_default();
        let purpose = if wait.is_some() { Purpose::Ask } else { Purpose::Accept };
        let mut call = Call::post(purpose, "/v1/messages", EVENT_MEDIA_TYPE, body.into(), deadline);
        if let Some(Ok(prefer)) = wait.map(|wait| format!("wait={}", wait.as_secs()).parse()) {
            call = call.header(PREFER, prefer);
        }
        self.hand_in(call, idempotency_key).await
    }

    async fn accept_bytes_now(
        &self,
        event: &Event,
        data: Bytes,
        idempotency_key: &str,
    ) -> Result<Answered, CallError> {
        let mut call = Call::get(Purpose::Accept, "/v1/messages", ACCEPT_DEADLINE);
        (call.method, call.body) = (Method::POST, data);
        // An attribute that is no header is none of a valid event either, and the gateway would say so.
        call.headers = binary::headers(event).unwrap_or_default();
        self.hand_in(call, Some(idempotency_key)).await
    }

    async fn hand_in(&self, call: Call, idempotency_key: Option<&str>) -> Result<Answered, CallError> {
        let mut call = call.header(EPOCH, HeaderValue::from(self.epoch()));
        match idempotency_key.map(HeaderValue::from_str).transpose() {
            Ok(Some(key)) => call = call.header(IDEMPOTENCY_KEY, key),
            Ok(None) => {}
            // Then source and id decide, as for any event.
            Err(error) => tracing::warn!(error = %Chain(&error), "the idempotency key is not a header value"),
        }
        let answer: AcceptResponse = self.client().call(&call).await?;
        match answer.messages.as_slice() {
            [message] => Ok(Answered {
                accepted: Accepted { id: message.id, duplicate: message.duplicate },
                reply: reply(&message.deliveries),
            }),
            _ => Err(CallError::Garbled { status: 202 }),
        }
    }
}

/// What somebody who took it has said, else what somebody who refused it has.
fn reply(deliveries: &[AcceptedDelivery]) -> Option<Reply> {
    let said = |is_delivered| {
        let mut of = deliveries.iter().filter(|delivery| (delivery.state == "delivered") == is_delivered);
        of.find_map(|delivery| delivery.reply.clone())
    };
    said(true).or_else(|| said(false))
}
