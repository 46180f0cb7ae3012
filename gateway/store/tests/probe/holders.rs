//! Who keeps the server from removing dead rows shows in a number.

use std::process::{Child, Stdio};
use std::time::Duration;

use gatepost_postgres::Cluster;

use crate::{DATABASE, cluster, open, until};

/// Age that a holder has when the gateway starts.
const AGE: Duration = Duration::from_secs(2);

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A session that keeps its snapshot.
async fn snapshot(cluster: &Cluster) -> Ended {
    let hold = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; SELECT pg_sleep(600)";
    let mut psql = cluster.psql(DATABASE);
    psql.args(["--command", hold]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let held = Ended(psql.spawn().unwrap());
    let seen = "SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()";
    until("it holds", || cluster.query(DATABASE, seen).unwrap() == "1").await;
    held
}

async fn assert_seen(cluster: &Cluster) {
    tokio::time::sleep(AGE).await;
    let dir = tempfile::tempdir().unwrap();
    let (store, task) = open(&dir, &cluster.url(DATABASE)).await.unwrap();
    until("it was looked at", || store.health().oldest_snapshot().is_some()).await;
    let held = store.health().oldest_snapshot().unwrap();
    assert!(held >= AGE, "{held:?}");
    drop(store);
    task.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_snapshot_shows() {
    let cluster = cluster(&[]);
    let _held = snapshot(&cluster).await;
    assert_seen(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_that_was_left_shows() {
    let cluster = cluster(&[("max_prepared_transactions", "5"), ("wal_level", "logical")]);
    cluster.query(DATABASE, "SELECT pg_create_logical_replication_slot('left', 'pgoutput')").unwrap();
    cluster.query(DATABASE, "BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'left'").unwrap();
    assert_seen(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_holds_on_where_nobody_does() {
    let cluster = cluster(&[]);
    let dir = tempfile::tempdir().unwrap();
    let (store, task) = open(&dir, &cluster.url(DATABASE)).await.unwrap();
    until("it was looked at", || store.health().oldest_snapshot().is_some()).await;
    assert!(store.health().oldest_snapshot().unwrap() < AGE);
    drop(store);
    task.stop().await;
}
