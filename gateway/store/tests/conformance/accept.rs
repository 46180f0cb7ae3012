//! Accepting: stored when answered, once per key, all or none.

use std::collections::HashSet;
use std::sync::Arc;

use gatepost_core::policy::BacklogLimit;
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{Order, QueuePolicy};
use gatepost_store::{AcceptError, AuditNote, Data, StoreError};

use crate::check::{assert_log, assert_sound};
use crate::fixture::{DELIVERED, Fixture, Place, accept_of, app, in_time, message, queue, quick};

async fn lab() -> Fixture {
    Fixture::new(vec![queue("lab", quick())]).await
}

fn limited(messages: u64, bytes: u64) -> QueuePolicy {
    QueuePolicy { max_backlog: Some(BacklogLimit { messages, bytes }), ..quick() }
}

#[tokio::test]
async fn a_message_goes_all_the_way() {
    let fixture = lab().await;
    let accepted = fixture.accept(vec![message("1", None, "hello", &["lab"])]).await.unwrap();
    assert!(!accepted[0].duplicate);
    let session = fixture.session("lab").await;
    let leased = fixture.lease("lab", session, 10).await;
    assert_eq!(leased.len(), 1);
    assert_eq!(leased[0].message.data.as_deref(), Some(b"hello".as_slice()));
    assert_eq!(fixture.taken("lab", session, &leased[0], DELIVERED).await, "delivered");
    let delivery = accepted[0].deliveries[0].id;
    assert_eq!(fixture.events(delivery).await, ["accepted", "attempt", "delivered"]);
    let place = fixture.stop().await;
    assert_log(&place, "one message").await;
}

#[tokio::test]
async fn the_same_key_gives_the_same_receipt_and_other_content_is_refused() {
    let fixture =
        Fixture::new(vec![queue("lab", QueuePolicy { order: Order::Key, ..QueuePolicy::default() })]).await;
    let first = fixture.accept(vec![message("1", Some("k"), "hello", &["lab"])]).await.unwrap();
    let fixture = fixture.restart().await;
    let again = fixture.accept(vec![message("1", Some("k"), "hello", &["lab"])]).await.unwrap();
    assert!(again[0].duplicate);
    assert_eq!(again[0].id, first[0].id);
    assert_eq!(again[0].deliveries, first[0].deliveries);
    let leaves = fixture.leaves().await;
    let mismatch = fixture
        .accept(vec![message("2", None, "x", &["lab"]), message("1", Some("k"), "other", &["lab"])])
        .await;
    assert!(matches!(mismatch, Err(AcceptError::Mismatch(1))), "{mismatch:?}");
    assert_eq!(fixture.stats("lab").await.waiting, 1, "the batch with a mismatch left nothing");
    assert_eq!(fixture.leaves().await, leaves, "and no leaf");
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_crash() {
    let fixture = lab().await;
    let first = fixture.accept(vec![message("1", None, "hello", &["lab"])]).await.unwrap();
    let place = fixture.crash().await;
    let fixture = place.open().await.unwrap();
    let stored = fixture.store.read().message(first[0].id, Data::Include).await.unwrap().unwrap();
    assert_eq!(stored.data.as_deref(), Some(b"hello".as_slice()));
    let again = fixture.accept(vec![message("1", None, "hello", &["lab"])]).await.unwrap();
    assert_eq!((again[0].duplicate, again[0].id), (true, first[0].id));
    assert_log(&fixture.stop().await, "after a crash").await;
}

#[tokio::test]
async fn r13_13_twins_in_a_batch_are_one_message_and_false_twins_refuse_the_batch() {
    let fixture = lab().await;
    let batch = |second: &str| vec![message("1", None, "a", &["lab"]), message("1", None, second, &["lab"])];
    let refused = fixture.accept(batch("b")).await;
    assert!(matches!(refused, Err(AcceptError::Mismatch(1))), "{refused:?}");
    assert_eq!(fixture.stats("lab").await.waiting, 0);
    let accepted = fixture.accept(batch("a")).await.unwrap();
    assert_eq!((accepted[0].duplicate, accepted[1].duplicate), (false, true));
    assert_eq!(accepted[0].id, accepted[1].id);
    assert_eq!(accepted[0].deliveries, accepted[1].deliveries);
    assert_eq!(fixture.stats("lab").await.waiting, 1);
}

#[tokio::test]
async fn fifty_concurrent_twins_are_one_message() {
    let fixture = Arc::new(lab().await);
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let fixture = Arc::clone(&fixture);
            tokio::spawn(
                async move { fixture.accept(vec![message("1", None, "x", &["lab"])]).await.unwrap() },
            )
        })
        .collect();
    let mut originals = 0;
    let mut ids = HashSet::new();
    for task in tasks {
        let accepted = task.await.unwrap();
        originals += u32::from(!accepted[0].duplicate);
        ids.insert((accepted[0].id, accepted[0].deliveries[0].id));
    }
    assert_eq!((originals, ids.len()), (1, 1));
    assert_eq!(fixture.stats("lab").await.waiting, 1);
}

#[tokio::test]
async fn r13_13_a_replay_is_answered_as_the_first_time_whatever_routes_changed() {
    let fixture = Fixture::new(vec![queue("lab", quick()), queue("other", quick())]).await;
    let first = fixture.accept(vec![message("1", None, "x", &["lab"])]).await.unwrap();
    let mut again = message("1", None, "x", &["other"]);
    again.attributes = br#"{"specversion":"1.0","id":"another","time":"2026-01-01T00:00:00Z"}"#.to_vec();
    let again = fixture.accept(vec![again]).await.unwrap();
    assert!(again[0].duplicate);
    assert_eq!(again[0].deliveries, first[0].deliveries);
    assert_eq!(fixture.stats("other").await.waiting, 0);
}

#[tokio::test]
async fn r13_13_everything_in_the_fingerprint_must_be_the_same() {
    let fixture = lab().await;
    let base = || message("1", Some("k"), "x", &["lab"]);
    fixture.accept(vec![base()]).await.unwrap();
    for (what, other) in [
        ("type", gatepost_core::message::NewMessage { kind: "u".into(), ..base() }),
        ("source", gatepost_core::message::NewMessage { source: "/other".into(), ..base() }),
        ("subject", gatepost_core::message::NewMessage { subject: Some(String::new()), ..base() }),
        ("datacontenttype", gatepost_core::message::NewMessage { datacontenttype: None, ..base() }),
        ("partitionkey", gatepost_core::message::NewMessage { partition_key: None, ..base() }),
        ("barrierkey", gatepost_core::message::NewMessage { barrier_key: Some("other".into()), ..base() }),
        ("data", gatepost_core::message::NewMessage { data: Vec::new(), ..base() }),
    ] {
        let refused = fixture.accept(vec![other]).await;
        assert!(matches!(refused, Err(AcceptError::Mismatch(0))), "{what}: {refused:?}");
    }
}

#[tokio::test]
async fn an_idempotency_key_belongs_to_its_sender() {
    let fixture = lab().await;
    let first = fixture.accept(vec![message("1", None, "x", &["lab"])]).await.unwrap();
    let other = Actor::new(ActorKind::App, "billing");
    let second = fixture.accept_from(&other, vec![message("1", None, "y", &["lab"])]).await.unwrap();
    assert!(!second[0].duplicate);
    assert_ne!(first[0].id, second[0].id);
}

#[tokio::test]
async fn a_key_is_free_again_after_its_window() {
    in_time("it comes again within its window", async |dedup_window| {
        let place = Place { dedup_window, ..Place::new(vec![queue("lab", quick())]) };
        let fixture = place.open().await.unwrap();
        let accept = async |text: &str| {
            fixture.accept(vec![message("1", None, text, &["lab"])]).await.unwrap().remove(0)
        };
        let first = accept("x").await;
        if !accept("x").await.duplicate {
            return None;
        }
        let accepted_at = fixture.row(first.deliveries[0].id).await.accepted_at;
        let now = || fixture.store.read().now();
        crate::fixture::until("the window has passed", async || now().since(accepted_at) > dedup_window)
            .await;
        let other = accept("other").await;
        assert!(!other.duplicate);
        let again = accept("other").await;
        again.duplicate.then(|| assert_eq!(again.id, other.id))
    })
    .await;
}

#[tokio::test]
async fn r13_5_a_full_backlog_by_messages_refuses_the_whole_batch() {
    let fixture = Fixture::new(vec![queue("lab", limited(3, u64::MAX)), queue("other", quick())]).await;
    let batch = |names: [&str; 2]| names.map(|id| message(id, None, "x", &["other", "lab"])).to_vec();
    fixture.accept(batch(["1", "2"])).await.unwrap();
    let leaves = fixture.leaves().await;
    let refused = fixture.accept(batch(["3", "4"])).await;
    assert!(matches!(&refused, Err(AcceptError::QueueFull(name)) if name == "lab"), "{refused:?}");
    assert_eq!((fixture.stats("lab").await.waiting, fixture.stats("other").await.waiting), (2, 2));
    assert_eq!(fixture.leaves().await, leaves);
    fixture.accept(vec![message("3", None, "x", &["lab"])]).await.unwrap();
    let twin = fixture.accept(vec![message("3", None, "x", &["lab"])]).await.unwrap();
    assert!(twin[0].duplicate, "what is stored already needs no room");
    let session = fixture.session("lab").await;
    let leased = fixture.lease_one("lab", session).await;
    assert!(fixture.accept(vec![message("4", None, "x", &["lab"])]).await.is_err(), "a leased one counts");
    fixture.taken("lab", session, &leased, DELIVERED).await;
    fixture.accept(vec![message("4", None, "x", &["lab"])]).await.unwrap();
}

#[tokio::test]
async fn r13_5_a_full_backlog_by_bytes_refuses() {
    let fixture = Fixture::new(vec![queue("lab", limited(u64::MAX, 10))]).await;
    fixture.accept(vec![message("1", None, "123456", &["lab"])]).await.unwrap();
    let refused = fixture.accept(vec![message("2", None, "12345", &["lab"])]).await;
    assert!(matches!(refused, Err(AcceptError::QueueFull(_))), "{refused:?}");
    fixture.accept(vec![message("2", None, "1234", &["lab"])]).await.unwrap();
    assert_sound(&fixture.stop().await, "bytes").await;
}

#[tokio::test]
async fn concurrent_batches_never_exceed_the_backlog() {
    let fixture = Arc::new(Fixture::new(vec![queue("lab", limited(10, u64::MAX))]).await);
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let fixture = Arc::clone(&fixture);
            let batch = ["a", "b", "c"].map(|part| message(&format!("{n}{part}"), None, "x", &["lab"]));
            tokio::spawn(async move { fixture.accept(batch.to_vec()).await.is_ok() })
        })
        .collect();
    let mut accepted = 0;
    for task in tasks {
        accepted += u32::from(task.await.unwrap());
    }
    assert_eq!(accepted, 3, "three batches of three fit into ten");
    assert_eq!(fixture.stats("lab").await.waiting, 9);
}

#[tokio::test]
async fn an_unknown_queue_refuses_the_message_and_its_batch() {
    let fixture = lab().await;
    let refused = fixture
        .accept(vec![message("1", None, "x", &["lab"]), message("2", None, "x", &["lab", "nowhere"])])
        .await;
    assert!(
        matches!(&refused, Err(AcceptError::Store(StoreError::NoQueue(name))) if name == "nowhere"),
        "{refused:?}"
    );
    assert_eq!(fixture.stats("lab").await.waiting, 0);
    fixture.accept(vec![message("1", None, "y", &["lab"])]).await.unwrap();
}

#[tokio::test]
async fn two_destinations_are_two_deliveries_that_end_apart() {
    let fixture = Fixture::new(vec![queue("lab", quick()), queue("archive", quick())]).await;
    let accepted = fixture.accept(vec![message("1", None, "x", &["lab", "archive"])]).await.unwrap();
    let [lab, archive] = accepted[0].deliveries.as_slice() else { panic!("{accepted:?}") };
    assert_eq!((lab.destination.as_str(), archive.destination.as_str()), ("lab", "archive"));
    assert_ne!(lab.id, archive.id);
    let session = fixture.session("lab").await;
    let leased = fixture.lease_one("lab", session).await;
    assert_eq!(leased.delivery, lab.id);
    fixture.taken("lab", session, &leased, DELIVERED).await;
    assert_eq!((fixture.state(lab.id).await, fixture.state(archive.id).await), ("delivered", "waiting"));
    assert_eq!(fixture.events(archive.id).await, ["accepted"], "one leaf names both");
}

#[tokio::test]
async fn a_large_payload_is_leased_by_reference_and_read_whole() {
    let fixture = lab().await;
    let large: Vec<u8> = (0..1024 * 1024 + 1).map(|n: u32| n as u8).collect();
    let mut large_message = message("1", None, "", &["lab"]);
    large_message.data.clone_from(&large);
    let accepted = fixture.accept(vec![large_message]).await.unwrap();
    let session = fixture.session("lab").await;
    let leased = fixture.lease_one("lab", session).await;
    assert_eq!((leased.message.data.as_ref(), leased.message.size), (None, large.len() as u64));
    assert!(!leased.message.purged);
    let stored = fixture.store.read().message(accepted[0].id, Data::Include).await.unwrap().unwrap();
    assert!(stored.data.as_deref() == Some(large.as_slice()));
    let queues = ["lab".to_owned()];
    assert!(fixture.store.read().message_leased_in(accepted[0].id, &queues).await.unwrap());
    fixture.taken("lab", session, &leased, DELIVERED).await;
    assert!(!fixture.store.read().message_leased_in(accepted[0].id, &queues).await.unwrap());
}

/// A commit carries what many callers asked for; one that cannot be written must not take the others down with it.
#[tokio::test]
async fn an_operation_that_cannot_be_written_refuses_nobody_else() {
    let fixture = lab().await;
    let mut note = AuditNote::new(gatepost_audit::Event::Refused, app());
    note.code = Some("not a code".into());
    let accepts = (0..20).map(|n| {
        let store = fixture.store.clone();
        tokio::spawn(async move {
            store.message_accept(accept_of(&app(), vec![message(&n.to_string(), None, "x", &["lab"])])).await
        })
    });
    let accepts: Vec<_> = accepts.collect();
    let notes = (0..5).map(|_| {
        let (store, note) = (fixture.store.clone(), note.clone());
        tokio::spawn(async move { store.audit_note(vec![note]).await })
    });
    for note in notes.collect::<Vec<_>>() {
        assert!(note.await.unwrap().is_err(), "the note cannot be encoded");
    }
    for accept in accepts {
        let accepted = accept.await.unwrap();
        assert!(accepted.is_ok(), "{accepted:?}");
    }
    assert_eq!(fixture.stats("lab").await.waiting, 20);
    assert_log(&fixture.stop().await, "after refused notes").await;
}

#[tokio::test]
async fn large_messages_among_small_ones_are_all_stored_also_those_that_a_stop_finds() {
    const LARGE_BYTES: usize = 1536 * 1024;
    let fixture = Arc::new(lab().await);
    let large = "x".repeat(LARGE_BYTES);
    let accepts = (0..60).map(|number| {
        let (fixture, large) = (Arc::clone(&fixture), large.clone());
        tokio::spawn(async move {
            let data = if number % 5 == 0 { large.as_str() } else { "small" };
            fixture.accept(vec![message(&number.to_string(), None, data, &["lab"])]).await
        })
    });
    let accepts: Vec<_> = accepts.collect();
    for accept in accepts {
        accept.await.unwrap().unwrap();
    }
    assert_eq!(fixture.stats("lab").await.waiting, 60);
    // Asked for, and not answered before the stop.
    let store = fixture.store.clone();
    let asked: Vec<_> = (60..66)
        .map(|number| {
            let accept = accept_of(&app(), vec![message(&number.to_string(), None, &large, &["lab"])]);
            let store = store.clone();
            tokio::spawn(async move { store.message_accept(accept).await })
        })
        .collect();
    let Ok(fixture) = Arc::try_unwrap(fixture) else { panic!("somebody has it still") };
    let place = fixture.stop().await;
    let mut stored = 60;
    for accept in asked {
        match accept.await.unwrap() {
            Ok(_) => stored += 1,
            // It came too late.
            Err(AcceptError::Store(StoreError::Stopping)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    let fixture = place.open().await.unwrap();
    assert_eq!(fixture.stats("lab").await.waiting, stored, "what was answered is there, and nothing else");
}
