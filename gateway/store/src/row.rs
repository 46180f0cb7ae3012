//! A delivery between its row and the domain: what the writer knows of it besides what the machine decides on.

use std::time::Duration;

use gatepost_core::delivery::{Lease, OutcomeKind, Proof, Reason};
use gatepost_core::{Delivery, DeliveryId, LeaseToken, MessageId, State, Timestamp};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::ops::StoreError;
use crate::record::{Heap, Records};
use crate::seal::{Index, Place};

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) pos: i64,
    pub(crate) id: DeliveryId,
    pub(crate) message_seq: i64,
    pub(crate) message: MessageId,
    /// The message's; absent once its payload is purged.
    pub(crate) salt: Option<[u8; 32]>,
    /// Payload bytes.
    pub(crate) size: u64,
    pub(crate) queue: i64,
    pub(crate) lane: Option<Index>,
    pub(crate) delivery: Delivery,
    /// Hash of the `request_id` of the call that leased it.
    pub(crate) batch: Option<Index>,
    pub(crate) accepted_at: Timestamp,
    pub(crate) changed_at: Timestamp,
    /// Indices of its audit leaves, eight bytes each, big endian.
    pub(crate) leaves: Vec<u8>,
}

impl Row {
    pub(crate) fn load(row: &SqliteRow) -> Result<Self, StoreError> {
        let pos: i64 = get(row, "pos")?;
        let place = |column| Place { table: "delivery", column, row: pos };
        let delivery = Delivery {
            state: load_state(row, pos)?,
            attempts: count(row, "attempts", pos)?,
            series: count(row, "series", pos)?,
            crashes: count(row, "crashes", pos)?,
            doubt: get(row, "doubt")?,
            suspect: get(row, "suspect")?,
            replayed: get(row, "replayed")?,
            expires_at: get::<Option<i64>>(row, "expires_at")?.map(Timestamp::from_micros),
            born: Timestamp::from_micros(get(row, "born")?),
            idle_at_birth: Duration::from_micros(
                u64::try_from(get::<i64>(row, "idle_at_birth")?).unwrap_or(0),
            ),
            settled: match (opt_bytes(row, "settled_token", pos)?, get::<Option<&str>>(row, "settled_as")?) {
                (Some(token), Some(name)) => Some((
                    LeaseToken::from_bytes(token),
                    OutcomeKind::from_name(name).ok_or_else(|| place("settled_as").corrupt())?,
                )),
                _ => None,
            },
        };
        Ok(Self {
            pos,
            id: DeliveryId::from_bytes(bytes(row, "id", pos)?),
            message_seq: get(row, "message")?,
            message: MessageId::from_bytes(bytes(row, "message_id", pos)?),
            salt: opt_bytes(row, "salt", pos)?,
            size: u64::try_from(get::<i64>(row, "size")?).unwrap_or(0),
            queue: get(row, "queue")?,
            lane: opt_bytes(row, "lane", pos)?,
            delivery,
            batch: opt_bytes(row, "batch", pos)?,
            accepted_at: Timestamp::from_micros(get(row, "accepted_at")?),
            changed_at: Timestamp::from_micros(get(row, "changed_at")?),
            leaves: get(row, "leaves")?,
        })
    }

    pub(crate) fn add_leaf(&mut self, index: u64) {
        self.leaves.extend_from_slice(&index.to_be_bytes());
    }

    /// When it may be claimed, as far as the row itself can say: in a lane the lane decides.
    fn ready(&self) -> Option<i64> {
        match self.lane {
            None => self.delivery.state.due().map(Timestamp::as_micros),
            Some(_) => None,
        }
    }

    pub(crate) fn push_new(&self, records: &mut Records, heap: &mut Heap) {
        let delivery = &self.delivery;
        let state = &delivery.state;
        let reason = reason_of(state).map(|reason| text(heap, reason.as_str()));
        let leaves = heap.append(|bytes| bytes.extend_from_slice(&self.leaves));
        records
            .int(self.pos)
            .key(self.id.as_bytes())
            .int(self.message_seq)
            .int(self.queue)
            .opt_key(self.lane.as_ref())
            .int(state_code(state))
            .flag(state.blocks_lane())
            .opt_int(state.due().map(Timestamp::as_micros))
            .opt_int(self.ready())
            .flag(false)
            .int(delivery.attempts.into())
            .int(delivery.series.into())
            .int(delivery.crashes.into())
            .flag(delivery.doubt)
            .flag(delivery.suspect)
            .flag(delivery.replayed)
            .opt_span(reason)
            .opt_int(delivery.expires_at.map(Timestamp::as_micros))
            .int(delivery.born.as_micros())
            .int(micros(delivery.idle_at_birth))
            .int(self.changed_at.as_micros())
            .span(leaves);
    }

    /// The row as it is now, under the condition that the database still has it as it `was`.
    pub(crate) fn push_changed(&self, was: &Self, records: &mut Records, heap: &mut Heap) {
        let delivery = &self.delivery;
        let state = &delivery.state;
        let reason = reason_of(state).map(|reason| text(heap, reason.as_str()));
        let settled_as = delivery.settled.map(|(_, kind)| text(heap, kind.as_str()));
        let leaves = heap.append(|bytes| bytes.extend_from_slice(&self.leaves));
        let lease = delivery.lease();
        let late = matches!(state, State::Sending { proof: Proof::Late, .. });
        records
            .int(self.pos)
            .int(state_code(&was.delivery.state))
            .opt_key(was.delivery.lease().map(|lease| lease.token.as_bytes()))
            .opt_key(self.lane.as_ref())
            .int(state_code(state))
            .flag(state.blocks_lane())
            .opt_int(state.due().map(Timestamp::as_micros))
            .opt_int(self.ready())
            .opt_key(lease.map(|lease| lease.token.as_bytes()))
            .opt_int(lease.map(|lease| lease.until.as_micros()))
            .opt_int(lease.map(|lease| i64::try_from(lease.session).unwrap_or(i64::MAX)))
            .opt_key(self.batch.as_ref())
            .flag(late)
            .int(delivery.attempts.into())
            .int(delivery.series.into())
            .int(delivery.crashes.into())
            .flag(delivery.doubt)
            .flag(delivery.suspect)
            .flag(delivery.replayed)
            .opt_span(reason)
            .int(delivery.born.as_micros())
            .int(micros(delivery.idle_at_birth))
            .int(self.changed_at.as_micros())
            .opt_key(delivery.settled.as_ref().map(|(token, _)| token.as_bytes()))
            .opt_span(settled_as)
            .span(leaves);
    }
}

fn text(heap: &mut Heap, text: &str) -> crate::record::Span {
    heap.append(|bytes| bytes.extend_from_slice(text.as_bytes()))
}

fn reason_of(state: &State) -> Option<Reason> {
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

fn load_state(row: &SqliteRow, pos: i64) -> Result<State, StoreError> {
    let place = |column| Place { table: "delivery", column, row: pos };
    let due = get::<Option<i64>>(row, "due")?.map(Timestamp::from_micros);
    let lease = || -> Result<Lease, StoreError> {
        let token = opt_bytes(row, "token", pos)?.ok_or_else(|| place("token").corrupt())?;
        let until = get::<Option<i64>>(row, "until")?.ok_or_else(|| place("until").corrupt())?;
        let session = get::<Option<i64>>(row, "session")?.unwrap_or(0);
        Ok(Lease {
            token: LeaseToken::from_bytes(token),
            until: Timestamp::from_micros(until),
            session: u64::try_from(session).unwrap_or(0),
        })
    };
    match get::<i64>(row, "state")? {
        0 => Ok(State::Waiting { due: due.ok_or_else(|| place("due").corrupt())? }),
        1 => Ok(State::Leased { lease: lease()? }),
        2 => {
            let proof = if get::<bool>(row, "late")? { Proof::Late } else { Proof::Prompt };
            Ok(State::Sending { lease: lease()?, proof })
        }
        3 => Ok(State::InDoubt { due }),
        4 => Ok(State::Delivered),
        5 => {
            let reason = get::<Option<&str>>(row, "reason")?.and_then(Reason::from_code);
            let reason = reason.ok_or_else(|| place("reason").corrupt())?;
            Ok(State::Dead { reason, holds_lane: get(row, "blocks")? })
        }
        6 => Ok(State::Expired),
        7 => Ok(State::Discarded),
        _ => Err(place("state").corrupt()),
    }
}

/// Reads a column; a type that does not fit is a corrupt row or a wrong statement, which the error's text tells apart.
pub(crate) fn get<'r, T>(row: &'r SqliteRow, column: &str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(column).map_err(|error| StoreError::Database(error.to_string()))
}

fn count(row: &SqliteRow, column: &'static str, pos: i64) -> Result<u32, StoreError> {
    u32::try_from(get::<i64>(row, column)?)
        .map_err(|_| Place { table: "delivery", column, row: pos }.corrupt())
}

pub(crate) fn bytes<const N: usize>(
    row: &SqliteRow,
    column: &'static str,
    pos: i64,
) -> Result<[u8; N], StoreError> {
    opt_bytes(row, column, pos)?.ok_or_else(|| Place { table: "delivery", column, row: pos }.corrupt())
}

pub(crate) fn opt_bytes<const N: usize>(
    row: &SqliteRow,
    column: &'static str,
    pos: i64,
) -> Result<Option<[u8; N]>, StoreError> {
    get::<Option<&[u8]>>(row, column)?
        .map(|bytes| bytes.try_into().map_err(|_| Place { table: "delivery", column, row: pos }.corrupt()))
        .transpose()
}
