//! Everything that is known of a data directory after one look at all of it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;

use gatepost_audit::{SignerKey, VerifierKey};
use rusqlite::types::Value;

use super::damage::{Damage, Fate};
use super::found::{Found, KnownDelivery, KnownMessage, Unsound, id_text};
use super::image::{self, Image, Outcome};
use super::log::{Log, Walked};
use super::record::{Record, Recorder};
use super::rows::Rows;
use super::table::Table;
use super::{SalvageError, at, integrity, keys};
use crate::data_dir::DataDir;
use crate::keyring::WrappedTree;
use crate::keyring::source::SealKeysFrom;

/// Everything that is known of a data directory after one look at all of it.
pub(super) struct Survey {
    pub(super) data: DataDir,
    pub(super) image: Image,
    pub(super) store: Option<Vec<Value>>,
    pub(super) store_key: Option<[u8; 32]>,
    pub(super) signer: Option<SignerKey>,
    pub(super) vkey: Option<VerifierKey>,
    pub(super) log: Log,
    /// Versions of the seal key, by their numbers.
    pub(super) seal_keys: BTreeMap<u32, [u8; 32]>,
    pub(super) trees: BTreeMap<u64, WrappedTree>,
    pub(super) walked: Walked,
    pub(super) queues: BTreeMap<i64, Vec<Value>>,
    pub(super) messages: BTreeMap<i64, KnownMessage>,
    /// Those of whose payloads pieces are missing.
    pub(super) in_bits: BTreeSet<i64>,
    pub(super) deliveries: HashMap<[u8; 16], KnownDelivery>,
    pub(super) record: Record,
    /// Largest row numbers that were ever given, as far as they are known.
    pub(super) last: (i64, i64),
    pub(super) damage: Vec<Damage>,
}

impl Survey {
    pub(super) fn take(data_dir: &Path, seal_keys: &SealKeysFrom) -> Result<Self, SalvageError> {
        let data = DataDir::new(data_dir);
        let database = data.database();
        if !database.exists() {
            return Err(SalvageError::NoData(data_dir.to_path_buf()));
        }
        let image = Image::open(&database, &data.wal()).map_err(at(&database))?;
        let mut found = Found::default();
        let mut rows = Rows::new(&image);
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
        found.check_pieces();
        found.check_trees();
        let leaf_rows = found.leaf_rows();
        if found.store.is_none() {
            let why = "the number of starts and of entries is taken from the log";
            found.damage.push(Damage::row(Table::Store, 1, None, Fate::Rebuilt, why));
        }
        let keys = keys::read(&data, seal_keys, found.store.as_deref(), &found.trees, &mut found.damage);
        let log = Log::new(&data.audit(), leaf_rows);
        let size = found.store.as_ref().and_then(|store| match store.get(3) {
            Some(Value::Integer(size)) => u64::try_from(*size).ok(),
            _ => None,
        });
        let vkey = keys.signer.as_ref().map(SignerKey::verifier).or(keys.vkey);
        let mut recorder = Recorder::new(&found);
        let walked = log
            .walk(size, vkey.as_ref(), |index, entry| recorder.take(index, entry), |_, _| Ok(()))
            .map_err(at(&data.audit()))?;
        let record = recorder.done();
        let mut survey = Self {
            data,
            store: found.store.take(),
            store_key: keys.store,
            seal_keys: keys.seal,
            trees: std::mem::take(&mut found.trees),
            signer: keys.signer,
            vkey,
            log,
            last: (
                found.messages.keys().next_back().copied().unwrap_or(0),
                found.positions.iter().max().copied().unwrap_or(0),
            ),
            queues: std::mem::take(&mut found.queues),
            messages: std::mem::take(&mut found.messages),
            in_bits: std::mem::take(&mut found.in_bits),
            deliveries: std::mem::take(&mut found.deliveries),
            record,
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
            .filter_map(|(id, known)| Some((known.message, *self.record.messages_by_delivery.get(id)?)))
            .collect();
        for Unsound { table, row, id, column } in unsound {
            if let Some(row) = row {
                let last = if *table == Table::Message { &mut self.last.0 } else { &mut self.last.1 };
                // Rows are numbered one after the other: a number far off is part of the damage.
                *last = if *row - *last < 1 << 20 { (*row).max(*last) } else { *last };
            }
            let known = |id: &[u8; 16]| match table {
                Table::Message => self.record.missing_messages.contains_key(id),
                _ => self.record.missing_deliveries.contains_key(id),
            };
            let seq = row.filter(|_| *table == Table::Message);
            let id = id.filter(known).or_else(|| seq.and_then(|seq| by_seq.get(&seq).copied()));
            let place = row.map_or_else(|| "?".to_owned(), |row| row.to_string());
            let fate = self.fate_of(*table, id.as_ref());
            let why = format!("the row's {column} does not fit");
            named.extend(id);
            self.damage.push(Damage::row(*table, place, id.map(|id| id_text(*table, id)), fate, why));
        }
        let messages = self.record.missing_messages.keys().map(|id| (Table::Message, *id));
        let deliveries = self.record.missing_deliveries.keys().map(|id| (Table::Delivery, *id));
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
            Some(id) => match self.record.missing_deliveries.get(id).map(|recorded| recorded.ended()) {
                // Where it ended, the log says all that its row said.
                Some(true) => Fate::Rebuilt,
                Some(false) | None => Fate::Dead,
            },
        }
    }

    /// What SQLite itself has to say of the file: indices, free pages, constraints.
    pub(super) fn structure(&self) -> Result<Vec<Damage>, SalvageError> {
        integrity::check(&self.image, &self.data.database())
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
        match fault.outcome {
            Outcome::Mended => Damage::file(place, Fate::Mended, "one bit had flipped"),
            Outcome::Taken { page } => {
                let why = format!(
                    "one bit of page {page} had flipped, and its checksum does not say which: each row was looked at"
                );
                Damage::file(place, Fate::Rebuilt, why)
            }
            Outcome::Lost { frames } => {
                let why = format!("{frames} pages that were committed from there on are lost");
                Damage::file(place, Fate::Lost, why)
            }
        }
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
