//! A database that a stopped gateway's is copied into: batch by batch, each in one transaction together with how far the copy has
//! come. So it can be interrupted anywhere, and goes on after the last batch that was committed.
//!
//! No gateway uses the database before the copy is finished: who finds an unfinished one does not start.

pub(super) mod sql;
mod write;

use std::collections::HashSet;

use gatepost_audit::Hash;
use gatepost_core::Timestamp;
use sqlx::postgres::PgConnectOptions;

use super::TURN_BITS;
use super::commit::{add_trees, whole};
use super::connection::Connection;
use super::node::{NodeError, migrate};
use super::partitions::make;
use super::row::Cells;
use super::sql::{STORE_ADD, STORE_LOOK};
use crate::backend::CommitError;
use crate::keyring::WrappedTree;
use crate::leaves::Run;
use crate::migrate::Counts;
use crate::migrate::batch::{Batch, Stage};
use crate::ops::StoreError;
use crate::seal::Place;

/// Behind a database whose clock is further back than this, store time would stand still for long.
const CLOCK_BEHIND_MICROS: i64 = 60_000_000;

/// Which state of which gateway is copied.
pub(crate) struct Origin {
    /// Of the store's key.
    pub(crate) mark: [u8; 16],
    pub(crate) log_key: String,
    /// Entries of the audit log, and the root of their tree. Every start of a gateway adds to them.
    pub(crate) entries: u64,
    pub(crate) root: Hash,
    /// Its store time.
    pub(crate) now: Timestamp,
}

#[derive(Debug)]
pub(crate) enum CopyError {
    Node(NodeError),
    /// A gateway has written to the database.
    InUse,
    /// It has a finished copy of another state of this gateway.
    OfAnotherTime,
    /// Its clock is behind the newest entry, by microseconds.
    ClockBehind(i64),
}

impl From<CommitError> for CopyError {
    fn from(error: CommitError) -> Self {
        Self::Node(error.into())
    }
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> Self {
        Self::Node(error.into())
    }
}

impl From<NodeError> for CopyError {
    fn from(error: NodeError) -> Self {
        Self::Node(error)
    }
}

/// The database that is written.
pub(crate) struct Copy {
    connection: Connection,
    /// Partitions that are there: table and day.
    days: HashSet<(&'static str, i32)>,
    stage: Stage,
}

/// What was done about a copy that was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// There was none.
    Anew,
    /// It goes on after its last batch.
    GoesOn,
    /// It was of a state that the gateway has left since, unfinished, and is begun again.
    Again,
}

impl Copy {
    /// Connects, makes the tables, and begins a copy or takes up the one that is there. Blocks.
    pub(crate) fn open(options: &PgConnectOptions, origin: &Origin) -> Result<(Self, Begun), CopyError> {
        let mut connection = Connection::open(options)?;
        // What is counted in the end may take long.
        connection.script("SET statement_timeout = 0".to_owned())?;
        migrate(&mut connection)?;
        let mut copy = Self { connection, days: HashSet::new(), stage: Stage::START };
        let begun = copy.in_transaction(|copy| copy.begin(origin))?;
        Ok((copy, begun))
    }

    /// Writes trees of data keys; those that are there stay.
    pub(crate) fn keep_keys(&mut self, trees: &[WrappedTree]) -> Result<(), CopyError> {
        Ok(add_trees(&mut self.connection, trees)?)
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    pub(crate) fn close(self) {
        self.connection.close();
    }

    fn begin(&mut self, origin: &Origin) -> Result<Begun, CopyError> {
        self.connection.execute(sqlx::query(sql::NODES_KEEP_OUT))?;
        let found = self.connection.row(sqlx::query(sql::COPY_LOOK))?;
        let add = sqlx::query(STORE_ADD).bind(origin.mark.to_vec()).bind(origin.log_key.as_str());
        self.connection.execute(add.bind(origin.now.as_micros()))?;
        self.look_at_keys(origin)?;
        let row = self.connection.row(sqlx::query(sql::DATABASE_LOOK))?.ok_or_else(nothing)?;
        let mut cells = Cells::new(&row);
        let (now, in_use): (i64, bool) = (cells.take()?, cells.take()?);
        let Some(row) = found else {
            if in_use {
                return Err(CopyError::InUse);
            }
            let behind = origin.now.as_micros() - now;
            if behind > CLOCK_BEHIND_MICROS {
                return Err(CopyError::ClockBehind(behind));
            }
            self.note_begin(origin)?;
            return Ok(Begun::Anew);
        };
        let mut cells = Cells::new(&row);
        let (entries, root): (i64, Vec<u8>) = (cells.take()?, cells.take()?);
        let (part, through): (String, i64) = (cells.take()?, cells.take()?);
        let place = Place { table: "copy", column: "part", row: 1 };
        let stage = Stage::of_columns(&part, through).ok_or_else(|| place.corrupt())?;
        let is_same = entries == whole(origin.entries) && root == origin.root.as_bytes();
        match (stage, is_same) {
            (stage, true) => {
                self.stage = stage;
                Ok(Begun::GoesOn)
            }
            (Stage::Done, false) => Err(CopyError::OfAnotherTime),
            (Stage::Copying(..), false) => {
                self.connection.execute(sqlx::query(sql::COPY_EMPTY))?;
                self.connection.execute(sqlx::query(sql::COPY_DROP))?;
                self.note_begin(origin)?;
                Ok(Begun::Again)
            }
        }
    }

    /// Whether what is there was written with the same keys.
    fn look_at_keys(&mut self, origin: &Origin) -> Result<(), CopyError> {
        let row = self.connection.row(sqlx::query(STORE_LOOK))?.ok_or_else(nothing)?;
        let mut cells = Cells::new(&row);
        let (mark, log_key): (Vec<u8>, String) = (cells.take()?, cells.take()?);
        if mark != origin.mark || log_key != origin.log_key {
            return Err(NodeError::KeyForeign.into());
        }
        Ok(())
    }

    fn note_begin(&mut self, origin: &Origin) -> Result<(), CommitError> {
        let (part, through) = Stage::START.columns();
        let statement = sqlx::query(sql::COPY_BEGIN)
            .bind(whole(origin.entries))
            .bind(origin.root.as_bytes().to_vec())
            .bind(part)
            .bind(through);
        self.connection.execute(statement)?;
        self.stage = Stage::START;
        Ok(())
    }

    /// Writes a batch, or, when the part has none any more, notes that the next part has begun.
    pub(crate) fn write(&mut self, batch: &Batch, next: Stage) -> Result<(), CopyError> {
        self.in_transaction(|copy| {
            copy.advance(next)?;
            for (table, day) in write::days(&batch.rows) {
                if copy.days.insert((table, day)) {
                    make(&mut copy.connection, table, day)?;
                }
            }
            if !batch.rows.is_empty() {
                write::write(&mut copy.connection, &batch.rows)?;
            }
            gatepost_faults::point("copy.before_commit");
            Ok(())
        })?;
        self.stage = next;
        gatepost_faults::point("copy.after_commit");
        Ok(())
    }

    /// First in its transaction: of two copies at work one waits here, and then finds that it is not its turn.
    fn advance(&mut self, next: Stage) -> Result<(), CommitError> {
        let ((part, through), (next_part, next_through)) = (self.stage.columns(), next.columns());
        let statement =
            sqlx::query(sql::COPY_ADVANCE).bind(part).bind(through).bind(next_part).bind(next_through);
        if self.connection.execute(statement)? == 1 {
            return Ok(());
        }
        Err(CommitError::Stale("somebody else copies into the same database".to_owned()))
    }

    /// How much there is of everything.
    pub(crate) fn counts(&mut self) -> Result<Counts, StoreError> {
        let row = self.connection.row(sqlx::query(sql::COPY_COUNTS))?.ok_or_else(nothing)?;
        let mut cells = Cells::new(&row);
        let mut counts = Counts::default();
        counts.each_mut().into_iter().try_for_each(|count| cells.take().map(|found| *count = found))?;
        Ok(counts)
    }

    /// Runs of entries from `from` on, of at most so many entries.
    pub(crate) fn entries(&mut self, from: u64, most: u64) -> Result<Vec<Run>, StoreError> {
        let range = sqlx::query(sql::COPIED_ENTRIES).bind(whole(from)).bind(whole(from + most));
        let rows = self.connection.rows(range)?;
        rows.iter()
            .map(|row| {
                let mut cells = Cells::new(row);
                let first: i64 = cells.take()?;
                let place = Place { table: "leaf_place", column: "first", row: first };
                let (_count, bytes): (i32, Vec<u8>) = (cells.take()?, cells.take()?);
                Ok(Run { first: place.count(first)?, bytes })
            })
            .collect()
    }

    /// Gives the database to gateways: their numbers begin above all that were copied.
    pub(crate) fn finish(&mut self, origin: &Origin) -> Result<(), CopyError> {
        // Plans for tables that were empty a moment ago would read all of them.
        self.connection.script(sql::TABLES_ANALYZE.to_owned())?;
        self.in_transaction(|copy| {
            copy.advance(Stage::Done)?;
            let row = copy.connection.row(sqlx::query(sql::LAST_NUMBERS))?.ok_or_else(nothing)?;
            let mut cells = Cells::new(&row);
            let (seq, pos): (i64, i64) = (cells.take()?, cells.take()?);
            let last = seq.max(pos).max(whole(origin.entries));
            copy.connection.row(sqlx::query(sql::TURN_SET).bind(turn_above(last)))?;
            let end = sqlx::query(sql::STORE_END).bind(whole(origin.entries)).bind(origin.now.as_micros());
            copy.connection.execute(end)?;
            Ok(())
        })?;
        self.stage = Stage::Done;
        gatepost_faults::point("copy.finished");
        Ok(())
    }

    fn in_transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, CopyError>,
    ) -> Result<T, CopyError> {
        self.connection.script("BEGIN".to_owned())?;
        match work(self) {
            Ok(done) => {
                self.connection.script("COMMIT".to_owned())?;
                Ok(done)
            }
            Err(error) => {
                // Where that fails there is no connection any more, and so no transaction.
                let _ = self.connection.script("ROLLBACK".to_owned());
                Err(error)
            }
        }
    }
}

/// Whether a copy was begun and is not finished.
pub(super) fn is_unfinished(connection: &mut Connection) -> Result<bool, CommitError> {
    let row = connection.row(sqlx::query(sql::COPY_UNFINISHED))?.ok_or_else(nothing)?;
    Ok(Cells::new(&row).take()?)
}

/// The first turn whose numbers are all larger.
const fn turn_above(number: i64) -> i64 {
    (number >> TURN_BITS) + 1
}

fn nothing() -> StoreError {
    StoreError::Database("the database answers nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn behind_a_clock_that_would_stand_still_nothing_is_copied() {
        let url = gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
        let options = super::super::options(&url.parse().unwrap());
        let open = move |ahead_micros: i64| {
            let now = Timestamp::from_micros(crate::clock::wall_micros() + ahead_micros);
            let (entries, root) = (0, gatepost_audit::empty_root());
            let origin = Origin { mark: [7; 16], log_key: "key".to_owned(), entries, root, now };
            Copy::open(&options, &origin).map(|(copy, begun)| {
                copy.close();
                begun
            })
        };
        let (ahead, little) =
            tokio::task::spawn_blocking(move || (open(3_600_000_000), open(1_000_000))).await.unwrap();
        assert!(matches!(ahead, Err(CopyError::ClockBehind(micros)) if micros > CLOCK_BEHIND_MICROS));
        assert_eq!(little.unwrap(), Begun::Anew, "the one before has left nothing");
    }

    #[test]
    fn the_numbers_of_the_next_turn_are_above_all_that_were_copied() {
        const TURN: i64 = 1 << TURN_BITS;
        for last in [0, 1, TURN - 1, TURN, TURN + 1, 7 * TURN - 1, 7 * TURN, i64::MAX >> 1] {
            let turn = turn_above(last);
            assert!(turn >= 1 && turn << TURN_BITS > last, "{last}");
            assert!(turn << TURN_BITS <= last + TURN, "{last}: no more are left out than must be");
        }
    }
}
