//! Retention: content goes by whole days, whose partitions are dropped. A day is walked first, a few messages in a step, and what
//! is not settled is moved out of it. What was moved goes row by row once it is settled; so does everything where less is kept than
//! whole days are good for.
//!
//! Only what has content still is walked, never the history of messages. The node that has the role does it, and each step holds
//! the role's row until its end: no two steps are under way at once, on whichever node, and neither is a commit that makes something
//! settled unsettled again (`commit/keep.rs`).
//!
//! Dropping a partition also excludes everybody who reads or writes content: it takes ACCESS EXCLUSIVE on the tables, and every
//! transaction holds a lock on all of their partitions that its statements were planned for until its own end. So nobody finds half
//! of a day. But whoever waits for that lock makes all who come later wait behind it: it waits only for a moment, and comes again.

use std::time::Duration;

use gatepost_core::Timestamp;

use super::commit::{DAY_MICROS, keep};
use super::row::Cells;
use super::{Postgres, ROLE_RETENTION, sql};
use crate::backend::{Backend as _, CommitError};
use crate::writer::Holds;

/// Messages looked at in one step.
const STEP_MESSAGES: i64 = 500;
/// Payload bytes after which a step ends that moves or removes them one by one: the writer waits for it.
const STEP_BYTES: i64 = 4 * 1024 * 1024;
/// Pause between two looks once everything old has been done, and after somebody was in the way.
const REST: Duration = Duration::from_secs(60);
/// After this long what was passed over is looked at again.
const ROUND: Duration = Duration::from_secs(3600);
/// Days go as a whole from this retention on: with a shorter one much would stay for a multiple of it. It must be at least this
/// much for another reason too: whoever makes something unsettled again moves it unless it is of today or yesterday.
const WHOLE_DAYS_FROM: Duration = Duration::from_secs(2 * 86_400);
/// Longest that a drop waits for its locks, in milliseconds: so long may everybody else have to wait too.
const DROP_WAIT_MS: u32 = 200;

#[derive(Default)]
pub(super) struct Retention {
    /// Until then nobody looks for days that may go.
    days_rest_until: Option<Timestamp>,
    /// Until then nothing is gone through row by row.
    rows_rest_until: Option<Timestamp>,
    /// Where the walk through the rows is: a day, and the last message of it that was looked at.
    at: Option<(i32, i64)>,
    keys_rest_until: Option<Timestamp>,
}

/// What a step has come to.
enum Step {
    /// Others do it, or are in the way.
    NotNow,
    /// There is nothing to do for now.
    Nothing,
    /// Something was done that nobody has to be told.
    Done,
    /// The content of so many messages is gone.
    Purged(u64),
}

/// A message that has content.
struct Stored {
    seq: i64,
    accepted_at: Timestamp,
    /// Payload bytes.
    size: i64,
    unsettled: bool,
}

/// The first of them, up to where those that cost a step their bytes are enough for it.
fn for_a_step(mut stored: Vec<Stored>, costs: impl Fn(&Stored) -> bool) -> Vec<Stored> {
    let mut bytes = 0;
    let is_enough = |message: &Stored| {
        bytes += if costs(message) { message.size } else { 0 };
        bytes >= STEP_BYTES
    };
    if let Some(last) = stored.iter().position(is_enough) {
        stored.truncate(last + 1);
    }
    stored
}

fn is_over(rest_until: Option<Timestamp>, now: Timestamp) -> bool {
    rest_until.is_none_or(|until| until <= now)
}

/// The time before which something is older than `age`.
fn before(now: Timestamp, age: Duration) -> Timestamp {
    let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.as_micros().saturating_sub(age))
}

/// Whether all of a day is older than `age`.
fn is_past(day: i32, now: Timestamp, age: Duration) -> bool {
    let end = (i64::from(day) + 1).saturating_mul(DAY_MICROS);
    end < before(now, age.max(WHOLE_DAYS_FROM)).as_micros()
}

impl Postgres {
    /// See [`crate::backend::Backend::purge_content`].
    pub(super) fn content_step(&mut self, now: Timestamp, age: Duration) -> Result<u64, CommitError> {
        if is_over(self.retention.days_rest_until, now) {
            match self.step(|store| store.day_step(now, age))? {
                Step::NotNow | Step::Nothing => self.retention.days_rest_until = Some(now + REST),
                Step::Done => return Ok(0),
                Step::Purged(messages) => return Ok(messages),
            }
        }
        if is_over(self.retention.rows_rest_until, now) {
            match self.step(|store| store.rows_step(now, age))? {
                Step::NotNow => self.retention.rows_rest_until = Some(now + REST),
                Step::Nothing => self.retention.rows_rest_until = Some(now + ROUND),
                Step::Done => {}
                Step::Purged(messages) => return Ok(messages),
            }
        }
        Ok(0)
    }

    /// See [`crate::backend::Backend::purge_keys`].
    pub(super) fn keys_step(&mut self, now: Timestamp, window: Duration) -> Result<(), CommitError> {
        if !is_over(self.retention.keys_rest_until, now) {
            return Ok(());
        }
        if let Step::NotNow | Step::Nothing = self.step(|store| store.keys_open(now, window))? {
            self.retention.keys_rest_until = Some(now + REST);
        }
        Ok(())
    }

    /// A step in a transaction of its own, if this node has the role; it stays open if something is to be said of it. Who is in
    /// the way makes it wait for later: nothing has been decided on memory that could be behind.
    fn step(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<Step, CommitError>,
    ) -> Result<Step, CommitError> {
        self.begin(&Holds::default())?;
        let done = match self.claim_open(ROLE_RETENTION) {
            Ok(true) => step(self),
            Ok(false) => Ok(Step::NotNow),
            Err(error) => Err(error),
        };
        match done {
            Ok(Step::Purged(messages)) => {
                // The leaf comes behind those of everything that was found settled.
                self.read_through = i64::MAX;
                Ok(Step::Purged(messages))
            }
            Err(CommitError::Stale(text)) => {
                tracing::debug!(text, "retention waits: others are in the way");
                self.roll_back()?;
                Ok(Step::NotNow)
            }
            done => self.end(done),
        }
    }

    /// Goes on with the oldest day that may go.
    fn day_step(&mut self, now: Timestamp, age: Duration) -> Result<Step, CommitError> {
        let made = self.connection.rows(sqlx::query(sql::DAYS_MADE))?;
        let oldest = made.first().map(|row| Cells::new(row).take::<i32>()).transpose()?;
        let Some(day) = oldest.filter(|day| is_past(*day, now, age)) else { return Ok(Step::Nothing) };
        let begun = self.connection.row(sqlx::query(sql::DAY_PURGE_BEGIN).bind(day))?;
        let after = begun.map_or(Ok(0), |row| Cells::new(&row).take())?;
        let stored = for_a_step(self.content_of_day(day, after)?, |message| message.unsettled);
        let Some(through) = stored.last().map(|message| message.seq) else { return self.drop_day(day) };
        let unsettled: Vec<i64> =
            stored.iter().filter(|message| message.unsettled).map(|message| message.seq).collect();
        keep::keep(&mut self.connection, day, &unsettled)?;
        let settled = i64::try_from(stored.len() - unsettled.len()).unwrap_or(i64::MAX);
        let note = sqlx::query(sql::DAY_PURGE_NOTE).bind(day).bind(through).bind(settled);
        self.connection.execute(note)?;
        Ok(Step::Done)
    }

    /// A day has been walked to its end, and no message comes to it any more.
    fn drop_day(&mut self, day: i32) -> Result<Step, CommitError> {
        self.connection.script(format!(
            "SET LOCAL lock_timeout = {DROP_WAIT_MS}; DROP TABLE IF EXISTS payload_{day}, piece_{day}, detail_{day}, reply_{day}; \
             SET LOCAL lock_timeout TO DEFAULT"
        ))?;
        let ended = self.connection.row(sqlx::query(sql::DAY_PURGE_END).bind(day))?;
        let settled: i64 = ended.map_or(Ok(0), |row| Cells::new(&row).take())?;
        tracing::info!(day, settled, "the content of a day is dropped");
        Ok(u64::try_from(settled).ok().filter(|settled| *settled > 0).map_or(Step::Done, Step::Purged))
    }

    /// Goes on with what has no partition of its own, and with the partitions where they are too coarse.
    fn rows_step(&mut self, now: Timestamp, age: Duration) -> Result<Step, CommitError> {
        let next = if age < WHOLE_DAYS_FROM { sql::DAY_NEXT } else { sql::DAY_NEXT_OTHER };
        let at = match self.retention.at {
            Some(at) => Some(at),
            None => self.day_after(next, i32::MIN)?,
        };
        let Some((day, after)) = at else { return Ok(Step::Nothing) };
        let before = before(now, age);
        let goes = |message: &Stored| !message.unsettled && message.accepted_at < before;
        let stored = for_a_step(self.content_of_day(day, after)?, goes);
        // Whatever comes behind a young one of the same day is young too.
        let goes_on = stored.last().filter(|last| last.accepted_at < before);
        self.retention.at = match goes_on {
            Some(last) => Some((day, last.seq)),
            None => self.day_after(next, day)?,
        };
        let settled: Vec<i64> =
            stored.iter().filter(|message| goes(message)).map(|message| message.seq).collect();
        if !settled.is_empty() {
            return self.connection.execute(sqlx::query(sql::PURGE_CONTENT).bind(settled)).map(Step::Purged);
        }
        Ok(if self.retention.at.is_some() { Step::Done } else { Step::Nothing })
    }

    fn day_after(&mut self, next: &'static str, day: i32) -> Result<Option<(i32, i64)>, CommitError> {
        let row = self.connection.row(sqlx::query(next).bind(day))?;
        row.map_or(Ok(None), |row| Ok(Some((Cells::new(&row).take()?, 0))))
    }

    fn content_of_day(&mut self, day: i32, after: i64) -> Result<Vec<Stored>, CommitError> {
        let statement = sqlx::query(sql::CONTENT_OF_DAY).bind(day).bind(after).bind(STEP_MESSAGES);
        let rows = self.connection.rows(statement)?;
        rows.iter()
            .map(|row| {
                let mut cells = Cells::new(row);
                let (seq, accepted_at) = (cells.take()?, Timestamp::from_micros(cells.take()?));
                Ok(Stored { seq, accepted_at, size: cells.take()?, unsettled: cells.take()? })
            })
            .collect()
    }

    /// Keys are dropped in accept order, and where that has come to is in the database: nobody walks there again.
    fn keys_open(&mut self, now: Timestamp, window: Duration) -> Result<Step, CommitError> {
        let before = before(now, window).as_micros();
        let found = self.connection.row(sqlx::query(sql::KEYS_FIND).bind(before).bind(STEP_MESSAGES))?;
        let Some(found) = found else { return Ok(Step::Nothing) };
        let mut cells = Cells::new(&found);
        let (after, through): (i64, i64) = (cells.take()?, cells.take()?);
        self.connection.execute(sqlx::query(sql::PURGE_KEYS).bind(after).bind(through))?;
        self.connection.execute(sqlx::query(sql::KEYS_NOTE).bind(through))?;
        Ok(Step::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_ends_behind_the_one_that_makes_it_large_enough() {
        let stored = |size: i64, unsettled| Stored { seq: 0, accepted_at: at(0, 0), size, unsettled };
        let half = STEP_BYTES / 2;
        let all = || vec![stored(STEP_BYTES, false), stored(half, true), stored(half, true), stored(1, true)];
        assert_eq!(for_a_step(all(), |message| message.unsettled).len(), 3);
        assert_eq!(for_a_step(all(), |message| !message.unsettled).len(), 1, "one goes, however large it is");
        assert_eq!(for_a_step(all(), |_| false).len(), 4);
        assert!(for_a_step(Vec::new(), |_| true).is_empty());
    }

    fn at(days: i64, micros: i64) -> Timestamp {
        Timestamp::from_micros(days * DAY_MICROS + micros)
    }

    #[test]
    fn a_day_goes_when_its_last_moment_is_old_enough() {
        let day = Duration::from_secs(86_400);
        assert!(!is_past(100, at(131, 0), 30 * day), "its end is thirty days old, not older");
        assert!(is_past(100, at(131, 1), 30 * day));
        assert!(!is_past(100, at(103, 0), Duration::ZERO), "a commit may still take it for yesterday's");
        assert!(is_past(100, at(103, 1), Duration::ZERO));
        assert_eq!(super::super::commit::day_of(at(103, 1)), 103);
    }
}
