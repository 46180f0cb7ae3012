//! Checksums of rows, since SQLite has none of its pages: against bits that flip on the disk, not against people, for whom the
//! audit log is.
//!
//! A sum is of what the columns hold, not of what is made of them, so that a bit that means nothing today is found as well.

use std::ops::Range;

use rusqlite::types::{ToSql, ToSqlOutput, Value, ValueRef};
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Row as _, Sqlite, TypeInfo as _, ValueRef as _};
use xxhash_rust::xxh3::xxh3_64;

use crate::ops::StoreError;

/// Bytes that most rows need.
const ROW_BYTES: usize = 512;

/// Values on their way into a sum: each with its type, and with its length where that varies.
struct Summand(Vec<u8>);

impl Summand {
    fn new() -> Self {
        Self(Vec::with_capacity(ROW_BYTES))
    }

    fn null(&mut self) {
        self.0.push(0);
    }

    fn integer(&mut self, value: i64) {
        self.0.push(1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, kind: u8, value: &[u8]) {
        self.0.push(kind);
        self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value);
    }

    fn value(&mut self, value: ValueRef<'_>) {
        match value {
            ValueRef::Null => self.null(),
            ValueRef::Integer(value) => self.integer(value),
            // No table has one; a row that does is damaged, and differs here from every sound one.
            ValueRef::Real(value) => self.bytes(4, &value.to_le_bytes()),
            ValueRef::Text(value) => self.bytes(2, value),
            ValueRef::Blob(value) => self.bytes(3, value),
        }
    }

    fn sum(&self) -> i64 {
        xxh3_64(&self.0).cast_signed()
    }
}

/// The sum of values as they will be stored.
pub(crate) fn of(values: &[&dyn ToSql]) -> rusqlite::Result<i64> {
    of_with_added(values, &[])
}

/// … and of columns that the table got later: where they hold nothing, a row has the sum that it had without them.
pub(crate) fn of_with_added(values: &[&dyn ToSql], added: &[&dyn ToSql]) -> rusqlite::Result<i64> {
    let mut summand = Summand::new();
    let values = values.iter().map(|value| (value, false)).chain(added.iter().map(|value| (value, true)));
    for (value, is_added) in values {
        match value.to_sql()? {
            ToSqlOutput::Borrowed(ValueRef::Null) | ToSqlOutput::Owned(Value::Null) if is_added => {}
            ToSqlOutput::Borrowed(value) => summand.value(value),
            ToSqlOutput::Owned(value) => summand.value(ValueRef::from(&value)),
            other => {
                let text = format!("{other:?} has no sum");
                return Err(rusqlite::Error::ToSqlConversionFailure(text.into()));
            }
        }
    }
    Ok(summand.sum())
}

/// Whether columns `from..to` have the sum that stands behind them.
pub(crate) fn holds(row: &rusqlite::Row<'_>, from: usize, to: usize) -> rusqlite::Result<bool> {
    let mut summand = Summand::new();
    for column in from..to {
        summand.value(row.get_ref(column)?);
    }
    Ok(row.get_ref(to)? == ValueRef::Integer(summand.sum()))
}

/// As [`holds`], with a column behind them that the table got later: see [`of_with_added`].
pub(crate) fn holds_with_added(row: &rusqlite::Row<'_>, from: usize, to: usize) -> rusqlite::Result<bool> {
    let mut summand = Summand::new();
    for column in from..=to {
        match row.get_ref(column)? {
            ValueRef::Null if column == to => {}
            value => summand.value(value),
        }
    }
    Ok(row.get_ref(to + 1)? == ValueRef::Integer(summand.sum()))
}

/// As [`holds`], for rows that readers read.
pub(crate) fn holds_read(row: &SqliteRow, from: usize, to: usize) -> Result<bool, StoreError> {
    read_holds(row, from..to, to)
}

/// As [`holds_with_added`], for rows that readers read.
pub(crate) fn holds_read_with_added(row: &SqliteRow, from: usize, to: usize) -> Result<bool, StoreError> {
    read_holds(row, from..to + 1, to)
}

/// From `added` on, columns count that are not null.
fn read_holds(row: &SqliteRow, columns: Range<usize>, added: usize) -> Result<bool, StoreError> {
    let mut summand = Summand::new();
    let sum_at = columns.end;
    for column in columns {
        let value = row.try_get_raw(column).map_err(|error| StoreError::Database(error.to_string()))?;
        let kind = if value.is_null() { "NULL".to_owned() } else { value.type_info().name().to_owned() };
        let read = match kind.as_str() {
            "NULL" if column >= added => Ok(()),
            "NULL" => {
                summand.null();
                Ok(())
            }
            "INTEGER" => <i64 as Decode<Sqlite>>::decode(value).map(|value| summand.integer(value)),
            "TEXT" => <&[u8] as Decode<Sqlite>>::decode(value).map(|value| summand.bytes(2, value)),
            "BLOB" => <&[u8] as Decode<Sqlite>>::decode(value).map(|value| summand.bytes(3, value)),
            _ => return Ok(false),
        };
        read.map_err(|error| StoreError::Database(error.to_string()))?;
    }
    Ok(row.try_get::<i64, _>(sum_at).is_ok_and(|sum| sum == summand.sum()))
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, params};

    use super::*;

    #[test]
    fn a_sum_is_the_same_however_the_row_is_seen_and_another_for_every_other_row() {
        let values = params![7, "ab", [1_u8, 2], None::<i64>, true];
        let sum = of(values).unwrap();
        let connection = Connection::open_in_memory().unwrap();
        let held = |sql: &str| {
            let sql = sql.replace("?1", &sum.to_string());
            connection.query_row(&sql, [], |row| holds(row, 0, 5)).unwrap()
        };
        assert!(held("SELECT 7, 'ab', x'0102', NULL, 1, ?1"));
        for other in [
            "SELECT 6, 'ab', x'0102', NULL, 1, ?1",
            "SELECT 7, 'aB', x'0102', NULL, 1, ?1",
            "SELECT 7, x'6162', x'0102', NULL, 1, ?1",
            "SELECT 7, 'ab', x'010200', NULL, 1, ?1",
            "SELECT 7, 'ab', x'0102', 0, 1, ?1",
            "SELECT 7, 'ab', x'0102', NULL, 1.0, ?1",
            "SELECT 7, 'ab', x'0102', NULL, 1, ?1 + 1",
            "SELECT 7, 'ab', x'0102', NULL, 1, NULL",
        ] {
            assert!(!held(other), "{other}");
        }
    }

    /// A row that was written before there was the column has the sum that it had; one in which it comes to hold something, or to hold
    /// nothing any more, has not.
    #[tokio::test]
    async fn a_column_that_was_added_counts_only_where_it_holds_something() {
        use sqlx::Connection as _;
        let (values, barrier) = (params![7, "ab"], [1_u8, 2]);
        let without = of(values).unwrap();
        assert_eq!(of_with_added(values, params![None::<i64>]).unwrap(), without);
        let with = of_with_added(values, params![barrier]).unwrap();
        assert_ne!(with, without);
        let connection = Connection::open_in_memory().unwrap();
        let mut reader = sqlx::SqliteConnection::connect("sqlite::memory:").await.unwrap();
        for (sum, columns, expected) in [
            (without, "7, 'ab', NULL", true),
            (with, "7, 'ab', x'0102'", true),
            (with, "7, 'ab', NULL", false),
            (without, "7, 'ab', x'0102'", false),
            (with, "7, 'ab', x'0103'", false),
            (without, "NULL, 'ab', NULL", false),
        ] {
            let sql = format!("SELECT {columns}, {sum}");
            let held = connection.query_row(&sql, [], |row| holds_with_added(row, 0, 2)).unwrap();
            let row = sqlx::query(sqlx::AssertSqlSafe(sql.clone())).fetch_one(&mut reader).await.unwrap();
            let read = holds_read_with_added(&row, 0, 2).unwrap();
            assert_eq!((held, read), (expected, expected), "{sql}");
        }
    }

    #[tokio::test]
    async fn readers_see_the_same_sum() {
        use sqlx::Connection as _;
        let sum = of(params![7, "ab", [1_u8, 2], None::<i64>]).unwrap();
        let mut connection = sqlx::SqliteConnection::connect("sqlite::memory:").await.unwrap();
        for (sql, expected) in [
            ("SELECT 7, 'ab', x'0102', NULL, $1", true),
            ("SELECT 7, 'ab', x'0103', NULL, $1", false),
            ("SELECT 7, 'ab', x'0102', 0, $1", false),
            ("SELECT 7.5, 'ab', x'0102', NULL, $1", false),
        ] {
            let row = sqlx::query(sql).bind(sum).fetch_one(&mut connection).await.unwrap();
            assert_eq!(holds_read(&row, 0, 4).unwrap(), expected, "{sql}");
        }
    }
}
