//! `Prefer: wait`: holds an accept's answer until every delivery has ended.

use std::time::Duration;

use gatepost_api::messages::{AcceptedDelivery, Reply};
use gatepost_core::MessageId;
use gatepost_store::DeliveryRow;
use tokio::time::Instant;

use super::problem::Refusal;
use super::state::AppState;

/// Hints may be lost: look again after this long in any case.
const RECHECK: Duration = Duration::from_secs(2);

/// What came of the messages in the time that there was.
pub(crate) struct Waited {
    pub(crate) all_ended: bool,
    /// In the order of the messages asked for.
    pub(crate) deliveries: Vec<Vec<AcceptedDelivery>>,
}

/// Waits until all deliveries of these messages have ended, for at most `span`, or until the gateway stops.
pub(crate) async fn until_ended(
    state: &AppState,
    messages: &[MessageId],
    span: Duration,
) -> Result<Waited, Refusal> {
    let deadline = Instant::now() + span;
    let mut waited = Waited { all_ended: true, deliveries: Vec::with_capacity(messages.len()) };
    for message in messages {
        let (ended, deliveries) = one(state, *message, deadline).await?;
        waited.all_ended &= ended;
        waited.deliveries.push(deliveries);
    }
    Ok(waited)
}

async fn one(
    state: &AppState,
    message: MessageId,
    deadline: Instant,
) -> Result<(bool, Vec<AcceptedDelivery>), Refusal> {
    let hint = state.store.message_hint(message);
    loop {
        let notified = hint.notify().notified();
        tokio::pin!(notified);
        // Armed before looking, so that an end between the look and the wait is not missed.
        notified.as_mut().enable();
        let rows = state.store.read().deliveries_of(message).await?;
        let ended = rows.iter().all(|(row, _)| has_ended(row));
        if ended || Instant::now() >= deadline || state.is_stopping() {
            let deliveries = rows.into_iter().map(delivery).collect::<Result<_, _>>()?;
            return Ok((ended, deliveries));
        }
        let recheck = tokio::time::sleep_until(deadline.min(Instant::now() + RECHECK));
        tokio::select! {
            () = notified => {}
            () = recheck => {}
            () = state.stopped() => {}
        }
    }
}

fn has_ended(row: &DeliveryRow) -> bool {
    matches!(row.state, "delivered" | "dead" | "expired" | "discarded")
}

fn delivery((row, reply): (DeliveryRow, Option<String>)) -> Result<AcceptedDelivery, Refusal> {
    Ok(AcceptedDelivery {
        id: row.id.0,
        destination: row.destination,
        state: row.state.to_owned(),
        reply: reply.as_deref().map(read_reply).transpose()?,
    })
}

/// A reply as the store keeps it.
pub(crate) fn read_reply(text: &str) -> Result<Reply, Refusal> {
    serde_json::from_str(text).map_err(|_| Refusal::internal("a stored reply is not readable"))
}
