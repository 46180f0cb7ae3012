//! The HTTP API, version 1: what peers may ask, who may ask it, and how it is answered.
//!
//! * [`router`] gives every route; `guard` is what each request passes first: identity, limits, metrics, one shape of failure.
//! * Coming in: `headers`, `body`, `events`, `binary` and `intake` read requests; `accept`, `settle`, `session` hand them over, `repeats` finds what was accepted before.
//! * Going out: `lease` with `assemble`, `wait`, `messages` with `payload`, `deliveries`, `queues`, `audit`, `health`, all shaped by `views`.
//! * `trail` and `coalesce` put reads and refusals into the audit log; `consumers` knows who asks for work; `tasks` keeps commits alive when clients go away.
//!
//! **Architecture invariant:** nothing here decides a delivery's state or knows SQL. Nothing of a request is parsed before its
//! caller is known. Status codes of failures stand in `problem`; no payload, secret or attribute value in errors, logs or metrics.

mod accept;
mod allowance;
mod assemble;
mod audit;
mod binary;
mod body;
mod calls;
mod coalesce;
mod consumers;
mod deliveries;
mod events;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod guard;
mod headers;
mod health;
mod help;
mod holdback;
mod identity;
mod intake;
mod keys;
mod lease;
mod messages;
mod metrics;
mod nodes;
mod payload;
mod places;
mod problem;
mod query;
mod queues;
mod repeats;
mod request_ids;
mod senders;
mod session;
mod settle;
mod state;
mod tasks;
mod token_changes;
mod trail;
mod views;
mod wait;

#[cfg(test)]
mod tests;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use gatepost_api::problem::Code;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use calls::forget_calls;
pub(crate) use consumers::EXTERNAL;
pub(crate) use problem::Refusal;
pub(crate) use state::{AdapterControl, AppState, RestartError};
pub(crate) use token_changes::follow_tokens;

/// Head of the API's description.
#[derive(OpenApi)]
#[openapi(info(
    title = "Gatepost",
    description = "The local integration gateway's API. Every failure is a problem (RFC 9457); `/v1/problems` lists them.",
))]
struct Description;

/// The whole API, for any number of listeners. Each request must carry a [`crate::listen::Peer`] in its extensions.
pub(crate) fn router(state: AppState) -> Router {
    let (router, description) = documented().split_for_parts();
    // Written once: it does not change while the gateway runs.
    let description = description.to_json().unwrap_or_default();
    let router =
        router.route("/v1/openapi.json", axum::routing::get(move || async move { json_text(description) }));
    router
        .route("/v1/problems", axum::routing::get(problems))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(state.clone(), guard::guard))
        .with_state(state)
}

/// Every route that the description lists.
fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(accept::accept, messages::list))
        .routes(routes!(messages::show))
        .routes(routes!(messages::data))
        .routes(routes!(lease::lease))
        .routes(routes!(settle::settle))
        .routes(routes!(session::open))
        .routes(routes!(queues::list))
        .routes(routes!(queues::show))
        .routes(routes!(queues::pause))
        .routes(routes!(queues::resume))
        .routes(routes!(queues::rehome))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::show))
        .routes(routes!(deliveries::replay))
        .routes(routes!(deliveries::discard))
        .routes(routes!(deliveries::resolve))
        .routes(routes!(nodes::list))
        .routes(routes!(senders::list))
        .routes(routes!(keys::rotate))
        .routes(routes!(keys::erase))
        .routes(routes!(queues::adapters))
        .routes(routes!(queues::restart))
        .routes(routes!(calls::offers, calls::call))
        .routes(routes!(calls::next))
        .routes(routes!(calls::answer))
        .routes(routes!(audit::checkpoint))
        .routes(routes!(audit::tile))
        .routes(routes!(audit::entries))
        .routes(routes!(audit::receipt))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
}

fn json_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

async fn problems() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/markdown; charset=utf-8"))], help::page())
        .into_response()
}

async fn not_found() -> Refusal {
    Refusal::not_found("there is nothing at this address")
}

async fn method_not_allowed() -> Refusal {
    Refusal::new(Code::MethodNotAllowed, "this address does not take this method")
}
