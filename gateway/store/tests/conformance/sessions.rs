//! Rule 3: sessions fence adapters; outcomes, emitted events and adapter state are one transaction.

use gatepost_core::{OnDoubt, Outcome};
use gatepost_store::{AcceptError, LeaseError, SettleError, StoreError};

use crate::check::{assert_log, assert_sound};
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, RETRY, accept_of, doubting, emit, item, message, queue, quick,
};
use gatepost_core::principal::{Actor, ActorKind};

fn lab() -> Actor {
    Actor::new(ActorKind::Adapter, "lab")
}

async fn with(on_doubt: OnDoubt) -> Fixture {
    Fixture::new(vec![queue("lab", doubting(on_doubt)), queue("other", quick())]).await
}

async fn state(fixture: &Fixture) -> Vec<(String, Vec<u8>)> {
    fixture.store.session_open("lab".into(), None).await.unwrap().state
}

#[tokio::test]
async fn r13_3_an_older_session_is_superseded_and_writes_nothing() {
    let fixture = with(OnDoubt::Query).await;
    let old = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", old).await;
    let new = fixture.session("lab").await;
    assert!(new > old);
    let leaves = fixture.leaves().await;
    for epoch in [old, 0, new + 1] {
        let lease = fixture.try_lease(fixture.request("lab", epoch, 1)).await;
        assert!(matches!(lease, Err(LeaseError::Superseded)), "{epoch}: {lease:?}");
        let mut settle = fixture.settling("lab", epoch, vec![item(&leased, BEGIN)]);
        settle.emit.push(emit("e", &["other"]));
        settle.state.push(("key".into(), Some(b"late".to_vec())));
        let settle = fixture.store.delivery_settle(settle).await;
        assert!(matches!(settle, Err(SettleError::Superseded)), "{epoch}: {settle:?}");
        let mut accept = accept_of(&lab(), vec![message("2", None, "x", &["other"])]);
        accept.session = (epoch > 0).then_some(epoch);
        let accept = fixture.store.message_accept(accept).await;
        assert!(matches!(accept, Err(AcceptError::Superseded)), "{epoch}: {accept:?}");
    }
    assert_eq!((fixture.leaves().await, fixture.stats("other").await.waiting), (leaves, 0));
    assert!(state(&fixture).await.is_empty());
    assert_sound(&fixture.stop().await, "superseded").await;
}

#[tokio::test]
async fn r13_3_an_adapter_accepts_with_its_session() {
    let fixture = with(OnDoubt::Resend).await;
    let session = fixture.session("lab").await;
    let mut accept = accept_of(&lab(), vec![message("1", None, "x", &["other"])]);
    accept.session = Some(session);
    let accepted = fixture.store.message_accept(accept).await.unwrap();
    let sender = fixture.store.read().delivery_sender(accepted[0].deliveries[0].id).await.unwrap();
    assert_eq!(sender, Some(lab()));
}

#[tokio::test]
async fn r13_3_opening_a_session_takes_every_lease_back_at_once() {
    for (on_doubt, begun_state, held) in
        [(OnDoubt::Hold, "in_doubt", Some("held")), (OnDoubt::Query, "in_doubt", None)]
    {
        let fixture = with(on_doubt).await;
        let old = fixture.session("lab").await;
        let (begun, unbegun) = (fixture.send("1", None, "lab").await, fixture.send("2", None, "lab").await);
        let leased = fixture.lease("lab", old, 10).await;
        fixture.taken("lab", old, &leased[0], BEGIN).await;
        let new = fixture.session("lab").await;
        let row = fixture.row(begun).await;
        assert_eq!((row.state, row.reason, row.attempts), (begun_state, held, 0), "{on_doubt}");
        assert_eq!(fixture.state(unbegun).await, "waiting", "{on_doubt}");
        for leased in &leased {
            fixture.stale("lab", new, leased, RETRY).await;
        }
        assert_sound(&fixture.stop().await, "a new session").await;
    }
}

#[tokio::test]
async fn r13_3_a_paused_adapters_late_settle_changes_nothing() {
    let fixture = with(OnDoubt::Resend).await;
    let old = fixture.session("lab").await;
    let delivery = fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", old).await;
    let new = fixture.session("lab").await;
    let again = fixture.lease_in_time("lab", new, 1).await.remove(0);
    assert_eq!(again.delivery, delivery);
    let late = fixture.settle("lab", old, &leased, Outcome::Reject).await;
    assert!(matches!(late, Err(SettleError::Superseded)), "{late:?}");
    assert_eq!(fixture.stale("lab", new, &leased, Outcome::Reject).await, "sending");
    assert_eq!(fixture.taken("lab", new, &again, DELIVERED).await, "delivered");
}

#[tokio::test]
async fn r13_3_the_same_token_and_outcome_is_ok_until_the_next_lease_and_another_is_stale() {
    let fixture = with(OnDoubt::Resend).await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, RETRY).await;
    let leaves = fixture.leaves().await;
    assert_eq!(fixture.taken("lab", session, &leased, RETRY).await, "waiting");
    assert_eq!(fixture.stale("lab", session, &leased, DELIVERED).await, "waiting");
    assert_eq!(fixture.leaves().await, leaves, "a repetition is not a change");
    assert_eq!(fixture.row(leased.delivery).await.attempts, 1);
    fixture.lease_in_time("lab", session, 1).await;
    assert_eq!(fixture.stale("lab", session, &leased, RETRY).await, "sending");
}

#[tokio::test]
async fn r13_3_a_settle_whose_answer_was_lost_is_repeated_whole() {
    let fixture = with(OnDoubt::Resend).await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let settle = || {
        let mut settle = fixture.settling("lab", session, vec![item(&leased, DELIVERED)]);
        settle.emit.push(emit("answer", &["other"]));
        settle.state.push(("seq".into(), Some(b"7".to_vec())));
        settle.atomic = true;
        settle
    };
    let first = fixture.store.delivery_settle(settle()).await.unwrap();
    let again = fixture.store.delivery_settle(settle()).await.unwrap();
    assert_eq!(first.items, again.items);
    assert_eq!((first.emitted[0].1, again.emitted[0].1), (false, true), "the second is a duplicate");
    assert_eq!(first.emitted[0].0, again.emitted[0].0);
    assert_eq!(fixture.stats("other").await.waiting, 1);
    assert_eq!(state(&fixture).await, [("seq".to_owned(), b"7".to_vec())]);
    // The same after a restart: what ended the lease is remembered with the delivery.
    let fixture = fixture.restart().await;
    let session = fixture.session("lab").await;
    assert_eq!(fixture.taken("lab", session, &leased, DELIVERED).await, "delivered");
}

#[tokio::test]
async fn r13_3_a_refused_atomic_settle_leaves_nothing() {
    let fixture = with(OnDoubt::Resend).await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    fixture.send("2", None, "lab").await;
    let leased = fixture.lease("lab", session, 2).await;
    fixture.taken("lab", session, &leased[0], DELIVERED).await;
    let leaves = fixture.leaves().await;
    let settle = |atomic, state, emits| {
        let items = vec![item(&leased[0], Outcome::Reject), item(&leased[1], DELIVERED)];
        let mut settle = fixture.settling("lab", session, items);
        settle.atomic = atomic;
        if state {
            settle.state.push(("seq".into(), Some(b"8".to_vec())));
        }
        if emits {
            settle.emit.push(emit("answer", &["other"]));
        }
        settle
    };
    // `state` and `emit` imply `atomic`.
    for settle in [settle(true, false, false), settle(false, true, false), settle(false, false, true)] {
        match fixture.store.delivery_settle(settle).await {
            Err(SettleError::Refused(items)) => {
                assert_eq!(items.iter().map(|item| item.ok).collect::<Vec<_>>(), [false, true]);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fixture.leaves().await, leaves, "not even a leaf");
        assert_eq!(fixture.state(leased[1].delivery).await, "sending");
        assert_eq!(fixture.stats("other").await.waiting, 0);
    }
    let answer = fixture.store.delivery_settle(settle(false, false, false)).await.unwrap();
    assert_eq!(answer.items.iter().map(|item| item.ok).collect::<Vec<_>>(), [false, true]);
    assert_eq!(fixture.state(leased[1].delivery).await, "delivered", "the others go through");
    assert!(state(&fixture).await.is_empty());
}

#[tokio::test]
async fn adapter_state_is_written_by_settle_alone_and_read_at_the_session() {
    let fixture = with(OnDoubt::Resend).await;
    let session = fixture.session("lab").await;
    let write = async |changes: &[(&str, Option<&str>)]| {
        let mut settle = fixture.settling("lab", session, Vec::new());
        let change = |(key, value): &(&str, Option<&str>)| {
            ((*key).to_owned(), value.map(|value| value.as_bytes().to_vec()))
        };
        settle.state = changes.iter().map(change).collect();
        fixture.store.delivery_settle(settle).await.unwrap();
    };
    write(&[("b", Some("1")), ("a", Some("2")), ("c", Some(""))]).await;
    write(&[("b", None), ("a", Some("3")), ("unknown", None)]).await;
    let expected = [("a".to_owned(), b"3".to_vec()), ("c".to_owned(), Vec::new())];
    let other = fixture.store.session_open("other".into(), None).await.unwrap();
    assert!(other.state.is_empty(), "each adapter has its own");
    assert_eq!(state(&fixture).await, expected);
    let fixture = fixture.crash().await.open().await.unwrap();
    assert_eq!(state(&fixture).await, expected);
}

/// Many settles travel in one commit; the last word on a key counts, whatever came before.
#[tokio::test]
async fn the_last_of_several_changes_of_a_key_counts() {
    let fixture = with(OnDoubt::Resend).await;
    for round in 0..10u8 {
        let session = fixture.session("lab").await;
        let changes = [None, Some(vec![round]), None, Some(vec![round, 1])];
        let settles = changes.map(|value| {
            let mut settle = fixture.settling("lab", session, Vec::new());
            settle.state.push(("seq".into(), value));
            let store = fixture.store.clone();
            async move { store.delivery_settle(settle).await.unwrap() }
        });
        let [a, b, c, d] = settles;
        tokio::join!(a, b, c, d);
        assert_eq!(state(&fixture).await, [("seq".to_owned(), vec![round, 1])], "round {round}");
    }
    let session = fixture.session("lab").await;
    let mut settle = fixture.settling("lab", session, Vec::new());
    settle.state = vec![("seq".into(), None), ("seq".into(), Some(b"x".to_vec()))];
    fixture.store.delivery_settle(settle).await.unwrap();
    assert_eq!(state(&fixture).await, [("seq".to_owned(), b"x".to_vec())]);
}

#[tokio::test]
async fn another_consumers_delivery_is_unknown_and_a_malformed_token_stale() {
    let fixture = with(OnDoubt::Resend).await;
    let (lab, other) = (fixture.session("lab").await, fixture.session("other").await);
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", lab).await;
    assert_eq!(fixture.stale("other", other, &leased, DELIVERED).await, "unknown");
    let mut nobody = item(&leased, DELIVERED);
    nobody.delivery = gatepost_core::DeliveryId::from_bytes([9; 16]);
    let answer = fixture.store.delivery_settle(fixture.settling("lab", lab, vec![nobody])).await.unwrap();
    assert_eq!((answer.items[0].ok, answer.items[0].state), (false, "unknown"));
    let mut no_token = item(&leased, DELIVERED);
    no_token.token = None;
    let answer = fixture.store.delivery_settle(fixture.settling("lab", lab, vec![no_token])).await.unwrap();
    assert_eq!((answer.items[0].ok, answer.items[0].state), (false, "sending"));
    assert_eq!(fixture.state(leased.delivery).await, "sending");
}

#[tokio::test]
async fn one_settle_may_begin_and_end_a_delivery() {
    let fixture = with(OnDoubt::Hold).await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let items = vec![item(&leased, BEGIN), item(&leased, DELIVERED)];
    let answer = fixture.store.delivery_settle(fixture.settling("lab", session, items)).await.unwrap();
    let states: Vec<&str> = answer.items.iter().map(|item| item.state).collect();
    assert_eq!(states, ["sending", "delivered"]);
    assert_eq!(fixture.events(leased.delivery).await, ["accepted", "attempt", "delivered"]);
    let place = fixture.stop().await;
    assert_sound(&place, "two items").await;
    assert_log(&place, "two items").await;
}

#[tokio::test]
async fn a_session_of_an_unknown_adapter_is_refused_as_such() {
    let fixture = with(OnDoubt::Resend).await;
    let refused = fixture.store.session_open("nobody".into(), None).await;
    assert!(matches!(&refused, Err(StoreError::NoQueue(name)) if name == "nobody"), "{refused:?}");
    let refused = fixture.store.session_end("nobody".into(), gatepost_store::SessionEnd::Stopped).await;
    assert!(matches!(&refused, Err(StoreError::NoQueue(_))), "{refused:?}");
    let refused = fixture.try_lease(fixture.request("nobody", 1, 1)).await;
    assert!(matches!(&refused, Err(LeaseError::Store(StoreError::NoQueue(_)))), "{refused:?}");
}
