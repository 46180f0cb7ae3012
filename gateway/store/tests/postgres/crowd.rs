//! Many who hand in at once, while what they hand in is delivered.

use std::collections::HashMap;
use std::sync::Arc;

use gatepost_core::DeliveryId;

use crate::check::{assert_log, assert_sound};
use crate::fixture::{DELIVERED, Fixture, inbox, keyed, message, quick, until};

/// Messages of one call.
const BATCH: usize = 40;
const BATCHES: usize = 12;
const SENDERS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crowd_hands_in_is_there_once_and_counts() {
    let fixture = Arc::new(Fixture::new(vec![inbox("in", quick()), inbox("lanes", keyed())]).await);
    let senders = (0..SENDERS).map(|sender| {
        let fixture = Arc::clone(&fixture);
        tokio::spawn(async move {
            for batch in 0..BATCHES {
                let key = |n: usize| if n.is_multiple_of(2) { Some("k") } else { None };
                let one = |n| message(&format!("{sender}-{batch}-{n}"), key(n), "x", &["in", "lanes"]);
                // Some are handed in twice.
                let from = if batch.is_multiple_of(3) { 0 } else { BATCH };
                let accepted = fixture.accept((from..from + BATCH).map(one).collect()).await.unwrap();
                assert!(accepted.iter().all(|accepted| !accepted.duplicate));
                if batch.is_multiple_of(4) {
                    let again = fixture.accept((from..from + BATCH).map(one).collect()).await.unwrap();
                    assert!(
                        again
                            .iter()
                            .zip(&accepted)
                            .all(|(again, first)| again.duplicate && again.id == first.id)
                    );
                }
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let all = SENDERS * BATCHES * BATCH;
    let mut taken: HashMap<DeliveryId, usize> = HashMap::new();
    while taken.len() < all {
        for one in fixture.lease_in_time("in", 0, 100).await {
            *taken.entry(one.delivery).or_default() += 1;
            assert_eq!(fixture.taken("in", 0, &one, DELIVERED).await, "delivered");
        }
    }
    for sender in senders {
        sender.await.unwrap();
    }
    assert!(taken.values().all(|times| *times == 1));
    until("the counts are right", async || {
        let (one, other) = (fixture.stats("in").await, fixture.stats("lanes").await);
        (one.waiting, one.leased, other.waiting) == (0, 0, all as u64)
    })
    .await;
    let place = Arc::into_inner(fixture).unwrap().stop().await;
    assert_sound(&place, "after the crowd").await;
    assert_log(&place, "after the crowd").await;
}
