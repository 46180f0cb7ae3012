//! Looking at messages: one with its history, its payload, and the operators' list.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use gatepost_api::event::Event;
use gatepost_api::lists::MessageList;
use gatepost_api::messages::MessageView;
use gatepost_api::problem::{Code, Problem};
use gatepost_audit::leaf::Event as LeafEvent;
use gatepost_core::MessageId;
use gatepost_core::message::DataForm;
use gatepost_core::principal::{Actor, OperatorRight};
use gatepost_store::{Data, MessageFilter, StoredMessage};
use serde::Deserialize;
use utoipa::IntoParams;

use super::identity::Caller;
use super::payload::Payload;
use super::places::SMALL_BODY_BYTES;
use super::problem::Refusal;
use super::query::{self, Params, page_limit};
use super::state::AppState;
use super::views::{self, Replies};

/// Media type of a payload whose sender named none.
const UNNAMED_BYTES: &str = "application/octet-stream";
const UNNAMED_JSON: &str = "application/json";

#[utoipa::path(
    get, path = "/v1/messages/{id}", operation_id = "message_show", tag = "messages",
    description = "A message's attributes, deliveries and their history; for its sender and for operators.",
    params(("id" = String, Path, description = "The message's id")),
    responses(
        (status = 200, description = "The message", body = MessageView),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<MessageView>, Refusal> {
    let id = query::message_id(&id)?;
    if caller.is_operator() {
        caller.operator(OperatorRight::Read)?;
        state.trail.looked_up(LeafEvent::Searched, &caller.actor, "message").await;
    }
    let detail = state.store.read().message_detail(id).await?.ok_or_else(no_such_message)?;
    if !caller.is_operator() && detail.message.sender != caller.actor {
        return Err(no_such_message());
    }
    let replies =
        replies_for(&state, &caller, id, detail.deliveries.iter().any(|(_, reply)| reply.is_some())).await?;
    views::detail(detail, replies).map(Json)
}

/// Replies are payload: the sender sees them; an operator with the right to, after the leaf that says so.
async fn replies_for(
    state: &AppState,
    caller: &Caller,
    id: MessageId,
    any: bool,
) -> Result<Replies, Refusal> {
    if !caller.is_operator() {
        return Ok(Replies::Shown);
    }
    if !any || caller.operator(OperatorRight::ReadPayload).is_err() {
        return Ok(Replies::Withheld);
    }
    state.trail.payload_read(&caller.actor, id).await?;
    Ok(Replies::Shown)
}

#[utoipa::path(
    get, path = "/v1/messages/{id}/data", operation_id = "message_data", tag = "messages",
    description = "The payload's bytes as they were sent; for its sender, for operators who may read payloads, and for whoever \
                   holds a lease of one of its deliveries.",
    params(("id" = String, Path, description = "The message's id")),
    responses(
        (status = 200, description = "The payload", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn data(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let id = query::message_id(&id)?;
    if caller.is_operator() {
        caller.operator(OperatorRight::ReadPayload)?;
    }
    let head = state.store.read().message(id, Data::Omit).await?.ok_or_else(no_such_message)?;
    if caller.is_operator() {
        state.trail.payload_read(&caller.actor, id).await?;
    } else if !may_read(&state, &caller, &head.sender, id).await? {
        return Err(no_such_message());
    }
    if head.purged {
        return Err(Refusal::new(Code::PayloadPurged, "the payload is past its retention"));
    }
    // Before the payload is read: what waits here holds none.
    let room = match head.size {
        size if size > SMALL_BODY_BYTES => Some(state.answer_memory.reserve(&caller.actor, size).await?),
        _ => None,
    };
    let message = state.store.read().message(id, Data::Include).await?.ok_or_else(no_such_message)?;
    // It may have been purged since the head was read.
    let data = match message.data.clone() {
        Some(data) => data,
        None if message.size == 0 => Default::default(),
        None => return Err(Refusal::new(Code::PayloadPurged, "the payload is past its retention")),
    };
    let headers = [
        (header::CONTENT_TYPE, media_type(&message)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, Body::new(Payload::new(data, room))).into_response())
}

async fn may_read(state: &AppState, caller: &Caller, sender: &Actor, id: MessageId) -> Result<bool, Refusal> {
    if *sender == caller.actor {
        return Ok(true);
    }
    Ok(state.store.read().message_leased_in(id, caller.principal.own_queues()).await?)
}

fn media_type(message: &StoredMessage) -> HeaderValue {
    let named =
        serde_json::from_slice::<Event>(&message.attributes).ok().and_then(|event| event.datacontenttype);
    let unnamed = if message.form == DataForm::Json { UNNAMED_JSON } else { UNNAMED_BYTES };
    named.and_then(|name| HeaderValue::from_str(&name).ok()).unwrap_or(HeaderValue::from_static(unnamed))
}

fn no_such_message() -> Refusal {
    Refusal::not_found("there is no such message")
}

/// Filters of the list; all given ones must hold. Subject and key are exact.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageParams {
    app: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    subject: Option<String>,
    /// The `partitionkey` or the `barrierkey`.
    key: Option<String>,
    /// Some delivery is in this state.
    state: Option<String>,
    destination: Option<String>,
    /// RFC 3339.
    since: Option<String>,
    /// RFC 3339.
    until: Option<String>,
    /// Most entries, 1 to 500; 50 unless given.
    limit: Option<u32>,
    /// The `next` of the page before.
    cursor: Option<String>,
}

#[utoipa::path(
    get, path = "/v1/messages", operation_id = "message_list", tag = "messages",
    description = "Messages, newest first; for operators.",
    params(MessageParams),
    responses(
        (status = 200, description = "A page", body = MessageList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    caller: Caller,
    Params(params): Params<MessageParams>,
) -> Result<Json<MessageList>, Refusal> {
    caller.operator(OperatorRight::Read)?;
    let limit = page_limit(params.limit)?;
    let filter = MessageFilter {
        app: params.app,
        kind: params.kind,
        subject: params.subject,
        key: params.key,
        state: query::state(params.state)?,
        destination: params.destination,
        since: query::moment("since", params.since.as_deref())?,
        until: query::moment("until", params.until.as_deref())?,
    };
    state.trail.looked_up(LeafEvent::Searched, &caller.actor, "messages").await;
    let page = state.store.read().message_list(&filter, params.cursor.as_deref(), limit).await?;
    Ok(Json(MessageList { messages: page.items.iter().map(views::message).collect(), next: page.next }))
}
