//! Operators' calls: what an adapter can be called for while it runs, and what it says to that. That only those call who may, and that
//! the audit log has it, is the gateway's affair.

use std::time::Duration;

use gatepost_api::Code;
use gatepost_api::calls::{
    CALL_ANSWER_BYTES_MAX, CALL_TEXT_BYTES_MAX, CallAnswerRequest, CallAnswered, NextCallRequest,
    NextCallResponse, Offer, PendingCall,
};
use serde_json::{Map, Value, json};

use crate::client::{Call, CallError, Purpose};
use crate::patience::{Chain, Pause, persist};
use crate::session::Session;

const POLL_WAIT: Duration = Duration::from_secs(20);
/// On top of the long poll, before the call counts as lost.
const POLL_GRACE: Duration = Duration::from_secs(10);
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct OperatorCall {
    /// One of the offers.
    pub name: String,
    pub arguments: Map<String, Value>,
    /// The operator's name in the gateway's configuration.
    pub operator: String,
}

impl Session {
    /// Answers operators' calls, one after the other, until the adapter is asked to stop. An `Err` says why nothing was done. A call
    /// that `answer` has begun is ended and reported before this returns; it is made once, however often the gateway has to be told.
    pub async fn answer_calls<A>(&self, offers: Vec<Offer>, mut answer: A)
    where
        A: AsyncFnMut(OperatorCall) -> Result<Value, String>,
    {
        let wait_ms = crate::evidence::millis(POLL_WAIT);
        let request = NextCallRequest { epoch: self.epoch(), offers, wait_ms };
        let poll = match Call::post_json(Purpose::Poll, "/v1/calls/next", &request, POLL_WAIT + POLL_GRACE) {
            Ok(poll) => poll,
            Err(error) => return self.no_calls(&error),
        };
        let stop = self.stop();
        let mut pause = Pause::default();
        loop {
            let polled = tokio::select! {
                polled = self.client().call::<NextCallResponse>(&poll) => polled,
                () = stop.requested() => return,
            };
            match polled {
                Ok(NextCallResponse { call: None }) => pause = Pause::default(),
                Ok(NextCallResponse { call: Some(call) }) => {
                    pause = Pause::default();
                    let PendingCall { id, call, arguments, operator } = call;
                    let said = answer(OperatorCall { name: call, arguments, operator }).await;
                    let path = format!("/v1/calls/{id}/answer");
                    let told = match Call::post_json(
                        Purpose::Report,
                        path,
                        &self.answer_of(said),
                        ANSWER_DEADLINE,
                    ) {
                        Ok(call) => persist::<CallAnswered>(self.client(), &call).await.map(drop),
                        Err(error) => Err(error),
                    };
                    match told {
                        // The gateway has lost it, with whoever has asked.
                        Err(CallError::Refused(refusal))
                            if refusal.problem.code == Code::NotFound.as_str() => {}
                        Err(error) => return self.no_calls(&error),
                        Ok(()) => {}
                    }
                }
                Err(error) if error.retryable() => {
                    tokio::select! {
                        () = pause.after(&error) => {}
                        () = stop.requested() => return,
                    }
                }
                Err(error) => return self.no_calls(&error),
            }
        }
    }

    fn answer_of(&self, said: Result<Value, String>) -> CallAnswerRequest {
        let epoch = self.epoch();
        match said {
            Ok(answer) => {
                let bytes = answer.to_string().len() as u64;
                // Its request is a little larger.
                let fits = bytes < CALL_ANSWER_BYTES_MAX - 1024;
                let answer = if fits { answer } else { json!({"done": true, "left_out_bytes": bytes}) };
                CallAnswerRequest { epoch, answer: Some(answer), refused: None }
            }
            Err(why) => {
                let why = if why.is_empty() { "the adapter refused, and did not say why" } else { &why };
                let end = why.floor_char_boundary(CALL_TEXT_BYTES_MAX);
                CallAnswerRequest { epoch, answer: None, refused: Some(why[..end].to_owned()) }
            }
        }
    }

    /// The adapter's work goes on without them.
    fn no_calls(&self, error: &CallError) {
        self.end_if_superseded(Some(error));
        if !error.superseded() {
            tracing::error!(error = %Chain(error), "operators cannot call this adapter any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::testing::Gateway;

    fn offers() -> Vec<Offer> {
        vec![Offer { name: "reset".to_owned(), changes: true, about: "Sets it to 1".to_owned() }]
    }

    fn pending() -> Value {
        json!({"call": {"id": Uuid::from_u128(1), "call": "reset", "arguments": {"a": 1}, "operator": "ops"}})
    }

    #[tokio::test]
    async fn a_call_is_made_once_and_its_answer_told_until_the_gateway_has_it() {
        let (mut gateway, session) = Gateway::open(json!({})).await;
        let made = std::cell::RefCell::new(Vec::new());
        let answering = session.answer_calls(offers(), async |call| {
            made.borrow_mut().push(call);
            Ok(json!({"next": 1}))
        });
        let played = async {
            gateway.next("/v1/calls/next").await.hang_up();
            let poll = gateway.next("/v1/calls/next").await;
            assert_eq!((&poll.body["epoch"], &poll.body["offers"][0]["name"]), (&json!(7), &json!("reset")));
            poll.answer(200, &pending());
            let path = format!("/v1/calls/{}/answer", Uuid::from_u128(1));
            gateway.next(&path).await.answer_problem("store_unavailable");
            let told = gateway.next(&path).await;
            assert_eq!(told.body, json!({"epoch": 7, "answer": {"next": 1}}));
            told.answer(200, &json!({"told": true}));
            // Lost with the gateway that had it.
            gateway.next("/v1/calls/next").await.answer(200, &pending());
            gateway.next(&path).await.answer_problem("not_found");
            let last = gateway.next("/v1/calls/next").await;
            gateway.drain();
            last
        };
        let ((), _last) = tokio::join!(answering, played);
        let call = OperatorCall {
            name: "reset".to_owned(),
            arguments: json!({"a": 1}).as_object().unwrap().clone(),
            operator: "ops".to_owned(),
        };
        assert_eq!(*made.borrow(), [call.clone(), call]);
    }

    #[tokio::test]
    async fn a_refusal_says_why_and_what_is_too_large_is_left_out() {
        let (mut gateway, session) = Gateway::open(json!({})).await;
        let mut answers = vec![Err("ü".repeat(2000)), Err(String::new()), Ok(json!("x".repeat(300_000)))];
        let answering = session.answer_calls(offers(), async |_| answers.remove(0));
        let played = async {
            let mut told = Vec::new();
            for _ in 0..3 {
                gateway.next("/v1/calls/next").await.answer(200, &pending());
                let call = gateway.next("/answer").await;
                told.push(call.body.clone());
                call.answer(200, &json!({"told": true}));
            }
            gateway.next("/v1/calls/next").await.answer_problem("superseded");
            told
        };
        let ((), told) = tokio::join!(answering, played);
        assert_eq!(told[0]["refused"].as_str().unwrap(), "ü".repeat(500));
        assert!(told[1]["refused"].as_str().unwrap().contains("did not say"));
        assert_eq!(told[2]["answer"]["left_out_bytes"], 300_002);
        gateway.superseded().await;
    }
}
