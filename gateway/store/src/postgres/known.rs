//! What is ready of queues, as far as this node knows without looking: what a look has found that found everything, and what this node
//! has written since. What others have written meanwhile is not in it, so it holds for a short time, and until a hint of theirs. Whether
//! something is ready still, the commit makes sure of.

use std::collections::{BTreeSet, HashMap};

use gatepost_core::Timestamp;
use tokio::time::Instant;

use super::WATCH_INTERVAL;
use crate::row::Row;
use crate::writer::Turn;

/// Entries known of a queue. Of one of which more is ready, a look finds enough.
const ENTRIES_MAX: usize = 16_384;

#[derive(Default)]
pub(super) struct Known {
    ready: HashMap<i64, Entries>,
    /// When the next delivery of a queue will be due, and when that was looked for.
    next: HashMap<i64, (Instant, Option<i64>)>,
}

struct Entries {
    looked_at: Instant,
    /// Times at which they are due, and their positions.
    entries: BTreeSet<(i64, i64)>,
}

impl Known {
    /// Positions and times of at most so many that are due, longest due first. `None` if that must be looked for.
    pub(super) fn ready(&self, queue: i64, now: Timestamp, most: u32) -> Option<Vec<(i64, i64)>> {
        let known = self.ready.get(&queue).filter(|known| known.looked_at.elapsed() < WATCH_INTERVAL)?;
        let due = known.entries.iter().take_while(|(due, _)| *due <= now.as_micros());
        let ready: Vec<(i64, i64)> = due.take(most as usize).map(|(due, pos)| (*pos, *due)).collect();
        // What was not due at the look may be now.
        let is_known = !ready.is_empty() || self.next(queue, now).is_some();
        is_known.then_some(ready)
    }

    /// When the next one will be due, if that is known.
    pub(super) fn next(&self, queue: i64, now: Timestamp) -> Option<Option<i64>> {
        let (looked_at, next) = self.next.get(&queue)?;
        let stands = looked_at.elapsed() < WATCH_INTERVAL && next.is_none_or(|next| next > now.as_micros());
        stands.then_some(*next)
    }

    /// These are all that were ready.
    pub(super) fn found(&mut self, queue: i64, ready: &[(i64, i64)]) {
        let entries = ready.iter().map(|(pos, due)| (*due, *pos)).collect();
        self.ready.insert(queue, Entries { looked_at: Instant::now(), entries });
    }

    pub(super) fn found_next(&mut self, queue: i64, next: Option<i64>) {
        self.next.insert(queue, (Instant::now(), next));
    }

    /// More was ready than was looked for.
    pub(super) fn found_more(&mut self, queue: i64) {
        self.ready.remove(&queue);
    }

    pub(super) fn forget(&mut self) {
        self.ready.clear();
        self.next.clear();
    }

    /// Takes note of what a commit of this node has done. Positions of what it has added are larger by `base` than the turn has them;
    /// `is_own` says which rows are for this node to lease.
    pub(super) fn committed(&mut self, turn: &Turn<'_>, base: i64, is_own: impl Fn(&Row) -> bool) {
        for (queue, _) in turn.lanes.iter() {
            // Who is first in a lane now the server has found out.
            self.ready.remove(queue);
        }
        for touched in turn.touched.values() {
            self.leaves(&touched.was);
        }
        for row in turn.new_rows.iter().filter(|row| !turn.touched.contains_key(&row.id)) {
            self.enters(row, row.pos + base, turn.now, &is_own);
        }
        for touched in turn.touched.values() {
            self.enters(&touched.now, touched.now.pos, turn.now, &is_own);
        }
    }

    fn leaves(&mut self, row: &Row) {
        if let (Some(known), Some(due)) = (self.ready.get_mut(&row.queue), row.delivery.state.due()) {
            known.entries.remove(&(due.as_micros(), row.pos));
        }
    }

    fn enters(&mut self, row: &Row, pos: i64, now: Timestamp, is_own: impl Fn(&Row) -> bool) {
        let Some(due) = row.delivery.state.due() else { return };
        if row.lane.is_some() {
            self.ready.remove(&row.queue);
            self.next.remove(&row.queue);
            return;
        }
        if !is_own(row) {
            return;
        }
        if let Some(known) = self.ready.get_mut(&row.queue) {
            known.entries.insert((due.as_micros(), pos));
            if known.entries.len() > ENTRIES_MAX {
                self.ready.remove(&row.queue);
            }
        }
        if let Some((_, next)) = self.next.get_mut(&row.queue)
            && due > now
        {
            *next = Some(next.map_or(due.as_micros(), |next| next.min(due.as_micros())));
        }
    }
}
