//! Large payloads: written in pieces ahead of their messages or not, they are there with their message, and go with it.

use std::sync::Arc;
use std::time::Duration;

use gatepost_core::message::NewMessage;
use gatepost_core::policy::BacklogLimit;
use gatepost_core::{MessageId, QueuePolicy};
use gatepost_store::{AcceptError, Data, Database, Emit, Encryption, EraseWhat, StoreError};

use crate::check::{assert_log, assert_sound, number};
use crate::fixture::{DELIVERED, Fixture, Place, app, inbox, item, message, queue, quick, sender, until};
use crate::seal::{operator, stands_in_a_file};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Text of which no part is like another.
pub(crate) fn text(id: &str, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    for n in 0_u64.. {
        if text.len() >= bytes {
            break;
        }
        text.push_str(&format!("{id} {n} "));
    }
    text.truncate(bytes);
    text
}

pub(crate) fn large(id: &str, bytes: usize) -> NewMessage {
    message(id, None, &text(id, bytes), &["lab"])
}

async fn lab() -> Fixture {
    Fixture::new(vec![queue("lab", quick()), inbox("in", quick())]).await
}

/// Rows of pieces, those included that say that nothing has been accepted.
async fn pieces(place: &Place) -> i64 {
    const POSTGRES: &str = "SELECT (SELECT count(*) FROM piece) + (SELECT count(*) FROM piece_ahead)";
    number(place, ["SELECT count(*) FROM piece", POSTGRES]).await
}

async fn unclaimed(place: &Place) -> i64 {
    number(place, ["SELECT count(*) FROM piece WHERE number = 0", "SELECT count(*) FROM piece_ahead"]).await
}

async fn content(fixture: &Fixture, id: MessageId) -> Option<String> {
    let stored = fixture.store.read().message(id, Data::Include).await.unwrap().unwrap();
    assert_eq!(stored.purged, stored.data.is_none());
    stored.data.map(|data| String::from_utf8(data.to_vec()).unwrap())
}

/// Whether there are as many pieces as a message of so many sealed bytes has; their number is the store's own matter.
async fn has_pieces(place: &Place) -> bool {
    pieces(place).await > 0
}

#[tokio::test]
async fn a_payload_of_any_size_is_read_as_it_was_handed_in() {
    let fixture = lab().await;
    // A piece more or less, with what a seal adds.
    let sizes =
        [255 * KIB, 256 * KIB - 81, 256 * KIB, 384 * KIB - 81, 384 * KIB - 80, MIB, MIB + 1, 5 * MIB + 7];
    let mut ids = Vec::new();
    for (n, bytes) in sizes.into_iter().enumerate() {
        let accepted = fixture.accept(vec![large(&n.to_string(), bytes)]).await.unwrap();
        ids.push(accepted[0].id);
    }
    assert!(has_pieces(&fixture.place).await);
    let fixture = fixture.restart().await;
    for (n, bytes) in sizes.into_iter().enumerate() {
        assert!(content(&fixture, ids[n]).await == Some(text(&n.to_string(), bytes)), "{bytes} bytes");
    }
    let session = fixture.session("lab").await;
    for (n, bytes) in sizes.into_iter().enumerate() {
        let leased = fixture.lease_one("lab", session).await;
        let data = leased.message.data.as_deref();
        let expected = (bytes <= MIB).then(|| text(&n.to_string(), bytes));
        assert!(data == expected.as_deref().map(str::as_bytes), "{bytes} bytes");
        assert_eq!((leased.message.size, leased.message.id), (bytes as u64, ids[n]));
        fixture.taken("lab", session, &leased, DELIVERED).await;
    }
    assert_eq!(unclaimed(&fixture.place).await, 0);
    let place = fixture.stop().await;
    assert_sound(&place, "large").await;
    assert_log(&place, "large").await;
}

#[tokio::test]
async fn a_batch_of_large_and_small_ones_is_all_there_or_nothing() {
    let fixture = lab().await;
    let batch = |last: &str| {
        let mut batch: Vec<_> =
            (0..6).map(|n| large(&n.to_string(), if n % 2 == 0 { 200 * KIB } else { 20 })).collect();
        batch.push(message("twin", None, last, &["lab"]));
        batch.push(message("twin", None, "a", &["lab"]));
        batch
    };
    let refused = fixture.accept(batch("b")).await;
    assert!(matches!(refused, Err(AcceptError::Mismatch(7))), "{refused:?}");
    assert_eq!(pieces(&fixture.place).await, 0, "what is refused anyway is not written");
    let accepted = fixture.accept(batch("a")).await.unwrap();
    assert_eq!(
        accepted.iter().map(|one| one.duplicate).collect::<Vec<_>>(),
        [vec![false; 7], vec![true]].concat()
    );
    assert!(has_pieces(&fixture.place).await);
    let session = fixture.session("lab").await;
    let leased = fixture.lease("lab", session, 10).await;
    for (n, leased) in leased.iter().take(6).enumerate() {
        let expected = text(&n.to_string(), if n % 2 == 0 { 200 * KIB } else { 20 });
        assert!(leased.message.data.as_deref() == Some(expected.as_bytes()), "{n}");
    }
    assert_eq!(leased.len(), 7);
    assert_sound(&fixture.stop().await, "a batch").await;
}

/// None of them is large, and together they are.
#[tokio::test]
async fn a_batch_of_many_small_ones_is_large_too() {
    let fixture = lab().await;
    let batch = || -> Vec<_> { (0..60).map(|n| large(&n.to_string(), 20 * KIB + n)).collect() };
    let accepted = fixture.accept(batch()).await.unwrap();
    let written = pieces(&fixture.place).await;
    assert!((40..60).contains(&written), "{written} pieces");
    assert_eq!(unclaimed(&fixture.place).await, 0);
    let again = fixture.accept(batch()).await.unwrap();
    assert!(again.iter().zip(&accepted).all(|(again, first)| again.duplicate && again.id == first.id));
    assert_eq!(pieces(&fixture.place).await, written);
    let fixture = fixture.restart().await;
    let session = fixture.session("lab").await;
    let leased = fixture.lease("lab", session, 60).await;
    assert_eq!(leased.len(), 60);
    for (n, leased) in leased.iter().enumerate() {
        let expected = text(&n.to_string(), 20 * KIB + n);
        assert!(leased.message.data.as_deref() == Some(expected.as_bytes()), "{n}");
        assert!(content(&fixture, accepted[n].id).await == Some(expected), "{n}");
    }
    let place = fixture.stop().await;
    assert_sound(&place, "many small ones").await;
    assert_log(&place, "many small ones").await;
}

#[tokio::test]
async fn what_is_refused_or_known_leaves_nothing() {
    let policy =
        QueuePolicy { max_backlog: Some(BacklogLimit { messages: 100, bytes: 2 * MIB as u64 }), ..quick() };
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    let first = fixture.accept(vec![large("1", MIB)]).await.unwrap();
    let before = pieces(&fixture.place).await;
    let again = fixture.accept(vec![large("1", MIB)]).await.unwrap();
    assert_eq!((again[0].id, again[0].duplicate), (first[0].id, true));
    let other = message("1", None, &text("other", MIB), &["lab"]);
    let mismatch = fixture.accept(vec![other]).await;
    assert!(matches!(mismatch, Err(AcceptError::Mismatch(0))), "{mismatch:?}");
    let full = fixture.accept(vec![large("2", 2 * MIB)]).await;
    assert!(matches!(full, Err(AcceptError::QueueFull(_))), "{full:?}");
    assert_eq!(pieces(&fixture.place).await, before, "nothing of them was written");
    let nowhere = fixture.accept(vec![message("3", None, &text("3", MIB), &["nobody"])]).await;
    assert!(matches!(nowhere, Err(AcceptError::Store(StoreError::NoQueue(_)))), "{nowhere:?}");
    assert_eq!(pieces(&fixture.place).await, before);
    assert!(content(&fixture, first[0].id).await == Some(text("1", MIB)));
}

/// Between looking whether it will be refused and its accept others come.
#[tokio::test]
async fn of_two_that_only_one_is_taken_of_the_other_leaves_nothing() {
    for same in [true, false] {
        let limit = sender(&app(), 100, 6 * MIB as u64);
        let fixture = Fixture::new(vec![queue("lab", quick()), limit]).await;
        let store = Arc::new(fixture.store.clone());
        let hand_in = |id: &str| {
            let (store, accept) =
                (Arc::clone(&store), crate::fixture::accept_of(&app(), vec![large(id, 4 * MIB)]));
            tokio::spawn(async move { store.message_accept(accept).await })
        };
        let (one, other) = (hand_in("1"), hand_in(if same { "1" } else { "2" }));
        let (one, other) = (one.await.unwrap(), other.await.unwrap());
        if same {
            let (one, other) = (one.unwrap(), other.unwrap());
            assert_eq!(one[0].id, other[0].id);
            assert_ne!(one[0].duplicate, other[0].duplicate);
        } else {
            let full =
                [&one, &other].into_iter().filter(|answer| matches!(answer, Err(AcceptError::SenderFull(_))));
            assert_eq!(
                (full.count(), [&one, &other].into_iter().filter(|answer| answer.is_ok()).count()),
                (1, 1)
            );
        }
        until("nothing is left of the other", async || unclaimed(&fixture.place).await == 0).await;
        assert_eq!(fixture.stats("lab").await.waiting, 1);
        let session = fixture.session("lab").await;
        let id = fixture.lease_one("lab", session).await.message.id;
        let content = content(&fixture, id).await.unwrap();
        assert!(content == text("1", 4 * MIB) || (!same && content == text("2", 4 * MIB)));
        assert_sound(&fixture.stop().await, "one of two").await;
    }
}

/// What nobody accepted is removed little by little, but no faster does it grow.
#[tokio::test]
async fn whoever_hands_in_the_same_many_times_at_once_leaves_pieces_of_few() {
    let fixture = lab().await;
    let mut waiting = Vec::new();
    for _ in 0..40 {
        let (store, accept) =
            (fixture.store.clone(), crate::fixture::accept_of(&app(), vec![large("1", 300 * KIB)]));
        waiting.push(tokio::spawn(async move { store.message_accept(accept).await }));
    }
    let mut new = 0;
    for answer in waiting {
        new += usize::from(!answer.await.unwrap().unwrap()[0].duplicate);
    }
    assert_eq!(new, 1);
    // Behind all that was done with them.
    fixture.send("2", None, "lab").await;
    let left = unclaimed(&fixture.place).await;
    assert!(left <= 16, "{left} are left");
    until("nothing is left of them", async || unclaimed(&fixture.place).await == 0).await;
    assert_sound(&fixture.stop().await, "the same").await;
}

/// More than the writer has at a time: those that come later wait, and none of them goes round the pieces.
#[tokio::test]
async fn however_many_large_ones_come_at_once_all_go_in_pieces() {
    const MANY: usize = 100;
    let fixture = lab().await;
    let hand_in = |n: usize| {
        let accept = crate::fixture::accept_of(&app(), vec![large(&n.to_string(), 300 * KIB)]);
        let store = fixture.store.clone();
        tokio::spawn(async move { store.message_accept(accept).await })
    };
    let waiting: Vec<_> = (0..MANY).map(hand_in).collect();
    for answer in waiting {
        assert!(!answer.await.unwrap().unwrap()[0].duplicate);
    }
    let messages = "SELECT count(DISTINCT message) FROM piece";
    assert_eq!(number(&fixture.place, [messages, messages]).await, MANY as i64);
    assert_eq!(unclaimed(&fixture.place).await, 0);
    assert_sound(&fixture.stop().await, "many at once").await;
}

#[tokio::test]
async fn what_is_emitted_may_be_as_large() {
    let fixture = lab().await;
    let session = fixture.session("lab").await;
    fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let emitted = message("e", None, &text("e", 3 * MIB), &["in"]);
    let emit = vec![Emit { message: emitted, dead: None }];
    let settle = gatepost_store::Settle {
        emit,
        atomic: true,
        ..fixture.settling("lab", session, vec![item(&leased, DELIVERED)])
    };
    let answer = fixture.store.delivery_settle(settle).await.unwrap();
    assert!(answer.items[0].ok);
    assert!(has_pieces(&fixture.place).await);
    let id = answer.emitted[0].0;
    assert!(content(&fixture, id).await == Some(text("e", 3 * MIB)));
    assert_eq!(fixture.state(leased.delivery).await, "delivered");
    assert_eq!(unclaimed(&fixture.place).await, 0);
    assert_sound(&fixture.stop().await, "emitted").await;
}

#[tokio::test]
async fn a_payload_in_pieces_goes_with_its_time() {
    let fixture = lab().await;
    let session = fixture.session("lab").await;
    let gone = fixture.accept(vec![large("gone", 2 * MIB)]).await.unwrap()[0].id;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, DELIVERED).await;
    let stays = fixture.accept(vec![large("stays", 2 * MIB)]).await.unwrap()[0].id;
    let before = pieces(&fixture.place).await;
    let place = Place { payload_retention: Duration::ZERO, ..fixture.stop().await };
    let fixture = place.open().await.unwrap();
    until("the payload is gone", async || content(&fixture, gone).await.is_none()).await;
    assert_eq!(pieces(&place).await * 2, before, "half of the pieces are");
    assert!(content(&fixture, stays).await == Some(text("stays", 2 * MIB)), "it waits");
    assert_sound(&fixture.stop().await, "purged").await;
}

#[tokio::test]
async fn an_erased_payload_in_pieces_is_gone() {
    let fixture = lab().await;
    let session = fixture.session("lab").await;
    let mut ids = Vec::new();
    for id in ["gone", "kept"] {
        ids.push(fixture.accept(vec![large(id, 2 * MIB)]).await.unwrap()[0].id);
        let leased = fixture.lease_one("lab", session).await;
        fixture.taken("lab", session, &leased, DELIVERED).await;
    }
    let before = pieces(&fixture.place).await;
    let erased = fixture.store.erase(operator(), EraseWhat::Message(ids[0])).await.unwrap();
    assert_eq!((erased.messages.as_slice(), erased.plain), (&ids[..1], 0), "its data key was found, and cut");
    assert_eq!(pieces(&fixture.place).await * 2, before);
    assert_eq!(content(&fixture, ids[0]).await, None);
    let fixture = fixture.restart().await;
    assert!(content(&fixture, ids[1]).await == Some(text("kept", 2 * MIB)));
    assert_sound(&fixture.stop().await, "erased").await;
}

#[tokio::test]
async fn payloads_in_pieces_open_under_a_new_seal_key() {
    let fixture = lab().await;
    let id = fixture.accept(vec![large("1", 2 * MIB)]).await.unwrap()[0].id;
    fixture.store.seal_key_rotate(operator()).await.unwrap();
    assert!(content(&fixture, id).await == Some(text("1", 2 * MIB)));
    let fixture = fixture.restart().await;
    assert!(content(&fixture, id).await == Some(text("1", 2 * MIB)));
}

/// What has been handed in before the store is told to stop is done, or would have to be told otherwise; nothing is dropped.
#[tokio::test]
async fn what_is_large_and_waits_at_a_stop_is_done() {
    let fixture = lab().await;
    let mut waiting = Vec::new();
    for n in 0..4 {
        let (store, accept) =
            (fixture.store.clone(), crate::fixture::accept_of(&app(), vec![large(&n.to_string(), 8 * MIB)]));
        waiting.push(tokio::spawn(async move { store.message_accept(accept).await }));
    }
    until("they are under way", async || unclaimed(&fixture.place).await > 0).await;
    let place = fixture.stop().await;
    let mut ids = Vec::new();
    for (n, answer) in waiting.into_iter().enumerate() {
        match answer.await.unwrap() {
            Ok(accepted) => ids.push((n, accepted[0].id)),
            // It had not come to the writer.
            Err(error) => assert!(matches!(error, AcceptError::Store(StoreError::Stopping)), "{error:?}"),
        }
    }
    assert!(!ids.is_empty(), "what was begun was done");
    assert_eq!(unclaimed(&place).await, 0, "and nothing is left half done");
    let fixture = place.open().await.unwrap();
    assert_eq!(fixture.stats("lab").await.waiting, ids.len() as u64);
    for (n, id) in ids {
        assert!(content(&fixture, id).await == Some(text(&n.to_string(), 8 * MIB)));
    }
}

#[tokio::test]
async fn what_a_crash_leaves_of_a_payload_without_its_message_goes_with_the_next_start() {
    let fixture = lab().await;
    let kept = fixture.accept(vec![large("kept", 2 * MIB)]).await.unwrap()[0].id;
    let before = pieces(&fixture.place).await;
    let (store, accept) =
        (fixture.store.clone(), crate::fixture::accept_of(&app(), vec![large("half", 60 * MIB)]));
    let answer = tokio::spawn(async move { store.message_accept(accept).await });
    until("it is under way", async || unclaimed(&fixture.place).await > 0).await;
    let place = fixture.crash().await;
    let answer = answer.await.unwrap();
    let half = pieces(&place).await;
    let fixture = place.open().await.unwrap();
    // A crash comes before the end of so much.
    assert!(matches!(&answer, Err(AcceptError::Store(StoreError::Stopping))), "{answer:?}");
    assert!(half > before, "some of it was there");
    until("nothing is left of it", async || pieces(&place).await == before).await;
    assert_eq!(fixture.stats("lab").await.waiting, 1, "nobody sees it");
    // It is new, whatever was left of it.
    let again = fixture.accept(vec![large("half", 3 * MIB)]).await.unwrap();
    assert!(!again[0].duplicate);
    assert!(content(&fixture, again[0].id).await == Some(text("half", 3 * MIB)));
    assert!(content(&fixture, kept).await == Some(text("kept", 2 * MIB)));
    assert_sound(&fixture.stop().await, "half").await;
}

/// Erasing a message cuts its own keys, and knows of no other that the same content was sealed with.
#[tokio::test]
async fn what_was_never_accepted_is_overwritten_when_it_goes() {
    let place = Place { encryption: Encryption::Off, ..Place::new(vec![queue("lab", quick())]) };
    let fixture = place.open().await.unwrap();
    // PostgreSQL's files are its own matter.
    if !matches!(place.database, Database::Sqlite) {
        return;
    }
    let (store, accept) =
        (fixture.store.clone(), crate::fixture::accept_of(&app(), vec![large("half", 60 * MIB)]));
    tokio::spawn(async move { store.message_accept(accept).await });
    until("it is under way", async || unclaimed(&place).await > 0).await;
    let place = fixture.crash().await;
    let begins = &text("half", 100).into_bytes()[..];
    assert!(stands_in_a_file(place.path(), begins), "so it would be found");
    let fixture = place.open().await.unwrap();
    until("nothing is left of it", async || pieces(&place).await == 0).await;
    let place = fixture.stop().await;
    assert!(!stands_in_a_file(place.path(), begins), "it is in a page that nothing stands in");
    assert_sound(&place, "overwritten").await;
}
