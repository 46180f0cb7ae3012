//! What settlements ask the gateway for, and what they make of its answers.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::evidence::Evidence;
use crate::testing::{Gateway, leased};
use gatepost_api::settle::Level;

/// A gateway whose adapter has these in hand.
async fn in_hand(count: u128) -> (Gateway, Session, crate::Pipeline, Vec<Delivery>) {
    let (mut gateway, session) = Gateway::open(json!({"on_doubt": "hold"})).await;
    let mut pipeline = session.pipeline(64);
    let leases: Vec<Value> = (1..=count).map(|number| leased(number, Some("k"))).collect();
    gateway.lease(&leases).await;
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(pipeline.next().await.unwrap());
    }
    (gateway, session, pipeline, held)
}

fn settle(
    session: &Session,
    settlement: Settlement,
) -> tokio::task::JoinHandle<Result<SettleResponse, SettleError>> {
    let session = session.clone();
    tokio::spawn(async move { session.settle(settlement).await })
}

/// What is settled in one call that asks for this outcome of each, and is taken: the call, and what became of it.
async fn taken(
    gateway: &mut Gateway,
    session: &Session,
    settlement: Settlement,
    asked: &[(&str, &str)],
) -> (Value, SettleResponse) {
    let settling = settle(session, settlement);
    let call = gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), asked);
    let body = call.body.clone();
    call.settled("ok");
    (body, settling.await.unwrap().unwrap())
}

async fn nothing_comes(gateway: &mut Gateway, within: Duration, what: &str) {
    assert!(tokio::time::timeout(within, gateway.next("/v1/settle")).await.is_err(), "{what}");
}

fn sent() -> Outcome {
    Outcome::Sent { evidence: Evidence::new(Level::Sent), within: Duration::from_secs(60) }
}

fn delivered() -> Outcome {
    Outcome::Delivered { evidence: Evidence::new(Level::Transport), reply: None }
}

#[tokio::test]
async fn begins_outcomes_messages_and_state_go_together() {
    let (mut gateway, session, _pipeline, held) = in_hand(3).await;
    let mut first = Settlement::default();
    first.begin(&held[0]);
    first.state.set("out/7", *b"8=FIX");
    let (asked, _) = taken(&mut gateway, &session, first, &[("t1", "begin")]).await;
    assert_eq!(asked["state"], json!({"out/7": "OD1GSVg="}));

    let mut second = Settlement::default();
    second.outcome(&held[0], sent());
    second.begin(&held[1]);
    second.begin(&held[2]);
    second.emit(
        serde_json::from_value(json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}))
            .unwrap(),
    );
    let outcomes = [("t1", "sent"), ("t2", "begin"), ("t3", "begin")];
    let (asked, answer) = taken(&mut gateway, &session, second, &outcomes).await;
    assert_eq!(asked["results"][0]["after_ms"], 60_000);
    assert_eq!((&asked["emit"][0]["id"], &asked["epoch"]), (&json!("1"), &json!(7)));
    assert_eq!(answer.results.len(), 3);
}

#[tokio::test]
async fn of_a_refused_one_the_stale_are_lost_and_the_others_still_in_hand() {
    let (mut gateway, session, _pipeline, held) = in_hand(3).await;
    let mut settlement = Settlement::default();
    settlement.begin(&held[0]);
    settlement.begin(&held[1]);
    settlement.outcome(&held[2], Outcome::reject("no"));
    settlement.state.set("seq", *b"9");
    let settling = settle(&session, settlement);
    gateway.next("/v1/settle").await.refused(&[("ok", "sending"), ("stale", "expired"), ("ok", "dead")]);
    let Err(SettleError::Refused(answers)) = settling.await.unwrap() else { panic!("not refused") };
    assert_eq!(answers[1].state, "expired");
    let lost: Vec<bool> = held.iter().map(Delivery::is_lost).collect();
    assert_eq!(lost, [false, true, false]);
    // Its expiry is written by a begin of its own, without the state that was refused.
    let alone = gateway.next("/v1/settle").await;
    assert_eq!((alone.outcomes(), &alone.body["state"]), (vec![("t2", "begin")], &Value::Null));
    alone.settled("stale");
    // The third's outcome was not taken either: it can be settled again.
    let mut again = Settlement::default();
    again.begin(&held[0]);
    again.outcome(&held[2], Outcome::reject("no"));
    taken(&mut gateway, &session, again, &[("t1", "begin"), ("t3", "reject")]).await;
    drop(held);
    nothing_comes(&mut gateway, Duration::from_millis(50), "what is settled or lost was given back").await;
}

#[tokio::test]
async fn what_stands_behind_one_that_goes_back_is_not_begun_by_itself() {
    let (mut gateway, session, _pipeline, held) = in_hand(2).await;
    let mut settlement = Settlement::default();
    settlement.outcome(&held[0], Outcome::in_doubt("broken off"));
    settlement.begin(&held[1]);
    settlement.all_or_nothing();
    let settling = settle(&session, settlement);
    let call = gateway.next("/v1/settle").await;
    assert_eq!(call.body["atomic"], true);
    call.refused(&[("ok", "in_doubt"), ("stale", "in_doubt")]);
    assert!(matches!(settling.await.unwrap(), Err(SettleError::Refused(_))));
    nothing_comes(&mut gateway, Duration::from_millis(50), "begun without its adapter").await;
}

#[tokio::test]
async fn late_proof_settles_with_what_state_remembers() {
    let (_gateway, _session, _pipeline, held) = in_hand(1).await;
    let remembered = serde_json::to_vec(&held[0].lease()).unwrap();
    let (mut later, session) = Gateway::open(json!({"epoch": 8})).await;
    let mut settlement = Settlement::default();
    settlement.late(&serde_json::from_slice(&remembered).unwrap(), delivered());
    settlement.state.delete("out/1");
    let (asked, _) = taken(&mut later, &session, settlement, &[("t1", "delivered")]).await;
    assert_eq!(asked["epoch"], 8);
}

#[tokio::test]
async fn over_a_gateways_restart_the_same_is_said_again() {
    let (mut gateway, session, _pipeline, held) = in_hand(1).await;
    let mut settlement = Settlement::default();
    settlement.begin(&held[0]);
    settlement.state.set("seq", *b"9");
    let settling = settle(&session, settlement);
    let first = gateway.next("/v1/settle").await;
    let said = first.body.clone();
    gateway.vanish();
    first.hang_up();
    tokio::time::sleep(Duration::from_millis(100)).await;
    gateway.come_back();
    let again = gateway.next("/v1/settle").await;
    assert_eq!(again.body, said);
    again.settled("ok");
    settling.await.unwrap().unwrap();
    assert!(!held[0].is_lost());
}

#[tokio::test(start_paused = true)]
async fn no_prolonging_overtakes_sent() {
    let (mut gateway, session, _pipeline, held) = in_hand(1).await;
    let extend = gateway.next("/v1/settle").await;
    assert_eq!(extend.outcomes(), [("t1", "extend")]);
    let mut settlement = Settlement::default();
    settlement.outcome(&held[0], sent());
    let settling = settle(&session, settlement);
    let span = Duration::from_secs(5);
    nothing_comes(&mut gateway, span, "`sent` beside a prolonging that is on its way").await;
    extend.settled("ok");
    let call = gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t1", "sent")]);
    call.settled("ok");
    settling.await.unwrap().unwrap();
    nothing_comes(&mut gateway, Duration::from_secs(60), "prolonged after `sent`").await;
}

#[tokio::test]
async fn what_is_tried_once_says_that_it_was_not_taken_now() {
    let (mut gateway, session, _pipeline, _held) = in_hand(1).await;
    let trying = tokio::spawn({
        let session = session.clone();
        async move {
            let mut settlement = Settlement::default();
            settlement.state.set("seq", *b"9");
            session.try_settle(settlement).await
        }
    });
    gateway.next("/v1/settle").await.answer_problem("queue_full");
    let Err(SettleError::Call(error)) = trying.await.unwrap() else { panic!("taken") };
    assert!(error.retryable());
}

#[tokio::test(start_paused = true)]
async fn of_a_superseded_session_everything_is_lost_and_nobody_waits_for_ever() {
    let (mut gateway, session, _pipeline, held) = in_hand(1).await;
    let extend = gateway.next("/v1/settle").await;
    assert_eq!(extend.outcomes(), [("t1", "extend")]);
    let mut settlement = Settlement::default();
    settlement.outcome(&held[0], sent());
    let settling = settle(&session, settlement);
    extend.answer_problem("superseded");
    gateway.superseded().await;
    assert!(held[0].is_lost(), "its bytes might still leave");
    gateway.next("/v1/settle").await.answer_problem("superseded");
    assert!(settling.await.unwrap().is_err());
}

#[tokio::test]
async fn what_the_gateway_would_refuse_as_too_much_is_told_before() {
    let (_gateway, session, _pipeline, held) = in_hand(1).await;
    type Fills<'t> = &'t dyn Fn(&mut Settlement);
    let keys = |count: usize, bytes: usize| {
        move |settlement: &mut Settlement| {
            (0..count).for_each(|number| settlement.state.set(format!("k{number}"), vec![0; bytes]));
        }
    };
    let named = |key: String| move |settlement: &mut Settlement| settlement.state.set(key.clone(), *b"1");
    let twice = |settlement: &mut Settlement| {
        settlement.begin(&held[0]);
        settlement.outcome(&held[0], delivered());
    };
    let cases: [(Fills<'_>, &str); 6] = [
        (&keys(STATE_KEYS_MAX + 1, 1), "keys of state: 1000 at most"),
        (&keys(1, STATE_VALUE_BYTES_MAX + 1), "bytes in a value of state: 1048576 at most"),
        (&keys(60, STATE_VALUE_BYTES_MAX), "bytes of state in all: 33554432 at most"),
        (&named("k".repeat(257)), "bytes in a key of state: 256 at most"),
        (&named(String::new()), "a key of state is empty"),
        (&twice, "stands in a settlement twice"),
    ];
    for (fill, told) in cases {
        let mut settlement = Settlement::default();
        fill(&mut settlement);
        let refused = session.settle(settlement).await.unwrap_err().to_string();
        assert!(refused.ends_with(told), "{refused}");
    }
}
