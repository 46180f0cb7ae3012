//! The last rows: queues with their counts, and the store's.

use rusqlite::types::Value;

use super::super::SalvageError;
use super::super::table::Table;
use super::{Building, sum_of};
use crate::leaves::Runs;
use crate::sql;
use crate::sqlite::row::QUEUE_COLUMNS;
use crate::sqlite::{StoreRow, execute_summed};

/// Starts that are skipped where their count is lost: lease tokens of any of them must not come again.
const STARTS_SKIPPED: u32 = 1000;
/// The kind of a queue's row that counts what a sender has handed in; its name has a colon.
const SENDER: &str = "sender";
/// Columns of a queue up to its counts, and with them.
const QUEUE_COUNTS: std::ops::Range<usize> = 11..QUEUE_COLUMNS;
const QUEUE_SESSION: usize = 10;

const COUNTS_OF_QUEUE: &str = "SELECT coalesce(sum(d.state = 0), 0), coalesce(sum(d.state = 1), 0), coalesce(sum(d.state = 2), 0), \
    coalesce(sum(d.state = 2 AND d.late = 1), 0), coalesce(sum(d.state = 3), 0), \
    coalesce(sum(d.state = 3 AND d.due IS NULL), 0), coalesce(sum(d.state = 5), 0), \
    coalesce(sum(d.state < 4 AND d.suspect = 1), 0), \
    coalesce(sum(d.lane IS NOT NULL AND ((d.state = 3 AND d.due IS NULL) OR (d.state = 5 AND d.blocks = 1))), 0), \
    coalesce(sum(CASE WHEN d.state < 4 THEN m.size ELSE 0 END), 0) \
    FROM delivery d JOIN message m ON m.seq = d.message WHERE d.queue = ?1";
const COUNTS_OF_SENDER: &str = "SELECT count(*), 0, 0, 0, 0, 0, 0, 0, 0, coalesce(sum(m.size), 0) FROM delivery d JOIN message m ON m.seq = d.message \
    WHERE d.sender = ?1 AND d.state < 4";

impl Building<'_> {
    /// What follows from the rows: keys, what may be leased, counts, the store's own row.
    pub(super) fn finish(&mut self) -> Result<(), SalvageError> {
        let runs = std::mem::replace(&mut self.leaves, Runs::new(0));
        let base = if self.continued { self.survey.walked.size } else { 0 };
        let leaf_count = base + runs.count();
        self.add_runs(runs)?;
        if self.survey.store_key.is_some() {
            let keys =
                "INSERT OR REPLACE INTO dedup (key, message) SELECT dedup, seq FROM message ORDER BY seq";
            self.connection.execute(keys, [])?;
        }
        self.connection.execute(
            "UPDATE delivery AS f SET ready = due WHERE f.lane IS NOT NULL AND f.due IS NOT NULL AND f.state IN (0, 3) \
             AND NOT EXISTS (SELECT 1 FROM delivery e WHERE e.queue = f.queue AND e.lane IN (f.lane, f.barrier) AND e.blocks = 1 AND e.pos < f.pos) \
             AND NOT EXISTS (SELECT 1 FROM delivery e WHERE e.queue = f.queue AND e.barrier IN (f.lane, f.barrier) AND e.blocks = 1 \
             AND e.pos < f.pos)",
            [],
        )?;
        self.name_senders()?;
        for (id, name) in self.queues.clone() {
            self.add_queue(id, name)?;
        }
        let keyed =
            self.connection.query_row("SELECT coalesce(max(seq), 0) FROM message", [], |row| row.get(0))?;
        let stored = |column: usize| match self.survey.store.as_ref().and_then(|store| store.get(column)) {
            Some(Value::Integer(value)) => Some(*value),
            _ => None,
        };
        let starts = stored(2).and_then(|starts| u32::try_from(starts).ok());
        let row = StoreRow {
            clock: self.now.as_micros(),
            instance_epoch: starts.unwrap_or(self.survey.record.starts.saturating_add(STARTS_SKIPPED)),
            leaf_count,
            keyed,
            key_mark: self.vault.key_mark(),
        };
        let mut start = self.connection.prepare_cached(sql::STORE_START)?;
        row.with_columns(|columns| execute_summed(&mut start, columns, &[]))?;
        drop(start);
        Ok(self.connection.execute_batch("COMMIT; PRAGMA journal_mode = DELETE;")?)
    }

    /// Senders whose rows are missing: each message says whose it is. Their numbers must not become others'.
    fn name_senders(&mut self) -> Result<(), SalvageError> {
        let mut statement = self.connection.prepare(
            "SELECT DISTINCT d.sender, m.sender_kind || ':' || m.sender FROM delivery d JOIN message m ON m.seq = d.message \
             WHERE d.sender IS NOT NULL",
        )?;
        let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let found: Vec<(i64, String)> = found.collect::<rusqlite::Result<_>>()?;
        drop(statement);
        for (id, name) in found {
            self.queues.entry(id).or_insert(name);
        }
        Ok(())
    }

    /// A queue as it was, with the counts that its deliveries make.
    fn add_queue(&self, id: i64, name: String) -> Result<(), SalvageError> {
        let mut values = match self.survey.queues.get(&id) {
            Some(values) => values[..QUEUE_COLUMNS].to_vec(),
            None => {
                let mut values = vec![Value::Null; QUEUE_COUNTS.start];
                values[0] = Value::Integer(id);
                values[1] = Value::Text(name.clone());
                values[2] = Value::Text(if name.contains(':') { SENDER } else { "removed" }.to_owned());
                values[6] = Value::Integer(0);
                values[8] = Value::Integer(0);
                values[QUEUE_SESSION] = Value::Integer(0);
                values
            }
        };
        let session = match values[QUEUE_SESSION] {
            Value::Integer(session) => session,
            _ => 0,
        };
        // A later one was opened if the log says so.
        let logged = self.survey.record.sessions.get(&name).copied().unwrap_or(0);
        let stored = self.survey.queues.contains_key(&id);
        let logged = i64::try_from(logged).unwrap_or(0) + i64::from(!stored);
        values[QUEUE_SESSION] = Value::Integer(session.max(logged));
        values.truncate(QUEUE_COUNTS.start);
        let counts =
            if values[2] == Value::Text(SENDER.to_owned()) { COUNTS_OF_SENDER } else { COUNTS_OF_QUEUE };
        let counts = self.connection.query_row(counts, [id], |row| {
            (0..QUEUE_COUNTS.len())
                .map(|column| row.get::<_, Value>(column))
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        values.extend(counts);
        values.push(Value::Integer(sum_of(values.iter())?));
        self.insert(Table::Queue, &values)
    }
}
