//! A stopped gateway's database as it is read to be copied into another: in the order of its numbers, each row with its sum, each
//! sealed value opened. What is damaged is not copied but an error.

use std::collections::HashMap;

use gatepost_audit::{DirTiles, Leaf, NodeSource as _, TILE_WIDTH, leaf_hash, parse_bundle};
use rusqlite::{Connection, params};

use super::connection::{Cells, rows};
use super::load::stored_trees;
use super::pieces;
use super::row::{self, INDEXED_COLUMNS, MESSAGE_COLUMNS};
use crate::audit_log::LogFault;
use crate::backend::CommitError;
use crate::data_dir::DataDir;
use crate::keyring::WrappedTree;
use crate::leaves::Run;
use crate::migrate::batch::{
    BATCH_BYTES, Batch, Content, Delivery, Detail, Entries, Message, Part, Reply, Rows, State,
};
use crate::migrate::{Counts, MigrateError};
use crate::ops::StoreError;
use crate::prepared::remains_of;
use crate::seal::{Owner, Place, Salt, Vault};
use crate::sql;
use crate::writer::Memory;

/// Columns of a leaf that its sum covers.
const LEAF_COLUMNS: usize = 2;
/// Entries of a full tile.
const TILE: u64 = TILE_WIDTH as u64;

pub(crate) struct Original {
    connection: Connection,
    vault: Vault,
    memory: Memory,
    files: DirTiles,
    /// Entries below this stand in files only.
    filed: u64,
    /// Rows of a batch.
    rows: usize,
}

impl Original {
    pub(crate) fn new(
        opened: super::Opened,
        vault: Vault,
        data_dir: &DataDir,
        rows_per_batch: usize,
    ) -> Result<Self, StoreError> {
        let super::Opened { connection, memory, .. } = opened;
        let first = rows(&connection, sql::LEAF_FIRST, [], |mut cells| cells.take::<i64>())?;
        let first = first.first().and_then(|first| u64::try_from(*first).ok());
        Ok(Self {
            filed: first.unwrap_or(memory.leaf_count),
            files: DirTiles::new(data_dir.audit()),
            connection,
            vault,
            memory,
            rows: rows_per_batch.max(1),
        })
    }

    /// What the data keys of everything are computed from, and of what is sealed anew for the copy.
    pub(crate) fn trees(&self) -> Result<Vec<WrappedTree>, StoreError> {
        let mut trees = stored_trees(&self.connection)?;
        trees.extend(self.vault.unsaved()?);
        Ok(trees)
    }

    /// Size of the audit tree.
    pub(crate) fn size(&self) -> u64 {
        self.memory.leaf_count
    }

    /// Closes the database well: what its WAL held is in its file then.
    pub(crate) fn close(self) -> Result<(), StoreError> {
        let closed = self.connection.close();
        closed.map_err(|(_, error)| StoreError::Database(error.to_string()))
    }

    /// The number at which each part ends, or how many it has.
    pub(crate) fn ends(&self) -> Result<HashMap<&'static str, i64>, StoreError> {
        let found = rows(&self.connection, sql::COPY_LAST, [], |mut cells| {
            Ok([cells.take()?, cells.take()?, cells.take()?, cells.take()?, cells.take()?])
        })?;
        let [seq, pos, leaf, reply, states] = found.first().copied().unwrap_or_default();
        let queues = i64::try_from(self.memory.queues.len()).unwrap_or(i64::MAX);
        let of = |part: Part| match part {
            Part::Queues => queues,
            Part::Messages => seq,
            Part::Deliveries => pos,
            Part::Details => leaf,
            Part::Replies => reply,
            Part::States => states,
            Part::Entries => number(self.size()),
        };
        Ok(Part::ALL.into_iter().map(|part| (part.as_str(), of(part))).collect())
    }

    /// What the copy must have in the end.
    pub(crate) fn counts(&self) -> Result<Counts, StoreError> {
        let keyed = self.memory.keys.keyed();
        let counted = rows(&self.connection, sql::COPY_COUNTS, [keyed], |mut cells| {
            let mut counts = Counts::default();
            counts.each_mut().into_iter().try_for_each(|count| cells.take().map(|found| *count = found))?;
            Ok(counts)
        })?;
        counted.into_iter().next().ok_or_else(|| StoreError::Database("it counts nothing".to_owned()))
    }

    /// What comes after `through`; nothing when the part ends there.
    pub(crate) fn next(&self, part: Part, through: i64) -> Result<Batch, MigrateError> {
        let (rows, through) = match part {
            Part::Queues => self.queues(through),
            Part::Messages => self.messages(through)?,
            Part::Deliveries => self.deliveries(through)?,
            Part::Details => self.details(through)?,
            Part::Replies => self.replies(through)?,
            Part::States => self.states(through)?,
            Part::Entries => self.entries(through)?,
        };
        Ok(Batch { rows, through })
    }

    /// All at once: they stand in memory, and there is one for each destination.
    fn queues(&self, through: i64) -> (Rows, i64) {
        let all: Vec<_> = self.memory.queues.values().filter(|_| through == 0).cloned().collect();
        let through = through + i64::try_from(all.len()).unwrap_or(0);
        (Rows::Queues(all), through)
    }

    fn messages(&self, after: i64) -> Result<(Rows, i64), MigrateError> {
        let found = self.some(sql::COPY_MESSAGES, after, |cells| {
            let message = self.message(cells)?;
            let bytes = message.content.as_ref().map_or(0, |content| content.data.len());
            Ok((message, bytes))
        })?;
        for message in &found {
            let (first, last) = (message.first_pos, message.first_pos + message.positions - 1);
            let strangers = params![message.seq, first, last];
            if !rows(&self.connection, sql::COPY_STRANGER, strangers, |mut cells| cells.take::<i64>())?
                .is_empty()
            {
                return Err(MigrateError::Scattered(gatepost_core::MessageId::from_bytes(message.id)));
            }
        }
        let through = found.last().map_or(after, |message| message.seq);
        Ok((Rows::Messages(found), through))
    }

    fn message(&self, mut cells: Cells<'_>) -> Result<Message, StoreError> {
        let sound = cells.next_hold(MESSAGE_COLUMNS)?;
        let seq: i64 = cells.take()?;
        let place = |column| Place { table: "message", column, row: seq };
        if !sound {
            return Err(place("sum").corrupt());
        }
        let (id, accepted_at) = (cells.take()?, cells.take()?);
        let (sender_kind, sender, kind) = (cells.take()?, cells.take()?, cells.take()?);
        let (form, size) = (cells.take()?, cells.take()?);
        let _sum: i64 = cells.take()?;
        if !cells.next_hold_with_added(INDEXED_COLUMNS)? {
            return Err(place("sum_indexed").corrupt());
        }
        let _seq: i64 = cells.take()?;
        let (dedup, fingerprint) = (cells.take()?, cells.take()?);
        let (subject, key) = (cells.take()?, cells.take()?);
        let (correlation, barrier) = (cells.take()?, cells.take()?);
        let _sum: i64 = cells.take()?;
        let attributes: Vec<u8> = cells.take()?;
        let owner = Owner::Attributes { message: &id };
        let opened = self.vault.open(&attributes, owner, place("attributes"))?;
        let salt = cells.take::<Option<_>>()?.map(Salt::from_stored);
        let data = cells.take::<Option<Vec<u8>>>()?;
        let (remains, content) = match (salt, data) {
            (None, None) => (attributes, None),
            (Some(salt), Some(data)) => {
                let of = Owner::Data { message: &id, salt: &salt };
                let data =
                    pieces::whole(&self.connection, data, of)?.ok_or_else(|| place("data").corrupt())?;
                self.vault.open(&data, of, place("data"))?;
                let remains = self.vault.seal(&remains_of(&opened), owner).map_err(StoreError::from)?;
                (remains, Some(Content { attributes, salt, data }))
            }
            (Some(_), None) | (None, Some(_)) => return Err(place("data").corrupt()),
        };
        let indexed: bool = cells.take()?;
        let (first, last) = (cells.take::<Option<i64>>()?, cells.take::<Option<i64>>()?);
        let (first_pos, positions) =
            first.zip(last).map_or((0, 0), |(first, last)| (first, last - first + 1));
        Ok(Message {
            seq,
            id,
            accepted_at,
            sender_kind,
            sender,
            kind,
            form,
            size,
            dedup,
            fingerprint,
            subject,
            key,
            correlation,
            barrier,
            // The newest are in no index yet; of two, the later one has it.
            holds_key: indexed || seq > self.memory.keys.keyed(),
            first_pos,
            positions,
            remains,
            content,
        })
    }

    fn deliveries(&self, after: i64) -> Result<(Rows, i64), MigrateError> {
        let found = self.some(sql::COPY_DELIVERIES, after, |mut cells| {
            let is_ready = cells.take()?;
            Ok((Delivery { is_ready, row: row::load(cells)? }, 0))
        })?;
        let through = found.last().map_or(after, |delivery| delivery.row.pos);
        Ok((Rows::Deliveries(found), through))
    }

    fn details(&self, after: i64) -> Result<(Rows, i64), MigrateError> {
        let found = self.some(sql::COPY_DETAILS, after, |mut cells| {
            let (leaf, delivery, body): (i64, i64, Vec<u8>) = (cells.take()?, cells.take()?, cells.take()?);
            let place = |column| Place { table: "detail", column, row: leaf };
            self.vault.open(&body, Owner::Detail { leaf, delivery }, place("body"))?;
            let accepted_at = cells.take::<Option<i64>>()?.ok_or_else(|| place("delivery").corrupt())?;
            let bytes = body.len();
            Ok((Detail { leaf, delivery, accepted_at, body }, bytes))
        })?;
        let through = found.last().map_or(after, |detail| detail.leaf);
        Ok((Rows::Details(found), through))
    }

    fn replies(&self, after: i64) -> Result<(Rows, i64), MigrateError> {
        let found = self.some(sql::COPY_REPLIES, after, |mut cells| {
            let (delivery, body): (i64, Vec<u8>) = (cells.take()?, cells.take()?);
            let place = |column| Place { table: "reply", column, row: delivery };
            self.vault.open(&body, Owner::Reply { delivery }, place("body"))?;
            let accepted_at = cells.take::<Option<i64>>()?.ok_or_else(|| place("delivery").corrupt())?;
            let bytes = body.len();
            Ok((Reply { delivery, accepted_at, body }, bytes))
        })?;
        let through = found.last().map_or(after, |reply| reply.delivery);
        Ok((Rows::Replies(found), through))
    }

    /// The values were opened when the database was.
    fn states(&self, through: i64) -> Result<(Rows, i64), MigrateError> {
        let found = self.some(sql::COPY_STATES, through, |mut cells| {
            let state = State { adapter: cells.take()?, key: cells.take()?, value: cells.take()? };
            let bytes = state.value.len();
            Ok((state, bytes))
        })?;
        let through = through + i64::try_from(found.len()).unwrap_or(0);
        Ok((Rows::States(found), through))
    }

    /// By whole tiles, of which only the last one may be partial.
    fn entries(&self, through: i64) -> Result<(Rows, i64), MigrateError> {
        let mut next = u64::try_from(through).unwrap_or(0);
        let most = next + (self.rows as u64).max(TILE);
        let mut found = Vec::new();
        while next < self.size() && next + TILE <= most {
            let run = self.tile(next)?;
            let (count, at) = described(&run)?;
            next += u64::try_from(count).unwrap_or(0);
            found.push(Entries { run, count, at });
        }
        Ok((Rows::Entries(found), number(next)))
    }

    /// The entries of a tile, from its file or from their rows.
    fn tile(&self, first: u64) -> Result<Run, LogFault> {
        let end = self.size().min(first + TILE);
        let bytes = if first < self.filed { self.filed(first)? } else { self.in_rows(first, end)? };
        let run = Run { first, bytes };
        let damaged = || LogFault::EntryDamaged(first.to_string());
        if run.leaves().map_err(|_| damaged())?.count() as u64 != end - first {
            return Err(LogFault::EntryMissing(first));
        }
        Ok(run)
    }

    /// A bundle of which every entry has the hash that the tree has of it.
    fn filed(&self, first: u64) -> Result<Vec<u8>, LogFault> {
        let fault = |error: &dyn std::fmt::Display| LogFault::Tiles(error.to_string());
        let index = first / TILE;
        let bundle = self.files.bundle_file(index, None).map_err(|error| fault(&error))?;
        let bundle = bundle.ok_or(LogFault::EntryMissing(first))?;
        let tile = self.files.tile(0, index, TILE_WIDTH).map_err(|error| fault(&error))?;
        let entries = parse_bundle(&bundle).map_err(|_| LogFault::EntryDamaged(first.to_string()))?;
        let differs = entries.iter().zip(&tile).position(|(entry, hash)| leaf_hash(entry) != *hash);
        match differs {
            Some(within) => Err(LogFault::EntryDamaged((first + within as u64).to_string())),
            None => Ok(bundle),
        }
    }

    fn in_rows(&self, first: u64, end: u64) -> Result<Vec<u8>, LogFault> {
        let mut bundle = Vec::new();
        let mut next = first;
        let range = [number(first), number(end)];
        let runs = rows(&self.connection, sql::LEAVES, range, |mut cells| {
            let sound = cells.next_hold(LEAF_COLUMNS)?;
            let first: i64 = cells.take()?;
            Ok((sound, Run { first: u64::try_from(first).unwrap_or(0), bytes: cells.take()? }))
        });
        for (sound, run) in runs.map_err(|error| LogFault::Tiles(StoreError::from(error).to_string()))? {
            let damaged = || LogFault::EntryDamaged(run.first.to_string());
            if !sound {
                return Err(damaged());
            }
            if run.first != next {
                return Err(LogFault::EntryMissing(next));
            }
            next += run.leaves().map_err(|_| damaged())?.count() as u64;
            bundle.extend_from_slice(&run.bytes);
        }
        Ok(bundle)
    }

    /// Reads rows until there are enough of them; `load` says how many bytes one has beside its columns.
    fn some<T>(
        &self,
        statement: &'static str,
        after: i64,
        load: impl Fn(Cells<'_>) -> Result<(T, usize), StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let failed = |error: rusqlite::Error| StoreError::from(CommitError::from(error));
        let mut statement = self.connection.prepare_cached(statement).map_err(failed)?;
        let mut rows = statement.query([after]).map_err(failed)?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        while found.len() < self.rows && bytes < BATCH_BYTES {
            let Some(row) = rows.next().map_err(failed)? else { break };
            let (value, of_value) = load(Cells::new(row))?;
            found.push(value);
            bytes += of_value;
        }
        Ok(found)
    }
}

/// How many entries a run has, and when the first was committed.
fn described(run: &Run) -> Result<(i32, i64), LogFault> {
    let damaged = || LogFault::EntryDamaged(run.first.to_string());
    let mut leaves = run.leaves().map_err(|_| damaged())?;
    let (_, first) = leaves.next().ok_or(LogFault::EntryMissing(run.first))?;
    let at = Leaf::parse(first).map_err(|_| damaged())?.at;
    Ok((i32::try_from(leaves.count() + 1).unwrap_or(i32::MAX), at))
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
