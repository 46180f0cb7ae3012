//! The store on SQLite: one file, one connection that writes.

mod backfill;
mod commit;
pub(crate) mod connection;
mod copy;
mod erase;
mod load;
mod open;
pub(crate) mod pieces;
mod purge;
mod reads;
pub(crate) mod row;
mod space;
pub(crate) mod wal;
mod writeback;

use std::time::Duration;

use gatepost_core::{DeliveryId, MessageId, Timestamp};
use rusqlite::{CachedStatement, Connection, params};
use tokio::time::Instant;

pub(crate) use backfill::{Backfill, BackfillError};
pub(crate) use commit::{StoreRow, execute_summed};
pub(crate) use copy::Original;
pub(crate) use load::{load_memory, load_store};
pub(crate) use open::Opened;
pub use open::sqlite_version;
pub(crate) use open::{READER_WAIT, check_library, check_wal, migrate, open_database, readers};

use crate::backend::{
    Attributes, Backend, CommitError, EraseFind, Erasing, KeyUse, More, Need, Put, Read, Ready, Tended,
    ToErase, ToMove,
};
use crate::data_dir::DataDir;
use crate::keyring::WrappedTree;
use crate::ops::StoreError;
use crate::recent::RecentMessage;
use crate::row::Row;
use crate::seal::{Index, Place, Vault};
use crate::sql;
use crate::writer::{Holds, Memory, Queue, Turn};
use backfill::{STEP_PAGES, STEP_PAGES_OF_PIECES};
use commit::at_commit;
use connection::{CheckpointMode, Checkpointed, rows};

/// Most positions looked at for a part of a queue, whosever they are, so that nobody waits long for the writer.
const POSITIONS_MAX: i64 = 10_000;

pub(crate) struct Sqlite {
    pub(crate) connection: Connection,
    data_dir: DataDir,
    /// Whether what the last checkpoint that did not fail brought into the database is durable there.
    wal: Checkpointed,
    /// Without it the writer checkpoints alone.
    backfill: Option<Backfill>,
    purge: purge::Purge,
    /// The newest commits have written pieces of large payloads.
    has_pieces: bool,
}

impl Sqlite {
    pub(crate) fn new(connection: Connection, data_dir: DataDir, backfill: Option<Backfill>) -> Self {
        Self {
            connection,
            data_dir,
            wal: Checkpointed::Whole,
            backfill,
            purge: Default::default(),
            has_pieces: false,
        }
    }

    pub(crate) fn close(self) -> rusqlite::Result<()> {
        self.connection.close().map_err(|(_, error)| error)
    }

    /// The larger part of the WAL is brought into the database beside the writer, the rest here.
    fn tend_the_wal(&mut self) -> Result<(), CommitError> {
        let Some(backfill) = &mut self.backfill else {
            return if connection::wal_is_long() { self.checkpoint() } else { Ok(()) };
        };
        let done = backfill.outcome();
        if done.is_none() {
            let step = if self.has_pieces { STEP_PAGES_OF_PIECES } else { STEP_PAGES };
            self.has_pieces = false;
            backfill.tend(connection::wal_pages(), step);
        }
        done.map_or(Ok(()), |done| self.backfilled(done))
    }

    /// Takes note of what became of bringing a part of the WAL into the database beside the writer.
    pub(crate) fn backfilled(&mut self, done: Result<(), BackfillError>) -> Result<(), CommitError> {
        match done {
            Ok(()) => self.wal = Checkpointed::Whole,
            Err(BackfillError::Checkpoint(error)) => return self.checkpoint_failed(error.into()),
            Err(error @ BackfillError::Sync(_)) => {
                self.wal = Checkpointed::Partly;
                return self.checkpoint_failed(CommitError::Broken(error.to_string()));
            }
        }
        if connection::wal_is_long() || self.wal_is_to_stay_short() { self.checkpoint() } else { Ok(()) }
    }

    /// Brings the WAL into the database. A checkpoint that failed is simply made again: it starts where the last good one ended.
    /// Unless that one could not be whole: then pages that it wrote may be among those that the failed sync has lost, and only
    /// a start, which reads the whole WAL, writes them anew.
    fn checkpoint(&mut self) -> Result<(), CommitError> {
        let checkpoint = || connection::checkpoint(&self.connection, CheckpointMode::Passive);
        match gatepost_faults::during("store.wal_checkpoint", checkpoint) {
            Ok(brought) => self.wal = brought.how,
            Err(error) => return self.checkpoint_failed(error.into()),
        }
        Ok(())
    }

    fn checkpoint_failed(&mut self, error: CommitError) -> Result<(), CommitError> {
        match error {
            CommitError::Broken(text) if self.wal == Checkpointed::Partly => Err(CommitError::Lost(text)),
            error => Err(error),
        }
    }

    /// A write of its own, outside any turn.
    fn execute(&self, statement: &'static str, params: impl rusqlite::Params) -> Result<usize, CommitError> {
        let execute = || Ok(self.connection.prepare_cached(statement)?.execute(params)?);
        // Within a transaction it is that one's commit which counts.
        if self.connection.is_autocommit() { at_commit(execute) } else { execute() }
    }

    fn statement(&self, sql: &'static str) -> rusqlite::Result<CachedStatement<'_>> {
        self.connection.prepare_cached(sql)
    }
}

impl Backend for Sqlite {
    fn begin(&mut self, _: &Holds) -> Result<(), CommitError> {
        commit::begin(&self.connection)
    }

    fn roll_back(&mut self) -> Result<(), CommitError> {
        commit::roll_back(&self.connection)
    }

    /// Memory has them: nobody else writes.
    fn number(&mut self, _: &mut Memory) -> Result<Option<Timestamp>, CommitError> {
        Ok(None)
    }

    fn places_leaves(&self) -> bool {
        true
    }

    /// Nobody else writes.
    fn catch_up(&mut self, _: &mut Memory, _: &Vault) -> Result<(), CommitError> {
        Ok(())
    }

    fn commit(&mut self, turn: &Turn<'_>) -> Result<i64, CommitError> {
        self.has_pieces |= !turn.pieces.is_empty();
        commit::commit(&self.connection, turn).map(|()| 0)
    }

    fn queue_put(&mut self, queue: &Queue, put: Put) -> Result<(), CommitError> {
        let statement = match put {
            Put::Add => sql::QUEUE_ADD,
            Put::Change => sql::QUEUE_CHANGE,
        };
        if commit::change_queue(&mut self.statement(statement)?, queue)? != 1 {
            return Err(Place { table: "queue", column: "name", row: queue.id }.corrupt().into());
        }
        Ok(())
    }

    fn pieces_drop(&mut self, message: &MessageId) -> Result<More, CommitError> {
        self.drop_some_pieces(message)
    }

    fn deliveries(&mut self, ids: &[DeliveryId]) -> Result<Read<Row>, CommitError> {
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let id = params![id.as_bytes()];
            found.extend(rows(&self.connection, sql::DELIVERY_BY_ID, id, |cells| Ok(row::load(cells)))?);
        }
        Ok(found)
    }

    fn deliveries_at(&mut self, positions: &[i64]) -> Result<Read<Row>, CommitError> {
        let mut found = Vec::with_capacity(positions.len());
        for &pos in positions {
            let mut read = rows(&self.connection, sql::DELIVERY_BY_POS, [pos], |cells| Ok(row::load(cells)))?;
            let missing = || Err(Place { table: "delivery", column: "pos", row: pos }.corrupt());
            found.push(read.pop().unwrap_or_else(missing));
        }
        Ok(found)
    }

    fn ready(&mut self, ready: Ready, now: Timestamp, most: u32) -> Result<Vec<(i64, i64)>, CommitError> {
        let (statement, queue) = match ready {
            Ready::Any { queue } => (sql::DELIVERIES_READY, queue),
            Ready::Suspect { queue } => (sql::DELIVERIES_READY_SUSPECT, queue),
        };
        rows(&self.connection, statement, params![queue, now.as_micros(), most], |mut cells| {
            Ok((cells.take()?, cells.take()?))
        })
    }

    fn ready_next(&mut self, queue: i64, now: Timestamp) -> Result<Option<i64>, CommitError> {
        let next = params![queue, now.as_micros()];
        Ok(rows(&self.connection, sql::READY_NEXT, next, |mut cells| cells.take())?.pop())
    }

    fn lane(&mut self, queue: i64, lane: &Index, most: u32) -> Result<Read<Row>, CommitError> {
        let of_lane = params![queue, lane, most];
        rows(&self.connection, sql::DELIVERIES_OF_LANE, of_lane, |cells| Ok(row::load(cells)))
    }

    fn lane_stuck(
        &mut self,
        queue: i64,
        lane: &Index,
        after: i64,
        through: i64,
    ) -> Result<bool, CommitError> {
        let of_lane = params![queue, lane, through, after];
        let found = rows(&self.connection, sql::LANE_STUCK, of_lane, |mut cells| cells.take::<i64>())?;
        Ok(!found.is_empty())
    }

    fn past_expiry(&mut self, now: Timestamp, most: u32) -> Result<Read<Row>, CommitError> {
        let past = params![now.as_micros(), most];
        rows(&self.connection, sql::DELIVERIES_PAST_EXPIRY, past, |cells| Ok(row::load(cells)))
    }

    fn to_move(&mut self, queue: i64, after: i64, most: u32) -> Result<ToMove, CommitError> {
        let newest = rows(&self.connection, sql::SEQUENCES_LOAD, [], |mut cells| {
            let _message: i64 = cells.take()?;
            cells.take::<i64>()
        })?;
        let newest = newest.first().copied().unwrap_or(0);
        let last = (after + POSITIONS_MAX).min(newest);
        let range = params![queue, after, last, most];
        let rows = rows(&self.connection, sql::DELIVERIES_TO_MOVE, range, row::load)?;
        let through = rows.last().filter(|_| rows.len() == most as usize).map_or(last, |row| row.pos);
        Ok(ToMove { rows, through, more: through < newest })
    }

    fn keys_used(
        &mut self,
        memory: &Memory,
        keys: &[Index],
        _: Need,
    ) -> Result<Option<Vec<KeyUse>>, CommitError> {
        let mut used = Vec::new();
        for key in keys {
            used.extend(reads::key_used(&self.connection, memory, key)?);
        }
        Ok(Some(used))
    }

    fn attributes(&mut self, seq: i64) -> Result<Option<Attributes>, CommitError> {
        let read = rows(&self.connection, sql::MESSAGE_ATTRIBUTES, [seq], |mut cells| {
            Ok(Attributes { seq, message: cells.take()?, sealed: cells.take()? })
        })?;
        Ok(read.into_iter().next())
    }

    fn messages_small(
        &mut self,
        seqs: &[i64],
        found: &mut dyn FnMut(MessageId, RecentMessage) -> More,
    ) -> Result<(), StoreError> {
        let read = reads::messages_small(&self.connection, seqs, found);
        read.map_err(|error| StoreError::Database(error.to_string()))
    }

    fn adapter_state(&mut self, adapter: &str, vault: &Vault) -> Result<Vec<(String, Vec<u8>)>, CommitError> {
        rows(&self.connection, sql::ADAPTER_STATE_LOAD, [adapter], |mut cells| {
            let (_adapter, key, value) = load::open_state(&mut cells, vault)?;
            Ok((key, value))
        })
    }

    fn keyring_add(&mut self, trees: &[WrappedTree]) -> Result<(), CommitError> {
        commit::add_trees(&self.connection, trees)
    }

    fn keyring_put(&mut self, trees: &[WrappedTree]) -> Result<(), CommitError> {
        commit::put_trees(&self.connection, trees)
    }

    fn keyring_oldest(&mut self) -> Result<Option<u32>, CommitError> {
        let found = rows(&self.connection, sql::KEYRING_OLDEST, [], |mut cells| cells.take::<Option<i64>>())?;
        Ok(found.into_iter().flatten().next().and_then(|key| u32::try_from(key).ok()))
    }

    fn has_others(&mut self) -> Result<bool, CommitError> {
        Ok(false)
    }

    fn to_erase(&mut self, what: &EraseFind, after: i64, most: u32) -> Result<ToErase, CommitError> {
        self.find_to_erase(what, after, most)
    }

    fn erase(&mut self, messages: &[Erasing]) -> Result<(), CommitError> {
        self.erase_messages(messages)
    }

    fn purge_content(&mut self, now: Timestamp, age: Duration, vault: &Vault) -> Result<u64, CommitError> {
        self.content_step(now, age, vault)
    }

    fn purge_keys(&mut self, now: Timestamp, age: Duration, keyed: i64) -> Result<(), CommitError> {
        self.keys_step(now, age, keyed)
    }

    fn leaves_filed(&mut self, below: u64) -> Result<(), CommitError> {
        let below = i64::try_from(below).unwrap_or(i64::MAX);
        self.execute(sql::LEAVES_DROP, [below]).map(drop)
    }

    fn has_left_notes(&self) -> bool {
        false
    }

    fn asks_who_consumes(&self) -> bool {
        false
    }

    fn tend(&mut self, _: &mut Memory, _: &Vault, _: &[i64]) -> Result<Tended, CommitError> {
        self.tend_the_wal().map(|()| Tended::default())
    }

    fn look(&mut self, _: &Memory, _: &[i64]) -> Result<Vec<i64>, CommitError> {
        Ok(Vec::new())
    }

    fn claim(&mut self, _: &str) -> Result<bool, CommitError> {
        Ok(true)
    }

    fn give_up(&mut self, _: &str) -> Result<(), CommitError> {
        Ok(())
    }

    fn right_until(&self) -> Option<Instant> {
        None
    }

    /// Nobody else leases, opens sessions or decides anything.
    fn consume(&mut self, _: &Memory, _: i64) -> Result<(), CommitError> {
        Ok(())
    }

    fn log_bytes(&self) -> u64 {
        self.wal_bytes()
    }

    fn has_room(&mut self, bytes: u64) -> Result<bool, CommitError> {
        self.has_bytes_beside(bytes)
    }

    fn make_room(&mut self) -> Result<bool, CommitError> {
        self.use_the_wal_anew()
    }

    fn release_reserve(&mut self) {
        if let Err(error) = self.data_dir.release_reserve() {
            tracing::error!(%error, "the reserve cannot be released");
        }
    }

    fn has_space(&mut self) -> Result<bool, CommitError> {
        self.is_usable_again()
    }

    fn reopen(&mut self, vault: &Vault, keys_in_memory: usize) -> Result<Memory, String> {
        let connection = connection::connect(&self.data_dir.database()).map_err(|error| error.to_string())?;
        connection::quick_check(&connection)?;
        let memory =
            load::load_memory(&connection, vault, keys_in_memory).map_err(|error| error.to_string())?;
        self.connection = connection;
        Ok(memory)
    }

    fn instance_epoch(&self, opened: u32) -> u32 {
        opened
    }

    fn abandon(&mut self) {
        let leave = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        if let Err(error) = self.connection.set_db_config(leave, true) {
            tracing::error!(%error, "SQLite does not leave the WAL as it is");
        }
    }
}
