//! A SQLite database's part of a backup: a copy of one snapshot, made by a process of its own beside the writer.
//!
//! `VACUUM INTO` reads all rows in one snapshot and writes them anew, so the copy has nothing of what retention has erased and
//! free pages may still hold. The writer goes on meanwhile; only its WAL cannot begin anew until the snapshot is over.

use std::fs::File;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::files::{Contents, Sink, read_digest};
use super::{BackupError, DATABASE, Snapshot, Taken, at};
use crate::data_dir::{DataDir, DataDirError};
use crate::sql;
use crate::sqlite::{READER_WAIT, check_wal};

pub(super) fn take(data: &DataDir, contents: &mut Contents<'_>) -> Result<Taken, BackupError> {
    match data.lock() {
        // Nobody writes: only then does what stands in the WAL say whether it is damaged. SQLite would take that for its end.
        Ok(_stopped) => check_wal(data)?,
        Err(DataDirError::InUse(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let copy = contents.path(DATABASE);
    // Made here, and empty, so that it is nobody else's to read.
    drop(Sink::create(&copy)?);
    let path =
        copy.to_str().ok_or_else(|| BackupError::Database(format!("{} is not UTF-8", copy.display())))?;
    let source = Connection::open_with_flags(data.database(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    source.busy_timeout(READER_WAIT)?;
    // Whoever reads must not end what a killed writer has left in the WAL: that is for the next start to look at.
    source.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    source.execute(sql::BACKUP, [path])?;
    let taken = look(&copy)?;
    File::open(&copy).and_then(|file| file.sync_all()).map_err(at(&copy))?;
    contents.add(DATABASE, read_digest(&copy, |_| {})?);
    Ok(taken)
}

/// What the copy holds.
fn look(copy: &Path) -> Result<Taken, BackupError> {
    let connection = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let migration = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let entries = connection.query_row(sql::STORE_LOAD, [], |row| row.get("leaf_count")).map(number)?;
    let first: i64 = connection.query_row(sql::LEAF_FIRST, [], |row| row.get(0))?;
    let filed = u64::try_from(first).unwrap_or(entries);
    Ok(Taken { snapshot: Snapshot::Sqlite { migration }, entries, filed })
}

impl From<rusqlite::Error> for BackupError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.to_string())
    }
}
