//! `POST /v1/messages`: from a request in any of CloudEvents' three modes to messages on stable storage.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gatepost_api::event::Event;
use gatepost_api::messages::{AcceptResponse, AcceptedDelivery, AcceptedMessage};
use gatepost_api::problem::{Code, Problem};
use gatepost_core::principal::{Actor, SendPermit};
use gatepost_core::routing::RouteError;
use gatepost_store::{Accept, Accepted, Durability, Store};

use super::allowance::Paced;
use super::body::{self, Received};
use super::events::{Mode, invalid_event};
use super::headers;
use super::identity::Caller;
use super::intake::{Context, Draft};
use super::places::Room;
use super::problem::Refusal;
use super::repeats::{Drafted, Sorted};
use super::state::AppState;
use super::wait;

/// Bodies above this size are parsed and routed off the threads that serve connections, bytes.
pub(crate) const PARSE_INLINE_BYTES_MAX: usize = 256 * 1024;
/// Longest event type that an error repeats, characters.
const TYPE_CHARS_MAX: usize = 128;

#[utoipa::path(
    post, path = "/v1/messages", operation_id = "message_accept", tag = "messages",
    description = "Takes in one CloudEvent (binary or structured mode) or a batch, whole or not at all. The answer leaves after \
                   the commit is on stable storage.",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a repetition a duplicate; else `source` and `id` do"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: answer when all deliveries have ended, after N seconds at most"),
        ("Gatepost-Epoch" = Option<u64>, Header, description = "An adapter's session"),
    ),
    request_body(content(
        (Object = "application/cloudevents+json"),
        (Vec<Object> = "application/cloudevents-batch+json"),
        (Vec<u8> = "application/octet-stream"),
    )),
    responses(
        (status = 200, description = "All deliveries have ended while the request waited", body = AcceptResponse),
        (status = 202, description = "Stored", body = AcceptResponse),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn accept(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, Refusal> {
    if caller.principal.send().is_none() {
        return Err(Refusal::forbidden("operators send no messages"));
    }
    let (head, body) = request.into_parts();
    let session = caller.session(headers::epoch(&head.headers)?, "the header `Gatepost-Epoch`")?;
    let wait = headers::preferred_wait(&head.headers);
    let mode = Mode::of(&head.headers)?;
    let limit = mode.body_bytes_max(caller.config.gateway.max_message);
    let limits = caller.principal.limits();
    if let Some(rate) = limits.rate {
        state.allowances.peek(&caller.actor, rate, Instant::now())?;
    }
    let flight = state.allowances.flight(&caller.actor, limits.bytes_in_flight);
    let mut received = body::receive_in(body, limit, &state.body_memory, &caller.actor, flight).await?;
    // Until the answer: what waits for the commit is on its way too.
    let _flight = received.flight.take();
    // Until the store has made room for it.
    let room = received.room.take();
    let sender = caller.actor.clone();
    let intake = Intake { caller, headers: head.headers, mode, received };
    let composed = if intake.received.bytes.len() > PARSE_INLINE_BYTES_MAX {
        tokio::task::spawn_blocking(move || intake.compose()).await.map_err(Refusal::internal)??
    } else {
        intake.compose()?
    };
    if let Some(rate) = limits.rate {
        let drafts = composed.drafts.len() as u64;
        state.allowances.take(&sender, Paced::Messages, rate, drafts, Instant::now())?;
    }
    // Needs no task of its own: the store takes a request whole or not at all, and its writer commits it whoever waits.
    let before = state.store.health().durability();
    let accepted = composed.hand_over(&state.store, &sender, session, room).await?;
    // Looks at the standbys go on meanwhile: what was so on one side of the commit alone is not claimed.
    let durability = before.min(state.store.health().durability());
    match wait {
        None => Ok(answer(StatusCode::ACCEPTED, accepted.into_iter().map(stored).collect(), durability)),
        Some(wait) => waited(&state, accepted, wait, durability).await,
    }
}

/// A request to accept, read but not parsed.
struct Intake {
    caller: Caller,
    headers: HeaderMap,
    mode: Mode,
    received: Received,
}

impl Intake {
    fn compose(self) -> Result<Composed, Refusal> {
        let key = headers::idempotency_key(&self.headers)?;
        let max_message = self.caller.config.gateway.max_message;
        let events = self.mode.events(&self.headers, &self.received.bytes, max_message)?;
        if key.is_some() && events.len() > 1 {
            let detail = "a key names one message; without it `source` and `id` name each";
            return Err(Refusal::new(Code::IdempotencyKeyWithBatch, detail));
        }
        let context = Context {
            idempotency_key: key.as_deref(),
            traceparent: self.caller.trace.as_ref().map(headers::TraceParent::as_str),
        };
        compose(&self.caller, events, context)
    }
}

/// Events with what rights and routes say of them.
pub(crate) struct Composed {
    pub(crate) drafts: Vec<Drafted>,
    /// That of the last event that may be sent: they are all the same sender's.
    permit: Option<SendPermit>,
}

impl Composed {
    async fn hand_over(
        self,
        store: &Store,
        sender: &Actor,
        session: Option<u64>,
        room: Option<Room>,
    ) -> Result<Vec<Accepted>, Refusal> {
        let mut sorted = Sorted::of(store, sender, self.drafts).await?;
        let answered = match self.permit {
            Some(permit) if !sorted.routed.is_empty() => {
                let messages = std::mem::take(&mut sorted.routed);
                store.message_accept_from(Accept { permit, session, messages }, room).await?
            }
            _ => Vec::new(),
        };
        Ok(sorted.merged(answered, |accepted| accepted))
    }
}

/// Asks rights and routes about each event; a faulty event refuses all of them.
pub(crate) fn compose(
    caller: &Caller,
    events: Vec<Event>,
    context: Context<'_>,
) -> Result<Composed, Refusal> {
    let mut composed = Composed { drafts: Vec::with_capacity(events.len()), permit: None };
    for (index, event) in events.into_iter().enumerate() {
        let permit = caller.principal.send_permit(&event.kind);
        let mut draft = Draft::from_event(event, context).map_err(|error| invalid_event(index, &error))?;
        let routed = draft.route(&caller.config.routes, caller.principal.name());
        let refusal = match (&permit, routed) {
            (None, _) => Some(type_not_allowed(caller, index, &draft.message.kind)),
            (Some(_), Ok(())) => None,
            (Some(_), Err(error)) => Some(unroutable(index, &error)),
        };
        composed.drafts.push(Drafted { message: draft.message, refusal: refusal.map(Box::new) });
        composed.permit = permit.or(composed.permit);
    }
    Ok(composed)
}

fn type_not_allowed(caller: &Caller, index: usize, kind: &str) -> Refusal {
    let kind: String = kind.chars().take(TYPE_CHARS_MAX).collect();
    let detail =
        format!("event {index}: {} may not send the type `{kind}`; nothing was stored", caller.actor);
    Refusal::new(Code::TypeNotAllowed, detail)
}

fn unroutable(index: usize, error: &RouteError) -> Refusal {
    let code = match error {
        RouteError::NoRoute => Code::NoRoute,
        RouteError::Failed { .. } => Code::RouteFailed,
    };
    Refusal::new(code, format!("event {index}: {error}; nothing was stored"))
}

async fn waited(
    state: &AppState,
    accepted: Vec<Accepted>,
    wait: Duration,
    durability: Durability,
) -> Result<Response, Refusal> {
    let ids: Vec<_> = accepted.iter().map(|message| message.id).collect();
    let waited = wait::until_ended(state, &ids, wait).await?;
    let messages = accepted.into_iter().zip(waited.deliveries);
    let messages = messages.map(|(message, deliveries)| AcceptedMessage {
        id: message.id.0,
        duplicate: message.duplicate,
        deliveries,
    });
    let status = if waited.all_ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = answer(status, messages.collect(), durability);
    // Digits are always a legal header value.
    if let Ok(applied) = HeaderValue::from_str(&format!("wait={}", wait.as_secs())) {
        response.headers_mut().insert("preference-applied", applied);
    }
    Ok(response)
}

fn stored(message: Accepted) -> AcceptedMessage {
    let deliveries = message.deliveries.into_iter().map(|delivery| AcceptedDelivery {
        id: delivery.id.0,
        destination: delivery.destination,
        state: delivery.state.to_owned(),
        reply: None,
    });
    AcceptedMessage { id: message.id.0, duplicate: message.duplicate, deliveries: deliveries.collect() }
}

fn answer(status: StatusCode, messages: Vec<AcceptedMessage>, durability: Durability) -> Response {
    let location = match messages.as_slice() {
        [message] => HeaderValue::from_str(&format!("/v1/messages/{}", message.id)).ok(),
        _ => None,
    };
    let mut response =
        (status, Json(AcceptResponse { messages, durability: durability.as_str().to_owned() }))
            .into_response();
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_says_how_durable_its_messages_are() {
        for (durability, word) in [(Durability::Fsync, "fsync"), (Durability::Quorum, "quorum")] {
            let body = answer(StatusCode::ACCEPTED, Vec::new(), durability).into_body();
            let body = axum::body::to_bytes(body, 1024).await.unwrap();
            let body: AcceptResponse = serde_json::from_slice(&body).unwrap();
            assert_eq!(body.durability, word);
        }
    }
}
