//! `POST /v1/session`: an adapter opens its session.

use axum::Json;
use axum::extract::{Request, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gatepost_api::problem::Problem;
use gatepost_api::session::{SessionRequest, SessionResponse};
use gatepost_core::Level;
use serde_json::value::to_raw_value;

use super::body::{self, SMALL_REQUEST_BYTES_MAX};
use super::headers::require_json;
use super::identity::Caller;
use super::problem::Refusal;
use super::state::AppState;

/// Longest version of an adapter that is kept, bytes.
const VERSION_BYTES_MAX: usize = 128;

#[utoipa::path(
    post, path = "/v1/session", operation_id = "session_open", tag = "adapters",
    description = "Opens the adapter's session and ends its earlier ones. Gives its settings and its durable state.",
    request_body = SessionRequest,
    responses(
        (status = 200, description = "The session", body = SessionResponse),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn open(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Json<SessionResponse>, Refusal> {
    let adapter = caller.adapter().ok_or_else(|| Refusal::forbidden("only adapters have sessions"))?;
    require_json(request.headers())?;
    let received =
        body::receive(request.into_body(), SMALL_REQUEST_BYTES_MAX, &state.body_memory, &caller.actor)
            .await?;
    let SessionRequest { version } =
        if received.bytes.is_empty() { SessionRequest::default() } else { body::parse(&received.bytes)? };
    if version.as_ref().is_some_and(|version| version.len() > VERSION_BYTES_MAX) {
        return Err(Refusal::invalid(format!("`version` has more than {VERSION_BYTES_MAX} bytes")));
    }
    let (store, name) = (state.store.clone(), adapter.name.clone());
    let told = version.clone();
    let session = state.tasks.run(async move { store.session_open(name, told).await }).await?;
    state.calls.session_opened(&adapter.name, session.epoch);
    state.adapters.session_opened(&adapter.name, session.epoch, version.as_deref());
    Ok(Json(SessionResponse {
        epoch: session.epoch,
        name: adapter.name.clone(),
        settings: to_raw_value(&adapter.settings).map_err(Refusal::internal)?,
        state: session.state.into_iter().map(|(key, value)| (key, BASE64.encode(value))).collect(),
        on_doubt: adapter.policy.on_doubt.to_string(),
        confirm: adapter.policy.confirm.unwrap_or(Level::Sent).to_string(),
        order: Some(adapter.policy.order.to_string()),
        window: adapter.policy.window,
        max_in_flight: adapter.policy.max_in_flight,
    }))
}
