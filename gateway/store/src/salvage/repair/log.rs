//! The log of the new directory: the old one goes on, or a new one says where everything stands.

use std::fs;
use std::path::Path;

use gatepost_audit::{Event as LeafEvent, Leaf, LeafDelivery, TILE_WIDTH, entries_path, write_file_durable};
use gatepost_core::delivery::{Event, Moment, Reason};
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{Delivery, QueuePolicy, State};
use rusqlite::params;
use sha2::{Digest as _, Sha256};

use super::super::table::Table;
use super::super::{Damage, Fate, SalvageError, at};
use super::{Building, Salvaged};
use crate::leaves::Runs;
use crate::open::sign_empty;
use crate::row::Row;
use crate::seal::{Owner, SALT_BYTES, Salt, commitment};
use crate::sql;
use crate::sqlite::connection::rows as read_rows;
use crate::sqlite::execute_summed;
use crate::sqlite::pieces::whole;
use crate::sqlite::row;
use crate::writer::leaf::{actor, leaf_state};

/// Entries of the database are in rows from a tile's border on.
const WIDTH: u64 = TILE_WIDTH as u64;

impl Building<'_> {
    pub(super) fn log(
        mut self,
        keys: &crate::data_dir::Keys,
        dead: Vec<i64>,
    ) -> Result<Salvaged, SalvageError> {
        if !self.continued {
            let why = "free text of steps belongs to entries of the log that ended";
            self.damage.push(Damage::row(Table::Detail, "all", None, Fate::Lost, why));
        }
        self.damage.sort();
        self.damage.dedup();
        if self.continued {
            self.copy_log()?;
        } else {
            self.keep_log_aside()?;
            sign_empty(&self.data, keys).map_err(|error| SalvageError::Database(error.to_string()))?;
            let gateway = Actor::new(ActorKind::Gateway, self.origin.clone());
            self.push(&Leaf::new(self.now.as_micros(), actor(&gateway), LeafEvent::LogOpened))?;
        }
        let (note, digest) = self.write_note()?;
        let operator = self.operator.clone();
        let mut leaf = Leaf::new(self.now.as_micros(), actor(&operator), LeafEvent::Salvaged);
        leaf.subject_of = Some(digest.clone().into());
        leaf.count = Some(self.damage.len() as u64);
        leaf.code = Some(if self.continued { "log_continued" } else { "log_begun" }.into());
        self.push(&leaf)?;
        if !self.continued {
            self.record_everything()?;
        }
        for pos in dead {
            self.end(pos)?;
        }
        self.finish()?;
        let count = |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        let messages = count("SELECT count(*) FROM message")?.cast_unsigned();
        let deliveries = count("SELECT count(*) FROM delivery")?.cast_unsigned();
        let entries = count("SELECT leaf_count FROM store")?.cast_unsigned();
        let Self { connection, damage, continued: log_continued, .. } = self;
        connection.close().map_err(|(_, error)| error)?;
        Ok(Salvaged { messages, deliveries, entries, log_continued, note, digest, damage })
    }

    fn push(&mut self, leaf: &Leaf<'_>) -> Result<u64, SalvageError> {
        let encoded = leaf.encode().map_err(|error| SalvageError::Unsound(error.to_string()))?;
        self.leaves.push(&encoded).map_err(|error| SalvageError::Unsound(error.to_string()))
    }

    /// Writes the entries that are there as they were: whole tiles as files, the rest as rows.
    fn copy_log(&mut self) -> Result<(), SalvageError> {
        let survey = self.survey;
        let audit = self.data.audit();
        let size = survey.walked.size;
        let border = size - size % WIDTH;
        let mut rest = Runs::new(border);
        let put = |path: &str, bytes: &[u8]| {
            let path = audit.join(path);
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(path, bytes)
        };
        let walked = survey.log.walk(
            Some(size),
            survey.vkey.as_ref(),
            |index, entry| match index < border {
                true => Ok(()),
                false => rest.push(entry).map(drop).map_err(std::io::Error::other),
            },
            |tile, bundle| {
                put(&tile.path(), &tile.bytes())?;
                bundle.map_or(Ok(()), |bundle| put(&entries_path(tile.index, None), bundle))
            },
        );
        walked.map_err(at(&audit))?;
        self.add_runs(rest)?;
        if let Some((_, signed)) = &survey.walked.checkpoint {
            write_file_durable(&audit, gatepost_audit::dir::CHECKPOINT, signed.as_bytes())
                .map_err(at(&audit))?;
        }
        Ok(())
    }

    pub(super) fn add_runs(&self, runs: Runs) -> Result<(), SalvageError> {
        for run in runs.into_runs() {
            let first = i64::try_from(run.first).unwrap_or(i64::MAX);
            let mut add = self.connection.prepare_cached(sql::LEAVES_ADD)?;
            execute_summed(&mut add, params![first, run.bytes], &[])?;
        }
        Ok(())
    }

    /// The log that cannot be continued, as it is: its files, and the entries that only the database had.
    fn keep_log_aside(&self) -> Result<(), SalvageError> {
        let survey = self.survey;
        let aside = self.data.audit().join(format!("ended-{}", survey.walked.size));
        copy_dir(&survey.data.audit(), &aside).map_err(at(&aside))?;
        let mut newest = String::new();
        for (index, entry) in survey.log.rows() {
            let entry = String::from_utf8_lossy(entry);
            newest.push_str(&format!("{index}\t{entry}\n"));
        }
        let path = aside.join("newest-entries.tsv");
        fs::write(&path, newest).map_err(at(&path))
    }

    fn write_note(&self) -> Result<(String, String), SalvageError> {
        let damage: Vec<_> = self.damage.iter().map(Damage::to_json).collect();
        let note = serde_json::json!({
            "at_us": self.now.as_micros(),
            "operator": self.operator.name,
            "log_continued": self.continued,
            "log_entries": self.survey.walked.size,
            "log_broken": self.survey.walked.broken,
            "damage": damage,
        });
        let note = format!("{note:#}\n");
        let name = format!("salvaged-{}.json", self.now.as_micros());
        let audit = self.data.audit();
        write_file_durable(&audit, &name, note.as_bytes()).map_err(at(&audit))?;
        let hex: String = Sha256::digest(note.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((format!("audit/{name}"), format!("sha256:{hex}")))
    }

    /// A new log begins with what there is: each message as accepted, each delivery as it stands.
    fn record_everything(&mut self) -> Result<(), SalvageError> {
        let mut after = 0;
        loop {
            let next = self.connection.query_row(
                "SELECT seq, id, size, salt, data FROM message WHERE seq > ?1 ORDER BY seq LIMIT 1",
                [after],
                |row| {
                    let salt: Option<[u8; SALT_BYTES]> = row.get(3)?;
                    let sealed: Option<Vec<u8>> = row.get(4)?;
                    Ok((
                        row.get::<_, i64>(0)?,
                        row.get::<_, [u8; 16]>(1)?,
                        row.get::<_, i64>(2)?,
                        salt.map(Salt::from_stored),
                        sealed,
                    ))
                },
            );
            let (seq, id, size, salt, data) = match next {
                Ok(next) => next,
                Err(rusqlite::Error::QueryReturnedNoRows) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            after = seq;
            let content = salt.zip(data).and_then(|(salt, data)| {
                let owner = Owner::Data { message: &id, salt: &salt };
                let sealed = whole(&self.connection, data, owner).ok()??;
                let place = crate::seal::Place { table: "message", column: "data", row: seq };
                let clear = self.vault.clear(&salt).ok()?;
                Some(commitment(&clear, &self.vault.open(&sealed, owner, place).ok()?))
            });
            let positions: Vec<i64> = {
                let mut statement = self
                    .connection
                    .prepare_cached("SELECT pos FROM delivery WHERE message = ?1 ORDER BY pos")?;
                statement.query_map([seq], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?
            };
            let mut deliveries = Vec::new();
            for pos in positions {
                deliveries.extend(self.row(pos)?);
            }
            let operator = self.operator.clone();
            let mut leaf = Leaf::new(self.now.as_micros(), actor(&operator), LeafEvent::Accepted);
            leaf.message = Some(id);
            leaf.size = u64::try_from(size).ok();
            leaf.content = content;
            leaf.code = Some("salvaged".into());
            leaf.deliveries = deliveries
                .iter()
                .map(|row| LeafDelivery { id: *row.id.as_bytes(), to: self.queue_name(row.queue).into() })
                .collect();
            let index = self.push(&leaf)?;
            for mut row in deliveries {
                let was = row.clone();
                row.leaves = index.to_be_bytes().to_vec();
                if let Some(event) = standing(&row.delivery) {
                    let index = self.push_step(&row, event, None)?;
                    row.add_leaf(index);
                }
                self.change(&was, &row)?;
            }
        }
    }

    fn queue_name(&self, queue: i64) -> String {
        self.queues.get(&queue).cloned().unwrap_or_else(|| format!("queue-{queue}"))
    }

    fn row(&self, pos: i64) -> Result<Option<Row>, SalvageError> {
        let read =
            read_rows(&self.connection, sql::DELIVERY_BY_POS, params![pos], |cells| Ok(row::load(cells)));
        let mut read =
            read.map_err(|error| SalvageError::Database(crate::StoreError::from(error).to_string()))?;
        read.pop().transpose().map_err(|error| SalvageError::Database(error.to_string()))
    }

    fn change(&self, was: &Row, now: &Row) -> Result<(), SalvageError> {
        let mut change = self.connection.prepare_cached(sql::DELIVERY_CHANGE)?;
        match now.change(was, &mut change)? {
            1 => Ok(()),
            _ => Err(SalvageError::Unsound(format!("delivery {} is another than it was", now.id))),
        }
    }

    fn push_step(
        &mut self,
        row: &Row,
        event: LeafEvent,
        reason: Option<Reason>,
    ) -> Result<u64, SalvageError> {
        let operator = self.operator.clone();
        let delivery = &row.delivery;
        let mut leaf = Leaf::new(self.now.as_micros(), actor(&operator), event);
        leaf.delivery = Some(*row.id.as_bytes());
        leaf.destination = Some(self.queue_name(row.queue).into());
        leaf.code = reason.map(|reason| reason.as_str().into());
        leaf.doubt = delivery.doubt.then_some(true);
        leaf.series = (delivery.series > 0).then_some(delivery.series);
        leaf.attempts = Some(delivery.attempts);
        leaf.state = Some(leaf_state(&delivery.state));
        self.push(&leaf)
    }

    /// Ends a delivery whose message is gone, if it has not ended.
    fn end(&mut self, pos: i64) -> Result<(), SalvageError> {
        let Some(was) = self.row(pos)? else { return Ok(()) };
        let policy = QueuePolicy::default();
        // What is damaged dies whatever its age.
        let moment =
            Moment { now: self.now, policy: &policy, idle_total: std::time::Duration::ZERO, jitter: 0.0 };
        let Ok(change) = was.delivery.apply(Event::Damaged, &moment) else { return Ok(()) };
        let mut row = Row { delivery: change.delivery, changed_at: self.now, batch: None, ..was.clone() };
        let index = self.push_step(&row, LeafEvent::Dead, Some(Reason::Corrupt))?;
        row.add_leaf(index);
        self.change(&was, &row)
    }
}

/// The entry that says where a delivery stands, if its acceptance does not say it all.
fn standing(delivery: &Delivery) -> Option<LeafEvent> {
    Some(match delivery.state {
        State::Waiting { .. } | State::Leased { .. } if delivery.attempts == 0 && delivery.series == 0 => {
            return None;
        }
        State::Waiting { .. } | State::Leased { .. } => LeafEvent::Released,
        State::Sending { .. } => LeafEvent::Sent,
        State::InDoubt { .. } => LeafEvent::InDoubt,
        State::Delivered => LeafEvent::Delivered,
        State::Dead { .. } => LeafEvent::Dead,
        State::Expired => LeafEvent::Expired,
        State::Discarded => LeafEvent::Discarded,
    })
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_dir(&path, &copy)?;
        } else {
            fs::copy(&path, &copy)?;
        }
    }
    Ok(())
}
