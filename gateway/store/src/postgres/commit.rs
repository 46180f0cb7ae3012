//! A turn's one transaction: a statement for each kind of change, each with all rows of its kind.

use gatepost_core::delivery::Proof;
use gatepost_core::{State, Timestamp};

use super::connection::{Connection, Statement};
use super::row::{bucket_of, bucket_of_lane};
use super::{Owned, sql};
use crate::backend::CommitError;
use crate::leaves::Run;
use crate::row::{Row, form_code, micros, reason_of, state_code};
use crate::seal::{Index, Owner};
use crate::writer::{Counts, Queue, Touched, Turn};

/// Microseconds in a day: what is partitioned by time is by days.
const DAY_MICROS: i64 = 86_400_000_000;

/// The day of a store time.
pub(super) fn day_of(time: Timestamp) -> i32 {
    i32::try_from(time.as_micros().div_euclid(DAY_MICROS)).unwrap_or(i32::MAX)
}

/// What a commit needs to know besides the turn.
pub(super) struct Context<'c> {
    pub(super) epoch: i32,
    /// Number of the turn.
    pub(super) number: i64,
    pub(super) owned: &'c Owned,
    /// Version of a queue's row, as it was read.
    pub(super) version: &'c dyn Fn(i64) -> i64,
    pub(super) dedup_before: i64,
}

/// Writes what a turn has decided, in the open transaction.
pub(super) fn write(
    connection: &mut Connection,
    turn: &Turn<'_>,
    context: &Context<'_>,
) -> Result<(), CommitError> {
    let touched: Vec<&Touched> = turn.touched.values().collect();
    messages(connection, turn, context)?;
    deliveries(connection, &turn.new_rows)?;
    changes(connection, &touched)?;
    standing(connection, &touched)?;
    lanes(connection, turn, context)?;
    leaves(connection, turn.leaves.as_slice(), day_of(turn.now))?;
    beside(connection, turn)?;
    states(connection, turn)?;
    queues(connection, turn, context)?;
    leases(connection, &touched, context)
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

fn messages(connection: &mut Connection, turn: &Turn<'_>, context: &Context<'_>) -> Result<(), CommitError> {
    if turn.messages.is_empty() {
        return Ok(());
    }
    let rows = &turn.messages;
    let mut span = std::collections::HashMap::with_capacity(rows.len());
    for row in &turn.new_rows {
        let (_, count) = span.entry(row.message_seq).or_insert((row.pos, 0_i32));
        *count += 1;
    }
    let spans = rows.iter().map(|row| span.get(&row.seq).copied().unwrap_or((0, 0)));
    let (first_pos, deliveries): (Vec<i64>, Vec<i32>) = spans.unzip();
    let of = |column: fn(&crate::prepared::Prepared) -> Option<&[u8]>| -> Vec<Option<&[u8]>> {
        rows.iter().map(|row| column(row.prepared)).collect()
    };
    let statement = sqlx::query(sql::MESSAGES_ADD)
        .bind(rows.iter().map(|row| row.seq).collect::<Vec<i64>>())
        .bind(of(|prepared| Some(prepared.id.as_bytes())))
        .bind(day_of(turn.now))
        .bind(turn.now.as_micros())
        .bind(rows.iter().map(|row| row.sender.kind.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.sender.name.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.message.kind.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| small(form_code(row.message.form))).collect::<Vec<i16>>())
        .bind(rows.iter().map(|row| whole(row.prepared.size)).collect::<Vec<i64>>())
        .bind(of(|prepared| Some(&prepared.key)))
        .bind(of(|prepared| Some(&prepared.fingerprint)))
        .bind(of(|prepared| prepared.subject.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(of(|prepared| prepared.partition.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(of(|prepared| prepared.correlation.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(first_pos)
        .bind(deliveries)
        .bind(of(|prepared| prepared.remains.as_deref()))
        .bind(of(|prepared| Some(&prepared.attributes)))
        .bind(of(|prepared| Some(&prepared.salt)))
        .bind(of(|prepared| Some(&prepared.data)))
        .bind(context.dedup_before);
    // A key that another node's message has taken meanwhile is not put.
    exactly(connection, statement, rows.len(), "messages_add")
}

fn deliveries(connection: &mut Connection, rows: &[Row]) -> Result<(), CommitError> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = sqlx::query(sql::DELIVERIES_ADD)
        .bind(each(rows, |row| row.pos))
        .bind(each(rows, |row| row.id.as_bytes().as_slice()))
        .bind(each(rows, |row| row.message_seq))
        .bind(each(rows, |row| queue_id(row.queue)))
        .bind(each(rows, |row| row.lane.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(each(rows, |row| small(state_code(&row.delivery.state))))
        .bind(each(rows, |row| row.delivery.state.blocks_lane()))
        .bind(each(rows, due))
        .bind(each(rows, |row| reason_of(&row.delivery.state).map(|reason| reason.as_str())))
        .bind(each(rows, |row| row.delivery.expires_at.map(|at| at.as_micros())))
        .bind(each(rows, |row| row.delivery.born.as_micros()))
        .bind(each(rows, |row| micros(row.delivery.idle_at_birth)))
        .bind(each(rows, |row| row.changed_at.as_micros()))
        .bind(each(rows, |row| row.leaves.as_slice()))
        .bind(each(rows, |row| bucket_of(row.lane.as_ref(), &row.id)));
    exactly(connection, statement, rows.len(), "deliveries_add")
}

fn changes(connection: &mut Connection, touched: &[&Touched]) -> Result<(), CommitError> {
    if touched.is_empty() {
        return Ok(());
    }
    let rows: Vec<&Row> = touched.iter().map(|touched| &touched.now).collect();
    let rows = rows.as_slice();
    let was: Vec<&Row> = touched.iter().map(|touched| &touched.was).collect();
    let statement = bind_rows(sqlx::query(sql::DELIVERIES_CHANGE), rows)
        .bind(each_ref(&was, |row| small(state_code(&row.delivery.state))))
        .bind(each_ref(&was, token))
        .bind(each_ref(&was, |row| row.delivery.lease().map(|lease| lease.until.as_micros())))
        .bind(each_ref(&was, |row| queue_id(row.queue)))
        .bind(each_ref(&was, due));
    exactly(connection, statement, rows.len(), "deliveries_change")
}

/// Binds all columns of deliveries that can change, in the table's order, behind their positions.
pub(super) fn bind_rows<'q>(statement: Statement<'q>, rows: &[&Row]) -> Statement<'q> {
    let counts = |count: fn(&Row) -> u32| each_ref(rows, |row| i32::try_from(count(row)).unwrap_or(i32::MAX));
    statement
        .bind(each_ref(rows, |row| row.pos))
        .bind(each_ref(rows, |row| queue_id(row.queue)))
        .bind(each_ref(rows, |row| row.lane.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(each_ref(rows, |row| small(state_code(&row.delivery.state))))
        .bind(each_ref(rows, |row| row.delivery.state.blocks_lane()))
        .bind(each_ref(rows, due))
        .bind(each_ref(rows, token))
        .bind(each_ref(rows, |row| row.delivery.lease().map(|lease| lease.until.as_micros())))
        .bind(each_ref(rows, |row| row.delivery.lease().map(|lease| whole(lease.session))))
        .bind(each_ref(rows, |row| row.batch.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(each_ref(rows, |row| matches!(row.delivery.state, State::Sending { proof: Proof::Late, .. })))
        .bind(counts(|row| row.delivery.attempts))
        .bind(counts(|row| row.delivery.series))
        .bind(counts(|row| row.delivery.crashes))
        .bind(each_ref(rows, |row| row.delivery.doubt))
        .bind(each_ref(rows, |row| row.delivery.suspect))
        .bind(each_ref(rows, |row| row.delivery.replayed))
        .bind(each_ref(rows, |row| reason_of(&row.delivery.state).map(|reason| reason.as_str())))
        .bind(each_ref(rows, |row| row.delivery.born.as_micros()))
        .bind(each_ref(rows, |row| micros(row.delivery.idle_at_birth)))
        .bind(each_ref(rows, |row| row.changed_at.as_micros()))
        .bind(each_ref(rows, |row| {
            row.delivery.settled.as_ref().map(|(token, _)| token.as_bytes().as_slice())
        }))
        .bind(each_ref(rows, |row| row.delivery.settled.map(|(_, kind)| kind.as_str())))
        .bind(each_ref(rows, |row| row.leaves.as_slice()))
}

/// Brings what stands in the tables beside the deliveries in line with what has become of them.
fn standing(connection: &mut Connection, touched: &[&Touched]) -> Result<(), CommitError> {
    let rows = |pick: fn(&Touched) -> Option<&Row>| -> Vec<&Row> {
        touched.iter().filter_map(|touched| pick(touched)).collect()
    };
    let gone = rows(|touched| due(&touched.was).is_some().then_some(&touched.was));
    if !gone.is_empty() {
        let statement = sqlx::query(sql::READY_DROP)
            .bind(each_ref(&gone, |row| queue_id(row.queue)))
            .bind(each_ref(&gone, |row| bucket_of(row.lane.as_ref(), &row.id)))
            .bind(each_ref(&gone, due))
            .bind(each_ref(&gone, |row| row.pos));
        connection.execute(statement)?;
    }
    let come =
        rows(|touched| (touched.now.lane.is_none() && due(&touched.now).is_some()).then_some(&touched.now));
    if !come.is_empty() {
        let statement = sqlx::query(sql::READY_ADD)
            .bind(each_ref(&come, |row| queue_id(row.queue)))
            .bind(each_ref(&come, |row| bucket_of(row.lane.as_ref(), &row.id)))
            .bind(each_ref(&come, due))
            .bind(each_ref(&come, |row| row.pos))
            .bind(each_ref(&come, |row| row.delivery.suspect));
        exactly(connection, statement, come.len(), "ready_add")?;
    }
    in_lanes(connection, touched)?;
    stuck(connection, touched)?;
    let waiting = rows(|touched| {
        let back = !matches!(touched.was.delivery.state, State::Waiting { .. })
            && matches!(touched.now.delivery.state, State::Waiting { .. });
        (back && touched.now.delivery.expires_at.is_some()).then_some(&touched.now)
    });
    if !waiting.is_empty() {
        let statement = sqlx::query(sql::EXPIRY_ADD)
            .bind(each_ref(&waiting, |row| row.delivery.expires_at.map(|at| at.as_micros())))
            .bind(each_ref(&waiting, |row| row.pos));
        connection.execute(statement)?;
    }
    Ok(())
}

/// Where a delivery stands in a lane.
fn place_in_lane(row: &Row) -> Option<(i64, Index)> {
    row.lane.filter(|_| row.delivery.state.blocks_lane()).map(|lane| (row.queue, lane))
}

fn in_lanes(connection: &mut Connection, touched: &[&Touched]) -> Result<(), CommitError> {
    let changed = touched.iter().filter(|touched| place_in_lane(&touched.was) != place_in_lane(&touched.now));
    let (mut leave, mut enter) = (Vec::new(), Vec::new());
    for touched in changed {
        leave.extend(place_in_lane(&touched.was).is_some().then_some(&touched.was));
        enter.extend(place_in_lane(&touched.now).is_some().then_some(&touched.now));
    }
    for (name, sql, rows) in [("lane_leave", sql::LANE_LEAVE, leave), ("lane_enter", sql::LANE_ENTER, enter)]
    {
        if rows.is_empty() {
            continue;
        }
        let statement = sqlx::query(sql)
            .bind(each_ref(&rows, |row| queue_id(row.queue)))
            .bind(each_ref(&rows, |row| row.lane.as_ref().map(<[u8; 16]>::as_slice)))
            .bind(each_ref(&rows, |row| row.pos));
        exactly(connection, statement, rows.len(), name)?;
    }
    Ok(())
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

/// A lane that a turn has touched.
pub(super) struct Lane<'l> {
    pub(super) queue: i64,
    pub(super) name: &'l Index,
    /// As wide as its queue's window is now, and as it may have been.
    pub(super) width: u32,
    pub(super) widest: u32,
    pub(super) session: u64,
}

/// Brings what is ready in the touched lanes in line with who stands in them now: where this node owns the bucket. Elsewhere
/// the owner is told, in this very commit: it decides alone, so that two nodes never overlook each other's rows.
fn lanes(connection: &mut Connection, turn: &Turn<'_>, context: &Context<'_>) -> Result<(), CommitError> {
    let mut touched: Vec<&(i64, Index)> = turn.lanes.iter().collect();
    touched.sort_unstable();
    let is_owned = |(queue, lane): &&(i64, Index)| {
        context.owned.get(queue).is_some_and(|buckets| buckets.has(bucket_of_lane(lane)))
    };
    type Lanes<'t> = Vec<&'t (i64, Index)>;
    let (owned, others): (Lanes<'_>, Lanes<'_>) = touched.into_iter().partition(is_owned);
    if !others.is_empty() {
        let statement = sqlx::query(sql::LANES_CHANGED_ADD)
            .bind(others.iter().map(|(queue, _)| queue_id(*queue)).collect::<Vec<i32>>())
            .bind(others.iter().map(|(_, lane)| bucket_of_lane(lane)).collect::<Vec<i16>>())
            .bind(others.iter().map(|(_, lane)| lane.as_slice()).collect::<Vec<&[u8]>>());
        connection.execute(statement)?;
    }
    let lanes = owned.into_iter().map(|(queue, name)| {
        let of = turn.queue(*queue).ok();
        let width = of.map_or(1, |of| of.setup.policy.window.max(1));
        let session = of.map_or(0, |of| of.session);
        Lane { queue: *queue, name, width, widest: width.max(turn.width_before), session }
    });
    advance(connection, &lanes.collect::<Vec<_>>())
}

pub(super) fn advance(connection: &mut Connection, lanes: &[Lane<'_>]) -> Result<(), CommitError> {
    if lanes.is_empty() {
        return Ok(());
    }
    let queues: Vec<i32> = lanes.iter().map(|lane| queue_id(lane.queue)).collect();
    let names: Vec<&[u8]> = lanes.iter().map(|lane| lane.name.as_slice()).collect();
    let buckets: Vec<i16> = lanes.iter().map(|lane| bucket_of_lane(lane.name)).collect();
    if lanes.iter().any(|lane| lane.widest > 1) {
        let statement = sqlx::query(sql::LANES_CLEAR)
            .bind(queues.clone())
            .bind(names.clone())
            .bind(buckets.clone())
            .bind(lanes.iter().map(|lane| count(lane.widest)).collect::<Vec<i32>>());
        connection.execute(statement)?;
    }
    let statement = sqlx::query(sql::LANES_ADVANCE)
        .bind(queues)
        .bind(names)
        .bind(buckets)
        .bind(lanes.iter().map(|lane| count(lane.width)).collect::<Vec<i32>>())
        .bind(lanes.iter().map(|lane| whole(lane.session)).collect::<Vec<i64>>());
    connection.execute(statement).map(drop)
}

fn leaves(connection: &mut Connection, runs: &[Run], day: i32) -> Result<(), CommitError> {
    if runs.is_empty() {
        return Ok(());
    }
    let count = |run: &Run| run.leaves().map_or(0, |leaves| i32::try_from(leaves.count()).unwrap_or(0));
    let statement = sqlx::query(sql::LEAVES_ADD)
        .bind(runs.iter().map(|run| whole(run.first)).collect::<Vec<i64>>())
        .bind(day)
        .bind(runs.iter().map(count).collect::<Vec<i32>>())
        .bind(runs.iter().map(|run| run.bytes.as_slice()).collect::<Vec<&[u8]>>());
    exactly(connection, statement, runs.len(), "leaves_add")
}

/// Texts, evidence and replies, which go with the content of their message.
fn beside(connection: &mut Connection, turn: &Turn<'_>) -> Result<(), CommitError> {
    if !turn.details.is_empty() {
        let details = &turn.details;
        let statement = sqlx::query(sql::DETAILS_ADD)
            .bind(details.iter().map(|detail| day_of(detail.accepted_at)).collect::<Vec<i32>>())
            .bind(details.iter().map(|detail| detail.delivery).collect::<Vec<i64>>())
            .bind(details.iter().map(|detail| whole(detail.leaf)).collect::<Vec<i64>>())
            .bind(details.iter().map(|detail| detail.body.as_slice()).collect::<Vec<&[u8]>>());
        exactly(connection, statement, details.len(), "details_add")?;
    }
    if turn.replies.is_empty() {
        return Ok(());
    }
    let replies = &turn.replies;
    let statement = sqlx::query(sql::REPLIES_PUT)
        .bind(replies.iter().map(|reply| day_of(reply.accepted_at)).collect::<Vec<i32>>())
        .bind(replies.iter().map(|reply| reply.delivery).collect::<Vec<i64>>())
        .bind(replies.iter().map(|reply| reply.body.as_slice()).collect::<Vec<&[u8]>>());
    exactly(connection, statement, replies.len(), "replies_put")
}

fn states(connection: &mut Connection, turn: &Turn<'_>) -> Result<(), CommitError> {
    let (mut adapters, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let (mut gone_adapters, mut gone_keys) = (Vec::new(), Vec::new());
    for ((adapter, key), value) in &turn.states {
        match value {
            Some(value) => {
                adapters.push(adapter.as_str());
                keys.push(key.as_str());
                values.push(turn.vault.seal(value, Owner::State { adapter, key }));
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

fn queues(connection: &mut Connection, turn: &Turn<'_>, context: &Context<'_>) -> Result<(), CommitError> {
    let mut added = Vec::new();
    for queue in turn.queues.values() {
        let Some(before) = turn.memory.queues.get(&queue.id) else { continue };
        if before.control != queue.control || before.session != queue.session {
            change_queue(connection, queue, (context.version)(queue.id))?;
        }
        added.push((queue.id, queue.counts.since(&before.counts)));
    }
    added.retain(|(_, counts)| *counts != Counts::default());
    counts(connection, context.epoch, &added)
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

pub(super) fn counts(
    connection: &mut Connection,
    epoch: i32,
    added: &[(i64, Counts)],
) -> Result<(), CommitError> {
    if added.is_empty() {
        return Ok(());
    }
    let of = |count: fn(&Counts) -> i64| added.iter().map(|(_, counts)| count(counts)).collect::<Vec<i64>>();
    let statement = sqlx::query(sql::COUNTS_ADD)
        .bind(added.iter().map(|(queue, _)| queue_id(*queue)).collect::<Vec<i32>>())
        .bind(epoch)
        .bind(of(|counts| counts.waiting))
        .bind(of(|counts| counts.leased))
        .bind(of(|counts| counts.sending))
        .bind(of(|counts| counts.sent))
        .bind(of(|counts| counts.in_doubt))
        .bind(of(|counts| counts.held))
        .bind(of(|counts| counts.dead))
        .bind(of(|counts| counts.suspects))
        .bind(of(|counts| counts.held_lanes))
        .bind(of(|counts| counts.bytes));
    exactly(connection, statement, added.len(), "counts_add")
}

/// Notes which deliveries this commit has leased.
fn leases(
    connection: &mut Connection,
    touched: &[&Touched],
    context: &Context<'_>,
) -> Result<(), CommitError> {
    let leased = touched.iter().filter(|touched| {
        touched.now.delivery.lease().is_some() && token(&touched.was) != token(&touched.now)
    });
    let positions: Vec<i64> = leased.map(|touched| touched.now.pos).collect();
    if positions.is_empty() {
        return Ok(());
    }
    let statement = sqlx::query(sql::LEASES_ADD).bind(context.number).bind(context.epoch).bind(positions);
    exactly(connection, statement, 1, "leases_add")
}

pub(super) fn each<'r, T>(rows: &'r [Row], column: impl Fn(&'r Row) -> T) -> Vec<T> {
    rows.iter().map(column).collect()
}

pub(super) fn each_ref<'r, T>(rows: &[&'r Row], column: impl Fn(&'r Row) -> T) -> Vec<T> {
    rows.iter().map(|row| column(row)).collect()
}

pub(super) fn due(row: &Row) -> Option<i64> {
    row.delivery.state.due().map(Timestamp::as_micros)
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

fn count(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// A count as PostgreSQL keeps it.
pub(super) fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
