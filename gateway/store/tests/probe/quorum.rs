//! `quorum` is said only while a synchronous standby confirms what is committed.

use std::time::Duration;

use gatepost_postgres::Cluster;
use gatepost_store::Durability;

use crate::{DATABASE, cluster, look, open, refusal, send, until};

/// Longer than any call of the store waits for the server.
const LONG: Duration = Duration::from_secs(40);

/// A primary with a standby that it waits for.
fn pair() -> (Cluster, Cluster) {
    let mut primary = cluster(&[]);
    let standby = primary.standby("second", &[]).unwrap();
    primary.configure(&[("synchronous_standby_names", "second")]).unwrap();
    (primary, standby)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synchronous_standby_makes_it_quorum_for_as_long_as_it_is_there() {
    let (mut primary, standby) = pair();
    let url = primary.url(DATABASE);
    primary.query(DATABASE, "CREATE ROLE blind LOGIN; GRANT CREATE ON DATABASE gp TO blind").unwrap();
    assert_eq!(look(&url).await.durability, Durability::Quorum);
    let dir = tempfile::tempdir().unwrap();
    let (store, task) = open(&dir, &url).await.unwrap();
    assert_eq!(store.health().durability(), Durability::Quorum);
    send(&store, "one").await.unwrap();
    // Gone, it is not claimed any more, though a commit now waits for it.
    drop(standby);
    until("it is fsync", || store.health().durability() == Durability::Fsync).await;
    primary.configure(&[("synchronous_standby_names", "")]).unwrap();
    send(&store, "two").await.unwrap();
    assert_eq!(store.health().durability(), Durability::Fsync);
    let _third = primary.standby("third", &[]).unwrap();
    primary.configure(&[("synchronous_standby_names", "ANY 1 (third)")]).unwrap();
    until("it is quorum", || store.health().durability() == Durability::Quorum).await;
    drop(store);
    task.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_would_wait_for_a_standby_says_so() {
    let (primary, standby) = pair();
    drop(standby);
    let gone = "SELECT count(*) FROM pg_stat_replication";
    until("it is gone", || primary.query(DATABASE, gone).unwrap() == "0").await;
    let text = refusal(&primary.url(DATABASE)).await;
    assert!(text.contains("synchronous standby: commits wait for `second`, and none of them"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_see_the_standbys_claims_nothing() {
    let (primary, _standby) = pair();
    primary.query(DATABASE, "CREATE ROLE blind LOGIN; CREATE SCHEMA gatepost AUTHORIZATION blind").unwrap();
    let url = primary.url(DATABASE).replace("user=gatepost", "user=blind");
    assert_eq!(look(&url).await.durability, Durability::Fsync);
    primary.query(DATABASE, "GRANT pg_monitor TO blind").unwrap();
    assert_eq!(look(&url).await.durability, Durability::Quorum);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_a_silent_standby_does_not_confirm_is_not_answered_as_done() {
    let (primary, standby) = pair();
    let dir = tempfile::tempdir().unwrap();
    let (store, task) = open(&dir, &primary.url(DATABASE)).await.unwrap();
    send(&store, "one").await.unwrap();
    // Its connection stays, so it counts as attached.
    standby.pause().unwrap();
    let answered = tokio::time::timeout(LONG, send(&store, "two")).await;
    assert!(!matches!(answered, Ok(Ok(()))), "answered as done");
    standby.resume().unwrap();
    drop(store);
    task.stop().await;
}
