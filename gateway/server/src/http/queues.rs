//! What operators see of queues and adapters, and the brakes they may put on.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use gatepost_api::lists::{AdapterItem, AdapterList, MoveAnswer, MoveRequest, QueueItem, QueueList};
use gatepost_api::problem::{Code, Problem};
use gatepost_audit::leaf::Event as LeafEvent;
use gatepost_core::principal::OperatorRight;
use gatepost_store::{AuditNote, MoveError, Moved, Pause};

use super::deliveries::{read, said};
use super::identity::Caller;
use super::problem::Refusal;
use super::query::{PageParams, Params};
use super::state::{AppState, RestartError};
use super::views;

/// Steps of the store in one call to move: a few seconds at most, so that whoever asked sees it go on.
const MOVE_STEPS_PER_CALL: usize = 40;

#[utoipa::path(
    get, path = "/v1/queues", operation_id = "queue_list", tag = "queues",
    description = "All queues with their depths, ages and brakes; for operators.",
    params(PageParams),
    responses(
        (status = 200, description = "A page", body = QueueList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    caller: Caller,
    Params(params): Params<PageParams>,
) -> Result<Json<QueueList>, Refusal> {
    caller.operator(OperatorRight::Read)?;
    let rows = state.store.read().queue_list().await?;
    let (rows, next) = params.cut(rows, |row| row.name.as_str())?;
    Ok(Json(QueueList { queues: rows.iter().map(views::queue).collect(), next }))
}

#[utoipa::path(
    get, path = "/v1/queues/{name}", operation_id = "queue_show", tag = "queues",
    description = "One queue; for operators.",
    params(("name" = String, Path, description = "An adapter, an inbox or `unrouted`")),
    responses(
        (status = 200, description = "The queue", body = QueueItem),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<QueueItem>, Refusal> {
    caller.operator(OperatorRight::Read)?;
    one(&state, &name).await
}

#[utoipa::path(
    post, path = "/v1/queues/{name}/pause", operation_id = "queue_pause", tag = "queues",
    description = "Stops leasing from a queue until it is resumed. Accepting goes on.",
    params(("name" = String, Path, description = "The queue")),
    responses(
        (status = 200, description = "The queue afterwards", body = QueueItem),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn pause(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<QueueItem>, Refusal> {
    brake(&state, &caller, name, Pause::Pause).await
}

#[utoipa::path(
    post, path = "/v1/queues/{name}/resume", operation_id = "queue_resume", tag = "queues",
    description = "Lets a paused queue go on.",
    params(("name" = String, Path, description = "The queue")),
    responses(
        (status = 200, description = "The queue afterwards", body = QueueItem),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn resume(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<QueueItem>, Refusal> {
    brake(&state, &caller, name, Pause::Resume).await
}

#[utoipa::path(
    post, path = "/v1/queues/{name}/move", operation_id = "queue_move", tag = "queues",
    description = "Gives what waits and what is dead in a queue to another destination, in accept order, a part of it with \
        each call. What a partner may have got stays, and so does what waits behind it in its lane.",
    params(("name" = String, Path, description = "The queue, also one that has left the configuration, or `unrouted`")),
    request_body = MoveRequest,
    responses(
        (status = 200, description = "What was moved, and where to go on", body = MoveAnswer),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn rehome(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<MoveAnswer>, Refusal> {
    let permit = caller.operator(OperatorRight::Operate)?;
    let MoveRequest { to, reason, cursor } = read(&state, &caller, request).await?;
    let reason = said(&reason)?;
    let bad_cursor = || Refusal::invalid("`cursor` is not one that this call gave");
    let mut after = match cursor {
        Some(cursor) => cursor.parse().ok().filter(|after: &i64| *after >= 0).ok_or_else(bad_cursor)?,
        None => 0,
    };
    let (store, from) = (state.store.clone(), name.clone());
    let moving = async move {
        let mut sum = Moved::default();
        for _ in 0..MOVE_STEPS_PER_CALL {
            let step =
                store.deliveries_move(&permit, from.clone(), to.clone(), after, reason.clone()).await?;
            sum.waiting += step.waiting;
            sum.dead += step.dead;
            sum.expired += step.expired;
            sum.next = step.next;
            match step.next {
                Some(next) => after = next,
                None => break,
            }
        }
        Ok::<_, MoveError>(sum)
    };
    let moved = state.tasks.run(moving).await?;
    let left = one(&state, &name).await?.0.depth;
    let Moved { waiting, dead, expired, next } = moved;
    Ok(Json(MoveAnswer { waiting, dead, expired, left, next: next.map(|next| next.to_string()) }))
}

async fn brake(
    state: &AppState,
    caller: &Caller,
    name: String,
    pause: Pause,
) -> Result<Json<QueueItem>, Refusal> {
    let permit = caller.operator(OperatorRight::Operate)?;
    // Queues only come and go with the configuration, so that one that is here now is here for the write too.
    one(state, &name).await.map(drop)?;
    let (store, queue) = (state.store.clone(), name.clone());
    state.tasks.run(async move { store.queue_pause(&permit, queue, pause).await }).await?;
    one(state, &name).await
}

async fn one(state: &AppState, name: &str) -> Result<Json<QueueItem>, Refusal> {
    let row = state.store.read().queue(name).await?;
    let row = row.ok_or_else(|| Refusal::not_found("there is no such queue"))?;
    Ok(Json(views::queue(&row)))
}

#[utoipa::path(
    get, path = "/v1/adapters", operation_id = "adapter_list", tag = "adapters",
    description = "The adapters and how their processes fare; for operators.",
    params(PageParams),
    responses(
        (status = 200, description = "A page", body = AdapterList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn adapters(
    State(state): State<AppState>,
    caller: Caller,
    Params(params): Params<PageParams>,
) -> Result<Json<AdapterList>, Refusal> {
    caller.operator(OperatorRight::Read)?;
    let (adapters, next) = params.cut(state.adapter_items(), |adapter| adapter.name.as_str())?;
    Ok(Json(AdapterList { adapters, next }))
}

#[utoipa::path(
    post, path = "/v1/adapters/{name}/restart", operation_id = "adapter_restart", tag = "adapters",
    description = "Has an adapter's process stopped and started anew, also one whose breaker is open.",
    params(("name" = String, Path, description = "The adapter")),
    responses(
        (status = 202, description = "It is being restarted; this is how it fares now", body = AdapterItem),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn restart(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<AdapterItem>), Refusal> {
    let permit = caller.operator(OperatorRight::Operate)?;
    find(&state, &name)?;
    // The leaf first: a restart that the log does not know must not happen.
    let note = AuditNote {
        target: Some(name.clone()),
        ..AuditNote::new(LeafEvent::AdapterRestarted, permit.operator().clone())
    };
    let store = state.store.clone();
    state.tasks.run(async move { store.audit_note(vec![note]).await }).await?;
    state.adapters.restart(&name).map_err(|error| match error {
        RestartError::NotFound => no_such_adapter(),
        RestartError::External => {
            Refusal::new(Code::IllegalState, "the adapter is run elsewhere; restart it there")
        }
    })?;
    Ok((StatusCode::ACCEPTED, Json(find(&state, &name)?)))
}

pub(super) fn find(state: &AppState, name: &str) -> Result<AdapterItem, Refusal> {
    let mut adapters = state.adapter_items().into_iter();
    adapters.find(|adapter| adapter.name == name).ok_or_else(no_such_adapter)
}

fn no_such_adapter() -> Refusal {
    Refusal::not_found("there is no such adapter")
}
