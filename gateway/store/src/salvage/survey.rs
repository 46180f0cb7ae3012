//! Everything that is known of a data directory after one look at all of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use gatepost_audit::{SignerKey, VerifierKey};
use rusqlite::types::Value;

use super::damage::{Damage, Fate};
use super::found::{Found, KnownDelivery, KnownMessage, Unsound, id_text};
use super::image::{self, Image, Pages as _};
use super::log::{Log, Walked};
use super::mend::mended;
use super::record::{Record, Recorded, RecordedMessage};
use super::rows::{Rows, Table};
use super::{SalvageError, at};
use crate::data_dir::{DataDir, from_hex};
use crate::seal::Vault;

/// Everything that is known of a data directory after one look at all of it.
pub(super) struct Survey {
    pub(super) data: DataDir,
    pub(super) image: Image,
    pub(super) store: Option<Vec<Value>>,
    pub(super) store_key: Option<[u8; 32]>,
    pub(super) signer: Option<SignerKey>,
    pub(super) vkey: Option<VerifierKey>,
    pub(super) log: Log,
    pub(super) walked: Walked,
    pub(super) queues: BTreeMap<i64, Vec<Value>>,
    pub(super) messages: BTreeMap<i64, KnownMessage>,
    pub(super) deliveries: HashMap<[u8; 16], KnownDelivery>,
    pub(super) missing_messages: BTreeMap<[u8; 16], RecordedMessage>,
    pub(super) missing_deliveries: BTreeMap<[u8; 16], Recorded>,
    /// The message of a delivery, where the message's row is missing.
    pub(super) messages_by_delivery: HashMap<[u8; 16], [u8; 16]>,
    /// Names of queues whose rows are missing, from the log.
    pub(super) queue_names: BTreeMap<i64, String>,
    /// Newest session of each adapter that the log has.
    pub(super) sessions: HashMap<String, u64>,
    /// Starts that the log has.
    pub(super) starts: u32,
    /// Time of the newest entry.
    pub(super) newest: i64,
    /// Largest row numbers that were ever given, as far as they are known.
    pub(super) last: (i64, i64),
    pub(super) damage: Vec<Damage>,
}

impl Survey {
    pub(super) fn take(data_dir: &Path) -> Result<Self, SalvageError> {
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
    pub(super) fn structure(&self) -> Result<Vec<Damage>, SalvageError> {
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
    pub(super) fn verify_log(&self) -> Option<Damage> {
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

pub(super) struct Temporary(PathBuf);

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
