//! What travels to the writer and back.

use std::time::Duration;

use gatepost_core::principal::{Actor, OperatorPermit};
use gatepost_core::queue::TripReason;
use gatepost_core::{DeliveryId, LeaseToken, MessageId};
use tokio::sync::oneshot;

use crate::ops::{
    Accept, AcceptError, Accepted, AdapterRole, AuditNote, DeliveryRow, EraseStep, Erased, LeaseError,
    LeaseRequest, MoveError, MoveStep, Moved, OperateError, Pause, QueueSetup, Rewrapped, Session,
    SessionEnd, Settle, SettleAnswer, SettleError, StoreError, Verb,
};
use crate::prepared::Prepared;
use crate::seal::Index;
use crate::store::AcceptPlace;

/// Where an operation's answer goes.
pub(crate) type Answer<T, E> = oneshot::Sender<Result<T, E>>;

/// What the writer does; one variant per operation.
pub(crate) enum Op {
    Accept {
        accept: Accept,
        /// One for each message.
        prepared: Vec<Prepared>,
        /// Of a large one, its place among those, which it has until it is answered.
        place: Option<AcceptPlace>,
        answer: Answer<Vec<Accepted>, AcceptError>,
    },
    Lease(LeaseRequest, Answer<Claimed, LeaseError>),
    /// Deliveries just leased whose messages cannot be handed out: they are damaged.
    Damaged {
        leased: Vec<DamagedLease>,
        answer: Answer<(), StoreError>,
    },
    Settle {
        settle: Settle,
        /// One for each emitted event.
        prepared: Vec<Prepared>,
        answer: Answer<SettleAnswer, SettleError>,
    },
    AcceptedBefore {
        key: Index,
        fingerprint: Index,
        answer: Answer<Option<Accepted>, StoreError>,
    },
    SessionOpen {
        adapter: String,
        version: Option<String>,
        answer: Answer<Session, StoreError>,
    },
    SessionEnd {
        adapter: String,
        end: SessionEnd,
        answer: Answer<(), StoreError>,
    },
    Operate {
        permit: OperatorPermit,
        delivery: DeliveryId,
        verb: Verb,
        reason: String,
        answer: Answer<DeliveryRow, OperateError>,
    },
    QueuePause {
        permit: OperatorPermit,
        queue: String,
        pause: Pause,
        answer: Answer<(), StoreError>,
    },
    QueueTrip {
        queue: String,
        trip: Option<TripReason>,
        answer: Answer<(), StoreError>,
    },
    Move {
        step: MoveStep,
        answer: Answer<Moved, MoveError>,
    },
    Configure {
        queues: Vec<QueueSetup>,
        answer: Answer<(), StoreError>,
    },
    Note(Vec<AuditNote>, Answer<(), StoreError>),
    /// Whether this gateway is the one that runs an adapter.
    Claim {
        adapter: String,
        answer: Answer<Option<AdapterRole>, StoreError>,
    },
    /// Wraps some data keys with the newest seal key.
    Rewrap {
        by: Actor,
        answer: Answer<Rewrapped, StoreError>,
    },
    SealKeyOldest {
        answer: Answer<Option<u32>, StoreError>,
    },
    Erase {
        step: EraseStep,
        answer: Answer<Erased, StoreError>,
    },
    Yield {
        adapter: String,
        answer: Answer<(), StoreError>,
    },
}

/// What the writer gives out of a lease; the messages themselves are read after the commit.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    pub(crate) deliveries: Vec<ClaimedDelivery>,
    pub(crate) next_due: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct ClaimedDelivery {
    pub(crate) delivery: DeliveryId,
    pub(crate) token: LeaseToken,
    pub(crate) attempt: u32,
    pub(crate) doubt: bool,
    pub(crate) replayed: bool,
    pub(crate) lease: Duration,
    pub(crate) message: MessageId,
    pub(crate) message_seq: i64,
}

/// A lease that nobody has been given, and the damage for which it was not.
pub(crate) struct DamagedLease {
    pub(crate) delivery: DeliveryId,
    pub(crate) token: LeaseToken,
    pub(crate) damage: StoreError,
}
