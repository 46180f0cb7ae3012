//! The database dies under its nodes, and comes back; and another takes its place.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use gatepost_postgres::Cluster;
use gatepost_tests::{note, until_within};

use super::{DRAINED, Nodes, Senders, handed_in};

/// How long the database is away.
const AWAY: Duration = Duration::from_secs(2);

/// What stands for an address that is moved to another server: a directory that leads to its socket.
fn point(address: &Path, cluster: &Cluster) {
    let moved = address.with_extension("moved");
    symlink(cluster.socket(), &moved).unwrap();
    std::fs::rename(&moved, address).unwrap();
}

#[test]
fn a_database_that_dies_and_one_that_takes_its_place_lose_nothing_that_was_accepted() {
    let mut primary = Cluster::start(&[]).expect("a PostgreSQL server for the tests");
    let mut standby = primary.standby("second", &[]).expect("a standby");
    primary.configure(&[("synchronous_standby_names", "second")]).expect("a primary that waits for it");
    let addresses = tempfile::tempdir().unwrap();
    let address = addresses.path().join("active");
    point(&address, &primary);
    let url = primary.url("postgres").replace(&in_url(primary.socket()), &in_url(&address));
    let nodes = Nodes::start(&url, &[None, None]);
    let senders = Senders::start(&nodes.nodes);
    let some_more = || {
        let seen = nodes.effects().len();
        until_within(DRAINED, "more is delivered", || (nodes.effects().len() > seen + 500).then_some(()));
    };
    some_more();
    primary.kill().unwrap();
    std::thread::sleep(AWAY);
    primary.start_again().unwrap();
    some_more();
    primary.kill().unwrap();
    standby.promote().unwrap();
    point(&address, &standby);
    some_more();
    let submissions = senders.finish();
    let sent = handed_in(&submissions);
    let verdict = nodes.judge(submissions);
    note(&format!("a database killed, and one that failed over: {verdict}"));
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.accepted, sent);
}

/// A path as it stands in an address.
fn in_url(path: &Path) -> String {
    path.display().to_string().replace('/', "%2F")
}
