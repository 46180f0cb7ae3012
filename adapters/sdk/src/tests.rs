//! The session and its work, against a played gateway.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::client::Client;
use crate::testing::{Connections, Gateway, leased, listen};
use crate::*;

/// A delivery in a worker's hands, waiting for the test to say what came of it.
struct Tried {
    worker: usize,
    number: u128,
    data: Bytes,
    outcome: oneshot::Sender<Outcome>,
}

impl Tried {
    fn delivered(self) {
        let _ =
            self.outcome.send(Outcome::Delivered { evidence: Evidence::new(Level::Transport), reply: None });
    }
}

struct Puppet {
    number: usize,
    tried: mpsc::UnboundedSender<Tried>,
}

impl Worker for Puppet {
    async fn deliver(&mut self, delivery: &Delivery) -> Outcome {
        let data = match delivery.data(64).await {
            Ok(data) => data,
            Err(error) => return Outcome::reject(error.to_string()),
        };
        if delivery.begin().await.is_err() {
            return Outcome::LeaseLost;
        }
        let (outcome, decided) = oneshot::channel();
        let _ =
            self.tried.send(Tried { worker: self.number, number: delivery.id().as_u128(), data, outcome });
        decided.await.unwrap_or(Outcome::Release)
    }
}

fn start(
    session: &Session,
    workers: usize,
    placement: Placement,
) -> (tokio::task::JoinHandle<Result<(), Failure>>, mpsc::UnboundedReceiver<Tried>) {
    let (sender, tried) = mpsc::unbounded_channel();
    let session = session.clone();
    let working = tokio::spawn(async move {
        session.work(Crew { workers, placement }, |number| Puppet { number, tried: sender.clone() }).await
    });
    (working, tried)
}

#[tokio::test]
async fn a_session_tells_who_the_adapter_is_and_what_it_remembers() {
    let (_gateway, session) =
        Gateway::open(json!({"on_doubt": "hold", "confirm": "sent", "state": {"seq": "NDI="}})).await;
    assert_eq!((session.name(), session.epoch()), ("lab", 7));
    assert_eq!((session.on_doubt(), session.confirm()), (OnDoubt::Hold, Level::Sent));
    assert_eq!(session.state()["seq"], b"42");
}

#[tokio::test]
async fn a_delivery_goes_to_a_worker_and_its_outcome_back() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, mut tried) = start(&session, 1, Placement::ByKey);
    let request = gateway.lease(&[leased(1, None)]).await;
    assert_eq!((&request["epoch"], &request["max"]), (&json!(7), &json!(32)));
    let delivery = tried.recv().await.unwrap();
    assert_eq!(&delivery.data[..], b"payload 1");
    delivery.delivered();
    let settle = gateway.next("/v1/settle").await;
    assert_eq!(settle.body["epoch"], 7);
    assert_eq!(settle.body["results"][0]["evidence"], json!({"level": "transport"}));
    assert_eq!(settle.outcomes(), [("t1", "delivered")]);
    settle.settled("ok");
}

#[tokio::test]
async fn a_lost_lease_answer_is_asked_for_again_under_the_same_id() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, mut tried) = start(&session, 1, Placement::ByKey);
    let first = gateway.next("/lease").await;
    let id = first.body["request_id"].clone();
    first.hang_up();
    // The repetition on a fresh connection; the call after it is the loop's own.
    gateway.next("/lease").await.hang_up();
    let second = gateway.lease(&[leased(1, None)]).await;
    assert_eq!(second["request_id"], id);
    assert_eq!(tried.recv().await.unwrap().number, 1);
    let next = gateway.next("/lease").await;
    assert_ne!(next.body["request_id"], id);
}

#[tokio::test]
async fn a_lost_settle_answer_is_repeated_word_for_word() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, mut tried) = start(&session, 1, Placement::ByKey);
    gateway.lease(&[leased(1, None)]).await;
    tried.recv().await.unwrap().delivered();
    let first = gateway.next("/v1/settle").await;
    let body = first.body.clone();
    first.hang_up();
    let second = gateway.next("/v1/settle").await;
    assert_eq!(second.body, body);
    second.answer_problem("store_unavailable");
    let third = gateway.next("/v1/settle").await;
    assert_eq!(third.body, body);
    third.settled("ok");
}

#[tokio::test]
async fn outcomes_that_become_ready_during_a_call_go_together_into_the_next() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, mut tried) = start(&session, 4, Placement::Anywhere);
    gateway.lease(&[leased(1, None), leased(2, None), leased(3, None)]).await;
    let mut hands = Vec::new();
    for _ in 0..3 {
        hands.push(tried.recv().await.unwrap());
    }
    hands.pop().unwrap().delivered();
    let first = gateway.next("/v1/settle").await;
    assert_eq!(first.outcomes().len(), 1);
    while let Some(hand) = hands.pop() {
        hand.delivered();
    }
    // The puppets have handed in once they ask for more: two new deliveries reach them only after that.
    gateway.lease(&[leased(4, None), leased(5, None), leased(6, None), leased(7, None)]).await;
    for _ in 0..4 {
        hands.push(tried.recv().await.unwrap());
    }
    first.settled("ok");
    let second = gateway.next("/v1/settle").await;
    assert_eq!(second.outcomes().len(), 2);
}

#[tokio::test]
async fn a_result_that_the_gateway_refuses_does_not_take_the_others_with_it() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, mut tried) = start(&session, 3, Placement::Anywhere);
    gateway.lease(&[leased(1, None), leased(2, None), leased(3, None)]).await;
    let mut hands =
        vec![tried.recv().await.unwrap(), tried.recv().await.unwrap(), tried.recv().await.unwrap()];
    hands.pop().unwrap().delivered();
    let first = gateway.next("/v1/settle").await;
    hands.pop().unwrap().delivered();
    hands.pop().unwrap().delivered();
    gateway.lease(&[leased(4, None), leased(5, None), leased(6, None)]).await;
    for _ in 0..3 {
        hands.push(tried.recv().await.unwrap());
    }
    first.settled("ok");
    let both = gateway.next("/v1/settle").await;
    assert_eq!(both.outcomes().len(), 2);
    both.answer_problem("evidence_too_weak");
    let one = gateway.next("/v1/settle").await;
    assert_eq!(one.outcomes().len(), 1);
    one.answer_problem("evidence_too_weak");
    let other = gateway.next("/v1/settle").await;
    assert_eq!(other.outcomes().len(), 1);
    other.settled("ok");
}

#[tokio::test]
async fn with_resend_the_lease_is_the_begin_and_otherwise_it_is_settled_first() {
    let (mut gateway, session) = Gateway::open(json!({"on_doubt": "hold"})).await;
    let (_working, mut tried) = start(&session, 1, Placement::ByKey);
    gateway.lease(&[leased(1, None)]).await;
    let begin = gateway.next("/v1/settle").await;
    assert_eq!(begin.outcomes(), [("t1", "begin")]);
    assert!(tried.try_recv().is_err(), "bytes left before the begin was durable");
    begin.settled("ok");
    tried.recv().await.unwrap().delivered();
    let settle = gateway.next("/v1/settle").await;
    assert_eq!(settle.outcomes(), [("t1", "delivered")]);
}

#[tokio::test]
async fn with_resend_and_a_window_the_begin_is_settled_too_so_that_its_lane_does_not_take_it_back() {
    let (mut gateway, session) = Gateway::open(json!({"on_doubt": "resend", "window": 3})).await;
    let (_working, mut tried) = start(&session, 3, Placement::Anywhere);
    let mut sending = Vec::new();
    for number in [1, 2] {
        gateway.lease(&[leased(number, Some("a"))]).await;
        let begin = gateway.next("/v1/settle").await;
        assert_eq!(begin.outcomes(), [(&*format!("t{number}"), "begin")]);
        assert!(tried.try_recv().is_err(), "bytes left before the gateway knew");
        begin.settled("ok");
        sending.push(tried.recv().await.unwrap());
    }
    // The first one's lane goes back, and with it the third, which had not begun.
    let reason = "the partner is away".to_owned();
    let away = Outcome::Retry { scope: Scope::Lane, after: None, reason, reply: None };
    assert!(sending.remove(0).outcome.send(away).is_ok());
    let retry = gateway.next("/v1/settle").await;
    assert_eq!(retry.outcomes(), [("t1", "retry")]);
    retry.settled("ok");
    gateway.lease(&[leased(3, Some("a"))]).await;
    let begin = gateway.next("/v1/settle").await;
    assert_eq!(begin.outcomes(), [("t3", "begin")]);
    begin.settled("stale");
    sending.remove(0).delivered();
    assert_eq!(gateway.next("/v1/settle").await.outcomes(), [("t2", "delivered")]);
    assert!(tried.try_recv().is_err(), "sent although its lane had gone back");
}

#[tokio::test]
async fn a_stale_begin_sends_nothing_and_reports_nothing() {
    let (mut gateway, session) = Gateway::open(json!({"on_doubt": "hold"})).await;
    let (_working, mut tried) = start(&session, 1, Placement::ByKey);
    gateway.lease(&[leased(1, None), leased(2, None)]).await;
    gateway.next("/v1/settle").await.settled("stale");
    let begin = gateway.next("/v1/settle").await;
    assert_eq!(begin.outcomes(), [("t2", "begin")]);
    assert!(tried.try_recv().is_err());
}

#[tokio::test]
async fn one_key_keeps_to_one_worker_and_a_stuck_one_holds_up_nobody_else() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, mut tried) = start(&session, 2, Placement::ByKey);
    gateway.lease(&[leased(1, Some("stuck"))]).await;
    let stuck = tried.recv().await.unwrap();
    // Keys that map to either worker, and deliveries without a key.
    let keys: Vec<String> = (0..12).map(|number| format!("k{number}")).collect();
    let mut deliveries: Vec<Value> =
        keys.iter().zip(2..).map(|(key, number)| leased(number, Some(key))).collect();
    deliveries.extend((100..104).map(|number| leased(number, None)));
    gateway.lease(&deliveries).await;
    let mut free = Vec::new();
    let behind = keys.iter().filter(|key| crate::desk::worker_of(key, 2) == stuck.worker).count();
    for _ in 0..deliveries.len() - behind {
        let hand = tried.recv().await.unwrap();
        assert_ne!(hand.worker, stuck.worker);
        free.push(hand.number);
        hand.delivered();
    }
    assert!(behind > 0, "the test needs keys on both workers");
    assert!(
        (100..104).all(|number| free.contains(&number)),
        "a delivery without a key waited for the stuck worker"
    );
    let worker = stuck.worker;
    stuck.delivered();
    assert_eq!(tried.recv().await.unwrap().worker, worker);
}

#[tokio::test]
async fn what_a_crowded_worker_cannot_hold_is_given_back() {
    let (mut gateway, session) = Gateway::open(json!({"max_in_flight": 4})).await;
    let (_working, mut tried) = start(&session, 2, Placement::ByKey);
    let request = gateway.lease(&[leased(1, Some("k"))]).await;
    assert_eq!(request["max"], 2, "each worker can hold two");
    let _stuck = tried.recv().await.unwrap();
    let request = gateway.lease(&[leased(2, Some("k")), leased(3, Some("k"))]).await;
    assert!(request["max"].as_u64() <= Some(2));
    // One worker is full: the rest is asked for one by one.
    let request = gateway.lease(&[leased(4, Some("k"))]).await;
    assert_eq!(request["max"], 1);
    let settle = gateway.next("/v1/settle").await;
    assert_eq!(settle.outcomes(), [("t4", "release")]);
    settle.settled("ok");
    assert_eq!(gateway.next("/lease").await.body["max"], 1);
}

#[tokio::test]
async fn draining_finishes_what_has_begun_and_gives_the_rest_back() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (working, mut tried) = start(&session, 1, Placement::ByKey);
    gateway.lease(&[leased(1, None), leased(2, None)]).await;
    let running = tried.recv().await.unwrap();
    gateway.drain();
    running.delivered();
    let mut reported = Vec::new();
    while reported.len() < 2 {
        let settle = gateway.next("/v1/settle").await;
        reported.extend(settle.outcomes().iter().map(|(token, outcome)| format!("{token} {outcome}")));
        assert!(!working.is_finished(), "returned before the gateway had answered");
        settle.settled("ok");
    }
    assert_eq!(reported, ["t1 delivered", "t2 release"]);
    working.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_superseded_session_is_over() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, mut tried) = start(&session, 1, Placement::ByKey);
    gateway.lease(&[leased(1, None)]).await;
    tried.recv().await.unwrap().delivered();
    gateway.next("/v1/settle").await.answer_problem("superseded");
    gateway.superseded().await;
    assert!(session.stop().is_requested());
}

#[tokio::test]
async fn a_superseded_lease_ends_the_session_too() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, _tried) = start(&session, 1, Placement::ByKey);
    gateway.next("/lease").await.answer_problem("superseded");
    gateway.superseded().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_prolonged_while_the_work_goes_on() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, mut tried) = start(&session, 1, Placement::ByKey);
    gateway.lease(&[leased(1, None)]).await;
    let hand = tried.recv().await.unwrap();
    let extend = gateway.next("/v1/settle").await;
    assert_eq!(extend.outcomes(), [("t1", "extend")]);
    assert_eq!(extend.body["results"][0]["after_ms"], 30_000);
    extend.settled("ok");
    let again = gateway.next("/v1/settle").await;
    assert_eq!(again.outcomes(), [("t1", "extend")]);
    again.settled("ok");
    hand.delivered();
    assert_eq!(gateway.next("/v1/settle").await.outcomes(), [("t1", "delivered")]);
}

#[tokio::test(start_paused = true)]
async fn prolonging_is_asked_for_once_and_never_beside_the_outcome() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, mut tried) = start(&session, 1, Placement::ByKey);
    gateway.lease(&[leased(1, None)]).await;
    let hand = tried.recv().await.unwrap();
    let extend = gateway.next("/v1/settle").await;
    assert_eq!(extend.outcomes(), [("t1", "extend")]);
    tokio::time::advance(Duration::from_secs(5)).await;
    hand.delivered();
    extend.settled("ok");
    assert_eq!(gateway.next("/v1/settle").await.outcomes(), [("t1", "delivered")]);
}

#[tokio::test]
async fn a_payload_that_is_not_in_the_lease_is_fetched() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (_working, mut tried) = start(&session, 1, Placement::ByKey);
    let large = |number: u128| {
        let mut delivery = leased(number, None);
        delivery["event"].as_object_mut().unwrap().remove("data");
        delivery["event"]["dataref"] = json!(format!("/v1/messages/m{number}/data"));
        delivery
    };
    gateway.lease(&[large(1), large(2)]).await;
    let fetch = gateway.next("/v1/messages/m1/data").await;
    assert_eq!(fetch.headers["gatepost-epoch"], "7");
    fetch.answer_bytes(200, b"all of it".to_vec());
    let hand = tried.recv().await.unwrap();
    assert_eq!(&hand.data[..], b"all of it");
    hand.delivered();
    // The puppet takes 64 bytes at most.
    gateway.next("/v1/messages/m2/data").await.answer_bytes(200, vec![b'x'; 65]);
    gateway.next("/v1/settle").await.settled("ok");
    let settle = gateway.next("/v1/settle").await;
    assert_eq!(settle.outcomes(), [("t2", "reject")]);
    assert_eq!(settle.body["results"][0]["reason"], "the payload is larger than 64 bytes");
}

#[tokio::test]
async fn settling_carries_state_and_events() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let mut settlement = Settlement::default();
    settlement.state.set("seq", *b"43");
    settlement.state.delete("old");
    let settling = tokio::spawn(async move { session.settle(settlement).await });
    let settle = gateway.next("/v1/settle").await;
    assert_eq!(settle.body, json!({"results": [], "state": {"seq": "NDM=", "old": null}, "epoch": 7}));
    settle.settled("ok");
    assert!(settling.await.unwrap().unwrap().results.is_empty());
}

fn event() -> Event {
    serde_json::from_value(json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t",
        "datacontenttype": "application/hl7-v2+er7", "data_base64": "TVNIfA=="}))
    .unwrap()
}

#[tokio::test]
async fn an_accept_tells_stored_from_later_from_never() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let accept = || {
        let session = session.clone();
        tokio::spawn(async move { session.accept(&event(), "M1:ff").await })
    };
    let accepted = accept();
    let call = gateway.next("/v1/messages").await;
    assert_eq!(call.headers["content-type"], "application/cloudevents+json");
    assert_eq!(call.headers["gatepost-epoch"], "7");
    assert_eq!(call.headers["idempotency-key"], "M1:ff");
    assert_eq!(call.body["data_base64"], "TVNIfA==");
    let id = Uuid::from_u128(5);
    call.answer(
        202,
        &json!({"messages": [{"id": id, "duplicate": true, "deliveries": []}], "durability": "fsync"}),
    );
    assert_eq!(accepted.await.unwrap().unwrap(), Accepted { id, duplicate: true });

    let full = accept();
    gateway.next("/v1/messages").await.answer_problem("queue_full");
    assert!(matches!(full.await.unwrap(), Err(AcceptError::Later { .. })));

    let refused = accept();
    gateway.next("/v1/messages").await.answer_problem("no_route");
    let Err(AcceptError::Refused(problem)) = refused.await.unwrap() else { panic!("not refused") };
    assert_eq!(problem.code, "no_route");

    // The kept connection breaks, and so does the fresh one: nobody knows.
    let unknown = accept();
    gateway.next("/v1/messages").await.hang_up();
    gateway.next("/v1/messages").await.hang_up();
    assert!(matches!(unknown.await.unwrap(), Err(AcceptError::Later { .. })));
}

#[tokio::test]
async fn a_connection_that_the_gateway_closed_while_idle_is_replaced_silently() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let accepted = tokio::spawn(async move { session.accept(&event(), "k").await });
    gateway.next("/v1/messages").await.hang_up();
    let answer = json!({"messages": [{"id": Uuid::nil(), "duplicate": false, "deliveries": []}], "durability": "fsync"});
    gateway.next("/v1/messages").await.answer(202, &answer);
    assert!(accepted.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_gateway_is_noticed_for_as_long_as_it_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("gone.sock");
    let client = Client::new(socket.clone());
    let call = crate::client::Call::get(crate::client::Purpose::Poll, "/livez", Duration::from_secs(1));
    assert!(client.exchange(&call).await.is_err());
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(client.exchange(&call).await.is_err());
    assert!(client.unreachable_for() >= Duration::from_secs(6));
    let listener = UnixListener::bind(&socket).unwrap();
    let (sender, mut calls) = mpsc::unbounded_channel();
    tokio::spawn(listen(listener, sender, Connections::default()));
    tokio::spawn(async move { calls.recv().await.unwrap().answer(200, &json!({})) });
    client.exchange(&call).await.unwrap();
    assert_eq!(client.unreachable_for(), Duration::ZERO);
}

#[tokio::test]
async fn asking_waits_for_the_reply_of_whoever_it_was_delivered_to() {
    for (deliveries, said) in [
        (vec![("delivered", None), ("delivered", Some("yes"))], Some("yes")),
        // Whoever took it goes before whoever did not.
        (vec![("dead", Some("no")), ("delivered", Some("yes"))], Some("yes")),
        (vec![("dead", Some("no")), ("delivered", None)], Some("no")),
        (vec![("dead", None), ("delivered", None)], None),
    ] {
        let (mut gateway, session) = Gateway::open(json!({})).await;
        let asking =
            tokio::spawn(async move { session.ask(&event(), Some("k1"), Duration::from_secs(9)).await });
        let call = gateway.next("/v1/messages").await;
        assert_eq!(call.headers["prefer"], "wait=9");
        assert_eq!(call.headers["idempotency-key"], "k1");
        let delivery = |(state, said): &(&str, Option<&str>)| {
            let reply = said.map(|said| json!({"datacontenttype": "text/plain", "data": said}));
            json!({"id": Uuid::nil(), "destination": "d", "state": state, "reply": reply})
        };
        let deliveries: Vec<Value> = deliveries.iter().map(delivery).collect();
        call.answer(
            200,
            &json!({"messages": [{"id": Uuid::nil(), "duplicate": true, "deliveries": deliveries}], "durability": "fsync"}),
        );
        let reply = asking.await.unwrap().unwrap();
        assert_eq!(reply.map(|reply| reply_bytes(&reply).unwrap()).as_deref(), said.map(str::as_bytes));
    }
}

/// Works, and says when it starts to wait and what it is given.
struct Idler(mpsc::UnboundedSender<&'static str>);

impl Worker for Idler {
    async fn deliver(&mut self, _: &Delivery) -> Outcome {
        let _ = self.0.send("delivered");
        Outcome::Settled { away: None }
    }

    async fn idle(&mut self) {
        let _ = self.0.send("idle");
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_worker_without_work_does_what_it_does_meanwhile_and_what_it_settled_itself_is_not_reported() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let (sender, mut said) = mpsc::unbounded_channel();
    let working = tokio::spawn(async move {
        let crew = Crew { workers: 1, placement: Placement::ByKey };
        session.work(crew, |_| Idler(sender.clone())).await
    });
    assert_eq!(said.recv().await, Some("idle"));
    gateway.lease(&[leased(1, None)]).await;
    assert_eq!(said.recv().await, Some("delivered"));
    assert_eq!(said.recv().await, Some("idle"));
    gateway.drain();
    working.await.unwrap().unwrap();
}

#[tokio::test]
async fn several_events_are_accepted_in_one_call() {
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let accepting = tokio::spawn(async move { session.accept_all(&[event(), event()]).await });
    let call = gateway.next("/v1/messages").await;
    assert_eq!(call.headers["content-type"], "application/cloudevents-batch+json");
    assert_eq!(call.body.as_array().unwrap().len(), 2);
    let message = |duplicate: bool| json!({"id": Uuid::nil(), "duplicate": duplicate, "deliveries": []});
    call.answer(202, &json!({"messages": [message(false), message(true)], "durability": "fsync"}));
    let accepted = accepting.await.unwrap().unwrap();
    assert_eq!(accepted.iter().map(|one| one.duplicate).collect::<Vec<_>>(), [false, true]);
}
