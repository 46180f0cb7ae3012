//! The rows of a PostgreSQL database, in one snapshot.

use std::collections::HashMap;

use futures_util::TryStreamExt as _;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool};

use super::{COUNTS, Delivery, DeliveryColumns, Message, Queue, Rows};
use crate::leaves::Run;
use crate::ops::StoreError;
use crate::postgres::row::Cells;
use crate::postgres::sql;
use crate::row::state_name;
use crate::seal::Place;

pub(super) async fn read(pool: &PgPool) -> Result<Rows, StoreError> {
    let mut snapshot = pool.begin().await.map_err(failed)?;
    let begun = sqlx::raw_sql(
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = 0",
    );
    begun.execute(&mut *snapshot).await.map_err(failed)?;
    let rows = read_snapshot(&mut snapshot).await;
    snapshot.rollback().await.map_err(failed)?;
    rows
}

async fn read_snapshot(snapshot: &mut PgConnection) -> Result<Rows, StoreError> {
    let size: i64 = one(snapshot, sql::TREE_SIZE).await?;
    let mut rows = Rows {
        leaf_count: u64::try_from(size).unwrap_or(0),
        places: Vec::new(),
        unplaced: Vec::new(),
        queues: HashMap::new(),
        by_name: HashMap::new(),
        messages: HashMap::new(),
        deliveries: HashMap::new(),
    };
    each(snapshot, sql::RECONCILE_PLACES, |mut cells| {
        rows.places.push((number(&mut cells)?, number(&mut cells)?));
        Ok(())
    })
    .await?;
    each(snapshot, sql::RECONCILE_UNPLACED, |mut cells| {
        rows.unplaced.push(Run { first: number(&mut cells)?, bytes: cells.take()? });
        Ok(())
    })
    .await?;
    each(snapshot, sql::RECONCILE_QUEUES, |mut cells| {
        let (id, name): (i32, String) = (cells.take()?, cells.take()?);
        let mut kept = [0; COUNTS.len()];
        for count in &mut kept {
            *count = cells.take()?;
        }
        rows.by_name.insert(name.clone(), i64::from(id));
        rows.queues.insert(i64::from(id), Queue::new(name, kept));
        Ok(())
    })
    .await?;
    each(snapshot, sql::RECONCILE_MESSAGES, |mut cells| {
        let seq = cells.take()?;
        let id = cells.take_bytes(Place { table: "message", column: "id", row: seq })?;
        rows.messages.insert(id, Message { seq, recorded: false });
        Ok(())
    })
    .await?;
    each(snapshot, sql::RECONCILE_DELIVERIES, |cells| rows.take_delivery(cells)).await?;
    Ok(rows)
}

impl Rows {
    fn take_delivery(&mut self, mut cells: Cells<'_>) -> Result<(), StoreError> {
        let id = cells.take_bytes(Place { table: "delivery", column: "id", row: 0 })?;
        let (message, queue, state): (i64, i32, i16) = (cells.take()?, cells.take()?, cells.take()?);
        let (attempts, series): (i32, i32) = (cells.take()?, cells.take()?);
        let delivery = Delivery {
            message,
            queue: i64::from(queue),
            // The schema allows no other.
            state: state_name(i64::from(state)).unwrap_or("unknown"),
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            series: u32::try_from(series).unwrap_or(u32::MAX),
            entries: cells.take()?,
            recorded: None,
        };
        let columns = DeliveryColumns {
            state: i64::from(state),
            late: cells.take()?,
            due: cells.take()?,
            in_lane: cells.take()?,
            blocks: cells.take()?,
            suspect: cells.take()?,
            sender: cells.take::<Option<i32>>()?.map(i64::from),
            size: cells.take()?,
        };
        self.count(delivery.queue, &columns);
        self.deliveries.insert(id, delivery);
        Ok(())
    }
}

async fn one<T>(snapshot: &mut PgConnection, statement: &'static str) -> Result<T, StoreError>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let row = sqlx::query(statement).fetch_one(snapshot).await.map_err(failed)?;
    Cells::new(&row).take()
}

async fn each(
    snapshot: &mut PgConnection,
    statement: &'static str,
    mut take: impl FnMut(Cells<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut rows = sqlx::query(statement).fetch(snapshot);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        let row: PgRow = row;
        take(Cells::new(&row))?;
    }
    Ok(())
}

fn number(cells: &mut Cells<'_>) -> Result<u64, StoreError> {
    Ok(u64::try_from(cells.take::<i64>()?).unwrap_or(0))
}

fn failed(error: sqlx::Error) -> StoreError {
    StoreError::Database(error.to_string())
}
