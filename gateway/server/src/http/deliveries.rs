//! What operators see of deliveries and decide on them.

use axum::Json;
use axum::extract::{Path, Request, State};
use gatepost_api::lists::{
    DeliveryItem, DeliveryList, ReasonRequest, Resolution as WireResolution, ResolveRequest,
};
use gatepost_api::problem::Problem;
use gatepost_api::settle::REASON_BYTES_MAX;
use gatepost_audit::leaf::Event as LeafEvent;
use gatepost_core::Resolution;
use gatepost_core::principal::{OperatorPermit, OperatorRight};
use gatepost_store::{DeliveryFilter, Verb};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::body::{self, SMALL_REQUEST_BYTES_MAX};
use super::headers::require_json;
use super::identity::Caller;
use super::problem::Refusal;
use super::query::{self, Params, page_limit};
use super::state::AppState;
use super::views;

/// Not a state of its own: in doubt, and waiting for a person.
const HELD: &str = "held";

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeliveryParams {
    /// A state; or `held` for those in doubt that wait for a person.
    state: Option<String>,
    destination: Option<String>,
    /// Most entries, 1 to 500; 50 unless given.
    limit: Option<u32>,
    /// The `next` of the page before.
    cursor: Option<String>,
}

#[utoipa::path(
    get, path = "/v1/deliveries", operation_id = "delivery_list", tag = "deliveries",
    description = "Deliveries; for operators.",
    params(DeliveryParams),
    responses(
        (status = 200, description = "A page", body = DeliveryList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    caller: Caller,
    Params(params): Params<DeliveryParams>,
) -> Result<Json<DeliveryList>, Refusal> {
    caller.operator(OperatorRight::Read)?;
    let limit = page_limit(params.limit)?;
    let held = params.state.as_deref() == Some(HELD);
    let filter = DeliveryFilter {
        state: if held { None } else { query::state(params.state)? },
        destination: params.destination,
        held,
    };
    state.trail.looked_up(LeafEvent::Searched, &caller.actor, "deliveries").await;
    let page = state.store.read().delivery_list(&filter, params.cursor.as_deref(), limit).await?;
    Ok(Json(DeliveryList { deliveries: page.items.iter().map(views::delivery).collect(), next: page.next }))
}

#[utoipa::path(
    get, path = "/v1/deliveries/{id}", operation_id = "delivery", tag = "deliveries",
    description = "One delivery; for operators.",
    params(("id" = String, Path, description = "The delivery's id")),
    responses(
        (status = 200, description = "The delivery", body = DeliveryItem),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeliveryItem>, Refusal> {
    caller.operator(OperatorRight::Read)?;
    let id = query::delivery_id(&id)?;
    state.trail.looked_up(LeafEvent::Searched, &caller.actor, "deliveries").await;
    let row = state.store.read().delivery(id).await?;
    let row = row.ok_or_else(|| Refusal::not_found("there is no such delivery"))?;
    Ok(Json(views::delivery(&row)))
}

#[utoipa::path(
    post, path = "/v1/deliveries/{id}/replay", operation_id = "delivery_replay", tag = "deliveries",
    description = "Has a dead delivery tried again.",
    params(("id" = String, Path, description = "The delivery's id")),
    request_body = ReasonRequest,
    responses(
        (status = 200, description = "The delivery afterwards", body = DeliveryItem),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn replay(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<DeliveryItem>, Refusal> {
    let permit = caller.operator(OperatorRight::Operate)?;
    let ReasonRequest { reason } = read(&state, &caller, request).await?;
    operate(&state, permit, &id, Verb::Replay, reason).await
}

#[utoipa::path(
    post, path = "/v1/deliveries/{id}/discard", operation_id = "delivery_discard", tag = "deliveries",
    description = "Gives a dead delivery up for good.",
    params(("id" = String, Path, description = "The delivery's id")),
    request_body = ReasonRequest,
    responses(
        (status = 200, description = "The delivery afterwards", body = DeliveryItem),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn discard(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<DeliveryItem>, Refusal> {
    let permit = caller.operator(OperatorRight::Operate)?;
    let ReasonRequest { reason } = read(&state, &caller, request).await?;
    operate(&state, permit, &id, Verb::Discard, reason).await
}

#[utoipa::path(
    post, path = "/v1/deliveries/{id}/resolve", operation_id = "delivery_resolve", tag = "deliveries",
    description = "Decides a delivery in doubt.",
    params(("id" = String, Path, description = "The delivery's id")),
    request_body = ResolveRequest,
    responses(
        (status = 200, description = "The delivery afterwards", body = DeliveryItem),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn resolve(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<DeliveryItem>, Refusal> {
    let permit = caller.operator(OperatorRight::Operate)?;
    let ResolveRequest { resolution, reason } = read(&state, &caller, request).await?;
    let resolution = match resolution {
        WireResolution::Delivered => Resolution::Delivered,
        WireResolution::Retry => Resolution::Retry,
        WireResolution::Dead => Resolution::Dead,
    };
    operate(&state, permit, &id, Verb::Resolve(resolution), reason).await
}

pub(super) async fn read<T: DeserializeOwned>(
    state: &AppState,
    caller: &Caller,
    request: Request,
) -> Result<T, Refusal> {
    require_json(request.headers())?;
    let received =
        body::receive(request.into_body(), SMALL_REQUEST_BYTES_MAX, &state.body_memory, &caller.actor)
            .await?;
    body::parse(&received.bytes)
}

/// An operator's reason, which there must be.
pub(super) fn said(reason: &str) -> Result<String, Refusal> {
    let reason = reason.trim();
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
        return Err(Refusal::invalid(format!("`reason` must say why, in 1 to {REASON_BYTES_MAX} bytes")));
    }
    Ok(reason.to_owned())
}

async fn operate(
    state: &AppState,
    permit: OperatorPermit,
    id: &str,
    verb: Verb,
    reason: String,
) -> Result<Json<DeliveryItem>, Refusal> {
    let id = query::delivery_id(id)?;
    let reason = said(&reason)?;
    let store = state.store.clone();
    let row = state.tasks.run(async move { store.delivery_operate(&permit, id, verb, reason).await }).await?;
    Ok(Json(views::delivery(&row)))
}
