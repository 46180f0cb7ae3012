//! Audit leaves on their way from a commit to their files.
//!
//! The writer stores the leaves of a commit as runs, a row each: one row for hundreds of leaves costs hardly more than one for
//! a single leaf. It also hands them on in memory once they are durable, so that they need not be read back. What is handed on
//! may be dropped at any time; the rows are the truth.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use gatepost_audit::TILE_WIDTH;
use gatepost_audit::tiles::{BundleError, append_entry, parse_bundle};
use tokio::sync::Notify;

/// Bytes handed on and not taken up; beyond them the audit log reads the rows.
const HANDED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes handed on at which they are taken up before the next checkpoint is due.
const HANDED_BYTES_DUE: usize = 1024 * 1024;

/// Leaves that were committed under a number and have got their place in the tree later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Index of the first one in the tree.
    pub(crate) first: u64,
    /// The first one's number.
    pub(crate) number: u64,
    pub(crate) count: u64,
}

/// Consecutive leaves of one tile, in the file form of a bundle: the runs of a tile, one after the other, are its bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Index of its first leaf in the tree.
    pub(crate) first: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Run {
    /// The leaves with their indices.
    pub(crate) fn leaves(&self) -> Result<impl Iterator<Item = (u64, &[u8])>, BundleError> {
        Ok((self.first..).zip(parse_bundle(&self.bytes)?))
    }

    /// The first leaf of its tile.
    pub(crate) const fn tile_start(index: u64) -> u64 {
        index - index % TILE_WIDTH as u64
    }
}

/// The leaves of one commit.
#[derive(Debug)]
pub(crate) struct Runs {
    runs: Vec<Run>,
    /// Index of the next leaf.
    next: u64,
    count: u64,
    /// Bytes with which a run is large enough.
    run_bytes: usize,
}

impl Runs {
    pub(crate) const fn new(next: u64) -> Self {
        Self::of_bytes(next, usize::MAX)
    }

    /// Runs of so many bytes and hardly more.
    pub(crate) const fn of_bytes(next: u64, run_bytes: usize) -> Self {
        Self { runs: Vec::new(), next, count: 0, run_bytes }
    }

    /// Adds a leaf and returns its index in the tree.
    pub(crate) fn push(&mut self, leaf: &[u8]) -> Result<u64, BundleError> {
        let index = self.next;
        let is_full = self.runs.last().is_none_or(|run| run.bytes.len() + leaf.len() > self.run_bytes);
        if is_full || Run::tile_start(index) == index {
            self.runs.push(Run { first: index, bytes: Vec::new() });
        }
        if let Some(run) = self.runs.last_mut() {
            append_entry(&mut run.bytes, usize::try_from(index - run.first).unwrap_or(0), leaf)?;
        }
        self.next += 1;
        self.count += 1;
        Ok(index)
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn as_slice(&self) -> &[Run] {
        &self.runs
    }

    pub(crate) fn into_runs(self) -> Vec<Run> {
        self.runs
    }

    /// Makes their numbers larger: where they were made nobody knew what they begin with.
    pub(crate) fn add_to_numbers(&mut self, base: u64) {
        self.runs.iter_mut().for_each(|run| run.first += base);
        self.next += base;
    }
}

/// Runs that are durable and that the audit log has not taken up yet.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    runs: Mutex<Waiting>,
    due: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By the number of its first leaf.
    runs: BTreeMap<u64, Run>,
    bytes: usize,
}

impl Handed {
    /// Hands on what has been committed.
    pub(crate) fn give(&self, runs: Vec<Run>) {
        let mut waiting = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        for run in runs {
            waiting.bytes += run.bytes.len();
            waiting.runs.insert(run.first, run);
        }
        if waiting.bytes > HANDED_BYTES_MAX {
            *waiting = Waiting::default();
        }
        if waiting.bytes > HANDED_BYTES_DUE {
            self.due.notify_one();
        }
    }

    /// All of them, in their order.
    pub(crate) fn take(&self) -> impl Iterator<Item = Run> + use<> {
        std::mem::take(&mut *self.runs.lock().unwrap_or_else(PoisonError::into_inner)).runs.into_values()
    }

    /// Those of leaves that have their places now; `None` for one that was not handed on here.
    pub(crate) fn take_placed(&self, placed: &[Placed]) -> Vec<Option<Run>> {
        let mut waiting = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut take = |placed: &Placed| {
            let run = waiting.runs.remove(&placed.number)?;
            waiting.bytes -= run.bytes.len();
            Some(Run { first: placed.first, ..run })
        };
        placed.iter().map(&mut take).collect()
    }

    /// Waits until there is so much that it should be taken up.
    pub(crate) async fn due(&self) {
        self.due.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(first: u64, count: u64) -> Runs {
        let mut runs = Runs::new(first);
        for n in 0..count {
            assert_eq!(runs.push(format!("leaf {}", first + n).as_bytes()).unwrap(), first + n);
        }
        runs
    }

    #[test]
    fn runs_end_where_their_tile_ends_and_make_up_its_bundle() {
        let runs = runs(250, 300);
        let borders: Vec<(u64, usize)> =
            runs.as_slice().iter().map(|run| (run.first, run.leaves().unwrap().count())).collect();
        assert_eq!(borders, [(250, 6), (256, 256), (512, 38)]);
        let leaves = runs.as_slice().iter().flat_map(|run| run.leaves().unwrap());
        for (index, leaf) in leaves {
            assert_eq!(leaf, format!("leaf {index}").as_bytes());
        }
        assert_eq!(runs.count(), 300);
    }

    #[test]
    fn runs_are_no_larger_than_they_may_be_except_for_a_leaf_that_is() {
        let mut runs = Runs::of_bytes(0, 100);
        for leaf in [40, 40, 40, 200, 10] {
            runs.push(&vec![b'x'; leaf]).unwrap();
        }
        let sizes: Vec<(u64, usize)> =
            runs.as_slice().iter().map(|run| (run.first, run.bytes.len())).collect();
        assert_eq!(sizes, [(0, 84), (2, 42), (3, 202), (4, 12)]);
    }

    #[test]
    fn more_than_fits_is_dropped_and_not_half_of_it() {
        let handed = Handed::default();
        handed.give(runs(0, 1).into_runs());
        assert_eq!(handed.take().count(), 1);
        let large = |first| vec![Run { first, bytes: vec![0; HANDED_BYTES_MAX / 2] }];
        handed.give(large(0));
        handed.give(large(256));
        assert_eq!(handed.take().count(), 2);
        handed.give(large(0));
        handed.give(large(256));
        handed.give(large(512));
        assert_eq!(handed.take().count(), 0);
    }
}
