//! Looking at all of a stopped gateway's data, and saving what is sound of it into a new directory.
//!
//! The database is read as pages and rows, without SQLite: a page that is damaged then costs the rows on it and nothing else, and
//! the directory that was damaged stays as it is. A row counts if its checksum holds, content if its seal opens, an entry of
//! the log if the tree has its hash. Where one flipped bit is all that is wrong, the checksum tells which one, and it is undone.

mod damage;
mod flip;
mod found;
mod image;
mod integrity;
mod keys;
mod log;
mod mend;
mod page;
mod record;
mod repair;
mod rows;
mod survey;
mod table;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::keyring::source::SealKeysFrom;
pub use damage::{Damage, Fate};
pub use repair::{Repair, Salvaged, repair};
use survey::Survey;

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
pub fn inspect(data_dir: &Path, seal_keys: &SealKeysFrom) -> Result<Inspection, SalvageError> {
    let _lock = lock(data_dir)?;
    let survey = Survey::take(data_dir, seal_keys)?;
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
