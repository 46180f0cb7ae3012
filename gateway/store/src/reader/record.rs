//! What a database says, before anything is made of it: the same from each. Contents are sealed still.

use gatepost_core::delivery::Reason;
use gatepost_core::message::DataForm;
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{DeliveryId, MessageId, Timestamp};

use crate::ops::{DeliveryRow, StoreError};
use crate::row::{form_of, state_name};
use crate::seal::{Place, Salt};

/// A row of a list: its number, by which pages are cut, and what it says if it is sound.
pub(crate) struct Listed<T> {
    pub(crate) number: i64,
    pub(crate) row: Result<T, StoreError>,
}

/// A message without its content.
pub(crate) struct MessageHead {
    pub(crate) seq: i64,
    pub(crate) id: MessageId,
    pub(crate) sender: Actor,
    pub(crate) accepted_at: Timestamp,
    /// CloudEvents type.
    pub(crate) kind: String,
    pub(crate) form: DataForm,
    /// Payload bytes.
    pub(crate) size: u64,
}

pub(crate) struct MessageRecord {
    pub(crate) head: MessageHead,
    /// Sealed.
    pub(crate) attributes: Vec<u8>,
    pub(crate) payload: Payload,
}

pub(crate) enum Payload {
    Purged,
    /// It is there and was not asked for.
    Unread,
    Read {
        salt: Salt,
        sealed: Vec<u8>,
    },
}

pub(crate) struct DeliveryRecord {
    pub(crate) pos: i64,
    pub(crate) item: DeliveryRow,
}

/// A delivery and the numbers of its audit leaves, oldest first.
pub(crate) struct DeliveryLeaves {
    pub(crate) pos: i64,
    pub(crate) id: DeliveryId,
    pub(crate) numbers: Vec<u64>,
}

pub(crate) struct DetailRecord {
    /// Number of the audit leaf it belongs to.
    pub(crate) leaf: i64,
    /// Sealed.
    pub(crate) body: Vec<u8>,
}

pub(crate) struct ReplyRecord {
    pub(crate) pos: i64,
    /// Sealed.
    pub(crate) body: Vec<u8>,
}

/// A message's columns as they stand.
pub(super) struct MessageColumns {
    pub(super) seq: i64,
    pub(super) id: [u8; 16],
    pub(super) accepted_at: i64,
    pub(super) sender_kind: String,
    pub(super) sender: String,
    pub(super) kind: String,
    pub(super) form: i64,
    pub(super) size: i64,
}

impl MessageColumns {
    pub(super) fn read(self) -> Result<MessageHead, StoreError> {
        let place = |column| Place { table: "message", column, row: self.seq };
        let sender_kind = ActorKind::from_name(&self.sender_kind);
        let sender_kind = sender_kind.ok_or_else(|| place("sender_kind").corrupt())?;
        Ok(MessageHead {
            seq: self.seq,
            id: MessageId::from_bytes(self.id),
            accepted_at: Timestamp::from_micros(self.accepted_at),
            form: form_of(self.form).ok_or_else(|| place("form").corrupt())?,
            size: place("size").count(self.size)?,
            sender: Actor::new(sender_kind, self.sender),
            kind: self.kind,
        })
    }
}

/// The columns of a delivery that lists show, as they stand.
pub(super) struct DeliveryColumns {
    pub(super) pos: i64,
    pub(super) id: [u8; 16],
    pub(super) message: [u8; 16],
    pub(super) destination: String,
    pub(super) state: i64,
    pub(super) reason: Option<String>,
    pub(super) attempts: i64,
    pub(super) series: i64,
    pub(super) doubt: bool,
    pub(super) replayed: bool,
    pub(super) accepted_at: i64,
    pub(super) changed_at: i64,
    pub(super) due: Option<i64>,
}

impl DeliveryColumns {
    pub(super) fn read(self) -> Result<DeliveryRecord, StoreError> {
        let pos = self.pos;
        let place = |column| Place { table: "delivery", column, row: pos };
        let count = |column, value: i64| u32::try_from(value).map_err(|_| place(column).corrupt());
        let state = state_name(self.state).ok_or_else(|| place("state").corrupt())?;
        let dead = self.reason.as_deref().and_then(Reason::from_code);
        let held = state == "in_doubt" && self.due.is_none();
        let item = DeliveryRow {
            id: DeliveryId::from_bytes(self.id),
            message: MessageId::from_bytes(self.message),
            destination: self.destination,
            state,
            reason: dead.map(Reason::as_str).or(held.then_some("held")),
            attempts: count("attempts", self.attempts)?,
            series: count("series", self.series)?,
            doubt: self.doubt,
            replayed: self.replayed,
            accepted_at: Timestamp::from_micros(self.accepted_at),
            changed_at: Timestamp::from_micros(self.changed_at),
            due: self.due.map(Timestamp::from_micros),
        };
        Ok(DeliveryRecord { pos, item })
    }
}

/// The numbers in a delivery's list of leaves, eight bytes each, big endian.
pub(super) fn leaf_numbers(leaves: &[u8]) -> Vec<u64> {
    let (numbers, _) = leaves.as_chunks::<8>();
    numbers.iter().map(|number| u64::from_be_bytes(*number)).collect()
}

/// A node as its row and those that name it say.
pub(crate) struct NodeRecord {
    pub(crate) name: String,
    pub(crate) epoch: u32,
    pub(crate) version: String,
    pub(crate) since: Timestamp,
    pub(crate) until: Timestamp,
    pub(crate) roles: Vec<String>,
    /// Buckets by the name of their queue.
    pub(crate) buckets: Vec<(String, u32)>,
}
