//! A gateway that was on SQLite is moved to PostgreSQL: everything is there and reads as before, whatever happened on the way.

mod filled;
mod refused;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use gatepost_audit::Proof;
use gatepost_core::DeliveryId;
use gatepost_store::archive::Archive;
use gatepost_store::migrate::{
    BATCH_ROWS, Begun, MigrateError, Migrated, Migration, Moved, Step, migrate as run,
};
use gatepost_store::{Data, Database, DeliveryFilter, MessageFilter, OpenError, QueueSetup, Receipt};

use crate::check::{assert_log, assert_sound, entries, vkey};
use crate::fixture::{DELIVERED, Fixture, Place, inbox, keyed, message, queue, quick, text, until};
use filled::{Filled, filled};

/// The same data directory with SQLite, and with a new PostgreSQL.
fn places(queues: Vec<QueueSetup>) -> (Place, Place) {
    let to = Place::new(queues);
    (Place { database: Database::Sqlite, ..to.clone() }, to)
}

fn migration(to: &Place, batch_rows: usize) -> Migration {
    let Database::Postgres { url, engines, .. } = to.database.clone() else {
        unreachable!("a place that is moved to is PostgreSQL's")
    };
    Migration {
        data_dir: to.path().to_path_buf(),
        origin: "test-gateway".into(),
        url,
        engines,
        seal_keys: Default::default(),
        batch_rows,
    }
}

async fn moved(to: &Place) -> Result<Moved, MigrateError> {
    match run(migration(to, BATCH_ROWS), |_| ControlFlow::Continue(())).await? {
        Migrated::Now(moved) => Ok(moved),
        Migrated::Before => panic!("it was moved before"),
    }
}

async fn refusal(to: &Place) -> MigrateError {
    match moved(to).await {
        Ok(moved) => panic!("it was moved: {moved:?}"),
        Err(error) => error,
    }
}

/// Copies one batch of so many rows, or all that is left if no batch is.
async fn one_batch(to: &Place, rows: usize) -> Result<Migrated, MigrateError> {
    let mut batches = 0;
    let once = move |progress: gatepost_store::migrate::Progress| {
        batches += usize::from(progress.step != Step::Verifying);
        if batches > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    run(migration(to, rows), once).await
}

/// Another node of the gateway that is moved.
fn beside(place: &Place) -> Place {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    for key in ["store.key", "audit.key", "seal-1.key"] {
        std::fs::copy(place.path().join("keys").join(key), dir.path().join("keys").join(key)).unwrap();
    }
    Place { dir: Arc::new(dir), ..place.clone() }
}

/// Everything that anybody can read of a store, in words.
async fn seen(fixture: &Fixture) -> Vec<String> {
    let read = fixture.store.read();
    let mut seen = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = read.message_list(&MessageFilter::default(), cursor.as_deref(), 500).await.unwrap();
        for row in &page.items {
            seen.push(format!("{row:?}"));
            let stored = read.message(row.id, Data::Include).await.unwrap().unwrap();
            let (attributes, data) = (&stored.attributes, &stored.data);
            seen.push(format!("{attributes:?} {data:?} {:?} {}", stored.form, stored.purged));
            let detail = read.message_detail(row.id).await.unwrap().unwrap();
            seen.extend(detail.deliveries.iter().map(|delivery| format!("{delivery:?}")));
            seen.extend(detail.history.iter().map(|step| {
                let (reason, evidence) = (&step.reason, &step.evidence);
                format!("{:?} {} {:?} {} {reason:?} {evidence:?}", step.at, step.event, step.code, step.by)
            }));
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    for queue in read.queue_list().await.unwrap() {
        let stats = &queue.stats;
        let by_state = (stats.waiting, stats.leased, stats.sending, stats.in_doubt, stats.held, stats.dead);
        let brakes = (stats.held_lanes, stats.paused, stats.tripped);
        seen.push(format!("{} {:?} {by_state:?} {brakes:?}", queue.name, queue.kind));
    }
    for held in [false, true] {
        for state in [None, Some("dead"), Some("in_doubt"), Some("sending")] {
            let filter = DeliveryFilter { state: state.map(Into::into), held, destination: None };
            let found = read.delivery_list(&filter, None, 500).await.unwrap().items;
            seen.extend(found.iter().map(|row| format!("{state:?} {held} {}", row.id)));
        }
    }
    for (name, search) in [
        ("key", MessageFilter { key: Some("k".into()), ..MessageFilter::default() }),
        ("second key", MessageFilter { key: Some("n".into()), ..MessageFilter::default() }),
        ("subject", MessageFilter { subject: Some("patient".into()), ..MessageFilter::default() }),
    ] {
        let found = read.message_list(&search, None, 500).await.unwrap().items;
        seen.extend(found.iter().map(|row| format!("by {name}: {}", row.id)));
    }
    seen
}

async fn proofs(fixture: &Fixture, delivery: DeliveryId) -> Vec<String> {
    match fixture.store.read().receipt(delivery).await.unwrap() {
        Receipt::Proofs(proofs) => proofs,
        other => panic!("no receipt: {other:?}"),
    }
}

/// The places in the log that a receipt proves, if it does.
fn proven(place: &Place, proofs: &[String]) -> Vec<(u64, Vec<u8>)> {
    let key = vkey(place.path());
    let verify = |text: &String| {
        let proof = Proof::parse(text.as_bytes()).unwrap();
        proof.verify(std::slice::from_ref(&key)).unwrap();
        (proof.index, proof.entry.unwrap())
    };
    proofs.iter().map(verify).collect()
}

async fn assert_reconciles(place: &Place) {
    let archive = Archive::open(place.path(), &place.database).await.unwrap();
    let found = archive.reconcile(|_, _| {}).await.unwrap();
    assert_eq!(found.disagreements, 0, "{:?}", found.first);
}

#[tokio::test]
async fn interrupted_after_every_batch_everything_is_there_and_reads_the_same() {
    let Filled { fixture, to, leased, delivered, first } = filled().await;
    fixture.until_signed().await;
    let (before, receipt) = (seen(&fixture).await, proofs(&fixture, delivered).await);
    let from = fixture.stop().await;
    assert_sound(&from, "on SQLite").await;
    let log = entries(&from).await;
    assert!(!entries_in_rows(&from).await.is_multiple_of(256), "some entries are in rows, others in files");

    let other = beside(&to);
    let mut batches = 0;
    let moved = loop {
        match one_batch(&to, 64).await {
            Ok(Migrated::Now(moved)) => break moved,
            Ok(Migrated::Before) => panic!("it was not moved before"),
            Err(MigrateError::Interrupted) => batches += 1,
            Err(error) => panic!("{error}"),
        }
        if batches == 1 || batches == 12 {
            assert!(matches!(other.refusal().await, OpenError::CopyUnfinished), "after {batches} batches");
            assert!(matches!(to.refusal().await, OpenError::NotMoved(_)));
        }
    };
    assert!(batches > 20, "{batches}");
    assert_eq!(moved.begun, Begun::GoesOn);
    assert_eq!((moved.counts.messages, moved.entries), (filled::MESSAGES, log.len() as u64));
    assert_sound(&to, "moved").await;
    assert_eq!(entries(&to).await, log, "the same entries in the same places");
    assert!(!to.path().join("gatepost.db").exists() && moved.kept.exists());
    assert!(matches!(from.refusal().await, OpenError::Moved(_)));
    assert!(matches!(one_batch(&to, 64).await, Ok(Migrated::Before)));

    let fixture = to.open().await.unwrap();
    assert_eq!(seen(&fixture).await, before);
    // Old receipts hold, and new ones prove the same of the same places.
    let old = proven(&to, &receipt);
    assert_eq!(proven(&to, &proofs(&fixture, delivered).await), old);
    for (index, entry) in &old {
        assert_eq!(&log[usize::try_from(*index).unwrap()], entry);
    }
    // What was handed in before is known, by its key and by its content.
    let again = fixture.accept(vec![message("first", None, "first", &["in"])]).await.unwrap();
    assert_eq!((again[0].id, again[0].duplicate), (first, true));
    assert!(fixture.accept(vec![message("first", None, "other", &["in"])]).await.is_err());
    // Leases of those who come by themselves run on with their tokens, and the lane goes on in its order.
    for one in &leased {
        assert_eq!(fixture.taken("fix", 0, one, DELIVERED).await, "delivered", "{}", text(one));
    }
    fixture.send("w-new", Some("w"), "fix").await;
    let mut rest = Vec::new();
    while let [next] = &fixture.lease("fix", 0, 1).await[..] {
        rest.push(text(next));
        fixture.taken("fix", 0, next, DELIVERED).await;
    }
    assert_eq!(rest, ["w3", "w4", "w-new"]);
    let session = fixture.store.session_open("lab".into(), None).await.unwrap();
    assert_eq!(session.state, [("sent".to_owned(), b"MSH".to_vec()), ("seq".to_owned(), b"7".to_vec())]);
    let place = fixture.stop().await;
    assert_sound(&place, "at work").await;
    assert_log(&place, "at work").await;
    assert_reconciles(&place).await;
    assert_eq!(entries(&place).await[..log.len()], log, "what was added came behind");
    assert_forgets(place, delivered).await;
}

/// When its time has come, what was moved loses what says something of somebody.
async fn assert_forgets(place: Place, delivered: DeliveryId) {
    let forgetful = Place { payload_retention: Duration::ZERO, ..place };
    let fixture = forgetful.open().await.unwrap();
    let message = fixture.row(delivered).await.message;
    let attributes = async || {
        let stored = fixture.store.read().message(message, Data::Include).await.unwrap().unwrap();
        (stored.purged, String::from_utf8(stored.attributes.to_vec()).unwrap())
    };
    let (purged, before) = attributes().await;
    assert!(purged || before.contains("canary"));
    until("the content is gone", async || attributes().await.0).await;
    let left = attributes().await.1;
    assert!(!left.contains("canary") && left.contains("specversion"), "{left}");
    fixture.stop().await;
}

/// Entries that SQLite still has rows of.
async fn entries_in_rows(place: &Place) -> u64 {
    let rows =
        crate::check::number(place, ["SELECT leaf_count - (SELECT min(idx) FROM leaf) FROM store", ""]);
    u64::try_from(rows.await).unwrap()
}

#[tokio::test]
async fn what_a_supervised_adapter_had_leased_goes_back_as_after_any_stop() {
    let (from, to) = places(vec![queue("lab", keyed())]);
    let fixture = from.open().await.unwrap();
    let session = fixture.session("lab").await;
    let delivery = fixture.send("1", Some("k"), "lab").await;
    fixture.send("2", Some("k"), "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.crash().await;
    moved(&to).await.unwrap();
    let fixture = to.open().await.unwrap();
    assert_eq!(fixture.row(delivery).await.attempts, 0, "it costs nothing");
    let newer = fixture.session("lab").await;
    assert!(newer > session, "sessions go on from where they were");
    assert!(fixture.settle("lab", session, &leased, DELIVERED).await.is_err());
    assert_eq!(text(&fixture.lease_in_time("lab", newer, 5).await[0]), "1");
    assert_sound(&fixture.stop().await, "moved").await;
}

#[tokio::test]
async fn a_gateway_without_messages_and_one_that_crashed_are_moved_too() {
    let (from, to) = places(vec![inbox("in", quick())]);
    let fixture = from.open().await.unwrap();
    fixture.crash().await;
    let moved = moved(&to).await.unwrap();
    assert_eq!((moved.counts.messages, moved.begun), (0, Begun::Anew));
    let fixture = to.open().await.unwrap();
    fixture.send("1", None, "in").await;
    assert_eq!(text(&fixture.lease_in_time("in", 0, 1).await[0]), "1");
    assert_log(&fixture.stop().await, "moved").await;
}

#[tokio::test]
async fn of_two_migrations_at_once_one_moves_everything_and_nothing_twice() {
    let (from, to) = places(vec![inbox("in", quick())]);
    let fixture = from.open().await.unwrap();
    let batch = (0..300).map(|n| message(&n.to_string(), None, "x", &["in"])).collect();
    fixture.accept(batch).await.unwrap();
    fixture.stop().await;
    // A directory with the same database and the same keys, as a backup would be.
    let copy = Place { dir: Arc::new(tempfile::tempdir().unwrap()), ..to.clone() };
    let copied = std::process::Command::new("cp")
        .args(["-a".as_ref(), to.path().join(".").as_os_str(), copy.path().as_os_str()])
        .status();
    assert!(copied.unwrap().success());
    let both =
        [&to, &copy].map(|place| tokio::spawn(run(migration(place, 10), |_| ControlFlow::Continue(()))));
    let mut done = 0;
    for one in both {
        match one.await.unwrap() {
            Ok(_) => done += 1,
            Err(MigrateError::Database(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(done >= 1);
    assert_sound(&to, "moved").await;
    assert_eq!(entries(&to).await.len() as i64, {
        crate::check::number(&to, ["", "SELECT sequenced FROM store"]).await
    });
}
