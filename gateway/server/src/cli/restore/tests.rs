//! Backup, drill and restore as the command line tells of them: by exit codes, and by what is paused.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use gatepost_core::QueuePolicy;
use gatepost_store::{QueueSetup, Sessions};
use serde_json::Value;
use tempfile::TempDir;

use super::super::backup;
use super::*;

/// A gateway's directory, without a gateway; its backups stand beside it.
struct Site(TempDir);

impl Site {
    async fn new(name: &str) -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        let text = format!(
            "[gateway]\nname = \"{name}\"\ndata_dir = \"data\"\n[[listen]]\nserves = \"operators\"\nunix = \"a.sock\"\n"
        );
        fs::write(site.path("gatepost.toml"), text).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Opens its store; the queues, and which of them are paused.
    async fn start(&self, name: &str) -> Vec<(String, bool)> {
        let options = Options {
            data_dir: self.path("data"),
            database: gatepost_store::Database::Sqlite,
            origin: name.to_owned(),
            dedup_window: Duration::from_secs(1),
            payload_retention: Duration::from_secs(1),
            encryption: gatepost_store::Encryption::On,
            seal_keys: Default::default(),
            keys_in_memory: gatepost_store::KEYS_IN_MEMORY,
            adopt: None,
        };
        let (store, task) = gatepost_store::open(options).await.unwrap();
        let queue = |name: &str, kind| QueueSetup {
            name: name.to_owned(),
            kind,
            sessions: Sessions::One,
            policy: QueuePolicy { confirm: None, ..QueuePolicy::default() },
        };
        let queues = vec![queue("desk", QueueKind::Inbox), queue("lab", QueueKind::Adapter)];
        store.queues_configure(queues).await.unwrap();
        let rows = store.read().queue_list().await.unwrap();
        drop(store);
        task.stop().await;
        rows.into_iter()
            .filter(|row| row.kind != QueueKind::Builtin)
            .map(|row| (row.name, row.stats.paused))
            .collect()
    }

    fn context(&self) -> (Context, std::sync::Arc<std::sync::Mutex<Vec<u8>>>) {
        let (ui, printed) = Ui::in_memory(true);
        (Context { config: Some(self.path("gatepost.toml")), ui }, printed)
    }

    async fn backup(&self, more: &[&str]) -> Result<(), Failure> {
        let dir = self.path("backup").display().to_string();
        let words = [&["backup", dir.as_str()], more].concat();
        backup::backup(&self.context().0, &parsed(&words)).await
    }

    /// What it printed as JSON.
    async fn restore(&self, more: &[&str]) -> Result<Value, Failure> {
        let dir = self.path("backup").display().to_string();
        let (context, printed) = self.context();
        restore(&context, &parsed(&[&["restore", dir.as_str()], more].concat())).await?;
        let printed = printed.lock().unwrap().clone();
        Ok(serde_json::from_slice(&printed).unwrap())
    }

    async fn refused(&self, more: &[&str]) -> (u8, String) {
        let failure = self.restore(more).await.expect_err("it is refused");
        (failure.exit_code(), format!("{failure} {}", failure.hint().unwrap_or_default()))
    }
}

/// Arguments as the command line gives them.
fn parsed<T: Args>(words: &[&str]) -> T {
    let command = T::augment_args(clap::Command::new("gatepost").no_binary_name(false));
    T::from_arg_matches(&command.get_matches_from(words)).unwrap()
}

#[tokio::test]
async fn a_restore_pauses_every_destination_unless_it_is_told_not_to() {
    for (more, paused) in [(&[][..], true), (&["--resume"], false)] {
        let site = Site::new("test").await;
        let before = site.start("test").await;
        assert_eq!(before, [("desk".to_owned(), false), ("lab".to_owned(), false)]);
        site.backup(&[]).await.unwrap();
        fs::rename(site.path("data"), site.path("lost")).unwrap();
        let restored = site.restore(more).await.unwrap();
        let names = if paused { json!(["desk", "lab"]) } else { json!([]) };
        assert_eq!(restored["paused"], names);
        let after = site.start("test").await;
        assert_eq!(after, [("desk".to_owned(), paused), ("lab".to_owned(), paused)]);
        let (code, said) = site.refused(more).await;
        assert!(code == 2 && said.contains("not empty") && said.contains("move away"), "{code} {said}");
    }
}

#[tokio::test]
async fn a_drill_changes_nothing_and_says_by_its_exit_code_what_is_wrong() {
    let site = Site::new("test").await;
    site.start("test").await;
    let older = fs::read(site.path("data/gatepost.db")).unwrap();
    site.start("test").await;
    site.backup(&[]).await.unwrap();
    let proof = site.restore(&["--verify"]).await.unwrap();
    assert_eq!((&proof["ok"], &proof["store"]), (&json!(true), &json!("sqlite")), "{proof}");
    let here = || fs::read_dir(site.0.path()).unwrap().count();
    assert_eq!(here(), 3, "configuration, data, backup");

    let vkey = site.path("backup/audit/vkey");
    let good = fs::read(&vkey).unwrap();
    fs::write(&vkey, good.to_ascii_lowercase()).unwrap();
    let (code, said) = site.refused(&["--verify"]).await;
    assert!(code == 1 && said.contains("audit/vkey of the backup is not as it was written"), "{said}");
    fs::remove_dir_all(site.path("backup")).unwrap();
    let (code, said) = site.refused(&["--verify"]).await;
    assert!(code == 1 && said.contains("no finished backup"), "{said}");

    fs::write(site.path("data/gatepost.db"), older).unwrap();
    site.backup(&[]).await.unwrap();
    let (code, said) = site.refused(&["--verify"]).await;
    assert!(code == 6 && said.contains("rolled back"), "{code} {said}");
    assert_eq!(here(), 3, "nothing of a drill that failed stays");
}

#[tokio::test]
async fn a_restore_is_refused_under_another_name_and_without_its_keys() {
    let site = Site::new("test").await;
    site.start("test").await;
    site.backup(&["--without-keys"]).await.unwrap();
    let (code, said) = site.refused(&["--verify"]).await;
    assert!(code == 1 && said.contains("--keys DIR"), "{said}");
    let keys = site.path("data/keys").display().to_string();
    site.restore(&["--verify", "--keys", &keys]).await.unwrap();
    fs::rename(site.path("data"), site.path("lost")).unwrap();
    let other = fs::read_to_string(site.path("gatepost.toml")).unwrap().replace("\"test\"", "\"other\"");
    fs::write(site.path("gatepost.toml"), other).unwrap();
    let (code, said) = site.refused(&[]).await;
    assert!(code == 2 && said.contains("`test`") && said.contains("`other`"), "{said}");
    assert!(!site.path("data").exists());
}
