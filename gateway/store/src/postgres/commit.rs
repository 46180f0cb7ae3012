//! What a turn writes: in one statement where it can be, and else in a transaction with one for each kind of change that is rare, each
//! with all rows of its kind.

pub(super) mod keep;
mod lanes;
mod script;
mod write;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use gatepost_core::{MessageId, State, Timestamp};
use sqlx::postgres::PgRow;

use super::connection::{Connection, Statement};
use super::row::{Cells, bucket_of};
use super::{Owned, sql};
use crate::backend::CommitError;
use crate::keyring::WrappedTree;
use crate::ops::StoreError;
use crate::prepared::Prepared;
use crate::row::{Row, micros, state_code};
use crate::seal::{InPieces, Index, Owner};
use crate::writer::{Counts, MessageRow, Queue, Touched, Turn};
use keep::Days;
pub(super) use lanes::{Lane, Simple, advance};
pub(super) use script::Values;
#[cfg(test)]
pub(super) use write::whole_texts;
pub(super) use write::{bind_counts, bind_rows, queues_of, sender_of};

/// Microseconds in a day: what is partitioned by time is by days.
pub(super) const DAY_MICROS: i64 = 86_400_000_000;

/// The day of a store time.
pub(crate) fn day_of(time: Timestamp) -> i32 {
    i32::try_from(time.as_micros().div_euclid(DAY_MICROS)).unwrap_or(i32::MAX)
}

/// Why a turn that must be behind all that others have done is not.
pub(super) const NOT_NEWEST: &str = "others have drawn numbers meanwhile";

/// What a commit needs to know besides the turn.
pub(super) struct Context<'c> {
    pub(super) epoch: i32,
    /// Number of the turn.
    pub(super) number: i64,
    /// Which sessions have to be their adapters' newest, if that was not made sure of before.
    pub(super) sessions: &'c [(i64, u64)],
    pub(super) owned: &'c Owned,
    /// Versions of the queues' rows, as they were read.
    pub(super) versions: &'c HashMap<i64, i64>,
    /// What has used the keys of the turn's messages was looked for.
    pub(super) keys_are_known: bool,
    /// The turn's time is of this host's clock.
    pub(super) by_own_clock: bool,
    /// Nobody may have drawn a number since this one.
    pub(super) newest_drawn: Option<i64>,
    /// Groups of leases of which nothing stands any more.
    pub(super) leases_over: &'c [i64],
    pub(super) dedup_before: i64,
}

/// Writes what a turn has decided, in the open transaction.
pub(super) fn write(
    connection: &mut Connection,
    turn: &Turn<'_>,
    context: &Context<'_>,
) -> Result<(), CommitError> {
    let touched = touched_in_order(turn);
    let counts = queues(connection, turn, context)?;
    keep::keep_unsettled(connection, turn, &touched)?;
    let days = keep::days_beside(connection, turn)?;
    write::write(connection, turn, &touched, &counts, &days, context)?;
    standing(connection, &touched)?;
    lanes::bring_in_line(connection, turn, context.owned)?;
    states(connection, turn)
}

/// The one call that writes a turn, commits itself, and draws a number for another turn. `None` if there is nothing to write.
pub(super) fn at_once(
    turn: &Turn<'_>,
    lanes: &Simple<'_>,
    context: &Context<'_>,
) -> Result<Option<Statement<'static>>, CommitError> {
    let touched = touched_in_order(turn);
    let counts: Vec<(i64, Counts)> = added_to_counts(turn).collect();
    write::all_of(turn, &touched, &counts, &Days::new(), lanes, context)
}

/// In one order for every node: two that change the same deliveries would wait for each other.
fn touched_in_order<'t>(turn: &'t Turn<'_>) -> Vec<&'t Touched> {
    let mut touched: Vec<&Touched> = turn.touched.values().collect();
    touched.sort_unstable_by_key(|touched| touched.was.pos);
    touched
}

/// As [`at_once`], of a turn that only adds messages and counts from 0; it draws the number that theirs begin with.
pub(super) fn adding(turn: &Turn<'_>, context: &Context<'_>) -> Result<Statement<'static>, CommitError> {
    let counts: Vec<(i64, Counts)> = added_to_counts(turn).collect();
    write::adding(turn, &counts, context)
}

/// What a call that writes a turn answers. That it does says that it has refused nothing.
pub(super) struct Written {
    /// By how much the numbers of what was added are larger than the turn has them.
    pub(super) base: i64,
    /// A number drawn for another turn.
    pub(super) next: i64,
    /// It has left a note of a lane that may be this node's own.
    pub(super) left_notes: bool,
}

impl Written {
    pub(super) fn read(row: Option<PgRow>) -> Result<Self, CommitError> {
        let row =
            row.ok_or_else(|| CommitError::Broken("a turn was written without an answer".to_owned()))?;
        let mut cells = Cells::new(&row);
        let _refused: Option<bool> = cells.take()?;
        Ok(Self { base: cells.take()?, next: cells.take()?, left_notes: cells.take()? })
    }
}

/// What has happened to a turn's lanes, if it changes only what the one statement writes. What is rare has statements of its own.
pub(super) fn if_one_call<'t>(turn: &'t Turn<'_>, owned: &Owned) -> Option<Simple<'t>> {
    let queue_changes =
        |queue: &Queue| turn.memory.queues.get(&queue.id).is_none_or(|before| before.has_changed(queue));
    let is_rare = |touched: &Touched| {
        comes(touched)
            || waits_again(touched)
            || stuck_as(&touched.was) != stuck_as(&touched.now)
            || enters_lane(touched)
            || touched.is_unsettled_again()
    };
    let is_usual = turn.states.is_empty()
        && !turn.queues.values().any(queue_changes)
        && !turn.touched.values().any(is_rare)
        && keep::beside_old(turn).next().is_none()
        && !write::touches_added(turn);
    if is_usual { Simple::of(turn, owned) } else { None }
}

/// Executes a statement that must change so many rows. One that changes others finds the database other than it was decided on.
pub(super) fn exactly(
    connection: &mut Connection,
    statement: Statement<'_>,
    rows: usize,
    name: &str,
) -> Result<(), CommitError> {
    let changed = connection.execute(statement)?;
    if changed == rows as u64 {
        return Ok(());
    }
    Err(CommitError::Stale(format!("{name}: {changed} rows instead of {rows}")))
}

/// Brings what stands in the tables beside the deliveries in line with what has become of them.
fn standing(connection: &mut Connection, touched: &[&Touched]) -> Result<(), CommitError> {
    let rows = |pick: fn(&Touched) -> bool| -> Vec<&Row> {
        touched.iter().filter(|touched| pick(touched)).map(|touched| &touched.now).collect()
    };
    let come = rows(comes);
    if !come.is_empty() {
        let statement = sqlx::query(sql::READY_ADD)
            .bind(each(&come, |row| queue_id(row.queue)))
            .bind(each(&come, |row| bucket_of(row.lane.as_ref(), &row.id)))
            .bind(each(&come, due))
            .bind(each(&come, |row| row.pos))
            .bind(each(&come, |row| row.delivery.suspect));
        exactly(connection, statement, come.len(), "ready_add")?;
    }
    enter_lanes(connection, touched)?;
    stuck(connection, touched)?;
    let waiting = rows(waits_again);
    if !waiting.is_empty() {
        let statement = sqlx::query(sql::EXPIRY_ADD)
            .bind(each(&waiting, |row| row.delivery.expires_at.map(|at| at.as_micros())))
            .bind(each(&waiting, |row| row.pos));
        connection.execute(statement)?;
    }
    Ok(())
}

/// Whether it is ready now, in no lane.
fn comes(touched: &Touched) -> bool {
    touched.now.lane.is_none() && due(&touched.now).is_some()
}

/// Whether it waits again, and may expire.
fn waits_again(touched: &Touched) -> bool {
    let waits = |row: &Row| matches!(row.delivery.state, State::Waiting { .. });
    !waits(&touched.was) && waits(&touched.now) && touched.now.delivery.expires_at.is_some()
}

fn enters_lane(touched: &Touched) -> bool {
    stands_in(&touched.was) != stands_in(&touched.now) && stands_in(&touched.now).is_some()
}

/// Where a delivery stands in one lane or in two.
fn stands_in(row: &Row) -> Option<(i64, Index, Option<Index>)> {
    row.lane.filter(|_| row.delivery.state.blocks_lane()).map(|lane| (row.queue, lane, row.barrier))
}

/// A row of table `lane`.
pub(super) struct InLane<'r> {
    queue: i32,
    lane: &'r [u8],
    pos: i64,
    home: Option<&'r [u8]>,
}

/// Its rows of these deliveries.
pub(super) fn in_lanes<'r>(rows: impl Iterator<Item = &'r Row>) -> Vec<InLane<'r>> {
    let standing = rows.filter(|row| stands_in(row).is_some());
    let of = |row: &'r Row| {
        let home = row.lane.as_ref().filter(|_| row.barrier.is_some()).map(Index::as_slice);
        let lanes = row.lane.iter().chain(&row.barrier);
        lanes.map(move |lane| InLane { queue: queue_id(row.queue), lane, pos: row.pos, home })
    };
    standing.flat_map(of).collect()
}

fn enter_lanes(connection: &mut Connection, touched: &[&Touched]) -> Result<(), CommitError> {
    let entering = touched.iter().filter(|touched| enters_lane(touched));
    let rows = in_lanes(entering.map(|touched| &touched.now));
    if rows.is_empty() {
        return Ok(());
    }
    let statement = sqlx::query(sql::LANE_ENTER)
        .bind(rows.iter().map(|row| row.queue).collect::<Vec<i32>>())
        .bind(rows.iter().map(|row| row.lane).collect::<Vec<&[u8]>>())
        .bind(rows.iter().map(|row| row.pos).collect::<Vec<i64>>())
        .bind(rows.iter().map(|row| row.home).collect::<Vec<Option<&[u8]>>>());
    exactly(connection, statement, rows.len(), "lane_enter")
}

/// How a delivery stands in table `stuck`.
pub(super) fn stuck_as(row: &Row) -> Option<(i16, i64, bool)> {
    let held = matches!(row.delivery.state, State::InDoubt { due: None });
    matches!(row.delivery.state, State::InDoubt { .. } | State::Dead { .. }).then_some((
        small(state_code(&row.delivery.state)),
        row.queue,
        held,
    ))
}

fn stuck(connection: &mut Connection, touched: &[&Touched]) -> Result<(), CommitError> {
    let changed: Vec<&&Touched> =
        touched.iter().filter(|touched| stuck_as(&touched.was) != stuck_as(&touched.now)).collect();
    let gone: Vec<(i16, i64)> = changed
        .iter()
        .filter_map(|touched| stuck_as(&touched.was).map(|(state, ..)| (state, touched.was.pos)))
        .collect();
    if !gone.is_empty() {
        let (states, positions): (Vec<i16>, Vec<i64>) = gone.into_iter().unzip();
        connection.execute(sqlx::query(sql::STUCK_DROP).bind(states).bind(positions))?;
    }
    let come: Vec<((i16, i64, bool), i64)> = changed
        .iter()
        .filter_map(|touched| stuck_as(&touched.now).map(|stuck| (stuck, touched.now.pos)))
        .collect();
    if come.is_empty() {
        return Ok(());
    }
    let statement = sqlx::query(sql::STUCK_ADD)
        .bind(come.iter().map(|((state, ..), _)| *state).collect::<Vec<i16>>())
        .bind(come.iter().map(|(_, pos)| *pos).collect::<Vec<i64>>())
        .bind(come.iter().map(|((_, queue, _), _)| queue_id(*queue)).collect::<Vec<i32>>())
        .bind(come.iter().map(|((.., held), _)| *held).collect::<Vec<bool>>());
    exactly(connection, statement, come.len(), "stuck_add")
}

fn states(connection: &mut Connection, turn: &Turn<'_>) -> Result<(), CommitError> {
    let (mut adapters, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let (mut gone_adapters, mut gone_keys) = (Vec::new(), Vec::new());
    for ((adapter, key), value) in &turn.states {
        match value {
            Some(value) => {
                adapters.push(adapter.as_str());
                keys.push(key.as_str());
                let owner = Owner::State { adapter, key };
                values.push(turn.vault.seal(value, owner).map_err(StoreError::from)?);
            }
            None => {
                gone_adapters.push(adapter.as_str());
                gone_keys.push(key.as_str());
            }
        }
    }
    if !gone_keys.is_empty() {
        connection.execute(sqlx::query(sql::STATES_DROP).bind(gone_adapters).bind(gone_keys))?;
    }
    if keys.is_empty() {
        return Ok(());
    }
    let statement = sqlx::query(sql::STATES_PUT).bind(adapters).bind(keys).bind(values);
    connection.execute(statement).map(drop)
}

/// Writes the queues whose rows have changed; what the turn adds to the counts of which.
fn queues(
    connection: &mut Connection,
    turn: &Turn<'_>,
    context: &Context<'_>,
) -> Result<Vec<(i64, Counts)>, CommitError> {
    let changed: BTreeSet<i64> = turn.queues_changed().collect();
    for queue in changed.iter().filter_map(|id| turn.queues.get(id)) {
        change_queue(connection, queue, context.versions.get(&queue.id).copied().unwrap_or(0))?;
    }
    Ok(added_to_counts(turn).collect())
}

fn added_to_counts(turn: &Turn<'_>) -> impl Iterator<Item = (i64, Counts)> {
    let changed = turn.queues.values().map(|queue| {
        // Of a sender that only other nodes know yet, all of it comes to what they have.
        let before = turn.memory.queues.get(&queue.id).map_or(Counts::default(), |before| before.counts);
        (queue.id, queue.counts.since(&before))
    });
    changed.filter(|(_, counts)| *counts != Counts::default())
}

/// Writes trees of data keys. Those that are there already stay.
pub(super) fn add_trees(connection: &mut Connection, trees: &[WrappedTree]) -> Result<(), CommitError> {
    let statement = sqlx::query(sql::KEYRING_ADD)
        .bind(trees.iter().map(|tree| whole(tree.tree)).collect::<Vec<i64>>())
        .bind(trees.iter().map(|tree| i32::try_from(tree.key).unwrap_or(i32::MAX)).collect::<Vec<i32>>())
        .bind(trees.iter().map(|tree| tree.body.as_slice()).collect::<Vec<&[u8]>>());
    connection.execute(statement).map(drop)
}

/// Writes trees of data keys anew.
pub(super) fn put_trees(connection: &mut Connection, trees: &[WrappedTree]) -> Result<(), CommitError> {
    let statement = sqlx::query(sql::KEYRING_PUT)
        .bind(trees.iter().map(|tree| whole(tree.tree)).collect::<Vec<i64>>())
        .bind(trees.iter().map(|tree| i32::try_from(tree.key).unwrap_or(i32::MAX)).collect::<Vec<i32>>())
        .bind(trees.iter().map(|tree| tree.body.as_slice()).collect::<Vec<&[u8]>>());
    exactly(connection, statement, trees.len(), "keyring_put")
}

/// Writes a queue's row, if it is still of that version.
pub(super) fn change_queue(
    connection: &mut Connection,
    queue: &Queue,
    version: i64,
) -> Result<(), CommitError> {
    let control = &queue.control;
    let trip = control.trip.as_ref();
    let statement = sqlx::query(sql::QUEUE_CHANGE)
        .bind(queue_id(queue.id))
        .bind(queue.setup.name.as_str())
        .bind(version)
        .bind(queue.setup.kind.as_str())
        .bind(control.paused_since.map(|time| time.as_micros()))
        .bind(trip.map(|trip| trip.since.as_micros()))
        .bind(trip.map(|trip| trip.reason.as_str()))
        .bind(trip.map_or(0, |trip| i64::from(trip.failures)))
        .bind(trip.map(|trip| trip.probe_due.as_micros()))
        .bind(micros(control.idle_before))
        .bind(control.idle_since.map(|time| time.as_micros()))
        .bind(whole(queue.newest_session));
    exactly(connection, statement, 1, "queue_change")
}

/// Messages whose payloads stand in pieces, and in how many.
pub(super) fn in_pieces(rows: &[MessageRow<'_>]) -> impl Iterator<Item = (MessageId, i32)> {
    rows.iter().filter_map(|row| {
        let Prepared { id, salt, data, .. } = row.prepared;
        let owner = Owner::Data { message: id.as_bytes(), salt };
        InPieces::is(data).then(|| (*id, InPieces::read(data, owner).map_or(0, |pieces| count(pieces.count))))
    })
}

pub(super) fn each<'r, T>(rows: &[&'r Row], column: impl Fn(&'r Row) -> T) -> Vec<T> {
    rows.iter().map(|row| column(row)).collect()
}

pub(super) fn due(row: &Row) -> Option<i64> {
    row.delivery.state.due().map(Timestamp::as_micros)
}

pub(super) fn settled_as(row: &Row) -> Option<Cow<'static, str>> {
    row.delivery.settled.map(|(_, kind)| kind.to_text())
}

pub(super) fn token(row: &Row) -> Option<&[u8]> {
    row.delivery.lease().map(|lease| lease.token.as_bytes().as_slice())
}

pub(super) fn queue_id(id: i64) -> i32 {
    i32::try_from(id).unwrap_or(i32::MAX)
}

/// A closed set's number.
pub(super) fn small(code: i64) -> i16 {
    i16::try_from(code).unwrap_or(i16::MAX)
}

pub(super) fn count(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// A count as PostgreSQL keeps it.
pub(super) fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
