//! The rows of a SQLite database, in one snapshot.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, Row};

use super::{COUNTS, Delivery, DeliveryColumns, Message, Queue, Rows};
use crate::row::state_name;
use crate::sql;
use crate::sqlite::READER_WAIT;

pub(super) fn read(database: &Path) -> rusqlite::Result<Rows> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(READER_WAIT)?;
    // From the first read to the last it is one snapshot.
    let snapshot = connection.unchecked_transaction()?;
    let leaf_count = snapshot.query_row(sql::STORE_LOAD, [], |row| row.get::<_, i64>("leaf_count"))?;
    let queues: HashMap<i64, Queue> =
        each(&snapshot, sql::RECONCILE_QUEUES, |row| Ok((row.get(0)?, queue(row)?)))?;
    let mut rows = Rows {
        leaf_count: u64::try_from(leaf_count).unwrap_or(0),
        places: Vec::new(),
        unplaced: Vec::new(),
        by_name: queues.iter().map(|(id, queue)| (queue.name.clone(), *id)).collect(),
        queues,
        messages: each(&snapshot, sql::RECONCILE_MESSAGES, |row| {
            Ok((row.get(1)?, Message { seq: row.get(0)?, recorded: false }))
        })?,
        deliveries: HashMap::new(),
    };
    let mut statement = snapshot.prepare(sql::RECONCILE_DELIVERIES)?;
    let mut read = statement.query([])?;
    while let Some(row) = read.next()? {
        let (columns, delivery) = (columns(row)?, delivery(row)?);
        rows.count(delivery.queue, &columns);
        rows.deliveries.insert(row.get(0)?, delivery);
    }
    Ok(rows)
}

fn each<K: std::hash::Hash + Eq, V>(
    connection: &Connection,
    sql: &'static str,
    load: impl Fn(&Row<'_>) -> rusqlite::Result<(K, V)>,
) -> rusqlite::Result<HashMap<K, V>> {
    connection.prepare(sql)?.query_map([], load)?.collect()
}

fn queue(row: &Row<'_>) -> rusqlite::Result<Queue> {
    let mut kept = [0; COUNTS.len()];
    for (position, count) in kept.iter_mut().enumerate() {
        *count = row.get(2 + position)?;
    }
    Ok(Queue::new(row.get(1)?, kept))
}

fn columns(row: &Row<'_>) -> rusqlite::Result<DeliveryColumns> {
    Ok(DeliveryColumns {
        state: row.get("state")?,
        in_lane: row.get("in_lane")?,
        blocks: row.get("blocks")?,
        late: row.get("late")?,
        suspect: row.get("suspect")?,
        sender: row.get("sender")?,
        due: row.get("due")?,
        size: row.get("size")?,
    })
}

fn delivery(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        message: row.get("message")?,
        queue: row.get("queue")?,
        // The schema allows no other.
        state: state_name(row.get("state")?).unwrap_or("unknown"),
        attempts: row.get("attempts")?,
        series: row.get("series")?,
        entries: row.get("leaves")?,
        recorded: None,
    })
}
