//! Looking at all of a stopped gateway's data, and saving what is sound of it into a new directory.
//!
//! The database is read as pages and rows, without SQLite: a page that is damaged then costs the rows on it and nothing else, and
//! the directory that was damaged stays as it is. A row counts if its checksum holds, content if its seal opens, an entry of
//! the log if the tree has its hash. Where one flipped bit is all that is wrong, the checksum tells which one, and it is undone.

mod image;
mod log;
mod mend;
mod page;
mod repair;
mod rows;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use gatepost_audit::{Event, Leaf, SignerKey, VerifierKey};
use gatepost_core::{DeliveryId, MessageId};
use rusqlite::types::Value;

use crate::data_dir::{DataDir, from_hex};
use crate::leaves::Run;
use crate::seal::Vault;
use image::{Image, Pages as _};
use log::{Log, Walked};
use mend::mended;
pub use repair::{Repair, Salvaged, repair};
use rows::{FoundRow, MESSAGE_DEDUP, Rows, Table, Worth};

/// What becomes of something that is not as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// One bit had flipped, and a checksum, hash or signature says which.
    Mended,
    /// It follows from what is sound.
    Rebuilt,
    /// Its content is gone: its deliveries that had not ended are dead, for a person to see.
    Dead,
    Lost,
}

impl Fate {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mended => "mended",
            Self::Rebuilt => "rebuilt",
            Self::Dead => "dead",
            Self::Lost => "lost",
        }
    }
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    pub fate: Fate,
    /// A table of the database, or `file`, `page`, `entry`.
    pub what: String,
    /// Which row, file or page.
    pub place: String,
    /// Of the message or delivery, where it is known.
    pub id: Option<String>,
    pub why: String,
}

impl Damage {
    fn file(path: impl Into<String>, fate: Fate, why: impl Into<String>) -> Self {
        Self { fate, what: "file".to_owned(), place: path.into(), id: None, why: why.into() }
    }

    fn row(
        table: Table,
        place: impl ToString,
        id: Option<String>,
        fate: Fate,
        why: impl Into<String>,
    ) -> Self {
        Self { fate, what: table.name().to_owned(), place: place.to_string(), id, why: why.into() }
    }
}

/// What a data directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    pub messages: u64,
    pub deliveries: u64,
    pub entries: u64,
    pub damage: Vec<Damage>,
}

#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    #[error("{0} has no gateway's data: there is no database in it")]
    NoData(PathBuf),
    #[error("a gateway runs on {0}: stop it first")]
    InUse(PathBuf),
    #[error("{0} is there already and is not empty")]
    TargetExists(PathBuf),
    #[error("{0} has no directory that it could stand in")]
    TargetNowhere(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the new database: {0}")]
    Database(String),
    /// A fault of ours: nothing was put in place.
    #[error("what was saved does not verify: {0}")]
    Unsound(String),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SalvageError {
    let path = path.to_path_buf();
    move |source| SalvageError::Io { path, source }
}

/// Looks at everything in the data directory of a gateway that does not run, and changes nothing.
pub fn inspect(data_dir: &Path) -> Result<Inspection, SalvageError> {
    let _lock = lock(data_dir)?;
    let survey = Survey::take(data_dir)?;
    let mut damage = survey.damage.clone();
    damage.extend(survey.structure()?);
    damage.extend(survey.verify_log());
    damage.sort();
    damage.dedup();
    Ok(Inspection {
        messages: survey.messages.len() as u64,
        deliveries: survey.deliveries.len() as u64,
        entries: survey.walked.size,
        damage,
    })
}

/// Keeps a gateway away as long as the file is held, without making one where there is none.
fn lock(data_dir: &Path) -> Result<Option<File>, SalvageError> {
    let path = data_dir.join("lock");
    let file = match File::options().write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(&path)(error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Err(SalvageError::InUse(data_dir.to_path_buf())),
        Err(fs::TryLockError::Error(source)) => Err(SalvageError::Io { path, source }),
    }
}

/// A message whose row is there.
struct KnownMessage {
    id: [u8; 16],
    dedup: Value,
}

/// A delivery whose row is there.
struct KnownDelivery {
    pos: i64,
    message: i64,
    queue: i64,
}

/// A delivery that the log knows and the database has not, as the log left it.
#[derive(Clone, Debug, Default)]
struct Recorded {
    message: [u8; 16],
    to: String,
    state: Option<gatepost_audit::State>,
    code: Option<String>,
    attempts: u32,
    series: u32,
    at: i64,
    entries: Vec<u64>,
}

/// A message that the log knows and the database has not.
#[derive(Clone, Debug)]
struct RecordedMessage {
    at: i64,
    size: u64,
    by: (gatepost_audit::ActorKind, String),
}

/// Everything that is known of a data directory after one look at all of it.
struct Survey {
    data: DataDir,
    image: Image,
    store: Option<Vec<Value>>,
    store_key: Option<[u8; 32]>,
    signer: Option<SignerKey>,
    vkey: Option<VerifierKey>,
    log: Log,
    walked: Walked,
    queues: BTreeMap<i64, Vec<Value>>,
    messages: BTreeMap<i64, KnownMessage>,
    deliveries: HashMap<[u8; 16], KnownDelivery>,
    missing_messages: BTreeMap<[u8; 16], RecordedMessage>,
    missing_deliveries: BTreeMap<[u8; 16], Recorded>,
    /// The message of a delivery, where the message's row is missing.
    messages_by_delivery: HashMap<[u8; 16], [u8; 16]>,
    /// Names of queues whose rows are missing, from the log.
    queue_names: BTreeMap<i64, String>,
    /// Newest session of each adapter that the log has.
    sessions: HashMap<String, u64>,
    /// Starts that the log has.
    starts: u32,
    /// Time of the newest entry.
    newest: i64,
    /// Largest row numbers that were ever given, as far as they are known.
    last: (i64, i64),
    damage: Vec<Damage>,
}

/// A row of a message or a delivery that does not verify.
struct Unsound {
    table: Table,
    row: Option<i64>,
    /// As it stands there, for what it is worth.
    id: Option<[u8; 16]>,
    column: &'static str,
}

/// Rows as the first pass finds them.
#[derive(Default)]
struct Found {
    store: Option<Vec<Value>>,
    queues: BTreeMap<i64, Vec<Value>>,
    messages: BTreeMap<i64, KnownMessage>,
    deliveries: HashMap<[u8; 16], KnownDelivery>,
    positions: HashSet<i64>,
    keys: Vec<(Value, i64)>,
    runs: BTreeMap<u64, Vec<u8>>,
    unsound: Vec<Unsound>,
    damage: Vec<Damage>,
}

impl Found {
    fn take(&mut self, row: FoundRow) {
        let FoundRow { table, row: number, values, worth } = row;
        let key = number.map_or_else(|| name_of(table, &values), |number| number.to_string());
        match &worth {
            Worth::Sound => {}
            Worth::Mended => {
                let id = id_of(table, &values);
                self.damage.push(Damage::row(table, key, id, Fate::Mended, "one bit had flipped"));
            }
            Worth::Damaged(column) => return self.take_damaged(table, number, key, values, column),
        }
        self.keep(table, values);
    }

    fn keep(&mut self, table: Table, values: Vec<Value>) {
        match (table, &values[..]) {
            (Table::Store, _) => self.store = Some(values),
            (Table::Queue, [Value::Integer(id), ..]) => drop(self.queues.entry(*id).or_insert(values)),
            (Table::Message, [Value::Integer(seq), Value::Blob(id), ..]) => {
                if let Ok(id) = id.as_slice().try_into() {
                    let message = KnownMessage { id, dedup: values[MESSAGE_DEDUP].clone() };
                    self.messages.entry(*seq).or_insert(message);
                }
            }
            (
                Table::Delivery,
                [Value::Integer(pos), Value::Blob(id), Value::Integer(message), Value::Integer(queue), ..],
            ) => {
                if let Ok(id) = id.as_slice().try_into() {
                    let delivery = KnownDelivery { pos: *pos, message: *message, queue: *queue };
                    self.deliveries.entry(id).or_insert(delivery);
                    self.positions.insert(*pos);
                }
            }
            (Table::Dedup, [key, Value::Integer(message)]) => self.keys.push((key.clone(), *message)),
            (Table::Leaf, [Value::Integer(first), Value::Blob(bytes), _]) => {
                self.runs.insert(first.cast_unsigned(), bytes.clone());
            }
            _ => {}
        }
    }

    fn take_damaged(
        &mut self,
        table: Table,
        number: Option<i64>,
        key: String,
        values: Vec<Value>,
        column: &'static str,
    ) {
        let id = id_of(table, &values);
        match (table, column) {
            // What it says of itself verifies, its content does not.
            (Table::Message, "attributes" | "data") => {
                self.damage.push(Damage::row(
                    table,
                    key,
                    id,
                    Fate::Dead,
                    format!("its {column} cannot be opened"),
                ));
                self.keep(table, values);
            }
            (Table::Message, "sum_indexed") => {
                let why = "its idempotency key and what it is found by are damaged";
                self.damage.push(Damage::row(table, key, id, Fate::Lost, why));
                self.keep(table, values);
            }
            (Table::Delivery, "ready") => {
                self.damage.push(Damage::row(
                    table,
                    key,
                    id,
                    Fate::Rebuilt,
                    "when it may be leased is damaged",
                ));
                self.keep(table, values);
            }
            (Table::Message | Table::Delivery, _) => {
                let id = match values.get(1) {
                    Some(Value::Blob(id)) => id.as_slice().try_into().ok(),
                    _ => None,
                };
                self.unsound.push(Unsound { table, row: number, id, column });
            }
            (Table::Store | Table::Leaf, _) => {
                self.damage.push(Damage::row(
                    table,
                    key,
                    None,
                    Fate::Rebuilt,
                    format!("its {column} does not fit"),
                ));
            }
            (Table::Queue, _) => {
                let why = "a pause, an open breaker and what it counted are forgotten";
                self.damage.push(Damage::row(table, key, None, Fate::Lost, why));
            }
            (Table::Dedup, _) => {
                self.damage.push(Damage::row(table, key, None, Fate::Rebuilt, "it is not readable"));
            }
            (Table::Detail | Table::Reply | Table::State, _) => {
                let why = format!("its {column} cannot be opened");
                self.damage.push(Damage::row(table, key, None, Fate::Lost, why));
            }
        }
    }

    /// Idempotency keys must be those of their messages.
    fn check_keys(&mut self) {
        for (key, message) in std::mem::take(&mut self.keys) {
            if self.messages.get(&message).is_none_or(|known| known.dedup != key) {
                let why = "it is not the key of its message";
                self.damage.push(Damage::row(Table::Dedup, message, None, Fate::Rebuilt, why));
            }
        }
    }

    fn leaf_rows(&mut self) -> BTreeMap<u64, Vec<u8>> {
        let mut rows = BTreeMap::new();
        for (first, bytes) in std::mem::take(&mut self.runs) {
            let run = Run { first, bytes };
            match run.leaves() {
                Ok(leaves) => rows.extend(leaves.map(|(index, leaf)| (index, leaf.to_vec()))),
                Err(error) => {
                    self.damage.push(Damage::row(Table::Leaf, first, None, Fate::Lost, error.to_string()));
                }
            }
        }
        rows
    }
}

fn name_of(table: Table, values: &[Value]) -> String {
    match (table, values) {
        (Table::State, [Value::Text(adapter), Value::Text(key), ..]) => format!("{adapter}/{key}"),
        (_, [.., Value::Integer(message)]) => message.to_string(),
        _ => "?".to_owned(),
    }
}

fn id_of(table: Table, values: &[Value]) -> Option<String> {
    let id: [u8; 16] = match (table, values.get(1)) {
        (Table::Message | Table::Delivery, Some(Value::Blob(id))) => id.as_slice().try_into().ok()?,
        _ => return None,
    };
    Some(id_text(table, id))
}

fn id_text(table: Table, id: [u8; 16]) -> String {
    if table == Table::Message {
        MessageId::from_bytes(id).to_string()
    } else {
        DeliveryId::from_bytes(id).to_string()
    }
}

impl Survey {
    fn take(data_dir: &Path) -> Result<Self, SalvageError> {
        let data = DataDir::new(data_dir);
        let database = data.database();
        if !database.exists() {
            return Err(SalvageError::NoData(data_dir.to_path_buf()));
        }
        let image = Image::open(&database, &data.wal()).map_err(at(&database))?;
        // Nothing that is opened here depends on the key: seals are plain.
        let vault = Vault::new(&[0; 32]);
        let mut found = Found::default();
        let mut rows = Rows::new(&image, &vault);
        rows.read(&mut |row| {
            found.take(row);
            Ok(())
        })
        .map_err(at(&database))?;
        let faults = std::mem::take(&mut rows.faults);
        let lost_with_wal = lost_with_wal(&image, &rows, &found).map_err(at(&data.wal()))?;
        found.damage.extend(faults.into_iter().map(|fault| Damage {
            fate: Fate::Rebuilt,
            what: "page".to_owned(),
            place: match fault.table {
                Some(table) => format!("{} of {table}", fault.page),
                None => fault.page.to_string(),
            },
            id: None,
            why: fault.why.to_owned(),
        }));
        found.damage.extend(wal_damage(&image));
        found.damage.extend(lost_with_wal);
        found.check_keys();
        let leaf_rows = found.leaf_rows();
        if found.store.is_none() {
            let why = "the number of starts and of entries is taken from the log";
            found.damage.push(Damage::row(Table::Store, 1, None, Fate::Rebuilt, why));
        }
        let (store_key, signer, vkey) = keys(&data, found.store.as_deref(), &mut found.damage);
        let log = Log::new(&data.audit(), leaf_rows);
        let size = found.store.as_ref().and_then(|store| match store.get(3) {
            Some(Value::Integer(size)) => u64::try_from(*size).ok(),
            _ => None,
        });
        let key = signer.as_ref().map(SignerKey::verifier).or_else(|| vkey.clone());
        let mut record = Record::new(&found);
        let walked = log
            .walk(size, key.as_ref(), |index, entry| record.take(index, entry), |_, _| Ok(()))
            .map_err(at(&data.audit()))?;
        let record = record.done();
        let mut survey = Self {
            data,
            store: found.store.take(),
            store_key,
            signer,
            vkey: key,
            log,
            last: (
                found.messages.keys().next_back().copied().unwrap_or(0),
                found.positions.iter().max().copied().unwrap_or(0),
            ),
            queues: std::mem::take(&mut found.queues),
            messages: std::mem::take(&mut found.messages),
            deliveries: std::mem::take(&mut found.deliveries),
            missing_messages: record.missing_messages,
            missing_deliveries: record.missing_deliveries,
            messages_by_delivery: record.messages_by_delivery,
            queue_names: record.queue_names,
            sessions: record.sessions,
            starts: record.starts,
            newest: record.newest,
            damage: std::mem::take(&mut found.damage),
            walked,
            image,
        };
        survey.damage.append(&mut survey.walked.damage);
        if let Some(why) = &survey.walked.broken {
            survey.damage.push(Damage::file(
                "audit",
                Fate::Lost,
                format!("the log cannot be continued: {why}"),
            ));
        }
        survey.name_the_missing(&found.unsound);
        Ok(survey)
    }

    /// Names what the log accepted and the database has not, and rows that do not verify and that the log does not explain.
    fn name_the_missing(&mut self, unsound: &[Unsound]) {
        let mut named = HashSet::new();
        let unresolved =
            self.deliveries.iter().filter(|(_, known)| !self.messages.contains_key(&known.message));
        let by_seq: HashMap<i64, [u8; 16]> = unresolved
            .filter_map(|(id, known)| Some((known.message, *self.messages_by_delivery.get(id)?)))
            .collect();
        for Unsound { table, row, id, column } in unsound {
            if let Some(row) = row {
                let last = if *table == Table::Message { &mut self.last.0 } else { &mut self.last.1 };
                // Rows are numbered one after the other: a number far off is part of the damage.
                *last = if *row - *last < 1 << 20 { (*row).max(*last) } else { *last };
            }
            let known = |id: &[u8; 16]| match table {
                Table::Message => self.missing_messages.contains_key(id),
                _ => self.missing_deliveries.contains_key(id),
            };
            let seq = row.filter(|_| *table == Table::Message);
            let id = id.filter(known).or_else(|| seq.and_then(|seq| by_seq.get(&seq).copied()));
            let place = row.map_or_else(|| "?".to_owned(), |row| row.to_string());
            let fate = self.fate_of(*table, id.as_ref());
            let why = format!("the row's {column} does not fit");
            named.extend(id);
            self.damage.push(Damage::row(*table, place, id.map(|id| id_text(*table, id)), fate, why));
        }
        let messages = self.missing_messages.keys().map(|id| (Table::Message, *id));
        let deliveries = self.missing_deliveries.keys().map(|id| (Table::Delivery, *id));
        let missing: Vec<_> = messages.chain(deliveries).filter(|(_, id)| !named.contains(id)).collect();
        for (table, id) in missing {
            let fate = self.fate_of(table, Some(&id));
            let why = "the log has it, the database has no row of it";
            self.damage.push(Damage::row(table, "?", Some(id_text(table, id)), fate, why));
        }
    }

    fn fate_of(&self, table: Table, id: Option<&[u8; 16]>) -> Fate {
        if self.walked.broken.is_some() {
            return Fate::Lost;
        }
        match id {
            // What was accepted is named by the log, one by one.
            None => Fate::Rebuilt,
            Some(_) if table == Table::Message => Fate::Dead,
            Some(id) => match self.missing_deliveries.get(id).map(|recorded| recorded.ended()) {
                // Where it ended, the log says all that its row said.
                Some(true) => Fate::Rebuilt,
                Some(false) | None => Fate::Dead,
            },
        }
    }

    /// What SQLite itself has to say of the file: indices, free pages, constraints.
    fn structure(&self) -> Result<Vec<Damage>, SalvageError> {
        let path = self.data.database();
        let said = if self.image.is_ahead_of_its_file() {
            let copy = tempfile_of(&self.image).map_err(at(&path))?;
            check_integrity(&copy.0.clone(), Some(copy))
        } else {
            check_integrity(&path, None)
        };
        let said = said.unwrap_or_else(|error| vec![error.to_string()]);
        Ok(said
            .into_iter()
            .map(|why| Damage {
                fate: Fate::Rebuilt,
                what: "database".to_owned(),
                place: "structure".to_owned(),
                id: None,
                why,
            })
            .collect())
    }

    /// The auditor's verdict on the log where it stands.
    fn verify_log(&self) -> Option<Damage> {
        let key = self.vkey.clone()?;
        let mut options = gatepost_audit::Options::new(key);
        let rows = self.log.rows();
        options.tail = Some(Box::new(move |from| {
            let start = rows.keys().next().copied().unwrap_or(from);
            let unbroken = (start..).zip(rows).take_while(|(expected, (index, _))| expected == *index);
            Ok(gatepost_audit::Tail { start, leaves: unbroken.map(|(_, (_, leaf))| leaf.clone()).collect() })
        }));
        let verdict = gatepost_audit::verify_dir(&self.data.audit(), options, &mut |_, _| {});
        let fault = verdict.err()?;
        let fate = if self.walked.broken.is_some() { Fate::Lost } else { Fate::Rebuilt };
        Some(Damage::file("audit", fate, fault.to_string()))
    }
}

impl Recorded {
    fn ended(&self) -> bool {
        use gatepost_audit::State;
        match self.state {
            Some(State::Delivered | State::Expired | State::Discarded) => true,
            Some(State::Waiting | State::Leased | State::Sending | State::InDoubt | State::Dead) | None => {
                false
            }
        }
    }
}

/// What the log says of what the database has not.
struct Record<'f> {
    found: &'f Found,
    /// Messages by their ids.
    known: HashSet<[u8; 16]>,
    missing_messages: BTreeMap<[u8; 16], RecordedMessage>,
    missing_deliveries: BTreeMap<[u8; 16], Recorded>,
    messages_by_delivery: HashMap<[u8; 16], [u8; 16]>,
    queue_names: BTreeMap<i64, String>,
    sessions: HashMap<String, u64>,
    starts: u32,
    newest: i64,
}

/// The same, when nothing is borrowed any more.
struct Recordings {
    missing_messages: BTreeMap<[u8; 16], RecordedMessage>,
    missing_deliveries: BTreeMap<[u8; 16], Recorded>,
    messages_by_delivery: HashMap<[u8; 16], [u8; 16]>,
    queue_names: BTreeMap<i64, String>,
    sessions: HashMap<String, u64>,
    starts: u32,
    newest: i64,
}

impl<'f> Record<'f> {
    fn new(found: &'f Found) -> Self {
        Self {
            found,
            known: found.messages.values().map(|message| message.id).collect(),
            missing_messages: BTreeMap::new(),
            missing_deliveries: BTreeMap::new(),
            messages_by_delivery: HashMap::new(),
            queue_names: BTreeMap::new(),
            sessions: HashMap::new(),
            starts: 0,
            newest: 0,
        }
    }

    /// Takes an entry. One that cannot be read says nothing; that it cannot be read is the verifier's to say.
    fn take(&mut self, index: u64, entry: &[u8]) -> io::Result<()> {
        let Ok(leaf) = Leaf::parse(entry) else { return Ok(()) };
        self.newest = leaf.at.max(self.newest);
        match leaf.event {
            Event::GatewayStarted => self.starts = self.starts.saturating_add(1),
            Event::Accepted | Event::Emitted => self.accepted(index, &leaf),
            Event::SessionOpened => {
                let newest = self.sessions.entry(leaf.by.name.to_string()).or_default();
                *newest = leaf.session.unwrap_or(0).max(*newest);
            }
            _ => self.advanced(index, &leaf),
        }
        Ok(())
    }

    fn accepted(&mut self, index: u64, leaf: &Leaf<'_>) {
        let message = leaf.message.unwrap_or_default();
        let missing = !self.known.contains(&message);
        if missing {
            let by = (leaf.by.kind, leaf.by.name.to_string());
            let recorded = RecordedMessage { at: leaf.at, size: leaf.size.unwrap_or(0), by };
            self.missing_messages.insert(message, recorded);
        }
        for delivery in &leaf.deliveries {
            match self.found.deliveries.get(&delivery.id) {
                Some(known) => {
                    if missing {
                        self.messages_by_delivery.insert(delivery.id, message);
                    }
                    self.name_queue(known.queue, &delivery.to);
                }
                None => {
                    let to = delivery.to.to_string();
                    let recorded =
                        Recorded { message, to, at: leaf.at, entries: vec![index], ..Recorded::default() };
                    self.missing_deliveries.insert(delivery.id, recorded);
                }
            }
        }
    }

    fn name_queue(&mut self, queue: i64, name: &str) {
        if !self.found.queues.contains_key(&queue) {
            self.queue_names.insert(queue, name.to_owned());
        }
    }

    fn advanced(&mut self, index: u64, leaf: &Leaf<'_>) {
        let Some(id) = leaf.delivery else { return };
        if let (Some(known), Some(to)) = (self.found.deliveries.get(&id), &leaf.destination) {
            return self.name_queue(known.queue, to);
        }
        let Some(recorded) = self.missing_deliveries.get_mut(&id) else { return };
        recorded.entries.push(index);
        recorded.at = leaf.at;
        if leaf.event == Event::Attempt {
            recorded.state = Some(gatepost_audit::State::Sending);
        }
        recorded.state = leaf.state.or(recorded.state);
        recorded.code = leaf.code.as_deref().map(str::to_owned);
        recorded.attempts = leaf.attempts.unwrap_or(recorded.attempts);
        recorded.series = leaf.series.unwrap_or(0);
        if let Some(to) = &leaf.destination {
            recorded.to = to.to_string();
        }
    }

    fn done(self) -> Recordings {
        Recordings {
            missing_messages: self.missing_messages,
            missing_deliveries: self.missing_deliveries,
            messages_by_delivery: self.messages_by_delivery,
            queue_names: self.queue_names,
            sessions: self.sessions,
            starts: self.starts,
            newest: self.newest,
        }
    }
}

fn wal_damage(image: &Image) -> Vec<Damage> {
    let of = |fault: &image::WalFault| {
        let place = match fault.frame {
            0 => "gatepost.db-wal, its header".to_owned(),
            frame => format!("gatepost.db-wal, frame {frame}"),
        };
        if fault.mended {
            return Damage::file(place, Fate::Mended, "one bit had flipped");
        }
        let why = format!("{} pages that were committed from there on are lost", fault.lost);
        Damage::file(place, Fate::Lost, why)
    };
    image.wal_faults.iter().map(of).collect()
}

/// What was committed behind a damaged place of the write-ahead log and is nowhere else, by its ids.
fn lost_with_wal(image: &Image, rows: &Rows<'_>, found: &Found) -> io::Result<Vec<Damage>> {
    let known: HashSet<[u8; 16]> = found.messages.values().map(|message| message.id).collect();
    let mut lost = BTreeMap::new();
    let (newest, pages) = image.behind();
    for page in pages {
        let Some(page) = page? else { continue };
        for row in rows.rows_on(&newest, 2, &page) {
            let id: Option<[u8; 16]> = match row.values.get(1) {
                Some(Value::Blob(id)) => id.as_slice().try_into().ok(),
                _ => None,
            };
            let there = |id: &[u8; 16]| match row.table {
                Table::Message => known.contains(id),
                Table::Delivery => found.deliveries.contains_key(id),
                _ => true,
            };
            if let Some(id) = id.filter(|id| !there(id)) {
                lost.insert((row.table, id), row.row);
            }
        }
    }
    let why = "it was committed behind the damage of the write-ahead log";
    let place = |row: Option<i64>| row.map_or_else(|| "?".to_owned(), |row| row.to_string());
    let damage = lost
        .into_iter()
        .map(|((table, id), row)| Damage::row(table, place(row), Some(id_text(table, id)), Fate::Lost, why));
    Ok(damage.collect())
}

type Keys = (Option<[u8; 32]>, Option<SignerKey>, Option<VerifierKey>);

/// The keys, where they are what they were. The store's row knows its key, and the log's key its own public half.
fn keys(data: &DataDir, store: Option<&[Value]>, damage: &mut Vec<Damage>) -> Keys {
    let mark = store.and_then(|store| match store.get(5) {
        Some(Value::Blob(mark)) => Some(mark.clone()),
        _ => None,
    });
    let parse = |text: &[u8]| from_hex(std::str::from_utf8(text).ok()?.trim());
    let right =
        |key: &[u8; 32]| mark.as_ref().is_none_or(|mark| Vault::new(key).key_mark() == mark.as_slice());
    let stored = fs::read(data.store_key()).unwrap_or_default();
    let mut store_key = parse(&stored).filter(&right);
    if store_key.is_none() {
        let sound = mended(&stored, |text| mark.is_some() && parse(text).is_some_and(|key| right(&key)));
        store_key = sound.as_deref().and_then(parse);
        let (fate, why) = match store_key {
            Some(_) => (Fate::Mended, "one bit had flipped"),
            None => (
                Fate::Lost,
                "it is not the key of this data: idempotency keys, and what messages are searched and kept in order by, \
                 mean nothing any more",
            ),
        };
        damage.push(Damage::file("keys/store.key", fate, why));
    }
    let parse = |text: &[u8]| SignerKey::parse(std::str::from_utf8(text).ok()?.trim()).ok();
    let stored = fs::read(data.audit_key()).unwrap_or_default();
    let mut signer = parse(&stored);
    if signer.is_none() {
        signer = mended(&stored, |text| parse(text).is_some()).as_deref().and_then(parse);
        let (fate, why) = match signer {
            Some(_) => (Fate::Mended, "one bit had flipped"),
            None => (Fate::Lost, "it is no key: nothing can be signed with it any more"),
        };
        damage.push(Damage::file("keys/audit.key", fate, why));
    }
    let vkey = fs::read_to_string(data.audit().join(gatepost_audit::VKEY)).ok();
    let vkey = vkey.and_then(|text| VerifierKey::parse(text.trim()).ok());
    (store_key, signer, vkey)
}

/// The database as it is with what the write-ahead log holds, in a file of its own that loses its name when it is dropped.
fn tempfile_of(image: &Image) -> io::Result<Temporary> {
    use std::io::Write as _;
    let name = format!("gatepost-inspect-{}-{:x}.db", std::process::id(), std::ptr::from_ref(image).addr());
    let temporary = Temporary(std::env::temp_dir().join(name));
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = io::BufWriter::new(options.write(true).create_new(true).open(&temporary.0)?);
    for number in 1..=image.count {
        let page = image.page(number)?;
        file.write_all(&page.unwrap_or_else(|| vec![0; image.page_bytes()]))?;
    }
    file.flush()?;
    Ok(temporary)
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Faults that SQLite names. The file is taken for one that nobody writes, so that nothing is made beside it.
fn check_integrity(database: &Path, temporary: Option<Temporary>) -> rusqlite::Result<Vec<String>> {
    use rusqlite::{Connection, OpenFlags};
    let escaped: String =
        database.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)?;
    let opened = connection.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0));
    // It is open and needs its name no more: whatever happens now, no copy of the messages stays.
    drop(temporary);
    opened?;
    let mut statement = connection.prepare("PRAGMA integrity_check(20)")?;
    let said =
        statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let lines =
        said.iter().flat_map(|said| said.lines()).filter(|line| *line != "ok" && !line.starts_with("***"));
    Ok(lines.map(str::to_owned).collect())
}
