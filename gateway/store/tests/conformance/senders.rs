//! What a sender has handed in and is not settled: counted whatever it is in, limited for each sender apart.

use std::sync::Arc;
use std::time::Duration;

use gatepost_core::message::NewMessage;
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{Level, OnDoubt, Outcome, Resolution};
use gatepost_store::{AcceptError, Emit, Pause, QueueSetup, SenderFull, SettleError, Verb};

use crate::check::{assert_log, assert_sound};
use crate::fixture::{
    DELIVERED, Fixture, Place, app, doubting, emit, in_time, inbox, item, message, operator, queue, quick,
    sender, until,
};

const NO_LIMIT: u64 = u64::MAX;
const REJECT: Outcome = Outcome::Reject;

async fn limited(messages: u64, bytes: u64) -> Fixture {
    let queues = vec![queue("lab", quick()), inbox("results", quick()), sender(&app(), messages, bytes)];
    Fixture::new(queues).await
}

async fn one(fixture: &Fixture, id: &str) -> Result<(), SenderFull> {
    match fixture.accept(vec![message(id, None, id, &["lab"])]).await {
        Ok(accepted) => {
            assert!(!accepted[0].duplicate, "{id}");
            Ok(())
        }
        Err(AcceptError::SenderFull(full)) => Err(full),
        Err(error) => panic!("{id}: {error:?}"),
    }
}

#[tokio::test]
async fn a_full_sender_is_told_what_stands_against_it_and_nothing_is_stored() {
    let fixture = limited(2, NO_LIMIT).await;
    fixture.accept(vec![message("1", None, "abc", &["lab"])]).await.unwrap();
    let leaves = fixture.leaves().await;
    let batch = vec![message("2", None, "x", &["lab"]), message("3", None, "y", &["results"])];
    let full = match fixture.accept(batch).await {
        Err(AcceptError::SenderFull(full)) => full,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (full.backlog.sender.as_str(), full.backlog.deliveries, full.backlog.bytes),
        ("app:ehr", 1, 3)
    );
    assert_eq!((full.deliveries, full.bytes), (2, 2));
    assert_eq!(full.backlog.limit.map(|limit| limit.messages), Some(2));
    assert_eq!(fixture.leaves().await, leaves);
    assert_eq!(fixture.stats("results").await.waiting, 0, "a batch is taken whole or not");
    assert_eq!(fixture.backlog(&app()), (1, 3));
    one(&fixture, "4").await.unwrap();
    assert_sound(&fixture.stop().await, "full").await;
}

#[tokio::test]
async fn a_message_to_several_destinations_counts_for_each() {
    let fixture = limited(3, 6).await;
    let both = |id| vec![message(id, None, "ab", &["lab", "results"])];
    fixture.accept(both("1")).await.unwrap();
    assert_eq!(fixture.backlog(&app()), (2, 4));
    assert!(matches!(fixture.accept(both("2")).await, Err(AcceptError::SenderFull(_))), "four are too many");
    fixture.accept(vec![message("3", None, "ab", &["lab"])]).await.unwrap();
    assert_eq!(fixture.backlog(&app()), (3, 6));
    assert_sound(&fixture.stop().await, "both").await;
}

#[tokio::test]
async fn bytes_are_limited_too() {
    let fixture = limited(NO_LIMIT, 10).await;
    let of = |id, data| vec![message(id, None, data, &["lab"])];
    fixture.accept(of("1", "123456")).await.unwrap();
    assert!(matches!(fixture.accept(of("2", "12345")).await, Err(AcceptError::SenderFull(_))));
    fixture.accept(of("3", "1234")).await.unwrap();
    assert!(matches!(fixture.accept(of("4", "1")).await, Err(AcceptError::SenderFull(_))));
    fixture.accept(of("5", "")).await.unwrap();
    assert_eq!(fixture.backlog(&app()), (3, 10));
}

#[tokio::test]
async fn what_is_stored_already_needs_no_room() {
    let fixture = limited(1, NO_LIMIT).await;
    let first = fixture.accept(vec![message("1", None, "x", &["lab"])]).await.unwrap();
    one(&fixture, "2").await.unwrap_err();
    let again = fixture.accept(vec![message("1", None, "x", &["lab"])]).await.unwrap();
    assert_eq!((again[0].duplicate, again[0].id), (true, first[0].id));
    let mismatch = fixture.accept(vec![message("1", None, "other", &["lab"])]).await;
    assert!(matches!(mismatch, Err(AcceptError::Mismatch(0))), "{mismatch:?}");
    // Of a batch only what is new counts, and twins once.
    let session = fixture.session("lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, DELIVERED).await;
    let batch = ["1", "2", "2"].map(|id| message(id, None, "x", &["lab"])).to_vec();
    let accepted = fixture.accept(batch).await.unwrap();
    assert_eq!(accepted.iter().map(|accepted| accepted.duplicate).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(fixture.backlog(&app()), (1, 1));
}

#[tokio::test]
async fn concurrent_calls_fill_it_exactly() {
    let fixture = Arc::new(limited(10, NO_LIMIT).await);
    let tasks: Vec<_> = (0..40)
        .map(|n| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(async move { one(&fixture, &n.to_string()).await.is_ok() })
        })
        .collect();
    let mut accepted = 0;
    for task in tasks {
        accepted += u32::from(task.await.unwrap());
    }
    assert_eq!((accepted, fixture.backlog(&app()).0), (10, 10));
    let session = fixture.session("lab").await;
    for leased in fixture.lease("lab", session, 4).await {
        fixture.taken("lab", session, &leased, DELIVERED).await;
    }
    for n in 0..4 {
        one(&fixture, &format!("later-{n}")).await.unwrap();
    }
    one(&fixture, "too many").await.unwrap_err();
}

#[tokio::test]
async fn another_sender_is_not_touched() {
    let named_alike = Actor::new(ActorKind::Adapter, "ehr");
    let billing = Actor::new(ActorKind::App, "billing");
    let queues = vec![
        queue("lab", quick()),
        queue("ehr", quick()),
        sender(&app(), 1, NO_LIMIT),
        sender(&billing, 2, NO_LIMIT),
    ];
    let fixture = Fixture::new(queues).await;
    one(&fixture, "1").await.unwrap();
    one(&fixture, "2").await.unwrap_err();
    let session = fixture.session("ehr").await;
    let from = |sender: &Actor, id: &str| {
        let mut accept = crate::fixture::accept_of(sender, vec![message(id, None, "x", &["lab"])]);
        accept.session = (sender.kind == ActorKind::Adapter).then_some(session);
        accept
    };
    for n in ["1", "2", "3"] {
        fixture.store.message_accept(from(&named_alike, n)).await.unwrap();
    }
    for n in ["1", "2"] {
        fixture.store.message_accept(from(&billing, n)).await.unwrap();
    }
    let full = fixture.store.message_accept(from(&billing, "3")).await;
    assert!(
        matches!(&full, Err(AcceptError::SenderFull(full)) if full.backlog.sender == "app:billing"),
        "{full:?}"
    );
    let stranger = Actor::new(ActorKind::App, "of-no-configuration");
    fixture.store.message_accept(from(&stranger, "1")).await.unwrap();
    let backlogs = [&app(), &named_alike, &billing].map(|sender| fixture.backlog(sender).0);
    assert_eq!(backlogs, [1, 3, 2]);
    assert_sound(&fixture.stop().await, "three senders").await;
}

#[tokio::test]
async fn it_counts_from_accept_to_end_whatever_happens_between() {
    let fixture = limited(1, NO_LIMIT).await;
    let session = fixture.session("lab").await;
    let accepted = fixture.accept(vec![message("1", None, "x", &["lab"])]).await.unwrap();
    let delivery = accepted[0].deliveries[0].id;
    let leased = fixture.lease_one("lab", session).await;
    one(&fixture, "leased").await.unwrap_err();
    let retry = Outcome::Retry { after: None, scope: gatepost_core::RetryScope::Message };
    fixture.taken("lab", session, &leased, retry).await;
    one(&fixture, "waits again").await.unwrap_err();
    let leased = fixture.lease_in_time("lab", session, 1).await;
    let late = Outcome::Sent { within: Duration::from_secs(60) };
    fixture.taken("lab", session, &leased[0], late).await;
    one(&fixture, "sent").await.unwrap_err();
    fixture.taken("lab", session, &leased[0], REJECT).await;
    assert_eq!(fixture.backlog(&app()), (0, 0), "a dead one has ended");
    one(&fixture, "2").await.unwrap();
    // Replayed it counts again, beyond the limit: an operator is not refused.
    fixture.operate(delivery, Verb::Replay).await.unwrap();
    assert_eq!(fixture.backlog(&app()), (2, 2));
    one(&fixture, "3").await.unwrap_err();
    for leased in fixture.lease_in_time("lab", session, 2).await {
        fixture.taken("lab", session, &leased, REJECT).await;
    }
    until("nothing is left", async || fixture.backlog(&app()) == (0, 0)).await;
    fixture.operate(delivery, Verb::Discard).await.unwrap();
    assert_eq!(fixture.backlog(&app()), (0, 0), "and a discarded one is no less than nothing");
    let place = fixture.stop().await;
    assert_sound(&place, "all states").await;
    assert_log(&place, "all states").await;
}

#[tokio::test]
async fn what_is_in_doubt_counts_until_a_person_has_decided() {
    let queues = vec![queue("lab", doubting(OnDoubt::Hold)), sender(&app(), 1, NO_LIMIT)];
    let fixture = Fixture::new(queues).await;
    let session = fixture.session("lab").await;
    let accepted = fixture.accept(vec![message("1", None, "1", &["lab"])]).await.unwrap();
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, Outcome::Begin).await;
    fixture.taken("lab", session, &leased, Outcome::InDoubt).await;
    one(&fixture, "2").await.unwrap_err();
    fixture.resolve(accepted[0].deliveries[0].id, Resolution::Delivered).await;
    one(&fixture, "2").await.unwrap();
    assert_sound(&fixture.stop().await, "resolved").await;
}

#[tokio::test]
async fn what_expires_makes_room() {
    let fixture = in_time("there is no room before it has expired", async |span| {
        let fixture = limited(1, NO_LIMIT).await;
        let expires_at = Some(fixture.store.read().now() + span);
        let brief = NewMessage { expires_at, ..message("1", None, "x", &["lab"]) };
        fixture.accept(vec![brief]).await.unwrap();
        one(&fixture, "2").await.is_err().then_some(fixture)
    })
    .await;
    until("it has expired", async || fixture.backlog(&app()) == (0, 0)).await;
    one(&fixture, "2").await.unwrap();
    assert_sound(&fixture.stop().await, "expired").await;
}

#[tokio::test]
async fn it_is_the_same_after_a_restart_and_after_a_crash() {
    let fixture = limited(3, NO_LIMIT).await;
    one(&fixture, "1").await.unwrap();
    one(&fixture, "2").await.unwrap();
    let fixture = fixture.restart().await;
    assert_eq!(fixture.backlog(&app()), (2, 2));
    one(&fixture, "3").await.unwrap();
    one(&fixture, "4").await.unwrap_err();
    let fixture = fixture.crash().await.open().await.unwrap();
    assert_eq!(fixture.backlog(&app()), (3, 3));
    one(&fixture, "4").await.unwrap_err();
    assert_sound(&fixture.stop().await, "restarted").await;
}

#[tokio::test]
async fn a_crash_in_the_middle_of_filling_it_leaves_it_as_full_as_the_tables_say() {
    const MOST: u64 = 25;
    let mut place = Place::new(vec![queue("lab", quick()), sender(&app(), MOST, NO_LIMIT)]);
    for round in 0..4 {
        let fixture = Arc::new(place.open().await.unwrap());
        let tasks: Vec<_> = (0..10)
            .map(|n| {
                let fixture = Arc::clone(&fixture);
                tokio::spawn(async move {
                    drop(fixture.accept(vec![message(&format!("{round}-{n}"), None, "x", &["lab"])]).await)
                })
            })
            .collect();
        until("some are taken", async || fixture.backlog(&app()).0 > 0).await;
        let store = fixture.store.clone();
        drop(tasks);
        drop(store);
        let fixture = match Arc::try_unwrap(fixture) {
            Ok(fixture) => fixture,
            Err(fixture) => {
                until("the callers are gone", async || Arc::strong_count(&fixture) == 1).await;
                Arc::try_unwrap(fixture).ok().expect("nobody else has it")
            }
        };
        place = fixture.crash().await;
        assert_sound(&place, "killed").await;
    }
    let fixture = place.open().await.unwrap();
    let mut taken = fixture.backlog(&app()).0;
    for n in 0..MOST {
        taken += u64::from(one(&fixture, &format!("last-{n}")).await.is_ok());
    }
    assert_eq!((taken, fixture.backlog(&app()).0), (MOST, MOST));
    assert_sound(&fixture.stop().await, "filled").await;
}

#[tokio::test]
async fn a_limit_that_comes_later_counts_what_was_there_and_goes_with_the_configuration() {
    let lab = || queue("lab", quick());
    let mut fixture = Fixture::new(vec![lab(), QueueSetup::sender(&app(), None)]).await;
    for n in ["1", "2", "3"] {
        one(&fixture, n).await.unwrap();
    }
    fixture.configure(vec![lab(), sender(&app(), 2, NO_LIMIT)]).await;
    let full = one(&fixture, "4").await.unwrap_err();
    assert_eq!(full.backlog.deliveries, 3);
    let again = fixture.accept(vec![message("1", None, "1", &["lab"])]).await.unwrap();
    assert!(again[0].duplicate, "more than it may have is no reason to refuse what is there");
    fixture.configure(vec![lab(), sender(&app(), 4, NO_LIMIT)]).await;
    one(&fixture, "4").await.unwrap();
    one(&fixture, "5").await.unwrap_err();
    fixture.configure(vec![lab(), QueueSetup::sender(&app(), None)]).await;
    one(&fixture, "5").await.unwrap();
    assert_eq!(fixture.backlog(&app()), (5, 5));
    assert_sound(&fixture.stop().await, "configured anew").await;
}

#[tokio::test]
async fn what_an_adapter_emits_with_an_outcome_is_taken_and_counts_and_what_it_takes_in_is_refused() {
    let lab = Actor::new(ActorKind::Adapter, "lab");
    let queues = vec![queue("lab", quick()), inbox("results", quick()), sender(&lab, 2, NO_LIMIT)];
    let fixture = Fixture::new(queues).await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let mut settle = fixture.settling("lab", session, vec![item(&leased, DELIVERED)]);
    settle.emit = ["a", "b", "c"].map(|id| emit(id, &["results"])).into();
    fixture.store.delivery_settle(settle).await.unwrap();
    assert_eq!(fixture.backlog(&lab), (3, 3));
    let leaves = fixture.leaves().await;
    let taking_in = |id: &str| {
        let mut settle = fixture.settling("lab", session, Vec::new());
        settle.emit = vec![emit(id, &["results"])];
        settle.state.push(("cursor".into(), Some(b"1".to_vec())));
        settle
    };
    let refused = fixture.store.delivery_settle(taking_in("d")).await;
    assert!(
        matches!(&refused, Err(SettleError::SenderFull(full)) if full.backlog.sender == "adapter:lab"),
        "{refused:?}"
    );
    assert_eq!(fixture.leaves().await, leaves, "and its state is not kept either");
    // What no route takes is dead on arrival, and counts nothing.
    let mut unrouted = fixture.settling("lab", session, Vec::new());
    unrouted.emit =
        vec![Emit { dead: Some(gatepost_core::delivery::Reason::NoRoute), ..emit("nowhere", &[]) }];
    fixture.store.delivery_settle(unrouted).await.unwrap();
    assert_eq!(fixture.backlog(&lab), (3, 3));
    for leased in fixture.lease("results", 0, 2).await {
        fixture.taken("results", 0, &leased, Outcome::Delivered { level: Level::Transport }).await;
    }
    fixture.store.delivery_settle(taking_in("d")).await.unwrap();
    assert_eq!(fixture.backlog(&lab), (2, 2));
    assert_sound(&fixture.stop().await, "emitted").await;
}

#[tokio::test]
async fn a_moved_delivery_stays_its_senders() {
    let queues = vec![queue("lab", quick()), queue("other", quick()), sender(&app(), 2, NO_LIMIT)];
    let fixture = Fixture::new(queues).await;
    one(&fixture, "1").await.unwrap();
    one(&fixture, "2").await.unwrap();
    let moved =
        fixture.store.deliveries_move(&operator(), "lab".into(), "other".into(), 0, "elsewhere".into()).await;
    assert_eq!(moved.unwrap().waiting, 2);
    assert_eq!((fixture.stats("other").await.waiting, fixture.backlog(&app())), (2, (2, 2)));
    one(&fixture, "3").await.unwrap_err();
    let session = fixture.session("other").await;
    for leased in fixture.lease("other", session, 10).await {
        fixture.taken("other", session, &leased, DELIVERED).await;
    }
    assert_eq!(fixture.backlog(&app()), (0, 0));
    assert_sound(&fixture.stop().await, "moved").await;
}

#[tokio::test]
async fn a_sender_is_no_queue() {
    let fixture = limited(1, NO_LIMIT).await;
    let listed = fixture.store.read().queue_list().await.unwrap();
    assert!(listed.iter().all(|row| !row.name.contains(':')), "{listed:?}");
    assert!(fixture.store.read().queue("app:ehr").await.unwrap().is_none());
    let pause = fixture.store.queue_pause(&operator(), "app:ehr".into(), Pause::Pause).await;
    assert!(pause.is_err());
    assert!(fixture.try_lease(fixture.request("app:ehr", 0, 1)).await.is_err());
    let to = fixture.accept(vec![message("1", None, "x", &["app:ehr"])]).await;
    assert!(matches!(to, Err(AcceptError::Store(_))), "{to:?}");
}
