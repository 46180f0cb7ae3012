//! What goes into and comes out of the store's operations. Each operation is one transaction; a lost race is a value.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use gatepost_core::delivery::{Reason, Resolution};
use gatepost_core::message::{DataForm, NewMessage};
use gatepost_core::policy::BacklogLimit;
use gatepost_core::principal::{Actor, SendPermit};
use gatepost_core::queue::TripReason;
use gatepost_core::{DeliveryId, LeaseToken, MessageId, Outcome, QueuePolicy, Timestamp};

/// The built-in queue that keeps emitted events which no route takes; they are dead on arrival.
pub const UNROUTED: &str = "unrouted";

/// A queue as the configuration describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    pub name: String,
    pub kind: QueueKind,
    pub sessions: Sessions,
    pub policy: QueuePolicy,
}

impl QueueSetup {
    /// Somebody who may hand in messages, and how much of that may be unsettled.
    pub fn sender(sender: &Actor, limit: Option<BacklogLimit>) -> Self {
        let policy = QueuePolicy { max_backlog: limit, ..QueuePolicy::default() };
        // No queue has such a name: theirs have no colon.
        let name = sender.to_string();
        Self { name, kind: QueueKind::Sender, sessions: Sessions::default(), policy }
    }
}

/// Whose earlier sessions the next session of an adapter ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sessions {
    /// All of them: it runs once, whatever the number of nodes.
    #[default]
    One,
    /// Those of the same node: it runs on each.
    OfNode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueKind {
    /// An adapter that the gateway starts: its leases end with the gateway.
    Adapter,
    /// An adapter that is run elsewhere: its leases survive the gateway's restart.
    ExternalAdapter,
    Inbox,
    Builtin,
    /// It has left the configuration with deliveries in it.
    Removed,
    /// No queue: an app or an adapter, of which is counted what it has handed in.
    Sender,
}

impl QueueKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adapter => "adapter",
            Self::ExternalAdapter => "external_adapter",
            Self::Inbox => "inbox",
            Self::Builtin => "builtin",
            Self::Removed => "removed",
            Self::Sender => "sender",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Adapter, Self::ExternalAdapter, Self::Inbox, Self::Builtin, Self::Removed, Self::Sender]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }
}

// === accept ===

/// Messages of one request: all of them are accepted, or none.
#[derive(Debug)]
pub struct Accept {
    pub permit: SendPermit,
    /// An adapter's session.
    pub session: Option<u64>,
    pub messages: Vec<NewMessage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub id: MessageId,
    pub duplicate: bool,
    pub deliveries: Vec<AcceptedDelivery>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedDelivery {
    pub id: DeliveryId,
    pub destination: String,
    /// As [`gatepost_core::State::as_str`].
    pub state: &'static str,
}

/// What a sender hands in would exceed what of it may be unsettled; nothing of it was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the backlog of {} is full", backlog.sender)]
pub struct SenderFull {
    pub backlog: SenderRow,
    /// Deliveries that would have been added, and their bytes.
    pub deliveries: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The position in the request of the event whose key was used with other content.
    #[error("event {0} uses an idempotency key again with other content")]
    Mismatch(usize),
    #[error("the backlog of {0} is full")]
    QueueFull(String),
    #[error(transparent)]
    SenderFull(#[from] SenderFull),
    #[error("a newer session is open")]
    Superseded,
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === lease ===

#[derive(Clone, Debug)]
pub struct LeaseRequest {
    pub consumer: Actor,
    pub queue: String,
    pub max: u32,
    pub max_bytes: u64,
    pub lease: Duration,
    pub request_id: Option<String>,
    /// An adapter's session; inboxes have none.
    pub session: Option<u64>,
}

#[derive(Debug, Default)]
pub struct LeaseAnswer {
    pub deliveries: Vec<Leased>,
    /// When asking again may give something although nothing happens until then.
    pub next_due: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct Leased {
    pub delivery: DeliveryId,
    pub token: LeaseToken,
    /// From 1.
    pub attempt: u32,
    pub doubt: bool,
    pub replayed: bool,
    /// What is left of the lease, without the store's margin.
    pub lease: Duration,
    pub message: StoredMessage,
}

/// A message as accepted. `Debug` shows no attribute and no payload.
#[derive(Clone)]
pub struct StoredMessage {
    pub id: MessageId,
    pub sender: Actor,
    pub accepted_at: Timestamp,
    /// The event's JSON object without data, as UTF-8.
    pub attributes: Bytes,
    pub form: DataForm,
    /// Payload size, bytes.
    pub size: u64,
    /// Absent when it is over the inline limit, was not asked for, or has been purged.
    pub data: Option<Bytes>,
    pub purged: bool,
}

impl fmt::Debug for StoredMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredMessage({}, {} bytes)", self.id, self.size)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("a newer session is open")]
    Superseded,
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === settle ===

pub struct Settle {
    pub consumer: Actor,
    /// The queues whose deliveries it may settle; others are answered as stale and unknown.
    pub queues: Vec<String>,
    pub session: Option<u64>,
    pub items: Vec<SettleItem>,
    pub emit: Vec<Emit>,
    /// Changes of the adapter's state: a value to set, `None` to delete.
    pub state: Vec<(String, Option<Vec<u8>>)>,
    pub atomic: bool,
}

pub struct SettleItem {
    pub delivery: DeliveryId,
    /// `None` when the token on the wire is not even one: answered as stale.
    pub token: Option<LeaseToken>,
    pub outcome: Outcome,
    pub reason: Option<String>,
    /// JSON text.
    pub evidence: Option<Vec<u8>>,
    /// JSON text: `{datacontenttype, data | data_base64}`.
    pub reply: Option<Vec<u8>>,
}

/// An event emitted in reply, routed by the caller.
pub struct Emit {
    pub message: NewMessage,
    /// Why it goes to `unrouted`, if it does; `message.destinations` is then not read.
    pub dead: Option<Reason>,
}

#[derive(Debug)]
pub struct SettleAnswer {
    pub items: Vec<SettledItem>,
    pub emitted: Vec<(MessageId, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettledItem {
    pub delivery: DeliveryId,
    pub ok: bool,
    /// As [`gatepost_core::State::as_str`], or `unknown`.
    pub state: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    #[error("a newer session is open")]
    Superseded,
    /// Nothing was written; the items say which was stale.
    #[error("an item of an atomic settle is stale")]
    Refused(Vec<SettledItem>),
    #[error("delivery {delivery}: {refusal}")]
    Protocol { delivery: DeliveryId, refusal: gatepost_core::delivery::Refusal },
    #[error("emitted event {0} uses an idempotency key again with other content")]
    Mismatch(usize),
    /// Nothing was written: an emitted event finds its destination's backlog full.
    #[error("the backlog of {0} is full")]
    QueueFull(String),
    /// Nothing was written: an adapter takes something in while too much of what it has taken in is not settled.
    #[error(transparent)]
    SenderFull(#[from] SenderFull),
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === sessions ===

#[derive(Debug)]
pub struct Session {
    pub epoch: u64,
    pub state: Vec<(String, Vec<u8>)>,
    /// Which earlier ones it has ended.
    pub(crate) sessions: Sessions,
}

/// That this gateway is the one, of all nodes, that runs an adapter. It stands as long as [`crate::Health::role_stands`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterRole {
    /// The start of this gateway that has it.
    pub(crate) node: u32,
}

/// How an adapter's session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The process died: its leases become suspect.
    Crashed,
    /// The gateway stopped it: its leases cost nothing.
    Stopped,
}

// === operators ===

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Replay,
    Discard,
    Resolve(Resolution),
}

#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    #[error("there is no such delivery")]
    NotFound,
    #[error(transparent)]
    Illegal(#[from] gatepost_core::Illegal),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One step of moving deliveries from one destination to another.
#[derive(Clone, Debug)]
pub(crate) struct MoveStep {
    pub(crate) operator: Actor,
    pub(crate) from: String,
    pub(crate) to: String,
    /// The position after which it goes on.
    pub(crate) after: i64,
    pub(crate) reason: String,
}

/// What a step has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub waiting: u64,
    pub dead: u64,
    /// Waited past their expiry, and have ended so instead.
    pub expired: u64,
    /// Where the next step goes on; `None` at the end.
    pub next: Option<i64>,
}

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("{0} is where they are")]
    Same(String),
    #[error("nobody serves {0}")]
    NotServed(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An operator or security event for the audit log.
#[derive(Clone, Debug)]
pub struct AuditNote {
    pub event: gatepost_audit::leaf::Event,
    pub by: Actor,
    /// Closed code: lower case, digits and underscores.
    pub code: Option<String>,
    /// What it was done to: a queue, a principal, an adapter.
    pub target: Option<String>,
    pub destination: Option<String>,
    pub message: Option<MessageId>,
    pub delivery: Option<DeliveryId>,
    pub count: Option<u64>,
}

impl AuditNote {
    pub fn new(event: gatepost_audit::leaf::Event, by: Actor) -> Self {
        Self {
            event,
            by,
            code: None,
            target: None,
            destination: None,
            message: None,
            delivery: None,
            count: None,
        }
    }
}

// === erasing ===

/// Which messages are to be erased.
#[derive(Clone, Debug)]
pub enum EraseWhat {
    Message(MessageId),
    /// All that this app has sent.
    App(String),
    /// All about this subject.
    Subject(String),
}

/// A step of erasing.
#[derive(Clone, Debug)]
pub struct EraseStep {
    pub by: Actor,
    pub what: EraseWhat,
    /// Where the step before has ended; 0 at first.
    pub after: i64,
    /// Only says what it would come to.
    pub looks_only: bool,
}

/// What a step, or all of them, came to.
#[derive(Clone, Debug, Default)]
pub struct Erased {
    pub messages: Vec<MessageId>,
    /// Those that stay, since a delivery of theirs is under way.
    pub unsettled: Vec<MessageId>,
    /// Of the erased, how many were stored in the clear.
    pub plain: u64,
    /// Where to go on; none when that was all.
    pub next: Option<i64>,
    /// The seal key's version since, all older ones of which are destroyed …
    pub seal_key: Option<u32>,
    /// … or why not: copies that the database, its log or a replica still has can be opened until then.
    pub copies_remain: Option<String>,
}

/// What a step of wrapping data keys anew came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rewrapped {
    /// All are wrapped with the newest seal key already.
    Nothing,
    /// There are more.
    Some,
    /// Those were the last, and the log has its entry.
    Last,
}

/// What a rotation of the seal key came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// The version that everything is wrapped with.
    pub version: u32,
    /// Those that are no more.
    pub destroyed: Vec<u32>,
}

// === reads ===

/// One page of a list.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Give this to get the next page; opaque.
    pub next: Option<String>,
}

#[derive(Clone, Debug)]
pub struct DeliveryRow {
    pub id: DeliveryId,
    pub message: MessageId,
    pub destination: String,
    pub state: &'static str,
    /// Reason of a dead delivery, or `held` for one in doubt that waits for a person.
    pub reason: Option<&'static str>,
    pub attempts: u32,
    pub series: u32,
    pub doubt: bool,
    pub replayed: bool,
    pub accepted_at: Timestamp,
    pub changed_at: Timestamp,
    pub due: Option<Timestamp>,
}

/// One step of a delivery, with what only the database keeps.
#[derive(Clone)]
pub struct HistoryRow {
    pub delivery: DeliveryId,
    pub at: Timestamp,
    pub event: String,
    pub attempt: Option<u32>,
    pub code: Option<String>,
    pub by: String,
    pub reason: Option<String>,
    /// JSON text.
    pub evidence: Option<String>,
}

/// A message with its deliveries; replies by delivery.
pub struct MessageDetail {
    pub message: StoredMessage,
    pub deliveries: Vec<(DeliveryRow, Option<String>)>,
    pub history: Vec<HistoryRow>,
}

#[derive(Clone, Debug)]
pub struct MessageRow {
    pub id: MessageId,
    pub sender: Actor,
    pub kind: String,
    pub accepted_at: Timestamp,
    pub size: u64,
    pub deliveries: Vec<DeliveryRow>,
}

/// Filters of the message list; all given ones must hold.
#[derive(Clone, Debug, Default)]
pub struct MessageFilter {
    pub app: Option<String>,
    pub kind: Option<String>,
    pub subject: Option<String>,
    pub key: Option<String>,
    pub state: Option<String>,
    pub destination: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    pub state: Option<String>,
    pub destination: Option<String>,
    /// Only those in doubt that wait for a person.
    pub held: bool,
}

#[derive(Clone, Debug, Default)]
pub struct QueueStats {
    pub waiting: u64,
    pub leased: u64,
    pub sending: u64,
    pub in_doubt: u64,
    pub held: u64,
    pub dead: u64,
    /// Age of the oldest delivery that is not settled.
    pub oldest: Option<Duration>,
    /// For how long the most overdue delivery that could be leased has been due.
    pub oldest_ready: Option<Duration>,
    pub held_lanes: u64,
    pub paused: bool,
    pub tripped: Option<TripReason>,
    pub accepted_per_s: f64,
    pub settled_per_s: f64,
}

#[derive(Clone, Debug)]
pub struct QueueRow {
    pub name: String,
    pub kind: QueueKind,
    pub stats: QueueStats,
}

/// What a sender has handed in and is not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderRow {
    /// Kind and name: `app:NAME` or `adapter:NAME`.
    pub sender: String,
    /// A message to several destinations counts for each.
    pub deliveries: u64,
    pub bytes: u64,
    pub limit: Option<BacklogLimit>,
}

/// One of the gateways that share a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// For people.
    pub name: String,
    /// Random, for each start another.
    pub epoch: u32,
    pub version: String,
    pub since: Timestamp,
    /// What is left of its lease; `None` when it is over.
    pub lease: Option<Duration>,
    /// It is the one that was asked.
    pub is_here: bool,
    /// It gives the audit log's entries their places.
    pub is_sequencer: bool,
    /// Adapters that run on one node, and on this one.
    pub adapters: Vec<String>,
    /// Its share of each queue that it consumes, of [`NODE_SHARES`] in all.
    pub shares: Vec<(String, u32)>,
}

/// Parts of a queue that are shared out among nodes.
pub const NODE_SHARES: u32 = 64;

// === errors ===

/// Why the store could not do it. Nothing was written, unless `OutcomeUnknown` says so.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("the disk is full")]
    Full,
    #[error("the store is not taking writes: {0}")]
    ReadOnly(String),
    #[error("the store is stopping")]
    Stopping,
    #[error("the store is overloaded")]
    Busy,
    #[error("{table}.{column} of row {row} is corrupt")]
    Corrupt { table: &'static str, column: &'static str, row: String },
    #[error("data keys of tree {tree:016x} are not known to this gateway")]
    DataKeyUnknown { tree: u64 },
    #[error("it has been erased")]
    Erased,
    #[error("{0}")]
    SealKey(String),
    #[error("the database failed: {0}")]
    Database(String),
    #[error("the audit log: {0}")]
    Audit(String),
    #[error("there is no queue {0}")]
    NoQueue(String),
    #[error("the cursor is not one of ours")]
    BadCursor,
}

/// An operator's brake on a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    Pause,
    Resume,
}
