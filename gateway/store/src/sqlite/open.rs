//! Opening a SQLite database: its library, its log, its settings and its tables are checked before anything is served.

use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use rusqlite::Connection;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::wal::{self, WalState};
use super::{StoreRow, connection, execute_summed, load_memory, load_store};
use crate::clock::{Clock, Source};
use crate::data_dir::{DataDir, DataDirError};
use crate::open::OpenError;
use crate::ops::StoreError;
use crate::seal::Vault;
use crate::sql;
use crate::writer::Memory;

/// The first SQLite without the WAL-reset corruption bug, as `sqlite3_libversion_number` says it.
const SQLITE_VERSION_MIN: i32 = 3_051_003;
const READERS: u32 = 3;
/// Longest that a reader may hold a snapshot; the WAL cannot be reset while one is held.
pub(crate) const READER_WAIT: Duration = Duration::from_secs(5);

/// The database as the writer takes it over.
pub(crate) struct Opened {
    pub(crate) connection: Connection,
    pub(crate) clock: Clock,
    pub(crate) instance_epoch: u32,
    pub(crate) memory: Memory,
}

/// Opens the database, brings it up to date, counts this start and reads what the writer keeps in memory.
pub(crate) fn open_database(
    database: &Path,
    vault: &Vault,
    time: Source,
    keys_in_memory: usize,
) -> Result<Opened, OpenError> {
    let fail = |error: rusqlite::Error| OpenError::Database {
        path: database.to_path_buf(),
        text: error.to_string(),
    };
    let connection = connection::connect(database).map_err(fail)?;
    read_back(&connection)?;
    empty_the_wal(&connection, database)?;
    migrate(&connection, database)?;
    let (clock, instance_epoch) = start_clock(&connection, vault, time)?;
    let memory = load_memory(&connection, vault, keys_in_memory)?;
    Ok(Opened { connection, clock, instance_epoch, memory })
}

/// The version of SQLite that this program is linked with.
pub fn sqlite_version() -> String {
    String::from_utf8_lossy(libsqlite3_sys::SQLITE_VERSION.to_bytes()).into_owned()
}

pub(crate) fn check_library() -> Result<(), OpenError> {
    if libsqlite3_sys::SQLITE_VERSION_NUMBER < SQLITE_VERSION_MIN {
        return Err(OpenError::SqliteTooOld(sqlite_version()));
    }
    Ok(())
}

/// Before SQLite sees it: it would take a damaged log for one that ends early, and write its own.
pub(crate) fn check_wal(data_dir: &DataDir) -> Result<(), OpenError> {
    let path = data_dir.wal();
    let at = match wal::state(&path).map_err(|source| DataDirError::Io { path: path.clone(), source })? {
        WalState::Whole => return Ok(()),
        WalState::HeaderDamaged => "in its header".to_owned(),
        WalState::FrameDamaged(frame) => format!("at frame {frame}"),
    };
    Err(OpenError::Wal { path, at })
}

pub(crate) async fn readers(database: &Path) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::from_str("sqlite://")?
        .filename(database)
        .read_only(true)
        .busy_timeout(READER_WAIT)
        .pragma("cell_size_check", "ON")
        .pragma("mmap_size", "0");
    SqlitePoolOptions::new().max_connections(READERS).acquire_timeout(READER_WAIT).connect_with(options).await
}

/// Settings on which the promise rests are read back, not believed.
fn read_back(connection: &Connection) -> Result<(), OpenError> {
    let settings = connection::settings(connection).map_err(|error| OpenError::Setting(error.to_string()))?;
    for (name, found) in settings {
        let kept = match name {
            "journal_mode" => found == "wal",
            "synchronous" => found == connection::synchronous().1,
            "foreign_keys" => found == "1",
            "mmap_size" => found.is_empty() || found == "0",
            _ => true,
        };
        if !kept {
            return Err(OpenError::Setting(format!("PRAGMA {name} is {found:?}")));
        }
    }
    Ok(())
}

/// After a sync that failed, the system shows bytes of the WAL that never reach the disk, and calls later syncs good. So before
/// anybody is told anything, whatever can be read of the WAL is brought into the database: that is written and synced anew.
fn empty_the_wal(connection: &Connection, database: &Path) -> Result<(), OpenError> {
    let emptied = connection::checkpoint(connection, connection::CheckpointMode::Truncate);
    match emptied.map(|brought| brought.how) {
        Ok(connection::Checkpointed::Whole) => Ok(()),
        Ok(connection::Checkpointed::Partly) => {
            let text = "another program reads it and keeps the WAL from being emptied".to_owned();
            Err(OpenError::Database { path: database.to_path_buf(), text })
        }
        Err(error) => Err(OpenError::Database { path: database.to_path_buf(), text: error.to_string() }),
    }
}

pub(crate) fn migrate(connection: &Connection, database: &Path) -> Result<(), OpenError> {
    let fail = |error: rusqlite::Error| OpenError::Database {
        path: database.to_path_buf(),
        text: error.to_string(),
    };
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
    let known = sql::MIGRATIONS.last().map_or(0, |(version, _)| *version);
    if found > known {
        return Err(OpenError::Newer { found, known });
    }
    for (version, text) in sql::MIGRATIONS.iter().filter(|(version, _)| *version > found) {
        // One transaction with its number: killed half way, a migration has not happened.
        let script = format!("BEGIN IMMEDIATE;\n{text}\nPRAGMA user_version = {version};");
        connection.execute_batch(&script).map_err(fail)?;
        gatepost_faults::point("store.in_migration");
        connection.execute_batch("COMMIT").map_err(fail)?;
        gatepost_faults::point("store.after_migration");
    }
    Ok(())
}

/// Counts this start and begins store time behind everything written before.
fn start_clock(connection: &Connection, vault: &Vault, time: Source) -> Result<(Clock, u32), OpenError> {
    let found = load_store(connection)?;
    let newest = found.as_ref().map_or(0, |store| store.clock);
    let clock = Clock::start(time, gatepost_core::Timestamp::from_micros(newest));
    let key_mark = vault.key_mark();
    let store = match found {
        Some(store) if store.key_mark != key_mark => {
            return Err(OpenError::KeyForeign);
        }
        Some(store) => StoreRow {
            instance_epoch: store.instance_epoch.saturating_add(1),
            clock: newest.max(clock.now().as_micros()),
            ..store
        },
        None => {
            StoreRow { clock: clock.now().as_micros(), instance_epoch: 1, leaf_count: 0, keyed: 0, key_mark }
        }
    };
    let started = connection
        .prepare_cached(sql::STORE_START)
        .and_then(|mut start| store.with_columns(|columns| execute_summed(&mut start, columns, &[])));
    started.map_err(crate::backend::CommitError::from).map_err(StoreError::from)?;
    Ok((clock, store.instance_epoch))
}
