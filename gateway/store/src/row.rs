//! A delivery as the writer knows it: what the machine decides on, and what else stands in its row. How a row is written, each database
//! says for itself.

use std::time::Duration;

use gatepost_core::delivery::{Lease, OutcomeKind, Proof, Reason};
use gatepost_core::message::DataForm;
use gatepost_core::queue::{Trip, TripReason};
use gatepost_core::{Delivery, DeliveryId, LeaseToken, MessageId, State, Timestamp};

use crate::ops::StoreError;
use crate::seal::{Index, Place, Salt};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) pos: i64,
    pub(crate) id: DeliveryId,
    pub(crate) message_seq: i64,
    pub(crate) message: MessageId,
    /// The message's; absent once its payload is purged.
    pub(crate) salt: Option<Salt>,
    /// Payload bytes.
    pub(crate) size: u64,
    pub(crate) queue: i64,
    pub(crate) lane: Option<Index>,
    /// The lane that it stands in besides: it waits for all before it in both, and all behind it in both wait for it.
    pub(crate) barrier: Option<Index>,
    pub(crate) delivery: Delivery,
    /// Hash of the `request_id` of the call that leased it.
    pub(crate) batch: Option<Index>,
    pub(crate) accepted_at: Timestamp,
    pub(crate) changed_at: Timestamp,
    /// Indices of its audit leaves, eight bytes each, big endian.
    pub(crate) leaves: Vec<u8>,
    /// The row that counts what its sender has handed in; none for a sender that the configuration did not name.
    pub(crate) sender: Option<i64>,
}

/// The last settle, of its two columns.
pub(crate) fn settled(
    token: Option<[u8; 16]>,
    outcome: Option<&str>,
    place: Place,
) -> Result<Option<(LeaseToken, OutcomeKind)>, StoreError> {
    match (token, outcome) {
        (Some(token), Some(text)) => {
            let kind = OutcomeKind::from_text(text).ok_or_else(|| place.corrupt())?;
            Ok(Some((LeaseToken::from_bytes(token), kind)))
        }
        (None, None) => Ok(None),
        (Some(_), None) | (None, Some(_)) => Err(place.corrupt()),
    }
}

/// A queue's breaker, of its four columns.
pub(crate) fn trip(
    since: Option<Timestamp>,
    reason: Option<&str>,
    failures: i64,
    probe_due: Option<Timestamp>,
    place: impl Fn(&'static str) -> Place,
) -> Result<Option<Trip>, StoreError> {
    match (since, reason, probe_due) {
        (Some(since), Some(reason), Some(probe_due)) => Ok(Some(Trip {
            since,
            reason: TripReason::from_name(reason).ok_or_else(|| place("trip_reason").corrupt())?,
            failures: u32::try_from(failures).map_err(|_| place("trip_failures").corrupt())?,
            probe_due,
            probe: None,
        })),
        (None, None, None) => Ok(None),
        // Half a breaker must not read as none.
        _ => Err(place("trip_reason").corrupt()),
    }
}

impl Row {
    /// Makes all of its own numbers larger: where it was made nobody knew what they begin with.
    pub(crate) fn add_to_numbers(&mut self, base: i64) {
        self.pos += base;
        self.message_seq += base;
        let (leaves, _) = self.leaves.as_chunks_mut();
        leaves.iter_mut().for_each(|leaf| *leaf = (i64::from_be_bytes(*leaf) + base).to_be_bytes());
    }

    /// Its lanes: none, one or two.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = Index> + use<> {
        self.lane.into_iter().chain(self.barrier)
    }

    pub(crate) fn add_leaf(&mut self, index: u64) {
        self.leaves.extend_from_slice(&index.to_be_bytes());
    }
}

pub(crate) fn reason_of(state: &State) -> Option<Reason> {
    match state {
        State::Dead { reason, .. } => Some(*reason),
        State::Waiting { .. }
        | State::Leased { .. }
        | State::Sending { .. }
        | State::InDoubt { .. }
        | State::Delivered
        | State::Expired
        | State::Discarded => None,
    }
}

pub(crate) fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// The number that stands for a state in the database; part of the schema.
pub(crate) const fn state_code(state: &State) -> i64 {
    match state {
        State::Waiting { .. } => 0,
        State::Leased { .. } => 1,
        State::Sending { .. } => 2,
        State::InDoubt { .. } => 3,
        State::Delivered => 4,
        State::Dead { .. } => 5,
        State::Expired => 6,
        State::Discarded => 7,
    }
}

/// The name of a state's number; the order of [`State::NAMES`] is the numbers'.
pub(crate) fn state_name(code: i64) -> Option<&'static str> {
    usize::try_from(code).ok().and_then(|code| State::NAMES.get(code)).copied()
}

/// The number that stands for a form in the database; part of the schema.
pub(crate) const fn form_code(form: DataForm) -> i64 {
    match form {
        DataForm::None => 0,
        DataForm::Json => 1,
        DataForm::Text => 2,
        DataForm::Base64 => 3,
    }
}

pub(crate) const fn form_of(code: i64) -> Option<DataForm> {
    match code {
        0 => Some(DataForm::None),
        1 => Some(DataForm::Json),
        2 => Some(DataForm::Text),
        3 => Some(DataForm::Base64),
        _ => None,
    }
}

/// The columns that say where a delivery stands.
pub(crate) struct Standing {
    pub(crate) code: i64,
    pub(crate) blocks: bool,
    pub(crate) due: Option<Timestamp>,
    pub(crate) token: Option<[u8; 16]>,
    pub(crate) until: Option<i64>,
    pub(crate) session: Option<i64>,
}

impl Standing {
    pub(crate) fn state(&self, late: bool, reason: Option<Reason>, pos: i64) -> Result<State, StoreError> {
        let place = |column| Place { table: "delivery", column, row: pos };
        match self.code {
            0 => Ok(State::Waiting { due: self.due.ok_or_else(|| place("due").corrupt())? }),
            1 => Ok(State::Leased { lease: self.lease(pos)? }),
            2 => {
                let proof = if late { Proof::Late } else { Proof::Prompt };
                Ok(State::Sending { lease: self.lease(pos)?, proof })
            }
            3 => Ok(State::InDoubt { due: self.due }),
            4 => Ok(State::Delivered),
            5 => {
                let reason = reason.ok_or_else(|| place("reason").corrupt())?;
                Ok(State::Dead { reason, holds_lane: self.blocks })
            }
            6 => Ok(State::Expired),
            7 => Ok(State::Discarded),
            _ => Err(place("state").corrupt()),
        }
    }

    fn lease(&self, pos: i64) -> Result<Lease, StoreError> {
        let place = |column| Place { table: "delivery", column, row: pos };
        Ok(Lease {
            token: LeaseToken::from_bytes(self.token.ok_or_else(|| place("token").corrupt())?),
            until: Timestamp::from_micros(self.until.ok_or_else(|| place("until").corrupt())?),
            session: place("session").count(self.session.unwrap_or(0))?,
        })
    }
}
