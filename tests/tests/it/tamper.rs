//! Whoever can write the disk changes the audit log: detected, and named, by programs that trust nothing of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

use gatepost_tests::{Gateway, program, settle_item, until};
use serde_json::{Value, json};

use crate::order_event;

/// Entries of a full bundle.
const BUNDLE: usize = 256;
/// Bytes of each file of a larger log that are changed one after the other.
const SAMPLES: usize = 12;

/// What a program says is wrong.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    exit: i32,
    leaf: Option<u64>,
    file: Option<String>,
}

impl Found {
    fn at(exit: i32, leaf: impl Into<Option<u64>>, file: &str) -> Self {
        Self { exit, leaf: leaf.into(), file: Some(file.to_owned()) }
    }
}

fn verify(log: &Path, more: &[&str]) -> Result<Value, Found> {
    let output = Command::new(program("gatepost-verify")).arg(log).arg("--json").args(more).output().unwrap();
    verdict(&output)
}

fn verdict(output: &Output) -> Result<Value, Found> {
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}{}", text(&output.stdout), text(&output.stderr)));
    let exit = output.status.code().unwrap();
    assert_eq!(said["ok"], exit == 0, "{said}");
    if exit == 0 {
        return Ok(said);
    }
    assert_eq!(said["exit"], exit, "{said}");
    assert!(!said["message"].as_str().unwrap().is_empty());
    Err(Found { exit, leaf: said["leaf"].as_u64(), file: said["file"].as_str().map(str::to_owned) })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn inbox() -> Gateway {
    Gateway::builder().app("shop", &["*"], &["desk"]).inbox("desk", "").route("shop", &["desk"]).start()
}

fn send(gateway: &Gateway, range: std::ops::Range<usize>) {
    for n in range {
        gateway.app().event(&order_event(&n.to_string(), "k", &json!(n))).expect(202);
    }
}

fn until_signed(gateway: &Gateway) {
    until("the newest entries are signed", || {
        let verified: Value = serde_json::from_str(&gateway.cli_ok(&["--json", "audit", "verify"])).unwrap();
        (verified["unsigned"] == 0).then_some(())
    });
}

fn export(gateway: &Gateway, name: &str) -> PathBuf {
    until_signed(gateway);
    let log = gateway.path(name);
    gateway.cli_ok(&["audit", "export", &log.display().to_string()]);
    verify(&log, &[]).unwrap();
    log
}

/// All files below a directory, by their paths from there.
fn files(log: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![log.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.push(path.strip_prefix(log).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        fs::create_dir_all(to.join(&file).parent().unwrap()).unwrap();
        fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

/// Entries of a bundle: each two bytes of length and the entry.
fn entries(bundle: &[u8]) -> Vec<&[u8]> {
    let (mut entries, mut rest) = (Vec::new(), bundle);
    while let [high, low, after @ ..] = rest {
        let (entry, after) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        entries.push(entry);
        rest = after;
    }
    entries
}

fn bundle(entries: &[&[u8]]) -> Vec<u8> {
    let framed = entries.iter().flat_map(|entry| {
        let length = u16::try_from(entry.len()).unwrap().to_be_bytes();
        length.into_iter().chain(entry.iter().copied())
    });
    framed.collect()
}

/// What must be said when this byte of this file is changed: the file, and the leaf if there is one at this place.
fn expected(found: &Found, file: &str, good: &[u8], byte: usize, first_leaf: usize) -> bool {
    if file == "checkpoint" {
        return *found == Found::at(10, None, file);
    }
    if let Some(tile) = file.strip_prefix("tile/entries/") {
        let mut end = 0;
        let leaf = entries(good).into_iter().take_while(|entry| {
            end += 2 + entry.len();
            end <= byte
        });
        let leaf = (first_leaf + leaf.count()) as u64;
        // A length that is changed moves everything behind it; then the bundle is broken there or later.
        return found.exit == 12
            && found.file.as_ref().is_some_and(|named| named == file || named.ends_with(tile))
            && found.leaf.is_some_and(|named| named >= leaf);
    }
    if file.starts_with("tile/0/") {
        return *found == Found::at(12, (first_leaf + byte / 32) as u64, file);
    }
    // Higher tiles name the first leaf below the hash.
    found.exit == 12 && found.file.as_deref() == Some(file)
}

#[test]
fn every_byte_that_is_changed_in_a_small_log_is_named() {
    let gateway = inbox();
    send(&gateway, 0..4);
    for leased in gateway.lease("desk", 2) {
        let results = json!({ "results": [settle_item(&leased, "delivered")] });
        gateway.app().post("/v1/settle", &results).expect(200);
    }
    let log = export(&gateway, "log");
    let files: Vec<String> = files(&log).into_iter().filter(|file| file != "vkey").collect();
    assert_eq!(files.len(), 3, "checkpoint, hashes, entries: {files:?}");
    let bytes: Vec<(&String, usize)> = files
        .iter()
        .flat_map(|file| {
            (0..fs::metadata(log.join(file)).unwrap().len() as usize).map(move |byte| (file, byte))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let flip_all = |log: &Path| {
        while let Some((file, byte)) = bytes.get(next.fetch_add(1, Ordering::Relaxed)) {
            flip(log, file, *byte, 0);
        }
    };
    thread::scope(|scope| {
        for n in 0..thread::available_parallelism().map_or(1, usize::from) {
            let mine = gateway.path(&format!("log-{n}"));
            copy(&log, &mine);
            scope.spawn(move || flip_all(&mine));
        }
    });
    gatepost_tests::note(&format!("{} bytes were changed one by one", bytes.len()));
}

/// Changes one bit of a byte, has the log verified and puts it back.
fn flip(log: &Path, file: &str, byte: usize, first_leaf: usize) {
    let path = log.join(file);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[byte] ^= 1 << (byte % 8);
    fs::write(&path, &bad).unwrap();
    let found = verify(log, &[]).expect_err(&format!("byte {byte} of {file} was changed unseen"));
    assert!(expected(&found, file, &good, byte, first_leaf), "byte {byte} of {file}: {found:?}");
    fs::write(&path, &good).unwrap();
}

/// A log of two full bundles and some more.
fn larger() -> (Gateway, PathBuf) {
    let gateway = inbox();
    send(&gateway, 0..2 * BUNDLE + 50);
    let log = export(&gateway, "log");
    (gateway, log)
}

/// First leaf of a file of entries or of hashes of entries.
fn first_leaf(file: &str) -> usize {
    let name =
        file.rsplit('/').find(|part| part.starts_with(|c: char| c.is_ascii_digit()) && part.len() >= 3);
    name.map_or(0, |name| name.trim_end_matches(".p").parse::<usize>().unwrap() * BUNDLE)
}

#[test]
fn bytes_changed_anywhere_in_a_log_of_several_tiles_are_named() {
    let (_gateway, log) = larger();
    let files = files(&log);
    assert!(files.iter().any(|file| file == "tile/entries/001"), "{files:?}");
    for file in files.iter().filter(|file| *file != "vkey") {
        let length = fs::metadata(log.join(file)).unwrap().len() as usize;
        for sample in 0..SAMPLES {
            // Not at even distances, so that lengths, hashes and entries are hit at different places.
            let byte = (sample * length / SAMPLES + sample * 7) % length;
            flip(&log, file, byte, first_leaf(file));
        }
    }
    verify(&log, &[]).unwrap();
}

#[test]
fn entries_deleted_doubled_swapped_or_inserted_are_named() {
    let (_gateway, log) = larger();
    for (file, first) in [("tile/entries/000", 0), ("tile/entries/001", BUNDLE)] {
        let good = fs::read(log.join(file)).unwrap();
        let entries = entries(&good);
        assert_eq!(bundle(&entries), good);
        for at in [0, 100, BUNDLE - 2] {
            let deleted = [&entries[..at], &entries[at + 1..]].concat();
            let doubled = [&entries[..=at], &entries[at..]].concat();
            let mut swapped = entries.clone();
            swapped.swap(at, at + 1);
            let mut replaced = entries.clone();
            replaced[at] = entries[(at + 50) % BUNDLE];
            for (what, bad, wrong) in [
                ("deleted", deleted, at),
                ("doubled", doubled, at + 1),
                ("swapped", swapped, at),
                ("replaced", replaced, at),
            ] {
                fs::write(log.join(file), bundle(&bad)).unwrap();
                let found = verify(&log, &[]).expect_err(what);
                assert_eq!(found, Found::at(12, (first + wrong) as u64, file), "{what} at {at}");
            }
        }
        fs::write(log.join(file), &good).unwrap();
    }
    verify(&log, &[]).unwrap();
}

#[test]
fn files_removed_cut_emptied_lengthened_or_exchanged_are_named() {
    let (_gateway, log) = larger();
    let all = files(&log);
    for file in &all {
        let path = log.join(file);
        let good = fs::read(&path).unwrap();
        let lengthened = [good.as_slice(), good.as_slice()].concat();
        let cut = |length: usize| Some(good[..length].to_vec());
        for (what, bad) in [
            ("removed", None),
            ("emptied", cut(0)),
            ("halved", cut(good.len() / 2)),
            ("cut by a byte", cut(good.len() - 1)),
            ("cut by a hash", cut(good.len().saturating_sub(32))),
            ("written twice", Some(lengthened)),
        ] {
            match &bad {
                None => fs::remove_file(&path).unwrap(),
                Some(bad) => fs::write(&path, bad).unwrap(),
            }
            let verified = verify(&log, &[]);
            // The key is the auditor's own; that its copy in the log has lost its line end means nothing.
            if file != "vkey" || what != "cut by a byte" {
                let found = verified.expect_err(&format!("{file} {what}"));
                let named = found.file.as_deref().unwrap_or_default();
                assert!(named == file || named.ends_with("vkey"), "{file} {what}: {found:?}");
            }
            fs::write(&path, &good).unwrap();
        }
    }
    for (one, other) in [("tile/entries/000", "tile/entries/001"), ("tile/0/000", "tile/0/001")] {
        let exchange = || {
            fs::rename(log.join(one), log.join("aside")).unwrap();
            fs::rename(log.join(other), log.join(one)).unwrap();
            fs::rename(log.join("aside"), log.join(other)).unwrap();
        };
        exchange();
        let found = verify(&log, &[]).expect_err(one);
        assert_eq!((found.exit, found.leaf), (12, Some(0)), "{found:?}");
        exchange();
    }
    // Entries and hashes both: what they tell is impossible in this order, and the signed root is another.
    for (one, other) in [("tile/entries/000", "tile/entries/001"), ("tile/0/000", "tile/0/001")] {
        fs::rename(log.join(one), log.join("aside")).unwrap();
        fs::rename(log.join(other), log.join(one)).unwrap();
        fs::rename(log.join("aside"), log.join(other)).unwrap();
    }
    assert!(matches!(verify(&log, &[]).unwrap_err().exit, 11 | 17));
}

#[test]
fn a_log_that_is_shorter_than_it_was_is_told_by_a_checkpoint_kept_elsewhere() {
    let gateway = inbox();
    send(&gateway, 0..20);
    let older = export(&gateway, "older");
    send(&gateway, 20..40);
    let newer = export(&gateway, "newer");
    let since = |log: &Path| log.join("checkpoint").display().to_string();
    let extended = verify(&newer, &["--since", &since(&older)]).unwrap();
    assert!(extended["size"].as_u64() > extended["since"].as_u64(), "{extended}");
    assert_eq!(verify(&older, &["--since", &since(&newer)]).unwrap_err().exit, 18);
    // Another log's key signs nothing here.
    let stranger = inbox();
    send(&stranger, 0..5);
    let theirs = export(&stranger, "log");
    let key = theirs.join("vkey").display().to_string();
    assert_eq!(verify(&newer, &["--vkey", &key]).unwrap_err().exit, 10);
    fs::copy(theirs.join("checkpoint"), newer.join("checkpoint")).unwrap();
    assert_eq!(verify(&newer, &[]).unwrap_err().exit, 10);
}

// === the data directory ===

/// Files of the database, as they are when nobody has it open.
const DATABASE: [&str; 3] = ["gatepost.db", "gatepost.db-wal", "gatepost.db-shm"];

fn keep_database(gateway: &Gateway, aside: &str) {
    fs::create_dir_all(gateway.path(aside)).unwrap();
    for file in DATABASE {
        let _ = fs::copy(gateway.path("data").join(file), gateway.path(aside).join(file));
    }
}

fn put_back(gateway: &Gateway, aside: &str) {
    for file in DATABASE {
        let _ = fs::remove_file(gateway.path("data").join(file));
        let _ = fs::copy(gateway.path(aside).join(file), gateway.path("data").join(file));
    }
}

fn audit_verify(gateway: &Gateway, more: &[&str]) -> Output {
    gateway.cli(&[&["audit", "verify"], more].concat())
}

#[test]
fn a_database_that_was_rolled_back_is_noticed_by_the_verifier_and_at_the_next_start() {
    // Few entries, all of them in the database; and so many that most are in files.
    for (before, after) in [(5, 5), (3 * BUNDLE, 40), (40, 3 * BUNDLE)] {
        let mut gateway = inbox();
        send(&gateway, 0..before);
        until_signed(&gateway);
        assert!(gateway.stop().success());
        keep_database(&gateway, "old");
        gateway.restart();
        send(&gateway, before..before + after);
        until_signed(&gateway);
        assert!(gateway.stop().success());
        keep_database(&gateway, "new");

        put_back(&gateway, "old");
        let verified = audit_verify(&gateway, &[]);
        let said = text(&verified.stderr);
        assert!(!verified.status.success(), "{before}+{after}: {}", text(&verified.stdout));
        assert_eq!(verified.status.code(), Some(18), "{before}+{after}: {said}");
        assert!(said.contains("rolled back"), "{said}");
        let served = gateway.cli(&["serve"]);
        let said = text(&served.stderr);
        assert!(!served.status.success(), "it started on an old database");
        assert!(said.contains("rolled back") || said.contains("missing"), "{before}+{after}: {said}");
        assert!(said.contains("gatepost audit adopt --reason"), "{before}+{after}: {said}");

        put_back(&gateway, "new");
        gateway.audit_verifies();
        gateway.restart();
        assert_eq!(gateway.list("/v1/messages", "messages").len(), before + after);
    }
}

#[test]
fn a_database_that_was_rolled_back_together_with_its_checkpoint_is_told_by_one_kept_elsewhere() {
    let mut gateway = inbox();
    let checkpoint = |gateway: &Gateway| gateway.path("data/audit/checkpoint");
    send(&gateway, 0..5);
    until_signed(&gateway);
    assert!(gateway.stop().success());
    keep_database(&gateway, "old");
    fs::copy(checkpoint(&gateway), gateway.path("old/checkpoint")).unwrap();
    gateway.restart();
    send(&gateway, 5..10);
    until_signed(&gateway);
    assert!(gateway.stop().success());
    let kept = gateway.path("kept");
    fs::copy(checkpoint(&gateway), &kept).unwrap();
    put_back(&gateway, "old");
    fs::copy(gateway.path("old/checkpoint"), checkpoint(&gateway)).unwrap();
    gateway.audit_verifies();
    let verified = audit_verify(&gateway, &["--since", &kept.display().to_string()]);
    assert_eq!(verified.status.code(), Some(18), "{}", text(&verified.stderr));
    assert!(text(&verified.stderr).contains("rolled back"), "{}", text(&verified.stderr));
}

/// Changes the database behind the gateway's back.
const EDIT: &str = "import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute('drop trigger leaf_is_immutable')
for statement in sys.argv[2:]:
    db.execute(statement)
db.commit()
";

#[test]
fn entries_that_were_edited_in_the_database_are_named() {
    for (what, edits, leaf) in [
        (
            "changed",
            &["update leaf set bytes = cast(replace(bytes, 'accepted', 'accepten') as blob) where idx = 4"][..],
            4,
        ),
        ("deleted", &["delete from leaf where idx = 4"], 4),
        (
            "exchanged",
            &[
                "create table aside as select bytes from leaf where idx = 4",
                "update leaf set bytes = (select bytes from leaf where idx = 5) where idx = 4",
                "update leaf set bytes = (select bytes from aside) where idx = 5",
                "drop table aside",
            ],
            4,
        ),
    ] {
        let mut gateway = inbox();
        send(&gateway, 0..10);
        until_signed(&gateway);
        assert!(gateway.stop().success());
        let database = gateway.path("data/gatepost.db");
        let edited = Command::new("python3").args(["-c", EDIT]).arg(&database).args(edits).output();
        let Ok(edited) = edited else { return gatepost_tests::skipped("needs python3 with sqlite3") };
        assert!(edited.status.success(), "{}", text(&edited.stderr));
        let verified = audit_verify(&gateway, &[]);
        assert!(!verified.status.success(), "{what} unseen");
        let said = text(&verified.stderr);
        assert!(
            matches!(verified.status.code(), Some(11 | 12 | 16 | 17)),
            "{what}: {:?} {said}",
            verified.status
        );
        let named = said.contains(&format!("leaf {leaf}"))
            || said.contains("signed root")
            || said.contains(&format!("entry {leaf}"));
        assert!(named, "{what}: {said}");
        let served = gateway.cli(&["serve"]);
        assert!(!served.status.success(), "it started on a log that was {what}");
        assert!(text(&served.stderr).contains("gatepost audit adopt --reason"), "{}", text(&served.stderr));
    }
}
