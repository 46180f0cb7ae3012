//! How many connections an adapter has, whatever it does at a time.

use std::time::Duration;

use bytes::Bytes;
use gatepost_api::session::ADAPTER_CONNECTIONS_MAX;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::Purpose;
use crate::testing::{Call, Gateway, leased};
use crate::*;

const DELIVERIES: u128 = 600;
/// As long as a call would take to come that must not.
const A_WHILE: Duration = Duration::from_millis(300);

fn event() -> Event {
    serde_json::from_value(json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"})).unwrap()
}

fn accepted(state: &str) -> Value {
    let delivery = json!({"id": Uuid::nil(), "destination": "d", "state": state});
    json!({"messages": [{"id": Uuid::nil(), "duplicate": false, "deliveries": [delivery]}], "durability": "fsync"})
}

fn large(number: u128) -> Value {
    let mut leased = leased(number, None);
    let event = leased["event"].as_object_mut().unwrap();
    event.remove("data");
    event.insert("dataref".to_owned(), json!(format!("/v1/messages/{number}/data")));
    leased
}

/// All that comes to a path while nothing is answered.
async fn all(gateway: &mut Gateway, path_end: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    while let Ok(call) = tokio::time::timeout(A_WHILE, gateway.next(path_end)).await {
        calls.push(call);
    }
    calls
}

#[tokio::test]
async fn whatever_an_adapter_does_at_a_time_it_stays_below_the_gateways_limit_and_nothing_starves() {
    let (mut gateway, session) = Gateway::open(json!({"max_in_flight": 1000})).await;
    let mut pipeline = session.pipeline(1000);
    let mut numbers = 1..=DELIVERIES;
    let mut tasks = JoinSet::new();
    while !numbers.is_empty() {
        let some: Vec<Value> =
            numbers.by_ref().take(200).map(|n| if n % 6 == 0 { large(n) } else { leased(n, None) }).collect();
        gateway.lease(&some).await;
    }
    for _ in 0..DELIVERIES {
        let (session, delivery) = (session.clone(), pipeline.next().await.unwrap());
        tasks.spawn(async move {
            delivery.data(1000).await.unwrap();
            let mut settlement = Settlement::default();
            let evidence = Evidence::new(Level::Transport);
            settlement.outcome(&delivery, Outcome::Delivered { evidence, reply: None });
            session.settle(settlement).await.unwrap();
        });
    }
    for number in 0..200 {
        let session = session.clone();
        tasks.spawn(async move {
            match number % 3 {
                0 => drop(session.accept(&event(), "k").await.unwrap()),
                1 => drop(session.accept_bytes(&event(), Bytes::from_static(b"x"), "k").await.unwrap()),
                _ => drop(session.ask(&event(), Some("k"), Duration::from_secs(9)).await.unwrap()),
            }
        });
    }
    // Nothing is answered: what comes now is all that it has under way.
    let events = all(&mut gateway, "/v1/messages").await;
    let (asked, accepts): (Vec<_>, Vec<_>) =
        events.into_iter().partition(|call| call.headers.contains_key("prefer"));
    let reports = all(&mut gateway, "/v1/settle").await;
    let payloads = all(&mut gateway, "/data").await;
    for (calls, purpose) in [
        (&asked, Purpose::Ask),
        (&accepts, Purpose::Accept),
        (&reports, Purpose::Report),
        (&payloads, Purpose::Payload),
    ] {
        assert_eq!(calls.len(), purpose.calls_max(), "{purpose:?}");
    }
    // The long poll goes on beside them.
    gateway.lease(&[]).await;
    // All outcomes of what is here get through while the rest waits for an answer.
    for report in reports {
        report.settled("ok");
    }
    let mut told = Purpose::Report.calls_max();
    while told < 500 {
        gateway.next("/v1/settle").await.settled("ok");
        told += 1;
    }
    assert!(all(&mut gateway, "/v1/settle").await.is_empty());
    // So does what is handed in.
    for accept in accepts {
        accept.answer(202, &accepted("waiting"));
    }
    let mut taken = Purpose::Accept.calls_max();
    while taken < 134 {
        gateway.next("/v1/messages").await.answer(202, &accepted("waiting"));
        taken += 1;
    }
    asked.into_iter().for_each(|call| call.answer(200, &accepted("delivered")));
    payloads.into_iter().for_each(|call| call.answer_bytes(200, b"large".to_vec()));
    while !tasks.is_empty() {
        tokio::select! {
            ended = tasks.join_next() => ended.unwrap().unwrap(),
            call = gateway.next("") => match call.path.as_str() {
                "/v1/settle" => call.settled("ok"),
                "/v1/messages" => call.answer(200, &accepted("delivered")),
                path if path.ends_with("/data") => call.answer_bytes(200, b"large".to_vec()),
                path => assert!(path.ends_with("/lease"), "{path}"),
            },
        }
    }
    assert_eq!(gateway.connections_most(), Purpose::all_calls_max() - 3, "one poll, of leasing");
    assert!(gateway.connections_most() < ADAPTER_CONNECTIONS_MAX);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_of_the_gateway_and_not_of_those_who_wait_before() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let mut tasks = JoinSet::new();
    for _ in 0..Purpose::Accept.calls_max() + 1 {
        let session = session.clone();
        tasks.spawn(async move { session.accept(&event(), "k").await });
    }
    let mut calls = Vec::new();
    for _ in 0..Purpose::Accept.calls_max() {
        calls.push(gateway.next("/v1/messages").await);
    }
    // Those that are there run out of time, and the last one has all of it.
    for _ in 0..Purpose::Accept.calls_max() {
        assert!(matches!(tasks.join_next().await.unwrap().unwrap(), Err(AcceptError::Later { .. })));
    }
    let last = gateway.next("/v1/messages").await;
    tokio::time::sleep(Duration::from_secs(19)).await;
    last.answer(202, &accepted("waiting"));
    assert!(tasks.join_next().await.unwrap().unwrap().is_ok());
}
