//! The audit log for auditors, as C2SP tlog-tiles serves it, and receipts for senders.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use gatepost_api::problem::{Code, Problem};
use gatepost_audit::TilePath;
use gatepost_audit::leaf::Event as LeafEvent;
use gatepost_core::principal::OperatorRight;
use gatepost_store::Receipt;
use serde::Serialize;
use utoipa::ToSchema;

use super::identity::Caller;
use super::problem::Refusal;
use super::query;
use super::state::AppState;

const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";

/// Receipts of a delivery with more than one leaf.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Proofs {
    /// Each a C2SP tlog-proof.
    proofs: Vec<String>,
}

#[utoipa::path(
    get, path = "/v1/audit/checkpoint", operation_id = "audit_checkpoint", tag = "audit",
    description = "The newest signed tree head (C2SP checkpoint).",
    responses(
        (status = 200, description = "The checkpoint", body = String, content_type = "text/plain"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn checkpoint(State(state): State<AppState>, caller: Caller) -> Result<Response, Refusal> {
    caller.operator(OperatorRight::Audit)?;
    Ok((content(TEXT), state.store.read().checkpoint()).into_response())
}

#[utoipa::path(
    get, path = "/v1/audit/tile/{level}/{*index}", operation_id = "audit_tile", tag = "audit",
    description = "A tile of hashes (C2SP tlog-tiles).",
    params(
        ("level" = String, Path, description = "The tile's level"),
        ("index" = String, Path, description = "The tile's index and width, as in `x001/067.p/5`"),
    ),
    responses(
        (status = 200, description = "The hashes", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn tile(
    State(state): State<AppState>,
    caller: Caller,
    Path((level, index)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    read_tile(&state, &caller, &format!("tile/{level}/{index}")).await
}

#[utoipa::path(
    get, path = "/v1/audit/tile/entries/{*index}", operation_id = "audit_entries", tag = "audit",
    description = "A bundle of entries (C2SP tlog-tiles).",
    params(("index" = String, Path, description = "The bundle's index and width, as in `x001/067.p/5`")),
    responses(
        (status = 200, description = "The entries", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn entries(
    State(state): State<AppState>,
    caller: Caller,
    Path(index): Path<String>,
) -> Result<Response, Refusal> {
    read_tile(&state, &caller, &format!("tile/entries/{index}")).await
}

async fn read_tile(state: &AppState, caller: &Caller, path: &str) -> Result<Response, Refusal> {
    caller.operator(OperatorRight::Audit)?;
    let absent = || Refusal::not_found("the log has no such tile");
    let path = TilePath::parse(path).ok_or_else(absent)?;
    state.trail.looked_up(LeafEvent::AuditRead, &caller.actor, "log").await;
    let reader = state.store.read();
    let bytes = match path {
        TilePath::Tile { level, index, width } => reader.tile(level, index, width).await?,
        TilePath::Entries { index, width } => reader.entries(index, width).await?,
    };
    Ok((content(BYTES), bytes.ok_or_else(absent)?).into_response())
}

#[utoipa::path(
    get, path = "/v1/audit/receipt/{delivery}", operation_id = "audit_receipt", tag = "audit",
    description = "The proof that every leaf of a delivery is in the log; for the message's sender and for auditors.",
    params(("delivery" = String, Path, description = "The delivery's id")),
    responses(
        (status = 200, description = "One proof as text, several as JSON", content(
            (String = "text/plain"), (Proofs = "application/json"),
        )),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn receipt(
    State(state): State<AppState>,
    caller: Caller,
    Path(delivery): Path<String>,
) -> Result<Response, Refusal> {
    let delivery = query::delivery_id(&delivery)?;
    let absent = || Refusal::not_found("there is no such delivery");
    if caller.is_operator() {
        caller.operator(OperatorRight::Audit)?;
        state.trail.looked_up(LeafEvent::AuditRead, &caller.actor, "receipt").await;
    } else if state.store.read().delivery_sender(delivery).await?.as_ref() != Some(&caller.actor) {
        return Err(absent());
    }
    match state.store.read().receipt(delivery).await? {
        Receipt::Unknown => Err(absent()),
        Receipt::Pending => Err(Refusal::new(Code::ReceiptPending, "the next checkpoint will cover it")),
        Receipt::Proofs(mut proofs) => match proofs.pop() {
            Some(proof) if proofs.is_empty() => Ok((content(TEXT), proof).into_response()),
            Some(proof) => {
                proofs.push(proof);
                Ok(Json(Proofs { proofs }).into_response())
            }
            None => Err(absent()),
        },
    }
}

fn content(media_type: &'static str) -> [(HeaderName, HeaderValue); 1] {
    [(header::CONTENT_TYPE, HeaderValue::from_static(media_type))]
}
