//! How much is read of what grows, however much of it there is.

use std::time::Duration;

use gatepost_core::{OnDoubt, Outcome, QueuePolicy, RetryPolicy, RetryScope};

use crate::check::postgres::number;
use crate::fixture::{DELIVERED, Fixture, doubting, external, inbox, message, quick, until};
use crate::nodes::url;

/// A connection has counted everything when it is gone.
pub(crate) const OTHERS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
const FETCHED: &str =
    "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_user_tables WHERE relname = 'delivery'";

/// Rows of deliveries that were read until the gateway has stopped.
async fn fetched(fixture: Fixture) -> i64 {
    let place = fixture.stop().await;
    until("all have gone", async || number(url(&place), OTHERS).await == 0).await;
    number(url(&place), FETCHED).await
}

#[tokio::test]
async fn what_goes_back_in_a_long_lane_reads_its_front() {
    const LANE: usize = 600;
    const ROUNDS: i64 = 20;
    let policy = doubting(OnDoubt::Hold);
    let policy = QueuePolicy { retry: RetryPolicy { attempts: 100, ..policy.retry }, ..policy };
    let fixture = Fixture::new(vec![inbox("in", policy)]).await;
    let messages = (0..LANE).map(|number| message(&number.to_string(), Some("a"), "x", &["in"]));
    fixture.accept(messages.collect()).await.unwrap();
    let back = Outcome::Retry { after: Some(Duration::ZERO), scope: RetryScope::Message };
    for _ in 0..ROUNDS {
        let leased = fixture.lease_in_time("in", 0, 1).await.remove(0);
        fixture.taken("in", 0, &leased, back).await;
    }
    let fetched = fetched(fixture).await;
    assert!(fetched < ROUNDS * 200, "{fetched}");
}

#[tokio::test]
async fn what_goes_alone_is_given_out_without_reading_what_other_queues_have_leased() {
    const LEASED: i64 = 1000;
    const SUSPECTS: i64 = 20;
    let policy = QueuePolicy { max_in_flight: 5000, ..quick() };
    let fixture = Fixture::new(vec![inbox("in", policy), external("lab", quick())]).await;
    let messages = (0..LEASED).map(|number| message(&number.to_string(), None, "x", &["in"]));
    fixture.accept(messages.collect()).await.unwrap();
    assert_eq!(fixture.lease_in_time("in", 0, 5000).await.len() as i64, LEASED);
    let messages = (0..SUSPECTS).map(|number| message(&format!("lab {number}"), None, "x", &["lab"]));
    fixture.accept(messages.collect()).await.unwrap();
    let session = fixture.session("lab").await;
    assert_eq!(fixture.lease_in_time("lab", session, 5000).await.len() as i64, SUSPECTS);
    // A session that opens reads them all.
    let session = fixture.session("lab").await;
    for _ in 0..SUSPECTS {
        let suspect = fixture.lease_in_time("lab", session, 5000).await;
        assert_eq!(suspect.len(), 1);
        fixture.taken("lab", session, &suspect[0], DELIVERED).await;
    }
    let fetched = fetched(fixture).await;
    assert!(fetched < 4 * LEASED, "{fetched}");
}
