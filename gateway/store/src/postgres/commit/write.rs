//! The one statement with which a turn writes its rows: what is added, what changes, its leaves and its counts. Each call of the
//! server costs more than most of what it does, so there is one for all of it; a kind of rows of which there are none costs little.
//!
//! Its parameters are arrays, a column each, bound here in the statement's order.

use std::collections::{HashMap, HashSet};

use gatepost_core::State;
use gatepost_core::delivery::Proof;

use super::super::connection::{Connection, Statement};
use super::super::row::bucket_of;
use super::super::sql;
use super::keep::Days;
use super::{Context, day_of, due, each, place_in_lane, queue_id, small, token, whole};
use crate::backend::CommitError;
use crate::leaves::Run;
use crate::postgres::row::Cells;
use crate::row::{Row, form_code, micros, reason_of, state_code};
use crate::seal::Index;
use crate::writer::{Counts, Detail, MessageRow, Reply, Touched, Turn};

/// What is written at once.
#[derive(Default)]
struct Parts<'t> {
    messages: &'t [MessageRow<'t>],
    added: &'t [Row],
    touched: &'t [&'t Touched],
    details: &'t [Detail],
    replies: &'t [Reply],
    leaves: &'t [Run],
    counts: &'t [(i64, Counts)],
}

/// Writes a turn's rows, or says that others have written what it was decided on.
pub(super) fn write(
    connection: &mut Connection,
    turn: &Turn<'_>,
    touched: &[&Touched],
    counts: &[(i64, Counts)],
    days: &Days,
    context: &Context<'_>,
) -> Result<(), CommitError> {
    let leaves = turn.leaves.as_slice();
    let (details, replies) = (&turn.details, &turn.replies);
    let mut rest = Parts { touched, details, replies, leaves, counts, ..Parts::default() };
    let adds = Parts { messages: &turn.messages, added: &turn.new_rows, ..Parts::default() };
    let added: HashSet<i64> = turn.new_rows.iter().map(|row| row.pos).collect();
    if touched.iter().any(|touched| added.contains(&touched.was.pos)) {
        // A statement does not see what it has added itself.
        run(connection, turn, &adds, days, context)?;
    } else {
        rest = Parts { messages: adds.messages, added: adds.added, ..rest };
    }
    if rest.is_empty() { Ok(()) } else { run(connection, turn, &rest, days, context) }
}

impl Parts<'_> {
    fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.added.is_empty()
            && self.touched.is_empty()
            && self.details.is_empty()
            && self.replies.is_empty()
            && self.leaves.is_empty()
            && self.counts.is_empty()
    }
}

fn run(
    connection: &mut Connection,
    turn: &Turn<'_>,
    parts: &Parts<'_>,
    days: &Days,
    context: &Context<'_>,
) -> Result<(), CommitError> {
    let leave: Vec<&Row> = leaving(parts.touched);
    let statement = sqlx::query(sql::TURN_WRITE);
    let statement = bind_messages(statement, turn, parts, context);
    let statement = bind_added(statement, parts.added);
    let statement = bind_changes(statement, parts.touched);
    let statement = bind_left(statement, parts.touched, &leave);
    let statement = bind_leases(statement, parts.touched, context);
    let statement = bind_beside(statement, parts, days);
    let statement = bind_leaves(statement, parts.leaves);
    let statement = bind_counts(statement, parts.counts);
    let row = connection.row(statement)?;
    let row = row.ok_or_else(|| CommitError::Broken("a turn was written without an answer".to_owned()))?;
    let mut cells = Cells::new(&row);
    // A key that another node's message has taken meanwhile is not put; a delivery that it has changed does not change.
    let expected = [
        ("idempotency keys", parts.messages.len()),
        ("deliveries", parts.touched.len()),
        ("places in lanes", leave.len()),
    ];
    for (name, rows) in expected {
        let written: i64 = cells.take()?;
        if usize::try_from(written) != Ok(rows) {
            return Err(CommitError::Stale(format!("{name}: {written} rows instead of {rows}")));
        }
    }
    Ok(())
}

fn bind_messages<'q>(
    statement: Statement<'q>,
    turn: &'q Turn<'_>,
    parts: &Parts<'q>,
    context: &Context<'_>,
) -> Statement<'q> {
    let rows = parts.messages;
    let mut span = HashMap::with_capacity(rows.len());
    for row in parts.added {
        let (_, count) = span.entry(row.message_seq).or_insert((row.pos, 0_i32));
        *count += 1;
    }
    let spans = rows.iter().map(|row| span.get(&row.seq).copied().unwrap_or((0, 0)));
    let (first_pos, deliveries): (Vec<i64>, Vec<i32>) = spans.unzip();
    let of = |column: fn(&crate::prepared::Prepared) -> Option<&[u8]>| -> Vec<Option<&'q [u8]>> {
        rows.iter().map(|row| column(row.prepared)).collect()
    };
    // In one order for every node: two that put the same keys would wait for each other.
    let mut keys: Vec<(&'q [u8], i64)> =
        rows.iter().map(|row| (row.prepared.key.as_slice(), row.seq)).collect();
    keys.sort_unstable();
    let (keys, key_seqs): (Vec<&[u8]>, Vec<i64>) = keys.into_iter().unzip();
    statement
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
        .bind(keys)
        .bind(key_seqs)
        .bind(context.dedup_before)
}

fn bind_added<'q>(statement: Statement<'q>, rows: &'q [Row]) -> Statement<'q> {
    let only = |pick: fn(&Row) -> bool| -> Vec<&'q Row> { rows.iter().filter(|row| pick(row)).collect() };
    let all: Vec<&Row> = rows.iter().collect();
    let (lane, ready) = (
        only(|row| place_in_lane(row).is_some()),
        only(|row| row.lane.is_none() && row.delivery.state.due().is_some()),
    );
    let expiring =
        only(|row| matches!(row.delivery.state, State::Waiting { .. }) && row.delivery.expires_at.is_some());
    let dead = only(|row| matches!(row.delivery.state, State::Dead { .. }));
    statement
        .bind(each(&all, |row| row.pos))
        .bind(each(&all, |row| row.id.as_bytes().as_slice()))
        .bind(each(&all, |row| row.message_seq))
        .bind(each(&all, |row| queue_id(row.queue)))
        .bind(each(&all, lane_of))
        .bind(each(&all, |row| small(state_code(&row.delivery.state))))
        .bind(each(&all, |row| row.delivery.state.blocks_lane()))
        .bind(each(&all, due))
        .bind(each(&all, |row| reason_of(&row.delivery.state).map(|reason| reason.as_str())))
        .bind(each(&all, |row| row.delivery.expires_at.map(|at| at.as_micros())))
        .bind(each(&all, |row| row.delivery.born.as_micros()))
        .bind(each(&all, |row| micros(row.delivery.idle_at_birth)))
        .bind(each(&all, |row| row.changed_at.as_micros()))
        .bind(each(&all, |row| row.leaves.as_slice()))
        .bind(each(&lane, |row| queue_id(row.queue)))
        .bind(each(&lane, lane_of))
        .bind(each(&lane, |row| row.pos))
        .bind(each(&ready, |row| queue_id(row.queue)))
        .bind(each(&ready, |row| bucket_of(row.lane.as_ref(), &row.id)))
        .bind(each(&ready, due))
        .bind(each(&ready, |row| row.pos))
        .bind(each(&expiring, |row| row.delivery.expires_at.map(|at| at.as_micros())))
        .bind(each(&expiring, |row| row.pos))
        .bind(each(&dead, |row| row.pos))
        .bind(each(&dead, |row| queue_id(row.queue)))
}

fn bind_changes<'q>(statement: Statement<'q>, touched: &'q [&'q Touched]) -> Statement<'q> {
    let rows: Vec<&Row> = touched.iter().map(|touched| &touched.now).collect();
    let was: Vec<&Row> = touched.iter().map(|touched| &touched.was).collect();
    bind_rows(statement, &rows)
        .bind(each(&was, |row| small(state_code(&row.delivery.state))))
        .bind(each(&was, token))
        .bind(each(&was, |row| row.delivery.lease().map(|lease| lease.until.as_micros())))
        .bind(each(&was, |row| queue_id(row.queue)))
        .bind(each(&was, due))
}

/// Binds all columns of deliveries that can change, in the table's order, behind their positions.
pub(in crate::postgres) fn bind_rows<'q>(statement: Statement<'q>, rows: &[&'q Row]) -> Statement<'q> {
    let counts = |count: fn(&Row) -> u32| each(rows, |row| i32::try_from(count(row)).unwrap_or(i32::MAX));
    statement
        .bind(each(rows, |row| row.pos))
        .bind(each(rows, |row| queue_id(row.queue)))
        .bind(each(rows, lane_of))
        .bind(each(rows, |row| small(state_code(&row.delivery.state))))
        .bind(each(rows, |row| row.delivery.state.blocks_lane()))
        .bind(each(rows, due))
        .bind(each(rows, token))
        .bind(each(rows, |row| row.delivery.lease().map(|lease| lease.until.as_micros())))
        .bind(each(rows, |row| row.delivery.lease().map(|lease| whole(lease.session))))
        .bind(each(rows, |row| row.batch.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(each(rows, |row| matches!(row.delivery.state, State::Sending { proof: Proof::Late, .. })))
        .bind(counts(|row| row.delivery.attempts))
        .bind(counts(|row| row.delivery.series))
        .bind(counts(|row| row.delivery.crashes))
        .bind(each(rows, |row| row.delivery.doubt))
        .bind(each(rows, |row| row.delivery.suspect))
        .bind(each(rows, |row| row.delivery.replayed))
        .bind(each(rows, |row| reason_of(&row.delivery.state).map(|reason| reason.as_str())))
        .bind(each(rows, |row| row.delivery.born.as_micros()))
        .bind(each(rows, |row| micros(row.delivery.idle_at_birth)))
        .bind(each(rows, |row| row.changed_at.as_micros()))
        .bind(each(rows, |row| row.delivery.settled.as_ref().map(|(token, _)| token.as_bytes().as_slice())))
        .bind(each(rows, |row| row.delivery.settled.map(|(_, kind)| kind.as_str())))
        .bind(each(rows, |row| row.leaves.as_slice()))
}

/// What stood somewhere until now: ready, or in a lane.
fn bind_left<'q>(statement: Statement<'q>, touched: &'q [&'q Touched], leave: &[&'q Row]) -> Statement<'q> {
    let was = touched.iter().map(|touched| &touched.was);
    let ready: Vec<&Row> = was.filter(|was| due(was).is_some()).collect();
    statement
        .bind(each(&ready, |row| queue_id(row.queue)))
        .bind(each(&ready, |row| bucket_of(row.lane.as_ref(), &row.id)))
        .bind(each(&ready, due))
        .bind(each(&ready, |row| row.pos))
        .bind(each(leave, |row| queue_id(row.queue)))
        .bind(each(leave, lane_of))
        .bind(each(leave, |row| row.pos))
}

/// Deliveries that stand in their lane no more.
fn leaving<'q>(touched: &[&'q Touched]) -> Vec<&'q Row> {
    let moved = touched.iter().filter(|touched| place_in_lane(&touched.was) != place_in_lane(&touched.now));
    moved.map(|touched| &touched.was).filter(|was| place_in_lane(was).is_some()).collect()
}

/// Notes which deliveries this commit has leased.
fn bind_leases<'q>(statement: Statement<'q>, touched: &[&Touched], context: &Context<'_>) -> Statement<'q> {
    let leased = touched.iter().filter(|touched| {
        touched.now.delivery.lease().is_some() && token(&touched.was) != token(&touched.now)
    });
    let positions: Vec<i64> = leased.map(|touched| touched.now.pos).collect();
    statement.bind(context.number).bind(context.epoch).bind(positions)
}

/// What goes with the content of its message, under whose day it is found.
fn bind_beside<'q>(statement: Statement<'q>, parts: &Parts<'q>, days: &Days) -> Statement<'q> {
    let day = |delivery: i64, accepted_at| days.get(&delivery).copied().unwrap_or(day_of(accepted_at));
    let (details, replies) = (parts.details, parts.replies);
    statement
        .bind(details.iter().map(|detail| day(detail.delivery, detail.accepted_at)).collect::<Vec<i32>>())
        .bind(details.iter().map(|detail| detail.delivery).collect::<Vec<i64>>())
        .bind(details.iter().map(|detail| whole(detail.leaf)).collect::<Vec<i64>>())
        .bind(details.iter().map(|detail| detail.body.as_slice()).collect::<Vec<&[u8]>>())
        .bind(replies.iter().map(|reply| day(reply.delivery, reply.accepted_at)).collect::<Vec<i32>>())
        .bind(replies.iter().map(|reply| reply.delivery).collect::<Vec<i64>>())
        .bind(replies.iter().map(|reply| reply.body.as_slice()).collect::<Vec<&[u8]>>())
}

fn bind_leaves<'q>(statement: Statement<'q>, runs: &'q [Run]) -> Statement<'q> {
    let count = |run: &Run| run.leaves().map_or(0, |leaves| i32::try_from(leaves.count()).unwrap_or(0));
    statement
        .bind(runs.iter().map(|run| whole(run.first)).collect::<Vec<i64>>())
        .bind(runs.iter().map(|run| run.bytes.as_slice()).collect::<Vec<&[u8]>>())
        .bind(runs.iter().map(count).collect::<Vec<i32>>())
}

/// Behind their queues, in the table's order.
pub(in crate::postgres) fn bind_counts<'q>(
    statement: Statement<'q>,
    added: &[(i64, Counts)],
) -> Statement<'q> {
    let of = |count: fn(&Counts) -> i64| added.iter().map(|(_, counts)| count(counts)).collect::<Vec<i64>>();
    statement
        .bind(added.iter().map(|(queue, _)| queue_id(*queue)).collect::<Vec<i32>>())
        .bind(of(|counts| counts.waiting))
        .bind(of(|counts| counts.leased))
        .bind(of(|counts| counts.sending))
        .bind(of(|counts| counts.sent))
        .bind(of(|counts| counts.in_doubt))
        .bind(of(|counts| counts.held))
        .bind(of(|counts| counts.dead))
        .bind(of(|counts| counts.suspects))
        .bind(of(|counts| counts.held_lanes))
        .bind(of(|counts| counts.bytes))
}

fn lane_of(row: &Row) -> Option<&[u8]> {
    row.lane.as_ref().map(Index::as_slice)
}
