//! A turn's one transaction.

use rusqlite::{Connection, ToSql, params};

use super::pieces;
use crate::backend::CommitError;
use crate::keyring::WrappedTree;
use crate::ops::StoreError;
use crate::row::{form_code, micros};
use crate::seal::{Index, Owner};
use crate::writer::{MessageRow, Queue, Touched, Turn};
use crate::{sql, sum};

/// Writes trees of data keys, twice each, in a transaction of their own.
pub(crate) fn add_trees(connection: &Connection, trees: &[WrappedTree]) -> Result<(), CommitError> {
    begin(connection)?;
    let written = write_trees(connection, trees, [sql::KEYRING_ADD, sql::KEYRING_COPY_ADD]);
    let ended = written.and_then(|()| at_commit(|| finish(connection)));
    ended.inspect_err(|_| drop(roll_back(connection)))
}

/// Writes trees of data keys anew, in the open transaction.
pub(crate) fn put_trees(connection: &Connection, trees: &[WrappedTree]) -> Result<(), CommitError> {
    write_trees(connection, trees, [sql::KEYRING_PUT, sql::KEYRING_COPY_PUT])
}

/// Both copies of each.
fn write_trees(
    connection: &Connection,
    trees: &[WrappedTree],
    statements: [&'static str; 2],
) -> Result<(), CommitError> {
    for statement in statements {
        let mut statement = connection.prepare_cached(statement)?;
        for WrappedTree { tree, key, body } in trees {
            execute_summed(&mut statement, params![whole(*tree), key, body], &[])?;
        }
    }
    Ok(())
}

/// Begins a transaction that nothing else can get in the way of.
pub(crate) fn begin(connection: &Connection) -> Result<(), CommitError> {
    Ok(connection.prepare_cached(sql::BEGIN)?.execute([]).map(drop)?)
}

/// Commits what a turn has decided, in the open transaction if there is one, or leaves the database as it was before that.
pub(crate) fn commit(connection: &Connection, turn: &Turn<'_>) -> Result<(), CommitError> {
    if connection.is_autocommit() {
        begin(connection)?;
    }
    let written = write(connection, turn);
    gatepost_faults::point("store.before_commit");
    let ended = written.and_then(|()| at_commit(|| finish(connection)));
    if ended.is_err() {
        roll_back(connection)?;
    }
    gatepost_faults::point("store.after_commit");
    ended
}

fn finish(connection: &Connection) -> Result<(), CommitError> {
    Ok(connection.prepare_cached(sql::COMMIT)?.execute([]).map(drop)?)
}

/// Where the simulation lets a commit fail, or the process end, before or after it.
#[cfg(not(test))]
pub(super) fn at_commit<T>(commit: impl FnOnce() -> Result<T, CommitError>) -> Result<T, CommitError> {
    commit()
}
#[cfg(test)]
pub(super) use crate::writer::sim_at_commit as at_commit;

/// Ends a transaction without a trace, if it is still open.
pub(crate) fn roll_back(connection: &Connection) -> Result<(), CommitError> {
    if connection.is_autocommit() {
        return Ok(());
    }
    let rolled_back = connection.execute_batch("ROLLBACK");
    rolled_back.map_err(|error| CommitError::Broken(format!("the database cannot roll back: {error}")))
}

fn write(connection: &Connection, turn: &Turn<'_>) -> Result<(), CommitError> {
    let slice = turn.memory.keys.slice(turn.keys_new.len());
    pieces::write(connection, turn)?;
    each(connection, sql::MESSAGE_ADD, &turn.messages, |statement, row| add_message(statement, turn, row))?;
    each(connection, sql::KEY_PUT, slice.keys, |statement, (key, message)| {
        statement.execute(params![key, message])
    })?;
    each(connection, sql::DELIVERY_ADD, &turn.new_rows, |statement, row| row.add(statement))?;
    let touched: Vec<_> = turn.touched.values().collect();
    let moved: Vec<_> = touched.iter().filter(|touched| touched.was.queue != touched.now.queue).collect();
    each(connection, sql::DELIVERY_MOVE, &moved, |statement, touched| {
        statement.execute(params![touched.now.pos, touched.was.queue, touched.now.queue])
    })?;
    let (stepped, changed): (Vec<&Touched>, Vec<&Touched>) =
        touched.iter().copied().partition(|touched| touched.now.only_stepped(&touched.was));
    each(connection, sql::DELIVERY_STEP, &stepped, |statement, touched| {
        touched.now.change(&touched.was, statement)
    })?;
    each(connection, sql::DELIVERY_CHANGE, &changed, |statement, touched| {
        touched.now.change(&touched.was, statement)
    })?;
    lanes(connection, turn)?;
    each(connection, sql::LEAVES_ADD, turn.leaves.as_slice(), |statement, run| {
        let columns = params![whole(run.first), run.bytes];
        execute_summed(statement, columns, &[])
    })?;
    each(connection, sql::DETAIL_ADD, &turn.details, |statement, detail| {
        statement.execute(params![whole(detail.leaf), detail.delivery, detail.body])
    })?;
    for again in touched.iter().filter(|touched| touched.is_unsettled_again()) {
        connection.prepare_cached(sql::REPLY_DROP)?.execute(params![again.now.pos])?;
    }
    each(connection, sql::REPLY_PUT, &turn.replies, |statement, reply| {
        statement.execute(params![reply.delivery, reply.body])
    })?;
    for ((adapter, key), value) in &turn.states {
        match value {
            Some(value) => connection.prepare_cached(sql::STATE_PUT)?.execute(params![
                adapter,
                key,
                turn.vault.seal(value, Owner::State { adapter, key }).map_err(StoreError::from)?
            ])?,
            None => connection.prepare_cached(sql::STATE_DROP)?.execute(params![adapter, key])?,
        };
    }
    let queues: Vec<_> = turn.queues.values().collect();
    each(connection, sql::QUEUE_CHANGE, &queues, |statement, queue| change_queue(statement, queue))?;
    let before = turn.memory.leaf_count;
    let after = before + turn.leaves.count();
    let store = StoreRow {
        clock: turn.now.as_micros(),
        instance_epoch: turn.instance_epoch,
        leaf_count: after,
        keyed: slice.keyed,
        key_mark: turn.vault.key_mark(),
    };
    each(connection, sql::STORE_CHANGE, &[store], |statement, store| {
        store.with_columns(|columns| execute_summed(statement, columns, &[&whole(before)]))
    })
}

/// The one row of table `store`.
pub(crate) struct StoreRow {
    pub(crate) clock: i64,
    pub(crate) instance_epoch: u32,
    pub(crate) leaf_count: u64,
    pub(crate) keyed: i64,
    pub(crate) key_mark: Index,
}

impl StoreRow {
    pub(crate) fn with_columns<T>(&self, use_them: impl FnOnce(&[&dyn ToSql]) -> T) -> T {
        let Self { clock, instance_epoch, leaf_count, keyed, key_mark } = self;
        use_them(params![1, clock, instance_epoch, whole(*leaf_count), keyed, key_mark])
    }
}

/// Executes a statement whose parameters are a row's columns, their sum, and some more.
pub(crate) fn execute_summed(
    statement: &mut rusqlite::CachedStatement<'_>,
    columns: &[&dyn ToSql],
    more: &[&dyn ToSql],
) -> rusqlite::Result<usize> {
    let sum = sum::of(columns)?;
    let values = columns.iter().copied().chain([&sum as &dyn ToSql]).chain(more.iter().copied());
    for (number, value) in (1..).zip(values) {
        statement.raw_bind_parameter(number, value)?;
    }
    statement.raw_execute()
}

/// Executes a statement for every row. One that does not change exactly one row finds the database other than it was decided
/// on, and fails the transaction.
pub(super) fn each<T>(
    connection: &Connection,
    sql: &'static str,
    rows: &[T],
    execute: impl Fn(&mut rusqlite::CachedStatement<'_>, &T) -> rusqlite::Result<usize>,
) -> Result<(), CommitError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut statement = connection.prepare_cached(sql)?;
    for row in rows {
        if execute(&mut statement, row)? != 1 {
            return Err(CommitError::Refused(format!("another state than expected: {sql}")));
        }
    }
    Ok(())
}

/// Brings what is ready in the touched lanes in line with who stands in them now.
fn lanes(connection: &Connection, turn: &Turn<'_>) -> Result<(), CommitError> {
    for (id, lane) in &turn.lanes {
        let queue = turn.queue(*id).ok();
        let width = queue.map_or(1, |queue| queue.setup.policy.window.max(1));
        let session = queue.map_or(0, |queue| whole(queue.session));
        let succeeds = queue.is_some_and(Queue::succeeds_itself);
        let widest = width.max(turn.width_before);
        if widest > 1 {
            for clear in [sql::LANE_CLEAR, sql::LANE_CLEAR_BESIDE] {
                connection.prepare_cached(clear)?.execute(params![id, lane, widest])?;
            }
        }
        connection.prepare_cached(sql::LANE_ADVANCE)?.execute(params![id, lane, width, session, succeeds])?;
    }
    Ok(())
}

fn add_message(
    statement: &mut rusqlite::CachedStatement<'_>,
    turn: &Turn<'_>,
    row: &MessageRow<'_>,
) -> rusqlite::Result<usize> {
    let MessageRow { seq, sender, message, prepared } = row;
    let columns = params![
        seq,
        prepared.id.as_bytes(),
        turn.now.as_micros(),
        sender.kind.as_str(),
        sender.name,
        message.kind,
        form_code(message.form),
        whole(prepared.size),
    ];
    let indexed = params![
        seq,
        prepared.key,
        prepared.fingerprint,
        prepared.subject,
        prepared.partition,
        prepared.correlation,
    ];
    let added = params![prepared.barrier];
    let content = params![prepared.attributes, prepared.salt.stored(), prepared.data];
    let sums = params![sum::of(columns)?, sum::of_with_added(indexed, added)?];
    let values = [columns, &indexed[1..], added, content, sums];
    for (number, value) in (1..).zip(values.iter().copied().flatten()) {
        statement.raw_bind_parameter(number, value)?;
    }
    statement.raw_execute()
}

/// Writes a queue's row with [`sql::QUEUE_CHANGE`] or [`sql::QUEUE_ADD`].
pub(crate) fn change_queue(
    statement: &mut rusqlite::CachedStatement<'_>,
    queue: &Queue,
) -> rusqlite::Result<usize> {
    let (control, counts) = (&queue.control, &queue.counts);
    let trip = control.trip.as_ref();
    let columns = params![
        queue.id,
        queue.setup.name,
        queue.setup.kind.as_str(),
        control.paused_since.map(|time| time.as_micros()),
        trip.map(|trip| trip.since.as_micros()),
        trip.map(|trip| trip.reason.as_str()),
        trip.map_or(0, |trip| trip.failures),
        trip.map(|trip| trip.probe_due.as_micros()),
        micros(control.idle_before),
        control.idle_since.map(|time| time.as_micros()),
        whole(queue.session),
        counts.waiting,
        counts.leased,
        counts.sending,
        counts.sent,
        counts.in_doubt,
        counts.held,
        counts.dead,
        counts.suspects,
        counts.held_lanes,
        counts.bytes,
    ];
    execute_summed(statement, columns, &[])
}

/// A count as SQLite keeps it.
fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
