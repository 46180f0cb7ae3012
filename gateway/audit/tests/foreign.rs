//! Programs that share no code with us accept what we export, and refuse what was changed.
//!
//! Skipped, with a line that says so, where Go or OpenSSL cannot be had.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use gatepost_audit::{
    ActorKind, By, Checkpoint, DirTiles, Event, Exporter, Frontier, Leaf, Proof, SignerKey, entries_path,
    inclusion_proof, leaf_hash,
};

const SKIPPED: i32 = 77;

fn key() -> SignerKey {
    SignerKey::from_seed("clinic-1.example/audit", &[9; 32]).unwrap()
}

fn leaf(index: u64) -> Vec<u8> {
    let event = if index == 0 { Event::LogOpened } else { Event::Refused };
    let by = By::new(ActorKind::Peer, "ünknown \u{1} \"peer\"");
    let leaf =
        Leaf { code: Some("no_match".into()), count: Some(index), ..Leaf::new(index as i64, by, event) };
    leaf.encode().unwrap()
}

/// Exports a log of `size` entries with a receipt for each of a few.
fn export(dir: &Path, size: u64) {
    let mut frontier = Frontier::new();
    let mut exporter = Exporter::create(dir).unwrap();
    for index in 0..size {
        frontier.push(leaf_hash(&leaf(index)));
        exporter.push(&leaf(index)).unwrap();
    }
    let root = frontier.root();
    let checkpoint = Checkpoint { origin: key().name().to_owned(), size, root }.sign(&key()).unwrap();
    exporter.finish(&checkpoint, &key().verifier()).unwrap();
    let tiles = DirTiles::new(dir);
    for (number, index) in [0, size / 3, size.saturating_sub(1)].into_iter().filter(|&i| i < size).enumerate()
    {
        let hashes = inclusion_proof(&tiles, index, size).unwrap();
        let proof = Proof { entry: Some(leaf(index)), index, hashes, checkpoint: checkpoint.clone() };
        fs::write(dir.join(format!("receipt-{number}.tlog-proof")), proof.to_text()).unwrap();
    }
}

/// Exit code of a script of tests/foreign over a log and its receipts; `None` when it skips.
fn run(script: &str, dir: &Path, receipts: bool) -> Option<i32> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/foreign").join(script);
    let mut command = Command::new(script);
    // A test run must not install packages.
    command.env("FOREIGN_INSTALL", "no").arg(dir).arg(dir.join("vkey"));
    if receipts {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        command
            .args(files.filter(|file| file.extension().is_some_and(|extension| extension == "tlog-proof")));
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let code = output.status.code().unwrap();
    if code == SKIPPED {
        skipped(said.lines().next().unwrap_or_default().trim_start_matches("SKIPPED: "));
        return None;
    }
    assert!(said.starts_with(if code == 0 { "OK" } else { "FAILED" }), "{said}{:?}", output.stderr);
    Some(code)
}

/// Says that a test could not test here what it is for: past the capture of a passing test's output, and in the file that
/// `scripts/test` prints and counts.
fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(file) = std::env::var_os("GATEPOST_SKIPS") {
        let mut skips = fs::File::options().create(true).append(true).open(file).unwrap();
        skips.write_all(line.as_bytes()).unwrap();
    }
}

fn flip(path: &Path, byte: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[byte] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn gos_transparency_log_library_accepts_our_logs_and_refuses_changed_ones() {
    for size in [0, 1, 255, 256, 257, 600, 66_000] {
        let dir = tempfile::tempdir().unwrap();
        export(&dir.path().join("log"), size);
        let Some(code) = run("go-verify.sh", &dir.path().join("log"), true) else { return };
        assert_eq!(code, 0, "{size} entries");
    }
    let last_entries = entries_path(2, Some(88));
    for (file, byte) in [
        ("checkpoint", 25),
        ("tile/entries/000", 40),
        (&last_entries, 7),
        ("tile/0/001", 77),
        ("tile/1/000.p/2", 1),
        ("receipt-1.tlog-proof", 60),
        ("receipt-2.tlog-proof", 200),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        export(&log, 600);
        flip(&log.join(file), byte);
        assert_eq!(run("go-verify.sh", &log, true), Some(1), "{file}");
    }
}

#[test]
fn an_auditor_with_openssl_accepts_our_logs_and_refuses_changed_ones() {
    for size in [0, 1, 255, 256, 600] {
        let dir = tempfile::tempdir().unwrap();
        export(&dir.path().join("log"), size);
        let Some(code) = run("openssl-verify.sh", &dir.path().join("log"), false) else { return };
        assert_eq!(code, 0, "{size} entries");
    }
    for (file, byte) in
        [("checkpoint", 25), ("checkpoint", 120), ("vkey", 40), ("tile/entries/000", 40), ("tile/0/000", 40)]
    {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        export(&log, 600);
        flip(&log.join(file), byte);
        assert_eq!(run("openssl-verify.sh", &log, false), Some(1), "{file}");
    }
}
