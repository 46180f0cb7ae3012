//! A turn's one call to the database.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{Executor as _, SqliteConnection};

use super::Writer;
use super::memory::Queue;
use super::turn::Turn;
use crate::ops::StoreError;
use crate::record::{Heap, Records};
use crate::row::micros;
use crate::sql;

/// Everything that the commit call is bound to.
pub(crate) struct Commit {
    heap: Vec<u8>,
    records: [(Vec<u8>, i64); sql::COMMIT_LAYOUTS.len()],
    clock: i64,
    leaf_count_before: i64,
    leaf_count_after: i64,
    lane_width: i64,
    keyed: i64,
    /// Whether the keys of new messages are looked up in their index by this commit.
    pub(crate) check_keys: bool,
}

/// Kinds of failure that the writer treats differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CommitError {
    /// No space; nothing was written.
    Full,
    /// The file or its disk can no longer be trusted in this connection.
    Broken(String),
    /// A statement refused: a fault of ours or a damaged row; nothing was written.
    Refused(String),
}

impl From<CommitError> for StoreError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Full => Self::Full,
            CommitError::Broken(text) => Self::ReadOnly(text),
            CommitError::Refused(text) => Self::Database(text),
        }
    }
}

impl Turn<'_> {
    /// Takes the records out of the turn; the rest of it says what memory becomes.
    pub(crate) fn prepare(&mut self) -> Commit {
        let mut heap = std::mem::take(&mut self.heap);
        let mut deliveries_new = Records::new(&sql::DELIVERIES_NEW);
        for row in &self.new_rows {
            row.push_new(&mut deliveries_new, &mut heap);
        }
        let mut deliveries_changed = Records::new(&sql::DELIVERIES_CHANGED);
        for touched in self.touched.values() {
            touched.now.push_changed(&touched.was, &mut deliveries_changed, &mut heap);
        }
        let (wide, lanes, lane_width) = self.lane_records();
        let mut leaves = Records::new(&sql::LEAVES_NEW);
        for (index, leaf) in (self.memory.leaf_count..).zip(&self.leaves) {
            let span = heap.append(|bytes| bytes.extend_from_slice(leaf));
            leaves.int(i64::try_from(index).unwrap_or(i64::MAX)).span(span);
        }
        let mut states = Records::new(&sql::STATES);
        for ((adapter, key), value) in std::mem::take(&mut self.states) {
            let adapter = heap.append(|bytes| bytes.extend_from_slice(adapter.as_bytes()));
            let key = heap.append(|bytes| bytes.extend_from_slice(key.as_bytes()));
            let value = value.map(|value| heap.append(|bytes| self.vault.seal(&value, bytes)));
            states.span(adapter).span(key).opt_span(value);
        }
        let mut queues = Records::new(&sql::QUEUES);
        for queue in self.queues.values() {
            push_queue(queue, &mut queues, &mut heap);
        }
        let slice = self.memory.keys.slice(self.dedups_new.len());
        let mut keys = Records::new(&sql::KEYS);
        for (key, message) in slice.keys {
            keys.key(key).int(*message);
        }
        let take = |records: &mut Records, layout| std::mem::replace(records, Records::new(layout));
        let before = i64::try_from(self.memory.leaf_count).unwrap_or(i64::MAX);
        let records = [
            take(&mut self.messages, &sql::MESSAGES),
            keys,
            deliveries_new,
            deliveries_changed,
            wide,
            lanes,
            leaves,
            take(&mut self.details, &sql::DETAILS),
            take(&mut self.replies, &sql::REPLIES),
            states,
            queues,
        ];
        Commit {
            heap: heap.into_bytes(),
            records: records
                .map(|records| (records.count(), records))
                .map(|(count, records)| (records.into_bytes(), count)),
            clock: self.now.as_micros(),
            lane_width,
            keyed: slice.keyed,
            check_keys: false,
            leaf_count_before: before,
            leaf_count_after: before.saturating_add(i64::try_from(self.leaves.len()).unwrap_or(i64::MAX)),
        }
    }
}

impl Turn<'_> {
    /// The lanes that this turn has touched; first those in which more than the head may have been ready, last the width of
    /// the widest of them.
    fn lane_records(&self) -> (Records, Records, i64) {
        let mut wide = Records::new(&sql::LANES_WIDE);
        let mut lanes = Records::new(&sql::LANES);
        let mut widest = 1;
        for (id, lane) in &self.lanes {
            let queue = self.queue(*id).ok();
            let width = queue.map_or(1, |queue| queue.setup.policy.window.max(1));
            let session = queue.map_or(0, |queue| i64::try_from(queue.session).unwrap_or(i64::MAX));
            lanes.int(*id).key(lane).int(width.into()).int(session);
            let width = width.max(self.width_before);
            if width > 1 {
                wide.int(*id).key(lane);
                widest = widest.max(width);
            }
        }
        (wide, lanes, widest.into())
    }
}

fn push_queue(queue: &Queue, records: &mut Records, heap: &mut Heap) {
    let control = &queue.control;
    let counts = &queue.counts;
    let trip = control.trip.as_ref();
    let reason =
        trip.map(|trip| heap.append(|bytes| bytes.extend_from_slice(trip.reason.as_str().as_bytes())));
    records
        .int(queue.id)
        .opt_int(control.paused_since.map(|time| time.as_micros()))
        .opt_int(trip.map(|trip| trip.since.as_micros()))
        .opt_span(reason)
        .int(trip.map_or(0, |trip| trip.failures.into()))
        .opt_int(trip.map(|trip| trip.probe_due.as_micros()))
        .int(micros(control.idle_before))
        .opt_int(control.idle_since.map(|time| time.as_micros()))
        .int(i64::try_from(queue.session).unwrap_or(i64::MAX))
        .int(counts.waiting)
        .int(counts.leased)
        .int(counts.sending)
        .int(counts.sent)
        .int(counts.in_doubt)
        .int(counts.held)
        .int(counts.dead)
        .int(counts.suspects)
        .int(counts.held_lanes)
        .int(counts.bytes);
}

impl Commit {
    fn shape(&self, open: bool) -> sql::Shape {
        let layouts =
            self.records.iter().enumerate().map(|(position, (_, count))| u16::from(*count > 0) << position);
        sql::Shape { layouts: layouts.sum(), check_keys: self.check_keys, open }
    }
}

/// The texts of commit calls, by what they change.
#[derive(Default)]
pub(crate) struct Calls {
    texts: HashMap<sql::Shape, Arc<str>>,
}

impl Calls {
    fn text(&mut self, shape: sql::Shape) -> Arc<str> {
        Arc::clone(self.texts.entry(shape).or_insert_with(|| shape.sql().into()))
    }
}

impl Writer {
    /// Commits, or leaves the database as it was.
    pub(crate) async fn commit(&mut self, commit: Commit) -> Result<(), CommitError> {
        self.call(commit, false).await
    }

    /// Commits together with what the open transaction has done already, or leaves the database as it was before that.
    pub(crate) async fn commit_open(&mut self, commit: Commit) -> Result<(), CommitError> {
        self.call(commit, true).await
    }

    async fn call(&mut self, commit: Commit, open: bool) -> Result<(), CommitError> {
        let text = self.calls.text(commit.shape(open));
        run(&mut self.connection, text, commit).await
    }
}

async fn run(connection: &mut SqliteConnection, call: Arc<str>, commit: Commit) -> Result<(), CommitError> {
    let mut query = sqlx::query(sqlx::AssertSqlSafe(call)).bind(commit.heap);
    for (records, count) in commit.records {
        query = query.bind(records).bind(count);
    }
    let query = query.bind(commit.clock).bind(commit.leaf_count_before).bind(commit.leaf_count_after);
    let query = query.bind(commit.lane_width).bind(commit.keyed);
    let Err(error) = query.execute(&mut *connection).await else { return Ok(()) };
    // The call stops at the statement that failed; what it began must be ended here. When there is nothing to end, the
    // failure was in COMMIT or BEGIN itself and SQLite has rolled back already.
    let rollback = connection.execute("ROLLBACK").await;
    let error = classify(&error);
    if error != CommitError::Full
        && let Err(sqlx::Error::Io(_)) = rollback
    {
        return Err(CommitError::Broken("the database cannot roll back".to_owned()));
    }
    Err(error)
}

/// Sorts SQLite's errors (https://www.sqlite.org/rescode.html) into what the writer does about them.
pub(crate) fn classify(error: &sqlx::Error) -> CommitError {
    const SQLITE_READONLY: i64 = 8;
    const SQLITE_IOERR: i64 = 10;
    const SQLITE_CORRUPT: i64 = 11;
    const SQLITE_FULL: i64 = 13;
    const SQLITE_CANTOPEN: i64 = 14;
    const SQLITE_NOTADB: i64 = 26;
    const EXTENDED_BITS: i64 = 0xff;
    let Some(code) = error.as_database_error().and_then(|error| error.code()?.parse::<i64>().ok()) else {
        return match error {
            sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => CommitError::Broken(error.to_string()),
            _ => CommitError::Refused(error.to_string()),
        };
    };
    match code & EXTENDED_BITS {
        SQLITE_FULL => CommitError::Full,
        SQLITE_IOERR | SQLITE_CORRUPT | SQLITE_NOTADB | SQLITE_CANTOPEN | SQLITE_READONLY => {
            CommitError::Broken(error.to_string())
        }
        _ => CommitError::Refused(error.to_string()),
    }
}
