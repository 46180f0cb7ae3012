//! What every request passes: it gets an id, its caller is identified before anything of it is parsed, and whatever comes of
//! it is counted, logged and answered in one shape; many refusals in a row are held back.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use gatepost_api::problem::Code;
use gatepost_core::principal::{Actor, ActorKind};
use tracing::Instrument as _;

use super::allowance::Paced;
use super::headers::{TraceParent, bearer};
use super::identity::{Caller, Stranger, identify, unknown_peer};
use super::places::Place;
use super::problem::Refusal;
use super::state::AppState;
use crate::listen::Peer;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The route of requests that match none, as metrics name it.
const NO_ROUTE: &str = "unmatched";

/// What is known of a request before it is handled, for its log line and its metrics.
struct Record {
    id: String,
    method: Method,
    route: Option<MatchedPath>,
    peer: Option<Peer>,
    trace: Option<TraceParent>,
    started: Instant,
}

pub(crate) async fn guard(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let record = Record {
        id: state.request_ids.next(),
        method: request.method().clone(),
        route: request.extensions().get().cloned(),
        peer: request.extensions().get().cloned(),
        trace: TraceParent::from_headers(request.headers()),
        started: Instant::now(),
    };
    let span = record.span();
    let (actor, response) = match admit(&state, &mut request, record.trace.clone()) {
        Err(stranger) => (stranger.actor, stranger.refusal.into_response()),
        // The place is held until the answer's head is ready; what is left then is the listener's to bound, a refusal that is held
        // back too.
        Ok((actor, _place)) => (actor, next.run(request).instrument(span).await),
    };
    // Whatever an adapter does shows that it is there: one that is busy leases nothing for a while.
    if actor.kind == ActorKind::Adapter && response.status().is_success() {
        state.consumers.saw(&actor.name);
    }
    let response = finish(&state, &record, &actor, response);
    if response.status().is_client_error() {
        hold_back(&state, &actor).await;
    }
    response
}

/// Who is refused over and over is told later; at once, when the gateway stops.
async fn hold_back(state: &AppState, actor: &Actor) {
    let held = state.holdback.next(actor, Instant::now());
    if !held.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(held) => {}
            () = state.stopped() => {}
        }
    }
}

/// Identifies the caller and finds it a place.
fn admit(
    state: &AppState,
    request: &mut Request,
    trace: Option<TraceParent>,
) -> Result<(Actor, Place), Stranger> {
    let config = state.config.load_full();
    let nobody = |refusal| Stranger { actor: unknown_peer(), refusal };
    let peer = request.extensions().get::<Peer>();
    let peer = peer.ok_or_else(|| nobody(Refusal::internal("a request came without its peer")))?;
    let principal = identify(&config, peer, bearer(request.headers()), state.tokens.as_ref())?;
    let actor = principal.actor();
    let limits = principal.limits();
    let refused = |refusal| Stranger { actor: actor.clone(), refusal };
    if let Some(rate) = limits.request_rate {
        state.allowances.take(&actor, Paced::Requests, rate, 1, Instant::now()).map_err(refused)?;
    }
    let place = state.open.take(&actor, limits.requests).map_err(refused)?;
    request.extensions_mut().insert(Caller { config, principal, actor: actor.clone(), trace });
    Ok((actor, place))
}

fn finish(state: &AppState, record: &Record, actor: &Actor, mut response: Response) -> Response {
    let refusal = response.extensions_mut().remove::<Refusal>();
    if let Some(refusal) = &refusal {
        record.log(actor, refusal);
        state.metrics.refused(refusal.code);
        if refusal.is_security_event() {
            state.trail.refused(actor.clone(), refusal.code.as_str());
        }
        let rendered = refusal.render(&record.id);
        let allow = response.headers_mut().remove(header::ALLOW);
        response = rendered;
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    state.metrics.answered(&record.method, record.route(), response.status(), record.started.elapsed());
    let headers = response.headers_mut();
    // A UUID is always a legal header value.
    if let Ok(id) = HeaderValue::from_str(&record.id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

impl Record {
    fn route(&self) -> &str {
        self.route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str)
    }

    fn span(&self) -> tracing::Span {
        tracing::debug_span!(
            "request",
            id = %self.id,
            method = %self.method,
            route = self.route(),
            connection = self.peer.as_ref().map(|peer| tracing::field::display(peer.connection)),
            trace_id = self.trace.as_ref().map(TraceParent::trace_id),
            parent_id = self.trace.as_ref().map(TraceParent::parent_id),
        )
    }

    /// Once per failure, here.
    fn log(&self, actor: &Actor, refusal: &Refusal) {
        let (request_id, method, route) = (&self.id, &self.method, self.route());
        let connection = self.peer.as_ref().map(|peer| tracing::field::display(peer.connection));
        let pid = self.peer.as_ref().and_then(|peer| peer.pid);
        let trace_id = self.trace.as_ref().map(TraceParent::trace_id);
        let (code, cause) = (refusal.code.as_str(), refusal.cause().unwrap_or("-"));
        match refusal.code {
            Code::Internal => {
                tracing::error!(%request_id, %method, route, %actor, trace_id, code, cause, "a request failed");
            }
            Code::StorageFull | Code::StoreUnavailable => {
                tracing::warn!(%request_id, %method, route, %actor, trace_id, code, cause, "the store did not take a request");
            }
            _ if refusal.is_security_event() => {
                tracing::warn!(%request_id, %method, route, %actor, connection, pid, code, "a request was refused");
            }
            _ => tracing::debug!(%request_id, %method, route, %actor, code, "a request was refused"),
        }
    }
}
