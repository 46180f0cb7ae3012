//! A delivery's row in SQLite: its columns, their sum, and how they are read and written.

use gatepost_core::delivery::{Proof, Reason};
use gatepost_core::{Delivery, DeliveryId, IdleMark, LeaseToken, MessageId, State, Timestamp};
use rusqlite::{CachedStatement, ToSql};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::connection::Cells;
use crate::ops::StoreError;
use crate::row::{Row, Standing, reason_of, settled, state_code};
use crate::seal::{Place, Salt};
use crate::sum;

/// Columns of a delivery that its sum covers, from the first one, in every row.
pub(crate) const DELIVERY_SUMMED: usize = 28;
/// … and with the second lane, which only the sums of those that have one cover: the others are what they were before there was such a
/// column.
pub(crate) const DELIVERY_COLUMNS: usize = DELIVERY_SUMMED + 1;
/// Columns of a message that its first sum covers, from the first one.
pub(crate) const MESSAGE_COLUMNS: usize = 8;
/// `seq` and the columns of a message that its second sum covers; one of a message with a second key covers that too.
pub(crate) const INDEXED_COLUMNS: usize = 6;
/// Columns of a queue that its sum covers, from the first one.
pub(crate) const QUEUE_COLUMNS: usize = 21;
/// As [`QUEUE_COLUMNS`], of a tree of data keys.
pub(crate) const KEYRING_COLUMNS: usize = 3;
/// Columns of a piece that its sum covers, from the one behind its position.
pub(crate) const PIECE_COLUMNS: usize = 3;
/// As [`QUEUE_COLUMNS`], of the store's row.
pub(crate) const STORE_COLUMNS: usize = 6;

/// Reads the columns that `sql` lists as a delivery's, in that order. A row whose sum does not fit is corrupt, whatever is in it.
pub(crate) fn load(mut cells: Cells<'_>) -> Result<Row, StoreError> {
    let sound = cells.next_hold_with_added(DELIVERY_SUMMED)?;
    let pos: i64 = cells.take()?;
    let place = |column| Place { table: "delivery", column, row: pos };
    if !sound {
        return Err(place("sum").corrupt());
    }
    let (id, message_seq) = (cells.take()?, cells.take()?);
    let (queue, lane) = (cells.take()?, cells.take()?);
    let standing = standing(&mut cells)?;
    let batch = cells.take()?;
    let late = cells.take()?;
    let mut count = |column| u32::try_from(cells.take::<i64>()?).map_err(|_| place(column).corrupt());
    let (attempts, series, crashes) = (count("attempts")?, count("series")?, count("crashes")?);
    let (doubt, suspect, replayed) = (cells.take()?, cells.take()?, cells.take()?);
    let reason = match cells.take_text()? {
        Some(code) => Some(Reason::from_code(code).ok_or_else(|| place("reason").corrupt())?),
        None => None,
    };
    let expires_at: Option<i64> = cells.take()?;
    let (born, idle_at_birth, changed_at) = (cells.take()?, cells.take::<i64>()?, cells.take()?);
    let settled = settled(cells.take()?, cells.take_text()?, place("settled_as"))?;
    let leaves = cells.take()?;
    let (sender, barrier) = (cells.take()?, cells.take()?);
    let _sum: i64 = cells.take()?;
    let ready: Option<i64> = cells.take()?;
    // The claim index says when it is ready, the row when it is due: an entry that leads to another row shows itself here.
    if ready.is_some() && ready != standing.due.map(Timestamp::as_micros) {
        return Err(place("ready").corrupt());
    }
    let message: [u8; 16] = cells.take::<Option<_>>()?.ok_or_else(|| place("message").corrupt())?;
    let (salt, size) = (cells.take::<Option<_>>()?.map(Salt::from_stored), cells.take::<i64>()?);
    let accepted_at = cells.take()?;
    let delivery = Delivery {
        state: standing.state(late, reason, pos)?,
        attempts,
        series,
        crashes,
        doubt,
        suspect,
        replayed,
        expires_at: expires_at.map(Timestamp::from_micros),
        born: Timestamp::from_micros(born),
        idle_at_birth: IdleMark::from_micros(idle_at_birth),
        settled,
    };
    Ok(Row {
        pos,
        id: DeliveryId::from_bytes(id),
        message_seq,
        message: MessageId::from_bytes(message),
        salt,
        size: place("size").count(size)?,
        queue,
        lane,
        barrier,
        delivery,
        batch,
        accepted_at: Timestamp::from_micros(accepted_at),
        changed_at: Timestamp::from_micros(changed_at),
        leaves,
        sender,
    })
}

fn standing(cells: &mut Cells<'_>) -> Result<Standing, StoreError> {
    Ok(Standing {
        code: cells.take()?,
        blocks: cells.take()?,
        due: cells.take::<Option<i64>>()?.map(Timestamp::from_micros),
        token: cells.take()?,
        until: cells.take()?,
        session: cells.take()?,
    })
}

impl Row {
    /// When it may be claimed, as far as the row itself can say: in a lane the lane decides.
    fn ready(&self) -> Option<i64> {
        match self.lane {
            None => self.delivery.state.due().map(Timestamp::as_micros),
            Some(_) => None,
        }
    }

    /// Adds the row of a new delivery.
    pub(crate) fn add(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        self.with_columns(|columns| {
            bind(statement, columns)?;
            statement.raw_bind_parameter(DELIVERY_COLUMNS + 1, self.ready())?;
            statement.raw_bind_parameter(DELIVERY_COLUMNS + 2, sum_of(columns)?)?;
            statement.raw_execute()
        })
    }

    /// Whether nothing has changed since it `was` but what [`crate::sql::DELIVERY_STEP`] writes.
    pub(crate) fn only_stepped(&self, was: &Self) -> bool {
        let of = |row: &Self| {
            let delivery = &row.delivery;
            let late = matches!(delivery.state, State::Sending { proof: Proof::Late, .. });
            let counts = (delivery.series, delivery.crashes, late, delivery.doubt, delivery.suspect);
            let birth = (delivery.born, delivery.idle_at_birth, delivery.expires_at);
            (row.queue, row.lane, row.barrier, counts, delivery.replayed, reason_of(&delivery.state), birth)
        };
        of(self) == of(was)
    }

    /// Makes the row what it is now with [`crate::sql::DELIVERY_CHANGE`] or, where [`Row::only_stepped`] says that this is enough, with
    /// [`crate::sql::DELIVERY_STEP`], if the database still has it as it `was`.
    pub(crate) fn change(&self, was: &Self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<usize> {
        self.with_columns(|columns| {
            bind(statement, columns)?;
            statement.raw_bind_parameter(DELIVERY_COLUMNS + 1, self.ready())?;
            statement.raw_bind_parameter(DELIVERY_COLUMNS + 2, sum_of(columns)?)?;
            statement.raw_bind_parameter(DELIVERY_COLUMNS + 3, state_code(&was.delivery.state))?;
            let token = was.delivery.lease().map(|lease| lease.token);
            statement.raw_bind_parameter(DELIVERY_COLUMNS + 4, token.as_ref().map(LeaseToken::as_bytes))?;
            statement.raw_execute()
        })
    }

    /// Hands out what its columns hold, in the table's order, without those that are not in their sum.
    pub(crate) fn with_columns<T>(&self, use_them: impl FnOnce(&[&dyn ToSql; DELIVERY_COLUMNS]) -> T) -> T {
        let delivery = &self.delivery;
        let state = &delivery.state;
        let lease = delivery.lease();
        use_them(&[
            &self.pos,
            self.id.as_bytes(),
            &self.message_seq,
            &self.queue,
            &self.lane,
            &state_code(state),
            &state.blocks_lane(),
            &state.due().map(Timestamp::as_micros),
            &lease.map(|lease| lease.token.as_bytes()),
            &lease.map(|lease| lease.until.as_micros()),
            &lease.map(|lease| i64::try_from(lease.session).unwrap_or(i64::MAX)),
            &self.batch,
            &matches!(state, State::Sending { proof: Proof::Late, .. }),
            &delivery.attempts,
            &delivery.series,
            &delivery.crashes,
            &delivery.doubt,
            &delivery.suspect,
            &delivery.replayed,
            &reason_of(state).map(|reason| reason.as_str()),
            &delivery.expires_at.map(Timestamp::as_micros),
            &delivery.born.as_micros(),
            &delivery.idle_at_birth.as_micros(),
            &self.changed_at.as_micros(),
            &delivery.settled.as_ref().map(|(token, _)| token.as_bytes()),
            &delivery.settled.map(|(_, kind)| kind.to_text()),
            &self.leaves,
            &self.sender,
            &self.barrier,
        ])
    }
}

/// The sum of a delivery's columns.
pub(crate) fn sum_of(columns: &[&dyn ToSql; DELIVERY_COLUMNS]) -> rusqlite::Result<i64> {
    let (summed, added) = columns.split_at(DELIVERY_SUMMED);
    sum::of_with_added(summed, added)
}

fn bind(statement: &mut CachedStatement<'_>, columns: &[&dyn ToSql]) -> rusqlite::Result<()> {
    (1..).zip(columns).try_for_each(|(number, column)| statement.raw_bind_parameter(number, column))
}

/// Reads a column; a type that does not fit is a corrupt row or a wrong statement, which the error's text tells apart.
pub(crate) fn get<'r, T>(row: &'r SqliteRow, column: &str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(column).map_err(|error| StoreError::Database(error.to_string()))
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
