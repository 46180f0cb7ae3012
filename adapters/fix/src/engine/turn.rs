//! What comes of an input: what must be durable first, and what to do then.

use std::collections::BTreeMap;

use bytes::Bytes;
use gatepost_adapter::{Lease, Level};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::outbox::Place;
use crate::message::Message;

/// What is known of a delivery now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    /// It has left, and proof may follow.
    Sent(Proof),
    Delivered(Proof),
    Reject(String, Proof),
    /// The partner has not got it, and will not get it by itself.
    Retry(String),
    InDoubt(String),
}

/// What proves it, and what can be shown for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Proof {
    pub(crate) level: Level,
    pub(crate) shown: Map<String, Value>,
}

/// An application message from the partner, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Received {
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) message: Message,
    /// The gateway's id of the message of ours that it answers.
    pub(crate) answers: Option<String>,
    /// Its event has the message's number for a name, also where it would have one by its content.
    pub(crate) by_number: bool,
}

/// What must be durable, all of it at once, before anything of it is acted on.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Commit {
    pub(crate) state: BTreeMap<String, Option<Vec<u8>>>,
    pub(crate) begins: Vec<Lease>,
    pub(crate) outcomes: Vec<(Lease, Verdict)>,
    pub(crate) emits: Vec<Received>,
    /// The sequence numbers begin at 1 with it, in this epoch.
    pub(crate) epoch: Option<u64>,
}

/// Most keys that a turn changes of its own accord; with what one message brings besides far below what the gateway takes at once (1,000).
const KEYS_MAX: usize = 400;

impl Commit {
    /// How many keys more may go into it. What finds no room waits for the next.
    pub(super) fn room(&self) -> usize {
        KEYS_MAX.saturating_sub(self.state.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state.is_empty() && self.begins.is_empty() && self.outcomes.is_empty() && self.emits.is_empty()
    }
}

/// What to do once the commit is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Bytes for the partner. `carries` says which application message it is: the engine wants to hear when it has been
    /// written.
    Write { bytes: Bytes, carries: Option<Place> },
    /// A delivery that had its number already has begun under a new lease; the engine wants to hear that.
    Begun(Lease),
    /// The connection is to be closed, after what has been written.
    Close(Closing),
    /// Something that a person must look at.
    Alarm(Alarm),
}

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Closing {
    #[error("logged out")]
    LoggedOut,
    /// Whoever connected is told nothing.
    #[error("the logon is not acceptable: {0}")]
    NotWelcome(String),
    #[error("the partner refused the logon")]
    Refused,
    #[error("nothing was heard from the partner for {0} s")]
    Silent(u64),
    #[error("no logon came in time")]
    NoLogon,
    #[error("the partner broke the protocol: {0}")]
    Broken(String),
    /// Connecting again would only bring the same.
    #[error("the sequence numbers do not fit")]
    NumbersDiffer,
    #[error("a message of the session itself cannot be written")]
    Unencodable,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Alarm {
    #[error(
        "the partner's MsgSeqNum is too low: expected {expected}, received {received}; it has forgotten messages that it sent, or somebody has reset its numbers. Agree on the numbers with the partner, then have an operator set them (`gatepost adapter call NAME set_numbers`)"
    )]
    TooLow { expected: u64, received: u64 },
    #[error(
        "the partner says that our MsgSeqNum is too low; agree on the numbers with it, then have an operator set them (`gatepost adapter call NAME set_numbers`)"
    )]
    OursTooLow,
    #[error("the partner does not send again what it was asked for: messages from {0} on are missing")]
    GapStays(u64),
    #[error(
        "the partner asks for messages from {from} on, and those through {through}, which it has confirmed, are kept no more: it is told that there were none"
    )]
    NotKept { from: u64, through: u64 },
    #[error("the partner refused our message {seq} of type {msg_type}, which no delivery waits behind")]
    Rejected { seq: u64, msg_type: String },
}

#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) commit: Commit,
    pub(crate) then: Vec<Effect>,
}
