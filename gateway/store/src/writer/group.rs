//! A group of operations: read what they need, decide them in one turn, commit, answer.

use std::collections::HashMap;
use std::time::Duration;

use super::accept::KnownKeys;
use super::candidates::Candidates;
use super::commit::{Commit, CommitError, classify};
use super::find::KeyLookup;
use super::lease::{Claim, Given};
use super::memory::Queue;
use super::refuse::{refuse_accepts, refuse_all, refused};
use super::turn::Turn;
use super::{Condition, SWEEP_COMMITS_MAX, SWEEP_DELIVERIES_MAX, Writer, unavailable};
use crate::ops::{
    AcceptError, Accepted, DeliveryRow, LeaseError, LeaseRequest, OperateError, SettleAnswer, SettleError,
    StoreError,
};
use crate::row::Row;
use crate::seal::Index;
use crate::sql;
use crate::store::{Claimed, ClaimedDelivery, Op};

/// Payload bytes after which a group is closed; a commit's heap must stay far below what SQLite takes as one value.
const GROUP_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What was decided of an operation; sent when the commit has succeeded.
enum Decided {
    Accept(Result<Vec<Accepted>, AcceptError>),
    Settle(Result<SettleAnswer, SettleError>),
    Lease(Result<Claimed, LeaseError>),
    Operate(Result<DeliveryRow, OperateError>),
    Done(Result<(), StoreError>),
    Session(Result<u64, StoreError>),
}

/// What a turn leaves behind when its borrows have ended.
pub(crate) struct Outcome {
    rows: Vec<Row>,
    queues: Vec<Queue>,
    traffic: HashMap<i64, (u64, u64)>,
    ended: Vec<gatepost_core::MessageId>,
    leaves: u64,
    /// Idempotency keys first used, with their messages.
    keys: Vec<(Index, i64)>,
    keys_moved: usize,
    next_seq: i64,
    next_pos: i64,
}

impl Writer {
    /// Runs operations in groups; one that changes what others depend on stands alone.
    pub(crate) async fn groups(&mut self, ops: Vec<Op>) {
        let mut group = Vec::with_capacity(ops.len());
        let mut bytes = 0;
        for op in ops {
            bytes += payload_bytes(&op);
            if bytes > GROUP_BYTES_MAX && !group.is_empty() {
                self.group(std::mem::take(&mut group)).await;
                bytes = payload_bytes(&op);
            }
            match op {
                Op::Configure { queues, answer } => {
                    self.group(std::mem::take(&mut group)).await;
                    let configured = self.configure(queues).await;
                    drop(answer.send(configured));
                }
                Op::AcceptedBefore { key, fingerprint, answer } => {
                    self.group(std::mem::take(&mut group)).await;
                    drop(answer.send(self.accepted_before(key, fingerprint).await));
                }
                Op::SessionOpen { .. } | Op::SessionEnd { .. } => {
                    self.group(std::mem::take(&mut group)).await;
                    self.group(vec![op]).await;
                }
                Op::Accept { .. }
                | Op::Lease(..)
                | Op::Settle { .. }
                | Op::Operate { .. }
                | Op::QueuePause { .. }
                | Op::QueueTrip { .. }
                | Op::Note(..) => group.push(op),
            }
        }
        self.group(group).await;
    }

    async fn group(&mut self, mut ops: Vec<Op>) {
        if ops.is_empty() {
            return;
        }
        if let Some(error) = unavailable(&self.condition) {
            return refuse_all(ops, &error);
        }
        if self.condition == Condition::Full {
            ops = refuse_accepts(ops);
        }
        match self.attempt(&ops).await {
            Ok(decided) => self.answer(ops, decided).await,
            Err(CommitError::Full) => {
                self.failed(&CommitError::Full);
                // The reserve is free now: everything but new messages goes on.
                let ops = refuse_accepts(ops);
                match self.attempt(&ops).await {
                    Ok(decided) => self.answer(ops, decided).await,
                    Err(error) => refuse_all(ops, &error.into()),
                }
            }
            Err(CommitError::Refused(_)) if ops.len() > 1 => {
                // One of them cannot be written; the others must not pay for it.
                for op in ops {
                    Box::pin(self.group(vec![op])).await;
                }
            }
            Err(error) => {
                self.failed(&error);
                refuse_all(ops, &error.into());
            }
        }
    }

    /// Decides and commits. An error means that nothing was written.
    async fn attempt(&mut self, ops: &[Op]) -> Result<Vec<Decided>, CommitError> {
        // Most keys are new, so the commit itself looks whether they are; only when one is not are they looked up before.
        match self.attempt_with(ops, KeyLookup::InCommit).await {
            Err(CommitError::Refused(_)) => self.attempt_with(ops, KeyLookup::Before).await,
            decided => decided,
        }
    }

    async fn attempt_with(&mut self, ops: &[Op], lookup: KeyLookup) -> Result<Vec<Decided>, CommitError> {
        let found = self.find(ops, lookup).await?;
        let mut candidates = self.candidates(ops).await?;
        let now = self.now();
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.loaded = found.rows;
        let mut decided: Vec<Option<Decided>> = Vec::with_capacity(ops.len());
        for op in ops {
            decided.push(decide(&mut turn, op, &found.keys).map_err(refused)?);
        }
        // Leases come last, so that they cannot give away what another operation of the group has just changed.
        for (position, op) in ops.iter().enumerate() {
            if let Op::Lease(request, _) = op {
                let candidates = candidates.remove(&position).unwrap_or_default();
                let lease = decide_lease(&mut turn, request, candidates).map_err(refused)?;
                decided[position] = Some(Decided::Lease(lease));
            }
        }
        let mut parts = turn_parts(turn);
        if let Some((commit, _)) = &mut parts {
            commit.check_keys = lookup == KeyLookup::InCommit;
        }
        self.finish(parts, ops.len()).await?;
        Ok(decided.into_iter().flatten().collect())
    }

    pub(super) fn install(&mut self, outcome: Outcome, ops: usize, took: Duration) {
        let now = self.now();
        self.memory.next_seq = outcome.next_seq;
        self.memory.next_pos = outcome.next_pos;
        self.memory.leaf_count += outcome.leaves;
        self.memory.keys.committed(outcome.keys, outcome.keys_moved);
        let (mut accepted, mut settled) = (0, 0);
        for (queue, traffic) in outcome.traffic {
            accepted += traffic.0;
            settled += traffic.1;
            self.memory.rates.entry(queue).or_default().add(now, traffic.0, traffic.1);
        }
        for row in outcome.rows {
            self.memory.install(row);
        }
        let mut changed = Vec::with_capacity(outcome.queues.len());
        for queue in outcome.queues {
            changed.push((queue.id, queue.setup.name.clone()));
            self.memory.queues.insert(queue.id, queue);
        }
        let rows: Vec<_> =
            changed.iter().filter_map(|(id, _)| Self::queue_row(&mut self.memory, *id, now)).collect();
        self.health.update_queues(rows.into_iter());
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.health.committed(ops as u64, micros, accepted, settled, self.memory.leaf_count);
        for (_, name) in &changed {
            self.hints.queue_changed(name);
        }
        if self.hints.messages_awaited() {
            for message in outcome.ended {
                self.hints.message_changed(message);
            }
        }
        if outcome.leaves > 0 {
            self.leaves_added.notify_one();
        }
    }

    async fn answer(&mut self, ops: Vec<Op>, decided: Vec<Decided>) {
        for (op, decided) in ops.into_iter().zip(decided) {
            match (op, decided) {
                (Op::Accept { answer, .. }, Decided::Accept(result)) => drop(answer.send(result)),
                (Op::Settle { answer, .. }, Decided::Settle(result)) => drop(answer.send(result)),
                (Op::Lease(_, answer), Decided::Lease(result)) => drop(answer.send(result)),
                (Op::Operate { answer, .. }, Decided::Operate(result)) => drop(answer.send(result)),
                (
                    Op::Note(_, answer)
                    | Op::QueuePause { answer, .. }
                    | Op::QueueTrip { answer, .. }
                    | Op::SessionEnd { answer, .. },
                    Decided::Done(result),
                ) => drop(answer.send(result)),
                (Op::SessionOpen { answer, .. }, Decided::Session(Err(error))) => {
                    drop(answer.send(Err(error)))
                }
                (Op::SessionOpen { adapter, answer, version }, Decided::Session(Ok(epoch))) => {
                    tracing::info!(adapter, epoch, version, "session opened");
                    let session = self.session(&adapter, epoch).await;
                    drop(answer.send(session));
                }
                // Unreachable by construction: `decide` mirrors the operation. Dropping the answer tells the caller.
                (_, _) => tracing::error!("an operation and its decision do not match"),
            }
        }
    }

    /// Ends what time has ended, as much of it as does not keep everybody else waiting.
    pub(crate) async fn sweep(&mut self) {
        for _ in 0..SWEEP_COMMITS_MAX {
            match self.sweep_once().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.failed(&error),
            }
        }
    }

    /// Whether there may be more to do.
    async fn sweep_once(&mut self) -> Result<bool, CommitError> {
        let now = self.now();
        let query =
            sqlx::query(sql::DELIVERIES_PAST_EXPIRY).bind(now.as_micros()).bind(SWEEP_DELIVERIES_MAX as i64);
        let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
        let rows: Vec<Row> =
            rows.iter().map(|row| Row::load(row).map_err(refused)).collect::<Result<_, _>>()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.sweep_leases(SWEEP_DELIVERIES_MAX).map_err(refused)?;
        turn.sweep_expiry(rows).map_err(refused)?;
        let parts = turn_parts(turn);
        self.finish(parts, 0).await
    }

    /// Commits a turn's parts and takes them into memory; whether there was anything to commit.
    pub(crate) async fn finish(
        &mut self,
        parts: Option<(Commit, Outcome)>,
        ops: usize,
    ) -> Result<bool, CommitError> {
        let Some((prepared, outcome)) = parts else { return Ok(false) };
        let started = self.now();
        self.commit(prepared).await?;
        let took = self.now().since(started);
        self.install(outcome, ops, took);
        Ok(true)
    }
}

/// Ends a turn's borrows; `None` when it changes nothing.
pub(crate) fn turn_parts(mut turn: Turn<'_>) -> Option<(Commit, Outcome)> {
    if turn.is_empty() {
        return None;
    }
    let prepared = turn.prepare();
    let outcome = Outcome {
        rows: turn.touched.into_values().map(|touched| touched.now).collect(),
        queues: turn.queues.into_values().collect(),
        traffic: turn.traffic,
        ended: turn.ended,
        leaves: turn.leaves.len() as u64,
        keys_moved: turn.memory.keys.slice(turn.dedups_new.len()).keys.len(),
        keys: turn.dedups_new.into_iter().map(|(key, new)| (key, new.seq)).collect(),
        next_seq: turn.next_seq,
        next_pos: turn.next_pos,
    };
    Some((prepared, outcome))
}

fn decide(turn: &mut Turn<'_>, op: &Op, known: &KnownKeys) -> Result<Option<Decided>, StoreError> {
    Ok(Some(match op {
        Op::Accept { accept, digests, .. } => match turn.accept(accept, digests, known) {
            // What is checked before anything changes refuses the one operation; anything else spoils the turn.
            Err(AcceptError::Store(error)) if !matches!(error, StoreError::NoQueue(_)) => return Err(error),
            result => Decided::Accept(result),
        },
        Op::Settle { settle, digests, .. } => match turn.settle(settle, digests, known) {
            Err(SettleError::Store(error)) if !matches!(error, StoreError::NoQueue(_)) => return Err(error),
            result => Decided::Settle(result),
        },
        Op::Operate { permit, delivery, verb, reason, .. } => {
            match turn.operate(permit.operator(), *delivery, *verb, reason) {
                Err(OperateError::Store(error)) => return Err(error),
                result => Decided::Operate(result),
            }
        }
        Op::QueuePause { permit, queue, pause, .. } => {
            Decided::Done(turn.queue_pause(permit.operator(), queue, *pause))
        }
        Op::QueueTrip { queue, trip, .. } => Decided::Done(turn.queue_trip(queue, *trip)),
        Op::Note(notes, _) => {
            for note in notes {
                turn.note(note)?;
            }
            Decided::Done(Ok(()))
        }
        Op::SessionOpen { adapter, .. } => match turn.session_open(adapter) {
            Err(error) if !matches!(error, StoreError::NoQueue(_)) => return Err(error),
            result => Decided::Session(result),
        },
        Op::SessionEnd { adapter, end, .. } => match turn.session_end(adapter, *end) {
            Err(error) if !matches!(error, StoreError::NoQueue(_)) => return Err(error),
            result => Decided::Done(result),
        },
        Op::Lease(..) | Op::Configure { .. } | Op::AcceptedBefore { .. } => return Ok(None),
    }))
}

fn decide_lease(
    turn: &mut Turn<'_>,
    request: &LeaseRequest,
    candidates: Candidates,
) -> Result<Result<Claimed, LeaseError>, StoreError> {
    if let Some(error) = candidates.error {
        return Ok(Err(error));
    }
    let now = turn.now;
    let given = match turn.repeated(request) {
        Some(given) => given,
        // The brakes may have changed in this group since the candidates were read.
        None => match turn.claim(request) {
            Err(error) => return Ok(Err(error)),
            Ok(Claim::Nothing { until }) => {
                return Ok(Ok(Claimed {
                    deliveries: Vec::new(),
                    next_due: until.map(|until| until.since(now)),
                }));
            }
            Ok(claim @ (Claim::SuspectOr(_) | Claim::Probe | Claim::Ready(_))) => {
                let most = candidates.claim.map_or(0, Claim::most);
                turn.give(request, claim, most, candidates.found)?
            }
        },
    };
    let next = candidates.next.map(gatepost_core::Timestamp::from_micros);
    Ok(Ok(Claimed {
        next_due: next.map(|next| next.since(now)),
        deliveries: given.into_iter().map(|given| claimed(given, request)).collect(),
    }))
}

fn claimed(given: Given, request: &LeaseRequest) -> ClaimedDelivery {
    let row = given.row;
    // Unwrap-free: a given row has a lease; without one the token below would be refused as stale anyway.
    let token =
        row.delivery.lease().map_or(gatepost_core::LeaseToken::from_bytes([0; 16]), |lease| lease.token);
    ClaimedDelivery {
        delivery: row.id,
        token,
        attempt: row.delivery.attempts + 1,
        doubt: row.delivery.doubt,
        replayed: row.delivery.replayed,
        lease: given.lease.min(request.lease),
        message_seq: row.message_seq,
    }
}

fn payload_bytes(op: &Op) -> usize {
    match op {
        Op::Accept { accept, .. } => accept.messages.iter().map(|message| message.data.len()).sum(),
        Op::Settle { settle, .. } => {
            let emitted: usize = settle.emit.iter().map(|emit| emit.message.data.len()).sum();
            let items = settle.items.iter().map(|item| {
                item.reply.as_ref().map_or(0, Vec::len) + item.evidence.as_ref().map_or(0, Vec::len)
            });
            let state = settle.state.iter().map(|(_, value)| value.as_ref().map_or(0, Vec::len));
            emitted + items.sum::<usize>() + state.sum::<usize>()
        }
        Op::Lease(..)
        | Op::SessionOpen { .. }
        | Op::SessionEnd { .. }
        | Op::Operate { .. }
        | Op::QueuePause { .. }
        | Op::QueueTrip { .. }
        | Op::Configure { .. }
        | Op::AcceptedBefore { .. }
        | Op::Note(..) => 0,
    }
}
