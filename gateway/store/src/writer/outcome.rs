//! What a turn leaves behind: what memory takes over from it, and what others are told once it has come about.

use std::collections::{HashMap, HashSet};

use gatepost_core::delivery::Proof;
use gatepost_core::{MessageId, State, Timestamp};

use super::Writer;
use super::memory::Queue;
use super::turn::Turn;
use crate::backend::{Backend, CommitError};
use crate::leaves::Runs;
use crate::ops::{QueueKind, QueueRow, SenderRow};
use crate::row::Row;
use crate::seal::{InPieces, Index};

/// What a turn leaves behind when its borrows have ended.
pub(crate) struct Outcome {
    /// Store time of the turn.
    at: Timestamp,
    rows: Vec<Row>,
    added: Vec<Row>,
    queues: Vec<Queue>,
    /// Queues of which something was leased, and to which nothing has happened that others wait for.
    taken_only: HashSet<i64>,
    traffic: HashMap<i64, (u64, u64)>,
    ended: Vec<MessageId>,
    leaves: Runs,
    /// Idempotency keys first used, with their messages.
    keys: Vec<(Index, i64)>,
    keys_moved: usize,
    /// Messages that have claimed the pieces of their payloads.
    in_pieces: Vec<MessageId>,
    first_seq: i64,
    next_seq: i64,
    next_pos: i64,
}

/// What others are told once a turn has come about.
pub(super) struct News {
    pub(super) at: Timestamp,
    pub(super) ops: usize,
    /// Deliveries accepted and ended, by queue.
    pub(super) traffic: Vec<(i64, (u64, u64))>,
    /// What operators see of the queues that it has changed.
    pub(super) rows: Vec<(i64, QueueRow)>,
    /// … and of senders.
    pub(super) senders: Vec<SenderRow>,
    /// Names of queues that may have something for those who wait.
    pub(super) changed: Vec<String>,
    pub(super) ended: Vec<MessageId>,
    pub(super) leaves: Runs,
    /// Messages that have claimed the pieces of their payloads.
    pub(super) in_pieces: Vec<MessageId>,
    /// Number of the first message that it may have added.
    pub(super) first_seq: i64,
}

impl<B: Backend> Writer<B> {
    /// Takes what has been committed into memory; whether that was anything.
    pub(super) fn install(&mut self, outcome: Option<Outcome>, ops: usize) -> bool {
        let Some(outcome) = outcome else { return false };
        let news = self.remember(outcome, ops);
        self.tell(news);
        true
    }

    /// Takes what a turn does into memory; what others are to be told of it.
    pub(super) fn remember(&mut self, outcome: Outcome, ops: usize) -> News {
        let now = self.now();
        self.memory.next_seq = outcome.next_seq;
        self.memory.next_pos = outcome.next_pos;
        if self.database.places_leaves() {
            self.memory.leaf_count += outcome.leaves.count();
        }
        self.memory.keys.committed(outcome.keys, outcome.keys_moved);
        // In this order: what was added may have been changed in the same turn.
        self.memory.added(outcome.added);
        for row in outcome.rows {
            self.memory.install(row);
        }
        let queues = outcome.queues.iter().filter(|queue| queue.setup.kind != QueueKind::Sender);
        let queues = queues.map(|queue| (queue.id, queue.setup.name.clone()));
        let queues: Vec<(i64, String)> = queues.collect();
        let senders = outcome.queues.iter().filter_map(Queue::sender_row).collect();
        self.memory.queues.extend(outcome.queues.into_iter().map(|queue| (queue.id, queue)));
        let row = |(id, _): &(i64, String)| Some((*id, Self::queue_row(&mut self.memory, *id, now)?));
        let rows = queues.iter().filter_map(row).collect();
        let changed = queues.into_iter().filter(|(id, _)| !outcome.taken_only.contains(id));
        News {
            at: outcome.at,
            ops,
            traffic: outcome.traffic.into_iter().collect(),
            rows,
            senders,
            changed: changed.map(|(_, name)| name).collect(),
            ended: outcome.ended,
            leaves: outcome.leaves,
            in_pieces: outcome.in_pieces,
            first_seq: outcome.first_seq,
        }
    }

    /// Tells others of a turn that has come about.
    pub(super) fn tell(&mut self, news: News) {
        let now = self.now();
        self.piecemeal.claimed(news.in_pieces);
        if self.database.places_leaves() {
            self.health.set_audit_size(self.memory.leaf_count);
        }
        let (mut accepted, mut settled) = (0, 0);
        for (queue, traffic) in news.traffic {
            accepted += traffic.0;
            settled += traffic.1;
            self.memory.rates.entry(queue).or_default().add(now, traffic.0, traffic.1);
        }
        let rows = news.rows.into_iter().map(|(id, mut row)| {
            let rates = self.memory.rates.entry(id).or_default().per_second(now);
            (row.stats.accepted_per_s, row.stats.settled_per_s) = rates;
            row
        });
        self.health.update_queues(rows);
        self.health.update_senders(news.senders);
        let micros = u64::try_from(now.since(news.at).as_micros()).unwrap_or(u64::MAX);
        self.health.committed(news.ops as u64, micros, accepted, settled);
        for name in &news.changed {
            self.hints.queue_changed(name);
        }
        if self.hints.messages_awaited() {
            for message in news.ended {
                self.hints.message_changed(message);
            }
        }
        if news.leaves.count() > 0 {
            self.leaves_handed.give(news.leaves.into_runs());
            self.leaves_added.notify_one();
        }
    }
}

/// Commits what a turn has decided and ends the turn; `None` when it changes nothing.
pub(crate) fn conclude(database: &mut impl Backend, turn: Turn<'_>) -> Result<Option<Outcome>, CommitError> {
    if turn.is_empty() {
        return Ok(None);
    }
    let base = database.commit(&turn)?;
    Ok(Some(Outcome::of(turn, base)))
}

impl Outcome {
    /// Makes the numbers of what was added larger by `base`.
    fn add_to_numbers(&mut self, base: i64) {
        if base != 0 {
            self.first_seq += base;
            self.added.iter_mut().for_each(|row| row.add_to_numbers(base));
            self.leaves.add_to_numbers(u64::try_from(base).unwrap_or(0));
            self.keys.iter_mut().for_each(|(_, seq)| *seq += base);
        }
    }

    /// What a turn leaves behind once it has been committed. What it has added has numbers that are larger by `base` than it has them.
    pub(super) fn of(turn: Turn<'_>, base: i64) -> Self {
        let taken_only = taken_only(&turn);
        let in_pieces = turn.messages.iter().filter(|row| InPieces::is(&row.prepared.data));
        let in_pieces = in_pieces.map(|row| row.prepared.id).collect();
        let mut outcome = Self {
            at: turn.now,
            rows: turn.touched.into_values().map(|touched| touched.now).collect(),
            added: turn.new_rows,
            queues: turn.queues.into_values().collect(),
            taken_only,
            traffic: turn.traffic,
            ended: turn.ended,
            leaves: turn.leaves,
            keys_moved: turn.memory.keys.slice(turn.keys_new.len()).keys.len(),
            in_pieces,
            first_seq: turn.memory.next_seq,
            keys: turn.keys_new.into_iter().map(|(key, new)| (key, new.seq)).collect(),
            next_seq: turn.next_seq,
            next_pos: turn.next_pos,
        };
        outcome.add_to_numbers(base);
        outcome
    }
}

/// Queues of which a turn has leased something, and in which it has made nothing ready.
fn taken_only(turn: &Turn<'_>) -> HashSet<i64> {
    let same = |queue: &&Queue| {
        let before = turn.memory.queues.get(&queue.id);
        let one_of_a_lane = queue.setup.policy.window <= 1;
        one_of_a_lane
            && before.is_some_and(|before| before.control == queue.control && before.session == queue.session)
    };
    let mut taken: HashSet<i64> = turn.queues.values().filter(same).map(|queue| queue.id).collect();
    for row in &turn.new_rows {
        taken.remove(&row.queue);
    }
    for touched in turn.touched.values() {
        let is_in_flight = matches!(
            touched.now.delivery.state,
            State::Leased { .. } | State::Sending { proof: Proof::Prompt, .. }
        );
        if !(is_in_flight && touched.was.queue == touched.now.queue) {
            taken.remove(&touched.was.queue);
            taken.remove(&touched.now.queue);
        }
    }
    taken
}
