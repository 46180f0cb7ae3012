//! What the log says of what the database has not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use gatepost_audit::{Event, Leaf};
use gatepost_core::delivery::Reason;
use gatepost_core::{Delivery, DeliveryId, MessageId, State, Timestamp};

use super::found::Found;
use crate::row::Row;

/// A delivery that the log knows and the database has not, as the log left it.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    pub(super) message: [u8; 16],
    pub(super) to: String,
    pub(super) state: Option<gatepost_audit::State>,
    pub(super) code: Option<String>,
    pub(super) attempts: u32,
    pub(super) series: u32,
    pub(super) at: i64,
    pub(super) entries: Vec<u64>,
}

/// A message that the log knows and the database has not.
#[derive(Clone, Debug)]
pub(super) struct RecordedMessage {
    pub(super) at: i64,
    pub(super) size: u64,
    pub(super) by: (gatepost_audit::ActorKind, String),
}

impl Recorded {
    pub(super) fn ended(&self) -> bool {
        use gatepost_audit::State;
        match self.state {
            Some(State::Delivered | State::Expired | State::Discarded) => true,
            Some(State::Waiting | State::Leased | State::Sending | State::InDoubt | State::Dead) | None => {
                false
            }
        }
    }

    /// The delivery as the log left it.
    pub(super) fn row(&self, pos: i64, id: [u8; 16], message_seq: i64, queue: i64) -> Row {
        use gatepost_audit::State as Said;
        let when = Timestamp::from_micros(self.at);
        let mut delivery = Delivery::accepted(when, std::time::Duration::ZERO, None);
        let reason = self.code.as_deref().and_then(Reason::from_code).unwrap_or(Reason::Corrupt);
        delivery.state = match self.state {
            Some(Said::Delivered) => State::Delivered,
            Some(Said::Expired) => State::Expired,
            Some(Said::Discarded) => State::Discarded,
            Some(Said::Dead) => State::Dead { reason, holds_lane: false },
            // It ends in the next step.
            Some(Said::Waiting | Said::Leased | Said::Sending | Said::InDoubt) | None => delivery.state,
        };
        (delivery.attempts, delivery.series) = (self.attempts, self.series);
        Row {
            pos,
            id: DeliveryId::from_bytes(id),
            message_seq,
            message: MessageId::from_bytes(self.message),
            salt: None,
            size: 0,
            queue,
            lane: None,
            barrier: None,
            delivery,
            batch: None,
            accepted_at: when,
            changed_at: when,
            leaves: self.entries.iter().flat_map(|index| index.to_be_bytes()).collect(),
            // It has ended, or will have in a moment.
            sender: None,
        }
    }
}

/// What the log says of what the database has not.
#[derive(Default)]
pub(super) struct Record {
    pub(super) missing_messages: BTreeMap<[u8; 16], RecordedMessage>,
    pub(super) missing_deliveries: BTreeMap<[u8; 16], Recorded>,
    /// The message of a delivery, where the message's row is missing.
    pub(super) messages_by_delivery: HashMap<[u8; 16], [u8; 16]>,
    /// Names of queues whose rows are missing.
    pub(super) queue_names: BTreeMap<i64, String>,
    /// Newest session of each adapter.
    pub(super) sessions: HashMap<String, u64>,
    pub(super) starts: u32,
    /// Time of the newest entry.
    pub(super) newest: i64,
}

/// Makes the record while the log is read.
pub(super) struct Recorder<'f> {
    found: &'f Found,
    /// Messages by their ids.
    known: HashSet<[u8; 16]>,
    record: Record,
}

impl<'f> Recorder<'f> {
    pub(super) fn new(found: &'f Found) -> Self {
        Self {
            found,
            known: found.messages.values().map(|message| message.id).collect(),
            record: Record::default(),
        }
    }

    /// Takes an entry. One that cannot be read says nothing; that it cannot be read is the verifier's to say.
    pub(super) fn take(&mut self, index: u64, entry: &[u8]) -> io::Result<()> {
        let Ok(leaf) = Leaf::parse(entry) else { return Ok(()) };
        self.record.newest = leaf.at.max(self.record.newest);
        match leaf.event {
            Event::GatewayStarted => self.record.starts = self.record.starts.saturating_add(1),
            Event::Accepted | Event::Emitted => self.accepted(index, &leaf),
            Event::SessionOpened => {
                let newest = self.record.sessions.entry(leaf.by.name.to_string()).or_default();
                *newest = leaf.session.unwrap_or(0).max(*newest);
            }
            _ => self.advanced(index, &leaf),
        }
        Ok(())
    }

    fn accepted(&mut self, index: u64, leaf: &Leaf<'_>) {
        let message = leaf.message.unwrap_or_default();
        let missing = !self.known.contains(&message);
        if missing {
            let by = (leaf.by.kind, leaf.by.name.to_string());
            let recorded = RecordedMessage { at: leaf.at, size: leaf.size.unwrap_or(0), by };
            self.record.missing_messages.insert(message, recorded);
        }
        for delivery in &leaf.deliveries {
            match self.found.deliveries.get(&delivery.id) {
                Some(known) => {
                    if missing {
                        self.record.messages_by_delivery.insert(delivery.id, message);
                    }
                    self.name_queue(known.queue, &delivery.to);
                    if let Some(sender) = known.sender {
                        self.name_queue(sender, &format!("{}:{}", leaf.by.kind.as_str(), leaf.by.name));
                    }
                }
                None => {
                    let to = delivery.to.to_string();
                    let recorded =
                        Recorded { message, to, at: leaf.at, entries: vec![index], ..Recorded::default() };
                    self.record.missing_deliveries.insert(delivery.id, recorded);
                }
            }
        }
    }

    fn name_queue(&mut self, queue: i64, name: &str) {
        if !self.found.queues.contains_key(&queue) {
            self.record.queue_names.insert(queue, name.to_owned());
        }
    }

    fn advanced(&mut self, index: u64, leaf: &Leaf<'_>) {
        let Some(id) = leaf.delivery else { return };
        if let (Some(known), Some(to)) = (self.found.deliveries.get(&id), &leaf.destination) {
            return self.name_queue(known.queue, to);
        }
        let Some(recorded) = self.record.missing_deliveries.get_mut(&id) else { return };
        recorded.entries.push(index);
        recorded.at = leaf.at;
        if leaf.event == Event::Attempt {
            recorded.state = Some(gatepost_audit::State::Sending);
        }
        recorded.state = leaf.state.or(recorded.state);
        recorded.code = leaf.code.as_deref().map(str::to_owned);
        recorded.attempts = leaf.attempts.unwrap_or(recorded.attempts);
        recorded.series = leaf.series.unwrap_or(0);
        if let Some(to) = &leaf.destination {
            recorded.to = to.to_string();
        }
    }

    pub(super) fn done(self) -> Record {
        self.record
    }
}
