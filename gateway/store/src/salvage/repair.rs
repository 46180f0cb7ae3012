//! The new directory: what was found sound, what the log makes good, and an entry that says so. It is built beside its place under
//! another name and put there when it is whole and durable; until then nothing looks finished.

mod close;
mod log;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use gatepost_core::Timestamp;
use gatepost_core::principal::{Actor, ActorKind};
use rusqlite::Connection;
use rusqlite::types::{ToSql, Value};

use super::{Damage, SalvageError, Survey, at, inspect, lock};
use crate::clock::{Clock, Source};
use crate::data_dir::DataDir;
use crate::keyring::source::SealKeysFrom;
use crate::leaves::Runs;
use crate::open::{Encryption, vault};
use crate::seal::Vault;
use crate::sqlite::migrate;
use crate::sum;

pub struct Repair<'a> {
    pub source: &'a Path,
    /// Where its seal keys are; those of the new directory are in it.
    pub seal_keys: SealKeysFrom,
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
    let survey = Survey::take(repair.source, &repair.seal_keys)?;
    if building.exists() {
        // An earlier repair was killed.
        fs::remove_dir_all(&building).map_err(at(&building))?;
    }
    let built = Building::build(&survey, repair, &building).and_then(|salvaged| {
        let found = inspect(&building, &SealKeysFrom::DataDir)?;
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
        let keys = data.put_keys(survey.store_key.as_ref(), &survey.seal_keys, signer, &origin);
        let keys = keys.map_err(|error| SalvageError::Database(error.to_string()))?;
        data.create_database().map_err(|error| SalvageError::Database(error.to_string()))?;
        let connection = Connection::open(data.database())?;
        // It counts only when it is whole: until then nothing needs to be durable, or taken back.
        connection.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF;")?;
        migrate(&connection, &data.database()).map_err(|error| SalvageError::Database(error.to_string()))?;
        connection.execute_batch("PRAGMA journal_mode = OFF; BEGIN;")?;
        let newest = match survey.store.as_ref().and_then(|store| store.get(1)) {
            Some(Value::Integer(clock)) => *clock,
            _ => survey.record.newest,
        };
        let now = Clock::start(Source::Machine, Timestamp::from_micros(newest)).now();
        let mut built = Self {
            survey,
            vault: vault(&keys, Encryption::On),
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
        built.keep_trees()?;
        built.copy_rows()?;
        built.place_messages()?;
        let dead = built.place_deliveries()?;
        built.drop_the_unattached()?;
        if survey.store_key.is_none() {
            built.forget_keys()?;
        }
        built.keep_new_trees()?;
        built.log(&keys, dead)
    }

    fn name_queues(&mut self) {
        for (id, values) in &self.survey.queues {
            if let Some(Value::Text(name)) = values.get(1) {
                self.queues.insert(*id, name.clone());
            }
        }
        self.queues.extend(self.survey.record.queue_names.iter().map(|(id, name)| (*id, name.clone())));
        let wanted: BTreeSet<&String> = if self.continued {
            self.survey.record.missing_deliveries.values().map(|recorded| &recorded.to).collect()
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
}

fn sum_of<'v>(values: impl Iterator<Item = &'v Value>) -> rusqlite::Result<i64> {
    let values: Vec<&dyn ToSql> = values.map(|value| value as &dyn ToSql).collect();
    sum::of(&values)
}

impl From<rusqlite::Error> for SalvageError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.to_string())
    }
}
