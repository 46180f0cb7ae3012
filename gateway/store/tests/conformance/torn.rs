//! Torn and flipped: whatever a disk makes of the files, it is named, or nothing that counts has changed. And what verifies can be
//! saved into a new directory.

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

const DATABASE: &str = "gatepost.db";
const WAL: &str = "gatepost.db-wal";

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

// === flipped bits ===

/// What every page of a database belongs to: the name of its tree, or that it is free.
async fn pages(database: &Path) -> BTreeMap<u32, (String, String)> {
    let options = SqliteConnectOptions::new().filename(database);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let rows =
        sqlx::query("SELECT pageno, name, pagetype FROM dbstat").fetch_all(&mut connection).await.unwrap();
    let mut pages: BTreeMap<u32, (String, String)> =
        rows.iter().map(|row| (row.get::<u32, _>(0), (row.get(1), row.get(2)))).collect();
    let count: u32 = sqlx::query("PRAGMA page_count").fetch_one(&mut connection).await.unwrap().get(0);
    for page in 1..=count {
        // A tree's pages are listed; what no tree has is free.
        pages.entry(page).or_insert_with(|| ("free".to_owned(), "free".to_owned()));
    }
    connection.close().await.unwrap();
    pages
}

fn flip(path: &Path, bit: u64) {
    let mut bytes = fs::read(path).unwrap();
    let byte = usize::try_from(bit / 8).unwrap();
    bytes[byte] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

/// A number that is the same in every run and looks like any other.
fn scattered(of: u64, salt: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(&of.to_le_bytes(), salt)
}

/// Flips a bit in a copy and demands that it is named or changes nothing; how it was named.
async fn flip_and_look(
    filled: &Filled,
    file: &Path,
    bit: u64,
    before: &BTreeMap<String, Vec<String>>,
    serve: bool,
) -> &'static str {
    let place = copied(&filled.place);
    let context = format!("bit {bit} of {}", file.display());
    flip(&place.path().join(file), bit);
    let named = named_by_doctor(place.path(), &context);
    if !named {
        match dump(&place.path().join(DATABASE)).await {
            Ok(after) => {
                assert_eq!(differing(before, &after), None, "{context}: unnamed, and another database")
            }
            Err(error) => panic!("{context}: unnamed, and unreadable: {error}"),
        }
    }
    if serve {
        assert_serves_only_what_was_accepted(&place, &filled.promised, &context).await;
    }
    if named { "named" } else { "nothing changed" }
}

/// Whether looking at the directory names anything; it must change nothing.
fn named_by_doctor(dir: &Path, context: &str) -> bool {
    let before = contents(dir);
    let inspected = salvage::inspect(dir).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(before == contents(dir), "{context}: looking at it changed it");
    !inspected.damage.is_empty()
}

fn differing(one: &BTreeMap<String, Vec<String>>, other: &BTreeMap<String, Vec<String>>) -> Option<String> {
    let table = one.keys().find(|table| one.get(*table) != other.get(*table))?;
    let (one, other) = (&one[table], other.get(table)?);
    let at =
        one.iter().zip(other).position(|(one, other)| one != other).unwrap_or(one.len().min(other.len()));
    Some(format!("{table}, row {at}: {:?} and {:?}", one.get(at), other.get(at)))
}

/// How many bits of each page are tried, and of which pages.
struct Flips {
    every: usize,
    bits: u64,
    serve_every: usize,
    until: Option<Instant>,
}

#[derive(Default)]
struct Tally {
    flips: u64,
    named: u64,
    trees: BTreeSet<String>,
}

impl Tally {
    fn add(&mut self, found: &str) {
        self.flips += 1;
        self.named += u64::from(found == "named");
    }
}

/// Bits in the database's pages: in each its header, and places that no two pages have in common.
async fn flip_pages(filled: &Filled, flips: &Flips, salt: u64) -> Tally {
    let database = filled.place.path().join(DATABASE);
    let before = dump(&database).await.unwrap();
    let pages = pages(&database).await;
    let page_bits = 8 * 4096;
    let mut tally = Tally::default();
    let mut seen: BTreeMap<&(String, String), usize> = BTreeMap::new();
    for (page, kind) in &pages {
        let nth = seen.entry(kind).or_default();
        *nth += 1;
        // The first page of each kind, and then some.
        if !(*nth - 1).is_multiple_of(flips.every) || flips.until.is_some_and(|until| Instant::now() > until)
        {
            continue;
        }
        tally.trees.insert(format!("{} {}", kind.0, kind.1));
        for bit in 0..flips.bits {
            let drawn = scattered(u64::from(*page) << 8 | bit, salt);
            let within = if bit == 0 { drawn % (8 * 12) } else { drawn % page_bits };
            let serve = usize::try_from(tally.flips).unwrap() % flips.serve_every == 0;
            let at = u64::from(page - 1) * page_bits + within;
            tally.add(flip_and_look(filled, Path::new(DATABASE), at, &before, serve).await);
        }
    }
    tally
}

/// Bits in every other file of the directory.
async fn flip_files(filled: &Filled, flips: &Flips, salt: u64) -> Tally {
    let before = dump(&filled.place.path().join(DATABASE)).await.unwrap();
    let mut tally = Tally::default();
    for (number, file) in files(filled.place.path()).into_iter().enumerate() {
        let length = fs::metadata(filled.place.path().join(&file)).unwrap().len();
        let name = file.display().to_string();
        if length == 0 || name.starts_with(DATABASE) || name == "reserve" {
            continue;
        }
        tally.trees.insert(name);
        for bit in 0..flips.bits {
            let at = scattered((number as u64) << 8 | bit, salt) % (8 * length);
            let serve = usize::try_from(tally.flips).unwrap() % flips.serve_every == 0;
            tally.add(flip_and_look(filled, &file, at, &before, serve).await);
        }
    }
    tally
}

#[tokio::test]
async fn a_flipped_bit_of_any_page_is_named_or_changes_nothing() {
    let filled = filled_place(12).await;
    assert_eq!(salvage::inspect(filled.place.path()).unwrap().damage, [], "nothing is damaged yet");
    let flips = Flips { every: 97, bits: 3, serve_every: 7, until: None };
    let tally = flip_pages(&filled, &flips, 1).await;
    let trees: BTreeSet<String> =
        tally.trees.iter().filter_map(|tree| Some(tree.split(' ').next()?.to_owned())).collect();
    for name in [
        "sqlite_schema",
        "store",
        "queue",
        "message",
        "dedup",
        "delivery",
        "detail",
        "reply",
        "adapter_state",
        "leaf",
        "message_subject",
        "message_key",
        "message_correlation",
        "delivery_message",
        "delivery_ready",
        "delivery_lane",
        "delivery_stuck",
        "detail_delivery",
        "free",
    ] {
        assert!(trees.contains(name), "no page of {name} among {trees:?}");
    }
    for kind in ["message internal", "message leaf", "message overflow", "delivery internal"] {
        assert!(tally.trees.contains(kind), "no {kind} page among {:?}", tally.trees);
    }
    note(format_args!("{} bits of {} kinds of pages: {} named", tally.flips, tally.trees.len(), tally.named));
    assert!(tally.named > tally.flips / 2, "what is damaged is seen: {} of {}", tally.named, tally.flips);
}

#[tokio::test]
async fn a_flipped_bit_of_any_file_beside_the_database_is_named_or_changes_nothing() {
    let filled = filled_place(12).await;
    let flips = Flips { every: 1, bits: 3, serve_every: 5, until: None };
    let tally = flip_files(&filled, &flips, 1).await;
    for name in [
        "keys/store.key",
        "keys/audit.key",
        "audit/checkpoint",
        "audit/vkey",
        "audit/tile/0/000",
        "audit/tile/entries/000",
    ] {
        assert!(tally.trees.contains(name), "no {name} among {:?}", tally.trees);
    }
    assert!(tally.named > 0);
}

// === a write-ahead log that is cut off ===

/// The directory of a gateway that was killed with a filled log: a copy of one at work.
async fn killed(batches: usize) -> Filled {
    let (fixture, promised) = filled(3).await;
    // The start brings the log into the database; what comes then stands in the log alone.
    let fixture = fixture.restart().await;
    let mut filled = Filled { place: fixture.place.clone(), promised };
    for batch in 0..batches {
        if batch + 3 == batches {
            fixture.until_signed().await;
        }
        let messages: Vec<_> = (0..3)
            .map(|n| {
                message(
                    &format!("w{batch}-{n}"),
                    Some("k"),
                    &format!("w{batch}-{n} {}", "y".repeat(n * 3000)),
                    &["ward"],
                )
            })
            .collect();
        let contents: Vec<Vec<u8>> = messages.iter().map(|message| message.data.clone()).collect();
        let accepted = fixture.accept(messages).await.unwrap();
        filled.promised.extend(accepted.iter().map(|accepted| accepted.id).zip(contents));
    }
    // The database before the files: these may be ahead of it then only by what it has as well.
    let dir = tempfile::tempdir().unwrap();
    for name in [DATABASE, WAL] {
        fs::copy(fixture.place.path().join(name), dir.path().join(name)).unwrap();
    }
    for name in ["keys", "audit"] {
        copy_dir(&fixture.place.path().join(name), &dir.path().join(name));
    }
    filled.place = Place { dir: Arc::new(dir), ..fixture.place.clone() };
    fixture.stop().await;
    filled
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Where each transaction of the log ends.
fn commits(wal: &[u8]) -> Vec<usize> {
    let frame = 24 + u32_at(wal, 8) as usize;
    let ends = (0..).map(|n| 32 + n * frame).take_while(|start| start + frame <= wal.len());
    ends.filter(|start| u32_at(wal, start + 4) > 0 && wal[start + 8..start + 16] == wal[16..24])
        .map(|start| start + frame)
        .collect()
}

fn cut(filled: &Filled, length: usize) -> Place {
    let place = copied(&filled.place);
    let wal = fs::File::options().write(true).open(place.path().join(WAL)).unwrap();
    wal.set_len(length as u64).unwrap();
    place
}

fn leaf_count(dumped: &BTreeMap<String, Vec<String>>) -> u64 {
    dumped["store"][0].split(' ').nth(3).unwrap().parse().unwrap()
}

fn signed(place: &Place) -> u64 {
    let checkpoint = fs::read_to_string(place.path().join("audit/checkpoint")).unwrap();
    checkpoint.lines().nth(1).unwrap().parse().unwrap()
}

/// Cuts the log at these lengths: what is left is a prefix of the commits, and what is missing and was signed is named.
async fn cut_at(filled: &Filled, lengths: &[usize], until: Option<Instant>) -> (u64, u64) {
    let wal = fs::read(filled.place.path().join(WAL)).unwrap();
    let ends = commits(&wal);
    assert!(ends.len() > 8, "the log has {} commits", ends.len());
    let mut prefixes = vec![dump(&cut(filled, 0).path().join(DATABASE)).await.unwrap()];
    for end in &ends {
        prefixes.push(dump(&cut(filled, *end).path().join(DATABASE)).await.unwrap());
    }
    assert!(
        prefixes.windows(2).all(|pair| leaf_count(&pair[0]) <= leaf_count(&pair[1])),
        "commits only add entries"
    );
    let (mut cuts, mut named) = (0, 0);
    for length in lengths {
        if until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        let context = format!("the log is cut at {length} of {}", wal.len());
        let place = cut(filled, *length);
        let is_named = named_by_doctor(place.path(), &context);
        let signed = signed(&place);
        let refused = cuts % 16 == 0 && cut(filled, *length).open_unconfigured().await.is_err();
        let left = dump(&place.path().join(DATABASE)).await.unwrap();
        let whole = ends.iter().filter(|end| *end <= length).count();
        assert_eq!(differing(&prefixes[whole], &left), None, "{context}: not the first {whole} commits");
        let rolled_back = leaf_count(&left) < signed;
        assert_eq!(
            is_named,
            rolled_back,
            "{context}: {} entries are left, {signed} are signed",
            leaf_count(&left)
        );
        assert!(
            rolled_back || !refused,
            "{context}: nothing that is signed is missing, and the start is refused"
        );
        assert!(
            !rolled_back || refused || cuts % 16 != 0,
            "{context}: signed entries are missing, and it starts"
        );
        cuts += 1;
        named += u64::from(is_named);
    }
    (cuts, named)
}

#[tokio::test]
async fn a_log_cut_off_anywhere_is_a_prefix_of_its_commits_and_what_was_signed_and_is_missing_is_named() {
    const STRIDE: usize = 61;
    let filled = killed(8).await;
    let wal = fs::read(filled.place.path().join(WAL)).unwrap();
    let mut lengths: BTreeSet<usize> =
        (0..=wal.len() / 512).step_by(STRIDE).map(|sector| sector * 512).collect();
    for end in commits(&wal) {
        let sector = end / 512;
        lengths.extend(
            [end, sector * 512, (sector + 1) * 512].into_iter().filter(|length| *length <= wal.len()),
        );
    }
    let lengths: Vec<usize> = lengths.into_iter().collect();
    let (cuts, named) = cut_at(&filled, &lengths, None).await;
    note(format_args!("{cuts} cuts of {} bytes: {named} named", wal.len()));
    assert!(named > 0 && named < cuts, "{named} of {cuts} were named: both must come up");
}

#[tokio::test]
async fn a_flipped_bit_of_the_write_ahead_log_is_named() {
    let filled = killed(8).await;
    let wal = filled.place.path().join(WAL);
    let end = *commits(&fs::read(&wal).unwrap()).last().unwrap() as u64;
    for n in 0..10 {
        let place = copied(&filled.place);
        let bit = scattered(n, 2) % (8 * end);
        flip(&place.path().join(WAL), bit);
        let found = salvage::inspect(place.path()).unwrap().damage;
        assert!(found.iter().any(|damage| damage.place.starts_with(WAL)), "bit {bit}: {found:?}");
        assert!(
            found.iter().all(|damage| damage.fate == Fate::Mended),
            "bit {bit}: one bit is put right: {found:?}"
        );
        assert_serves_only_what_was_accepted(&place, &filled.promised, &format!("bit {bit} of the log"))
            .await;
    }
}

// === saving what is sound ===

/// Saves what is sound, and demands: the old directory is as it was; the new one starts, is sound, verifies and delivers; and every
/// message that was accepted is there as it was, or listed.
async fn salvaged(place: &Place, promised: &Promised, context: &str) -> (Place, Salvaged) {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("new");
    let before = contents(place.path());
    let repair = Repair { source: place.path(), target: &target, operator: "ops", origin: "test-gateway" };
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
fn overwrite(path: &Path, at: u64, length: usize) {
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
    for (page, kind) in &pages {
        // One page of each kind, wholly overwritten; of indices, which are made anew, one is enough.
        let index =
            kind.0.contains('_') && !["sqlite_schema", "adapter_state", "delivery_ready"].contains(&&*kind.0);
        if index || !tried.insert(kind) {
            continue;
        }
        let place = copied(&filled.place);
        overwrite(&place.path().join(DATABASE), u64::from(page - 1) * 4096, 4096);
        let context = format!("page {page}, {} {}", kind.0, kind.1);
        let (_, salvaged) = salvaged(&place, &filled.promised, &context).await;
        if kind.0 == "free" {
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
async fn a_salvage_is_refused_where_it_could_do_harm() {
    let filled = filled_place(1).await;
    let dir = tempfile::tempdir().unwrap();
    let repair = |target: &Path| {
        let repair = Repair { source: filled.place.path(), target, operator: "ops", origin: "test-gateway" };
        salvage::repair(&repair)
    };
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("x"), "x").unwrap();
    assert!(matches!(repair(&full), Err(SalvageError::TargetExists(_))));
    assert!(matches!(repair(&dir.path().join("a/b")), Err(SalvageError::TargetNowhere(_))));
    let fixture = filled.place.open().await.unwrap();
    assert!(matches!(repair(&dir.path().join("new")), Err(SalvageError::InUse(_))));
    assert!(matches!(salvage::inspect(filled.place.path()), Err(SalvageError::InUse(_))));
    fixture.stop().await;
    assert_eq!(files(dir.path()), [Path::new("full/x")], "nothing was made");
    // An empty directory is as good as none, and what a killed salvage left does not count.
    fs::create_dir_all(dir.path().join(".new.unfinished/audit")).unwrap();
    fs::create_dir(dir.path().join("new")).unwrap();
    repair(&dir.path().join("new")).unwrap();
    assert!(!dir.path().join(".new.unfinished").exists());
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
