//! From a backup to data that a gateway can start with, all or nothing.
//!
//! Everything is put together in a directory inside the one that it is for, so on the same disk and also where that is a mount
//! point. At the end its parts get their places, the database last: without it a start sees a checkpoint that signs more than there is, and refuses.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use gatepost_audit::SignerKey;
use sqlx::postgres::PgConnectOptions;

use super::files::{Building, Recorded, copy, is_inside, place_of, read_digest, sync_all, sync_dir};
use super::{
    BackupError, DATABASE, FORMAT, KEYS, MANIFEST, MANIFEST_SUM, Manifest, Snapshot, at, manifest_sum,
    postgres,
};
use crate::data_dir::{DataDir, key_files};
use crate::open::Database;
use crate::{postgres as shared, sql};

const STAGE: &str = ".restoring";

/// A finished backup.
pub struct Backup {
    dir: PathBuf,
    manifest: Manifest,
}

impl Backup {
    /// Reads the manifest; what it says of the files is not looked at yet.
    pub fn open(dir: &Path) -> Result<Self, BackupError> {
        let path = dir.join(MANIFEST);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BackupError::NotOne(dir.to_path_buf()));
            }
            read => read.map_err(at(&path))?,
        };
        let sum = dir.join(MANIFEST_SUM);
        let said = fs::read(&sum).map_err(at(&sum))?;
        if said != manifest_sum(&read_digest(&path, |_| {})?).as_bytes() {
            return Err(changed(MANIFEST, format!("{MANIFEST_SUM} has another SHA-256")));
        }
        let format = serde_json::from_slice::<Versioned>(&text).map_err(unreadable)?.format;
        if format != FORMAT {
            return Err(BackupError::Newer { found: format });
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(unreadable)?;
        if let Some(name) = manifest.files.keys().find(|name| !is_inside(name)) {
            return Err(changed(MANIFEST, format!("{name:?} is no file of a backup")));
        }
        let (found, known) = match &manifest.store {
            Snapshot::Sqlite { migration } => (*migration, sql::MIGRATIONS.last()),
            Snapshot::Postgres { migration, .. } => (*migration, shared::MIGRATIONS.last()),
        };
        let known = known.map_or(0, |(version, _)| *version);
        if found > known {
            return Err(BackupError::NewerTables { found, known });
        }
        Ok(Self { dir: dir.to_path_buf(), manifest })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The SHA-256 of the manifest, which stands for all of it.
    pub fn digest(&self) -> Result<String, BackupError> {
        Ok(read_digest(&self.dir.join(MANIFEST), |_| {})?.sha256)
    }

    /// Whether each file is as it was written; the error names the first that is not.
    pub fn check(&self, mut progress: impl FnMut(u64)) -> Result<(), BackupError> {
        for (name, recorded) in &self.manifest.files {
            let path = self.dir.join(name);
            let found = match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(changed(name, "it is missing".to_owned()));
                }
                found => found.map_err(at(&path))?.len(),
            };
            if found != recorded.bytes {
                return Err(changed(name, format!("it has {found} bytes, not {}", recorded.bytes)));
            }
            if read_digest(&path, &mut progress)? != *recorded {
                return Err(changed(name, "its SHA-256 is another".to_owned()));
            }
        }
        Ok(())
    }

    fn recorded(&self, name: &str) -> Option<&Recorded> {
        self.manifest.files.get(name)
    }
}

#[derive(serde::Deserialize)]
struct Versioned {
    format: u32,
}

fn changed(file: &str, how: String) -> BackupError {
    BackupError::Changed { file: file.to_owned(), how }
}

fn unreadable(error: serde_json::Error) -> BackupError {
    changed(MANIFEST, error.to_string())
}

/// Where a backup is put together again.
pub struct Landing {
    stage: Building,
    /// The data directory that it is for, and the lock that keeps a gateway out of it; `None` in a drill.
    target: Option<(DataDir, File)>,
    /// A shared database that is filled, until it counts.
    filled: Option<PgConnectOptions>,
}

impl Landing {
    /// For a data directory, which must be empty, and is made if it is not there.
    pub fn in_data_dir(dir: &Path) -> Result<Self, BackupError> {
        if !is_vacant(dir)? {
            return Err(BackupError::Taken(dir.to_path_buf()));
        }
        let data = DataDir::new(dir);
        data.create()?;
        let lock = data.lock()?;
        let stage = Building::begin(dir, STAGE)?;
        Ok(Self { stage, target: Some((data, lock)), filled: None })
    }

    /// For a drill: beside the backup, whose disk may hold what is in it.
    pub fn beside(backup: &Backup) -> Result<Self, BackupError> {
        let (parent, name) = place_of(&backup.dir)?;
        let stage = Building::begin(&parent, &format!(".{name}.verifying"))?;
        Ok(Self { stage, target: None, filled: None })
    }

    /// The data directory as long as it is not in its place.
    pub fn path(&self) -> &Path {
        self.stage.path()
    }

    /// Lays out files and database. `keys` is where the keys are that the backup has not.
    pub async fn lay(
        &mut self,
        backup: &Backup,
        keys: Option<&Path>,
        database: &Database,
    ) -> Result<(), BackupError> {
        if !backup.manifest.store.fits(database) {
            return Err(BackupError::OtherKind { backup: backup.manifest.store.kind() });
        }
        for (name, recorded) in &backup.manifest.files {
            let is_file_of_data_dir =
                name.starts_with("audit/") || name == DATABASE || name.starts_with(KEYS);
            // Looked at once more, since it is this reading of the file that counts.
            if is_file_of_data_dir && copy(&backup.dir.join(name), &self.path().join(name))? != *recorded {
                return Err(changed(name, "it is another now than a moment ago".to_owned()));
            }
        }
        self.lay_keys(backup, keys)?;
        let (Snapshot::Postgres { migration, turn, days }, Database::Postgres { url, .. }) =
            (&backup.manifest.store, database)
        else {
            return Ok(());
        };
        let options = postgres::options(url)?;
        let snapshot = (*migration, *turn, days.as_slice());
        postgres::lay(&options, &backup.dir, snapshot, |name| backup.recorded(name)).await?;
        self.filled = Some(options);
        Ok(())
    }

    /// A key that is not this log's would be found out too late: once its public half stands beside the log.
    fn lay_keys(&self, backup: &Backup, keys: Option<&Path>) -> Result<(), BackupError> {
        match keys {
            Some(from) if !backup.manifest.has_keys => {
                for key in key_files(from)? {
                    let name = key.file_name().unwrap_or_default();
                    copy(&key, &self.path().join(KEYS).join(name))?;
                }
            }
            None if !backup.manifest.has_keys => return Err(BackupError::KeysMissing),
            _ => {}
        }
        let data = DataDir::new(self.path());
        let read = |path: &Path| fs::read_to_string(path).map_err(at(path));
        let vkey = read(&data.audit().join(gatepost_audit::VKEY))?;
        match SignerKey::parse(read(&data.audit_key())?.trim()) {
            Ok(key) if key.verifier().to_string() == vkey.trim() => Ok(()),
            _ => Err(BackupError::KeyForeign(
                keys.map_or_else(|| data.audit_key(), |from| from.join("audit.key")),
            )),
        }
    }

    /// Gives everything its place. The store must have been closed.
    pub fn put_in_place(mut self) -> Result<(), BackupError> {
        let Some((data, _lock)) = self.target.take() else { return Ok(()) };
        sync_all(self.path())?;
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path()).map_err(at(self.path()))? {
            names.push(entry.map_err(at(self.path()))?.file_name());
        }
        // The log before its keys, with which a start would begin another one; last what makes it a gateway's data.
        names.sort_by_key(|name| (name == DATABASE || name == "node", name != "audit"));
        for name in names.iter().filter(|name| *name != "lock") {
            let place = data.root().join(name);
            gatepost_faults::point("restore.before_a_part");
            fs::rename(self.path().join(name), &place).map_err(at(&place))?;
        }
        self.filled = None;
        sync_dir(data.root())
    }

    /// Leaves nothing behind. Dropped without it, a landing leaves a shared database as it has filled it.
    pub async fn abandon(self) -> Result<(), BackupError> {
        match &self.filled {
            Some(options) => postgres::clear(options).await,
            None => Ok(()),
        }
    }
}

/// Whether nothing is there but what a restore makes itself before it begins.
fn is_vacant(dir: &Path) -> Result<bool, BackupError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries.map_err(at(dir))?,
    };
    for entry in entries {
        let path = entry.map_err(at(dir))?.path();
        let name = path.file_name().unwrap_or_default();
        let is_ours = name == "lock"
            || name == STAGE
            || (name == "keys" || name == "audit")
                && fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
        if !is_ours {
            return Ok(false);
        }
    }
    Ok(true)
}
