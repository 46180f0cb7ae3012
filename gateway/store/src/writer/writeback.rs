//! Giving the disk, little by little, what a checkpoint has put into the database file.
//!
//! Synced at once, hundreds of pages all over the file keep a disk busy for milliseconds, and each commit's sync of the WAL waits
//! behind them. Written back a few at a time before that, they leave the sync next to nothing, and commits pass between them.
//!
//! Only the pace depends on this: whatever is left out here, the sync that follows does.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::wal::{FRAME_HEADER_BYTES, HEADER_BYTES, is_log_header, number};

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

impl Writeback {
    pub(super) fn new(database: &Path) -> Self {
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        Self { wal: wal.into(), reached: 0, unseen: 0 }
    }

    /// After a checkpoint that has brought in the first `frames` of the WAL; until there is no `time` left.
    pub(super) fn run(&mut self, database: &File, frames: u64, time: impl Fn() -> bool) {
        // It may have begun anew.
        let before = if self.reached <= frames { self.reached } else { 0 };
        self.reached = frames;
        if self.unseen > 0 {
            self.unseen -= 1;
            return;
        }
        let Some((page_bytes, pages)) = self.brought_in(before..frames) else { return };
        let runs = runs(pages);
        if runs.len() as u64 * FRAMES_PER_RUN <= frames - before {
            self.unseen = UNSEEN;
            return;
        }
        for run in runs {
            if !time() {
                return;
            }
            let bytes = |pages: u64| i64::try_from(pages * page_bytes).unwrap_or(i64::MAX);
            // Linux begins to write such a range if it is dirty, and does not wait for the disk. (What is clean already leaves
            // the page cache, which is the advice's proper meaning: so these are only pages that were written just now.)
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            if posix_fadvise(database, bytes(run.start), bytes(run.end - run.start), advice).is_err() {
                return;
            }
            sleep(PAUSE);
        }
    }

    /// The size of a page, and the numbers from 0 of those that these frames hold.
    fn brought_in(&self, frames: Range<u64>) -> Option<(u64, Vec<u64>)> {
        let wal = File::open(&self.wal).ok()?;
        let mut header = [0; HEADER_BYTES];
        wal.read_exact_at(&mut header, 0).ok()?;
        if !is_log_header(&header) {
            return None;
        }
        let page_bytes = u64::from(number(&header, 2));
        let mut pages = Vec::new();
        for frame in frames {
            let mut head = [0; FRAME_HEADER_BYTES];
            let at = HEADER_BYTES as u64 + frame * (FRAME_HEADER_BYTES as u64 + page_bytes);
            wal.read_exact_at(&mut head, at).ok()?;
            // Other salts are another log's.
            if head[8..16] == header[16..24] {
                pages.extend(u64::from(number(&head, 0)).checked_sub(1));
            }
        }
        Some((page_bytes, pages))
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
    use super::*;
    use crate::database::{self, CheckpointMode};

    #[test]
    fn neighbours_are_written_together_up_to_the_most() {
        assert_eq!(runs(vec![7, 3, 4, 4, 3, 9]), [3..5, 7..8, 9..10]);
        let runs = runs((100..100 + RUN_PAGES_MAX + 3).collect());
        assert_eq!(runs, [100..100 + RUN_PAGES_MAX, 100 + RUN_PAGES_MAX..103 + RUN_PAGES_MAX]);
        assert!(super::runs(Vec::new()).is_empty());
    }

    /// All that differs from what the database file was before.
    #[test]
    fn the_pages_are_those_that_the_checkpoint_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gatepost.db");
        let connection = database::connect(&path).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        let reader = database::connect(&path).unwrap();
        let writeback = Writeback::new(&path);
        let (mut before, mut reached, mut begun_anew) = (Vec::new(), 0, 0);
        for round in 0..20 {
            let rows = if round % 7 == 0 { 2000 } else { 3 };
            let add = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
                INSERT INTO t SELECT randomblob(200) FROM n";
            connection.execute(add, [rows]).unwrap();
            connection.execute("UPDATE t SET x = randomblob(200) WHERE rowid % 600 = ?1", [round]).unwrap();
            if !reader.is_autocommit() {
                reader.execute_batch("ROLLBACK").unwrap();
            }
            // Somebody who reads from the WAL keeps it from beginning anew.
            if round % 5 != 0 {
                reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
            }
            let frames = database::checkpoint(&connection, CheckpointMode::Passive).unwrap().frames;
            if frames < reached {
                (reached, begun_anew) = (0, begun_anew + 1);
            }
            let (page_bytes, pages) = writeback.brought_in(reached..frames).unwrap();
            reached = frames;
            let after = std::fs::read(&path).unwrap();
            let page_bytes = usize::try_from(page_bytes).unwrap();
            let changed: Vec<u64> = after
                .chunks(page_bytes)
                .enumerate()
                .filter(|(page, bytes)| before.chunks(page_bytes).nth(*page) != Some(bytes))
                .map(|(page, _)| page as u64)
                .collect();
            let named: Vec<u64> = runs(pages).into_iter().flatten().collect();
            assert_eq!(named, changed, "round {round}");
            before = after;
        }
        assert!((1..10).contains(&begun_anew), "{begun_anew} of 20");
    }
}
