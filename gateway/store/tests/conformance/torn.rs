//! Torn and flipped: whatever a disk makes of the files, it is named, or nothing that counts has changed. And what verifies can be
//! saved into a new directory.

mod cut;
mod flipped;
mod saved;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use gatepost_core::{MessageId, OnDoubt, Outcome};
use gatepost_store::salvage::{self, Fate, Repair, SalvageError, Salvaged};
use gatepost_store::{Data, Emit, Settle};
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{Connection as _, Row as _, SqliteConnection, ValueRef as _};

use crate::check::{assert_log, assert_sound, connect, entries};
use crate::fixture::{DELIVERED, Fixture, Place, doubting, item, keyed, message, queue, quick, until};
use crate::pieces::large;
use cut::{cut_at, killed};
use flipped::{Flips, flip_files, flip_pages, scattered};
use saved::{overwrite, salvaged};

const DATABASE: &str = "gatepost.db";
const WAL: &str = "gatepost.db-wal";
const PAGE_BYTES: usize = 4096;

/// What a test has done, for whoever reads its output.
#[expect(clippy::print_stderr, reason = "what was tried belongs into the test's output")]
fn note(what: std::fmt::Arguments<'_>) {
    eprintln!("{what}");
}

// === a directory with something of everything ===

/// What was promised: every message that was accepted, with its content.
type Promised = BTreeMap<MessageId, Vec<u8>>;

struct Filled {
    place: Place,
    promised: Promised,
}

/// Messages in every state, of every size, with everything that may belong to them, in so many pages that every tree has some.
async fn filled(rounds: usize) -> (Fixture, Promised) {
    let queues = vec![
        queue("lab", quick()),
        queue("ward", keyed()),
        queue("bank", doubting(OnDoubt::Hold)),
        queue("idle", quick()),
    ];
    let fixture = Place::new(queues).open().await.unwrap();
    let mut promised = Promised::new();
    let mut sessions = BTreeMap::new();
    for name in ["lab", "ward", "bank"] {
        sessions.insert(name, fixture.session(name).await);
    }
    for round in 0..rounds {
        let batch: Vec<_> = (0..25)
            .map(|n| {
                let id = format!("m{round}-{n}");
                let length = if n % 11 == 0 { 9000 } else { 20 + 17 * n };
                let data = format!("{id} {}", "x".repeat(length));
                let key = format!("k{}", n % 7);
                let to = [["lab"].as_slice(), &["ward"], &["bank"], &["lab", "idle"]][n % 4];
                let mut message = message(&id, (n % 4 != 0).then_some(key.as_str()), &data, to);
                message.subject = (n % 3 == 0).then(|| format!("patient {n}"));
                message.barrier_key = (n % 13 == 5).then(|| format!("k{}", n % 7 + 1));
                message.correlation_id = (n % 5 == 0).then(|| format!("c{round}-{n}"));
                if n % 6 == 0 {
                    message.expires_at = Some(far_future());
                }
                message
            })
            .collect();
        let contents: Vec<Vec<u8>> = batch.iter().map(|message| message.data.clone()).collect();
        let accepted = fixture.accept(batch).await.unwrap();
        promised.extend(accepted.iter().map(|accepted| accepted.id).zip(contents));
        if round % 6 == 0 {
            let large = large(&format!("l{round}"), 300_000);
            let content = large.data.clone();
            promised.insert(fixture.accept(vec![large]).await.unwrap()[0].id, content);
        }
        work(&fixture, &sessions, round, &mut promised).await;
    }
    (fixture, promised)
}

fn far_future() -> gatepost_core::Timestamp {
    gatepost_core::Timestamp::parse_rfc3339("2099-01-01T00:00:00Z").unwrap()
}

/// Settles some of what waits, in every way, with replies, reasons, state and emits.
async fn work(fixture: &Fixture, sessions: &BTreeMap<&str, u64>, round: usize, promised: &mut Promised) {
    for name in ["lab", "ward", "bank"] {
        let session = sessions[name];
        for (n, leased) in fixture.lease(name, session, 6).await.iter().enumerate() {
            if name == "bank" {
                fixture.taken(name, session, leased, Outcome::Begin).await;
            }
            let outcome = match n {
                0..=2 => DELIVERED,
                3 => Outcome::Reject,
                4 if name == "bank" => Outcome::InDoubt,
                _ => continue,
            };
            let mut settled = item(leased, outcome);
            settled.reason = Some(format!("round {round}"));
            if outcome == DELIVERED {
                settled.evidence = Some(format!("ACK {n}").into_bytes());
            }
            if matches!(outcome, DELIVERED | Outcome::Reject) {
                settled.reply = Some(r#"{"datacontenttype":"text/plain","data":"ok"}"#.into());
            }
            let id = format!("e{round}-{name}-{n}");
            let emitted = message(&id, None, &id, &["idle"]);
            let emit = if n == 0 { vec![Emit { message: emitted, dead: None }] } else { Vec::new() };
            let state = vec![(format!("s{}", round % 5), Some(id.clone().into_bytes()))];
            let settle =
                Settle { emit, state, atomic: true, ..fixture.settling(name, session, vec![settled]) };
            let answer = fixture.store.delivery_settle(settle).await.unwrap();
            promised.extend(answer.emitted.iter().map(|(message, _)| (*message, id.clone().into_bytes())));
        }
    }
}

async fn filled_place(rounds: usize) -> Filled {
    let (fixture, promised) = filled(rounds).await;
    fixture.until_signed().await;
    let place = fixture.place.clone();
    // Entries that stand in files leave the database soon after.
    until("filed entries have left the database", async || {
        let mut connection = connect(&place).await;
        let row =
            sqlx::query("SELECT coalesce(min(idx), 0), max(idx) FROM leaf").fetch_one(&mut connection).await;
        connection.close().await.unwrap();
        let row = row.unwrap();
        row.get::<i64, _>(0) > 0 || row.get::<i64, _>(1) < 255
    })
    .await;
    // Pages of what is gone may all have been taken again. Nothing takes those of the last that goes.
    let session = fixture.session("ward").await;
    for value in [Some(vec![7; 8 * PAGE_BYTES]), None] {
        let state = vec![("large".to_owned(), value)];
        let settle = Settle { state, ..fixture.settling("ward", session, Vec::new()) };
        fixture.store.delivery_settle(settle).await.unwrap();
    }
    let place = fixture.stop().await;
    Filled { place, promised }
}

// === copies ===

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let copy = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &copy);
        } else if entry.file_name() != "reserve" {
            fs::copy(entry.path(), copy).unwrap();
        }
    }
}

/// The same directory elsewhere.
fn copied(place: &Place) -> Place {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(place.path(), dir.path());
    Place { dir: Arc::new(dir), ..place.clone() }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(below) = dirs.pop() {
        for entry in fs::read_dir(below).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Every file with its content, to show that nothing was changed.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files(dir).into_iter().map(|path| (path.clone(), fs::read(dir.join(path)).unwrap())).collect()
}

// === what a database says ===

/// Every column of every row of every table, or why it cannot be read. What SQLite reads counts, not our reader of pages.
async fn dump(database: &Path) -> Result<BTreeMap<String, Vec<String>>, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(database).pragma("cell_size_check", "ON");
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let mut dumped = BTreeMap::new();
    for (table, key) in [
        ("store", "id"),
        ("queue", "id"),
        ("message", "seq"),
        ("dedup", "key"),
        ("delivery", "pos"),
        ("detail", "leaf"),
        ("reply", "delivery"),
        ("adapter_state", "adapter, key"),
        ("leaf", "idx"),
    ] {
        let select = format!("SELECT * FROM {table} ORDER BY {key}");
        let rows = sqlx::query(sqlx::AssertSqlSafe(select)).fetch_all(&mut connection).await?;
        dumped.insert(table.to_owned(), rows.iter().map(shown).collect());
    }
    connection.close().await?;
    Ok(dumped)
}

fn shown(row: &SqliteRow) -> String {
    let value = |column: usize| {
        let raw = row.try_get_raw(column).unwrap();
        if raw.is_null() {
            return "null".to_owned();
        }
        if let Ok(number) = row.try_get::<i64, _>(column) {
            return number.to_string();
        }
        let bytes: &[u8] = row.try_get(column).unwrap_or_default();
        format!("{:x}/{}", xxhash_rust::xxh3::xxh3_128(bytes), bytes.len())
    };
    (0..row.columns().len()).map(value).collect::<Vec<_>>().join(" ")
}

/// What is served of a directory: nothing that is served may be another thing than what was accepted.
async fn assert_serves_only_what_was_accepted(place: &Place, promised: &Promised, context: &str) -> Served {
    let Ok(fixture) = place.open_unconfigured().await else { return Served::Refused };
    if fixture.store.queues_configure(place.queues.clone()).await.is_err() {
        fixture.stop().await;
        return Served::Refused;
    }
    for (id, data) in promised {
        if let Ok(Some(found)) = fixture.store.read().message(*id, Data::Include).await {
            let served = found.data.as_deref();
            assert!(served.is_none_or(|served| served == data), "{context}: message {id} is served changed");
        }
    }
    for name in ["lab", "ward", "bank", "idle"] {
        let Ok(opened) = fixture.store.session_open(name.into(), None).await else { continue };
        let request = fixture.request(name, opened.epoch, 1000);
        let Ok(answer) = fixture.try_lease(request).await else { continue };
        for leased in answer.deliveries {
            let promised = promised.get(&leased.message.id);
            let served = leased.message.data.as_deref();
            assert!(
                promised.is_some_and(|data| served.is_none_or(|served| served == data)),
                "{context}: delivery {} is leased with other content",
                leased.delivery
            );
        }
    }
    let damaged = fixture.store.health().damaged();
    fixture.stop().await;
    if damaged.is_empty() { Served::Healthy } else { Served::Named }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    Refused,
    /// The gateway's health names what is damaged.
    Named,
    Healthy,
}

/// Every page, every cut: the long form. `GATEPOST_TORN_SECONDS` says how long, `GATEPOST_SEED` which bits.
#[tokio::test]
#[ignore = "long: make torture"]
async fn everything_torn_and_flipped() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("GATEPOST_TORN_SECONDS").expect("GATEPOST_TORN_SECONDS is a number");
    let seed = number("GATEPOST_SEED").unwrap_or(1);
    let part = std::time::Duration::from_secs(seconds) / 4;
    let until = || Some(Instant::now() + part);
    let killed = killed(12).await;
    let wal = fs::metadata(killed.place.path().join(WAL)).unwrap().len();
    // From a place on that differs each time, so that a short time comes round to all of them.
    let sectors = usize::try_from(wal / 512).unwrap();
    let first = usize::try_from(seed % sectors as u64).unwrap();
    let lengths: Vec<usize> = (0..sectors).map(|n| (first + n) % sectors * 512).collect();
    let (cuts, cuts_named) = cut_at(&killed, &lengths, until()).await;
    let filled = filled_place(12).await;
    let pages = flip_pages(&filled, &Flips { every: 1, bits: 4, serve_every: 1, until: until() }, seed).await;
    let beside =
        flip_files(&filled, &Flips { every: 1, bits: 16, serve_every: 1, until: until() }, seed).await;
    let (end, mut salvages) = (Instant::now() + part, 0);
    let database = fs::metadata(filled.place.path().join(DATABASE)).unwrap().len();
    while Instant::now() < end {
        let place = copied(&filled.place);
        let at = scattered(salvages, seed) % (database / 512) * 512;
        overwrite(&place.path().join(DATABASE), at, 512);
        salvaged(&place, &filled.promised, &format!("seed {seed}, sector at {at}")).await;
        salvages += 1;
    }
    note(format_args!(
        "torn: {cuts} of {sectors} cuts ({cuts_named} named), {} bits of pages ({} named), {} of other files ({} named), \
         {salvages} salvages",
        pages.flips, pages.named, beside.flips, beside.named
    ));
}
