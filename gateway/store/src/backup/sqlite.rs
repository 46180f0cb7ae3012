//! A SQLite database's part of a backup: its pages as they are in one snapshot, copied by a process of its own beside the writer.
//!
//! The writer goes on meanwhile; only its WAL cannot begin anew until the snapshot is over. Pages are copied and not made anew by
//! `VACUUM INTO`, which would move tables to other pages than those from which `salvage` reads them when the first page is lost.

use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::files::{Contents, Sink, read_digest};
use super::{BackupError, DATABASE, Snapshot, Taken};
use crate::data_dir::{DataDir, DataDirError};
use crate::sql;
use crate::sqlite::{READER_WAIT, check_wal};

/// What SQLite takes for all that there are.
const ALL_PAGES: i32 = -1;

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
    let source = Connection::open_with_flags(data.database(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    source.busy_timeout(READER_WAIT)?;
    // Whoever reads must not end what a killed writer has left in the WAL: that is for the next start to look at.
    source.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let snapshot = source.unchecked_transaction()?;
    // The first read takes the snapshot, which the copy is of.
    let taken = look(&snapshot)?;
    copy_pages(&snapshot, &copy)?;
    drop(snapshot);
    contents.add(DATABASE, read_digest(&copy, |_| {})?);
    Ok(taken)
}

fn look(snapshot: &Connection) -> Result<Taken, BackupError> {
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let entries = snapshot.query_row(sql::STORE_LOAD, [], |row| row.get("leaf_count")).map(number)?;
    let migration = snapshot.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let first: i64 = snapshot.query_row(sql::LEAF_FIRST, [], |row| row.get(0))?;
    let filed = u64::try_from(first).unwrap_or(entries);
    Ok(Taken { snapshot: Snapshot::Sqlite { migration }, entries, filed })
}

fn copy_pages(snapshot: &Connection, copy: &Path) -> Result<(), BackupError> {
    let mut into = Connection::open(copy)?;
    // It counts only when it is whole: until then nothing needs to be durable, or taken back.
    into.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF;")?;
    match Backup::new(snapshot, &mut into)?.step(ALL_PAGES)? {
        StepResult::Done => Ok(()),
        other => Err(BackupError::Database(format!("the copy came to a halt: {other:?}"))),
    }
}

impl From<rusqlite::Error> for BackupError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.to_string())
    }
}
