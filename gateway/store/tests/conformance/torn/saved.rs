//! What `doctor --repair` saves, and what it lists.

use super::cut::{commits, signed};
use super::flipped::{flip, pages};
use super::*;

/// Saves what is sound, and demands: the old directory is as it was; the new one starts, is sound, verifies and delivers; and every
/// message that was accepted is there as it was, or listed.
pub(super) async fn salvaged(place: &Place, promised: &Promised, context: &str) -> (Place, Salvaged) {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("new");
    let before = contents(place.path());
    let repair = Repair {
        source: place.path(),
        seal_keys: Default::default(),
        target: &target,
        operator: "ops",
        origin: "test-gateway",
    };
    let salvaged = salvage::repair(&repair).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(before == contents(place.path()), "{context}: the old directory was changed");
    assert_eq!(
        files(dir.path()).iter().filter(|file| !file.starts_with("new")).count(),
        0,
        "{context}: leftovers"
    );
    fs::rename(&target, dir.path().join("data")).unwrap();
    for entry in fs::read_dir(dir.path().join("data")).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    fs::remove_dir(dir.path().join("data")).unwrap();
    let new = Place { dir: Arc::new(dir), ..place.clone() };
    assert_complete(&new, &salvaged, promised, context).await;
    (new, salvaged)
}

async fn assert_complete(new: &Place, salvaged: &Salvaged, promised: &Promised, context: &str) {
    let fixture = new.open().await.unwrap_or_else(|error| panic!("{context}: {error}"));
    let listed = |id: &str, fates: &[Fate]| {
        let listed = salvaged.damage.iter().filter(|damage| damage.id.as_deref() == Some(id));
        listed.into_iter().any(|damage| fates.contains(&damage.fate))
    };
    let unnamed = salvaged.damage.iter().any(|damage| damage.what == "file" && damage.fate == Fate::Lost);
    for (id, data) in promised {
        let found = fixture.store.read().message(*id, Data::Include).await.unwrap();
        match found {
            Some(found) if found.data.as_deref() == Some(data) => {}
            Some(found) => {
                assert!(found.purged, "{context}: message {id} is there with other content");
                assert!(
                    listed(&id.to_string(), &[Fate::Dead]),
                    "{context}: message {id} is empty and not listed"
                );
            }
            None => assert!(
                listed(&id.to_string(), &[Fate::Lost]) || unnamed,
                "{context}: message {id} is neither there nor listed: {:#?}",
                salvaged.damage
            ),
        }
        let detail = fixture.store.read().message_detail(*id).await.unwrap();
        assert!(
            detail.is_none_or(|detail| !detail.deliveries.is_empty())
                || salvaged
                    .damage
                    .iter()
                    .any(|damage| damage.what == "delivery" && damage.fate == Fate::Lost),
            "{context}: message {id} goes nowhere"
        );
    }
    for name in ["lab", "ward", "bank", "idle"] {
        let session = fixture.session(name).await;
        loop {
            let leased = fixture.lease(name, session, 100).await;
            if leased.is_empty() {
                break;
            }
            for leased in leased {
                let data = leased.message.data.as_deref();
                assert_eq!(
                    data,
                    promised.get(&leased.message.id).map(Vec::as_slice),
                    "{context}: {}",
                    leased.delivery
                );
                if name == "bank" {
                    fixture.taken(name, session, &leased, Outcome::Begin).await;
                }
                fixture.taken(name, session, &leased, DELIVERED).await;
            }
        }
    }
    assert!(fixture.store.health().damaged().is_empty(), "{context}: damage in the new directory");
    let place = fixture.stop().await;
    assert_sound(&place, context).await;
    assert_log(&place, context).await;
    let log = String::from_utf8(entries(&place).await.concat()).unwrap();
    assert_eq!(log.matches(r#""event":"salvaged""#).count(), 1, "{context}: the log says it once");
    assert!(log.contains(&salvaged.digest), "{context}: the log holds the digest of the list");
}

fn count(salvaged: &Salvaged, fates: &[Fate]) -> usize {
    salvaged.damage.iter().filter(|damage| fates.contains(&damage.fate)).count()
}

#[tokio::test]
async fn of_a_sound_directory_everything_is_saved() {
    for filled in [filled_place(12).await, killed(8).await] {
        let (new, salvaged) = salvaged(&filled.place, &filled.promised, "sound").await;
        assert_eq!(salvaged.damage, []);
        assert!(salvaged.log_continued);
        assert_eq!(salvaged.messages, filled.promised.len() as u64);
        assert!(signed(&new) >= signed(&filled.place), "the log goes on");
    }
}

#[tokio::test]
async fn of_a_directory_with_a_flipped_bit_everything_is_saved() {
    let filled = filled_place(6).await;
    let length = fs::metadata(filled.place.path().join(DATABASE)).unwrap().len();
    for n in 0..4 {
        let place = copied(&filled.place);
        let bit = scattered(n, 3) % (8 * length);
        flip(&place.path().join(DATABASE), bit);
        let (_, salvaged) = salvaged(&place, &filled.promised, &format!("bit {bit}")).await;
        assert!(salvaged.log_continued, "bit {bit}");
    }
}

/// Overwrites a part of a file.
pub(super) fn overwrite(path: &Path, at: u64, length: usize) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&vec![0xa5; length], at).unwrap();
}

#[tokio::test]
async fn of_a_directory_with_lost_pages_all_that_is_left_is_saved_and_the_rest_listed() {
    let filled = filled_place(6).await;
    let database = filled.place.path().join(DATABASE);
    let pages = pages(&database).await;
    let mut tried = BTreeSet::new();
    let mut lost = 0;
    for (number, page) in &pages {
        // One page of each kind, wholly overwritten; of indices, which are made anew, one is enough.
        let tree = page.tree.as_str();
        let index =
            tree.contains('_') && !["sqlite_schema", "adapter_state", "delivery_ready"].contains(&tree);
        if index || !tried.insert(page.to_string()) {
            continue;
        }
        let place = copied(&filled.place);
        overwrite(&place.path().join(DATABASE), u64::from(number - 1) * 4096, 4096);
        let context = format!("page {number}, {page}");
        let (_, salvaged) = salvaged(&place, &filled.promised, &context).await;
        if tree == "free" {
            assert_eq!(count(&salvaged, &[Fate::Dead, Fate::Lost]), 0, "{context}");
        }
        lost += count(&salvaged, &[Fate::Dead, Fate::Lost]);
    }
    assert!(lost > 0, "some of it cannot be saved");
    note(format_args!("{} kinds of pages", tried.len()));
}

#[tokio::test]
async fn of_a_damaged_write_ahead_log_the_commits_before_are_saved_and_the_rest_listed() {
    let filled = killed(8).await;
    let wal = fs::read(filled.place.path().join(WAL)).unwrap();
    let ends = commits(&wal);
    let place = copied(&filled.place);
    overwrite(&place.path().join(WAL), ends[2] as u64 + 600, 64);
    let (_, salvaged) = salvaged(&place, &filled.promised, "a lost part of the log").await;
    assert!(
        salvaged.damage.iter().any(|damage| damage.what == "message" && damage.id.is_some()),
        "{:?}",
        salvaged.damage
    );
}

#[tokio::test]
async fn an_audit_log_that_cannot_be_continued_is_kept_and_a_new_one_begins() {
    let filled = filled_place(12).await;
    let place = copied(&filled.place);
    overwrite(&place.path().join("audit/tile/entries/000"), 1000, 300);
    let (new, salvaged) = salvaged(&place, &filled.promised, "a damaged bundle").await;
    assert!(!salvaged.log_continued);
    let aside = files(&new.path().join("audit"))
        .into_iter()
        .filter(|file| file.to_string_lossy().starts_with("ended-"));
    assert!(aside.count() > 3, "the old log is kept");
    let key = |place: &Place| fs::read_to_string(place.path().join("audit/vkey")).unwrap();
    assert_ne!(key(&place), key(&new), "the new log has another key: two logs of one key would be a fork");
    // A damaged tile beside sound entries costs nothing.
    let place = copied(&filled.place);
    overwrite(&place.path().join("audit/tile/0/000"), 320, 32);
    let (_, salvaged) = self::salvaged(&place, &filled.promised, "a damaged tile").await;
    assert!(salvaged.log_continued);
    assert_eq!(count(&salvaged, &[Fate::Dead, Fate::Lost]), 0, "{:?}", salvaged.damage);
}

#[tokio::test]
async fn a_sender_whose_row_is_damaged_is_who_it_was_with_what_it_has_handed_in() {
    let filled = filled_place(12).await;
    for log_is_whole in [true, false] {
        let place = copied(&filled.place);
        let mut connection = crate::check::connect(&place).await;
        let statement = "UPDATE queue SET trip_failures = 77777, waiting = waiting + 5 WHERE name = 'app:ehr' RETURNING id";
        let id: i64 = sqlx::query_scalar(statement).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        if !log_is_whole {
            overwrite(&place.path().join("audit/tile/entries/000"), 1000, 300);
        }
        let (new, salvaged) =
            salvaged(&place, &filled.promised, &format!("the log is whole: {log_is_whole}")).await;
        assert_eq!(salvaged.log_continued, log_is_whole);
        let damaged = salvaged.damage.iter().find(|damage| damage.what == "queue").unwrap();
        assert_eq!((damaged.place.as_str(), damaged.fate), (id.to_string().as_str(), Fate::Lost));
        let mut connection = crate::check::connect(&new).await;
        let statement = "SELECT id FROM queue WHERE name = 'app:ehr' AND kind = 'sender'";
        let found: i64 = sqlx::query_scalar(statement).fetch_one(&mut connection).await.unwrap();
        assert_eq!(found, id);
        connection.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_salvage_is_refused_where_it_could_do_harm() {
    let filled = filled_place(1).await;
    let dir = tempfile::tempdir().unwrap();
    let repair = |target: &Path| {
        let repair = Repair {
            source: filled.place.path(),
            seal_keys: Default::default(),
            target,
            operator: "ops",
            origin: "test-gateway",
        };
        salvage::repair(&repair)
    };
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("x"), "x").unwrap();
    assert!(matches!(repair(&full), Err(SalvageError::TargetExists(_))));
    assert!(matches!(repair(&dir.path().join("a/b")), Err(SalvageError::TargetNowhere(_))));
    let fixture = filled.place.open().await.unwrap();
    assert!(matches!(repair(&dir.path().join("new")), Err(SalvageError::InUse(_))));
    assert!(matches!(
        salvage::inspect(filled.place.path(), &Default::default()),
        Err(SalvageError::InUse(_))
    ));
    fixture.stop().await;
    assert_eq!(files(dir.path()), [Path::new("full/x")], "nothing was made");
    // An empty directory is as good as none, and what a killed salvage left does not count.
    fs::create_dir_all(dir.path().join(".new.unfinished/audit")).unwrap();
    fs::create_dir(dir.path().join("new")).unwrap();
    repair(&dir.path().join("new")).unwrap();
    assert!(!dir.path().join(".new.unfinished").exists());
}
