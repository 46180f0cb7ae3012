//! `POST /v1/queues/{name}/lease`: hands out deliveries, waiting for some if there are none.

use std::fmt::Write as _;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use gatepost_api::problem::Problem;
use gatepost_api::queues::{
    LEASE_DELIVERIES_MAX, LEASE_MS_DEFAULT, LEASE_MS_MAX, LEASE_WAIT_MS_MAX, LeaseRequest as WireRequest,
    LeaseResponse, REQUEST_ID_BYTES_MAX,
};
use gatepost_core::Outcome;
use gatepost_core::principal::QueuePermit;
use gatepost_store::{LeaseAnswer, LeaseError, LeaseRequest, Leased, Settle, SettleItem, Store};
use tokio::time::Instant;

use super::assemble::append_event;
use super::body::{self, SMALL_REQUEST_BYTES_MAX};
use super::headers::require_json;
use super::identity::Caller;
use super::problem::Refusal;
use super::state::AppState;
use super::tasks::Tasks;

/// Payload bytes of one answer unless the request says, and at most.
const LEASE_BYTES_DEFAULT: u64 = 8 * 1024 * 1024;
const LEASE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Hints may be lost: ask again after this long in any case.
const RECHECK: Duration = Duration::from_secs(5);
/// The store says when something falls due; asking sooner than this after it found nothing would only spin.
const RECHECK_MIN: Duration = Duration::from_millis(1);

#[utoipa::path(
    post, path = "/v1/queues/{name}/lease", operation_id = "queue_lease", tag = "queues",
    description = "Leases deliveries of the caller's own queue. With `wait_ms` the answer waits until there is something to give.",
    params(("name" = String, Path, description = "An adapter's own name, or an inbox of the app")),
    request_body = WireRequest,
    responses(
        (status = 200, description = "The leased deliveries, perhaps none", body = LeaseResponse),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn lease(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let permit = caller.principal.queue_permit(&name);
    let permit = permit.ok_or_else(|| Refusal::forbidden("this is not a queue of the caller's"))?;
    require_json(request.headers())?;
    let received =
        body::receive(request.into_body(), SMALL_REQUEST_BYTES_MAX, &state.body_memory, &caller.actor)
            .await?;
    let wire: WireRequest = body::parse(&received.bytes)?;
    let session = caller.session(wire.epoch, "`epoch`")?;
    let wait = Duration::from_millis(wire.wait_ms.unwrap_or(0).min(LEASE_WAIT_MS_MAX));
    let request = store_request(&permit, wire, session)?;
    let _polls = state.consumers.poll(permit.queue());
    let deliveries = poll(&state, request, wait).await?;
    if deliveries.is_empty() && is_paused(&state, permit.queue()).await {
        return Ok(json(r#"{"deliveries":[],"paused":true}"#.to_owned()));
    }
    Ok(answer(&deliveries))
}

/// An operator's pause looks like an empty queue to whoever reads it, unless it is told.
async fn is_paused(state: &AppState, queue: &str) -> bool {
    // Only for information: a queue that cannot be looked at is not called paused.
    matches!(state.store.read().queue(queue).await, Ok(Some(row)) if row.stats.paused)
}

fn store_request(
    permit: &QueuePermit,
    wire: WireRequest,
    session: Option<u64>,
) -> Result<LeaseRequest, Refusal> {
    if wire.max == 0 || wire.lease_ms == Some(0) {
        return Err(Refusal::invalid("`max` and `lease_ms` must be at least 1"));
    }
    if wire.request_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > REQUEST_ID_BYTES_MAX) {
        return Err(Refusal::invalid(format!("`request_id` must have 1 to {REQUEST_ID_BYTES_MAX} bytes")));
    }
    Ok(LeaseRequest {
        consumer: permit.consumer().clone(),
        queue: permit.queue().to_owned(),
        max: wire.max.min(LEASE_DELIVERIES_MAX),
        max_bytes: wire.max_bytes.unwrap_or(LEASE_BYTES_DEFAULT).min(LEASE_BYTES_MAX),
        lease: Duration::from_millis(wire.lease_ms.unwrap_or(LEASE_MS_DEFAULT).min(LEASE_MS_MAX)),
        request_id: wire.request_id,
        session,
    })
}

/// Asks until there is something to give, the time is up or the gateway stops. Dropped when the client goes away.
async fn poll(state: &AppState, request: LeaseRequest, wait: Duration) -> Result<Vec<Leased>, Refusal> {
    let deadline = Instant::now() + wait;
    let hint = state.store.queue_hint(&request.queue);
    loop {
        if state.is_stopping() {
            return Ok(Vec::new());
        }
        let notified = hint.notified();
        tokio::pin!(notified);
        // Armed before asking, so that what arrives between the answer and the wait is not missed.
        notified.as_mut().enable();
        let answer = once(&state.tasks, &state.store, request.clone()).await?;
        let now = Instant::now();
        if !answer.deliveries.is_empty() || now >= deadline {
            return Ok(answer.hand_over());
        }
        let pause = answer.next_due.unwrap_or(RECHECK).clamp(RECHECK_MIN, RECHECK);
        tokio::select! {
            () = notified => {}
            () = tokio::time::sleep_until(deadline.min(now + pause)) => {}
            () = state.stopped() => {}
        }
    }
}

/// Leases once, on a task of its own: a client that goes away does not cancel the commit.
async fn once(tasks: &Tasks, store: &Store, request: LeaseRequest) -> Result<Claim, Refusal> {
    let (tasks_of_claim, store) = (tasks.clone(), store.clone());
    tasks
        .run(async move {
            let LeaseAnswer { deliveries, next_due } = store.delivery_lease(request.clone()).await?;
            // A client that named its request may come for the same leases again.
            let lost = request.request_id.is_none() && !deliveries.is_empty();
            let lost = lost.then_some(Lost { tasks: tasks_of_claim, store, request });
            Ok::<_, LeaseError>(Claim { deliveries, next_due, lost })
        })
        .await
}

/// Leased deliveries on their way to the client. If they do not get there since it has gone, they go back at once.
struct Claim {
    deliveries: Vec<Leased>,
    next_due: Option<Duration>,
    lost: Option<Lost>,
}

/// What giving leases back needs.
struct Lost {
    tasks: Tasks,
    store: Store,
    request: LeaseRequest,
}

impl Claim {
    /// The client is there: they are its own.
    fn hand_over(mut self) -> Vec<Leased> {
        self.lost = None;
        std::mem::take(&mut self.deliveries)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Without a runtime the gateway has ended, and its leases with it or by themselves.
        if let Some(lost) = self.lost.take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            let tasks = lost.tasks.clone();
            tasks.start(give_back(lost, std::mem::take(&mut self.deliveries)));
        }
    }
}

async fn give_back(lost: Lost, deliveries: Vec<Leased>) {
    let items = deliveries.iter().map(|leased| SettleItem {
        delivery: leased.delivery,
        token: Some(leased.token),
        outcome: Outcome::Release,
        reason: None,
        evidence: None,
        reply: None,
    });
    let settle = Settle {
        consumer: lost.request.consumer,
        queues: vec![lost.request.queue],
        session: lost.request.session,
        items: items.collect(),
        emit: Vec::new(),
        state: Vec::new(),
        atomic: false,
    };
    if let Err(error) = lost.store.delivery_settle(settle).await {
        // The leases then end by themselves.
        tracing::debug!(%error, "leases of a client that went away could not be given back");
    }
}

/// Written by hand: the events are spliced from stored bytes without parsing them again.
fn answer(deliveries: &[Leased]) -> Response {
    let mut json = String::from(r#"{"deliveries":["#);
    let mut first = true;
    for leased in deliveries {
        let before = json.len();
        if !first {
            json.push(',');
        }
        // Writing into a String does not fail.
        let _ = write!(
            json,
            r#"{{"id":"{}","token":"{}","attempt":{},"in_doubt":{},"lease_ms":{},"event":"#,
            leased.delivery,
            leased.token.to_wire(),
            leased.attempt,
            leased.doubt,
            leased.lease.as_millis(),
        );
        match append_event(&mut json, &leased.message) {
            Ok(()) => {
                json.push('}');
                first = false;
            }
            Err(error) => {
                // Its lease runs out, again and again until its attempts are spent; the queue behind it goes on.
                tracing::error!(delivery = %leased.delivery, %error, "a leased event is left out of the answer");
                json.truncate(before);
            }
        }
    }
    json.push_str("]}");
    self::json(json)
}

fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}
