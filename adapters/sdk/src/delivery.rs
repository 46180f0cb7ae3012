//! A leased delivery: what to send, and the right to send it for a while.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gatepost_api::event::Event;
use gatepost_api::queues::LeasedDelivery;
use gatepost_api::settle::{Outcome as WireOutcome, Scope};
use http::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use uuid::Uuid;

use crate::client::{Call, CallError, Purpose, TransportError};
use crate::evidence::{Outcome, item, millis};
use crate::lease::{Held, Lease, LeaseLost};
use crate::patience::Chain;
use crate::session::{OnDoubt, Session};

const DATA_DEADLINE: Duration = Duration::from_secs(60);

/// One attempt at one message. While it is held its lease is prolonged. A [`Worker`](crate::Worker) is lent it and returns the outcome;
/// whoever took it from a [`Pipeline`](crate::Pipeline) settles it with a [`Settlement`](crate::Settlement), or drops it: then it goes
/// back untried, unless it has begun. What has begun and is dropped without an outcome stays until its lease ends, and is in doubt then.
pub struct Delivery {
    held: Arc<Held>,
    attempt: u32,
    in_doubt: bool,
    event: Event,
    payload: Payload,
    session: Session,
}

enum Payload {
    Here(Bytes),
    /// Too large for the lease answer; stands under this path.
    There(String),
}

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("the payload is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the payload cannot be fetched from the gateway")]
    Call(#[source] CallError),
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("id", &self.held.id)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

impl Delivery {
    pub(crate) fn new(
        leased: LeasedDelivery,
        received: Instant,
        room: OwnedSemaphorePermit,
        session: Session,
    ) -> Result<Self, (Arc<Held>, serde_json::Error)> {
        let length = Duration::from_millis(leased.lease_ms);
        let held = Arc::new(Held::new(leased.id, leased.token, length, received, room));
        let mut event: Event = match serde_json::from_str(leased.event.get()) {
            Ok(event) => event,
            Err(error) => return Err((held, error)),
        };
        let payload = match (event.data.take(), event.text_extension("dataref")) {
            (None, Some(path)) => Payload::There(path),
            (data, _) => Payload::Here(data.map(|data| data.into_bytes().into()).unwrap_or_default()),
        };
        Ok(Self { held, attempt: leased.attempt, in_doubt: leased.in_doubt, event, payload, session })
    }

    /// Constant over all attempts: what a partner may deduplicate by.
    pub fn id(&self) -> Uuid {
        self.held.id
    }

    /// The attempt's number in its series, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Bytes of an earlier attempt may have reached the partner.
    pub fn in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// The event's attributes. Its data is given by [`Delivery::data`].
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The ordering key, if the sender gave one.
    pub fn partition_key(&self) -> Option<String> {
        self.event.text_extension("partitionkey")
    }

    /// The payload, byte for byte as the sender handed it in.
    pub async fn data(&self, bytes_max: usize) -> Result<Bytes, DataError> {
        let path = match &self.payload {
            Payload::Here(bytes) if bytes.len() > bytes_max => return Err(DataError::TooLarge(bytes_max)),
            Payload::Here(bytes) => return Ok(bytes.clone()),
            Payload::There(path) => path,
        };
        let mut call = Call::get(Purpose::Payload, path.as_str(), DATA_DEADLINE)
            .header(crate::intake::EPOCH, HeaderValue::from(self.session.epoch()));
        call.answer_bytes_max = bytes_max;
        match self.session.client().exchange(&call).await {
            Ok(answer) => Ok(answer.body),
            Err(CallError::Unreachable(TransportError::TooLarge(limit))) => Err(DataError::TooLarge(limit)),
            Err(error) => {
                self.session.end_if_superseded(Some(&error));
                Err(DataError::Call(error))
            }
        }
    }

    /// To be called immediately before bytes leave. Durable before it returns, where the destination asks for that or has a window, so that
    /// no other of its lane takes it back while it is being sent.
    pub async fn begin(&self) -> Result<(), LeaseLost> {
        self.record_attempt().await?;
        gatepost_faults::point("sdk.after_begin");
        Ok(())
    }

    async fn record_attempt(&self) -> Result<(), LeaseLost> {
        if !self.held.is_valid() {
            return Err(LeaseLost);
        }
        // With `resend` the gateway has recorded the attempt with the lease. But where several of a lane are leased, one that goes back with
        // its lane takes along what has not been reported as begun.
        if self.session.on_doubt() != OnDoubt::Resend || self.session.window() > 1 {
            let begin = item(self.held.id, &self.held.token, WireOutcome::Begin);
            self.session.settler().ask(begin, Arc::clone(&self.held)).await?;
        }
        self.held.begin();
        Ok(())
    }

    /// What settles it without the delivery in hand: to be remembered with what was sent.
    pub fn lease(&self) -> Lease {
        self.held.lease()
    }

    /// The lease has ended or was given to somebody else: nothing of it may be sent any more, and nothing need be said of it.
    pub fn is_lost(&self) -> bool {
        !self.held.is_valid()
    }

    /// Reports what came of the attempt, in the background. The delivery stays in hand until the gateway has answered.
    pub(crate) fn finish(self, outcome: Outcome) {
        let name = outcome.name();
        let is_settled = matches!(outcome, Outcome::Settled { .. });
        self.held.report();
        match outcome.into_item(self.held.id, &self.held.token) {
            Ok(Some(item)) => self.session.settler().tell(item, Arc::clone(&self.held)),
            Ok(None) if is_settled => {}
            Ok(None) => tracing::info!(delivery = %self.held.id, "the lease ended before the attempt"),
            Err(error) => {
                let error = Chain(&error);
                tracing::error!(delivery = %self.held.id, outcome = name, %error, "the outcome cannot be written");
            }
        }
    }

    /// Gives it back, charged with nothing, until so long has passed or it is woken; comes back when the gateway has it.
    pub(crate) async fn retry_lane(self, after: Duration, reason: String) -> Result<(), LeaseLost> {
        self.held.report();
        let mut retry = item(self.held.id, &self.held.token, WireOutcome::Retry);
        retry.scope = Some(Scope::Lane);
        retry.after_ms = Some(millis(after));
        retry.reason = Some(reason);
        self.session.settler().ask(retry, Arc::clone(&self.held)).await
    }

    pub(crate) fn held(&self) -> &Arc<Held> {
        &self.held
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // What a panic was about stays leased, so that the gateway can see who was at work when the process died.
        if self.held.is_reported() || self.is_lost() || std::thread::panicking() {
            return;
        }
        if self.held.has_begun() {
            tracing::warn!(delivery = %self.held.id, "a delivery that had begun was let go without an outcome");
            return;
        }
        self.held.report();
        let release = item(self.held.id, &self.held.token, WireOutcome::Release);
        self.session.settler().tell(release, Arc::clone(&self.held));
    }
}
