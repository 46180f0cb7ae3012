//! What operators see of the gateways that share a database.

use axum::Json;
use axum::extract::State;
use gatepost_api::lists::NodeList;
use gatepost_api::problem::Problem;
use gatepost_core::principal::OperatorRight;

use super::identity::Caller;
use super::problem::Refusal;
use super::state::AppState;
use super::views;

#[utoipa::path(
    get, path = "/v1/nodes", operation_id = "node_list", tag = "nodes",
    description = "The gateways that share this one's database, and what each of them does; for operators. Any of them answers \
        the same. None when the database is this gateway's alone.",
    responses(
        (status = 200, description = "All of them", body = NodeList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<NodeList>, Refusal> {
    caller.operator(OperatorRight::Read)?;
    let rows = state.store.read().nodes().await?;
    Ok(Json(NodeList { nodes: rows.iter().map(views::node).collect() }))
}
