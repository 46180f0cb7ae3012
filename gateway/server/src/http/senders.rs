//! What operators see of who hands in messages.

use axum::Json;
use axum::extract::State;
use gatepost_api::lists::SenderList;
use gatepost_api::problem::Problem;
use gatepost_core::principal::OperatorRight;

use super::identity::Caller;
use super::problem::Refusal;
use super::state::AppState;
use super::views;

#[utoipa::path(
    get, path = "/v1/senders", operation_id = "sender_list", tag = "senders",
    description = "What each app and adapter has handed in and is not settled, and how much of that it may be; for operators.",
    responses(
        (status = 200, description = "All of them", body = SenderList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<SenderList>, Refusal> {
    caller.operator(OperatorRight::Read)?;
    let senders = state.store.health().senders();
    Ok(Json(SenderList { senders: senders.into_iter().map(views::sender).collect() }))
}
