//! The writer's connection: SQLite without a pool or a thread in between, since each hand-over between threads costs as much
//! as writing several rows. Readers have connections of their own.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::FromSql;

use crate::backend::CommitError;
use crate::ops::StoreError;

/// Pages in the WAL from which on the writer itself checkpoints, so that it begins anew. In laboratory builds always, so that a
/// kill meets it.
const WAL_PAGES: u32 = if gatepost_faults::ON { 1 } else { 8000 };
/// As many bytes, at SQLite's own page size.
pub(super) const WAL_BYTES_LONG: u64 = WAL_PAGES as u64 * 4096;
/// The WAL file is cut back to this after a checkpoint, bytes.
const WAL_BYTES: u32 = 67_108_864;
/// Pages that the writer keeps in memory, as SQLite takes it: KiB, negative.
const CACHE_KIB: i32 = -16_384;
/// Longest that the writer waits for the file; only a foreign program can hold it.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Statements kept prepared; more than there are.
const STATEMENTS: usize = 96;

/// How commits are synced: its name, and what SQLite calls it when asked.
const FULL: (&str, &str) = ("FULL", "2");

/// What was asked of SQLite. A laboratory build can be told to ask for less, which shows that its tests would see the loss.
pub(crate) fn synchronous() -> (&'static str, &'static str) {
    #[cfg(feature = "faults")]
    if std::env::var_os("GATEPOST_FAULT_SYNCHRONOUS").is_some_and(|asked| asked == "NORMAL") {
        return ("NORMAL", "1");
    }
    FULL
}

pub(crate) fn connect(database: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(database)?;
    connection.busy_timeout(BUSY_WAIT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // `journal_mode` answers with a row, as others may: `pragma_update` would take that for an error.
    let set = |name: &str, value: &dyn rusqlite::ToSql| {
        connection.pragma_update_and_check(None, name, value, |_| Ok(())).or_else(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => Ok(()),
            other => Err(other),
        })
    };
    set("journal_mode", &"WAL")?;
    set("synchronous", &synchronous().0)?;
    set("foreign_keys", &"ON")?;
    set("cell_size_check", &"ON")?;
    set("mmap_size", &0)?;
    set("journal_size_limit", &WAL_BYTES)?;
    set("cache_size", &CACHE_KIB)?;
    set("temp_store", &"MEMORY")?;
    // In place of SQLite's own checkpoints, which say nothing when they fail.
    connection.wal_hook(Some(|_, pages| {
        WAL_LENGTH.set(u32::try_from(pages).unwrap_or(0));
        Ok(())
    }));
    Ok(connection)
}

thread_local! {
    /// Pages in the WAL after the newest commit of this thread, which is the writer's.
    static WAL_LENGTH: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Pages in the WAL after this thread's newest commit.
pub(crate) fn wal_pages() -> u32 {
    WAL_LENGTH.get()
}

/// Whether it is time for a checkpoint that lets the WAL begin anew.
pub(crate) fn wal_is_long() -> bool {
    wal_pages() >= WAL_PAGES
}

/// How a checkpoint went that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checkpointed {
    /// Everything in the WAL is in the database, synced.
    Whole,
    /// Somebody still reads from the WAL. What was brought into the database is not synced there yet.
    Partly,
}

/// What a checkpoint has done that did not fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brought {
    pub(crate) how: Checkpointed,
    /// Of the WAL, counted from its beginning, that are in the database now.
    pub(crate) frames: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum CheckpointMode {
    /// As far as it goes without waiting for anybody.
    Passive,
    /// Waits, and leaves the WAL empty.
    Truncate,
}

/// Brings the WAL into the database. The answer is about the WAL as it was at the beginning: only where nobody writes meanwhile
/// does it say what is synced.
pub(crate) fn checkpoint(connection: &Connection, mode: CheckpointMode) -> rusqlite::Result<Brought> {
    let statement = match mode {
        CheckpointMode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        CheckpointMode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    let (busy, length, moved) = connection.query_row(statement, [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
    })?;
    let how = if busy == 0 && length == moved { Checkpointed::Whole } else { Checkpointed::Partly };
    Ok(Brought { how, frames: u64::try_from(moved).unwrap_or(0) })
}

/// As [`checkpoint`], and waits for nobody, which leaves undone what they are in the way of.
pub(crate) fn checkpoint_at_once(connection: &Connection, mode: CheckpointMode) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::ZERO)?;
    let done = checkpoint(connection, mode);
    connection.busy_timeout(BUSY_WAIT)?;
    done.map(drop)
}

/// Bytes of the pages in the database that nothing stands in.
pub(crate) fn free_page_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let read = |name: &str| connection.query_row(name, [], |row| row.get::<_, i64>(0));
    let bytes = read("PRAGMA freelist_count")?.saturating_mul(read("PRAGMA page_size")?);
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Settings on which the promise rests, as they are now: name and value.
pub(crate) fn settings(connection: &Connection) -> rusqlite::Result<Vec<(&'static str, String)>> {
    let read = |name: &'static str| {
        let value = connection.query_row(&format!("PRAGMA {name}"), [], |row| {
            Ok(match row.get_ref(0)? {
                rusqlite::types::ValueRef::Integer(value) => value.to_string(),
                rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                _ => String::new(),
            })
        });
        match value {
            Ok(value) => Ok((name, value)),
            // A build without mmap answers nothing.
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok((name, String::new())),
            Err(error) => Err(error),
        }
    };
    ["journal_mode", "synchronous", "foreign_keys", "mmap_size"].into_iter().map(read).collect()
}

/// Whether the file is structurally sound; the text says what is not.
pub(crate) fn quick_check(connection: &Connection) -> Result<(), String> {
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| error.to_string())?;
    if verdict == "ok" { Ok(()) } else { Err(verdict) }
}

impl From<rusqlite::Error> for CommitError {
    /// Sorts SQLite's errors (https://www.sqlite.org/rescode.html) into what the writer does about them.
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly,
            ) => Self::Broken(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// The columns of a row, taken in the statement's order.
pub(crate) struct Cells<'r> {
    row: &'r rusqlite::Row<'r>,
    next: usize,
}

impl<'r> Cells<'r> {
    pub(crate) fn new(row: &'r rusqlite::Row<'r>) -> Self {
        Self { row, next: 0 }
    }

    /// The next column; a type that does not fit is a corrupt row or a wrong statement, which the error's text tells apart.
    pub(crate) fn take<T: FromSql>(&mut self) -> Result<T, StoreError> {
        let value = self.row.get(self.next).map_err(|error| StoreError::Database(error.to_string()));
        self.next += 1;
        value
    }

    /// Whether the next `count` columns have the sum that stands behind them.
    pub(crate) fn next_hold(&self, count: usize) -> Result<bool, StoreError> {
        let to = self.next + count;
        crate::sum::holds(self.row, self.next, to).map_err(|error| StoreError::Database(error.to_string()))
    }

    /// As [`Cells::next_hold`], with a column behind them that the table got later.
    pub(crate) fn next_hold_with_added(&self, count: usize) -> Result<bool, StoreError> {
        let to = self.next + count;
        let holds = crate::sum::holds_with_added(self.row, self.next, to);
        holds.map_err(|error| StoreError::Database(error.to_string()))
    }

    /// The next column as bytes, borrowed.
    pub(crate) fn take_bytes(&mut self) -> Result<&'r [u8], StoreError> {
        let value = self.row.get_ref(self.next).map_err(|error| StoreError::Database(error.to_string()))?;
        self.next += 1;
        value.as_blob().map_err(|error| StoreError::Database(error.to_string()))
    }

    /// The next column as text, borrowed.
    pub(crate) fn take_text(&mut self) -> Result<Option<&'r str>, StoreError> {
        let value = self.row.get_ref(self.next).map_err(|error| StoreError::Database(error.to_string()))?;
        self.next += 1;
        value.as_str_or_null().map_err(|error| StoreError::Database(error.to_string()))
    }
}

/// Runs a query and turns each row into a value.
pub(crate) fn rows<T>(
    connection: &Connection,
    sql: &'static str,
    params: impl rusqlite::Params,
    mut load: impl FnMut(Cells<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, CommitError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut loaded = Vec::new();
    while let Some(row) = rows.next()? {
        loaded.push(load(Cells::new(row))?);
    }
    Ok(loaded)
}
