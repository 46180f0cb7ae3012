//! Giving the disk, little by little, what a checkpoint has put into the database file.
//!
//! Synced at once, hundreds of pages all over the file keep a disk busy for milliseconds, and each commit's sync of the WAL waits
//! behind them. Written back a few at a time before that, they leave the sync next to nothing, and commits pass between them.
//!
//! Only the pace depends on this: whatever is left out here, the sync that follows does.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::sqlite::wal;

/// Between two runs. A disk writes one in less, so that a commit finds it idle or busy with one.
const PAUSE: Duration = Duration::from_micros(150);
/// Neighbours that are written together; a disk takes hardly longer for them than for one.
const RUN_PAGES_MAX: u64 = 64;
/// Frames brought in for each run, on average, from which on the pages lie so close together that the sync is as quick.
const FRAMES_PER_RUN: u64 = 8;
/// Where they do, as many checkpoints pass before it is looked again: looking costs as much as the checkpoint itself.
const UNSEEN: u32 = if gatepost_faults::ON { 0 } else { 15 };

pub(super) struct Writeback {
    wal: PathBuf,
    /// Frames that were in the database before.
    reached: u64,
    /// Checkpoints that pass before it is looked again.
    unseen: u32,
}

/// Pages in the database file, by their numbers from 0.
#[derive(Debug, Default)]
struct Scattered {
    page_bytes: u64,
    runs: Vec<Range<u64>>,
}

impl Writeback {
    pub(super) fn new(wal: PathBuf) -> Self {
        Self { wal, reached: 0, unseen: 0 }
    }

    /// After a checkpoint that has brought in the first `frames` of the WAL; until there is no `time` left.
    pub(super) fn run(&mut self, database: &File, frames: u64, time: impl Fn() -> bool) {
        let Scattered { page_bytes, runs } = self.scattered(frames);
        for run in runs {
            if !time() {
                return;
            }
            let bytes = |pages: u64| i64::try_from(pages * page_bytes).unwrap_or(i64::MAX);
            // Linux begins to write such a range if it is dirty, and does not wait for the disk; if that fails, the sync says so.
            // (What is clean already leaves the page cache, which is the advice's proper meaning: so these are only pages that
            // were written just now.)
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            if posix_fadvise(database, bytes(run.start), bytes(run.end - run.start), advice).is_err() {
                return;
            }
            sleep(PAUSE);
        }
    }

    /// What the newest checkpoint has written, unless it lies close together or nobody looks.
    fn scattered(&mut self, frames: u64) -> Scattered {
        // It may have begun anew.
        let before = if self.reached <= frames { self.reached } else { 0 };
        self.reached = frames;
        if self.unseen > 0 {
            self.unseen -= 1;
            return Scattered::default();
        }
        // Whoever cannot read the WAL has worse to say elsewhere.
        let Ok(pages) = wal::pages(&self.wal, before..frames) else { return Scattered::default() };
        let runs = runs(pages.numbers);
        if runs.len() as u64 * FRAMES_PER_RUN < frames - before {
            self.unseen = UNSEEN;
            return Scattered::default();
        }
        Scattered { page_bytes: pages.bytes, runs }
    }
}

/// Neighbouring pages together, in their order.
fn runs(mut pages: Vec<u64>) -> Vec<Range<u64>> {
    pages.sort_unstable();
    let mut runs: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(run) if run.contains(&page) => {}
            Some(run) if run.end == page && page - run.start < RUN_PAGES_MAX => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::Path;

    use rusqlite::Connection;

    use super::*;
    use crate::sqlite::connection::{self, CheckpointMode};

    /// A table with a page for each row, and what a checkpoint after some change is worth.
    struct Table {
        connection: Connection,
        /// Keeps the WAL from beginning anew.
        reader: Connection,
        writeback: Writeback,
    }

    impl Table {
        fn new(dir: &Path) -> Self {
            let connection = connection::connect(&dir.join("a.db")).unwrap();
            connection.execute_batch("CREATE TABLE t (x)").unwrap();
            let reader = connection::connect(&dir.join("a.db")).unwrap();
            reader.execute_batch("BEGIN").unwrap();
            Self { connection, reader, writeback: Writeback::new(dir.join("a.db-wal")) }
        }

        fn brought_in(&self, change: &str) -> u64 {
            self.connection.execute_batch(change).unwrap();
            self.reader.execute_batch("ROLLBACK; BEGIN; SELECT count(*) FROM t").unwrap();
            connection::checkpoint(&self.connection, CheckpointMode::Passive).unwrap().frames
        }

        fn scattered(&mut self, change: &str) -> usize {
            let frames = self.brought_in(change);
            self.writeback.scattered(frames).runs.len()
        }
    }

    const FILL: &str = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 600)
        INSERT INTO t SELECT randomblob(3500) FROM n";
    const SCATTER: &str = "UPDATE t SET x = randomblob(3500) WHERE rowid % 20 = 7";

    #[test]
    fn pages_that_lie_together_are_left_to_the_sync_and_so_are_those_of_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::new(dir.path());
        assert_eq!(table.scattered(FILL), 0);
        for unseen in 0..UNSEEN {
            assert_eq!(table.scattered(SCATTER), 0, "{unseen}");
        }
        // From then on, as long as they are scattered.
        for _ in 0..3 {
            assert_eq!(table.scattered(SCATTER), 30);
        }
        // Nothing new, as when a reader holds it up, says nothing about that.
        assert_eq!(table.scattered(""), 0);
        assert_eq!(table.scattered(SCATTER), 30);
        assert_eq!(table.scattered(FILL), 0);
        assert_eq!(table.scattered(SCATTER), if UNSEEN == 0 { 30 } else { 0 });
    }

    #[test]
    fn it_ends_when_there_is_no_time_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::new(dir.path());
        table.writeback.reached = table.brought_in(FILL);
        let frames = table.brought_in(SCATTER);
        let database = File::open(dir.path().join("a.db")).unwrap();
        let left = Cell::new(3);
        table.writeback.run(&database, frames, || left.replace(left.get() - 1) > 0);
        assert_eq!(left.get(), -1, "asked before each run, and not again");
    }

    #[test]
    fn neighbours_are_written_together_up_to_the_most() {
        assert_eq!(runs(vec![7, 3, 4, 4, 3, 9]), [3..5, 7..8, 9..10]);
        let long = runs((100..100 + RUN_PAGES_MAX + 3).collect());
        assert_eq!(long, [100..100 + RUN_PAGES_MAX, 100 + RUN_PAGES_MAX..103 + RUN_PAGES_MAX]);
        assert!(runs(Vec::new()).is_empty());
    }
}
