//! One group of operations on its way to one commit: what has been decided so far, over what the database holds.
//!
//! A turn writes nothing; if its commit fails it is dropped and nothing has happened.

use std::collections::{BTreeMap, HashMap, HashSet};

use gatepost_audit::{Event as LeafEvent, Leaf};
use gatepost_core::delivery::{Change, Moment, Reason, Record};
use gatepost_core::message::NewMessage;
use gatepost_core::principal::Actor;
use gatepost_core::queue::TripReason;
use gatepost_core::{Delivery, DeliveryId, Level, MessageId, Timestamp};

use super::leaf::{actor, event_of, leaf_level, leaf_state};
use super::memory::{Memory, Queue};
use super::needs::Lanes;
use super::piecemeal::Piece;
use crate::leaves::Runs;
use crate::ops::StoreError;
use crate::prepared::Prepared;
use crate::random::Random;
use crate::row::Row;
use crate::seal::{Index, Owner, Vault, commitment};

pub(crate) struct Turn<'a> {
    pub(crate) now: Timestamp,
    pub(crate) instance_epoch: u32,
    pub(crate) memory: &'a Memory,
    pub(crate) vault: &'a Vault,
    pub(crate) random: &'a mut Random,
    pub(crate) gateway: &'a Actor,
    /// Rows read for this turn.
    pub(crate) loaded: HashMap<DeliveryId, Row>,
    /// Lanes of which all that is in flight was read for this turn, and stays all until its end.
    pub(crate) lanes_read: Lanes,
    /// Lanes of which that would have had to be so.
    pub(crate) lanes_unread: Lanes,
    /// Of queues that are held: their suspects in flight when the turn began, whichever node leased them.
    pub(crate) suspects: HashMap<i64, Vec<Row>>,
    pub(crate) queues: HashMap<i64, Queue>,
    pub(crate) touched: HashMap<DeliveryId, Touched>,
    pub(crate) new_rows: Vec<Row>,
    pub(crate) lanes: HashSet<(i64, Index)>,
    pub(crate) leaves: Runs,
    pub(crate) next_seq: i64,
    pub(crate) next_pos: i64,
    pub(crate) keys_new: HashMap<Index, NewKey>,
    pub(crate) messages: Vec<MessageRow<'a>>,
    /// Of payloads whose messages are still to come.
    pub(crate) pieces: Vec<Piece<'a>>,
    pub(crate) details: Vec<Detail>,
    pub(crate) replies: Vec<Reply>,
    /// The last word on each key of an adapter's state.
    pub(crate) states: BTreeMap<(String, String), Option<Vec<u8>>>,
    /// Lanes are looked through to this width, whatever their queue's window is now: it was another before.
    pub(crate) width_before: u32,
    /// Deliveries accepted and ended, by queue.
    pub(crate) traffic: HashMap<i64, (u64, u64)>,
    /// Messages of which a delivery has ended.
    pub(crate) ended: Vec<MessageId>,
}

/// A row as it was before the turn and as it is now.
pub(crate) struct Touched {
    pub(crate) was: Row,
    pub(crate) now: Row,
}

impl Touched {
    /// Whether what had ended is to be delivered again.
    pub(crate) fn is_unsettled_again(&self) -> bool {
        self.was.delivery.state.is_terminal() && !self.now.delivery.state.is_terminal()
    }
}

/// A new message; it is written from where it came.
pub(crate) struct MessageRow<'a> {
    pub(crate) seq: i64,
    pub(crate) sender: &'a Actor,
    pub(crate) message: &'a NewMessage,
    pub(crate) prepared: &'a Prepared,
}

/// What only the database keeps of a step.
pub(crate) struct Detail {
    pub(crate) leaf: u64,
    pub(crate) delivery: i64,
    /// The message; what is said of its deliveries goes with its content.
    pub(crate) accepted_at: Timestamp,
    /// Sealed.
    pub(crate) body: Vec<u8>,
}

/// What a partner answered that ended the delivery. It goes where that is to be delivered again.
pub(crate) struct Reply {
    pub(crate) delivery: i64,
    /// As [`Detail::accepted_at`].
    pub(crate) accepted_at: Timestamp,
    /// Sealed.
    pub(crate) body: Vec<u8>,
}

/// An idempotency key first used in this turn.
pub(crate) struct NewKey {
    pub(crate) fingerprint: Index,
    pub(crate) message: MessageId,
    /// Of the message.
    pub(crate) seq: i64,
    /// Positions in `new_rows`.
    pub(crate) rows: std::ops::Range<usize>,
}

/// What a leaf says besides what every outcome's says.
#[derive(Default)]
pub(crate) struct Extra<'b> {
    pub(crate) level: Option<Level>,
    pub(crate) evidence: Option<&'b [u8]>,
    /// Free text, kept in the database only.
    pub(crate) reason: Option<&'b str>,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(
        now: Timestamp,
        instance_epoch: u32,
        memory: &'a Memory,
        vault: &'a Vault,
        random: &'a mut Random,
        gateway: &'a Actor,
    ) -> Self {
        Self {
            now,
            instance_epoch,
            memory,
            vault,
            random,
            gateway,
            loaded: HashMap::new(),
            lanes_read: Lanes::new(),
            lanes_unread: Lanes::new(),
            suspects: HashMap::new(),
            queues: HashMap::new(),
            touched: HashMap::new(),
            new_rows: Vec::new(),
            lanes: HashSet::new(),
            leaves: Runs::of_bytes(memory.leaf_count, memory.run_bytes),
            next_seq: memory.next_seq,
            next_pos: memory.next_pos,
            keys_new: HashMap::new(),
            messages: Vec::new(),
            pieces: Vec::new(),
            details: Vec::new(),
            replies: Vec::new(),
            states: BTreeMap::new(),
            width_before: 1,
            traffic: HashMap::new(),
            ended: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.touched.is_empty()
            && self.new_rows.is_empty()
            && self.leaves.count() == 0
            && self.states.is_empty()
            && self.queues.is_empty()
            && self.lanes.is_empty()
            && self.pieces.is_empty()
    }

    /// The delivery as this turn sees it: its own change of it, else the row read, which is newer than the lease in memory.
    pub(crate) fn row(&self, id: &DeliveryId) -> Option<&Row> {
        self.touched
            .get(id)
            .map(|touched| &touched.now)
            .or_else(|| self.loaded.get(id))
            .or_else(|| self.memory.hot.get(id))
    }

    pub(crate) fn queue(&self, id: i64) -> Result<&Queue, StoreError> {
        self.queues.get(&id).or_else(|| self.memory.queues.get(&id)).ok_or_else(|| StoreError::Corrupt {
            table: "delivery",
            column: "queue",
            row: id.to_string(),
        })
    }

    pub(crate) fn queue_named(&self, name: &str) -> Result<&Queue, StoreError> {
        let queue = self.memory.queue(name).ok_or_else(|| StoreError::NoQueue(name.to_owned()))?;
        self.queue(queue.id)
    }

    pub(crate) fn queue_mut(&mut self, id: i64) -> Result<&mut Queue, StoreError> {
        if !self.queues.contains_key(&id) {
            let queue = self.queue(id)?.clone();
            self.queues.insert(id, queue);
        }
        self.queues.get_mut(&id).ok_or_else(|| StoreError::Corrupt {
            table: "delivery",
            column: "queue",
            row: id.to_string(),
        })
    }

    /// Runs `decide` with the moment that holds for a delivery of `queue`.
    pub(crate) fn at_moment<T>(
        &mut self,
        queue: i64,
        decide: impl FnOnce(&Moment<'_>) -> T,
    ) -> Result<T, StoreError> {
        let jitter = self.jitter()?;
        let queue = self.queue(queue)?;
        let moment = Moment {
            now: self.now,
            policy: &queue.setup.policy,
            idle_total: queue.control.idle_total(self.now),
            jitter,
        };
        Ok(decide(&moment))
    }

    pub(crate) fn jitter(&mut self) -> Result<f64, StoreError> {
        self.random.jitter().map_err(|error| StoreError::Database(error.to_string()))
    }

    /// Takes a change up: counts, lane, leaf, details.
    pub(crate) fn change(
        &mut self,
        row: Row,
        change: &Change,
        by: &Actor,
        extra: &Extra<'_>,
    ) -> Result<(), StoreError> {
        if !change.delivery.state.in_flight() {
            self.find_probe(&row)?;
        }
        let mut now_row = Row { delivery: change.delivery, ..row.clone() };
        if row.delivery.state.as_str() != change.delivery.state.as_str() {
            now_row.changed_at = self.now;
        }
        if change.delivery.lease().is_none() {
            now_row.batch = None;
        }
        if let Some((record, reason)) = change.record {
            let index = self.outcome_leaf(&now_row, record, reason, by, extra)?;
            now_row.add_leaf(index);
            self.detail(index, &now_row, extra)?;
        }
        self.replace(row, now_row)
    }

    /// Replaces a row by what it has become.
    pub(crate) fn replace(&mut self, was: Row, now: Row) -> Result<(), StoreError> {
        self.recount(Some(&was), &now)?;
        self.lanes.extend(was.lanes().map(|lane| (was.queue, lane)));
        if now.delivery.state.is_terminal() && !was.delivery.state.is_terminal() {
            self.traffic.entry(now.queue).or_default().1 += 1;
            self.ended.push(now.message);
        }
        self.touch(was, now);
        Ok(())
    }

    /// Brings the counts of queue and sender in line with what a delivery has become, or with a new one.
    pub(crate) fn recount(&mut self, was: Option<&Row>, now: &Row) -> Result<(), StoreError> {
        if let Some(was) = was {
            self.queue_mut(was.queue)?.counts.remove(was);
        }
        self.queue_mut(now.queue)?.counts.add(now);
        let ended = |row: &Row| row.delivery.state.is_terminal();
        // Most changes are none to the sender, whose row is then not written.
        if was.is_none_or(ended) != ended(now)
            && let Some(sender) = now.sender
        {
            self.sender_mut(sender).counts.follow(was, now);
        }
        Ok(())
    }

    /// The row that counts what a sender has handed in. Of one that another node knows by its new configuration, and this one not yet,
    /// only what comes to its counts is known.
    fn sender_mut(&mut self, id: i64) -> &mut Queue {
        let memory = self.memory;
        let known = || memory.queues.get(&id).cloned().unwrap_or_else(|| Queue::of_unknown_sender(id));
        self.queues.entry(id).or_insert_with(known)
    }

    pub(crate) fn touch(&mut self, was: Row, now: Row) {
        match self.touched.get_mut(&now.id) {
            Some(touched) => touched.now = now,
            None => drop(self.touched.insert(now.id, Touched { was, now })),
        }
    }

    pub(crate) fn outcome_leaf(
        &mut self,
        row: &Row,
        record: Record,
        reason: Option<Reason>,
        by: &Actor,
        extra: &Extra<'_>,
    ) -> Result<u64, StoreError> {
        let leaf = self.step_leaf(row, record, reason, by, extra)?;
        self.push_leaf(&leaf)
    }

    /// The leaf of a delivery that is at another destination now.
    pub(crate) fn moved_leaf(
        &mut self,
        row: &Row,
        record: Record,
        reason: Option<Reason>,
        from: &str,
        by: &Actor,
    ) -> Result<u64, StoreError> {
        let mut leaf = self.step_leaf(row, record, reason, by, &Extra::default())?;
        leaf.subject_of = Some(from.into());
        self.push_leaf(&leaf)
    }

    fn step_leaf<'l>(
        &self,
        row: &Row,
        record: Record,
        reason: Option<Reason>,
        by: &'l Actor,
        extra: &Extra<'_>,
    ) -> Result<Leaf<'l>, StoreError> {
        let delivery = &row.delivery;
        let evidence = match (extra.evidence, &row.salt) {
            (Some(evidence), Some(salt)) => Some(commitment(&self.vault.clear(salt)?, evidence)),
            _ => None,
        };
        let destination = self.queue(row.queue)?.setup.name.clone();
        let mut leaf = Leaf::new(self.now.as_micros(), actor(by), event_of(record));
        leaf.delivery = Some(*row.id.as_bytes());
        leaf.destination = Some(destination.into());
        leaf.code = reason.map(|reason| reason.as_str().into());
        leaf.evidence = evidence;
        leaf.level = extra.level.map(leaf_level);
        leaf.doubt = delivery.doubt.then_some(true);
        leaf.series = (delivery.series > 0).then_some(delivery.series);
        match record {
            Record::Attempt => {
                leaf.attempt = Some(delivery.attempts + 1);
                leaf.session = delivery.lease().map(|lease| lease.session).filter(|&session| session > 0);
            }
            Record::Sent
            | Record::Delivered
            | Record::Retry
            | Record::Released
            | Record::InDoubt
            | Record::Dead
            | Record::Expired
            | Record::Resolved
            | Record::Replayed
            | Record::Discarded
            | Record::Moved => {
                leaf.attempts = Some(delivery.attempts);
                leaf.state = Some(leaf_state(&delivery.state));
            }
        }
        Ok(leaf)
    }

    pub(crate) fn detail(&mut self, leaf: u64, row: &Row, extra: &Extra<'_>) -> Result<(), StoreError> {
        if extra.reason.is_none() && extra.evidence.is_none() {
            return Ok(());
        }
        let evidence = extra.evidence.and_then(|bytes| std::str::from_utf8(bytes).ok());
        let body = DetailBody { reason: extra.reason, evidence };
        // Serialising two strings cannot fail.
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let owner = Owner::Detail { leaf: i64::try_from(leaf).unwrap_or(i64::MAX), delivery: row.pos };
        let body = self.vault.seal(&json, owner)?;
        self.details.push(Detail { leaf, delivery: row.pos, accepted_at: row.accepted_at, body });
        Ok(())
    }

    /// Adds a leaf and returns its index in the tree.
    pub(crate) fn push_leaf(&mut self, leaf: &Leaf<'_>) -> Result<u64, StoreError> {
        let bytes = leaf.encode().map_err(|error| StoreError::Audit(error.to_string()))?;
        self.leaves.push(&bytes).map_err(|error| StoreError::Audit(error.to_string()))
    }

    /// A leaf about a queue: pause, resume, trip.
    pub(crate) fn queue_leaf(
        &mut self,
        event: LeafEvent,
        by: &Actor,
        queue: &str,
        code: Option<&'static str>,
    ) -> Result<(), StoreError> {
        let mut leaf = Leaf::new(self.now.as_micros(), actor(by), event);
        leaf.subject_of = Some(queue.into());
        leaf.code = code.map(Into::into);
        self.push_leaf(&leaf).map(drop)
    }

    /// Opens or keeps open the breaker of a queue.
    pub(crate) fn trouble(
        &mut self,
        queue: i64,
        from: Option<DeliveryId>,
        reason: TripReason,
        after: Option<std::time::Duration>,
    ) -> Result<(), StoreError> {
        let (now, jitter) = (self.now, self.jitter()?);
        let queue = self.queue_mut(queue)?;
        let policy = queue.setup.policy;
        let opened = queue.control.trouble(from, reason, after, now, &policy, jitter);
        let name = queue.setup.name.clone();
        if opened {
            let gateway = self.gateway;
            self.queue_leaf(LeafEvent::BreakerTripped, gateway, &name, Some(reason.as_str()))?;
        }
        Ok(())
    }

    /// Closes the breaker of a queue whose partner has answered.
    pub(crate) fn answered(&mut self, queue: i64) -> Result<(), StoreError> {
        if self.queue(queue)?.control.trip.is_none() {
            return Ok(());
        }
        let now = self.now;
        let queue = self.queue_mut(queue)?;
        queue.control.answered(now);
        let name = queue.setup.name.clone();
        let gateway = self.gateway;
        self.queue_leaf(LeafEvent::BreakerResumed, gateway, &name, None)
    }

    /// Recognises the breaker's probe that another node has leased.
    fn find_probe(&mut self, row: &Row) -> Result<(), StoreError> {
        if self.memory.is_shared
            && self.queue(row.queue)?.may_be_probe(row)
            && let Some(trip) = &mut self.queue_mut(row.queue)?.control.trip
        {
            trip.probe = Some(row.id);
        }
        Ok(())
    }

    /// If the delivery was the breaker's probe, lets the next one go after the usual pause.
    pub(crate) fn probe_lost(&mut self, queue: i64, delivery: DeliveryId) -> Result<(), StoreError> {
        let is_probe = self.queue(queue)?.control.trip.is_some_and(|trip| trip.probe == Some(delivery));
        if is_probe {
            let (now, jitter) = (self.now, self.jitter()?);
            let queue = self.queue_mut(queue)?;
            let policy = queue.setup.policy;
            queue.control.probe_lost(delivery, now, &policy, jitter);
        }
        Ok(())
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct DetailBody<'b> {
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    pub(crate) reason: Option<&'b str>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    pub(crate) evidence: Option<&'b str>,
}

/// Whether a change took the delivery out of its lease and left it standing in its lane's way.
pub(crate) fn went_back(was: &Delivery, now: &Delivery) -> bool {
    was.lease().is_some() && now.lease().is_none() && now.state.blocks_lane()
}
