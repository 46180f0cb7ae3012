//! Is it alive, is it ready and if not what blocks, and what do its numbers say.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gatepost_api::problem::Problem;
use gatepost_core::principal::OperatorRight;
use gatepost_store::{QueueKind, QueueRow};
use serde::Serialize;
use utoipa::ToSchema;

use super::consumers::{ABSENT_AFTER, Consumers};
use super::identity::Caller;
use super::metrics::{self, View};
use super::problem::Refusal;
use super::state::AppState;

/// A queue is stalled when a delivery that could go has waited this long.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// An inbox's reader is there if it asked for work within this span.
const CONSUMER_SEEN_WITHIN: Duration = Duration::from_secs(120);
/// The state of an adapter that its breaker holds down.
const TRIPPED: &str = "tripped";

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Readiness {
    ready: bool,
    /// What blocks, in words.
    blocking: Vec<String>,
    /// What the configuration is warned of, with place and rule, and what it asks for and is not there; for operators only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    /// The user that the gateway runs as; for operators only.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs_as: Option<String>,
}

#[utoipa::path(
    get, path = "/livez", operation_id = "livez", tag = "health",
    description = "The process answers; for any authenticated peer.",
    responses((status = 200, description = "It lives", body = String, content_type = "text/plain")),
)]
pub(crate) async fn livez(_caller: Caller) -> &'static str {
    "ok\n"
}

#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "health",
    description = "Whether messages are taken in and go out; for any authenticated peer. Names what blocks.",
    responses(
        (status = 200, description = "It is ready", body = Readiness),
        (status = 503, description = "It is not; `blocking` says why", body = Readiness),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn readyz(State(state): State<AppState>, caller: Caller) -> Response {
    let blocking = blocking(&state).await;
    let ready = blocking.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let warnings = if caller.is_operator() {
        let configured = caller.config.warnings.iter().map(ToString::to_string);
        configured.chain(unmet(&state)).collect()
    } else {
        Vec::new()
    };
    let runs_as = caller.is_operator().then(|| state.runs_as.clone());
    (status, Json(Readiness { ready, blocking, warnings, runs_as })).into_response()
}

/// What adapters' sandboxes lack although the configuration asks for it.
fn unmet(state: &AppState) -> impl Iterator<Item = String> {
    state.adapter_items().into_iter().flat_map(|adapter| {
        let unmet = adapter.sandbox.map(|sandbox| sandbox.unmet).unwrap_or_default();
        unmet.into_iter().map(move |what| format!("adapters.{}.{what}", adapter.name))
    })
}

async fn blocking(state: &AppState) -> Vec<String> {
    let mut blocking = Vec::new();
    if state.is_stopping() {
        blocking.push("the gateway is stopping".to_owned());
    }
    // What exactly the store says may name files of this host, which is for its log.
    if let Err(cause) = state.store.health().accepting() {
        tracing::debug!(cause, "the store does not accept");
        blocking.push("the store does not take writes".to_owned());
    }
    blocking.extend(damaged(&state.store.health().damaged()));
    if let Err(cause) = state.store.health().signing() {
        tracing::debug!(cause, "the audit log is not written");
        blocking.push("the audit log cannot be written".to_owned());
    }
    match state.store.read().queue_list().await {
        Ok(queues) => blocking.extend(queues.iter().filter_map(|queue| stalled(queue, &state.consumers))),
        Err(error) => {
            tracing::warn!(%error, "the queues could not be read");
            blocking.push("the store cannot be read".to_owned());
        }
    }
    let adapters = state.adapter_items();
    let tripped = adapters.iter().filter(|adapter| adapter.state == TRIPPED);
    blocking.extend(tripped.map(|adapter| format!("adapter `{}` fails again and again", adapter.name)));
    blocking
}

/// Damaged deliveries do not move before the data directory is repaired. Damaged messages have ended as dead.
fn damaged(rows: &[(&'static str, String)]) -> Option<String> {
    let mut deliveries = rows.iter().filter(|(table, _)| *table == "delivery").map(|(_, row)| row);
    let first = deliveries.next()?;
    let more = deliveries.count();
    let others = if more == 0 { String::new() } else { format!(" and {more} more") };
    Some(format!("delivery {first}{others} in the database is damaged: see `gatepost doctor`"))
}

/// Deliveries that could go and do not: nobody takes them, although somebody is there for it, or should be.
fn stalled(queue: &QueueRow, consumers: &Consumers) -> Option<String> {
    let waited = queue.stats.oldest_ready.filter(|waited| *waited > STALLED_AFTER)?;
    let attended = match queue.kind {
        QueueKind::Adapter | QueueKind::ExternalAdapter => true,
        QueueKind::Inbox => consumers.seen_within(&queue.name, CONSUMER_SEEN_WITHIN),
        QueueKind::Builtin | QueueKind::Removed | QueueKind::Sender => false,
    };
    let braked = queue.stats.paused || queue.stats.tripped.is_some();
    let absent =
        queue.kind == QueueKind::ExternalAdapter && !consumers.seen_within(&queue.name, ABSENT_AFTER);
    let why = if absent { "its adapter, which is run elsewhere, is absent, and " } else { "" };
    (attended && !braked).then(|| {
        let (name, waited) = (&queue.name, waited.as_secs());
        format!("queue `{name}` is stalled: {why}a delivery has been ready for {waited} s")
    })
}

#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = "health",
    description = "Numbers for Prometheus (OpenMetrics); for operators.",
    responses(
        (status = 200, description = "The numbers", body = String, content_type = "text/plain"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn metrics(State(state): State<AppState>, caller: Caller) -> Result<Response, Refusal> {
    caller.operator(OperatorRight::Read)?;
    let queues = state.store.read().queue_list().await?;
    let adapters = state.adapter_items();
    let view = View {
        queues: &queues,
        health: state.store.health(),
        adapters: &adapters,
        listeners: &state.listeners,
    };
    let page = state.metrics.page(&view).map_err(Refusal::internal)?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(metrics::MEDIA_TYPE))], page).into_response())
}

#[cfg(test)]
mod tests {
    use gatepost_core::queue::TripReason;
    use gatepost_store::QueueStats;

    use super::*;

    fn queue(kind: QueueKind, ready_s: u64) -> QueueRow {
        let stats = QueueStats { oldest_ready: Some(Duration::from_secs(ready_s)), ..QueueStats::default() };
        QueueRow { name: "lab".into(), kind, stats }
    }

    #[test]
    fn damaged_deliveries_block_and_damaged_messages_do_not() {
        assert_eq!(damaged(&[("message", "3".into())]), None);
        let rows = [("delivery", "5".to_owned()), ("message", "3".into()), ("delivery", "7".into())];
        assert!(damaged(&rows[..2]).unwrap().starts_with("delivery 5 in"));
        assert!(damaged(&rows).unwrap().starts_with("delivery 5 and 1 more in"));
    }

    #[test]
    fn only_a_queue_that_should_move_and_does_not_is_stalled() {
        let consumers = Consumers::default();
        assert!(stalled(&queue(QueueKind::Adapter, 61), &consumers).unwrap().contains("`lab`"));
        assert_eq!(stalled(&queue(QueueKind::Adapter, 60), &consumers), None);
        assert_eq!(stalled(&queue(QueueKind::Inbox, 61), &consumers), None, "nobody has ever read it");
        consumers.saw("lab");
        assert!(stalled(&queue(QueueKind::Inbox, 61), &consumers).is_some());
        let external = queue(QueueKind::ExternalAdapter, 61);
        assert!(!stalled(&external, &consumers).unwrap().contains("absent"));
        consumers.backdate("lab", ABSENT_AFTER * 2);
        assert!(stalled(&external, &consumers).unwrap().contains("absent"));
        let mut paused = queue(QueueKind::Adapter, 61);
        paused.stats.paused = true;
        let mut tripped = queue(QueueKind::Adapter, 61);
        tripped.stats.tripped = Some(TripReason::Unreachable);
        assert_eq!((stalled(&paused, &consumers), stalled(&tripped, &consumers)), (None, None));
    }
}
