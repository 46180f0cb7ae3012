//! Operators' calls to adapters: an operator asks, the adapter answers while the operator waits, and the audit log has both. What can
//! be called is the adapter's affair; that it is asked by somebody who may, for a reason, and provably, is the gateway's.

mod desk;
mod texts;

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use gatepost_api::calls::{
    CALL_ANSWER_BYTES_MAX, CALL_TEXT_BYTES_MAX, CALL_WAIT_MS_MAX, CallAnswer, CallAnswerRequest,
    CallAnswered, CallRequest, NextCallRequest, NextCallResponse, OFFERS_MAX, Offer, OfferList, PendingCall,
    is_call_name,
};
use gatepost_api::problem::{Code, Problem};
use gatepost_audit::leaf::Event as LeafEvent;
use gatepost_core::principal::{Actor, ActorKind, OperatorRight};
use gatepost_store::AuditNote;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::body;
use super::deliveries::{read, said};
use super::headers::require_json;
use super::identity::Caller;
use super::problem::Refusal;
use super::queues::find;
use super::state::AppState;
use desk::{Answer, NoCall, Superseded};

pub(crate) use desk::Calls;
pub(crate) use texts::forget_calls;

/// How long an operator waits for an adapter's answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

#[utoipa::path(
    get, path = "/v1/adapters/{name}/calls", operation_id = "adapter_calls", tag = "adapters",
    description = "What operators can call an adapter for; for operators.",
    params(("name" = String, Path, description = "The adapter")),
    responses(
        (status = 200, description = "The calls that it offers", body = OfferList),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn offers(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<OfferList>, Refusal> {
    caller.operator(OperatorRight::Read)?;
    find(&state, &name)?;
    let calls = state.calls.offers(&name).map_err(|no| no_call(no, &name))?;
    Ok(Json(OfferList { calls }))
}

#[utoipa::path(
    post, path = "/v1/adapters/{name}/calls", operation_id = "adapter_call", tag = "adapters",
    description = "Calls an adapter for something that it offers, and waits for its answer, 30 s at most. A call that changes something is \
        for operators who may operate, and takes a reason.",
    params(("name" = String, Path, description = "The adapter")),
    request_body = CallRequest,
    responses(
        (status = 200, description = "The adapter's answer", body = CallAnswer),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn call(
    State(state): State<AppState>,
    caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<CallAnswer>, Refusal> {
    let looks = caller.operator(OperatorRight::Read)?;
    let CallRequest { call, arguments, reason } = read(&state, &caller, request).await?;
    find(&state, &name)?;
    let offer = state.calls.offer(&name, &call).map_err(|no| no_call(no, &name))?;
    let (permit, reason) = if offer.changes {
        (caller.operator(OperatorRight::Operate)?, Some(said(reason.as_deref().unwrap_or_default())?))
    } else if reason.is_some() {
        return Err(Refusal::invalid(format!("`{call}` changes nothing and takes no `reason`")));
    } else {
        (looks, None)
    };
    let operator = permit.operator().clone();
    let pending = PendingCall { id: Uuid::now_v7(), call, arguments, operator: operator.name.to_string() };
    let tasks = state.tasks.clone();
    // Whoever has asked may go away: what was asked is written down, and so is what it came to.
    tasks.run(async move { ask(&state, &name, operator, pending, reason).await }).await
}

async fn ask(
    state: &AppState,
    adapter: &str,
    operator: Actor,
    pending: PendingCall,
    reason: Option<String>,
) -> Result<Json<CallAnswer>, Refusal> {
    let id = pending.id;
    let note = match &reason {
        // The leaf first: what the log does not know must not happen.
        Some(reason) => Some(note_asked(state, adapter, operator, &pending, reason).await?),
        None => {
            state.trail.looked_up(LeafEvent::Searched, &operator, "adapter").await;
            None
        }
    };
    let answered = state.calls.place(adapter, pending, note).map_err(|no| no_call(no, adapter))?;
    let answer = tokio::select! {
        answered = tokio::time::timeout(ANSWER_WAIT, answered) => answered.ok().and_then(Result::ok),
        () = state.stopped() => None,
    };
    match answer {
        Some(Answer::Done(answer)) => Ok(Json(CallAnswer { answer })),
        Some(Answer::Refused(why)) => Err(Refusal::new(Code::CallRefused, why)),
        None if state.calls.give_up(adapter, id) => {
            let what = "the adapter has got the call and has not answered; it may have done it";
            Err(Refusal::new(Code::CallUnanswered, what))
        }
        None => Err(no_call(NoCall::Absent, adapter)),
    }
}

fn no_call(no: NoCall, adapter: &str) -> Refusal {
    match no {
        NoCall::Absent => Refusal::new(
            Code::AdapterAbsent,
            "nothing was done: the adapter takes no calls; it is not connected to this gateway, or offers none",
        ),
        NoCall::NotOffered => {
            Refusal::invalid(format!("`call` is none that it offers; see `GET /v1/adapters/{adapter}/calls`"))
        }
        NoCall::TooMany => {
            Refusal::new(Code::TooManyRequests, "too many calls wait for this adapter; nothing was done")
        }
    }
}

/// Puts what was asked, with its arguments and its reason, beside the log, and into the log who asked for what, and the digest of that.
async fn note_asked(
    state: &AppState,
    adapter: &str,
    operator: Actor,
    pending: &PendingCall,
    reason: &str,
) -> Result<String, Refusal> {
    let PendingCall { id, call, arguments, .. } = pending;
    let text = json!({
        "call_id": id, "operator": &*operator.name, "adapter": adapter, "call": call, "arguments": arguments, "reason": reason,
    });
    let text = text.to_string();
    let digest = digest_of(&text);
    let dir = state.config.load().gateway.data_dir.join("audit");
    let file = texts::file_name(*id);
    let written =
        tokio::task::spawn_blocking(move || gatepost_audit::write_file_durable(&dir, &file, text.as_bytes()));
    written.await.map_err(Refusal::internal)?.map_err(Refusal::internal)?;
    let note = AuditNote {
        code: Some(call.clone()),
        destination: Some(adapter.to_owned()),
        target: Some(digest.clone()),
        ..AuditNote::new(LeafEvent::AdapterCalled, operator)
    };
    state.store.audit_note(vec![note]).await?;
    Ok(digest)
}

fn digest_of(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[utoipa::path(
    post, path = "/v1/calls/next", operation_id = "call_next", tag = "adapters",
    description = "Gives an adapter the next call of an operator, and tells what it can be called for. With `wait_ms` the answer waits \
        until there is one. The same call is given until it is answered, and never to a later session.",
    request_body = NextCallRequest,
    responses(
        (status = 200, description = "The call, or none", body = NextCallResponse),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn next(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Json<NextCallResponse>, Refusal> {
    let adapter = called(&caller)?;
    let NextCallRequest { epoch, offers, wait_ms } = read(&state, &caller, request).await?;
    check_offers(&offers)?;
    let wait = Duration::from_millis(wait_ms.min(CALL_WAIT_MS_MAX));
    let call = tokio::select! {
        call = state.calls.next(&adapter, epoch, offers, wait) => call.map_err(superseded)?,
        () = state.stopped() => None,
    };
    Ok(Json(NextCallResponse { call }))
}

fn check_offers(offers: &[Offer]) -> Result<(), Refusal> {
    if offers.len() > OFFERS_MAX {
        return Err(Refusal::invalid(format!("`offers` has more than {OFFERS_MAX}")));
    }
    for (place, offer) in offers.iter().enumerate() {
        if !is_call_name(&offer.name) || offers[..place].iter().any(|before| before.name == offer.name) {
            let rule = "1 to 40 lower case letters, digits and `_`, each once";
            return Err(Refusal::invalid(format!("`name` of offer {place} cannot be a call's: {rule}")));
        }
        if offer.about.len() > CALL_TEXT_BYTES_MAX {
            let rule = format!("`about` of offer {place} has more than {CALL_TEXT_BYTES_MAX} bytes");
            return Err(Refusal::invalid(rule));
        }
    }
    Ok(())
}

#[utoipa::path(
    post, path = "/v1/calls/{id}/answer", operation_id = "call_answer", tag = "adapters",
    description = "An adapter's answer to a call. Its operator is told once the audit log has it.",
    params(("id" = String, Path, description = "The call's id")),
    request_body = CallAnswerRequest,
    responses(
        (status = 200, description = "The audit log has it", body = CallAnswered),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(crate) async fn answer(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<CallAnswered>, Refusal> {
    let adapter = called(&caller)?;
    let no_such_call = || Refusal::not_found("this session has no such call to answer");
    let id: Uuid = id.parse().map_err(|_| no_such_call())?;
    require_json(request.headers())?;
    let received =
        body::receive(request.into_body(), CALL_ANSWER_BYTES_MAX, &state.body_memory, &caller.actor).await?;
    let CallAnswerRequest { epoch, answer, refused } = body::parse(&received.bytes)?;
    let answer = match (answer, refused) {
        (Some(answer), None) => Answer::Done(answer),
        (None, Some(why)) if (1..=CALL_TEXT_BYTES_MAX).contains(&why.len()) => Answer::Refused(why),
        (None, Some(_)) => {
            let rule = format!("`refused` must say why, in 1 to {CALL_TEXT_BYTES_MAX} bytes");
            return Err(Refusal::invalid(rule));
        }
        (Some(_), Some(_)) | (None, None) => {
            return Err(Refusal::invalid("say one of `answer` and `refused`"));
        }
    };
    let note = state.calls.taken(&adapter, epoch, id).map_err(superseded)?.ok_or_else(no_such_call)?;
    let tasks = state.tasks.clone();
    tasks
        .run(async move {
            if let Some(digest) = note {
                let said = if matches!(answer, Answer::Done(_)) { "done" } else { "refused" };
                let by = Actor::new(ActorKind::Adapter, adapter.clone());
                let note = AuditNote {
                    code: Some(said.to_owned()),
                    destination: Some(adapter.clone()),
                    target: Some(digest),
                    ..AuditNote::new(LeafEvent::AdapterAnswered, by)
                };
                state.store.audit_note(vec![note]).await?;
            }
            let told = state.calls.answer(&adapter, id, answer);
            Ok::<_, Refusal>(Json(CallAnswered { told }))
        })
        .await
}

fn called(caller: &Caller) -> Result<String, Refusal> {
    let adapter = caller.adapter().ok_or_else(|| Refusal::forbidden("only adapters are called"))?;
    Ok(adapter.name.clone())
}

fn superseded(_: Superseded) -> Refusal {
    Refusal::new(Code::Superseded, "a newer session of this adapter is open")
}
