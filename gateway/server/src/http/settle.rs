//! `POST /v1/settle`: outcomes, emitted events and adapter state, checked and handed to the store as one transaction.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gatepost_api::event::Event;
use gatepost_api::messages::Reply;
use gatepost_api::problem::{Code, Problem};
use gatepost_api::queues::{LEASE_MS_DEFAULT, LEASE_MS_MAX};
use gatepost_api::settle::{
    EVIDENCE_BYTES_MAX, EmittedItem, EvidenceLevel, Level as WireLevel, Outcome as WireOutcome,
    REASON_BYTES_MAX, SETTLE_BYTES_MAX, SETTLE_EVENTS_MAX, SETTLE_RESULTS_MAX, STATE_KEY_BYTES_MAX,
    STATE_KEYS_MAX, STATE_VALUE_BYTES_MAX, Scope, SettleItem as WireItem, SettleRequest, SettleResponse,
    SettleStatus, SettledItem as WireSettled,
};
use gatepost_core::delivery::Reason;
use gatepost_core::routing::RouteError;
use gatepost_core::{DeliveryId, LeaseToken, Level, Outcome, RetryScope};
use gatepost_store::{Emit, Settle, SettleAnswer, SettleItem, SettledItem, Store};
use serde_json::value::RawValue;

use super::accept::{self, PARSE_INLINE_BYTES_MAX};
use super::allowance::Paced;
use super::body::{self, Received};
use super::events::{emit_fault, invalid_event};
use super::headers::{TraceParent, require_json};
use super::identity::Caller;
use super::intake::{Context, Draft};
use super::problem::Refusal;
use super::repeats::{Drafted, Sorted};
use super::state::AppState;
use crate::config::Nodes;

/// Longest time that proof of a `sent` delivery may take.
const SENT_WITHIN_MAX: Duration = Duration::from_secs(7 * 86_400);

#[utoipa::path(
    post, path = "/v1/settle", operation_id = "settle", tag = "queues",
    description = "Reports outcomes of leased deliveries, emits messages and changes the adapter's state, in one transaction.",
    request_body = SettleRequest,
    responses(
        (status = 200, description = "Written; a stale item says so", body = SettleResponse),
        (status = "default", description = "A problem; nothing was written", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn settle(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Json<SettleResponse>, Refusal> {
    if caller.is_operator() {
        return Err(Refusal::forbidden("operators settle nothing; they resolve, replay and discard"));
    }
    require_json(request.headers())?;
    let limits = caller.principal.limits();
    let sender = caller.actor.clone();
    let flight = state.allowances.flight(&sender, limits.bytes_in_flight);
    let mut received =
        body::receive_in(request.into_body(), SETTLE_BYTES_MAX as u64, &state.body_memory, &sender, flight)
            .await?;
    let _flight = received.flight.take();
    let composed = if received.bytes.len() > PARSE_INLINE_BYTES_MAX {
        tokio::task::spawn_blocking(move || compose(&caller, &received))
            .await
            .map_err(Refusal::internal)??
    } else {
        compose(&caller, &received)?
    };
    // Only what it takes in from outside: an outcome, and what it emits with one, is what the gateway waits for.
    if let Some(rate) = limits.rate
        && !composed.taken_in.is_empty()
    {
        let taken_in = composed.taken_in.len() as u64;
        state.allowances.take(&sender, Paced::Messages, rate, taken_in, Instant::now())?;
    }
    // Needs no task of its own: the store takes a settle whole or not at all, and its writer commits it whoever waits.
    composed.hand_over(&state.store).await.map(Json)
}

/// A settle, and the events that it takes in as an accept does.
struct Composed {
    settle: Settle,
    taken_in: Vec<Drafted>,
}

impl Composed {
    async fn hand_over(self, store: &Store) -> Result<SettleResponse, Refusal> {
        let mut settle = self.settle;
        let mut sorted = Sorted::of(store, &settle.consumer, self.taken_in).await?;
        let routed = std::mem::take(&mut sorted.routed).into_iter();
        settle.emit.extend(routed.map(|message| Emit { message, dead: None }));
        let mut answer = store.delivery_settle(settle).await?;
        answer.emitted = sorted.merged(answer.emitted, |accepted| (accepted.id, accepted.duplicate));
        Ok(response(answer))
    }
}

fn compose(caller: &Caller, received: &Received) -> Result<Composed, Refusal> {
    let request: SettleRequest =
        body::parse(&received.bytes).map_err(|refusal| emit_fault(&received.bytes).unwrap_or(refusal))?;
    let session = caller.session(request.epoch, "`epoch`")?;
    if request.results.len() > SETTLE_RESULTS_MAX || request.emit.len() > SETTLE_EVENTS_MAX {
        let detail =
            format!("a settle takes {SETTLE_RESULTS_MAX} results and {SETTLE_EVENTS_MAX} events at most");
        return Err(Refusal::new(Code::TooLarge, detail));
    }
    let atomic = request.atomic.unwrap_or(false) || !request.emit.is_empty() || !request.state.is_empty();
    for (index, event) in request.emit.iter().enumerate() {
        check_size(caller, index, event)?;
    }
    // Without results an emit is an accept: what may not be sent or goes nowhere is refused.
    let (taken_in, emit) = if request.results.is_empty() {
        (accept::compose(caller, request.emit, context(caller))?.drafts, Vec::new())
    } else {
        (Vec::new(), emitted(caller, request.emit)?)
    };
    let settle = Settle {
        consumer: caller.actor.clone(),
        queues: caller.principal.own_queues().to_vec(),
        session,
        items: items(request.results)?,
        emit,
        state: state_changes(caller, request.state)?,
        atomic,
    };
    Ok(Composed { settle, taken_in })
}

// === results ===

pub(super) fn items(results: Vec<WireItem>) -> Result<Vec<SettleItem>, Refusal> {
    let mut seen = HashSet::with_capacity(results.len());
    let mut items = Vec::with_capacity(results.len());
    for (index, result) in results.into_iter().enumerate() {
        if !seen.insert(result.delivery) {
            return Err(Refusal::invalid(format!("result {index}: its delivery stands there twice")));
        }
        items.push(item(index, result)?);
    }
    Ok(items)
}

fn item(index: usize, result: WireItem) -> Result<SettleItem, Refusal> {
    let fault = |what: &str| Refusal::invalid(format!("result {index}: {what}"));
    let outcome = outcome(&result).map_err(fault)?;
    if result.evidence.as_ref().is_some_and(|evidence| evidence.get().len() > EVIDENCE_BYTES_MAX) {
        let detail = format!("result {index}: the evidence is longer than {EVIDENCE_BYTES_MAX} bytes");
        return Err(Refusal::new(Code::TooLarge, detail));
    }
    let reply = match &result.reply {
        None => None,
        Some(reply) => Some(reply_json(reply).map_err(fault)?),
    };
    Ok(SettleItem {
        delivery: DeliveryId(result.delivery),
        token: LeaseToken::from_wire(&result.token),
        outcome,
        reason: result.reason.map(cut_reason),
        evidence: result.evidence.map(|evidence| Box::<str>::from(evidence).into_string().into_bytes()),
        reply,
    })
}

fn outcome(result: &WireItem) -> Result<Outcome, &'static str> {
    let takes_after = matches!(result.outcome, WireOutcome::Sent | WireOutcome::Retry | WireOutcome::Extend);
    if result.after_ms.is_some() && !takes_after {
        return Err("`after_ms` goes with `sent`, `retry` and `extend` only");
    }
    if result.scope.is_some() && result.outcome != WireOutcome::Retry {
        return Err("`scope` goes with `retry` only");
    }
    if result.evidence.as_ref().is_some_and(|evidence| !evidence.get().starts_with('{')) {
        return Err("`evidence` must be an object");
    }
    let after = result.after_ms.map(Duration::from_millis);
    Ok(match result.outcome {
        WireOutcome::Begin => Outcome::Begin,
        WireOutcome::Sent => {
            let within = after.ok_or("`sent` needs `after_ms`: how long the proof may take")?;
            if within.is_zero() || within > SENT_WITHIN_MAX {
                return Err("`after_ms` of `sent` must be 1 ms to 7 days");
            }
            Outcome::Sent { within }
        }
        WireOutcome::Delivered => Outcome::Delivered { level: level(result.evidence.as_deref())? },
        WireOutcome::InDoubt => Outcome::InDoubt,
        WireOutcome::Retry => {
            let scope = match result.scope.unwrap_or_default() {
                Scope::Message => RetryScope::Message,
                Scope::Destination => RetryScope::Destination,
                Scope::Lane => RetryScope::Lane,
            };
            Outcome::Retry { after, scope }
        }
        WireOutcome::Reject => Outcome::Reject,
        WireOutcome::Release => Outcome::Release,
        WireOutcome::Extend => {
            let lease = after.unwrap_or(Duration::from_millis(LEASE_MS_DEFAULT));
            if lease.is_zero() || lease > Duration::from_millis(LEASE_MS_MAX) {
                return Err("`after_ms` of `extend` must be 1 ms to 1 hour");
            }
            Outcome::Extend { lease }
        }
        WireOutcome::Wake => Outcome::Wake,
    })
}

/// Without evidence nothing is proven but that it was sent.
fn level(evidence: Option<&RawValue>) -> Result<Level, &'static str> {
    let Some(evidence) = evidence else { return Ok(Level::Sent) };
    let read: EvidenceLevel = serde_json::from_str(evidence.get())
        .map_err(|_| "`evidence` of `delivered` needs `level`: `sent`, `transport` or `business`")?;
    Ok(match read.level {
        WireLevel::Sent => Level::Sent,
        WireLevel::Transport => Level::Transport,
        WireLevel::Business => Level::Business,
    })
}

fn reply_json(reply: &Reply) -> Result<Vec<u8>, &'static str> {
    if reply.data.is_some() && reply.data_base64.is_some() {
        return Err("`data` and `data_base64` of `reply` exclude each other");
    }
    if reply.data_base64.as_ref().is_some_and(|text| BASE64.decode(text).is_err()) {
        return Err("`data_base64` of `reply` is not base64");
    }
    serde_json::to_vec(reply).map_err(|_| "`reply` cannot be written as JSON")
}

fn cut_reason(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    reason
}

// === emitted events ===

/// With results the partner has already acted: what goes nowhere is kept as dead, and the outcomes are written.
fn emitted(caller: &Caller, events: Vec<Event>) -> Result<Vec<Emit>, Refusal> {
    let messages = events.into_iter().enumerate();
    messages
        .map(|(index, event)| {
            let allowed = caller.principal.send_permit(&event.kind).is_some();
            let mut draft =
                Draft::from_event(event, context(caller)).map_err(|error| invalid_event(index, &error))?;
            let dead = match draft.route(&caller.config.routes, caller.principal.name()) {
                _ if !allowed => Some(Reason::TypeNotAllowed),
                Ok(()) => None,
                Err(RouteError::NoRoute) => Some(Reason::NoRoute),
                Err(RouteError::Failed { .. }) => Some(Reason::RouteFailed),
            };
            Ok(Emit { message: draft.message, dead })
        })
        .collect()
}

fn check_size(caller: &Caller, index: usize, event: &Event) -> Result<(), Refusal> {
    let max_message = caller.config.gateway.max_message;
    if event.data.as_ref().is_some_and(|data| data.as_bytes().len() as u64 > max_message) {
        let detail = format!("the payload of event {index} is larger than {max_message} bytes");
        return Err(Refusal::new(Code::TooLarge, detail));
    }
    Ok(())
}

fn context(caller: &Caller) -> Context<'_> {
    Context { idempotency_key: None, traceparent: caller.trace.as_ref().map(TraceParent::as_str) }
}

// === adapter state ===

type StateChange = (String, Option<Vec<u8>>);

fn state_changes(
    caller: &Caller,
    state: BTreeMap<String, Option<String>>,
) -> Result<Vec<StateChange>, Refusal> {
    match caller.adapter() {
        _ if state.is_empty() => {}
        None => return Err(Refusal::forbidden("only adapters have state")),
        // Each node's process would overwrite what the others' remember.
        Some(adapter) if adapter.nodes == Nodes::Each => {
            return Err(Refusal::forbidden("an adapter with `nodes = \"each\"` has no state"));
        }
        Some(_) => {}
    }
    if state.len() > STATE_KEYS_MAX {
        return Err(Refusal::new(
            Code::TooLarge,
            format!("a settle changes {STATE_KEYS_MAX} keys of state at most"),
        ));
    }
    state.into_iter().map(|(key, value)| Ok((key_of(key)?, value.map(value_of).transpose()?))).collect()
}

fn key_of(key: String) -> Result<String, Refusal> {
    if (1..=STATE_KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(key);
    }
    Err(Refusal::invalid(format!("a key of `state` must have 1 to {STATE_KEY_BYTES_MAX} bytes")))
}

fn value_of(value: String) -> Result<Vec<u8>, Refusal> {
    let bytes = BASE64.decode(value).map_err(|_| Refusal::invalid("a value of `state` is not base64"))?;
    if bytes.len() > STATE_VALUE_BYTES_MAX {
        let detail = format!("a value of `state` is longer than {STATE_VALUE_BYTES_MAX} bytes");
        return Err(Refusal::new(Code::TooLarge, detail));
    }
    Ok(bytes)
}

// === answer ===

fn response(answer: SettleAnswer) -> SettleResponse {
    let emitted = answer.emitted.into_iter().map(|(id, duplicate)| EmittedItem { id: id.0, duplicate });
    SettleResponse { results: settled_items(&answer.items), emitted: emitted.collect() }
}

/// What became of each item, as it stands in answers and in the problem of a refused atomic settle.
pub(crate) fn settled_items(items: &[SettledItem]) -> Vec<WireSettled> {
    let item = |item: &SettledItem| WireSettled {
        delivery: item.delivery.0,
        status: if item.ok { SettleStatus::Ok } else { SettleStatus::Stale },
        state: item.state.to_owned(),
    };
    items.iter().map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(result: &str) -> Result<SettleItem, Refusal> {
        let head =
            r#""delivery":"018f0000-0000-7000-8000-000000000000","token":"00000007abababababababababababab""#;
        item(3, serde_json::from_str(&format!("{{{head},{result}}}")).unwrap())
    }

    fn fault(result: &str) -> String {
        let refusal = read(result).err().unwrap();
        assert!(matches!(refusal.code, Code::InvalidRequest | Code::TooLarge));
        format!("{refusal:?}")
    }

    #[test]
    fn outcomes_are_read_with_their_data() {
        let outcome = |result: &str| read(result).ok().unwrap().outcome;
        assert_eq!(outcome(r#""outcome":"delivered""#), Outcome::Delivered { level: Level::Sent });
        let business = r#""outcome":"delivered","evidence":{"level":"business","ack":"AA"}"#;
        assert_eq!(outcome(business), Outcome::Delivered { level: Level::Business });
        let retry = r#""outcome":"retry","after_ms":1500,"scope":"destination""#;
        let after = Some(Duration::from_millis(1500));
        assert_eq!(outcome(retry), Outcome::Retry { after, scope: RetryScope::Destination });
        let away = Outcome::Retry { after: None, scope: RetryScope::Lane };
        assert_eq!(outcome(r#""outcome":"retry","scope":"lane""#), away);
        assert_eq!(outcome(r#""outcome":"wake""#), Outcome::Wake);
        let plain = Outcome::Retry { after: None, scope: RetryScope::Message };
        assert_eq!(outcome(r#""outcome":"retry""#), plain);
        assert_eq!(
            outcome(r#""outcome":"sent","after_ms":5"#),
            Outcome::Sent { within: Duration::from_millis(5) }
        );
        assert_eq!(outcome(r#""outcome":"extend""#), Outcome::Extend { lease: Duration::from_secs(30) });
    }

    #[test]
    fn misuse_is_named_with_the_results_position_and_without_values() {
        for result in [
            r#""outcome":"delivered","evidence":{"ack":"canary"}"#,
            r#""outcome":"delivered","evidence":{"level":"canary"}"#,
            r#""outcome":"delivered","evidence":"canary""#,
            r#""outcome":"sent""#,
            r#""outcome":"sent","after_ms":0"#,
            r#""outcome":"extend","after_ms":3600001"#,
            r#""outcome":"begin","after_ms":1"#,
            r#""outcome":"wake","after_ms":1"#,
            r#""outcome":"reject","scope":"message""#,
            r#""outcome":"delivered","reply":{"data":1,"data_base64":"AA=="}"#,
            r#""outcome":"delivered","reply":{"data_base64":"canary!"}"#,
        ] {
            let fault = fault(result);
            assert!(fault.contains("result 3") && !fault.contains("canary"), "{result}: {fault}");
        }
        let long = format!(
            r#""outcome":"delivered","evidence":{{"level":"sent","x":"{}"}}"#,
            "x".repeat(EVIDENCE_BYTES_MAX)
        );
        assert!(fault(&long).contains("TooLarge"));
    }

    #[test]
    fn a_token_that_is_none_is_stale_not_a_fault_and_reasons_are_cut_between_characters() {
        let text = format!(
            r#"{{"delivery":"018f0000-0000-7000-8000-000000000000","token":"x","outcome":"reject","reason":"{}"}}"#,
            "é".repeat(REASON_BYTES_MAX)
        );
        let item = item(0, serde_json::from_str(&text).unwrap()).ok().unwrap();
        assert_eq!(item.token, None);
        assert_eq!(item.reason.unwrap().len(), REASON_BYTES_MAX);
        let twice = |id: u128| WireItem {
            delivery: uuid::Uuid::from_u128(id),
            token: String::new(),
            outcome: WireOutcome::Release,
            after_ms: None,
            scope: None,
            reason: None,
            evidence: None,
            reply: None,
        };
        assert!(items(vec![twice(1), twice(2)]).is_ok() && items(vec![twice(1), twice(1)]).is_err());
    }
}
