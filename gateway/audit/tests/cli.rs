//! `gatepost-verify` as an auditor runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gatepost_audit::{
    ActorKind, By, Checkpoint, DirTiles, Event, Exporter, Frontier, Leaf, Proof, SignerKey, inclusion_proof,
    leaf_hash,
};
use serde_json::Value;
use tempfile::TempDir;

fn key() -> SignerKey {
    SignerKey::from_seed("clinic-1", &[5; 32]).unwrap()
}

fn leaf(index: usize) -> Vec<u8> {
    let event = if index == 0 { Event::LogOpened } else { Event::AuditRead };
    let by = By::new(ActorKind::Operator, "ops");
    Leaf::new(1_795_423_812_000_000 + index as i64, by, event).encode().unwrap()
}

fn signed(size: usize) -> String {
    let mut frontier = Frontier::new();
    (0..size).for_each(|index| frontier.push(leaf_hash(&leaf(index))));
    Checkpoint { origin: "clinic-1".to_owned(), size: size as u64, root: frontier.root() }
        .sign(&key())
        .unwrap()
}

struct Setup {
    dir: TempDir,
}

impl Setup {
    fn new(size: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut exporter = Exporter::create(&dir.path().join("log")).unwrap();
        (0..size).for_each(|index| exporter.push(&leaf(index)).unwrap());
        exporter.finish(&signed(size), &key().verifier()).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Exit code and standard output; the directory is left out of it.
    fn run(&self, args: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_gatepost-verify"))
            .args(args)
            .env_remove("COLUMNS")
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    fn json(&self, args: &[&str]) -> (i32, Value) {
        let (code, out) = self.run(&[args, &["--json"]].concat());
        (code, serde_json::from_str(&out).unwrap())
    }
}

#[test]
fn a_good_log_is_told_in_one_line_and_what_it_rests_on() {
    let setup = Setup::new(300);
    let (code, out) = setup.run(&["log"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("good_log_key_beside_it", out);
    setup.write("older", signed(256));
    let vkey = key().verifier().to_string();
    let (code, out) = setup.run(&["log", "--vkey", &vkey, "--since", "older"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("good_log_pinned_since", out);
    setup.write("log/checkpoint", signed(290));
    let (code, out) = setup.run(&["log", "--vkey", "log/vkey"]);
    assert_eq!(code, 0);
    assert!(out.ends_with("\n10 entries not yet signed\n"), "{out}");
    let (code, object) = setup.json(&["log", "--vkey", &vkey]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("good_log_json", serde_json::to_string_pretty(&object).unwrap());
}

#[test]
fn each_fault_has_its_exit_code_and_names_its_place() {
    let flip = |path: &Path, byte: usize| {
        let mut bytes = fs::read(path).unwrap();
        bytes[byte] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let setup = Setup::new(300);
    flip(&setup.path("log/checkpoint"), 10);
    assert_eq!(setup.run(&["log"]).0, 10);

    let setup = Setup::new(300);
    flip(&setup.path("log/tile/entries/001.p/44"), 30);
    let (code, out) = setup.run(&["log"]);
    assert_eq!(code, 12);
    insta::assert_snapshot!("changed_leaf", out);
    let (code, object) = setup.json(&["log"]);
    assert_eq!(code, 12);
    insta::assert_snapshot!("changed_leaf_json", serde_json::to_string_pretty(&object).unwrap());

    let setup = Setup::new(300);
    setup.write("other", Setup::new(299).path("log").to_str().unwrap());
    setup.write("newer", signed(301));
    assert_eq!(setup.run(&["log", "--since", "newer"]).0, 18);
    assert_eq!(setup.run(&["log", "--since", "other"]).0, 10);
    let forked = Checkpoint { origin: "clinic-1".to_owned(), size: 200, root: leaf_hash(b"") };
    setup.write("forked", forked.sign(&key()).unwrap());
    assert_eq!(setup.run(&["log", "--since", "forked"]).0, 13);
    let wrong_root = Checkpoint { origin: "clinic-1".to_owned(), size: 300, root: leaf_hash(b"") };
    setup.write("log/checkpoint", wrong_root.sign(&key()).unwrap());
    assert_eq!(setup.run(&["log"]).0, 11);
}

#[test]
fn signed_nonsense_has_its_own_exit_codes() {
    for (entry, expected) in [(b"{}".to_vec(), 16), (leaf(0), 17)] {
        let dir = tempfile::tempdir().unwrap();
        let entries = [leaf(0), entry];
        let mut frontier = Frontier::new();
        let mut exporter = Exporter::create(&dir.path().join("log")).unwrap();
        for entry in &entries {
            exporter.push(entry).unwrap();
            frontier.push(leaf_hash(entry));
        }
        let checkpoint = Checkpoint { origin: "clinic-1".to_owned(), size: 2, root: frontier.root() };
        exporter.finish(&checkpoint.sign(&key()).unwrap(), &key().verifier()).unwrap();
        assert_eq!(Setup { dir }.run(&["log"]).0, expected);
    }
}

#[test]
fn wrong_usage_is_20() {
    let setup = Setup::new(3);
    for args in [
        &["nowhere"] as &[&str],
        &["log", "--vkey", "nowhere"],
        &["log", "--vkey", "clinic-1+00000000+AAAA"],
        &["log", "--since", "nowhere"],
        &["log", "--unknown"],
        &["log", "second"],
        &["proof"],
        &["proof", "log/checkpoint"],
        &["proof", "log/checkpoint", "--vkey", "log/vkey"],
        &["proof", "nowhere", "--vkey", "log/vkey"],
        &[],
    ] {
        assert_eq!(setup.run(args).0, 20, "{args:?}");
    }
    assert_eq!(setup.run(&["--version"]).0, 0);
    let (code, help) = setup.run(&["--help"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("help", help);
}

#[test]
fn receipts_verify_one_or_many() {
    let setup = Setup::new(300);
    let tiles = DirTiles::new(setup.path("log"));
    let receipt = |index: u64| Proof {
        entry: Some(leaf(index as usize)),
        index,
        hashes: inclusion_proof(&tiles, index, 300).unwrap(),
        checkpoint: signed(300),
    };
    let both = [receipt(7).to_text(), receipt(299).to_text()];
    setup.write("receipt", both.concat());
    let (code, out) = setup.run(&["proof", "receipt", "--vkey", "log/vkey"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("receipts", out);
    setup.write("receipt.json", serde_json::json!({ "proofs": both }).to_string());
    let (code, object) = setup.json(&["proof", "receipt.json", "--vkey", "log/vkey"]);
    assert_eq!((code, &object["proofs"][1]["index"]), (0, &Value::from(299)));

    setup.write("swapped", Proof { index: 8, ..receipt(7) }.to_text());
    assert_eq!(setup.run(&["proof", "swapped", "--vkey", "log/vkey"]).0, 11);
    let stranger = SignerKey::from_seed("clinic-1", &[6; 32]).unwrap().verifier().to_string();
    assert_eq!(setup.run(&["proof", "receipt", "--vkey", &stranger]).0, 10);
    setup.write("bare", Proof { entry: None, ..receipt(7) }.to_text());
    assert_eq!(setup.run(&["proof", "bare", "--vkey", "log/vkey"]).0, 20);
}
