//! Accepting messages: dedup, backlog limits, and the rows of a new message.

use std::collections::HashMap;

use gatepost_audit::LeafDelivery;
use gatepost_core::delivery::{Reason, Record};
use gatepost_core::message::NewMessage;
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{Delivery, DeliveryId, MessageId, Order, State};

use super::leaf::accepted_leaf;
use super::memory::Queue;
use super::turn::{Extra, MessageRow, NewKey, Turn};
use crate::ops::{Accept, AcceptError, Accepted, AcceptedDelivery, Emit, SenderFull, StoreError, UNROUTED};
use crate::prepared::Prepared;
use crate::row::Row;
use crate::seal::{Domain, Index, Vault};

/// What is known of an idempotency key that was used before.
pub(crate) struct KnownKey {
    pub(crate) fingerprint: Index,
    pub(crate) message: MessageId,
    pub(crate) deliveries: Vec<AcceptedDelivery>,
}

/// Keys used before and still within their window.
pub(crate) type KnownKeys = HashMap<Index, KnownKey>;

/// What becomes of one event of a request.
enum Fate {
    /// Seen before; the answer it got then.
    Known(Accepted),
    /// The same as an earlier event of this request.
    Twin(usize),
    New,
}

/// What follows where a sender has more unsettled than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    Refused,
    /// It belongs to an outcome, which must not be lost for it.
    Taken,
}

/// Where a new message goes: its destinations, or dead into `unrouted`.
struct Plan<'m> {
    message: &'m NewMessage,
    prepared: &'m Prepared,
    dead: Option<Reason>,
}

impl<'a> Turn<'a> {
    pub(crate) fn accept(
        &mut self,
        accept: &'a Accept,
        prepared: &'a [Prepared],
        known: &KnownKeys,
    ) -> Result<Vec<Accepted>, AcceptError> {
        let sender = accept.permit.sender();
        if sender.kind == ActorKind::Adapter && self.session_of(&sender.name)? != accept.session.unwrap_or(0)
        {
            return Err(AcceptError::Superseded);
        }
        let messages = accept.messages.iter().zip(prepared);
        let plans: Vec<Plan<'a>> =
            messages.map(|(message, prepared)| Plan { message, prepared, dead: None }).collect();
        self.take_in(sender, &plans, known, Beyond::Refused)
    }

    /// Emitted events are accepted like others, but one that no route takes is kept, dead.
    pub(crate) fn emit(
        &mut self,
        sender: &'a Actor,
        emit: &'a [Emit],
        prepared: &'a [Prepared],
        known: &KnownKeys,
        beyond: Beyond,
    ) -> Result<Vec<Accepted>, AcceptError> {
        let plans: Vec<Plan<'a>> = emit
            .iter()
            .zip(prepared)
            .map(|(emit, prepared)| Plan { message: &emit.message, prepared, dead: emit.dead })
            .collect();
        self.take_in(sender, &plans, known, beyond)
    }

    pub(crate) fn session_of(&self, adapter: &str) -> Result<u64, StoreError> {
        Ok(self.queue_named(adapter)?.session)
    }

    /// Decides the fate of every event before anything changes: all or nothing.
    fn take_in(
        &mut self,
        sender: &'a Actor,
        plans: &[Plan<'a>],
        known: &KnownKeys,
        beyond: Beyond,
    ) -> Result<Vec<Accepted>, AcceptError> {
        let mut first_of: HashMap<Index, usize> = HashMap::new();
        let mut fates = Vec::with_capacity(plans.len());
        for (position, Plan { prepared, .. }) in plans.iter().enumerate() {
            let fate = match first_of.get(&prepared.key) {
                Some(&first) if plans[first].prepared.fingerprint == prepared.fingerprint => {
                    Fate::Twin(first)
                }
                Some(_) => return Err(AcceptError::Mismatch(position)),
                None => self.fate(prepared, known).ok_or(AcceptError::Mismatch(position))?,
            };
            first_of.entry(prepared.key).or_insert(position);
            fates.push(fate);
        }
        let new = |position: &usize| matches!(fates[*position], Fate::New);
        let new = || (0..plans.len()).filter(new).map(|position| &plans[position]);
        self.check_backlog(new())?;
        if beyond == Beyond::Refused {
            self.check_sender(sender, new())?;
        }
        let mut answers: Vec<Accepted> = Vec::with_capacity(plans.len());
        for (plan, fate) in plans.iter().zip(fates) {
            let answer = match fate {
                Fate::Known(accepted) => accepted,
                Fate::Twin(first) => Accepted { duplicate: true, ..answers[first].clone() },
                Fate::New => self.insert(sender, plan)?,
            };
            answers.push(answer);
        }
        Ok(answers)
    }

    /// `None` when the key was used with other content.
    fn fate(&self, prepared: &Prepared, known: &KnownKeys) -> Option<Fate> {
        if let Some(new) = self.keys_new.get(&prepared.key) {
            let deliveries = self.new_rows[new.rows.clone()].iter().map(|row| self.describe(row)).collect();
            let accepted = Accepted { id: new.message, duplicate: true, deliveries };
            return (new.fingerprint == prepared.fingerprint).then_some(Fate::Known(accepted));
        }
        let Some(known) = known.get(&prepared.key) else { return Some(Fate::New) };
        let accepted = Accepted { id: known.message, duplicate: true, deliveries: known.deliveries.clone() };
        (known.fingerprint == prepared.fingerprint).then_some(Fate::Known(accepted))
    }

    fn describe(&self, row: &Row) -> AcceptedDelivery {
        let destination =
            self.queue(row.queue).map_or_else(|_| String::new(), |queue| queue.setup.name.clone());
        AcceptedDelivery { id: row.id, destination, state: row.delivery.state.as_str() }
    }

    fn check_backlog<'p>(&self, plans: impl Iterator<Item = &'p Plan<'p>>) -> Result<(), AcceptError> {
        let mut added: HashMap<&str, (u64, u64)> = HashMap::new();
        for plan in plans.filter(|plan| plan.dead.is_none()) {
            for destination in &plan.message.destinations {
                let queue = self.queue_named(destination)?;
                let Some(limit) = queue.setup.policy.max_backlog else { continue };
                let added = added.entry(destination).or_default();
                added.0 += 1;
                added.1 += plan.prepared.size;
                let (messages, bytes) = queue.backlog();
                if messages + added.0 > limit.messages || bytes + added.1 > limit.bytes {
                    return Err(AcceptError::QueueFull(destination.clone()));
                }
            }
        }
        Ok(())
    }

    /// What comes counts for each of its destinations, as it will stand in their queues.
    fn check_sender<'p>(
        &self,
        sender: &Actor,
        plans: impl Iterator<Item = &'p Plan<'p>>,
    ) -> Result<(), AcceptError> {
        let Some(queue) = self.sender(sender) else { return Ok(()) };
        let Some(limit) = queue.setup.policy.max_backlog else { return Ok(()) };
        let (mut deliveries, mut bytes) = (0, 0);
        for plan in plans.filter(|plan| plan.dead.is_none()) {
            let to = plan.message.destinations.len() as u64;
            deliveries += to;
            bytes += to * plan.prepared.size;
        }
        let (open, open_bytes) = queue.backlog();
        let full = open + deliveries > limit.messages || open_bytes + bytes > limit.bytes;
        match queue.sender_row().filter(|_| full && deliveries > 0) {
            Some(backlog) => Err(SenderFull { backlog, deliveries, bytes }.into()),
            None => Ok(()),
        }
    }

    /// The row that counts what a sender has handed in, as this turn sees it.
    fn sender(&self, sender: &Actor) -> Option<&Queue> {
        let queue = self.memory.sender(sender)?;
        Some(self.queues.get(&queue.id).unwrap_or(queue))
    }

    fn insert(&mut self, sender: &'a Actor, plan: &Plan<'a>) -> Result<Accepted, StoreError> {
        let Plan { message, prepared, .. } = *plan;
        let id = prepared.id;
        let seq = self.next_seq;
        self.next_seq += 1;
        let first = self.new_rows.len();
        let counted_by = self.sender(sender).map(|queue| queue.id);
        for destination in destinations(plan) {
            let row = Row { sender: counted_by, ..self.new_delivery(destination, plan, seq)? };
            self.new_rows.push(row);
        }
        let rows = first..self.new_rows.len();
        self.messages.push(MessageRow { seq, sender, message, prepared });
        let leaf = self.write_accepted_leaf(sender, plan, &id, rows.clone())?;
        for row in &mut self.new_rows[rows.clone()] {
            row.add_leaf(leaf);
        }
        if let Some(reason) = plan.dead {
            self.bury(sender, rows.clone(), reason)?;
        }
        self.account(rows.clone())?;
        let deliveries = self.new_rows[rows.clone()].iter().map(|row| self.describe(row)).collect();
        let new = NewKey { fingerprint: prepared.fingerprint, message: id, seq, rows };
        self.keys_new.insert(prepared.key, new);
        Ok(Accepted { id, duplicate: false, deliveries })
    }

    fn new_delivery(&mut self, destination: &str, plan: &Plan<'_>, seq: i64) -> Result<Row, StoreError> {
        let Plan { message, prepared, .. } = *plan;
        let id = self
            .random
            .uuid(self.now.as_micros())
            .map_err(|error| StoreError::Database(error.to_string()))?;
        let queue = self.queue_named(destination)?;
        let name = queue.setup.name.as_bytes();
        let [lane, barrier] =
            lanes_of(self.vault, name, ordered_by(queue.setup.policy.order, message.into()));
        let delivery = Delivery::accepted(self.now, queue.control.idle_total(self.now), message.expires_at);
        let row = Row {
            pos: self.next_pos,
            id: DeliveryId(id),
            message_seq: seq,
            message: prepared.id,
            salt: Some(prepared.salt),
            size: prepared.size,
            queue: queue.id,
            lane,
            barrier,
            delivery,
            batch: None,
            accepted_at: self.now,
            changed_at: self.now,
            leaves: Vec::with_capacity(24),
            sender: None,
        };
        self.next_pos += 1;
        Ok(row)
    }

    fn write_accepted_leaf(
        &mut self,
        sender: &Actor,
        plan: &Plan<'_>,
        id: &MessageId,
        rows: std::ops::Range<usize>,
    ) -> Result<u64, StoreError> {
        let mut deliveries = Vec::with_capacity(rows.len());
        for row in &self.new_rows[rows] {
            let to = self.queue(row.queue)?.setup.name.clone();
            deliveries.push(LeafDelivery { id: *row.id.as_bytes(), to: to.into() });
        }
        let Prepared { size, content, .. } = plan.prepared;
        let leaf = accepted_leaf(self.now, sender, id, *size, *content, deliveries);
        self.push_leaf(&leaf)
    }

    /// Emitted events that no route takes are dead from the start, for a person to look at.
    fn bury(
        &mut self,
        sender: &Actor,
        rows: std::ops::Range<usize>,
        reason: Reason,
    ) -> Result<(), StoreError> {
        for position in rows {
            let mut row = self.new_rows[position].clone();
            row.delivery.state = State::Dead { reason, holds_lane: false };
            let index = self.new_dead_leaf(&row, reason, sender)?;
            row.add_leaf(index);
            self.new_rows[position] = row;
        }
        Ok(())
    }

    fn new_dead_leaf(&mut self, row: &Row, reason: Reason, sender: &Actor) -> Result<u64, StoreError> {
        self.outcome_leaf(row, Record::Dead, Some(reason), sender, &Extra::default())
    }

    fn account(&mut self, rows: std::ops::Range<usize>) -> Result<(), StoreError> {
        for position in rows {
            let row = self.new_rows[position].clone();
            self.recount(None, &row)?;
            self.traffic.entry(row.queue).or_default().0 += 1;
            self.lanes.extend(row.lanes().map(|lane| (row.queue, lane)));
        }
        Ok(())
    }
}

/// In what order a message is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ordered<'m> {
    No,
    /// With those of the same key.
    ByKey(&'m str),
    /// With those of either key.
    ByBoth(&'m str, &'m str),
    /// With all of its queue.
    WithAll,
}

/// The keys that a message is ordered by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OrderKeys<'m> {
    pub(super) partition: Option<&'m str>,
    pub(super) barrier: Option<&'m str>,
}

impl<'m> From<&'m NewMessage> for OrderKeys<'m> {
    fn from(message: &'m NewMessage) -> Self {
        Self { partition: message.partition_key.as_deref(), barrier: message.barrier_key.as_deref() }
    }
}

/// How a queue of this order takes a message.
pub(super) fn ordered_by(order: Order, keys: OrderKeys<'_>) -> Ordered<'_> {
    match (order, keys.partition, keys.barrier) {
        (Order::None, ..) | (Order::Key, None, None) => Ordered::No,
        (Order::Key, Some(key), Some(other)) if key != other => Ordered::ByBoth(key, other),
        (Order::Key, Some(key), _) | (Order::Key, None, Some(key)) => Ordered::ByKey(key),
        (Order::Strict, ..) => Ordered::WithAll,
    }
}

/// The lanes of queue `name` in which it stands so.
pub(super) fn lanes_of(vault: &Vault, name: &[u8], ordered: Ordered<'_>) -> [Option<Index>; 2] {
    let of = |key: &str| Some(vault.index(Domain::Lane, &[name, key.as_bytes()]));
    match ordered {
        Ordered::No => [None, None],
        Ordered::ByKey(key) => [of(key), None],
        Ordered::ByBoth(key, other) => [of(key), of(other)],
        Ordered::WithAll => [Some(vault.index(Domain::Lane, &[name])), None],
    }
}

fn destinations<'p>(plan: &Plan<'p>) -> impl Iterator<Item = &'p str> {
    let buried = plan.dead.is_some();
    let routed = plan.message.destinations.iter().map(String::as_str).filter(move |_| !buried);
    routed.chain(buried.then_some(UNROUTED))
}
