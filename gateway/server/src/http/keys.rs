//! The seal key, and erasing what was sealed.

use axum::Json;
use axum::extract::{Request, State};
use gatepost_api::keys::{EraseAnswer, EraseRequest, RotateAnswer};
use gatepost_api::problem::Problem;
use gatepost_core::MessageId;
use gatepost_core::principal::OperatorRight;
use gatepost_store::EraseWhat;

use super::deliveries::read;
use super::identity::Caller;
use super::problem::Refusal;
use super::state::AppState;

/// Most ids that an answer names; it counts them all.
const IDS_NAMED_MAX: usize = 1000;

#[utoipa::path(
    post, path = "/v1/seal-key/rotate", operation_id = "seal_key_rotate", tag = "keys",
    description = "Wraps all data keys with a new version of the seal key and destroys the older ones; for operators who may operate. \
        What was begun and interrupted is ended. Nothing that is stored is encrypted anew, so it takes a moment whatever is stored.",
    responses(
        (status = 200, description = "The version that is in use now", body = RotateAnswer),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn rotate(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<Json<RotateAnswer>, Refusal> {
    let permit = caller.operator(OperatorRight::Operate)?;
    let (store, by) = (state.store.clone(), permit.operator().clone());
    let rotated = state.tasks.run(async move { store.seal_key_rotate(by).await }).await?;
    Ok(Json(RotateAnswer { version: rotated.version, destroyed: rotated.destroyed }))
}

#[utoipa::path(
    post, path = "/v1/erase", operation_id = "erase", tag = "keys",
    description = "Erases all that messages were about: payload, attributes, replies, evidence, and their keys, so that copies cannot be \
        read either; for operators who may operate. The audit log stays, and still verifies. A message with a delivery under way stays, and is named.",
    request_body = EraseRequest,
    responses(
        (status = 200, description = "What was erased, and what was not", body = EraseAnswer),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn erase(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Json<EraseAnswer>, Refusal> {
    let permit = caller.operator(OperatorRight::Operate)?;
    let request: EraseRequest = read(&state, &caller, request).await?;
    let what = match (request.message, request.app, request.subject) {
        (Some(id), None, None) => EraseWhat::Message(message_id(&id)?),
        (None, Some(app), None) => EraseWhat::App(app),
        (None, None, Some(subject)) => EraseWhat::Subject(subject),
        _ => return Err(Refusal::invalid("say one of `message`, `app` and `subject`")),
    };
    if let EraseWhat::Message(id) = &what
        && state.store.read().message(*id, gatepost_store::Data::Omit).await?.is_none()
    {
        return Err(Refusal::not_found("there is no such message"));
    }
    let (store, by) = (state.store.clone(), permit.operator().clone());
    let erased = state.tasks.run(async move { store.erase(by, what).await }).await?;
    let named = |ids: &[MessageId]| ids.iter().take(IDS_NAMED_MAX).map(ToString::to_string).collect();
    Ok(Json(EraseAnswer {
        erased: erased.messages.len() as u64,
        messages: named(&erased.messages),
        under_way: erased.unsettled.len() as u64,
        messages_under_way: named(&erased.unsettled),
        stored_plain: erased.plain,
        seal_key: erased.seal_key,
        copies_remain: erased.copies_remain,
    }))
}

fn message_id(text: &str) -> Result<MessageId, Refusal> {
    let id = text.parse::<uuid::Uuid>();
    id.map(MessageId).map_err(|_| Refusal::invalid("`message` is not a message's id"))
}
