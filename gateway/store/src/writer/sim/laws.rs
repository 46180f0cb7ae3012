//! What must hold after every commit, whatever it was: looked up in the tables, and reckoned anew from nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use gatepost_core::delivery::Proof;
use gatepost_core::{DeliveryId, State};
use rusqlite::types::Value;
use rusqlite::{Connection, params};

use super::machine::PAYLOAD_RETENTION;
use crate::leaves::Run;
use crate::ops::{QueueKind, SenderRow};
use crate::row::Row;
use crate::seal::{Index, Owner, Salt};
use crate::sql;
use crate::sqlite::connection::rows;
use crate::sqlite::{Sqlite, load_memory};
use crate::sqlite::{pieces, row};
use crate::writer::{Condition, Memory, Queue, Writer};

/// A law that did not hold, and what was seen.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Broken {
    pub(super) law: &'static str,
    pub(super) seen: String,
}

impl Broken {
    pub(super) fn new(law: &'static str, seen: impl fmt::Display) -> Self {
        Self { law, seen: seen.to_string() }
    }
}

pub(super) fn law(name: &'static str, holds: bool, seen: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { law: name, seen: seen() }) }
}

/// The tables at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Snap {
    /// Deliveries by position.
    pub(super) rows: BTreeMap<i64, Row>,
    /// The claim index: position and time.
    pub(super) ready: BTreeMap<i64, i64>,
    queues: Vec<Vec<Value>>,
    state: Vec<Vec<Value>>,
    /// Numbers of messages, idempotency keys, details, replies; and the newest message.
    sizes: Vec<Vec<Value>>,
    pub(super) leaf_count: u64,
    pub(super) purged: Vec<i64>,
    /// Deliveries with what a partner answered, by position.
    replies: Vec<i64>,
}

/// A message as the tables have it.
pub(super) struct Stored {
    pub(super) seq: i64,
    pub(super) id: [u8; 16],
    pub(super) accepted_at: i64,
    pub(super) key: Index,
    pub(super) fingerprint: Index,
    pub(super) data: Option<Vec<u8>>,
}

impl Snap {
    pub(super) fn take(connection: &Connection) -> Result<Self, Broken> {
        let fail =
            |error: crate::writer::CommitError| Broken::new("the tables can be read", format!("{error:?}"));
        let all = rows(connection, sql::DELIVERIES_ALL, [], row::load).map_err(fail)?;
        let ready =
            rows(connection, "SELECT pos, ready FROM delivery WHERE ready IS NOT NULL", [], |mut cells| {
                Ok((cells.take()?, cells.take()?))
            });
        let count = "SELECT leaf_count FROM store";
        let count: i64 = connection.query_row(count, [], |row| row.get(0)).unwrap_or(0);
        let purged = "SELECT seq FROM message WHERE data IS NULL";
        Ok(Self {
            rows: all.into_iter().map(|row| (row.pos, row)).collect(),
            ready: ready.map_err(fail)?.into_iter().collect(),
            queues: values(connection, "SELECT * FROM queue ORDER BY id"),
            state: values(connection, "SELECT adapter, key, value FROM adapter_state ORDER BY adapter, key"),
            sizes: values(
                connection,
                "SELECT (SELECT count(*) FROM message), (SELECT count(*) FROM dedup), (SELECT count(*) FROM detail), \
                (SELECT count(*) FROM reply), (SELECT max(seq) FROM message)",
            ),
            leaf_count: u64::try_from(count).unwrap_or(0),
            purged: rows(connection, purged, [], |mut cells| cells.take()).map_err(fail)?,
            replies: rows(connection, "SELECT delivery FROM reply", [], |mut cells| cells.take())
                .map_err(fail)?,
        })
    }

    pub(super) fn by_id(&self, id: DeliveryId) -> Option<&Row> {
        self.rows.values().find(|row| row.id == id)
    }

    /// An adapter's state under a key.
    pub(super) fn state(&self, adapter: &str, key: &str) -> Option<&Value> {
        let place = [Value::Text(adapter.to_owned()), Value::Text(key.to_owned())];
        self.state.iter().find(|row| row[..2] == place).map(|row| &row[2])
    }

    /// The deliveries that stand in each lane, from its head on.
    fn lanes(&self) -> HashMap<(i64, Index), Vec<&Row>> {
        let mut lanes: HashMap<(i64, Index), Vec<&Row>> = HashMap::new();
        for row in self.rows.values().filter(|row| row.delivery.state.blocks_lane()) {
            for lane in [row.lane, row.barrier].into_iter().flatten() {
                lanes.entry((row.queue, lane)).or_default().push(row);
            }
        }
        lanes
    }
}

fn values(connection: &Connection, sql: &'static str) -> Vec<Vec<Value>> {
    let mut statement = connection.prepare_cached(sql).expect("a statement");
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| (0..columns).map(|column| row.get(column)).collect());
    rows.expect("rows").collect::<Result<_, _>>().expect("values")
}

/// Leaves from `first` on that the tables hold.
pub(super) fn leaves(connection: &Connection, first: u64) -> Vec<(u64, Vec<u8>)> {
    let start = i64::try_from(Run::tile_start(first)).unwrap_or(i64::MAX);
    let runs = rows(connection, sql::LEAVES, params![start, i64::MAX], |mut cells| {
        Ok(Run { first: u64::try_from(cells.take::<i64>()?).unwrap_or(0), bytes: cells.take()? })
    });
    let mut leaves = Vec::new();
    for run in runs.expect("leaves") {
        let of_run = run.leaves().expect("a run can be taken apart");
        leaves
            .extend(of_run.filter(|(index, _)| *index >= first).map(|(index, leaf)| (index, leaf.to_vec())));
    }
    leaves
}

/// Messages behind `after`.
pub(super) fn messages(connection: &Connection, after: i64) -> Vec<Stored> {
    let sql = "SELECT seq, id, accepted_at, dedup, fingerprint, data, salt FROM message WHERE seq > ?1 ORDER BY seq";
    rows(connection, sql, params![after], |mut cells| {
        let mut stored = Stored {
            seq: cells.take()?,
            id: cells.take()?,
            accepted_at: cells.take()?,
            key: cells.take()?,
            fingerprint: cells.take()?,
            data: cells.take()?,
        };
        if let Some(salt) = cells.take::<Option<_>>()?.map(Salt::from_stored) {
            let owner = Owner::Data { message: &stored.id, salt: &salt };
            let whole = pieces::whole(connection, stored.data.take().unwrap_or_default(), owner);
            stored.data = whole.expect("pieces");
            assert!(stored.data.is_some(), "message {} has not all of its pieces", stored.seq);
        }
        Ok(stored)
    })
    .expect("messages")
}

/// Pieces are those of a message that is there with its content, or listed to be removed.
pub(super) fn pieces_are_somebodys(writer: &Writer<Sqlite>) -> Result<(), Broken> {
    const LAW: &str = "pieces belong to a message, or are to be removed";
    let connection = &writer.database.connection;
    let lost = "SELECT count(*) FROM piece p WHERE EXISTS (SELECT 1 FROM piece a WHERE a.message = p.message AND a.number = 0) \
        = EXISTS (SELECT 1 FROM message m WHERE m.id = p.message AND m.data IS NOT NULL)";
    let lost: i64 = connection.query_row(lost, [], |row| row.get(0)).expect("a count");
    law(LAW, lost == 0, || format!("{lost} pieces"))?;
    let ahead = pieces::ahead(connection).expect("messages");
    let listed = &writer.memory.unclaimed;
    law(LAW, ahead.iter().all(|message| listed.contains(message)), || format!("{ahead:?}, {listed:?}"))
}

/// What a writer keeps in memory is what its tables say.
pub(super) fn memory_is_the_tables(writer: &Writer<Sqlite>) -> Result<(), Broken> {
    const LAW: &str = "memory is what the tables say";
    let loaded = load_memory(&writer.database.connection, &writer.vault, writer.keys_in_memory)
        .map_err(|error| Broken::new("memory can be loaded", error))?;
    let kept = &writer.memory;
    let numbers =
        |memory: &Memory| (memory.leaf_count, memory.next_seq, memory.next_pos, memory.keys.keyed());
    law(LAW, numbers(kept) == numbers(&loaded), || format!("{:?}, {:?}", numbers(kept), numbers(&loaded)))?;
    law(LAW, kept.hot == loaded.hot, || format!("leased: {:?}, {:?}", kept.hot, loaded.hot))?;
    for fresh in kept.fresh.iter() {
        let row = rows(&writer.database.connection, sql::DELIVERY_BY_POS, params![fresh.pos], row::load);
        let row = row.map_err(|error| Broken::new("a row can be read", format!("{error:?}")))?.pop();
        law(LAW, row.as_ref() == Some(fresh), || format!("fresh: {fresh:?}, {row:?}"))?;
    }
    law(LAW, kept.by_name == loaded.by_name, || format!("{:?}, {:?}", kept.by_name, loaded.by_name))?;
    for (id, queue) in &loaded.queues {
        let ours = kept.queues.get(id);
        let same = ours.is_some_and(|ours| {
            // Which delivery is the probe is not in the tables.
            let mut control = ours.control;
            if let (Some(ours), Some(theirs)) = (&mut control.trip, queue.control.trip) {
                ours.probe = theirs.probe;
            }
            (control, ours.session, ours.counts, ours.setup.kind)
                == (queue.control, queue.session, queue.counts, queue.setup.kind)
        });
        law(LAW, same, || format!("{ours:?}, {queue:?}"))?;
        if let Some(probe) = ours.and_then(|ours| ours.control.trip?.probe) {
            let under_way = kept.hot.get(&probe).is_some_and(|row| row.delivery.state.in_flight());
            law("a probe is under way", under_way, || format!("{probe} of {ours:?}"))?;
        }
    }
    let alive = |memory: &Memory| -> HashSet<(Index, DeliveryId)> {
        let members =
            memory.batches.iter().flat_map(|(batch, members)| members.iter().map(|member| (*batch, *member)));
        members
            .filter(|(_, (id, token))| {
                let lease = memory.hot.get(id).and_then(|row| row.delivery.lease());
                lease.is_some_and(|lease| lease.token == *token)
            })
            .map(|(batch, (id, _))| (batch, id))
            .collect()
    };
    law(LAW, alive(kept) == alive(&loaded), || "the batches of leases".to_owned())?;
    let shown: HashMap<String, _> =
        writer.health.queue_rows().into_iter().map(|row| (row.name.clone(), row.stats)).collect();
    let senders: BTreeMap<String, SenderRow> =
        writer.health.senders().into_iter().map(|row| (row.sender.clone(), row)).collect();
    for queue in kept.queues.values() {
        if queue.setup.kind == QueueKind::Sender {
            let shown = senders.get(&queue.setup.name).cloned();
            law("what is shown of a sender is so", shown == queue.sender_row(), || {
                format!("{shown:?}, {queue:?}")
            })?;
            continue;
        }
        let counts = &queue.counts;
        let same = shown.get(&queue.setup.name).is_some_and(|stats| {
            let shown = [stats.waiting, stats.leased, stats.sending, stats.in_doubt, stats.dead, stats.held];
            let kept =
                [counts.waiting, counts.leased, counts.sending, counts.in_doubt, counts.dead, counts.held];
            shown.iter().zip(kept).all(|(shown, kept)| i64::try_from(*shown) == Ok(kept))
        });
        law("what is shown of a queue is so", same, || {
            format!("{:?}, {queue:?}", shown.get(&queue.setup.name))
        })?;
    }
    let working = writer.condition == Condition::Working;
    law("health says whether messages are accepted", writer.health.accepting().is_ok() == working, || {
        format!("{:?} while {:?}", writer.health.accepting(), writer.condition)
    })?;
    law("health knows the log's size", writer.health.audit_size() == kept.leaf_count, || {
        format!("{} of {}", writer.health.audit_size(), kept.leaf_count)
    })
}

/// The counts of a queue's row are those of its deliveries.
pub(super) fn counts_are_right(snap: &Snap, memory: &Memory) -> Result<(), Broken> {
    for queue in memory.queues.values() {
        let mut found = [0_i64; 10];
        for row in open_of(snap, queue).filter(|row| row.sender == Some(queue.id)) {
            found[0] += 1;
            found[9] += i64::try_from(row.size).unwrap_or(i64::MAX);
        }
        for row in snap.rows.values().filter(|row| row.queue == queue.id) {
            let in_lane = i64::from(row.lane.is_some());
            match row.delivery.state {
                State::Waiting { .. } => found[0] += 1,
                State::Leased { .. } => found[1] += 1,
                State::Sending { proof: Proof::Prompt, .. } => found[2] += 1,
                State::Sending { proof: Proof::Late, .. } => {
                    found[2] += 1;
                    found[3] += 1;
                }
                State::InDoubt { due: Some(_) } => found[4] += 1,
                State::InDoubt { due: None } => {
                    found[4] += 1;
                    found[5] += 1;
                    found[8] += in_lane;
                }
                State::Dead { holds_lane, .. } => {
                    found[6] += 1;
                    found[8] += if holds_lane { in_lane } else { 0 };
                }
                State::Delivered | State::Expired | State::Discarded => continue,
            }
            if !matches!(row.delivery.state, State::Dead { .. }) {
                found[7] += i64::from(row.delivery.suspect);
                found[9] += i64::try_from(row.size).unwrap_or(i64::MAX);
            }
        }
        let kept = &queue.counts;
        let kept = [
            kept.waiting,
            kept.leased,
            kept.sending,
            kept.sent,
            kept.in_doubt,
            kept.held,
            kept.dead,
            kept.suspects,
            kept.held_lanes,
            kept.bytes,
        ];
        law("counts are those of the rows", kept == found, || {
            format!("{}: {kept:?}, and the rows give {found:?}", queue.setup.name)
        })?;
    }
    Ok(())
}

/// The claim index is what one gets who reckons it anew.
pub(super) fn ready_is_right(snap: &Snap, memory: &Memory) -> Result<(), Broken> {
    let due = |row: &Row| row.delivery.state.due().map(gatepost_core::Timestamp::as_micros);
    let mut expected: BTreeMap<i64, i64> = BTreeMap::new();
    for row in snap.rows.values().filter(|row| row.lane.is_none()) {
        expected.extend(due(row).map(|due| (row.pos, due)));
    }
    let lanes = snap.lanes();
    let is_first = |row: &Row| {
        let of = |lane: Index| lanes.get(&(row.queue, lane)).and_then(|lane| lane.first());
        [row.lane, row.barrier]
            .into_iter()
            .flatten()
            .all(|lane| of(lane).is_some_and(|first| first.pos == row.pos))
    };
    for ((id, _), lane) in &lanes {
        let Some(queue) = memory.queues.get(id) else { continue };
        let before: Vec<_> = lane.iter().take_while(|row| row.delivery.lease().is_some()).collect();
        let Some(first) = lane.get(before.len()) else { continue };
        // Who stands in two lanes waits for all before it in both, and nobody goes with it; nor with one whose partner was away.
        if lane[..before.len()].iter().any(|row| row.barrier.is_some() || row.delivery.went_with_lane())
            || first.barrier.is_some() && !is_first(first)
        {
            continue;
        }
        let room = before.len() < queue.setup.policy.window.max(1) as usize;
        if room && before.iter().all(|row| is_ahead(row, queue.session)) {
            expected.extend(due(first).map(|due| (first.pos, due)));
        }
    }
    for (pos, ready) in &snap.ready {
        law("what is ready may be leased", expected.get(pos) == Some(ready), || {
            format!("delivery {pos} is ready at {ready}; {:?}", snap.rows.get(pos))
        })?;
    }
    for (pos, due) in &expected {
        law("what may be leased is ready", snap.ready.contains_key(pos), || {
            format!("delivery {pos} is due at {due}; {:?}", snap.rows.get(pos))
        })?;
    }
    Ok(())
}

/// Whether two deliveries have a lane in common, be it the first of one and the second of the other.
pub(super) fn meet(one: &Row, other: &Row) -> bool {
    let lanes = [one.lane, one.barrier].into_iter().flatten();
    one.queue == other.queue
        && lanes.into_iter().any(|lane| [other.lane, other.barrier].contains(&Some(lane)))
}

/// A session may be given what stands behind this one: it has it in hand, or some session has sent it.
pub(super) fn is_ahead(row: &Row, session: u64) -> bool {
    let sent = matches!(row.delivery.state, State::Sending { proof: Proof::Late, .. });
    sent || row.delivery.lease().is_some_and(|lease| lease.session == session)
}

/// Nobody overtakes, and a suspect is alone.
pub(super) fn lanes_are_kept(snap: &Snap) -> Result<(), Broken> {
    for lane in snap.lanes().values() {
        let mut free = None;
        let mut away = None;
        for row in lane {
            let in_hand = row.delivery.state.in_flight() && !row.delivery.has_been_begun();
            law("nobody stays in hand behind one whose partner is away", !in_hand || away.is_none(), || {
                format!("{row:?} stands behind {away:?}")
            })?;
            if row.delivery.lease().is_none() && row.delivery.went_with_lane() {
                away = away.or(Some(row));
            }
            match row.delivery.state {
                State::Leased { .. } => {
                    law("a lease that has not begun has none behind it that waits", free.is_none(), || {
                        format!("{row:?} stands behind {free:?}")
                    })?
                }
                State::Sending { .. } => {}
                State::Waiting { .. }
                | State::InDoubt { .. }
                | State::Dead { .. }
                | State::Delivered
                | State::Expired
                | State::Discarded => free = free.or(Some(row)),
            }
        }
    }
    let mut under_way: HashMap<i64, (usize, usize)> = HashMap::new();
    for row in snap.rows.values().filter(|row| row.delivery.state.in_flight()) {
        let (all, suspects) = under_way.entry(row.queue).or_default();
        *all += 1;
        *suspects += usize::from(row.delivery.suspect);
    }
    law(
        "a suspect is leased alone",
        under_way.values().all(|(all, suspects)| *suspects == 0 || *all == 1),
        || format!("{under_way:?}"),
    )
}

/// No lease of an adapter that the gateway starts outlives the gateway, but for the sent ones. In `lasting` queues they were given
/// to others, who may still hold them though this start has removed the queue.
pub(super) fn own_leases_are_over(
    snap: &Snap,
    memory: &Memory,
    lasting: &HashSet<i64>,
) -> Result<(), Broken> {
    let own = |row: &&Row| {
        let queue = memory.queues.get(&row.queue);
        queue.is_some_and(|queue| match queue.setup.kind {
            QueueKind::Adapter => true,
            QueueKind::Removed => !lasting.contains(&row.queue),
            QueueKind::ExternalAdapter | QueueKind::Inbox | QueueKind::Builtin | QueueKind::Sender => false,
        })
    };
    let leased = snap.rows.values().filter(own).find(|row| row.delivery.state.in_flight());
    law("a lease of the gateway's own adapter ends with the gateway", leased.is_none(), || {
        format!("{leased:?}")
    })
}

/// A queue with a limit has not been filled beyond it by what was accepted, nor by a sender with one. Of those who are `beyond` it an
/// outcome came with emits, which are taken all the same.
pub(super) fn backlog_is_kept(
    was: &Snap,
    now: &Snap,
    memory: &Memory,
    beyond: &HashSet<String>,
) -> Result<(), Broken> {
    for queue in memory.queues.values() {
        let Some(limit) = queue.setup.policy.max_backlog else { continue };
        let open = |snap: &Snap| open_of(snap, queue).count() as u64;
        let name = if queue.setup.kind == QueueKind::Sender {
            if beyond.contains(&queue.setup.name) {
                continue;
            }
            "a full sender hands in no more"
        } else {
            "a full queue takes no more"
        };
        law(name, open(now) <= limit.messages.max(open(was)), || {
            format!("{} open of {limit:?} in {}", open(now), queue.setup.name)
        })?;
    }
    Ok(())
}

/// Deliveries that have not ended: of a queue its own, of a sender what it has handed in.
fn open_of<'s>(snap: &'s Snap, queue: &Queue) -> impl Iterator<Item = &'s Row> {
    let (id, is_sender) = (queue.id, queue.setup.kind == QueueKind::Sender);
    let open = snap.rows.values().filter(|row| !row.delivery.state.is_terminal());
    open.filter(move |row| if is_sender { row.sender == Some(id) } else { row.queue == id })
}

/// What can never change has not, and what is purged was over long enough ago.
pub(super) fn the_past_stays(was: &Snap, now: &Snap, time: i64) -> Result<(), Broken> {
    for (pos, before) in &was.rows {
        let Some(after) = now.rows.get(pos) else {
            return Err(Broken::new("nothing disappears", format!("{before:?}")));
        };
        let fixed = |row: &Row| (row.id, row.message, row.message_seq, row.size, row.accepted_at);
        law("what was accepted stays so", fixed(before) == fixed(after), || {
            format!("{before:?}, {after:?}")
        })?;
        if matches!(before.delivery.state, State::Delivered | State::Expired | State::Discarded) {
            law("an end is one", before.delivery == after.delivery, || format!("{before:?}, {after:?}"))?;
        }
        let told = after.leaves.len() - before.leaves.len().min(after.leaves.len());
        let same =
            before.queue == after.queue && (before.lane, before.barrier) == (after.lane, after.barrier);
        let silent = told > 0
            || same && before.delivery.state == after.delivery.state
            || same
                && matches!(
                    (&before.delivery.state, &after.delivery.state),
                    (State::Waiting { .. } | State::InDoubt { .. }, State::Leased { .. })
                        | (State::Leased { .. }, State::Leased { .. } | State::Waiting { .. })
                        | (State::Waiting { .. }, State::Waiting { .. })
                        | (State::Sending { .. }, State::Sending { .. })
                );
        law("no change without its leaf", silent, || format!("{before:?}, {after:?}"))?;
    }
    for pos in &now.replies {
        let ended = now.rows.get(pos).is_some_and(|row| row.delivery.state.is_terminal());
        law("only what has ended has an answer", ended, || format!("{:?}", now.rows.get(pos)))?;
    }
    let retention = i64::try_from(PAYLOAD_RETENTION.as_micros()).unwrap_or(i64::MAX);
    for row in now.rows.values().filter(|row| now.purged.contains(&row.message_seq)) {
        let old = row.accepted_at.as_micros() <= time - retention;
        law("only what has ended is purged", row.delivery.state.is_terminal() && old, || format!("{row:?}"))?;
    }
    Ok(())
}
