//! Accepting: stored when answered, once per key, all or none.

use gatepost_core::{Order, QueuePolicy};
use gatepost_store::AcceptError;

use crate::fixture::{DELIVERED, Fixture, message, queue};

#[tokio::test]
async fn a_message_goes_all_the_way() {
    let fixture = Fixture::new(vec![queue("lab", QueuePolicy::default())]).await;
    let accepted = fixture.accept(vec![message("1", None, "hello", &["lab"])]).await.unwrap();
    assert!(!accepted[0].duplicate);
    let session = fixture.open_session("lab").await;
    let leased = fixture.lease("lab", session, 10).await;
    assert_eq!(leased.len(), 1);
    assert_eq!(leased[0].message.data.as_deref(), Some(b"hello".as_slice()));
    let answer = fixture.settle("lab", session, &leased[0], DELIVERED).await.unwrap();
    assert!(answer.items[0].ok);
    assert_eq!(answer.items[0].state, "delivered");
    let detail = fixture.store.read().message_detail(accepted[0].id).await.unwrap().unwrap();
    let events: Vec<&str> = detail.history.iter().map(|step| step.event.as_str()).collect();
    assert_eq!(events, ["accepted", "attempt", "delivered"]);
    fixture.restart().await;
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
    let mismatch = fixture
        .accept(vec![message("2", None, "x", &["lab"]), message("1", Some("k"), "other", &["lab"])])
        .await;
    assert!(matches!(mismatch, Err(AcceptError::Mismatch(1))), "{mismatch:?}");
    let queue = fixture.store.read().queue("lab").await.unwrap().unwrap();
    assert_eq!(queue.stats.waiting, 1, "the batch with a mismatch left nothing");
}
