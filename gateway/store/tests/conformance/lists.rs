//! What operators see: lists, filters, cursors, counts.

use std::time::Duration;

use gatepost_core::message::NewMessage;
use gatepost_core::{OnDead, Outcome, QueuePolicy};
use gatepost_store::{DeliveryFilter, MessageFilter, StoreError};

use crate::check::assert_sound;
use crate::fixture::{DELIVERED, Fixture, keyed, merge, message, queue, quick};

/// Seven messages: `n`-th with subject, key and type by its number; some for `lab`, some for `archive`.
async fn seven() -> Fixture {
    let fixture = Fixture::new(vec![queue("lab", quick()), queue("archive", quick())]).await;
    for n in 0..7 {
        let destination = if n % 2 == 0 { "lab" } else { "archive" };
        let message = NewMessage {
            kind: format!("type-{}", n % 3),
            subject: Some(format!("subject-{}", n % 2)),
            ..message(&n.to_string(), Some(&format!("key-{}", n % 4)), &n.to_string(), &[destination])
        };
        fixture.accept(vec![message]).await.unwrap();
    }
    fixture
}

async fn messages(fixture: &Fixture, filter: &MessageFilter, limit: u32) -> Vec<Vec<u64>> {
    let mut pages = Vec::new();
    let mut cursor = None;
    loop {
        let page = fixture.store.read().message_list(filter, cursor.as_deref(), limit).await.unwrap();
        let mut found = Vec::new();
        for item in &page.items {
            let stored = fixture.store.read().message(item.id, gatepost_store::Data::Include).await.unwrap();
            let data = stored.unwrap().data.unwrap();
            found.push(std::str::from_utf8(&data).unwrap().parse().unwrap());
        }
        pages.push(found);
        cursor = page.next;
        if cursor.is_none() {
            return pages;
        }
    }
}

#[tokio::test]
async fn messages_are_listed_newest_first_in_pages_without_gap_or_overlap() {
    let fixture = seven().await;
    let all = MessageFilter::default();
    assert_eq!(messages(&fixture, &all, 3).await, [vec![6, 5, 4], vec![3, 2, 1], vec![0]]);
    assert_eq!(
        messages(&fixture, &all, 7).await,
        [vec![6, 5, 4, 3, 2, 1, 0]],
        "a full last page has no next"
    );
}

#[tokio::test]
async fn all_given_filters_of_messages_must_hold() {
    let fixture = seven().await;
    let session = fixture.session("lab").await;
    let leased = fixture.lease("lab", session, 2).await;
    fixture.taken("lab", session, &leased[0], DELIVERED).await;
    let some = |text: &str| Some(text.to_owned());
    let cases = [
        (MessageFilter { kind: some("type-1"), ..Default::default() }, vec![4, 1]),
        (MessageFilter { subject: some("subject-1"), ..Default::default() }, vec![5, 3, 1]),
        (MessageFilter { key: some("key-2"), ..Default::default() }, vec![6, 2]),
        (MessageFilter { key: some("key-2"), kind: some("type-0"), ..Default::default() }, vec![6]),
        (MessageFilter { destination: some("archive"), ..Default::default() }, vec![5, 3, 1]),
        (MessageFilter { state: some("delivered"), ..Default::default() }, vec![0]),
        (MessageFilter { state: some("sending"), destination: some("lab"), ..Default::default() }, vec![2]),
        (
            MessageFilter { state: some("sending"), destination: some("archive"), ..Default::default() },
            vec![],
        ),
        (MessageFilter { app: some("ehr"), ..Default::default() }, vec![6, 5, 4, 3, 2, 1, 0]),
        (MessageFilter { app: some("nobody"), ..Default::default() }, vec![]),
        (MessageFilter { subject: some("Subject-1"), ..Default::default() }, vec![]),
    ];
    for (filter, expected) in cases {
        for limit in [1, 2, 100] {
            let found: Vec<u64> = messages(&fixture, &filter, limit).await.concat();
            assert_eq!(found, expected, "{filter:?} by {limit}");
        }
    }
}

#[tokio::test]
async fn a_merge_is_found_by_either_of_its_keys() {
    let queues = vec![queue("lab", keyed()), queue("archive", quick())];
    let fixture = Fixture::new(queues).await;
    for (n, keys) in [["a", "b"], ["b", "a"], ["c", "b"], ["a", "a"]].into_iter().enumerate() {
        let n = n.to_string();
        // By the message, whatever order its destinations keep.
        let merge = NewMessage { subject: Some("s".into()), ..merge(&n, keys, &["lab", "archive"]) };
        fixture.accept(vec![merge]).await.unwrap();
    }
    let alone = NewMessage { barrier_key: Some("b".into()), ..message("4", None, "4", &["archive"]) };
    fixture.accept(vec![alone]).await.unwrap();
    fixture.accept(vec![message("5", Some("b"), "5", &["archive"])]).await.unwrap();
    let fixture = fixture.restart().await;
    for (key, expected) in [("a", vec![3, 1, 0]), ("b", vec![5, 4, 2, 1, 0]), ("c", vec![2]), ("d", vec![])] {
        let filter = MessageFilter { key: Some(key.into()), ..Default::default() };
        for limit in [1, 2, 3, 100] {
            assert_eq!(messages(&fixture, &filter, limit).await.concat(), expected, "{key} by {limit}");
        }
        let filter = MessageFilter { subject: Some("s".into()), ..filter };
        let expected: Vec<u64> = expected.into_iter().filter(|n| *n < 4).collect();
        assert_eq!(messages(&fixture, &filter, 2).await.concat(), expected, "{key}, of one subject");
    }
    assert_sound(&fixture.stop().await, "merges").await;
}

#[tokio::test]
async fn messages_are_found_by_the_time_of_their_acceptance() {
    let fixture = seven().await;
    let list = fixture.store.read().message_list(&MessageFilter::default(), None, 10).await.unwrap().items;
    let border = list[2].accepted_at;
    let since = MessageFilter { since: Some(border), ..Default::default() };
    assert_eq!(messages(&fixture, &since, 10).await.concat(), [6, 5, 4], "since is inclusive");
    let until = MessageFilter { until: Some(border), ..Default::default() };
    assert_eq!(messages(&fixture, &until, 10).await.concat(), [3, 2, 1, 0], "until is not");
}

#[tokio::test]
async fn deliveries_are_listed_by_state_and_destination_in_pages() {
    let fixture = seven().await;
    let session = fixture.session("lab").await;
    for leased in fixture.lease("lab", session, 3).await {
        fixture.taken("lab", session, &leased, Outcome::Reject).await;
    }
    let count = async |state: Option<&str>, destination: Option<&str>| {
        let filter = DeliveryFilter {
            state: state.map(Into::into),
            destination: destination.map(Into::into),
            held: false,
        };
        let mut cursor = None;
        let mut found = Vec::new();
        loop {
            let page = fixture.store.read().delivery_list(&filter, cursor.as_deref(), 2).await.unwrap();
            assert!(page.items.len() <= 2);
            found.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert!(found.windows(2).all(|pair| pair[0].accepted_at >= pair[1].accepted_at));
        assert!(found.iter().all(|row| state.is_none_or(|state| row.state == state)));
        assert!(found.iter().all(|row| destination.is_none_or(|name| row.destination == name)));
        found.len()
    };
    assert_eq!(count(None, None).await, 7);
    assert_eq!(count(Some("dead"), None).await, 3);
    assert_eq!(count(Some("waiting"), None).await, 4);
    assert_eq!(count(Some("waiting"), Some("lab")).await, 1);
    assert_eq!(count(Some("dead"), Some("archive")).await, 0);
    assert_eq!(count(Some("no such state"), None).await, 0);
}

#[tokio::test]
async fn a_cursor_that_is_not_ours_is_refused() {
    let fixture = seven().await;
    for cursor in ["", "x", "-1", "0", "9999999999999999999999"] {
        let list = fixture.store.read().message_list(&MessageFilter::default(), Some(cursor), 10).await;
        assert!(matches!(list, Err(StoreError::BadCursor)), "{cursor:?}");
        let list = fixture.store.read().delivery_list(&DeliveryFilter::default(), Some(cursor), 10).await;
        assert!(matches!(list, Err(StoreError::BadCursor)), "{cursor:?}");
    }
}

#[tokio::test]
async fn a_queue_says_how_many_are_where_and_how_old_the_oldest_is() {
    let policy = QueuePolicy { on_dead: OnDead::HoldLane, ..keyed() };
    let fixture = Fixture::new(vec![queue("lab", policy)]).await;
    let session = fixture.session("lab").await;
    assert!(fixture.stats("lab").await.oldest.is_none());
    for (id, key) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c")] {
        fixture.send(id, Some(key), "lab").await;
    }
    let leased = fixture.lease("lab", session, 2).await;
    fixture.taken("lab", session, &leased[0], Outcome::Reject).await;
    crate::fixture::until("time passes", async || {
        fixture.stats("lab").await.oldest_ready.is_some_and(|age| age > Duration::from_millis(20))
    })
    .await;
    let stats = fixture.stats("lab").await;
    assert_eq!((stats.waiting, stats.sending, stats.dead, stats.held_lanes), (2, 1, 1, 1));
    assert!(stats.oldest >= stats.oldest_ready);
    assert!(stats.accepted_per_s > 0.0 && stats.settled_per_s > 0.0);
    let names: Vec<String> =
        fixture.store.read().queue_list().await.unwrap().into_iter().map(|row| row.name).collect();
    assert_eq!(names, ["lab", "unrouted"]);
    assert!(fixture.store.read().queue("nowhere").await.unwrap().is_none());
}
