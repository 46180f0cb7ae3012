//! The one statement with which a turn writes its rows: what is added, what changes, its leaves and its counts. Each kind of rows is a
//! part of it, whose values are arrays, a column each.
//!
//! Rows are made of such arrays by `unnest` in a list of columns: as a table of several it would be put aside first, column by column.

use std::collections::{HashMap, HashSet};

use gatepost_core::delivery::Proof;
use gatepost_core::{MessageId, State};

use super::super::connection::{Connection, Statement};
use super::super::row::bucket_of;
use super::super::sql::store_time;
use super::keep::Days;
use super::lanes::Simple;
use super::script::{Script, Values};
use super::{
    Context, day_of, due, each, in_lanes, in_pieces, queue_id, settled_as, small, stands_in, token, whole,
};
use crate::backend::CommitError;
use crate::leaves::Run;
use crate::prepared::Prepared;
use crate::row::{Row, form_code, reason_of, state_code};
use crate::seal::Index;
use crate::writer::{Counts, Detail, MessageRow, Reply, Touched, Turn};

/// The node's right to write, which nobody takes away before the end. Its column `base` is added to all numbers of what is added.
const VALID: &str = concat!(
    "valid AS MATERIALIZED (SELECT ",
    store_time!(),
    " < n.until AS is_valid, 0::bigint AS base FROM node n, store s WHERE n.epoch = ? FOR KEY SHARE OF n)"
);
/// As [`VALID`], and draws the turn's number.
const VALID_AND_NUMBER: &str = concat!(
    "valid AS MATERIALIZED (SELECT t.now < n.until AS is_valid, nextval('turn') << 20 AS base FROM node n CROSS JOIN store s \
     CROSS JOIN LATERAL (SELECT ",
    store_time!(),
    " AS now) t WHERE n.epoch = ? FOR KEY SHARE OF n)"
);
/// Whether store time is about what the turn was decided at, by this host's clock. That follows the server's, so it has gone on by what
/// the way here takes, and hardly less: who starts after this node's end must not find something of a time to come.
const ON_TIME: &str = concat!(
    "on_time AS (SELECT 1 FROM store s WHERE ",
    store_time!(),
    " - ?::bigint BETWEEN -10000 AND 1000000)"
);
/// A number that was drawn before the turn, and that nobody has drawn another one since.
const NEWEST: &str = "newest AS MATERIALIZED (SELECT 1 FROM turn WHERE last_value = ?)";
const SESSIONS: &str = "sessions AS MATERIALIZED (SELECT q.id FROM (SELECT unnest(?::int[]) AS id, unnest(?::bigint[]) AS session) w \
     CROSS JOIN LATERAL (SELECT id FROM queue WHERE id = w.id AND session = w.session LIMIT 1 FOR SHARE) q)";

const MESSAGES: &str = "messages AS (INSERT INTO message (seq, id, day, accepted_at, sender_kind, sender, kind, form, size, dedup, \
     fingerprint, subject, key, correlation, barrier, first_pos, deliveries, remains) SELECT f.base + unnest(?::bigint[]), unnest(?::bytea[]), \
     ?::int, ?::bigint, unnest(?::text[]), unnest(?::text[]), unnest(?::text[]), unnest(?::smallint[]), unnest(?::bigint[]), \
     unnest(?::bytea[]), unnest(?::bytea[]), unnest(?::bytea[]), unnest(?::bytea[]), unnest(?::bytea[]), unnest(?::bytea[]), \
     f.base + unnest(?::bigint[]), unnest(?::int[]), unnest(?::bytea[]) FROM valid f)";
const PAYLOADS: &str = "payloads AS (INSERT INTO payload (day, seq, attributes, salt, data) SELECT ?::int, f.base + unnest(?::bigint[]), \
     unnest(?::bytea[]), unnest(?::bytea[]), unnest(?::bytea[]) FROM valid f)";
/// Messages of which so many pieces are there.
const CLAIMED: &str = "claimed AS (DELETE FROM piece_ahead a USING (SELECT unnest(?::bytea[]) AS message, unnest(?::int[]) AS pieces) n \
     WHERE a.message = n.message AND a.pieces = n.pieces AND a.day = ?::int AND a.epoch = ?::int RETURNING 1)";
/// Keys that have been looked for: one whose window has passed is used again, and one that another node's message has taken
/// meanwhile is not put.
const KEYS: &str = "keys AS (INSERT INTO dedup AS k (key, message, accepted_at) SELECT unnest(?::bytea[]), f.base + unnest(?::bigint[]), \
     ?::bigint FROM valid f ON CONFLICT (key) DO UPDATE SET message = excluded.message, accepted_at = excluded.accepted_at \
     WHERE k.accepted_at <= ? RETURNING 1)";
/// Keys that have not been looked for: one that is there, whatever its age, refuses the statement.
const NEW_KEYS: &str = "new_keys AS (INSERT INTO dedup (key, message, accepted_at) SELECT unnest(?::bytea[]), f.base + unnest(?::bigint[]), \
     ?::bigint FROM valid f)";
/// As they are accepted.
const ACCEPTED: &str = "accepted AS (INSERT INTO delivery (pos, id, message, queue, lane, barrier, state, blocks, due, late, attempts, series, \
     crashes, doubt, suspect, replayed, expires_at, born, idle_at_birth, changed_at, leaves, sender) SELECT f.base + unnest(?::bigint[]), \
     unnest(?::bytea[]), f.base + unnest(?::bigint[]), unnest(?::int[]), unnest(?::bytea[]), unnest(?::bytea[]), 0, true, t.now, false, 0, 0, 0, false, false, \
     false, unnest(?::bigint[]), t.now, unnest(?::bigint[]), t.now, int8send(f.base + unnest(?::bigint[])), \
     unnest(?::int[]) FROM valid f, (SELECT ?::bigint AS now) t)";
/// Of emitted events that no route takes.
const BORN_DEAD: &str = "born_dead AS (INSERT INTO delivery (pos, id, message, queue, state, blocks, late, attempts, series, crashes, doubt, \
     suspect, replayed, reason, expires_at, born, idle_at_birth, changed_at, leaves, sender) SELECT unnest(?::bigint[]), unnest(?::bytea[]), \
     unnest(?::bigint[]), unnest(?::int[]), 5, unnest(?::bool[]), false, 0, 0, 0, false, false, false, unnest(?::text[]), \
     unnest(?::bigint[]), t.now, unnest(?::bigint[]), t.now, unnest(?::bytea[]), unnest(?::int[]) FROM (SELECT ?::bigint AS now) t), \
     stuck AS (INSERT INTO stuck (state, pos, queue, held) SELECT 5, unnest(?::bigint[]), unnest(?::int[]), false)";
const IN_LANES: &str = "in_lanes AS (INSERT INTO lane (queue, lane, pos, home) SELECT unnest(?::int[]), unnest(?::bytea[]), \
     f.base + unnest(?::bigint[]), unnest(?::bytea[]) FROM valid f)";
const READY: &str = "ready_now AS (INSERT INTO ready (queue, bucket, due, pos, suspect) SELECT unnest(?::int[]), unnest(?::smallint[]), \
     ?::bigint, f.base + unnest(?::bigint[]), false FROM valid f)";
const EXPIRING: &str = "expiring AS (INSERT INTO expiry (at, pos) SELECT unnest(?::bigint[]), f.base + unnest(?::bigint[]) FROM valid f)";

/// What waited and is leased now, begun or not.
const LEASED: &str = "leased AS (UPDATE delivery d SET state = n.state, due = NULL, token = n.token, until = n.until, \
     session = n.session, batch = n.batch, changed_at = ?, leaves = n.leaves FROM (SELECT unnest(?::bigint[]) AS pos, \
     unnest(?::int[]) AS queue, unnest(?::bigint[]) AS due, unnest(?::smallint[]) AS state, unnest(?::bytea[]) AS token, \
     unnest(?::bigint[]) AS until, unnest(?::bigint[]) AS session, unnest(?::bytea[]) AS batch, unnest(?::bytea[]) AS leaves) n \
     WHERE d.pos = n.pos AND d.state = 0 AND d.queue = n.queue AND d.due = n.due RETURNING 1)";
/// What was leased and is delivered now. A lease's token is nobody else's.
const DELIVERED: &str = "delivered AS (UPDATE delivery d SET state = 4, blocks = false, token = NULL, until = NULL, session = NULL, \
     batch = NULL, attempts = n.attempts, changed_at = ?, settled_token = d.token, settled_as = n.settled_as, leaves = n.leaves \
     FROM (SELECT unnest(?::bigint[]) AS pos, unnest(?::smallint[]) AS state, unnest(?::bytea[]) AS token, unnest(?::int[]) AS attempts, \
     unnest(?::text[]) AS settled_as, unnest(?::bytea[]) AS leaves) n \
     WHERE d.pos = n.pos AND d.state = n.state AND d.token = n.token RETURNING 1)";
/// Whatever else has changed.
const CHANGED: &str = "changed AS (UPDATE delivery d SET queue = n.queue, lane = n.lane, state = n.state, blocks = n.blocks, \
     due = n.due, token = n.token, until = n.until, session = n.session, batch = n.batch, late = n.late, attempts = n.attempts, \
     series = n.series, crashes = n.crashes, doubt = n.doubt, suspect = n.suspect, replayed = n.replayed, reason = n.reason, \
     born = n.born, idle_at_birth = n.idle_at_birth, changed_at = n.changed_at, settled_token = n.settled_token, \
     settled_as = n.settled_as, leaves = n.leaves, barrier = n.barrier FROM (SELECT unnest(?::bigint[]) AS pos, unnest(?::int[]) AS queue, \
     unnest(?::bytea[]) AS lane, unnest(?::smallint[]) AS state, unnest(?::bool[]) AS blocks, unnest(?::bigint[]) AS due, \
     unnest(?::bytea[]) AS token, unnest(?::bigint[]) AS until, unnest(?::bigint[]) AS session, unnest(?::bytea[]) AS batch, \
     unnest(?::bool[]) AS late, unnest(?::int[]) AS attempts, unnest(?::int[]) AS series, unnest(?::int[]) AS crashes, \
     unnest(?::bool[]) AS doubt, unnest(?::bool[]) AS suspect, unnest(?::bool[]) AS replayed, unnest(?::text[]) AS reason, \
     unnest(?::bigint[]) AS born, unnest(?::bigint[]) AS idle_at_birth, unnest(?::bigint[]) AS changed_at, \
     unnest(?::bytea[]) AS settled_token, unnest(?::text[]) AS settled_as, unnest(?::bytea[]) AS leaves, unnest(?::bytea[]) AS barrier, \
     unnest(?::smallint[]) AS was_state, unnest(?::bytea[]) AS was_token, unnest(?::bigint[]) AS was_until, unnest(?::int[]) AS was_queue, \
     unnest(?::bigint[]) AS was_due, unnest(?::text[]) AS was_settled_as) n WHERE d.pos = n.pos AND d.state = n.was_state \
     AND d.token IS NOT DISTINCT FROM n.was_token AND d.until IS NOT DISTINCT FROM n.was_until AND d.queue = n.was_queue \
     AND d.due IS NOT DISTINCT FROM n.was_due AND d.settled_as IS NOT DISTINCT FROM n.was_settled_as RETURNING 1)";
const READY_NO_MORE: &str = "ready_no_more AS (DELETE FROM ready r USING (SELECT unnest(?::int[]) AS queue, unnest(?::smallint[]) AS bucket, \
     unnest(?::bigint[]) AS due, unnest(?::bigint[]) AS pos) n \
     WHERE r.queue = n.queue AND r.bucket = n.bucket AND r.due = n.due AND r.pos = n.pos)";
const IN_LANES_NO_MORE: &str = "in_lanes_no_more AS (DELETE FROM lane l USING (SELECT unnest(?::int[]) AS queue, unnest(?::bytea[]) AS lane, \
     unnest(?::bigint[]) AS pos) n WHERE l.queue = n.queue AND l.lane = n.lane AND l.pos = n.pos RETURNING 1)";
const LEASES: &str =
    "leases AS (INSERT INTO lease_group (id, epoch, pos) SELECT ?::bigint, ?::int, ?::bigint[])";
const LEASES_OVER: &str = "leases_over AS (DELETE FROM lease_group WHERE id = ANY(?::bigint[]))";

const DETAILS: &str = "details AS (INSERT INTO detail (day, delivery, leaf, body) SELECT unnest(?::int[]), unnest(?::bigint[]), \
     unnest(?::bigint[]), unnest(?::bytea[]))";
const REPLIES: &str = "replies AS (INSERT INTO reply (day, delivery, body) SELECT unnest(?::int[]), unnest(?::bigint[]), \
     unnest(?::bytea[]) ON CONFLICT (day, delivery) DO UPDATE SET body = excluded.body)";
const LEAVES: &str = "leaves AS (INSERT INTO leaf (day, number, bytes) SELECT ?::int, f.base + unnest(?::bigint[]), unnest(?::bytea[]) \
     FROM valid f), leaves_new AS (INSERT INTO leaf_new (number, day, count) SELECT f.base + unnest(?::bigint[]), ?::int, unnest(?::int[]) \
     FROM valid f)";
const COUNTS: &str = "counts AS (INSERT INTO queue_count AS q (queue, epoch, waiting, leased, sending, sent, in_doubt, held, dead, suspects, \
     held_lanes, bytes) SELECT unnest(?::int[]), ?::int, unnest(?::bigint[]), unnest(?::bigint[]), unnest(?::bigint[]), \
     unnest(?::bigint[]), unnest(?::bigint[]), unnest(?::bigint[]), unnest(?::bigint[]), unnest(?::bigint[]), unnest(?::bigint[]), \
     unnest(?::bigint[]) ON CONFLICT (queue, epoch) DO UPDATE SET waiting = q.waiting + excluded.waiting, \
     leased = q.leased + excluded.leased, sending = q.sending + excluded.sending, sent = q.sent + excluded.sent, \
     in_doubt = q.in_doubt + excluded.in_doubt, held = q.held + excluded.held, dead = q.dead + excluded.dead, \
     suspects = q.suspects + excluded.suspects, held_lanes = q.held_lanes + excluded.held_lanes, bytes = q.bytes + excluded.bytes)";

/// The statement with every part that there is, as who draws its number writes it and as who has drawn it does.
#[cfg(test)]
pub(in crate::postgres) fn whole_texts() -> [(&'static str, String); 2] {
    let added: &[(&str, &str)] = &[
        ("", MESSAGES),
        ("", PAYLOADS),
        ("claimed", CLAIMED),
        ("keys", KEYS),
        ("", NEW_KEYS),
        ("", ACCEPTED),
        ("", READY),
        ("", EXPIRING),
        ("", super::lanes::PARTS[0]),
        ("", super::lanes::PARTS[1]),
        ("", super::lanes::PARTS[2]),
        ("", LEAVES),
        ("", COUNTS),
    ];
    let others: &[(&str, &str)] = &[
        ("on_time", ON_TIME),
        ("newest", NEWEST),
        ("sessions", SESSIONS),
        ("", BORN_DEAD),
        ("", IN_LANES),
        ("leased", LEASED),
        ("delivered", DELIVERED),
        ("changed", CHANGED),
        ("", READY_NO_MORE),
        ("in_lanes_no_more", IN_LANES_NO_MORE),
        ("", LEASES),
        ("", LEASES_OVER),
        ("", DETAILS),
        ("", REPLIES),
    ];
    let text = |right, parts: &[&[(&'static str, &str)]]| {
        let mut script = Script::new(right);
        for (name, part) in parts.concat() {
            script.part(part);
            if !name.is_empty() {
                script.expect(name, 0, "");
            }
        }
        script.text()
    };
    [
        ("add", text(VALID_AND_NUMBER, &[&[("on_time", ON_TIME)], added])),
        ("write", text(VALID, &[added, others])),
    ]
}

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

/// Writes a turn's rows in the open transaction, or says that others have written what it was decided on. The turn's lanes are left to be
/// brought in line.
pub(super) fn write(
    connection: &mut Connection,
    turn: &Turn<'_>,
    touched: &[&Touched],
    counts: &[(i64, Counts)],
    days: &Days,
    context: &Context<'_>,
) -> Result<(), CommitError> {
    let lanes = Simple::default();
    let written = if touches_added(turn) {
        // A statement does not see what it has added itself.
        let adds = Parts { messages: &turn.messages, added: &turn.new_rows, ..Parts::default() };
        connection.execute(statement(turn, &adds, days, &lanes, context)?)?;
        let rest = Parts { messages: &[], added: &[], ..Parts::of(turn, touched, counts) };
        Some(statement(turn, &rest, days, &lanes, context)?)
    } else {
        all_of(turn, touched, counts, days, &lanes, context)?
    };
    written.map_or(Ok(()), |statement| connection.execute(statement).map(drop))
}

/// All of a turn's rows, and what `lanes` says of its lanes, in one statement, whose row has a number for another turn.
pub(super) fn all_of(
    turn: &Turn<'_>,
    touched: &[&Touched],
    counts: &[(i64, Counts)],
    days: &Days,
    lanes: &Simple<'_>,
    context: &Context<'_>,
) -> Result<Option<Statement<'static>>, CommitError> {
    let parts = Parts::of(turn, touched, counts);
    if parts.is_empty() && context.leases_over.is_empty() {
        return Ok(None);
    }
    statement(turn, &parts, days, lanes, context).map(Some)
}

/// The statement of a turn that counts from 0 and only adds messages.
pub(super) fn adding(
    turn: &Turn<'_>,
    counts: &[(i64, Counts)],
    context: &Context<'_>,
) -> Result<Statement<'static>, CommitError> {
    let mut script = Script::new(VALID_AND_NUMBER);
    script.values().bind(context.epoch);
    on_time(&mut script, turn);
    messages(&mut script, turn, &turn.messages, &turn.new_rows, context);
    added(&mut script, turn, &turn.new_rows);
    let lanes = Simple::of(turn, context.owned);
    let lanes =
        lanes.ok_or_else(|| CommitError::Refused("a turn that adds has touched a lane".to_owned()))?;
    lanes.write(&mut script, turn);
    leaves(&mut script, turn, turn.leaves.as_slice());
    count(&mut script, context, counts);
    script.finish()
}

/// Whether what is added is changed in the same turn.
pub(super) fn touches_added(turn: &Turn<'_>) -> bool {
    let added: HashSet<i64> = turn.new_rows.iter().map(|row| row.pos).collect();
    !added.is_empty() && turn.touched.values().any(|touched| added.contains(&touched.was.pos))
}

impl<'t> Parts<'t> {
    fn of(turn: &'t Turn<'_>, touched: &'t [&'t Touched], counts: &'t [(i64, Counts)]) -> Self {
        Self {
            messages: &turn.messages,
            added: &turn.new_rows,
            touched,
            details: &turn.details,
            replies: &turn.replies,
            leaves: turn.leaves.as_slice(),
            counts,
        }
    }

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

fn statement(
    turn: &Turn<'_>,
    parts: &Parts<'_>,
    days: &Days,
    lanes: &Simple<'_>,
    context: &Context<'_>,
) -> Result<Statement<'static>, CommitError> {
    let mut script = Script::new(VALID);
    script.values().bind(context.epoch);
    if context.by_own_clock {
        on_time(&mut script, turn);
    }
    if let Some(drawn) = context.newest_drawn {
        script.part(NEWEST).bind(drawn);
        script.expect("newest", 1, super::NOT_NEWEST);
    }
    sessions(&mut script, context.sessions);
    messages(&mut script, turn, parts.messages, parts.added, context);
    added(&mut script, turn, parts.added);
    changes(&mut script, turn, parts.touched);
    left(&mut script, parts.touched);
    lanes.write(&mut script, turn);
    leases(&mut script, parts.touched, context);
    beside(&mut script, parts, days);
    leaves(&mut script, turn, parts.leaves);
    count(&mut script, context, parts.counts);
    script.finish()
}

fn on_time(script: &mut Script, turn: &Turn<'_>) {
    script.part(ON_TIME).bind(turn.now.as_micros());
    script.expect("on_time", 1, "store time is another one");
}

fn sessions(script: &mut Script, sessions: &[(i64, u64)]) {
    if sessions.is_empty() {
        return;
    }
    let (queues, epochs): (Vec<i32>, Vec<i64>) =
        sessions.iter().map(|(queue, session)| (queue_id(*queue), whole(*session))).unzip();
    script.part(SESSIONS).bind(queues).bind(epochs);
    script.expect("sessions", sessions.len(), "an adapter has opened its next session elsewhere");
}

fn messages(
    script: &mut Script,
    turn: &Turn<'_>,
    rows: &[MessageRow<'_>],
    added: &[Row],
    context: &Context<'_>,
) {
    if rows.is_empty() {
        return;
    }
    let mut spans: HashMap<i64, (i64, i32)> = HashMap::with_capacity(rows.len());
    for row in added {
        spans.entry(row.message_seq).or_insert((row.pos, 0)).1 += 1;
    }
    let spans = rows.iter().map(|row| spans.get(&row.seq).copied().unwrap_or((0, 0)));
    let (first_pos, deliveries): (Vec<i64>, Vec<i32>) = spans.unzip();
    let of = |column: fn(&Prepared) -> Option<&[u8]>| -> Vec<Option<&[u8]>> {
        rows.iter().map(|row| column(row.prepared)).collect()
    };
    let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
    script
        .part(MESSAGES)
        .bind(&seqs)
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
        .bind(of(|prepared| prepared.barrier.as_ref().map(<[u8; 16]>::as_slice)))
        .bind(first_pos)
        .bind(deliveries)
        .bind(of(|prepared| prepared.remains.as_deref()));
    script
        .part(PAYLOADS)
        .bind(day_of(turn.now))
        .bind(&seqs)
        .bind(of(|prepared| Some(&prepared.attributes)))
        .bind(of(|prepared| Some(prepared.salt.stored())))
        .bind(of(|prepared| Some(&prepared.data)));
    let (in_pieces, pieces): (Vec<MessageId>, Vec<i32>) = in_pieces(rows).unzip();
    if !in_pieces.is_empty() {
        script
            .part(CLAIMED)
            .bind(in_pieces.iter().map(|message| message.as_bytes().as_slice()).collect::<Vec<&[u8]>>())
            .bind(pieces)
            .bind(day_of(turn.now))
            .bind(context.epoch);
        script.expect("claimed", in_pieces.len(), "a part of a payload is not there");
    }
    let (keys, key_seqs) = sorted_keys(rows);
    let now = turn.now.as_micros();
    if context.keys_are_known {
        script.part(KEYS).bind(keys).bind(key_seqs).bind(now).bind(context.dedup_before);
        script.expect("keys", rows.len(), "an idempotency key is taken");
    } else {
        script.part(NEW_KEYS).bind(keys).bind(key_seqs).bind(now);
    }
}

/// The messages' keys, each with its message's number: in one order for every node, since two that put the same keys would wait for
/// each other.
fn sorted_keys<'m>(messages: &[MessageRow<'m>]) -> (Vec<&'m [u8]>, Vec<i64>) {
    let mut keys: Vec<(&[u8], i64)> =
        messages.iter().map(|row| (row.prepared.key.as_slice(), row.seq)).collect();
    keys.sort_unstable();
    keys.into_iter().unzip()
}

fn added(script: &mut Script, turn: &Turn<'_>, rows: &[Row]) {
    let only = |pick: fn(&Row) -> bool| -> Vec<&Row> { rows.iter().filter(|row| pick(row)).collect() };
    let is_accepted = |row: &Row| matches!(row.delivery.state, State::Waiting { .. });
    let accepted = only(is_accepted);
    let expires_at = |row: &Row| row.delivery.expires_at.map(|at| at.as_micros());
    if !accepted.is_empty() {
        script
            .part(ACCEPTED)
            .bind(each(&accepted, |row| row.pos))
            .bind(each(&accepted, |row| row.id.as_bytes().as_slice()))
            .bind(each(&accepted, |row| row.message_seq))
            .bind(each(&accepted, |row| queue_id(row.queue)))
            .bind(each(&accepted, lane_of))
            .bind(each(&accepted, barrier_of))
            .bind(each(&accepted, expires_at))
            .bind(each(&accepted, |row| row.delivery.idle_at_birth.as_micros()))
            .bind(each(&accepted, |row| row.leaves.first_chunk().map(|leaf| i64::from_be_bytes(*leaf))))
            .bind(each(&accepted, sender_of))
            .bind(turn.now.as_micros());
    }
    let dead = only(|row| matches!(row.delivery.state, State::Dead { .. }));
    if !dead.is_empty() {
        script
            .part(BORN_DEAD)
            .bind(each(&dead, |row| row.pos))
            .bind(each(&dead, |row| row.id.as_bytes().as_slice()))
            .bind(each(&dead, |row| row.message_seq))
            .bind(each(&dead, |row| queue_id(row.queue)))
            .bind(each(&dead, |row| row.delivery.state.blocks_lane()))
            .bind(each(&dead, |row| reason_of(&row.delivery.state).map(|reason| reason.as_str())))
            .bind(each(&dead, expires_at))
            .bind(each(&dead, |row| row.delivery.idle_at_birth.as_micros()))
            .bind(each(&dead, |row| row.leaves.as_slice()))
            .bind(each(&dead, sender_of))
            .bind(turn.now.as_micros())
            .bind(each(&dead, |row| row.pos))
            .bind(each(&dead, |row| queue_id(row.queue)));
    }
    let lanes = in_lanes(rows.iter());
    if !lanes.is_empty() {
        script
            .part(IN_LANES)
            .bind(lanes.iter().map(|row| row.queue).collect::<Vec<i32>>())
            .bind(lanes.iter().map(|row| row.lane).collect::<Vec<&[u8]>>())
            .bind(lanes.iter().map(|row| row.pos).collect::<Vec<i64>>())
            .bind(lanes.iter().map(|row| row.home).collect::<Vec<Option<&[u8]>>>());
    }
    let ready: Vec<&Row> = accepted.iter().filter(|row| row.lane.is_none()).copied().collect();
    if !ready.is_empty() {
        script
            .part(READY)
            .bind(each(&ready, |row| queue_id(row.queue)))
            .bind(each(&ready, |row| bucket_of(row.lane.as_ref(), &row.id)))
            .bind(turn.now.as_micros())
            .bind(each(&ready, |row| row.pos));
    }
    let expiring: Vec<&Row> =
        accepted.iter().filter(|row| row.delivery.expires_at.is_some()).copied().collect();
    if !expiring.is_empty() {
        script.part(EXPIRING).bind(each(&expiring, expires_at)).bind(each(&expiring, |row| row.pos));
    }
}

/// How a delivery has changed.
enum Kind {
    Leased,
    Delivered,
    Other,
}

impl Kind {
    /// What nearly every lease and settle changes is written with fewer columns.
    fn of(touched: &Touched, turn: &Turn<'_>) -> Self {
        let (was, now) = (&touched.was, &touched.now);
        let rest = |row: &Row| {
            let delivery = &row.delivery;
            let counts =
                (delivery.series, delivery.crashes, delivery.doubt, delivery.suspect, delivery.replayed);
            (row.queue, row.lane, row.barrier, counts, delivery.born, delivery.idle_at_birth)
        };
        if rest(was) != rest(now) || now.changed_at != turn.now {
            return Self::Other;
        }
        let is_settled_with_token = || {
            let token = now.delivery.settled.map(|(token, _)| token);
            token.is_some() && token == was.delivery.lease().map(|lease| lease.token)
        };
        let same_attempts = was.delivery.attempts == now.delivery.attempts;
        match (&was.delivery.state, &now.delivery.state) {
            (State::Waiting { .. }, State::Leased { .. } | State::Sending { proof: Proof::Prompt, .. })
                if same_attempts && was.delivery.settled == now.delivery.settled =>
            {
                Self::Leased
            }
            (State::Leased { .. } | State::Sending { proof: Proof::Prompt, .. }, State::Delivered)
                if is_settled_with_token() =>
            {
                Self::Delivered
            }
            _ => Self::Other,
        }
    }
}

/// Deliveries of a kind, as they were and as they are now.
#[derive(Default)]
struct Changes<'t> {
    was: Vec<&'t Row>,
    now: Vec<&'t Row>,
}

/// What others may have changed meanwhile must stand there as it was.
fn changes(script: &mut Script, turn: &Turn<'_>, touched: &[&Touched]) {
    let (mut leased, mut delivered, mut others) =
        (Changes::default(), Changes::default(), Changes::default());
    for touched in touched {
        let changes = match Kind::of(touched, turn) {
            Kind::Leased => &mut leased,
            Kind::Delivered => &mut delivered,
            Kind::Other => &mut others,
        };
        changes.was.push(&touched.was);
        changes.now.push(&touched.now);
    }
    let until = |row: &Row| row.delivery.lease().map(|lease| lease.until.as_micros());
    const OTHER: &str = "a delivery is not what it was";
    let Changes { was, now } = leased;
    if !now.is_empty() {
        script
            .part(LEASED)
            .bind(turn.now.as_micros())
            .bind(each(&was, |row| row.pos))
            .bind(each(&was, |row| queue_id(row.queue)))
            .bind(each(&was, due))
            .bind(each(&now, |row| small(state_code(&row.delivery.state))))
            .bind(each(&now, token))
            .bind(each(&now, until))
            .bind(each(&now, |row| row.delivery.lease().map(|lease| whole(lease.session))))
            .bind(each(&now, |row| row.batch.as_ref().map(<[u8; 16]>::as_slice)))
            .bind(each(&now, |row| row.leaves.as_slice()));
        script.expect("leased", now.len(), OTHER);
    }
    let Changes { was, now } = delivered;
    if !now.is_empty() {
        script
            .part(DELIVERED)
            .bind(turn.now.as_micros())
            .bind(each(&was, |row| row.pos))
            .bind(each(&was, |row| small(state_code(&row.delivery.state))))
            .bind(each(&was, token))
            .bind(each(&now, |row| i32::try_from(row.delivery.attempts).unwrap_or(i32::MAX)))
            .bind(each(&now, settled_as))
            .bind(each(&now, |row| row.leaves.as_slice()));
        script.expect("delivered", now.len(), OTHER);
    }
    let Changes { was, now } = others;
    if !now.is_empty() {
        bind_rows(script.part(CHANGED), &now)
            .bind(each(&was, |row| small(state_code(&row.delivery.state))))
            .bind(each(&was, token))
            .bind(each(&was, until))
            .bind(each(&was, |row| queue_id(row.queue)))
            .bind(each(&was, due))
            // What another node was told of a lease changes nothing else of it.
            .bind(each(&was, settled_as));
        script.expect("changed", now.len(), OTHER);
    }
}

/// Binds all columns of deliveries that can change, in the table's order, behind their positions.
pub(in crate::postgres) fn bind_rows<'v>(values: &'v mut Values, rows: &[&Row]) -> &'v mut Values {
    let counts = |count: fn(&Row) -> u32| each(rows, |row| i32::try_from(count(row)).unwrap_or(i32::MAX));
    values
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
        .bind(each(rows, |row| row.delivery.idle_at_birth.as_micros()))
        .bind(each(rows, |row| row.changed_at.as_micros()))
        .bind(each(rows, |row| row.delivery.settled.as_ref().map(|(token, _)| token.as_bytes().as_slice())))
        .bind(each(rows, settled_as))
        .bind(each(rows, |row| row.leaves.as_slice()))
        .bind(each(rows, barrier_of))
}

/// What stood somewhere until now: ready, or in a lane.
fn left(script: &mut Script, touched: &[&Touched]) {
    let was = touched.iter().map(|touched| &touched.was);
    let ready: Vec<&Row> = was.filter(|was| due(was).is_some()).collect();
    if !ready.is_empty() {
        script
            .part(READY_NO_MORE)
            .bind(each(&ready, |row| queue_id(row.queue)))
            .bind(each(&ready, |row| bucket_of(row.lane.as_ref(), &row.id)))
            .bind(each(&ready, due))
            .bind(each(&ready, |row| row.pos));
    }
    let moved = touched.iter().filter(|touched| stands_in(&touched.was) != stands_in(&touched.now));
    let leave = in_lanes(moved.map(|touched| &touched.was));
    if !leave.is_empty() {
        script
            .part(IN_LANES_NO_MORE)
            .bind(leave.iter().map(|row| row.queue).collect::<Vec<i32>>())
            .bind(leave.iter().map(|row| row.lane).collect::<Vec<&[u8]>>())
            .bind(leave.iter().map(|row| row.pos).collect::<Vec<i64>>());
        script.expect("in_lanes_no_more", leave.len(), "a delivery stands in its lane no more");
    }
}

/// Notes which deliveries this commit has leased.
fn leases(script: &mut Script, touched: &[&Touched], context: &Context<'_>) {
    let leased = touched.iter().filter(|touched| {
        touched.now.delivery.lease().is_some() && token(&touched.was) != token(&touched.now)
    });
    let positions: Vec<i64> = leased.map(|touched| touched.now.pos).collect();
    if !positions.is_empty() {
        script.part(LEASES).bind(context.number).bind(context.epoch).bind(positions);
    }
    if !context.leases_over.is_empty() {
        script.part(LEASES_OVER).bind(context.leases_over);
    }
}

/// What goes with the content of its message, under whose day it is found.
fn beside(script: &mut Script, parts: &Parts<'_>, days: &Days) {
    let day = |delivery: i64, accepted_at| days.get(&delivery).copied().unwrap_or(day_of(accepted_at));
    let (details, replies) = (parts.details, parts.replies);
    if !details.is_empty() {
        script
            .part(DETAILS)
            .bind(details.iter().map(|detail| day(detail.delivery, detail.accepted_at)).collect::<Vec<i32>>())
            .bind(details.iter().map(|detail| detail.delivery).collect::<Vec<i64>>())
            .bind(details.iter().map(|detail| whole(detail.leaf)).collect::<Vec<i64>>())
            .bind(details.iter().map(|detail| detail.body.as_slice()).collect::<Vec<&[u8]>>());
    }
    if !replies.is_empty() {
        script
            .part(REPLIES)
            .bind(replies.iter().map(|reply| day(reply.delivery, reply.accepted_at)).collect::<Vec<i32>>())
            .bind(replies.iter().map(|reply| reply.delivery).collect::<Vec<i64>>())
            .bind(replies.iter().map(|reply| reply.body.as_slice()).collect::<Vec<&[u8]>>());
    }
}

fn leaves(script: &mut Script, turn: &Turn<'_>, runs: &[Run]) {
    if runs.is_empty() {
        return;
    }
    let count = |run: &Run| run.leaves().map_or(0, |leaves| i32::try_from(leaves.count()).unwrap_or(0));
    let first: Vec<i64> = runs.iter().map(|run| whole(run.first)).collect();
    script
        .part(LEAVES)
        .bind(day_of(turn.now))
        .bind(&first)
        .bind(runs.iter().map(|run| run.bytes.as_slice()).collect::<Vec<&[u8]>>())
        .bind(&first)
        .bind(day_of(turn.now))
        .bind(runs.iter().map(count).collect::<Vec<i32>>());
}

fn count(script: &mut Script, context: &Context<'_>, added: &[(i64, Counts)]) {
    if !added.is_empty() {
        let values = script.part(COUNTS).bind(queues_of(added)).bind(context.epoch);
        bind_counts(values, added);
    }
}

pub(in crate::postgres) fn queues_of(added: &[(i64, Counts)]) -> Vec<i32> {
    added.iter().map(|(queue, _)| queue_id(*queue)).collect()
}

/// In the table's order.
pub(in crate::postgres) fn bind_counts<'v>(
    values: &'v mut Values,
    added: &[(i64, Counts)],
) -> &'v mut Values {
    let of = |count: fn(&Counts) -> i64| added.iter().map(|(_, counts)| count(counts)).collect::<Vec<i64>>();
    values
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

pub(in crate::postgres) fn sender_of(row: &Row) -> Option<i32> {
    row.sender.map(queue_id)
}

fn lane_of(row: &Row) -> Option<&[u8]> {
    row.lane.as_ref().map(Index::as_slice)
}

fn barrier_of(row: &Row) -> Option<&[u8]> {
    row.barrier.as_ref().map(Index::as_slice)
}
