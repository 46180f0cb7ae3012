//! Taking in what partners send: one event, durable in the gateway before the caller may acknowledge it.

use std::time::Duration;

use gatepost_api::event::Event;
use gatepost_api::messages::AcceptResponse;
use gatepost_api::{EVENT_MEDIA_TYPE, Problem};
use http::{HeaderName, HeaderValue};
use uuid::Uuid;

use crate::client::{Call, CallError};
use crate::patience::Chain;
use crate::session::Session;

pub(crate) const EPOCH: HeaderName = HeaderName::from_static(gatepost_api::EPOCH_HEADER);
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(gatepost_api::IDEMPOTENCY_HEADER);

const ACCEPT_DEADLINE: Duration = Duration::from_secs(20);

/// The event is on stable storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub id: Uuid,
    /// It had been accepted before under the same idempotency key.
    pub duplicate: bool,
}

/// The event was not, or not certainly, stored.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It may be stored when sent again: the gateway is full, stopping, unreachable, or did not answer in time.
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
        // Never closed while the session lives; if it were, the gateway's own limits still hold.
        let _place = self.intake().acquire().await.ok();
        let accepted = self.accept_now(event, idempotency_key).await;
        self.end_if_superseded(accepted.as_ref().err());
        accepted.map_err(|error| match error {
            CallError::Refused(refusal) if !refusal.problem.retryable => {
                AcceptError::Refused(refusal.problem)
            }
            error => AcceptError::Later { source: error },
        })
    }

    async fn accept_now(&self, event: &Event, idempotency_key: &str) -> Result<Accepted, CallError> {
        let body = serde_json::to_vec(event).map_err(CallError::Unencodable)?;
        let mut call = Call::post("/v1/messages", EVENT_MEDIA_TYPE, body.into(), ACCEPT_DEADLINE)
            .header(EPOCH, HeaderValue::from(self.epoch()));
        match HeaderValue::from_str(idempotency_key) {
            Ok(key) => call = call.header(IDEMPOTENCY_KEY, key),
            // Then source and id decide, as for any event.
            Err(error) => tracing::warn!(error = %Chain(&error), "the idempotency key is not a header value"),
        }
        let answer: AcceptResponse = self.client().call(&call).await?;
        match answer.messages.as_slice() {
            [message] => Ok(Accepted { id: message.id, duplicate: message.duplicate }),
            _ => Err(CallError::Garbled { status: 202 }),
        }
    }
}
