//! The new directory: what was found sound, what the log makes good, and an entry that says so. It is built beside its place under
//! another name and put there when it is whole and durable; until then nothing looks finished.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use gatepost_audit::{Event as LeafEvent, Leaf, LeafDelivery, TILE_WIDTH, entries_path, write_file_durable};
use gatepost_core::delivery::{Event, Moment, Reason};
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{Delivery, DeliveryId, MessageId, QueuePolicy, State, Timestamp};
use rusqlite::types::{ToSql, Value};
use rusqlite::{Connection, params, params_from_iter};
use sha2::{Digest as _, Sha256};

use super::rows::{
    DELIVERY_READY, FoundRow, MESSAGE_ATTRIBUTES, MESSAGE_DATA, MESSAGE_DEDUP, MESSAGE_SALT,
    MESSAGE_SUM_INDEXED, Rows, Table, Worth,
};
use super::{Damage, Fate, Recorded, RecordedMessage, SalvageError, Survey, at, inspect, lock};
use crate::clock::{Clock, Source};
use crate::data_dir::DataDir;
use crate::database::rows as read_rows;
use crate::leaves::Runs;
use crate::open::{migrate, sign_empty};
use crate::row::{QUEUE_COLUMNS, Row};
use crate::seal::{Owner, Vault, commitment};
use crate::writer::leaf::{actor, leaf_state};
use crate::writer::{StoreRow, execute_summed};
use crate::{sql, sum};

/// Starts that are skipped where their count is lost: lease tokens of any of them must not come again.
const STARTS_SKIPPED: u32 = 1000;
/// Entries of the database are in rows from a tile's border on.
const WIDTH: u64 = TILE_WIDTH as u64;
/// Columns of a queue up to its counts, and with them.
const QUEUE_COUNTS: std::ops::Range<usize> = 11..QUEUE_COLUMNS;
const QUEUE_SESSION: usize = 10;

pub struct Repair<'a> {
    pub source: &'a Path,
    /// Not there, or empty.
    pub target: &'a Path,
    /// Who does it.
    pub operator: &'a str,
    /// The gateway's name, for a log that has to be begun anew.
    pub origin: &'a str,
}

/// What was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salvaged {
    pub messages: u64,
    pub deliveries: u64,
    /// Entries of the log, those of the salvage included.
    pub entries: u64,
    /// The log goes on; otherwise a new one was begun, with a new key.
    pub log_continued: bool,
    /// The list as a file of the new directory, and its digest, which the log holds.
    pub note: String,
    pub digest: String,
    pub damage: Vec<Damage>,
}

/// Saves what is sound into a new directory. The old one stays as it is.
pub fn repair(repair: &Repair<'_>) -> Result<Salvaged, SalvageError> {
    let _lock = lock(repair.source)?;
    let target = std::path::absolute(repair.target).map_err(at(repair.target))?;
    let (building, parent) = beside(&target)?;
    let survey = Survey::take(repair.source)?;
    if building.exists() {
        // An earlier repair was killed.
        fs::remove_dir_all(&building).map_err(at(&building))?;
    }
    let built = Building::build(&survey, repair, &building).and_then(|salvaged| {
        let found = inspect(&building)?;
        match found.damage.first() {
            Some(damage) => {
                Err(SalvageError::Unsound(format!("{} {}: {}", damage.what, damage.place, damage.why)))
            }
            None => Ok(salvaged),
        }
    });
    let salvaged = match built {
        Ok(salvaged) => salvaged,
        Err(error) => {
            let _ = fs::remove_dir_all(&building);
            return Err(error);
        }
    };
    sync_all(&building).map_err(at(&building))?;
    fs::rename(&building, &target).map_err(at(&target))?;
    fs::File::open(&parent).and_then(|parent| parent.sync_all()).map_err(at(&parent))?;
    Ok(salvaged)
}

fn sync_all(dir: &Path) -> std::io::Result<()> {
    let dir = fs::File::open(dir)?;
    nix::unistd::syncfs(&dir).map_err(std::io::Error::from)
}

/// Where the target is built, and in which directory both stand.
fn beside(target: &Path) -> Result<(PathBuf, PathBuf), SalvageError> {
    match fs::read_dir(target) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(SalvageError::TargetExists(target.to_path_buf()));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(SalvageError::TargetExists(target.to_path_buf()));
        }
        Err(error) => return Err(at(target)(error)),
    }
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(SalvageError::TargetNowhere(target.to_path_buf()));
    };
    if !parent.is_dir() {
        return Err(SalvageError::TargetNowhere(target.to_path_buf()));
    }
    Ok((parent.join(format!(".{}.unfinished", name.display())), parent.to_path_buf()))
}

struct Building<'s> {
    survey: &'s Survey,
    data: DataDir,
    connection: Connection,
    vault: Vault,
    now: Timestamp,
    operator: Actor,
    origin: String,
    continued: bool,
    leaves: Runs,
    /// Message numbers by id, of those whose rows were missing.
    placed: BTreeMap<[u8; 16], i64>,
    /// Messages whose content is gone.
    emptied: BTreeSet<i64>,
    /// Names of queues.
    queues: BTreeMap<i64, String>,
    damage: Vec<Damage>,
}

impl<'s> Building<'s> {
    fn build(survey: &'s Survey, repair: &Repair<'_>, building: &Path) -> Result<Salvaged, SalvageError> {
        let data = DataDir::new(building);
        data.create().map_err(|error| SalvageError::Database(error.to_string()))?;
        let continued =
            survey.walked.broken.is_none() && survey.signer.is_some() && survey.walked.checkpoint.is_some();
        let origin = survey.signer.as_ref().map_or(repair.origin, |signer| signer.name()).to_owned();
        let signer = survey.signer.as_ref().filter(|_| continued);
        let keys = data.put_keys(survey.store_key.as_ref(), signer, &origin);
        let keys = keys.map_err(|error| SalvageError::Database(error.to_string()))?;
        data.create_database().map_err(|error| SalvageError::Database(error.to_string()))?;
        let connection = Connection::open(data.database())?;
        // It counts only when it is whole: until then nothing needs to be durable, or taken back.
        connection.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF;")?;
        migrate(&connection, &data.database()).map_err(|error| SalvageError::Database(error.to_string()))?;
        connection.execute_batch("PRAGMA journal_mode = OFF; BEGIN;")?;
        let newest = match survey.store.as_ref().and_then(|store| store.get(1)) {
            Some(Value::Integer(clock)) => *clock,
            _ => survey.newest,
        };
        let now = Clock::start(Source::Machine, Timestamp::from_micros(newest)).now();
        let mut built = Self {
            survey,
            vault: Vault::new(&keys.store),
            connection,
            now,
            operator: Actor::new(ActorKind::Operator, repair.operator),
            origin,
            continued,
            leaves: Runs::new(if continued { survey.walked.size } else { 0 }),
            placed: BTreeMap::new(),
            emptied: BTreeSet::new(),
            queues: BTreeMap::new(),
            damage: survey.damage.clone(),
            data,
        };
        built.name_queues();
        built.copy_rows()?;
        built.place_messages()?;
        let dead = built.place_deliveries()?;
        built.drop_the_unattached()?;
        if survey.store_key.is_none() {
            built.forget_keys()?;
        }
        built.log(&keys, dead)
    }

    fn name_queues(&mut self) {
        for (id, values) in &self.survey.queues {
            if let Some(Value::Text(name)) = values.get(1) {
                self.queues.insert(*id, name.clone());
            }
        }
        self.queues.extend(self.survey.queue_names.iter().map(|(id, name)| (*id, name.clone())));
        let wanted: BTreeSet<&String> = if self.continued {
            self.survey.missing_deliveries.values().map(|recorded| &recorded.to).collect()
        } else {
            BTreeSet::new()
        };
        for name in wanted {
            if self.queues.values().all(|known| known != name) {
                let id = self.queues.keys().next_back().copied().unwrap_or(0) + 1;
                self.queues.insert(id, name.clone());
            }
        }
    }

    // === rows ===

    fn copy_rows(&mut self) -> Result<(), SalvageError> {
        let unkeyed = Vault::new(&[0; 32]);
        let survey = self.survey;
        let mut failed = None;
        let read = Rows::new(&survey.image, &unkeyed).read(&mut |row| {
            self.copy_row(row).map_err(|error| {
                failed = Some(error);
                std::io::ErrorKind::Other.into()
            })
        });
        match (failed, read) {
            (Some(error), _) => Err(error),
            (None, read) => read.map_err(at(&survey.data.database())),
        }
    }

    fn copy_row(&mut self, row: FoundRow) -> Result<(), SalvageError> {
        let FoundRow { table, mut values, worth, .. } = row;
        let sound = worth == Worth::Sound || worth == Worth::Mended;
        match table {
            // They are made anew from the others.
            Table::Store | Table::Queue | Table::Dedup | Table::Leaf => return Ok(()),
            Table::Message => match worth {
                Worth::Damaged("attributes" | "data" | "sum_indexed") => {
                    self.mend_message(&mut values, worth)?
                }
                Worth::Damaged(_) => return Ok(()),
                Worth::Sound | Worth::Mended => {}
            },
            Table::Delivery => {
                if !(sound || worth == Worth::Damaged("ready")) {
                    return Ok(());
                }
                let unordered = values[4] == Value::Null;
                values[DELIVERY_READY] =
                    if unordered { values[DELIVERY_READY - 1].clone() } else { Value::Null };
            }
            // They belong to entries of the log.
            Table::Detail if !self.continued => return Ok(()),
            Table::Detail | Table::Reply | Table::State => {
                if !sound {
                    return Ok(());
                }
            }
        }
        self.insert(table, &values)
    }

    fn insert(&self, table: Table, values: &[Value]) -> Result<(), SalvageError> {
        let places = vec!["?"; values.len()].join(", ");
        let statement = format!("INSERT OR IGNORE INTO {} VALUES ({places})", table.name());
        self.connection.prepare_cached(&statement)?.execute(params_from_iter(values))?;
        Ok(())
    }

    /// Takes from a message what does not verify.
    fn mend_message(&mut self, values: &mut [Value], worth: Worth) -> Result<(), SalvageError> {
        let (Value::Integer(seq), Value::Blob(id)) = (&values[0], &values[1]) else { return Ok(()) };
        let (seq, id) = (*seq, id.clone());
        let Ok(message) = <&[u8; 16]>::try_from(id.as_slice()) else { return Ok(()) };
        if worth != Worth::Damaged("sum_indexed") {
            let kind = match &values[5] {
                Value::Text(kind) => kind.clone(),
                _ => String::new(),
            };
            values[MESSAGE_ATTRIBUTES] = Value::Blob(self.remains(message, &kind));
            values[MESSAGE_SALT] = Value::Null;
            values[MESSAGE_DATA] = Value::Null;
            self.emptied.insert(seq);
        }
        let indexed = sum_of(values[..1].iter().chain(&values[MESSAGE_DEDUP..MESSAGE_SUM_INDEXED]))?;
        if values[MESSAGE_SUM_INDEXED] != Value::Integer(indexed) {
            self.forget_index(values)?;
        }
        Ok(())
    }

    /// A message's idempotency key and what it is found by, in a form that nothing matches.
    fn forget_index(&self, values: &mut [Value]) -> Result<(), SalvageError> {
        for column in [MESSAGE_DEDUP, MESSAGE_DEDUP + 1] {
            values[column] = values[1].clone();
        }
        for value in &mut values[MESSAGE_DEDUP + 2..MESSAGE_SUM_INDEXED] {
            *value = Value::Null;
        }
        let sum = sum_of(values[..1].iter().chain(&values[MESSAGE_DEDUP..MESSAGE_SUM_INDEXED]))?;
        values[MESSAGE_SUM_INDEXED] = Value::Integer(sum);
        Ok(())
    }

    /// What is left of an event, sealed: which message it was.
    fn remains(&self, message: &[u8; 16], kind: &str) -> Vec<u8> {
        let id = MessageId::from_bytes(*message).to_string();
        let kind = if kind.is_empty() { "unknown" } else { kind };
        let event =
            serde_json::json!({"specversion": "1.0", "id": id, "source": "gatepost:salvage", "type": kind});
        self.vault.seal(event.to_string().as_bytes(), Owner::Attributes { message })
    }

    /// Rows for messages that only the log knows: they had been accepted, and it must be seen what became of them.
    fn place_messages(&mut self) -> Result<(), SalvageError> {
        if !self.continued {
            return Ok(());
        }
        let survey = self.survey;
        let numbers: BTreeMap<[u8; 16], i64> = survey
            .messages_by_delivery
            .iter()
            .filter_map(|(delivery, message)| Some((*message, survey.deliveries.get(delivery)?.message)))
            .collect();
        let mut next = numbers.values().copied().fold(survey.last.0, i64::max) + 1;
        for (id, recorded) in &survey.missing_messages {
            let seq = numbers.get(id).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            let values = self.placeholder(seq, id, recorded)?;
            self.insert(Table::Message, &values)?;
            self.placed.insert(*id, seq);
            self.emptied.insert(seq);
        }
        Ok(())
    }

    fn placeholder(
        &self,
        seq: i64,
        id: &[u8; 16],
        recorded: &RecordedMessage,
    ) -> Result<Vec<Value>, SalvageError> {
        let (kind, name) = &recorded.by;
        let size = i64::try_from(recorded.size).unwrap_or(i64::MAX);
        let mut values = vec![
            Value::Integer(seq),
            Value::Blob(id.to_vec()),
            Value::Integer(recorded.at),
            Value::Text(kind.as_str().to_owned()),
            Value::Text(name.clone()),
            Value::Text("unknown".to_owned()),
            Value::Integer(0),
            Value::Integer(size),
        ];
        values.push(Value::Integer(sum_of(values.iter())?));
        values.resize(MESSAGE_SUM_INDEXED + 1, Value::Null);
        self.forget_index(&mut values)?;
        values.extend([Value::Blob(self.remains(id, "")), Value::Null, Value::Null]);
        Ok(values)
    }

    /// Rows for deliveries that only the log knows, as it left them; and which deliveries are to end as dead.
    fn place_deliveries(&mut self) -> Result<Vec<i64>, SalvageError> {
        let survey = self.survey;
        let emptied = |known: &&super::KnownDelivery| self.emptied.contains(&known.message);
        let mut dead: Vec<i64> = survey.deliveries.values().filter(emptied).map(|known| known.pos).collect();
        dead.sort_unstable();
        if !self.continued {
            return Ok(dead);
        }
        let numbers: BTreeMap<[u8; 16], i64> =
            survey.messages.iter().map(|(seq, known)| (known.id, *seq)).collect();
        let mut pos = survey.last.1;
        for (id, recorded) in &survey.missing_deliveries {
            let message =
                numbers.get(&recorded.message).or_else(|| self.placed.get(&recorded.message)).copied();
            let queue = self.queues.iter().find(|(_, name)| **name == recorded.to).map(|(id, _)| *id);
            let (Some(message_seq), Some(queue)) = (message, queue) else { continue };
            pos += 1;
            let row = recorded.row(pos, *id, message_seq, queue);
            let mut add = self.connection.prepare_cached(sql::DELIVERY_ADD)?;
            row.add(&mut add)?;
            if !row.delivery.state.is_terminal() {
                dead.push(pos);
            }
        }
        Ok(dead)
    }

    /// Deliveries of messages of which not even the id is known, and what belongs to deliveries that are not there.
    fn drop_the_unattached(&mut self) -> Result<(), SalvageError> {
        let lost: Vec<(i64, Vec<u8>)> = {
            let mut statement = self.connection.prepare(
                "SELECT d.pos, d.id FROM delivery d LEFT JOIN message m ON m.seq = d.message WHERE m.seq IS NULL",
            )?;
            let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            found.collect::<rusqlite::Result<_>>()?
        };
        for (pos, id) in lost {
            self.connection.execute("DELETE FROM delivery WHERE pos = ?1", [pos])?;
            let id = <[u8; 16]>::try_from(id).ok().map(|id| DeliveryId::from_bytes(id).to_string());
            self.damage.push(Damage::row(Table::Delivery, pos, id, Fate::Lost, "its message is not there"));
        }
        for table in ["detail", "reply"] {
            let statement = format!("DELETE FROM {table} WHERE delivery NOT IN (SELECT pos FROM delivery)");
            self.connection.execute(&statement, [])?;
        }
        Ok(())
    }

    /// Under another key the old identifiers mean nothing. Lanes stay: they keep their order among themselves.
    fn forget_keys(&self) -> Result<(), SalvageError> {
        self.connection.execute("DELETE FROM dedup", [])?;
        Ok(())
    }

    // === the log ===

    fn log(mut self, keys: &crate::data_dir::Keys, dead: Vec<i64>) -> Result<Salvaged, SalvageError> {
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

    fn add_runs(&self, runs: Runs) -> Result<(), SalvageError> {
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
                    let sealed: Option<Vec<u8>> = row.get(4)?;
                    Ok((
                        row.get::<_, i64>(0)?,
                        row.get::<_, [u8; 16]>(1)?,
                        row.get::<_, i64>(2)?,
                        row.get::<_, Option<[u8; 32]>>(3)?,
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
            let content = salt.zip(data).and_then(|(salt, sealed)| {
                let owner = Owner::Data { message: &id, salt: &salt };
                let place = crate::seal::Place { table: "message", column: "data", row: seq };
                Some(commitment(&salt, self.vault.open(&sealed, owner, place).ok()?))
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
            read_rows(&self.connection, sql::DELIVERY_BY_POS, params![pos], |cells| Ok(Row::load(cells)));
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
        let moment =
            Moment { now: self.now, policy: &policy, idle_total: was.delivery.idle_at_birth, jitter: 0.0 };
        let Ok(change) = was.delivery.apply(Event::Damaged, &moment) else { return Ok(()) };
        let mut row = Row { delivery: change.delivery, changed_at: self.now, batch: None, ..was.clone() };
        let index = self.push_step(&row, LeafEvent::Dead, Some(Reason::Corrupt))?;
        row.add_leaf(index);
        self.change(&was, &row)
    }

    /// What follows from the rows: keys, what may be leased, counts, the store's own row.
    fn finish(&mut self) -> Result<(), SalvageError> {
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
             AND NOT EXISTS (SELECT 1 FROM delivery e WHERE e.queue = f.queue AND e.lane = f.lane AND e.blocks = 1 AND e.pos < f.pos)",
            [],
        )?;
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
            instance_epoch: starts.unwrap_or(self.survey.starts.saturating_add(STARTS_SKIPPED)),
            leaf_count,
            keyed,
            key_mark: self.vault.key_mark(),
        };
        let mut start = self.connection.prepare_cached(sql::STORE_START)?;
        row.with_columns(|columns| execute_summed(&mut start, columns, &[]))?;
        drop(start);
        Ok(self.connection.execute_batch("COMMIT; PRAGMA journal_mode = DELETE;")?)
    }

    /// A queue as it was, with the counts that its deliveries make.
    fn add_queue(&self, id: i64, name: String) -> Result<(), SalvageError> {
        let mut values = match self.survey.queues.get(&id) {
            Some(values) => values[..QUEUE_COLUMNS].to_vec(),
            None => {
                let mut values = vec![Value::Null; QUEUE_COUNTS.start];
                values[0] = Value::Integer(id);
                values[1] = Value::Text(name.clone());
                values[2] = Value::Text("removed".to_owned());
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
        let logged = self.survey.sessions.get(&name).copied().unwrap_or(0);
        let stored = self.survey.queues.contains_key(&id);
        let logged = i64::try_from(logged).unwrap_or(0) + i64::from(!stored);
        values[QUEUE_SESSION] = Value::Integer(session.max(logged));
        values.truncate(QUEUE_COUNTS.start);
        let counts = self.connection.query_row(
            "SELECT coalesce(sum(d.state = 0), 0), coalesce(sum(d.state = 1), 0), coalesce(sum(d.state = 2), 0), \
             coalesce(sum(d.state = 2 AND d.late = 1), 0), coalesce(sum(d.state = 3), 0), \
             coalesce(sum(d.state = 3 AND d.due IS NULL), 0), coalesce(sum(d.state = 5), 0), \
             coalesce(sum(d.state < 4 AND d.suspect = 1), 0), \
             coalesce(sum(d.lane IS NOT NULL AND ((d.state = 3 AND d.due IS NULL) OR (d.state = 5 AND d.blocks = 1))), 0), \
             coalesce(sum(CASE WHEN d.state < 4 THEN m.size ELSE 0 END), 0) \
             FROM delivery d JOIN message m ON m.seq = d.message WHERE d.queue = ?1",
            [id],
            |row| (0..QUEUE_COUNTS.len()).map(|column| row.get::<_, Value>(column)).collect::<rusqlite::Result<Vec<_>>>(),
        )?;
        values.extend(counts);
        values.push(Value::Integer(sum_of(values.iter())?));
        self.insert(Table::Queue, &values)
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

impl Recorded {
    /// The delivery as the log left it.
    fn row(&self, pos: i64, id: [u8; 16], message_seq: i64, queue: i64) -> Row {
        use gatepost_audit::State as Said;
        let when = Timestamp::from_micros(self.at);
        let mut delivery = Delivery::accepted(when, std::time::Duration::ZERO, None);
        let reason = self.code.as_deref().and_then(Reason::from_code).unwrap_or(Reason::Corrupt);
        delivery.state = match self.state {
            Some(Said::Delivered) => State::Delivered,
            Some(Said::Expired) => State::Expired,
            Some(Said::Discarded) => State::Discarded,
            Some(Said::Dead) => State::Dead { reason, holds_lane: false },
            // It ends in the next step.
            Some(Said::Waiting | Said::Leased | Said::Sending | Said::InDoubt) | None => delivery.state,
        };
        (delivery.attempts, delivery.series) = (self.attempts, self.series);
        Row {
            pos,
            id: DeliveryId::from_bytes(id),
            message_seq,
            message: MessageId::from_bytes(self.message),
            salt: None,
            size: 0,
            queue,
            lane: None,
            delivery,
            batch: None,
            accepted_at: when,
            changed_at: when,
            leaves: self.entries.iter().flat_map(|index| index.to_be_bytes()).collect(),
        }
    }
}

impl Damage {
    /// As programs read it.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "fate": self.fate.as_str(),
            "what": self.what,
            "place": self.place,
            "id": self.id,
            "why": self.why,
        })
    }
}

fn sum_of<'v>(values: impl Iterator<Item = &'v Value>) -> rusqlite::Result<i64> {
    let values: Vec<&dyn ToSql> = values.map(|value| value as &dyn ToSql).collect();
    sum::of(&values)
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

impl From<rusqlite::Error> for SalvageError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.to_string())
    }
}
