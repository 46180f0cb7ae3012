//! Bringing the WAL into the database while the writer goes on. Most of what a checkpoint takes is waiting for the disk, and
//! while the writer does it everybody waits with it.
//!
//! SQLite syncs the database only when all of the WAL is in it, and it grows meanwhile: so the sync is made here. SQLite, which
//! knows nothing of that, makes its own when the writer brings in the little that is left, and then lets the WAL begin anew.
//!
//! What it says of a checkpoint is no word on that sync: the WAL's length is the one at the beginning, so that all of it may be
//! said to be in the database while what came meanwhile has kept SQLite from syncing.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use super::connection::{self, CheckpointMode};
use super::writeback::Writeback;
use crate::data_dir::DataDir;
use rusqlite::Connection;
use rusqlite::config::DbConfig;

/// Pages by which the WAL grows from the beginning of one to that of the next.
pub(super) const STEP_PAGES: u32 = if gatepost_faults::ON { 1 } else { 1500 };
/// As [`STEP_PAGES`] while large payloads come in pieces: their pages come fast, and each sync of the database, for which the commits of
/// others wait, is to find few.
pub(super) const STEP_PAGES_OF_PIECES: u32 = if gatepost_faults::ON { 1 } else { 500 };
/// Pages by which it may grow while the disk is given what was brought in little by little. More of them, and the sync gives it
/// the rest at once: the WAL must not grow faster than it is brought in.
const PATIENCE_PAGES: u32 = if gatepost_faults::ON { 20 } else { 4000 };

#[derive(Debug, thiserror::Error)]
pub(crate) enum BackfillError {
    /// Nothing has been brought in that counts: it can be done again.
    #[error(transparent)]
    Checkpoint(#[from] rusqlite::Error),
    /// What has been brought in counts, and the disk may not have it.
    #[error("the database could not be synced: {0}")]
    Sync(io::Error),
}

/// The thread that does it; ends when this is dropped.
pub(crate) struct Backfill {
    requests: Option<mpsc::Sender<()>>,
    outcomes: mpsc::Receiver<Result<(), BackfillError>>,
    thread: Option<JoinHandle<()>>,
    runs: bool,
    /// Pages that the WAL had when the newest one began.
    began_at: u32,
    /// And has now.
    pages: Arc<AtomicU32>,
}

impl Backfill {
    /// `file` is the database's, to be synced only. It has to outlive every connection: when it is closed, the process loses its
    /// locks on the file.
    pub(crate) fn start(data_dir: &DataDir, file: Arc<File>) -> io::Result<Self> {
        let (requests, asked) = mpsc::channel();
        let (done, outcomes) = mpsc::channel();
        let pages = Arc::new(AtomicU32::new(0));
        let mut work = Work {
            writeback: Writeback::new(data_dir.wal()),
            database: data_dir.database(),
            file,
            connection: None,
            wal_pages: Arc::clone(&pages),
        };
        let work = move || {
            for () in asked {
                let outcome = work.backfill();
                if done.send(outcome).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("backfill".to_owned()).spawn(work)?;
        Ok(Self { requests: Some(requests), outcomes, thread: Some(thread), runs: false, began_at: 0, pages })
    }

    /// Begins one if the WAL, which has `pages` now, has grown by `step` since the last.
    pub(crate) fn tend(&mut self, pages: u32, step: u32) {
        self.pages.store(pages, Ordering::Relaxed);
        // It may have begun anew.
        self.began_at = self.began_at.min(pages);
        if self.runs || pages - self.began_at < step {
            return;
        }
        if let Some(requests) = &self.requests {
            self.runs = requests.send(()).is_ok();
            self.began_at = pages;
        }
    }

    /// What became of the newest one, once it has ended.
    pub(crate) fn outcome(&mut self) -> Option<Result<(), BackfillError>> {
        let outcome = self.outcomes.try_recv().ok()?;
        self.runs = false;
        Some(outcome)
    }

    /// As [`Backfill::outcome`], and waits for the one that runs.
    pub(crate) fn finish(&mut self) -> Option<Result<(), BackfillError>> {
        if !self.runs {
            return None;
        }
        self.runs = false;
        self.outcomes.recv().ok()
    }
}

impl Drop for Backfill {
    fn drop(&mut self) {
        drop(self.requests.take());
        // It has no more time.
        self.pages.store(u32::MAX, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// What its thread has.
struct Work {
    database: PathBuf,
    file: Arc<File>,
    /// Opened when it is needed first, and after an error anew.
    connection: Option<Connection>,
    writeback: Writeback,
    /// As the writer's newest commit has left it.
    wal_pages: Arc<AtomicU32>,
}

impl Work {
    /// Afterwards all that was ever brought in is durable.
    fn backfill(&mut self) -> Result<(), BackfillError> {
        let open = match self.connection.take() {
            Some(open) => open,
            None => {
                let open = connection::connect(&self.database)?;
                // The last connection does what is left to do, and is the writer's.
                open.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
                open
            }
        };
        let begun = self.wal_pages.load(Ordering::Relaxed);
        let checkpoint = || connection::checkpoint(&open, CheckpointMode::Passive);
        let brought = gatepost_faults::during("store.wal_checkpoint", checkpoint)?;
        self.connection = Some(open);
        let wal_pages = || self.wal_pages.load(Ordering::Relaxed);
        // If nothing came meanwhile, SQLite has synced it.
        if u64::from(wal_pages()) > brought.frames {
            let time = || wal_pages().saturating_sub(begun) < PATIENCE_PAGES;
            self.writeback.run(&self.file, brought.frames, time);
        }
        self.file.sync_data().map_err(BackfillError::Sync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_brought_in_is_synced_whatever_sqlite_says_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gatepost.db");
        let writer = connection::connect(&path).unwrap();
        writer.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1);").unwrap();
        let work = |file: &str| Work {
            database: path.clone(),
            file: Arc::new(File::open(file).unwrap()),
            connection: None,
            writeback: Writeback::new(dir.path().join("gatepost.db-wal")),
            // As if something had come meanwhile.
            wal_pages: Arc::new(AtomicU32::new(1000)),
        };
        // It cannot be synced, and nobody writes meanwhile: SQLite has made a sync of its own.
        let outcome = work("/dev/null").backfill();
        assert!(matches!(outcome, Err(BackfillError::Sync(_))), "{outcome:?}");

        writer.execute_batch("INSERT INTO t VALUES (2);").unwrap();
        let mut work = work(path.to_str().unwrap());
        work.backfill().unwrap();
        writer.execute_batch("INSERT INTO t VALUES (3);").unwrap();
        work.backfill().unwrap();
        // Copied alone, the database has all of it.
        let copy = dir.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        let sum: i64 =
            Connection::open(&copy).unwrap().query_row("SELECT sum(x) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(sum, 6);
    }
}
