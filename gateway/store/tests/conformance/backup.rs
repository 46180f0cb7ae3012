//! A backup is one moment of the gateway, taken while it works; what is restored from it says the same and goes on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gatepost_core::{DeliveryId, OnDead, OnDoubt, Outcome, QueuePolicy};
use gatepost_store::archive::Archive;
use gatepost_store::backup::{self, Backup, BackupError, Keys, Landing, Manifest, Source};
use gatepost_store::{Data, Database, OpenError, QueueSetup, Store, Verb};
use tempfile::TempDir;

use crate::check::{assert_log, assert_sound, entries};
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, Place, RETRY_LATER, SENT, accept_of, app, doubting, external, inbox, keyed,
    message, queue, quick, until,
};

const REJECT: Outcome = Outcome::Reject;

fn queues() -> Vec<QueueSetup> {
    let holding = QueuePolicy { on_dead: OnDead::HoldLane, ..keyed() };
    vec![
        queue("lab", quick()),
        external("lane", holding),
        external("doubt", doubting(OnDoubt::Hold)),
        inbox("desk", quick()),
    ]
}

/// A delivery in each state, and how it looks.
async fn every_state() -> (Fixture, Vec<DeliveryId>) {
    let fixture = Fixture::new(queues()).await;
    let mut ids = Vec::new();
    let lab = fixture.session("lab").await;
    for (name, outcome) in [
        ("delivered", Some(DELIVERED)),
        ("dead", Some(REJECT)),
        ("discarded", Some(REJECT)),
        ("later", Some(RETRY_LATER)),
        ("sent", Some(SENT)),
        ("sending", None),
    ] {
        let id = fixture.send(name, None, "lab").await;
        let leased = fixture.lease_one("lab", lab).await;
        if let Some(outcome) = outcome {
            fixture.taken("lab", lab, &leased, outcome).await;
        }
        if name == "discarded" {
            fixture.operate(id, Verb::Discard).await.unwrap();
        }
        ids.push(id);
    }
    let (lane, doubt) = (fixture.session("lane").await, fixture.session("doubt").await);
    for n in 0..3 {
        ids.push(fixture.send(&format!("lane-{n}"), Some("k"), "lane").await);
        ids.push(fixture.send(&format!("doubt-{n}"), Some(&format!("k{n}")), "doubt").await);
    }
    let head = fixture.lease_one("lane", lane).await;
    fixture.taken("lane", lane, &head, REJECT).await;
    let doubtful = fixture.lease("doubt", doubt, 2).await;
    fixture.taken("doubt", doubt, &doubtful[0], BEGIN).await;
    fixture.taken("doubt", doubt, &doubtful[0], Outcome::InDoubt).await;
    ids.push(fixture.send("waiting", None, "desk").await);
    (fixture, ids)
}

/// What is told of deliveries, and the payloads of their messages.
async fn told(store: &Store, ids: &[DeliveryId]) -> BTreeMap<DeliveryId, String> {
    let mut told = BTreeMap::new();
    for id in ids {
        let row = store.read().delivery(*id).await.unwrap().unwrap();
        let message = store.read().message(row.message, Data::Include).await.unwrap().unwrap();
        let detail = store.read().message_detail(row.message).await.unwrap().unwrap();
        let steps: Vec<_> = detail.history.iter().map(|step| (&step.event, step.at, &step.by)).collect();
        let data = String::from_utf8(message.data.unwrap().to_vec()).unwrap();
        told.insert(*id, format!("{row:?} {data} {steps:?}"));
    }
    told
}

/// A backup that goes with its directory.
struct Kept {
    above: TempDir,
    manifest: Manifest,
}

impl Kept {
    async fn of(place: &Place, keys: Keys) -> Self {
        let above = tempfile::tempdir().unwrap();
        let manifest = make(place, &above.path().join("backup"), keys).await.unwrap();
        Self { above, manifest }
    }

    fn path(&self) -> PathBuf {
        self.above.path().join("backup")
    }

    async fn restore(&self, keys: Option<&Path>) -> Result<Place, BackupError> {
        restore_into(&self.path(), keys, Place::new(queues())).await
    }
}

async fn make(place: &Place, target: &Path, keys: Keys) -> Result<Manifest, BackupError> {
    let source = Source {
        data_dir: place.path().to_path_buf(),
        database: place.database.clone(),
        keys,
        seal_keys: Default::default(),
        at: gatepost_core::Timestamp::from_micros(0),
    };
    backup::make(&source, target).await
}

async fn restore_into(backup: &Path, keys: Option<&Path>, place: Place) -> Result<Place, BackupError> {
    let backup = Backup::open(backup)?;
    backup.check(|_| {})?;
    let mut landing = Landing::in_data_dir(place.path())?;
    landing.lay(&backup, keys, &place.database).await?;
    landing.put_in_place()?;
    Ok(place)
}

async fn assert_reconciles(place: &Place) {
    let archive = Archive::open(place.path(), &place.database).await.unwrap();
    let found = archive.reconcile(|_, _| {}).await.unwrap();
    assert_eq!(found.disagreements, 0, "{:?}", found.first);
}

/// Files below a directory, by their names from there.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => found.push(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn what_is_restored_says_the_same_of_every_state_and_goes_on() {
    let (fixture, ids) = every_state().await;
    let before = told(&fixture.store, &ids).await;
    let kept = Kept::of(&fixture.place, Keys::Include).await;
    // What comes later is not in it.
    let later = fixture.send("later still", None, "lab").await;
    fixture.stop().await;

    let place = kept.restore(None).await.unwrap();
    let fixture = place.open_unconfigured().await.unwrap();
    assert_eq!(told(&fixture.store, &ids).await, before);
    assert!(fixture.store.read().delivery(later).await.unwrap().is_none());
    fixture.store.queues_configure(queues()).await.unwrap();
    let again = fixture.accept(vec![message("delivered", None, "delivered", &["lab"])]).await.unwrap();
    assert!(again[0].duplicate, "idempotency keys are restored");

    let lab = fixture.session("lab").await;
    fixture.send("new", None, "lab").await;
    until("what was under way, what is new", async || {
        for leased in fixture.lease("lab", lab, 10).await {
            fixture.taken("lab", lab, &leased, DELIVERED).await;
        }
        let stats = fixture.stats("lab").await;
        // One waits for its time, one for its late proof.
        (stats.waiting, stats.leased, stats.sending) == (1, 0, 1)
    })
    .await;
    let place = fixture.stop().await;
    assert_sound(&place, "restored").await;
    let report = assert_log(&place, "restored").await;
    assert!(report.size > kept.manifest.entries);
    assert_reconciles(&place).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_while_commits_go_on_is_one_moment_and_disturbs_nobody() {
    let fixture = Fixture::new(queues()).await;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let senders = (0..4).map(|sender| {
        let (store, stop, sent) = (fixture.store.clone(), Arc::clone(&stop), Arc::clone(&sent));
        tokio::spawn(async move {
            for n in 0.. {
                let batch =
                    (0..20).map(|k| message(&format!("{sender}-{n}-{k}"), Some("k"), "x", &["lab", "lane"]));
                store.message_accept(accept_of(&app(), batch.collect())).await.unwrap();
                sent.fetch_add(20, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let lab = fixture.session("lab").await;
    let mut kept = Vec::new();
    for round in 1..=3 {
        // There are full tiles by then, and rows go while the next backup is taken.
        until("more was sent", async || {
            for leased in fixture.lease("lab", lab, 50).await {
                fixture.taken("lab", lab, &leased, DELIVERED).await;
            }
            let is_tile = |name: &String| name.starts_with("tile/") && !name.ends_with(".tmp");
            sent.load(Ordering::Relaxed) > round * 400
                && files(&fixture.place.path().join("audit")).iter().any(is_tile)
        })
        .await;
        let before = sent.load(Ordering::Relaxed);
        let backup = Kept::of(&fixture.place, Keys::Include).await;
        kept.push((before, backup));
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    for (before, backup) in kept {
        assert!(backup.manifest.entries >= backup.manifest.signed_entries);
        assert!(
            files(&backup.path()).iter().any(|name| name.starts_with("audit/tile/")),
            "tiles are part of it"
        );
        let place = backup.restore(None).await.unwrap();
        let fixture = place.open().await.unwrap();
        let place = fixture.stop().await;
        assert_sound(&place, "restored").await;
        assert_log(&place, "restored").await;
        assert_reconciles(&place).await;
        let log = String::from_utf8(entries(&place).await.concat()).unwrap();
        let accepted = log.matches(r#""event":"accepted""#).count() as u64;
        assert!(
            accepted >= before,
            "{before} had been answered before the backup began, {accepted} are in it"
        );
    }
    let place = fixture.stop().await;
    assert_log(&place, "the gateway that was backed up").await;
    assert_reconciles(&place).await;
}

#[tokio::test]
async fn a_byte_that_is_changed_anywhere_is_named_and_refused() {
    let (fixture, _) = every_state().await;
    let place = fixture.stop().await;
    let kept = Kept::of(&place, Keys::Include).await;
    let refusal = || match Backup::open(&kept.path()).and_then(|backup| backup.check(|_| {})) {
        Err(BackupError::Changed { file, .. }) => Some(file),
        Err(other) => panic!("{other}"),
        Ok(()) => None,
    };
    assert_eq!(refusal(), None);
    let names = files(&kept.path());
    assert!(names.len() > 6, "{names:?}");
    for name in names {
        let path = kept.path().join(&name);
        let good = fs::read(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        // What the sum of the manifest says is wrong with one of the two.
        let named = if name == "manifest.sha256" { "manifest.json" } else { &name };
        let step = (good.len() / 40).max(1);
        for at in (0..good.len()).step_by(step).chain(good.len().checked_sub(1)) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, bad).unwrap();
            assert_eq!(refusal().as_deref(), Some(named), "byte {at} of {name}");
        }
        if !good.is_empty() {
            fs::write(&path, &good[..good.len() - 1]).unwrap();
            assert_eq!(refusal().as_deref(), Some(named), "{name} cut");
        }
        if !name.starts_with("manifest") {
            fs::remove_file(&path).unwrap();
            assert_eq!(refusal().as_deref(), Some(named), "{name} missing");
        }
        fs::write(&path, &good).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(refusal(), None);
}

#[tokio::test]
async fn a_file_that_changes_after_it_was_checked_is_not_restored() {
    let (fixture, _) = every_state().await;
    let place = fixture.stop().await;
    let kept = Kept::of(&place, Keys::Include).await;
    let backup = Backup::open(&kept.path()).unwrap();
    backup.check(|_| {}).unwrap();
    let name = match place.database {
        Database::Sqlite => "gatepost.db",
        Database::Postgres { .. } => "postgres/payload.copy",
    };
    let path = kept.path().join(name);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 3;
    bad[last] ^= 1;
    fs::write(&path, bad).unwrap();
    let other = Place::new(queues());
    let mut landing = Landing::in_data_dir(other.path()).unwrap();
    landing.lay(&backup, None, &other.database).await.unwrap_err();
    landing.abandon().await.unwrap();
    // Nothing is left of it: the same place takes the whole one.
    fs::write(&path, good).unwrap();
    let restored = restore_into(&kept.path(), None, other).await.unwrap();
    restored.open().await.unwrap().stop().await;
}

#[tokio::test]
async fn only_an_empty_place_takes_a_backup_and_nothing_of_a_refused_one_stays() {
    let (fixture, _) = every_state().await;
    let place = fixture.stop().await;
    let kept = Kept::of(&place, Keys::Include).await;
    let taken = make(&place, &kept.path(), Keys::Include).await.unwrap_err();
    assert!(matches!(taken, BackupError::Taken(_)), "{taken}");
    let nowhere = make(&place, &kept.path().join("a/b"), Keys::Include).await.unwrap_err();
    assert!(matches!(nowhere, BackupError::Nowhere(_)), "{nowhere}");
    assert_eq!(fs::read_dir(kept.above.path()).unwrap().count(), 1, "nothing unfinished stays");

    // A gateway's own directory; then a database that is in use, whatever the directory.
    let taken = restore_into(&kept.path(), None, place.clone()).await.err().unwrap();
    assert!(matches!(taken, BackupError::Taken(_)), "{taken}");
    let fresh = Place::new(queues());
    if let Database::Postgres { .. } = place.database {
        let used = Place { database: place.database.clone(), ..Place::new(queues()) };
        let taken = restore_into(&kept.path(), None, used.clone()).await.err().unwrap();
        assert!(matches!(taken, BackupError::DatabaseTaken), "{taken}");
        let left: Vec<String> = files(used.path()).into_iter().filter(|name| name != "lock").collect();
        assert_eq!(left, Vec::<String>::new());
        let other = Place { database: Database::Sqlite, ..Place::new(queues()) };
        let refused = restore_into(&kept.path(), None, other).await.err().unwrap();
        assert!(matches!(refused, BackupError::OtherKind { backup: "postgres" }), "{refused}");
        place.open().await.unwrap().stop().await;
    }
    let empty = fresh.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let refused = Backup::open(&empty).err().unwrap();
    assert!(matches!(refused, BackupError::NotOne(_)), "{refused}");
}

#[tokio::test]
async fn without_its_keys_a_backup_needs_the_right_ones() {
    let (fixture, ids) = every_state().await;
    let before = told(&fixture.store, &ids).await;
    let place = fixture.stop().await;
    let kept = Kept::of(&place, Keys::Omit).await;
    assert!(!files(&kept.path()).iter().any(|name| name.ends_with(".key")));
    let refused = kept.restore(None).await.err().unwrap();
    assert!(matches!(refused, BackupError::KeysMissing), "{refused}");
    let foreign = Fixture::new(queues()).await.stop().await;
    let refused = kept.restore(Some(&foreign.path().join("keys"))).await.err().unwrap();
    assert!(matches!(refused, BackupError::KeyForeign(_)), "{refused}");
    let restored = kept.restore(Some(&place.path().join("keys"))).await.unwrap();
    let fixture = restored.open_unconfigured().await.unwrap();
    assert_eq!(told(&fixture.store, &ids).await, before);
}

/// What a restore that is killed between two renames leaves is refused by a start.
#[tokio::test]
async fn a_restore_that_ends_before_the_database_is_in_its_place_is_no_gateways_data() {
    let Database::Sqlite = crate::database() else { return };
    let (fixture, _) = every_state().await;
    let place = fixture.stop().await;
    let kept = Kept::of(&place, Keys::Include).await;
    for parts in [&["audit"][..], &["audit", "keys"]] {
        let torn = Place::new(queues());
        let whole = kept.restore(None).await.unwrap();
        for part in parts {
            fs::rename(whole.path().join(part), torn.path().join(part)).unwrap();
        }
        let refused = torn.refusal().await;
        assert!(matches!(refused, OpenError::Log(_)), "{parts:?}: {refused}");
    }
}
