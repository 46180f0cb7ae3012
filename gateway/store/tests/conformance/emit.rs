//! Rule 6: what an adapter emits with a settle, and replies.

use gatepost_core::QueuePolicy;
use gatepost_core::delivery::Reason;
use gatepost_core::message::{DataForm, NewMessage};
use gatepost_core::policy::BacklogLimit;
use gatepost_store::{DeliveryFilter, Emit, SettleError, UNROUTED, Verb};

use crate::check::{assert_log, assert_sound};
use crate::fixture::{DELIVERED, Fixture, emit, inbox, item, message, queue, quick, text};

async fn leased() -> (Fixture, u64, gatepost_store::Leased) {
    let full = QueuePolicy { max_backlog: Some(BacklogLimit { messages: 0, bytes: 0 }), ..quick() };
    let queues = vec![queue("lab", quick()), inbox("results", quick()), queue("full", full)];
    let fixture = Fixture::new(queues).await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    (fixture, session, leased)
}

#[tokio::test]
async fn r13_6_an_emitted_event_is_accepted_with_the_outcome_it_came_with() {
    let (fixture, session, leased) = leased().await;
    let mut settle = fixture.settling("lab", session, vec![item(&leased, DELIVERED)]);
    settle.emit = vec![emit("e1", &["results"]), emit("e2", &["results"]), emit("e1", &["results"])];
    let answer = fixture.store.delivery_settle(settle).await.unwrap();
    let duplicates: Vec<bool> = answer.emitted.iter().map(|emitted| emitted.1).collect();
    assert_eq!(duplicates, [false, false, true]);
    let received = fixture.lease("results", 0, 10).await;
    assert_eq!(crate::fixture::texts(&received), ["e1", "e2"]);
    assert_eq!(received[0].message.sender.to_string(), "adapter:lab");
    assert_eq!(received[0].message.id, answer.emitted[0].0);
    assert_log(&fixture.stop().await, "emitted").await;
}

#[tokio::test]
async fn r13_6_an_event_that_no_route_takes_is_kept_dead_and_the_settle_goes_through() {
    for reason in [Reason::NoRoute, Reason::RouteFailed, Reason::TypeNotAllowed] {
        let (fixture, session, leased) = leased().await;
        let mut settle = fixture.settling("lab", session, vec![item(&leased, DELIVERED)]);
        settle.emit = vec![Emit { message: message("e", None, "e", &[]), dead: Some(reason) }];
        let answer = fixture.store.delivery_settle(settle).await.unwrap();
        assert_eq!(answer.items[0].state, "delivered");
        let filter = DeliveryFilter { destination: Some(UNROUTED.into()), ..DeliveryFilter::default() };
        let kept = fixture.store.read().delivery_list(&filter, None, 10).await.unwrap().items;
        let found: Vec<_> = kept.iter().map(|row| (row.message, row.state, row.reason)).collect();
        assert_eq!(found, [(answer.emitted[0].0, "dead", Some(reason.as_str()))]);
        assert_eq!(fixture.events(kept[0].id).await, ["accepted", "dead"]);
        assert_eq!(fixture.stats(UNROUTED).await.dead, 1);
        // Nobody serves that queue, so nothing in it can be tried again; it can be discarded.
        assert!(fixture.operate(kept[0].id, Verb::Replay).await.is_err());
        fixture.operate(kept[0].id, Verb::Discard).await.unwrap();
        let place = fixture.stop().await;
        assert_sound(&place, "unrouted").await;
        assert_log(&place, "unrouted").await;
    }
}

#[tokio::test]
async fn r13_3_an_emit_that_cannot_be_taken_refuses_the_whole_settle() {
    let (fixture, session, leased) = leased().await;
    let first = fixture.settling("lab", session, Vec::new());
    let first = gatepost_store::Settle { emit: vec![emit("e", &["results"])], ..first };
    fixture.store.delivery_settle(first).await.unwrap();
    let leaves = fixture.leaves().await;
    let with = |event: Emit| {
        let mut settle = fixture.settling("lab", session, vec![item(&leased, DELIVERED)]);
        settle.emit = vec![emit("fresh", &["results"]), event];
        settle.state.push(("seq".into(), Some(b"1".to_vec())));
        settle
    };
    let other = Emit { message: message("e", None, "other content", &["results"]), dead: None };
    let refused = fixture.store.delivery_settle(with(other)).await;
    assert!(matches!(refused, Err(SettleError::Mismatch(1))), "{refused:?}");
    let refused = fixture.store.delivery_settle(with(emit("f", &["full"]))).await;
    assert!(matches!(&refused, Err(SettleError::QueueFull(name)) if name == "full"), "{refused:?}");
    let refused = fixture.store.delivery_settle(with(emit("f", &["nowhere"]))).await;
    assert!(matches!(&refused, Err(SettleError::Store(_))), "{refused:?}");
    assert_eq!((fixture.leaves().await, fixture.state(leased.delivery).await), (leaves, "sending"));
    assert_eq!(fixture.stats("results").await.waiting, 1);
    assert!(fixture.store.session_open("lab".into(), None).await.unwrap().state.is_empty());
}

fn answer_to(leased: &gatepost_store::Leased, id: &str, form: DataForm, data: &[u8]) -> Emit {
    let message = NewMessage {
        correlation_id: Some(leased.message.id.to_string()),
        attributes: br#"{"type":"t","datacontenttype":"application/x"}"#.to_vec(),
        form,
        data: data.to_vec(),
        ..message(id, None, "", &["results"])
    };
    Emit { message, dead: None }
}

async fn reply(fixture: &Fixture, leased: &gatepost_store::Leased) -> Option<serde_json::Value> {
    let deliveries = fixture.store.read().deliveries_of(leased.message.id).await.unwrap();
    deliveries[0].1.as_ref().map(|reply| serde_json::from_str(reply).unwrap())
}

#[tokio::test]
async fn r13_13_the_reply_is_the_settles_own_else_the_first_correlated_event() {
    use serde_json::json;
    let forms: [(DataForm, &[u8], serde_json::Value); 4] = [
        (DataForm::Json, br#"{"n": 1}"#, json!({"datacontenttype": "application/x", "data": {"n": 1}})),
        (DataForm::Text, b"AA", json!({"datacontenttype": "application/x", "data": "AA"})),
        (DataForm::Base64, &[0xff], json!({"datacontenttype": "application/x", "data_base64": "/w=="})),
        (DataForm::None, b"", json!({"datacontenttype": "application/x"})),
    ];
    for (form, data, expected) in forms {
        let (fixture, session, leased) = leased().await;
        assert_eq!(reply(&fixture, &leased).await, None);
        let mut settle = fixture.settling("lab", session, vec![item(&leased, DELIVERED)]);
        settle.emit = vec![answer_to(&leased, "e1", form, data), answer_to(&leased, "e2", form, b"later")];
        fixture.store.delivery_settle(settle).await.unwrap();
        assert_eq!(reply(&fixture, &leased).await, Some(expected));
    }
    let (fixture, session, leased) = leased().await;
    let mut own = item(&leased, DELIVERED);
    own.reply = Some(br#"{"data":"own"}"#.to_vec());
    let mut settle = fixture.settling("lab", session, vec![own]);
    settle.emit = vec![answer_to(&leased, "e1", DataForm::Text, b"correlated")];
    fixture.store.delivery_settle(settle).await.unwrap();
    assert_eq!(reply(&fixture, &leased).await, Some(json!({"data": "own"})));
}

#[tokio::test]
async fn only_the_adapters_own_event_is_its_reply() {
    let (fixture, _, leased) = leased().await;
    let foreign = answer_to(&leased, "f", DataForm::Text, b"foreign").message;
    fixture.accept(vec![foreign]).await.unwrap();
    assert_eq!(reply(&fixture, &leased).await, None);
}

#[tokio::test]
async fn an_adapter_takes_a_message_in_together_with_its_state() {
    let (fixture, session, _) = leased().await;
    let mut settle = fixture.settling("lab", session, Vec::new());
    settle.emit.push(emit("in", &["results"]));
    settle.state.push(("cursor".into(), Some(b"9".to_vec())));
    fixture.store.delivery_settle(settle).await.unwrap();
    let fixture = fixture.crash().await.open().await.unwrap();
    let state = fixture.store.session_open("lab".into(), None).await.unwrap().state;
    assert_eq!(state, [("cursor".to_owned(), b"9".to_vec())]);
    assert_eq!(text(&fixture.lease_one("results", 0).await), "in");
}

#[tokio::test]
async fn a_waiter_is_told_when_a_delivery_of_its_message_ends() {
    let (fixture, session, leased) = leased().await;
    let hint = fixture.store.message_hint(leased.message.id);
    let mut told = std::pin::pin!(hint.notify().notified());
    told.as_mut().enable();
    fixture.taken("lab", session, &leased, DELIVERED).await;
    crate::fixture::hinted(told).await;
}
