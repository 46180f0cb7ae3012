//! What callers are answered: what it teaches them, and whether it is true.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use gatepost_core::delivery::OutcomeKind;
use gatepost_core::delivery::Refusal;
use gatepost_core::principal::Actor;
use gatepost_core::{DeliveryId, LeaseToken, MessageId, Outcome, State};

use super::ask::{Asked, Past};
use super::laws::{self, Broken, Snap, is_ahead, law};
use super::machine::DEDUP_WINDOW;
use super::ops::{INBOX, QUEUES};
use super::run::{Held, Sim};
use crate::call::Claimed;
use crate::ops::{
    AcceptError, Accepted, LeaseError, LeaseRequest, MoveError, OperateError, SenderFull, SettleAnswer,
    SettleError, StoreError, UNROUTED, Verb,
};
use crate::row::Row;
use crate::seal::Index;
use crate::writer::lease::LEASE_MARGIN;

/// What is known of the circumstances in which calls were answered.
struct Heard {
    /// The tables before.
    before: Snap,
    /// Sessions as they were when the call was decided.
    sessions: [u64; 3],
    /// Something was made to fail: calls may have been refused for it.
    troubled: bool,
    /// All of it was one commit.
    one_commit: bool,
    /// There was one call only.
    alone: bool,
    /// Keys first used by calls that were decided before.
    fresh: HashMap<Index, (Index, MessageId)>,
    /// Tokens given by calls that were decided before.
    given: HashSet<LeaseToken>,
}

impl Sim {
    pub(super) fn hear(
        &mut self,
        asked: Vec<Asked>,
        before: &Snap,
        sessions: [u64; 3],
        troubled: bool,
    ) -> Result<(), Broken> {
        let splits = |ask: &Asked| {
            matches!(
                ask,
                Asked::Session { .. }
                    | Asked::Death { .. }
                    | Asked::Move { .. }
                    | Asked::Configure { .. }
                    | Asked::Before { .. }
            )
        };
        let fills =
            |ask: &Asked| matches!(ask, Asked::Operate { .. } | Asked::Move { .. } | Asked::Configure { .. });
        if !troubled && !asked.iter().any(fills) {
            let emits = |ask: &Asked| match ask {
                Asked::Settle { settle, .. } if settle.emitted.is_some() && !settle.items.is_empty() => {
                    Some(Sim::consumer(settle.queue).to_string())
                }
                _ => None,
            };
            let beyond = asked.iter().filter_map(emits).collect();
            laws::backlog_is_kept(before, &self.snap, &self.writer().memory, &beyond)?;
        }
        let alone = asked.len() == 1;
        let mut heard = Heard {
            before: before.clone(),
            sessions,
            troubled,
            one_commit: !troubled && (alone || !asked.iter().any(splits)),
            alone: alone && !troubled,
            fresh: HashMap::new(),
            given: HashSet::new(),
        };
        let mut quiet = !troubled;
        for ask in asked {
            quiet &= self.hear_one(ask, &mut heard)?;
        }
        law("who is refused changes nothing", !quiet || *before == self.snap, || {
            format!("{before:?}, {:?}", self.snap)
        })
    }

    /// Whether the answer means that nothing has changed.
    fn hear_one(&mut self, ask: Asked, heard: &mut Heard) -> Result<bool, Broken> {
        const ANSWERED: &str = "every call is answered";
        let gone = |_| Broken::new(ANSWERED, "an answer is missing");
        match ask {
            Asked::Send { request, session, to, mut answer } => {
                let answer = answer.try_recv().map_err(gone)?;
                self.note(&answer);
                self.hear_accept(request, session, &to, &answer, heard)
            }
            Asked::Before { request, mut answer } => {
                let answer = answer.try_recv().map_err(gone)?;
                self.note(&answer);
                if let (Ok(answer), false) = (&answer, heard.troubled) {
                    let request = &self.requests[request];
                    let known = self.recently(&request.keys[0], heard);
                    let known =
                        known.filter(|(print, _)| *print == request.prints[0]).map(|(_, message)| message);
                    law(
                        "a key that was used is known",
                        answer.as_ref().map(|found| found.id) == known,
                        || format!("{answer:?} for {known:?}"),
                    )?;
                }
                Ok(true)
            }
            Asked::Lease { queue, request, mut answer } => {
                let answer = answer.try_recv().map_err(gone)?;
                self.note(&answer);
                self.hear_lease(queue, &request, &answer, heard)
            }
            Asked::Settle { settle, mut answer } => {
                let answer = answer.try_recv().map_err(gone)?;
                self.note(&answer);
                self.hear_settle(&settle, &answer, heard)
            }
            Asked::Session { queue, mut answer } => {
                let answer = answer.try_recv().map_err(gone)?;
                self.note(&answer);
                match answer {
                    Ok(session) => {
                        if !heard.troubled {
                            law(
                                "a session is the next one",
                                session.epoch == heard.sessions[queue] + 1,
                                || format!("{} after {}", session.epoch, heard.sessions[queue]),
                            )?;
                        }
                        heard.sessions[queue] = session.epoch;
                        self.consumers[queue].session = Some(session.epoch);
                    }
                    Err(error) => trouble(&error, heard)?,
                }
                Ok(false)
            }
            Asked::Death { queue, mut answer } => {
                match answer.try_recv().map_err(gone)? {
                    Ok(()) => {
                        heard.sessions[queue] += 1;
                        // A session that it was still opening dies with it.
                        self.consumers[queue].dies();
                    }
                    Err(error) => trouble(&error, heard)?,
                }
                Ok(false)
            }
            Asked::Operate { delivery, verb, mut answer } => {
                let answer = answer.try_recv().map_err(gone)?;
                self.note(&answer);
                if heard.alone {
                    let row = heard.before.by_id(delivery);
                    let legal = row.is_some_and(|row| self.legal(row, verb));
                    law("an operator may do what is legal", answer.is_ok() == legal, || {
                        format!("{verb:?} of {row:?}: {answer:?}")
                    })?;
                }
                match answer {
                    Ok(_) => Ok(false),
                    Err(OperateError::Store(error)) => trouble(&error, heard).map(|()| false),
                    Err(OperateError::Illegal(_) | OperateError::NotFound) => Ok(true),
                }
            }
            Asked::Move { to, from, mut answer } => {
                let answer = answer.try_recv().map_err(gone)?;
                self.note(&answer);
                let listed = |queue| self.setups.iter().any(|setup| usize::from(setup.queue) == queue);
                match answer {
                    Ok(moved) => {
                        law(
                            "one is moved to another queue that is served",
                            from != to && listed(to),
                            || format!("{moved:?} from {from} to {to}"),
                        )?;
                        Ok(moved.waiting + moved.dead + moved.expired == 0)
                    }
                    Err(MoveError::Same(_) | MoveError::NotServed(_)) => Ok(true),
                    // A queue that was never configured is none.
                    Err(MoveError::Store(StoreError::NoQueue(_))) => Ok(true),
                    Err(MoveError::Store(error)) => trouble(&error, heard).map(|()| false),
                }
            }
            Asked::Configure { setups, mut answer } => {
                match answer.try_recv().map_err(gone)? {
                    Ok(()) => self.setups = setups,
                    Err(error) => trouble(&error, heard)?,
                }
                Ok(false)
            }
            Asked::Other { mut answer } => {
                if let Err(error) = answer.try_recv().map_err(gone)? {
                    trouble(&error, heard)?;
                }
                Ok(false)
            }
        }
    }

    fn legal(&self, row: &Row, verb: Verb) -> bool {
        let unrouted = self.writer().memory.by_name.get(UNROUTED) == Some(&row.queue);
        match (verb, &row.delivery.state) {
            (Verb::Replay, State::Dead { .. }) => row.salt.is_some() && !unrouted,
            (Verb::Discard, State::Dead { .. }) | (Verb::Resolve(_), State::InDoubt { .. }) => true,
            (Verb::Replay | Verb::Discard | Verb::Resolve(_), _) => false,
        }
    }

    /// The use of a key within its window that was there when a call was decided.
    fn recently(&self, key: &Index, heard: &Heard) -> Option<(Index, MessageId)> {
        if let Some(fresh) = heard.fresh.get(key) {
            return Some(*fresh);
        }
        let known = self.known.get(key)?;
        let now = self.now();
        // What has come in this very step is told by `fresh`.
        let earlier = heard.before.rows.values().any(|row| row.message == known.message);
        let within = now - known.at < i64::try_from(DEDUP_WINDOW.as_micros()).unwrap_or(i64::MAX);
        (earlier && within).then_some((known.print, known.message))
    }

    fn hear_accept(
        &mut self,
        request: usize,
        session: Option<u64>,
        to: &[usize],
        answer: &Result<Vec<Accepted>, AcceptError>,
        heard: &mut Heard,
    ) -> Result<bool, Broken> {
        let request = self.requests[request].clone();
        if let Ok(accepted) = answer {
            for (accepted, (key, print)) in accepted.iter().zip(request.keys.iter().zip(&request.prints)) {
                let of_message = self.snap.rows.values().filter(|row| row.message == accepted.id);
                let there: HashSet<DeliveryId> = of_message.map(|row| row.id).collect();
                let told: HashSet<DeliveryId> =
                    accepted.deliveries.iter().map(|delivery| delivery.id).collect();
                law("what was accepted is there", !told.is_empty() && told == there, || {
                    format!("{accepted:?}: {there:?}")
                })?;
                self.promised.extend(told);
                if heard.troubled {
                    heard.fresh.insert(*key, (*print, accepted.id));
                }
            }
        }
        if heard.troubled {
            return Ok(false);
        }
        let superseded = request.sender >= 2 && session.unwrap_or(0) != heard.sessions[request.sender - 2];
        match answer {
            Err(AcceptError::Superseded) => {
                law("only an earlier session is superseded", superseded, || format!("{session:?}"))?;
                return Ok(true);
            }
            _ => law("an earlier session accepts nothing", !superseded, || format!("{answer:?}"))?,
        }
        let mut within: HashMap<Index, (Index, Option<MessageId>)> = HashMap::new();
        let mut mismatch = None;
        let mut expected = Vec::new();
        for (position, (key, print)) in request.keys.iter().zip(&request.prints).enumerate() {
            let known = within
                .get(key)
                .copied()
                .or_else(|| self.recently(key, heard).map(|(print, message)| (print, Some(message))));
            if known.is_some_and(|(known, _)| known != *print) {
                mismatch = mismatch.or(Some(position));
                break;
            }
            expected.push(known.map(|(_, message)| message));
            within.entry(*key).or_insert((*print, known.and_then(|(_, message)| message)));
        }
        match answer {
            Ok(accepted) => {
                law("another content under a key is refused", mismatch.is_none(), || {
                    format!("{accepted:?}")
                })?;
                law("each event is answered", accepted.len() == expected.len(), || format!("{accepted:?}"))?;
                for (position, (accepted, expected)) in accepted.iter().zip(&expected).enumerate() {
                    let same = match expected {
                        None => !accepted.duplicate && accepted.deliveries.len() == to[position],
                        Some(Some(message)) => accepted.duplicate && accepted.id == *message,
                        // The twin of an event of this request that is new.
                        Some(None) => accepted.duplicate,
                    };
                    law("a repetition is answered as the first time", same, || {
                        format!("{accepted:?}, expected {expected:?}")
                    })?;
                    let (key, print) = (request.keys[position], request.prints[position]);
                    if !accepted.duplicate {
                        law(
                            "a new message is new",
                            !heard.fresh.values().any(|(_, id)| *id == accepted.id),
                            || format!("{accepted:?}"),
                        )?;
                    }
                    heard.fresh.entry(key).or_insert((print, accepted.id));
                }
                Ok(accepted.iter().all(|accepted| accepted.duplicate))
            }
            Err(AcceptError::Mismatch(position)) => {
                law("only another content is a mismatch", mismatch == Some(*position), || {
                    format!("{position}, expected {mismatch:?}")
                })?;
                Ok(true)
            }
            Err(AcceptError::QueueFull(queue)) => {
                // One that has left the configuration keeps its limit.
                law("only a queue with a limit is full", self.limited.contains(queue.as_str()), || {
                    queue.clone()
                })?;
                Ok(true)
            }
            Err(AcceptError::SenderFull(full)) => {
                self.sender_is_full(full, &Self::sender(request.sender), heard)?;
                Ok(true)
            }
            Err(error) => Err(Broken::new("nothing fails by itself", error)),
        }
    }

    /// Who is refused for its own backlog has a limit, and would exceed it.
    fn sender_is_full(&self, full: &SenderFull, sender: &Actor, heard: &Heard) -> Result<(), Broken> {
        let SenderFull { backlog, deliveries, .. } = full;
        let exceeds = backlog.limit.is_some_and(|limit| backlog.deliveries + deliveries > limit.messages);
        law("only a sender with a limit is full", exceeds && backlog.sender == sender.to_string(), || {
            format!("{full:?}")
        })?;
        if !heard.alone {
            return Ok(());
        }
        let row = self.writer().memory.sender(sender).map(|queue| queue.id);
        let sent = heard.before.rows.values().filter(|other| other.sender == row);
        let open = sent.filter(|other| !other.delivery.state.is_terminal()).count() as u64;
        law("a sender is full of what it has handed in", open == backlog.deliveries, || {
            format!("{open}: {full:?}")
        })
    }

    fn hear_lease(
        &mut self,
        queue: usize,
        request: &LeaseRequest,
        answer: &Result<Claimed, LeaseError>,
        heard: &mut Heard,
    ) -> Result<bool, Broken> {
        let superseded = queue != INBOX && request.session.unwrap_or(0) != heard.sessions[queue];
        let claimed = match answer {
            Ok(claimed) => claimed,
            Err(LeaseError::Superseded) => {
                law("only an earlier session is superseded", superseded || heard.troubled, || {
                    format!("{request:?}")
                })?;
                self.is_superseded(queue, request.session);
                return Ok(true);
            }
            Err(LeaseError::Store(error)) => return trouble(error, heard).map(|()| false),
        };
        law("an earlier session leases nothing", !superseded || heard.troubled, || {
            format!("{request:?}: {claimed:?}")
        })?;
        law(
            "no more is given than was asked for",
            claimed.deliveries.len() <= request.max as usize || request.request_id.is_some(),
            || format!("{claimed:?}"),
        )?;
        let mut given = Vec::new();
        for claimed in &claimed.deliveries {
            let before = heard.before.by_id(claimed.delivery);
            let again = before.is_some_and(|row| Self::token_of(&row.delivery) == Some(claimed.token))
                || !heard.given.insert(claimed.token);
            law(
                "only a repeated call is given a lease again",
                !again || request.request_id.is_some(),
                || format!("{claimed:?}"),
            )?;
            if heard.one_commit {
                self.lease_is_good(request, claimed.delivery, claimed.token, before, again)?;
            }
            if !again {
                given.push(claimed.delivery);
            }
            let consumer = &mut self.consumers[queue];
            if consumer.held.iter().all(|held| held.token != claimed.token) {
                consumer.held.push(Held { delivery: claimed.delivery, token: claimed.token });
            }
        }
        if heard.one_commit && !given.is_empty() {
            self.brakes_hold(request, &given)?;
        }
        if heard.alone && claimed.deliveries.is_empty() {
            self.nothing_was_there(request, &heard.before)?;
        }
        Ok(false)
    }

    fn lease_is_good(
        &self,
        request: &LeaseRequest,
        delivery: DeliveryId,
        token: LeaseToken,
        before: Option<&Row>,
        again: bool,
    ) -> Result<(), Broken> {
        let row = self.snap.by_id(delivery);
        let lease = row.and_then(|row| row.delivery.lease()).filter(|lease| lease.token == token);
        let (Some(row), Some(lease)) = (row, lease) else {
            return Err(Broken::new("a lease that was given is in the tables", format!("{row:?}")));
        };
        law("a lease is its session's", lease.session == request.session.unwrap_or(0), || {
            format!("{row:?}")
        })?;
        if again {
            return Ok(());
        }
        let (writer, now) = (self.writer(), self.now());
        let until = now + i64::try_from((request.lease + LEASE_MARGIN).as_micros()).unwrap_or(i64::MAX);
        law("a lease lasts as long as was asked, and a little", lease.until.as_micros() == until, || {
            format!("{row:?}")
        })?;
        let due = before.and_then(|row| row.delivery.state.due());
        // A delivery that was accepted in this very commit cannot be leased in it.
        law("what is leased was due", due.is_some_and(|due| due.as_micros() <= now), || {
            format!("{before:?}")
        })?;
        let Some(queue) = writer.memory.queues.get(&row.queue) else {
            return Err(Broken::new("a delivery has its queue", format!("{row:?}")));
        };
        law("a lease is of the queue asked for", queue.setup.name == request.queue, || format!("{row:?}"))?;
        let begun = matches!(row.delivery.state, State::Sending { .. });
        law(
            "a lease begins as its policy says",
            begun == queue.setup.policy.on_doubt.lease_begins(),
            || format!("{row:?}"),
        )?;
        let expired = row.delivery.expires_at.is_some_and(|at| at.as_micros() <= now);
        law("nothing is sent past its expiry", !expired || (row.delivery.doubt && !begun), || {
            format!("{row:?}")
        })?;
        let in_front: Vec<&Row> = self
            .snap
            .rows
            .values()
            .filter(|other| laws::meet(other, row) && other.pos < row.pos)
            .filter(|other| other.delivery.state.blocks_lane())
            .collect();
        // Who stands in two lanes goes alone.
        let alone = row.barrier.is_some();
        let window = if alone { 1 } else { queue.setup.policy.window.max(1) as usize };
        let one_pipeline = |front: &&Row| {
            front.barrier.is_none() && !front.delivery.went_with_lane() && is_ahead(front, lease.session)
        };
        law(
            "nobody overtakes in a lane",
            in_front.len() < window && in_front.iter().all(one_pipeline),
            || format!("{row:?} behind {in_front:?}"),
        )
    }

    fn brakes_hold(&self, request: &LeaseRequest, given: &[DeliveryId]) -> Result<(), Broken> {
        let Some(queue) = self.writer().memory.queue(&request.queue) else { return Ok(()) };
        let control = &queue.control;
        law("a paused queue gives nothing", control.paused_since.is_none(), || format!("{queue:?}"))?;
        if let Some(trip) = control.trip {
            let probes = given.len() == 1 && trip.probe == given.first().copied();
            law("a tripped queue gives one probe", probes, || format!("{given:?}, {queue:?}"))?;
        }
        let most = queue.setup.policy.max_in_flight;
        law("no more are under way than may be", queue.in_flight() <= most, || format!("{queue:?}"))
    }

    /// An empty answer is right: no delivery was ready, or a brake was on.
    fn nothing_was_there(&self, request: &LeaseRequest, before: &Snap) -> Result<(), Broken> {
        let Some(queue) = self.writer().memory.queue(&request.queue) else { return Ok(()) };
        let now = self.now();
        let listed = self.setups.iter().any(|setup| QUEUES[usize::from(setup.queue)] == request.queue);
        let of_queue = || before.rows.values().filter(|row| row.queue == queue.id);
        // What is held or has expired instead takes its place in the call; the next call gets what stands behind it.
        let braked = !listed
            || self.snap != *before
            || queue.control.paused_since.is_some()
            || queue.control.trip.is_some()
            || queue.counts.suspects > 0
            || of_queue().filter(|row| row.delivery.state.in_flight()).count()
                >= queue.setup.policy.max_in_flight as usize;
        let ready = of_queue().find(|row| {
            let ready = before.ready.get(&row.pos).is_some_and(|ready| *ready <= now);
            // One in doubt may be held instead of being leased.
            ready
                && matches!(row.delivery.state, State::Waiting { .. })
                && !row.delivery.past_expiry(gatepost_core::Timestamp::from_micros(now))
        });
        law("what is ready is given", braked || ready.is_none(), || format!("{ready:?} of {queue:?}"))
    }

    fn hear_settle(
        &mut self,
        settle: &Past,
        answer: &Result<SettleAnswer, SettleError>,
        heard: &Heard,
    ) -> Result<bool, Broken> {
        let superseded = settle.queue != INBOX && settle.session.unwrap_or(0) != heard.sessions[settle.queue];
        if heard.alone {
            self.settle_is_as_expected(settle, answer, superseded, &heard.before)?;
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(SettleError::Store(error)) => return trouble(error, heard).map(|()| false),
            Err(SettleError::Superseded) => {
                law("only an earlier session is superseded", superseded || heard.troubled, || {
                    format!("{settle:?}")
                })?;
                self.is_superseded(settle.queue, settle.session);
                return Ok(true);
            }
            Err(SettleError::SenderFull(full)) => {
                law("what comes with an outcome is taken", settle.items.is_empty(), || {
                    format!("{settle:?}")
                })?;
                return self.sender_is_full(full, &Self::consumer(settle.queue), heard).map(|()| true);
            }
            Err(_) => return Ok(true),
        };
        law("an earlier session settles nothing", !superseded || heard.troubled, || format!("{settle:?}"))?;
        let whole = answer.items.iter().all(|item| item.ok);
        law("a settle is whole or refused", whole || !settle.is_atomic(), || {
            format!("{settle:?}: {answer:?}")
        })?;
        let mut quiet = !settle.is_atomic();
        for ((id, token, outcome), item) in settle.items.iter().zip(&answer.items) {
            quiet &= !item.ok && *outcome != Outcome::Begin;
            if !item.ok {
                continue;
            }
            let row = self.snap.by_id(*id);
            if heard.one_commit {
                let before = heard.before.by_id(*id).map(|row| &row.delivery);
                let live = before.is_some_and(|before| Self::token_of(before) == Some(*token));
                let settled = before.and_then(|before| before.settled);
                let by_it = settled.filter(|(by, _)| by == token).map(|(_, kind)| kind);
                let wakes = *outcome == Outcome::Wake && matches!(by_it, Some(OutcomeKind::RetryLane { .. }));
                law(
                    "only the newest token counts",
                    live || wakes || by_it.is_some_and(|kind| kind.is_repeated_by(*outcome)),
                    || format!("{outcome:?} of {before:?}"),
                )?;
                if *outcome == (Outcome::Delivered { level: gatepost_core::Level::Transport }) {
                    let done = row.is_some_and(|row| matches!(row.delivery.state, State::Delivered));
                    law("a delivery that is settled is delivered", done, || format!("{row:?}"))?;
                }
            }
            if Self::ends(*outcome) {
                self.lease_is_over(settle.queue, *token);
            }
        }
        Ok(quiet)
    }

    /// An adapter that hears of its successor ends.
    fn is_superseded(&mut self, queue: usize, session: Option<u64>) {
        if self.consumers[queue].session == session {
            self.consumers[queue].dies();
        }
    }

    fn lease_is_over(&mut self, queue: usize, token: LeaseToken) {
        let consumer = &mut self.consumers[queue];
        if let Some(position) = consumer.held.iter().position(|held| held.token == token) {
            let held = consumer.held.remove(position);
            consumer.past.push(held);
        }
    }

    /// A settle that is alone in its commit is answered as the rules say.
    fn settle_is_as_expected(
        &self,
        settle: &Past,
        answer: &Result<SettleAnswer, SettleError>,
        superseded: bool,
        before: &Snap,
    ) -> Result<(), Broken> {
        const LAW: &str = "a settle is answered as the rules say";
        let said = |expected: &str| format!("{answer:?}, expected {expected}: {settle:?}");
        if superseded {
            return law(LAW, matches!(answer, Err(SettleError::Superseded)), || said("superseded"));
        }
        let [(id, token, outcome)] = settle.items[..] else { return Ok(()) };
        let Some(row) = before.by_id(id) else { return Ok(()) };
        let queue = self.writer().memory.queues.get(&row.queue);
        let Some(policy) = queue.map(|queue| queue.setup.policy) else { return Ok(()) };
        let now = gatepost_core::Timestamp::from_micros(self.now());
        let live = Self::token_of(&row.delivery) == Some(token);
        let weak = matches!(outcome, Outcome::Delivered { level } if policy.confirm.is_some_and(|confirm| level < confirm));
        let expected = match (&row.delivery.state, outcome) {
            (State::Leased { .. }, Outcome::Begin) if live => Ok(!row.delivery.past_expiry(now)),
            (State::Leased { .. }, Outcome::Sent { .. } | Outcome::Delivered { .. } | Outcome::InDoubt)
                if live =>
            {
                Err("not_begun")
            }
            (State::Sending { .. }, _) if live && weak => Err("evidence_too_weak"),
            (State::Leased { .. } | State::Sending { .. }, _) if live => Ok(outcome != Outcome::Wake),
            (State::Waiting { .. } | State::InDoubt { due: Some(_) }, Outcome::Wake) => {
                Ok(matches!(row.delivery.settled, Some((by, OutcomeKind::RetryLane { .. })) if by == token))
            }
            _ => {
                Ok(row.delivery.settled.is_some_and(|(by, kind)| by == token && kind.is_repeated_by(outcome)))
            }
        };
        let as_expected = match (expected, answer) {
            (Err("not_begun"), Err(SettleError::Protocol { refusal: Refusal::NotBegun, .. })) => true,
            (Err(_), Err(SettleError::Protocol { refusal: Refusal::EvidenceTooWeak { .. }, .. })) => weak,
            (Ok(ok), Ok(answer)) => answer.items.first().is_some_and(|item| item.ok == ok),
            (Ok(false), Err(SettleError::Refused(_))) => settle.is_atomic(),
            // The emitted event found its destination full.
            (Ok(true), Err(SettleError::QueueFull(_))) => settle.emitted.is_some(),
            _ => false,
        };
        law(LAW, as_expected, || said(&format!("{expected:?} of {row:?}")))
    }

    /// Brings everything to its end: the faults are over, partners answer, operators decide.
    pub(super) fn drain(&mut self) -> Result<(), Broken> {
        use super::ops::{Brakes, Decides, Emits, Item, Op, Says};
        // A disk that works again is used again.
        for _ in 0..2 {
            self.pass(Duration::from_secs(60), None)?;
        }
        let mut ops = vec![Op::Configure { queues: self.all_queues() }];
        ops.extend((0..3).map(|queue| Op::Brake { queue, brake: Brakes::Resume }));
        self.step(&super::ops::Step::Together { ops, fault: None })?;
        for round in 0..DRAIN_ROUNDS_MAX {
            for queue in 0..3 {
                let id = self.writer().memory.by_name.get(QUEUES[usize::from(queue)]).copied();
                let mut rows = self.snap.rows.values().filter(|row| Some(row.queue) == id);
                if rows.all(|row| row.delivery.state.is_terminal()) {
                    continue;
                }
                let lease = Op::Lease { queue, max: 200, id: 0, secs: 600, earlier_life: false };
                self.step(&super::ops::Step::Together { ops: vec![lease], fault: None })?;
                // In the order of their leases, which is that of each lane.
                let held = u8::try_from(self.consumers[usize::from(queue)].held.len().min(100)).unwrap_or(0);
                let items = (0..held).flat_map(|which| {
                    [Item { which, says: Says::Begin }, Item { which, says: Says::Delivered }]
                });
                let settle = Op::Settle {
                    queue,
                    items: items.collect(),
                    emit: Emits::Nothing,
                    state: false,
                    atomic: false,
                    earlier_life: false,
                };
                self.step(&super::ops::Step::Together { ops: vec![settle], fault: None })?;
                // What was refused was not theirs any more.
                let consumer = &mut self.consumers[usize::from(queue)];
                consumer.past.append(&mut consumer.held);
            }
            let (mut asked, mut sent) = (Vec::new(), Vec::new());
            for (id, state) in self.stuck() {
                let verb = match state {
                    State::Dead { .. } if round == 0 && self.dice.chance(50) => Decides::Replay,
                    State::Dead { .. } => Decides::Discard,
                    _ if self.dice.chance(50) => Decides::SayRetry,
                    _ => Decides::SayDelivered,
                };
                if let Some((ask, op)) = self.decide(id, verb) {
                    asked.push(ask);
                    sent.push(op);
                }
            }
            if !sent.is_empty() {
                self.deliver(asked, sent, None)?;
            }
            if self.is_over() {
                return self.log_verifies();
            }
            self.pass(Duration::from_secs([1, 40, 600, 4000][(round / 4).min(3) as usize]), None)?;
        }
        let open =
            self.snap.rows.values().find(|row| {
                !matches!(row.delivery.state, State::Delivered | State::Expired | State::Discarded)
            });
        Err(Broken::new(
            "everything comes to its end",
            format!("{open:?} of {:?}", self.writer().memory.queues),
        ))
    }

    fn stuck(&self) -> Vec<(DeliveryId, State)> {
        let rows = self.snap.rows.values();
        let stuck = rows
            .filter(|row| matches!(row.delivery.state, State::Dead { .. } | State::InDoubt { due: None }));
        stuck.map(|row| (row.id, row.delivery.state)).collect()
    }

    fn is_over(&self) -> bool {
        let mut rows = self.snap.rows.values();
        rows.all(|row| matches!(row.delivery.state, State::Delivered | State::Expired | State::Discarded))
    }
}

/// Rounds in which everything must have come to its end; with their pauses less than two days.
const DRAIN_ROUNDS_MAX: u32 = 50;

/// A refusal by the store itself, which only something that was made to fail explains.
fn trouble(error: &StoreError, heard: &Heard) -> Result<(), Broken> {
    law("nothing fails by itself", heard.troubled, || error.to_string())
}
