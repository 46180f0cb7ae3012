//! The connection is lost at a commit: what was handed in is there once, whether or not the commit came about.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use gatepost_core::QueuePolicy;
use gatepost_postgres::Cluster;
use gatepost_store::{Database, QueueSetup};
use sqlx::PgConnection;
use tokio::sync::Notify;

use crate::check::postgres::{connect, number};
use crate::check::{assert_log, assert_sound};
use crate::fixture::{Fixture, Place, inbox, keyed, message, until};

/// Ends the session that stands at the commit of a message, in such a call: in what that has to do first, or waiting for a standby.
const END: &str = "SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid() \
    AND a.state = 'active' AND a.query LIKE $1 AND a.wait_event IN ('PgSleep', 'SyncRep') \
    AND EXISTS (SELECT 1 FROM pg_locks l WHERE l.pid = a.pid AND l.relation = 'message'::regclass AND l.mode = 'RowExclusiveLock')";
/// What a node writes once, soon after it has started.
const SETTLED_IN: &str =
    "SELECT count(*) FROM role WHERE epoch IS NOT NULL AND name IN ('sequencer', 'retention')";

/// How a message is committed.
#[derive(Clone, Copy)]
enum Calls {
    /// With all that is written of it.
    One,
    /// By itself, behind what is written: several of its lane may be leased at once, which takes statements of its own.
    Several,
}

impl Calls {
    fn query(self) -> &'static str {
        match self {
            Self::One => "/* turn */%",
            Self::Several => "COMMIT",
        }
    }

    fn queue(self) -> QueueSetup {
        let window = match self {
            Self::One => 1,
            Self::Several => 4,
        };
        inbox("in", QueuePolicy { window, ..keyed() })
    }
}

/// Waits until the node has renewed its right, and noted the time with that: for nearly a second it writes nothing by itself.
async fn until_just_renewed(fixture: &Fixture) {
    let look = async || {
        let until = number(url(&fixture.place), "SELECT until FROM node").await;
        (until, number(url(&fixture.place), "SELECT clock FROM store").await)
    };
    let before = look().await;
    until("the node has just renewed its right", async || {
        let now = look().await;
        now.0 != before.0 && now.1 != before.1
    })
    .await;
}

/// Hands in one message, and loses the connection while it is being committed.
async fn accept_and_lose(
    fixture: &Fixture,
    calls: Calls,
    other: &mut PgConnection,
    then: impl AsyncFnOnce(),
) {
    let handed_in = || vec![message("1", Some("k"), "x", &["in"])];
    let mut accepting = pin!(fixture.accept(handed_in()));
    let losing = async {
        while {
            let row = sqlx::query(END).bind(calls.query()).fetch_one(&mut *other).await.unwrap();
            sqlx::Row::get::<i64, _>(&row, 0) == 0
        } {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        early = &mut accepting => panic!("it was answered before its connection could be lost: {early:?}"),
        () = losing => {}
    }
    let (accepted, ()) = tokio::join!(accepting, then());
    let accepted = accepted.unwrap();
    assert!(!accepted[0].duplicate);
    let again = fixture.accept(handed_in()).await.unwrap();
    assert_eq!((again[0].id, again[0].duplicate), (accepted[0].id, true), "there once");
}

fn url(place: &Place) -> &str {
    match &place.database {
        Database::Postgres { url, .. } => url,
        Database::Sqlite => unreachable!("these places are PostgreSQL's"),
    }
}

async fn assert_one(fixture: Fixture) {
    assert_eq!(number(url(&fixture.place), "SELECT count(*) FROM message").await, 1);
    until("it counts", async || fixture.stats("in").await.waiting == 1).await;
    let place = fixture.stop().await;
    assert_sound(&place, "after a lost commit").await;
    assert_log(&place, "after a lost commit").await;
}

#[tokio::test]
async fn a_commit_that_did_not_come_about_is_made_again() {
    did_not_come_about(Calls::One).await;
}

#[tokio::test]
async fn a_commit_of_several_calls_that_did_not_come_about_is_made_again() {
    did_not_come_about(Calls::Several).await;
}

#[tokio::test]
async fn a_commit_that_came_about_unheard_is_not_made_again() {
    came_about_unheard(Calls::One).await;
}

#[tokio::test]
async fn a_commit_of_several_calls_that_came_about_unheard_is_not_made_again() {
    came_about_unheard(Calls::Several).await;
}

/// The node owns the lanes of what somebody waits for there. Only an owner has more to do than to leave a note.
async fn waits(fixture: &Fixture) -> Arc<Notify> {
    let hint = fixture.store.queue_hint("in");
    assert!(fixture.lease("in", 0, 1).await.is_empty());
    hint
}

async fn did_not_come_about(calls: Calls) {
    let fixture = Fixture::new(vec![calls.queue()]).await;
    let _waits = waits(&fixture).await;
    let mut other = connect(url(&fixture.place)).await;
    // The commit takes its time, and nothing of it is there before it is over.
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END'; \
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON message DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()";
    sqlx::raw_sql(slow).execute(&mut other).await.unwrap();
    let mut dropping = connect(url(&fixture.place)).await;
    accept_and_lose(&fixture, calls, &mut other, async || {
        sqlx::raw_sql("DROP TRIGGER slow ON message").execute(&mut dropping).await.unwrap();
    })
    .await;
    assert_one(fixture).await;
}

async fn came_about_unheard(calls: Calls) {
    let mut primary = Cluster::start(&[]).expect("a PostgreSQL server for the tests");
    let standby = primary.standby("second", &[]).expect("a standby");
    primary.configure(&[("synchronous_standby_names", "second")]).unwrap();
    let place = Place::new(vec![calls.queue()]);
    let database = match place.database.clone() {
        Database::Postgres { node, engines, .. } => {
            Database::Postgres { url: primary.url("postgres"), node, engines }
        }
        Database::Sqlite => unreachable!("these places are PostgreSQL's"),
    };
    let fixture = Place { database, ..place }.open().await.unwrap();
    let mut other = connect(url(&fixture.place)).await;
    // Nothing else of the writer's must stand at its commit when the standby does not answer.
    let _waits = waits(&fixture).await;
    until("the node has its roles", async || number(url(&fixture.place), SETTLED_IN).await == 2).await;
    until_just_renewed(&fixture).await;
    // It is committed here, and waits for the one that stands still.
    standby.pause().unwrap();
    accept_and_lose(&fixture, calls, &mut other, async || standby.resume().unwrap()).await;
    assert_one(fixture).await;
}
