//! Idempotency keys: the newest stand in memory, the others in their index.
//!
//! Keys are random. Put into the index one by one, each would touch a page of its own; moved in sorted runs, many share one.
//! A key is durable before that: it is a column of its message, from which memory is filled at start.

use std::collections::HashMap;

use crate::seal::Index;

/// Keys moved for each new one while a run is under way; more than one, so that a run ends before the next is due.
const MOVED_PER_NEW: usize = 2;

pub(crate) struct Keys {
    /// Used since the last run began; the message of each.
    recent: HashMap<Index, i64>,
    run: Option<Run>,
    /// Keys of messages up to this one are in the index.
    keyed: i64,
    /// Keys in memory at which a run begins.
    most: usize,
}

/// A sorted run on its way into the index. All of it stays known here until its last key is there.
struct Run {
    known: HashMap<Index, i64>,
    sorted: Vec<(Index, i64)>,
    moved: usize,
    through: i64,
}

/// The part of a run that a commit takes along.
pub(crate) struct Slice<'k> {
    pub(crate) keys: &'k [(Index, i64)],
    /// What the store notes as in the index when the commit has succeeded.
    pub(crate) keyed: i64,
}

impl Keys {
    pub(crate) fn new(keyed: i64, most: usize) -> Self {
        Self { recent: HashMap::new(), run: None, keyed, most }
    }

    /// The message that used a key last, if that was recently.
    pub(crate) fn message_of(&self, key: &Index) -> Option<i64> {
        self.recent.get(key).or_else(|| self.run.as_ref()?.known.get(key)).copied()
    }

    /// What a commit with so many new keys moves.
    pub(crate) fn slice(&self, new: usize) -> Slice<'_> {
        let Some(run) = &self.run else { return Slice { keys: &[], keyed: self.keyed } };
        let end = run.sorted.len().min(run.moved + new * MOVED_PER_NEW);
        let done = end == run.sorted.len();
        Slice { keys: &run.sorted[run.moved..end], keyed: if done { run.through } else { self.keyed } }
    }

    /// Notes what a commit has done: the new keys, and how many of the run it moved.
    pub(crate) fn committed(&mut self, new: Vec<(Index, i64)>, moved: usize) {
        if let Some(run) = &mut self.run {
            run.moved += moved;
            if run.moved == run.sorted.len() {
                self.keyed = run.through;
                self.run = None;
            }
        }
        self.add(new);
    }

    pub(crate) fn add(&mut self, new: impl IntoIterator<Item = (Index, i64)>) {
        self.recent.extend(new);
        if self.run.is_none() && self.recent.len() >= self.most {
            self.begin_run();
        }
    }

    pub(crate) fn keyed(&self) -> i64 {
        self.keyed
    }

    fn begin_run(&mut self) {
        let known = std::mem::take(&mut self.recent);
        let mut sorted: Vec<(Index, i64)> = known.iter().map(|(key, message)| (*key, *message)).collect();
        sorted.sort_unstable();
        let through = sorted.iter().map(|(_, message)| *message).max().unwrap_or(self.keyed);
        self.run = Some(Run { known, sorted, moved: 0, through });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Index {
        [number; 16]
    }

    #[test]
    fn a_run_moves_every_key_once_and_none_is_forgotten_before_it_is_there() {
        let mut keys = Keys::new(0, 4);
        keys.add([(key(9), 1), (key(3), 2), (key(7), 3), (key(1), 4)]);
        let mut moved = Vec::new();
        for message in 5..8 {
            let slice = keys.slice(1);
            let (count, keyed) = (slice.keys.len(), slice.keyed);
            moved.extend_from_slice(slice.keys);
            assert_eq!(keyed, if moved.len() == 4 { 4 } else { 0 }, "only a whole run counts");
            for number in [9, 3, 7, 1] {
                assert!(moved.len() == 4 && count == 0 || keys.message_of(&key(number)).is_some());
            }
            keys.committed(vec![(key(100 + message), i64::from(message))], count);
        }
        assert_eq!(moved, [(key(1), 4), (key(3), 2), (key(7), 3), (key(9), 1)]);
        assert_eq!(keys.keyed(), 4);
        assert_eq!(keys.message_of(&key(9)), None);
        assert_eq!(keys.message_of(&key(105)), Some(5));
    }

    #[test]
    fn the_last_use_of_a_key_is_the_one_that_counts() {
        let mut keys = Keys::new(0, 2);
        keys.add([(key(1), 1), (key(2), 2)]);
        keys.committed(vec![(key(1), 3)], 0);
        assert_eq!(keys.message_of(&key(1)), Some(3));
    }
}
