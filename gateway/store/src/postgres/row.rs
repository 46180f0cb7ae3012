//! A delivery between its row and the domain.

use gatepost_core::delivery::Reason;
use gatepost_core::{Delivery, DeliveryId, IdleMark, MessageId, Timestamp};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::ops::StoreError;
use crate::row::{Row, Standing, settled};
use crate::seal::{Index, Place, Salt};

/// Buckets of a queue.
pub(super) const BUCKETS: u8 = 64;

/// The bucket of a delivery: of its lane, or its own if it has none.
pub(super) fn bucket_of(lane: Option<&Index>, id: &DeliveryId) -> i16 {
    // Both are random there.
    lane.map_or(i16::from(id.as_bytes()[15] % BUCKETS), bucket_of_lane)
}

pub(super) fn bucket_of_lane(lane: &Index) -> i16 {
    i16::from(lane[0] % BUCKETS)
}

/// The columns of a row, taken in the statement's order.
pub(crate) struct Cells<'r> {
    row: &'r PgRow,
    next: usize,
}

impl<'r> Cells<'r> {
    pub(crate) fn new(row: &'r PgRow) -> Self {
        Self { row, next: 0 }
    }

    /// The next column; a type that does not fit is a corrupt row or a wrong statement, which the error's text tells apart.
    pub(crate) fn take<T>(&mut self) -> Result<T, StoreError>
    where
        T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let value = self.row.try_get(self.next).map_err(|error| StoreError::Database(error.to_string()));
        self.next += 1;
        value
    }

    pub(crate) fn take_bytes<const N: usize>(&mut self, place: Place) -> Result<[u8; N], StoreError> {
        self.take_opt_bytes(place)?.ok_or_else(|| place.corrupt())
    }

    pub(crate) fn take_opt_bytes<const N: usize>(
        &mut self,
        place: Place,
    ) -> Result<Option<[u8; N]>, StoreError> {
        let bytes: Option<&[u8]> = self.take()?;
        bytes.map(|bytes| bytes.try_into().map_err(|_| place.corrupt())).transpose()
    }

    pub(crate) fn take_time(&mut self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.take::<Option<i64>>()?.map(Timestamp::from_micros))
    }
}

/// Reads the columns that `sql` lists as a delivery's, in that order.
pub(super) fn load(row: &PgRow) -> Result<Row, StoreError> {
    let mut cells = Cells::new(row);
    let pos: i64 = cells.take()?;
    let place = |column| Place { table: "delivery", column, row: pos };
    let id = cells.take_bytes(place("id"))?;
    let message_seq: i64 = cells.take()?;
    let queue: i32 = cells.take()?;
    let lane = cells.take_opt_bytes(place("lane"))?;
    let standing = Standing {
        code: i64::from(cells.take::<i16>()?),
        blocks: cells.take()?,
        due: cells.take_time()?,
        token: cells.take_opt_bytes(place("token"))?,
        until: cells.take()?,
        session: cells.take()?,
    };
    let batch = cells.take_opt_bytes(place("batch"))?;
    let late = cells.take()?;
    let mut count = |column| u32::try_from(cells.take::<i32>()?).map_err(|_| place(column).corrupt());
    let (attempts, series, crashes) = (count("attempts")?, count("series")?, count("crashes")?);
    let (doubt, suspect, replayed) = (cells.take()?, cells.take()?, cells.take()?);
    let reason = match cells.take::<Option<&str>>()? {
        Some(code) => Some(Reason::from_code(code).ok_or_else(|| place("reason").corrupt())?),
        None => None,
    };
    let expires_at = cells.take_time()?;
    let (born, idle_at_birth, changed_at): (i64, i64, i64) = (cells.take()?, cells.take()?, cells.take()?);
    let token = cells.take_opt_bytes(place("settled_token"))?;
    let settled = settled(token, cells.take()?, place("settled_as"))?;
    let leaves: Vec<u8> = cells.take()?;
    let sender = cells.take::<Option<i32>>()?.map(i64::from);
    let barrier = cells.take_opt_bytes(place("barrier"))?;
    let message = cells.take_bytes(place("message"))?;
    let (size, accepted_at): (i64, i64) = (cells.take()?, cells.take()?);
    let salt = cells.take_opt_bytes(place("salt"))?.map(Salt::from_stored);
    let delivery = Delivery {
        state: standing.state(late, reason, pos)?,
        attempts,
        series,
        crashes,
        doubt,
        suspect,
        replayed,
        expires_at,
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
        queue: i64::from(queue),
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
