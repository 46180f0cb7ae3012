//! A group of operations: read what they need, decide them in one turn, commit, answer.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use gatepost_core::DeliveryId;
use sqlx::Row as _;

use super::accept::{KnownKey, KnownKeys, identity};
use super::commit::{Commit, CommitError, classify, commit};
use super::lease::{Claim, Given};
use super::memory::Queue;
use super::turn::Turn;
use super::{Condition, SWEEP_DELIVERIES_MAX, Writer, unavailable};
use crate::ops::{
    AcceptError, Accepted, AcceptedDelivery, DeliveryRow, LeaseError, LeaseRequest, OperateError,
    SettleAnswer, SettleError, StoreError,
};
use crate::row::{Row, bytes, get, state_name};
use crate::seal::Index;
use crate::sql;
use crate::store::{Claimed, ClaimedDelivery, Op};

/// Lane rows read to find the place of a windowed lane's next deliveries; bounds `window`.
const WINDOW_MAX: i64 = 4096;

/// What was decided of an operation; sent when the commit has succeeded.
enum Decided {
    Accept(Result<Vec<Accepted>, AcceptError>),
    Settle(Result<SettleAnswer, SettleError>),
    Lease(Result<Claimed, LeaseError>),
    Operate(Result<DeliveryRow, OperateError>),
    Done(Result<(), StoreError>),
    Session(u64),
}

/// What a turn leaves behind when its borrows have ended.
pub(crate) struct Outcome {
    rows: Vec<Row>,
    queues: Vec<Queue>,
    traffic: HashMap<i64, (u64, u64)>,
    ended: Vec<gatepost_core::MessageId>,
    leaves: u64,
    next_seq: i64,
    next_pos: i64,
}

/// What the reads before a turn found.
#[derive(Default)]
struct Found {
    rows: HashMap<DeliveryId, Row>,
    keys: KnownKeys,
}

impl Writer {
    /// Runs operations in groups; one that changes what others depend on stands alone.
    pub(crate) async fn groups(&mut self, ops: Vec<Op>) {
        let mut group = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::Configure { queues, answer } => {
                    self.group(std::mem::take(&mut group)).await;
                    let configured = self.configure(queues).await;
                    drop(answer.send(configured));
                }
                Op::SessionOpen { .. } | Op::SessionEnd { .. } => {
                    self.group(std::mem::take(&mut group)).await;
                    self.group(vec![op]).await;
                }
                Op::Accept(..)
                | Op::Lease(..)
                | Op::Settle(..)
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
            Err(error) => {
                self.failed(&error);
                refuse_all(ops, &error.into());
            }
        }
    }

    /// Decides and commits. An error means that nothing was written.
    async fn attempt(&mut self, ops: &[Op]) -> Result<Vec<Decided>, CommitError> {
        let found = self.find(ops).await?;
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
        let parts = turn_parts(turn);
        self.finish(parts, ops.len()).await?;
        Ok(decided.into_iter().flatten().collect())
    }

    fn install(&mut self, outcome: Outcome, ops: usize, took: Duration) {
        let now = self.now();
        self.memory.next_seq = outcome.next_seq;
        self.memory.next_pos = outcome.next_pos;
        self.memory.leaf_count += outcome.leaves;
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

    /// Reads the deliveries and keys that the group names and memory does not hold.
    async fn find(&mut self, ops: &[Op]) -> Result<Found, CommitError> {
        let mut ids: HashSet<DeliveryId> = HashSet::new();
        let mut keys: HashSet<Index> = HashSet::new();
        for op in ops {
            match op {
                Op::Settle(settle, _) => {
                    ids.extend(settle.items.iter().map(|item| item.delivery));
                    let emitted = settle.emit.iter().map(|emit| &emit.message);
                    keys.extend(emitted.map(|message| identity(&self.vault, &settle.consumer, message).key));
                }
                Op::Accept(accept, _) => {
                    let sender = accept.permit.sender();
                    keys.extend(
                        accept.messages.iter().map(|message| identity(&self.vault, sender, message).key),
                    );
                }
                Op::Operate { delivery, .. } => drop(ids.insert(*delivery)),
                Op::Lease(..)
                | Op::SessionOpen { .. }
                | Op::SessionEnd { .. }
                | Op::QueuePause { .. }
                | Op::QueueTrip { .. }
                | Op::Configure { .. }
                | Op::Note(..) => {}
            }
        }
        ids.retain(|id| !self.memory.hot.contains_key(id));
        let rows = self.load_deliveries(&ids).await?;
        let keys = self.load_keys(&keys).await?;
        Ok(Found { rows, keys })
    }

    async fn load_deliveries(
        &mut self,
        ids: &HashSet<DeliveryId>,
    ) -> Result<HashMap<DeliveryId, Row>, CommitError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let joined: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        let query = sqlx::query(sql::DELIVERIES_BY_ID).bind(joined).bind(ids.len() as i64);
        let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
        rows.iter().map(|row| Row::load(row).map(|row| (row.id, row)).map_err(refused)).collect()
    }

    async fn load_keys(&mut self, keys: &HashSet<Index>) -> Result<KnownKeys, CommitError> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let joined: Vec<u8> = keys.iter().flatten().copied().collect();
        let query = sqlx::query(sql::DEDUP_FIND).bind(joined).bind(keys.len() as i64);
        let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
        let now = self.now();
        let mut known = HashMap::with_capacity(rows.len());
        for row in rows {
            let seq: i64 = get(&row, "message").map_err(refused)?;
            let accepted_at =
                gatepost_core::Timestamp::from_micros(get(&row, "accepted_at").map_err(refused)?);
            if now.since(accepted_at) >= self.dedup_window {
                continue;
            }
            let key = KnownKey {
                fingerprint: bytes(&row, "fingerprint", seq).map_err(refused)?,
                message: gatepost_core::MessageId::from_bytes(bytes(&row, "id", seq).map_err(refused)?),
                accepted_at,
                deliveries: self.deliveries_of(seq).await?,
            };
            tracing::debug!(message = %key.message, age_s = now.since(key.accepted_at).as_secs(), "a known idempotency key");
            known.insert(bytes(&row, "key", seq).map_err(refused)?, key);
        }
        Ok(known)
    }

    /// The deliveries of a message that is handed in again.
    async fn deliveries_of(&mut self, seq: i64) -> Result<Vec<AcceptedDelivery>, CommitError> {
        let query = sqlx::query(sql::DELIVERIES_OF_MESSAGE).bind(seq);
        let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
        let describe = |row: &sqlx::sqlite::SqliteRow| -> Result<AcceptedDelivery, StoreError> {
            let queue: i64 = get(row, "queue")?;
            let name = self.memory.queues.get(&queue).map(|queue| queue.setup.name.clone());
            Ok(AcceptedDelivery {
                id: DeliveryId::from_bytes(bytes(row, "id", seq)?),
                destination: name.unwrap_or_default(),
                state: state_name(get(row, "state")?).unwrap_or("unknown"),
            })
        };
        rows.iter().map(|row| describe(row).map_err(refused)).collect()
    }

    /// Reads, for each lease of the group, what it may be given.
    async fn candidates(&mut self, ops: &[Op]) -> Result<HashMap<usize, Candidates>, CommitError> {
        let mut found = HashMap::new();
        for (position, op) in ops.iter().enumerate() {
            if let Op::Lease(request, _) = op {
                found.insert(position, self.candidates_of(request).await?);
            }
        }
        Ok(found)
    }

    async fn candidates_of(&mut self, request: &LeaseRequest) -> Result<Candidates, CommitError> {
        let now = self.now();
        let turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        let claim = match turn.claim(request) {
            Ok(claim) => claim,
            Err(error) => return Ok(Candidates { error: Some(error), ..Candidates::default() }),
        };
        if turn.repeated(request).is_some() {
            return Ok(Candidates { claim: Some(claim), ..Candidates::default() });
        }
        let Some(queue) =
            self.memory.queue(&request.queue).map(|queue| (queue.id, queue.setup.policy.window))
        else {
            return Ok(Candidates::default());
        };
        let (id, window) = queue;
        let now = now.as_micros();
        let (claim, rows) = match claim {
            Claim::Nothing { .. } => return Ok(Candidates { claim: Some(claim), ..Candidates::default() }),
            Claim::SuspectOr(max) => {
                let suspects = self.ready(sql::DELIVERIES_READY_SUSPECT, id, now, 1).await?;
                if suspects.is_empty() {
                    (Claim::Ready(max), self.ready(sql::DELIVERIES_READY, id, now, max).await?)
                } else {
                    (Claim::SuspectOr(1), suspects)
                }
            }
            Claim::Probe => (claim, self.ready(sql::DELIVERIES_READY, id, now, 1).await?),
            Claim::Ready(max) => (claim, self.ready(sql::DELIVERIES_READY, id, now, max).await?),
        };
        let rows = if window > 1 && matches!(claim, Claim::Ready(_)) {
            self.widen(request, rows, window).await?
        } else {
            rows
        };
        let next = if rows.is_empty() { self.ready_next(id, now).await? } else { None };
        Ok(Candidates { claim: Some(claim), rows, next, error: None })
    }

    async fn ready(
        &mut self,
        statement: &'static str,
        queue: i64,
        now: i64,
        max: u32,
    ) -> Result<Vec<Row>, CommitError> {
        let query = sqlx::query(statement).bind(queue).bind(now).bind(i64::from(max));
        let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
        rows.iter().map(|row| Row::load(row).map_err(refused)).collect()
    }

    /// Replaces the head of each windowed lane by the consecutive deliveries that may be leased with it.
    async fn widen(
        &mut self,
        request: &LeaseRequest,
        heads: Vec<Row>,
        window: u32,
    ) -> Result<Vec<Row>, CommitError> {
        let mut widened = Vec::with_capacity(heads.len());
        let mut lanes = HashSet::new();
        for head in heads {
            let Some(lane) = head.lane else {
                widened.push(head);
                continue;
            };
            if !lanes.insert(lane) {
                continue;
            }
            let query = sqlx::query(sql::DELIVERIES_OF_LANE)
                .bind(head.queue)
                .bind(lane.to_vec())
                .bind(0i64)
                .bind(i64::from(window).min(WINDOW_MAX));
            let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
            let rows: Vec<Row> =
                rows.iter().map(|row| Row::load(row).map_err(refused)).collect::<Result<_, _>>()?;
            let now = self.now();
            let turn = Turn::new(
                now,
                self.instance_epoch,
                &self.memory,
                &self.vault,
                &mut self.random,
                &self.gateway,
            );
            widened.extend(turn.next_of_window(request, &rows));
        }
        Ok(widened)
    }

    async fn ready_next(&mut self, queue: i64, now: i64) -> Result<Option<i64>, CommitError> {
        let query = sqlx::query(sql::READY_NEXT).bind(queue).bind(now);
        let row = query.fetch_optional(&mut self.connection).await.map_err(|error| classify(&error))?;
        row.map(|row| row.try_get(0).map_err(|error| CommitError::Refused(error.to_string()))).transpose()
    }

    async fn answer(&mut self, ops: Vec<Op>, decided: Vec<Decided>) {
        for (op, decided) in ops.into_iter().zip(decided) {
            match (op, decided) {
                (Op::Accept(_, answer), Decided::Accept(result)) => drop(answer.send(result)),
                (Op::Settle(_, answer), Decided::Settle(result)) => drop(answer.send(result)),
                (Op::Lease(_, answer), Decided::Lease(result)) => drop(answer.send(result)),
                (Op::Operate { answer, .. }, Decided::Operate(result)) => drop(answer.send(result)),
                (
                    Op::Note(_, answer)
                    | Op::QueuePause { answer, .. }
                    | Op::QueueTrip { answer, .. }
                    | Op::SessionEnd { answer, .. },
                    Decided::Done(result),
                ) => drop(answer.send(result)),
                (Op::SessionOpen { adapter, answer, version }, Decided::Session(epoch)) => {
                    tracing::info!(adapter, epoch, version, "session opened");
                    let session = self.session(&adapter, epoch).await;
                    drop(answer.send(session));
                }
                // Unreachable by construction: `decide` mirrors the operation. Dropping the answer tells the caller.
                (_, _) => tracing::error!("an operation and its decision do not match"),
            }
        }
    }

    /// Ends what time has ended.
    pub(crate) async fn sweep(&mut self) {
        loop {
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
        commit(&mut self.connection, prepared).await?;
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
        next_seq: turn.next_seq,
        next_pos: turn.next_pos,
    };
    Some((prepared, outcome))
}

#[derive(Default)]
struct Candidates {
    claim: Option<Claim>,
    rows: Vec<Row>,
    /// Store time of the next delivery that will be due.
    next: Option<i64>,
    error: Option<LeaseError>,
}

fn decide(turn: &mut Turn<'_>, op: &Op, known: &KnownKeys) -> Result<Option<Decided>, StoreError> {
    Ok(Some(match op {
        Op::Accept(accept, _) => match turn.accept(accept, known) {
            // What is checked before anything changes refuses the one operation; anything else spoils the turn.
            Err(AcceptError::Store(error)) if !matches!(error, StoreError::NoQueue(_)) => return Err(error),
            result => Decided::Accept(result),
        },
        Op::Settle(settle, _) => match turn.settle(settle, known) {
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
        Op::SessionOpen { adapter, .. } => Decided::Session(turn.session_open(adapter)?),
        Op::SessionEnd { adapter, end, .. } => {
            turn.session_end(adapter, *end)?;
            Decided::Done(Ok(()))
        }
        Op::Lease(..) | Op::Configure { .. } => return Ok(None),
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
            Ok(Claim::SuspectOr(_) | Claim::Probe | Claim::Ready(_)) => {
                let claim = candidates.claim.unwrap_or(Claim::Ready(request.max));
                turn.give(request, claim, candidates.rows)?
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

fn refuse_accepts(ops: Vec<Op>) -> Vec<Op> {
    let mut rest = Vec::with_capacity(ops.len());
    for op in ops {
        match op {
            Op::Accept(_, answer) => drop(answer.send(Err(StoreError::Full.into()))),
            other => rest.push(other),
        }
    }
    rest
}

fn refuse_all(ops: Vec<Op>, error: &StoreError) {
    for op in ops {
        let error = error.clone();
        match op {
            Op::Accept(_, answer) => drop(answer.send(Err(error.into()))),
            Op::Lease(_, answer) => drop(answer.send(Err(error.into()))),
            Op::Settle(_, answer) => drop(answer.send(Err(error.into()))),
            Op::SessionOpen { answer, .. } => drop(answer.send(Err(error))),
            Op::Operate { answer, .. } => drop(answer.send(Err(error.into()))),
            Op::SessionEnd { answer, .. }
            | Op::QueuePause { answer, .. }
            | Op::QueueTrip { answer, .. }
            | Op::Configure { answer, .. }
            | Op::Note(_, answer) => drop(answer.send(Err(error))),
        }
    }
}

fn refused(error: StoreError) -> CommitError {
    match error {
        StoreError::Full => CommitError::Full,
        other => CommitError::Refused(other.to_string()),
    }
}
