//! Damaged logs, as the command line tells of them: by the documented exit codes.

use std::path::PathBuf;
use std::time::Duration;

use gatepost_audit::Event;
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_store::{AuditNote, Options};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::*;

/// More than two bundles, so that some entries are files and some are in the database.
const ENTRIES: usize = 600;

/// A gateway's data directory, without a gateway.
struct Log(TempDir);

impl Log {
    async fn with_entries(count: usize) -> Self {
        let log = Self(tempfile::tempdir().unwrap());
        let text = "[gateway]\nname = \"test\"\ndata_dir = \"data\"\n[[listen]]\nserves = \"operators\"\nunix = \"a.sock\"\n";
        std::fs::write(log.config(), text).unwrap();
        log.add(count).await;
        log
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("gatepost.toml")
    }

    fn data(&self, name: &str) -> PathBuf {
        self.0.path().join("data").join(name)
    }

    async fn add(&self, count: usize) {
        let options = Options {
            data_dir: self.data(""),
            origin: "test".into(),
            dedup_window: Duration::from_secs(1),
            payload_retention: Duration::from_secs(1),
            database: gatepost_store::Database::Sqlite,
            encryption: gatepost_store::Encryption::On,
            seal_keys: Default::default(),
            keys_in_memory: gatepost_store::KEYS_IN_MEMORY,
            adopt: None,
        };
        let (store, task) = gatepost_store::open(options).await.unwrap();
        let note = AuditNote::new(Event::Searched, Actor::new(ActorKind::Operator, "ops"));
        store.audit_note(vec![note; count]).await.unwrap();
        drop(store);
        task.stop().await;
    }

    /// Runs a command; its result, and what it printed as JSON.
    async fn run(&self, command: Audit) -> (Result<(), Failure>, Value) {
        let (ui, printed) = Ui::in_memory(true);
        let context = Context { config: Some(self.config()), ui };
        let result = audit(&context, &command).await;
        let printed = printed.lock().unwrap().clone();
        (result, serde_json::from_slice(&printed).unwrap_or_default())
    }

    async fn verify_code(&self) -> u8 {
        self.run(Audit::Verify { since: None }).await.0.map_or_else(|failure| failure.exit_code(), |()| 0)
    }
}

#[tokio::test]
async fn a_database_that_was_rolled_back_is_18_until_it_is_adopted_and_the_log_holds_the_reasons_digest() {
    for (before, after) in [(3, 5), (ENTRIES, ENTRIES)] {
        let log = Log::with_entries(before).await;
        std::fs::copy(log.data("gatepost.db"), log.data("older.db")).unwrap();
        log.add(after).await;
        assert_eq!(log.verify_code().await, 0);
        std::fs::rename(log.data("older.db"), log.data("gatepost.db")).unwrap();

        let (result, printed) = log.run(Audit::Verify { since: None }).await;
        let failure = result.unwrap_err();
        assert_eq!((failure.exit_code(), &printed["fault"]), (18, &"rolled_back".into()), "{failure}");
        assert!(failure.to_string().contains("rolled back"), "{failure}");
        let into = log.data("export");
        assert_eq!(log.run(Audit::Export { dir: into }).await.0.unwrap_err().exit_code(), 18);

        let adopt = |reason: &str| Audit::Adopt { reason: reason.to_owned() };
        assert_eq!(log.run(adopt(" ")).await.0.unwrap_err().exit_code(), 2);
        let (result, printed) = log.run(adopt("the disk was restored from Monday's backup")).await;
        result.unwrap();
        let note = std::fs::read(log.data("audit").join(printed["note"].as_str().unwrap())).unwrap();
        assert!(String::from_utf8_lossy(&note).contains("Monday"));
        let digest: String = Sha256::digest(&note).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(printed["digest"], format!("sha256:{digest}"));
        assert_eq!(log.verify_code().await, 0);
        let archive = Archive::open(&log.data(""), &gatepost_store::Database::Sqlite).await.unwrap();
        let entries = archive.entries(0, u64::MAX).await.unwrap();
        let said = |entry: &Vec<u8>| {
            let leaf: Value = serde_json::from_slice(entry).unwrap();
            leaf["event"] == "audit_adopted" && leaf["subject_of"] == printed["digest"]
        };
        assert_eq!(entries.iter().filter(|entry| said(entry)).count(), 1);
        assert_eq!(log.run(adopt("again")).await.0.unwrap_err().exit_code(), 1, "there is nothing to adopt");
    }
}

#[tokio::test]
async fn each_damage_has_its_exit_code() {
    type Damage = fn(&Log);
    let damages: [(&str, Damage, u8); 7] = [
        ("nothing", |_| {}, 0),
        ("an entry in a bundle", |log| flip(&log.data("audit/tile/entries/001"), 1000), 12),
        ("a hash in a tile", |log| flip(&log.data("audit/tile/0/000"), 40), 12),
        ("the checkpoint", |log| flip(&log.data("audit/checkpoint"), 10), 10),
        ("the checkpoint is gone", |log| std::fs::remove_file(log.data("audit/checkpoint")).unwrap(), 20),
        ("the public key", |log| std::fs::write(log.data("audit/vkey"), "none").unwrap(), 20),
        ("the database is gone", |log| std::fs::remove_file(log.data("gatepost.db")).unwrap(), 20),
    ];
    for (what, damage, code) in damages {
        let log = Log::with_entries(ENTRIES).await;
        damage(&log);
        assert_eq!(log.verify_code().await, code, "{what}");
    }
}

#[tokio::test]
async fn whoever_meets_a_damaged_log_is_sent_to_the_verifier() {
    let log = Log::with_entries(1).await;
    flip(&log.data("audit/checkpoint"), 10);
    let failure = log.run(Audit::Export { dir: log.data("export") }).await.0.unwrap_err();
    assert!(
        failure.exit_code() == 10 && failure.to_string().contains("`gatepost audit verify`"),
        "{failure}"
    );
    let other = ExportError::OtherTree { entries: 1, size: 2 };
    assert_eq!(super::failure(ArchiveError::Export(other)).exit_code(), 11);
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(file, bytes).unwrap();
}
