//! A group of operations: read what they need, decide them in one turn, commit, answer.

use std::collections::BTreeSet;

use gatepost_core::message::NewMessage;
use gatepost_core::principal::ActorKind;

use super::accept::{KnownKeys, Ordered, ordered_by};
use super::candidates::Candidates;
use super::cold;
use super::lease::{Claim, Given};
use super::needs::{Holds, Needs};
use super::outcome::{News, Outcome, conclude};
use super::piecemeal::Step;
use super::refuse::{refuse_accepts, refuse_all};
use super::turn::Turn;
use super::{Condition, Reported, SWEEP_COMMITS_MAX, SWEEP_DELIVERIES_MAX, Writer, unavailable};
use crate::backend::{Adds, Backend, CommitError, Need, Sent};
use crate::call::{Claimed, ClaimedDelivery, Op};
use crate::ops::{
    Accept, AcceptError, Accepted, AdapterRole, DeliveryRow, LeaseError, LeaseRequest, OperateError,
    Sessions, SettleAnswer, SettleError, StoreError,
};
use crate::prepared::Prepared;
use crate::recent::RecentMessage;
use crate::seal::InPieces;

/// Payload bytes after which a group is closed, so that nobody waits long for another's bulk.
pub(super) const GROUP_BYTES_MAX: usize = 16 * 1024 * 1024;

/// An operation of more bytes takes so long to decide that what is under way has to be brought on meanwhile.
const PUSH_BYTES: usize = 16 * 1024;

/// How often a group is decided anew because others have written meanwhile, before its operations stand alone.
pub(super) const STALE_ATTEMPTS_MAX: u32 = 3;

/// What was decided of an operation; sent when the commit has succeeded.
pub(super) enum Decided {
    Accept(Result<Vec<Accepted>, AcceptError>),
    Settle(Result<SettleAnswer, SettleError>),
    Lease(Result<Claimed, LeaseError>),
    Operate(Result<DeliveryRow, OperateError>),
    Done(Result<(), StoreError>),
    Session(Result<u64, StoreError>),
}

/// Operations that were decided, and what has become of their turn.
pub(super) struct Attempted {
    pub(super) decided: Vec<Decided>,
    pub(super) fate: Fate,
}

pub(super) enum Fate {
    /// There was nothing to write.
    Nothing,
    Committed(News),
    UnderWay(News),
}

impl<B: Backend> Writer<B> {
    /// Runs operations in groups; one that changes what others depend on stands alone.
    pub(crate) fn groups(&mut self, ops: Vec<Op>) {
        let mut group = Vec::with_capacity(ops.len());
        let mut bytes = 0;
        for op in ops {
            bytes += payload_bytes(&op);
            if bytes > GROUP_BYTES_MAX && !group.is_empty() {
                self.group(std::mem::take(&mut group));
                bytes = payload_bytes(&op);
            }
            match op {
                Op::Configure { queues, answer } => {
                    self.group(std::mem::take(&mut group));
                    self.settle_under_way();
                    let configured = self.configure(queues);
                    drop(answer.send(configured));
                }
                Op::AcceptedBefore { key, fingerprint, answer } => {
                    self.group(std::mem::take(&mut group));
                    self.settle_under_way();
                    drop(answer.send(self.accepted_before(key, fingerprint)));
                }
                Op::Move { step, answer } => {
                    self.group(std::mem::take(&mut group));
                    self.settle_under_way();
                    let moved = self.rehome(&step);
                    drop(answer.send(moved));
                }
                Op::Claim { adapter, answer } => {
                    self.group(std::mem::take(&mut group));
                    self.settle_under_way();
                    drop(answer.send(self.claim(&adapter)));
                }
                Op::Rewrap { by, answer } => {
                    self.group(std::mem::take(&mut group));
                    self.settle_under_way();
                    drop(answer.send(self.rewrap(&by)));
                }
                Op::SealKeyOldest { answer } => {
                    self.group(std::mem::take(&mut group));
                    self.settle_under_way();
                    drop(answer.send(self.oldest_seal_key()));
                }
                Op::Erase { step, answer } => {
                    self.group(std::mem::take(&mut group));
                    self.settle_under_way();
                    drop(answer.send(self.erase(&step)));
                }
                Op::Yield { adapter, answer } => {
                    self.group(std::mem::take(&mut group));
                    self.settle_under_way();
                    let given_up = self.database.give_up(&adapter);
                    drop(answer.send(given_up.map_err(StoreError::from)));
                }
                Op::Damaged { leased, answer } => {
                    self.group(std::mem::take(&mut group));
                    self.settle_under_way();
                    drop(answer.send(self.end_damaged(&leased)));
                }
                Op::SessionOpen { .. } | Op::SessionEnd { .. } => {
                    self.group(std::mem::take(&mut group));
                    self.settle_under_way();
                    self.group(vec![op]);
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
        self.group(group);
    }

    fn claim(&mut self, adapter: &str) -> Result<Option<AdapterRole>, StoreError> {
        if let Some(error) = unavailable(&self.condition) {
            return Err(error);
        }
        match self.database.claim(adapter) {
            Ok(has_it) => {
                self.health.set_right(self.instance_epoch, self.database.right_until());
                Ok(has_it.then_some(AdapterRole { node: self.instance_epoch }))
            }
            Err(error) => {
                self.failed(&error);
                Err(error.into())
            }
        }
    }

    pub(super) fn group(&mut self, mut ops: Vec<Op>) {
        if ops.is_empty() {
            return;
        }
        if self.under_way.is_some() {
            match self.attempt_either(&ops) {
                Ok(attempted) => return self.take(ops, attempted),
                // It is decided anew once it is known what has become of that.
                Err(_) => self.settle_under_way(),
            }
        }
        if let Some(error) = unavailable(&self.condition) {
            return refuse_all(ops, &error);
        }
        if self.condition == Condition::Full {
            ops = refuse_accepts(ops);
        }
        match self.attempt_along(&ops) {
            Ok(attempted) => self.take(ops, attempted),
            Err(CommitError::Full) => {
                self.failed(&CommitError::Full);
                // The reserve is free now: everything but new messages goes on.
                let ops = refuse_accepts(ops);
                match self.attempt_anew(&ops) {
                    Ok(attempted) => self.take(ops, attempted),
                    Err(error) => refuse_all(ops, &error.into()),
                }
            }
            Err(CommitError::Refused(_) | CommitError::Stale(_)) if ops.len() > 1 => {
                // One of them cannot be written; the others must not pay for it.
                for op in ops {
                    self.group(vec![op]);
                }
            }
            Err(error) => {
                self.failed(&error);
                refuse_all(ops, &error.into());
            }
        }
    }

    /// As [`Writer::attempt_anew`]. Pieces of what is large ride along, and nobody pays for it if they cannot.
    fn attempt_along(&mut self, ops: &[Op]) -> Result<Attempted, CommitError> {
        let rides = self.piecemeal.along().is_some();
        let attempted = self.attempt_anew(ops);
        if rides && attempted.is_err() {
            self.piecemeal.not_written();
        }
        let attempted = match attempted {
            Err(CommitError::Full | CommitError::Refused(_)) if rides => self.attempt_anew(ops),
            attempted => attempted,
        };
        match attempted {
            Err(CommitError::Full) if self.database.make_room()? => self.attempt_anew(ops),
            attempted => attempted,
        }
    }

    /// As [`Writer::attempt`], and again if others have written what was decided on meanwhile.
    fn attempt_anew(&mut self, ops: &[Op]) -> Result<Attempted, CommitError> {
        let mut attempted = self.attempt_either(ops);
        for _ in 0..STALE_ATTEMPTS_MAX {
            let Err(CommitError::Stale(text)) = &attempted else { break };
            tracing::debug!(text, "others have written meanwhile: deciding anew");
            self.catch_up()?;
            attempted = self.attempt_either(ops);
        }
        attempted
    }

    /// With as few reads as may do; and with more of them, where that shows when it is decided.
    fn attempt_either(&mut self, ops: &[Op]) -> Result<Attempted, CommitError> {
        self.with_needs(|writer, needs| writer.attempt(ops, needs))
    }

    /// Takes note of who asks for deliveries, before anything is decided: what nobody here asked for may be another's.
    fn consume(&mut self, ops: &[Op]) -> Result<(), CommitError> {
        let now = self.now();
        for op in ops {
            if let Op::Lease(request, _) = op
                && let Some(id) = self.memory.queue(&request.queue).map(|queue| queue.id)
            {
                self.asked.insert(id, now);
                self.database.consume(&self.memory, id)?;
            }
        }
        Ok(())
    }

    /// The queues of the adapters that these operations come from, with their sessions, and those whose leases are taken from
    /// whoever has them.
    fn sessions(&self, ops: &[Op]) -> (Vec<(i64, u64)>, Vec<i64>) {
        let (mut held, mut ended) = (Vec::new(), Vec::new());
        for op in ops {
            let by = match op {
                Op::Accept { accept, .. } => accept.permit.sender(),
                Op::Settle { settle, .. } => &settle.consumer,
                Op::Lease(request, _) => &request.consumer,
                Op::SessionOpen { adapter, .. } | Op::SessionEnd { adapter, .. } => {
                    let queue = self.memory.queue(adapter);
                    ended.extend(queue.filter(|of| of.setup.sessions == Sessions::One).map(|queue| queue.id));
                    continue;
                }
                Op::Damaged { .. }
                | Op::Operate { .. }
                | Op::QueuePause { .. }
                | Op::QueueTrip { .. }
                | Op::Configure { .. }
                | Op::Move { .. }
                | Op::AcceptedBefore { .. }
                | Op::Claim { .. }
                | Op::Rewrap { .. }
                | Op::SealKeyOldest { .. }
                | Op::Erase { .. }
                | Op::Yield { .. }
                | Op::Note(..) => continue,
            };
            if by.kind == ActorKind::Adapter
                && let Some(queue) = self.memory.queue(&by.name)
                && queue.setup.sessions == Sessions::One
            {
                held.push((queue.id, queue.session));
            }
        }
        held.sort_unstable();
        held.dedup();
        (held, ended)
    }

    /// Whether it comes in a session of which memory does not know: it was opened at another node.
    fn has_newer_session(&self, op: &Op) -> bool {
        let (by, session) = match op {
            Op::Accept { accept, .. } => (accept.permit.sender(), accept.session),
            Op::Settle { settle, .. } => (&settle.consumer, settle.session),
            Op::Lease(request, _) => (&request.consumer, request.session),
            _ => return false,
        };
        let queue = self.memory.queue(&by.name).filter(|queue| queue.setup.sessions == Sessions::One);
        by.kind == ActorKind::Adapter && queue.is_some_and(|queue| session > Some(queue.session))
    }

    /// Whether it only adds messages, in no lane of which several may be leased at once, and none in two lanes.
    fn only_adds(&self, op: &Op) -> bool {
        let Op::Accept { accept, .. } = op else { return false };
        let is_simple = |message: &NewMessage| {
            let mut queues = message.destinations.iter().map(|name| self.memory.queue(name));
            queues.all(|queue| {
                queue.is_some_and(|queue| {
                    let policy = &queue.setup.policy;
                    match ordered_by(policy.order, message.into()) {
                        Ordered::No => true,
                        Ordered::ByKey(_) | Ordered::WithAll => policy.window <= 1,
                        Ordered::ByBoth(..) => false,
                    }
                })
            })
        };
        accept.permit.sender().kind != ActorKind::Adapter && accept.messages.iter().all(is_simple)
    }

    /// Saves what data keys are computed from, before anything that was sealed with them is written. As a rule there is nothing to
    /// save: a tree has a million keys, and the next is made when half of them are used.
    pub(super) fn keep_keys(&mut self) -> Result<(), CommitError> {
        if self.vault.has_unsaved() {
            let trees = self.vault.unsaved()?;
            if !trees.is_empty() {
                self.database.keyring_add(&trees)?;
            }
            self.vault.saved(&trees);
        }
        Ok(())
    }

    /// Decides and commits. An error means that nothing was written; and so does `None`: see [`Writer::with_needs`].
    fn attempt(&mut self, ops: &[Op], needs: &mut Needs) -> Result<Option<Attempted>, CommitError> {
        self.keep_keys()?;
        // The reads belong to the transaction too: each outside of it would take the file's locks for itself.
        self.consume(ops)?;
        if self.memory.is_shared && ops.iter().any(|op| self.has_newer_session(op)) {
            self.database.follow(&mut self.memory)?;
        }
        let (mut sessions, ended) = self.sessions(ops);
        let queues: BTreeSet<i64> = needs.queues.iter().chain(&ended).copied().collect();
        // These are looked at when they are held.
        sessions.retain(|(queue, _)| !queues.contains(queue));
        let holds = Holds { sessions, queues };
        if holds.queues.is_empty() && needs.lanes.is_empty() {
            let adds = if needs.sure == Need::AtCommit && ops.iter().all(|op| self.only_adds(op)) {
                Adds::Only
            } else if ops.iter().any(adds) {
                Adds::Too
            } else {
                Adds::Nothing
            };
            self.database.begin_turn(&holds, adds)?;
        } else {
            self.database.begin(&holds)?;
        }
        self.attempt_open(ops, &ended, &holds.queues, needs)
    }

    /// Leaves the transaction open when there is nothing to write, or on an error.
    fn attempt_open(
        &mut self,
        ops: &[Op],
        ended: &[i64],
        held: &BTreeSet<i64>,
        needs: &mut Needs,
    ) -> Result<Option<Attempted>, CommitError> {
        self.follow_held(&needs.queues)?;
        for queue in ended {
            self.adopt(*queue)?;
        }
        let suspects = self.alone(&needs.queues)?;
        let in_flight = self.in_flight(&needs.lanes)?;
        let found = self.find(ops, needs.sure)?;
        let is_unsure = found.keys.is_none();
        let known = found.keys.unwrap_or_default();
        let Some(mut candidates) = self.candidates(ops, needs, &suspects)? else { return Ok(None) };
        let now = self.number()?;
        let (may_decide_ahead, first_under_way) = (self.may_decide_ahead(), self.first_under_way());
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.loaded = found.rows;
        turn.suspects = suspects;
        turn.read_lanes(&needs.lanes, in_flight);
        let mut decided: Vec<Option<Decided>> = Vec::with_capacity(ops.len());
        for op in ops {
            decided.push(decide(&mut turn, op, &known)?);
            if payload_bytes(op) > PUSH_BYTES {
                self.database.push();
            }
        }
        // What is full takes in again what it has already; and what memory knows of a lease may be over at another node.
        let may_be_behind = needs.sure == Need::AtCommit && turn.memory.is_shared;
        let is_unsure = is_unsure && decided.iter().flatten().any(is_refused)
            || may_be_behind && ops.iter().any(|op| goes_by_memory(op, &turn));
        if is_unsure {
            needs.sure = Need::Sure;
        }
        if turn.lacks(needs, held) || is_unsure {
            return Ok(None);
        }
        // Leases come last, so that they cannot give away what another operation of the group has just changed.
        for (position, op) in ops.iter().enumerate() {
            if let Op::Lease(request, _) = op {
                let candidates = candidates.remove(&position).unwrap_or_default();
                let lease = decide_lease(&mut turn, request, candidates)?;
                if let Ok(claimed) = &lease {
                    cold::fetch(&mut self.database, &self.recent, &claimed.deliveries, first_under_way);
                }
                decided[position] = Some(Decided::Lease(lease));
            }
        }
        // A probe that goes out changes its queue.
        if turn.lacks(needs, held) {
            return Ok(None);
        }
        let decided = decided.into_iter().flatten().collect();
        let along = self.piecemeal.along();
        let then = along.map(|Step { pieces, then }| {
            turn.pieces = pieces;
            then
        });
        if turn.is_empty() {
            return Ok(Some(Attempted { decided, fate: Fate::Nothing }));
        }
        let sent = if may_decide_ahead {
            self.database.send(&turn)?
        } else {
            Sent::Committed(self.database.commit(&turn)?)
        };
        let base = if let Sent::Committed(base) = sent { base } else { 0 };
        let outcome = Outcome::of(turn, base);
        let news = self.remember(outcome, ops.len());
        if let Some(then) = then {
            self.piecemeal.written(then);
            gatepost_faults::point("store.pieces_written");
        }
        let fate = match sent {
            Sent::Committed(_) => Fate::Committed(news),
            Sent::UnderWay => Fate::UnderWay(news),
        };
        Ok(Some(Attempted { decided, fate }))
    }

    /// Answers what was decided in a turn of that time.
    pub(super) fn answer(&mut self, ops: Vec<Op>, decided: Vec<Decided>, at: gatepost_core::Timestamp) {
        for (op, decided) in ops.into_iter().zip(decided) {
            match (op, decided) {
                (Op::Accept { accept, prepared, place, answer }, Decided::Accept(result)) => {
                    if let Ok(accepted) = &result {
                        self.keep_recent(&accept, prepared, accepted, at);
                    }
                    drop(answer.send(result));
                    drop(place);
                }
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
                    let session = self.session(&adapter, epoch);
                    drop(answer.send(session));
                }
                // Unreachable by construction: `decide` mirrors the operation. Dropping the answer tells the caller.
                (_, _) => tracing::error!("an operation and its decision do not match"),
            }
        }
    }

    /// Keeps what has just been accepted at hand for those who will lease it.
    fn keep_recent(
        &self,
        accept: &Accept,
        prepared: Vec<Prepared>,
        accepted: &[Accepted],
        accepted_at: gatepost_core::Timestamp,
    ) {
        let sender = accept.permit.sender();
        let messages = accept.messages.iter().zip(prepared).zip(accepted);
        // What stands in pieces is too large to be kept.
        let new =
            messages.filter(|((_, prepared), accepted)| !accepted.duplicate && !InPieces::is(&prepared.data));
        self.recent.keep(new.map(|((message, prepared), accepted)| {
            let recent = RecentMessage {
                sender: sender.clone(),
                accepted_at,
                form: message.form,
                size: prepared.size,
                salt: prepared.salt,
                attributes: prepared.attributes.into(),
                data: prepared.data.into(),
            };
            (prepared.id, recent, accepted.deliveries.len())
        }));
    }

    /// Ends leases that were given by a gateway that is gone, as its own start would have done. Those of apps and external
    /// adapters run on: whoever holds them settles here.
    pub(super) fn end_others_leases(&mut self) -> Result<(), CommitError> {
        let now = self.number()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.end_others_leases()?;
        let committed = conclude(&mut self.database, turn)?;
        self.install(committed, 0);
        Ok(())
    }

    /// Ends what time has ended, as much of it as does not keep everybody else waiting.
    pub(crate) fn sweep(&mut self, reported: &Reported) {
        for _ in 0..SWEEP_COMMITS_MAX {
            match self.sweep_once(reported) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.failed(&error),
            }
        }
    }

    /// Whether there may be more to do.
    fn sweep_once(&mut self, reported: &Reported) -> Result<bool, CommitError> {
        self.with_needs(|writer, needs| {
            writer.begin_if_needed(needs)?;
            writer.sweep_open(reported, needs)
        })
    }

    fn sweep_open(&mut self, reported: &Reported, needs: &mut Needs) -> Result<Option<bool>, CommitError> {
        let in_flight = self.in_flight(&needs.lanes)?;
        let most = SWEEP_DELIVERIES_MAX + self.memory.damage.passed_over();
        let read = self.database.past_expiry(self.now(), most)?;
        let rows = self.memory.damage.sound(read)?;
        let now = self.number()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.read_lanes(&needs.lanes, in_flight);
        turn.sweep_leases(SWEEP_DELIVERIES_MAX as usize, reported)?;
        turn.sweep_expiry(rows)?;
        let held = needs.queues.clone();
        if turn.lacks(needs, &held) {
            return Ok(None);
        }
        let committed = conclude(&mut self.database, turn)?;
        Ok(Some(self.install(committed, 0)))
    }
}

/// Whether it may add messages.
fn adds(op: &Op) -> bool {
    match op {
        Op::Accept { .. } => true,
        Op::Settle { prepared, .. } => !prepared.is_empty(),
        _ => false,
    }
}

fn is_refused(decided: &Decided) -> bool {
    matches!(decided, Decided::Accept(Err(_)) | Decided::Settle(Err(_)))
}

/// Whether it has been told of a delivery what memory knows of its lease, and no commit will make sure of that.
fn goes_by_memory(op: &Op, turn: &Turn<'_>) -> bool {
    let by_memory = |delivery| turn.memory.hot.contains_key(delivery) && !turn.touched.contains_key(delivery);
    match op {
        Op::Settle { settle, .. } => settle.items.iter().any(|item| by_memory(&item.delivery)),
        Op::Operate { delivery, .. } => by_memory(delivery),
        _ => false,
    }
}

pub(super) fn decide<'a>(
    turn: &mut Turn<'a>,
    op: &'a Op,
    known: &KnownKeys,
) -> Result<Option<Decided>, StoreError> {
    Ok(Some(match op {
        Op::Accept { accept, prepared, .. } => match turn.accept(accept, prepared, known) {
            // What is checked before anything changes refuses the one operation; anything else spoils the turn.
            Err(AcceptError::Store(error)) if !matches!(error, StoreError::NoQueue(_)) => return Err(error),
            result => Decided::Accept(result),
        },
        Op::Settle { settle, prepared, .. } => match turn.settle(settle, prepared, known) {
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
        Op::Lease(..)
        | Op::Damaged { .. }
        | Op::Configure { .. }
        | Op::Move { .. }
        | Op::Claim { .. }
        | Op::Rewrap { .. }
        | Op::SealKeyOldest { .. }
        | Op::Erase { .. }
        | Op::Yield { .. }
        | Op::AcceptedBefore { .. } => {
            return Ok(None);
        }
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
        message: row.message,
        message_seq: row.message_seq,
    }
}

pub(super) fn payload_bytes(op: &Op) -> usize {
    match op {
        Op::Accept { prepared, .. } => prepared.iter().map(|prepared| prepared.data.len()).sum(),
        Op::Settle { settle, prepared, .. } => {
            let emitted: usize = prepared.iter().map(|prepared| prepared.data.len()).sum();
            let items = settle.items.iter().map(|item| {
                item.reply.as_ref().map_or(0, Vec::len) + item.evidence.as_ref().map_or(0, Vec::len)
            });
            let state = settle.state.iter().map(|(_, value)| value.as_ref().map_or(0, Vec::len));
            emitted + items.sum::<usize>() + state.sum::<usize>()
        }
        Op::Lease(..)
        | Op::Damaged { .. }
        | Op::SessionOpen { .. }
        | Op::SessionEnd { .. }
        | Op::Operate { .. }
        | Op::QueuePause { .. }
        | Op::QueueTrip { .. }
        | Op::Configure { .. }
        | Op::Move { .. }
        | Op::AcceptedBefore { .. }
        | Op::Claim { .. }
        | Op::Rewrap { .. }
        | Op::SealKeyOldest { .. }
        | Op::Erase { .. }
        | Op::Yield { .. }
        | Op::Note(..) => 0,
    }
}
