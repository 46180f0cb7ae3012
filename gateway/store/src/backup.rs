//! A gateway's data as a directory that can be kept elsewhere, restored, and proved to be restorable.
//!
//! A backup is taken while the gateway runs. The order makes it consistent: the checkpoint first, then a snapshot of the database,
//! which has at least the entries that the checkpoint signs, then the audit log's files, which have what the snapshot has not.
//! Nothing but the database's own reading is asked of the gateway. A manifest with every file's size and SHA-256 is written last,
//! and only then does the directory get its name: what a killed backup leaves is no backup.

mod files;
mod log;
mod postgres;
mod restore;
mod sqlite;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gatepost_audit::{Checkpoint, VerifierKey};
use gatepost_core::Timestamp;
use serde::{Deserialize, Serialize};

pub use restore::{Backup, Landing};

use crate::data_dir::{DataDir, DataDirError};
use crate::keyring::source::SealKeysFrom;
use crate::open::{Database, OpenError};
use files::{Building, Contents, Recorded};

/// What this program writes, and the newest that it reads.
const FORMAT: u32 = 1;
pub const MANIFEST: &str = "manifest.json";
/// The manifest's own SHA-256, as `sha256sum --check` takes it.
const MANIFEST_SUM: &str = "manifest.sha256";
const DATABASE: &str = "gatepost.db";
/// Where a data directory and a backup have keys.
const KEYS: &str = "keys/";

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// Version of the program that made it.
    pub made_by: String,
    /// RFC 3339.
    pub made_at: String,
    /// The gateway's name, which is the audit log's.
    pub gateway: String,
    pub store: Snapshot,
    /// Entries of the audit log that have their place in the snapshot's tree.
    pub entries: u64,
    /// Size and root of the tree that the newest checkpoint in it signs.
    pub signed_entries: u64,
    pub signed_root: String,
    /// Without them a backup is only good beside the keys that it was made without.
    pub has_keys: bool,
    /// By their paths below the backup.
    files: BTreeMap<String, Recorded>,
}

/// What is needed to read the database's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Snapshot {
    Sqlite {
        /// Of the tables.
        migration: i64,
    },
    Postgres {
        migration: i64,
        /// A number that sequence `turn` had given when the last row was read.
        turn: i64,
        /// Days that have partitions of their own.
        days: Vec<i32>,
    },
}

impl Snapshot {
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres { .. } => "postgres",
        }
    }

    const fn fits(&self, database: &Database) -> bool {
        matches!(
            (self, database),
            (Self::Sqlite { .. }, Database::Sqlite) | (Self::Postgres { .. }, Database::Postgres { .. })
        )
    }
}

impl Manifest {
    pub fn file_count(&self) -> u64 {
        self.files.len() as u64
    }

    /// Of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|recorded| recorded.bytes).sum()
    }
}

/// Whether a backup holds the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    Include,
    Omit,
}

/// What is to be backed up.
pub struct Source {
    pub data_dir: PathBuf,
    pub database: Database,
    pub keys: Keys,
    pub seal_keys: SealKeysFrom,
    /// The manifest's time.
    pub at: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0} is there already and is not empty")]
    Taken(PathBuf),
    #[error("{0} has no directory that it could stand in")]
    Nowhere(PathBuf),
    #[error("another process is at work in {0}")]
    Busy(PathBuf),
    #[error("{0} has no gateway's data: there is no database in it")]
    NoData(PathBuf),
    #[error("{0} is no finished backup: it has no {MANIFEST}")]
    NotOne(PathBuf),
    #[error("the backup has format {found}, this program knows {FORMAT}: it was made by a newer version")]
    Newer { found: u32 },
    #[error(
        "the backup's database has migration {found}, this program knows {known}: it was made by a newer version"
    )]
    NewerTables { found: i64, known: i64 },
    #[error("{file} of the backup is not as it was written: {how}")]
    Changed { file: String, how: String },
    #[error("the backup is of a store of kind {backup}, and the configuration has another")]
    OtherKind { backup: &'static str },
    #[error("the backup has no keys")]
    KeysMissing,
    #[error("{0} is not the key of this backup's audit log")]
    KeyForeign(PathBuf),
    #[error("the audit log's file {0} is missing, and the database does not have its entries any more")]
    LogFileMissing(String),
    #[error("the database is not empty: it has tables of a gateway in schema `gatepost`")]
    DatabaseTaken,
    #[error("the database's user may not do that: {0}")]
    NotPermitted(String),
    #[error("the database: {0}")]
    Database(String),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_path_buf();
    move |source| BackupError::Io { path, source }
}

/// What the database's part has been read to hold.
struct Taken {
    snapshot: Snapshot,
    /// Entries that have their place in the tree.
    entries: u64,
    /// Entries below this index stand in files only, at a tile's border.
    filed: u64,
}

/// Makes a backup in the new directory `target`, whether the gateway runs or not. Reads and writes files where it is called: for
/// commands. Dropped half way, it leaves nothing that looks like a backup.
pub async fn make(source: &Source, target: &Path) -> Result<Manifest, BackupError> {
    let data = DataDir::new(&source.data_dir);
    let there = match source.database {
        Database::Sqlite => data.database(),
        Database::Postgres { .. } => data.node(),
    };
    if !there.exists() {
        return Err(BackupError::NoData(source.data_dir.clone()));
    }
    let building = Building::beside(target)?;
    let mut contents = Contents::new(building.path());
    let checkpoint = take_checkpoint(&data, &mut contents)?;
    let taken = match &source.database {
        Database::Sqlite => sqlite::take(&data, &mut contents)?,
        Database::Postgres { url, .. } => postgres::take(url, &mut contents).await?,
    };
    gatepost_faults::point("backup.snapshot_taken");
    log::take(&data, &taken, &mut contents)?;
    if source.keys == Keys::Include {
        let seal_keys = data.seal_key_source(&source.seal_keys);
        let elsewhere = seal_keys.versions().into_iter().map(|version| seal_keys.place(version));
        let mut files = data.key_files()?;
        files.extend(elsewhere);
        files.sort_unstable();
        files.dedup();
        for path in files {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            contents.copy(&path, &format!("{KEYS}{name}"))?;
        }
    }
    let manifest = Manifest {
        format: FORMAT,
        made_by: env!("CARGO_PKG_VERSION").to_owned(),
        made_at: source.at.to_rfc3339(),
        gateway: checkpoint.origin,
        store: taken.snapshot,
        entries: taken.entries,
        signed_entries: checkpoint.size,
        signed_root: checkpoint.root.to_base64(),
        has_keys: source.keys == Keys::Include,
        files: contents.files,
    };
    write_manifest(building.path(), &manifest)?;
    building.put_at(target)?;
    Ok(manifest)
}

/// Before the database is read, so that the snapshot has all that it signs.
fn take_checkpoint(data: &DataDir, contents: &mut Contents<'_>) -> Result<Checkpoint, BackupError> {
    let path = data.audit().join("checkpoint");
    contents.copy(&path, "audit/checkpoint")?;
    let signed = fs::read(contents.path("audit/checkpoint")).map_err(at(&path))?;
    let refused = |text: String| BackupError::Io { path, source: io::Error::other(text) };
    let vkey = data.audit().join(gatepost_audit::VKEY);
    let key = fs::read_to_string(&vkey).map_err(at(&vkey))?;
    let opened = VerifierKey::parse(key.trim())
        .map_err(|error| error.to_string())
        .and_then(|key| Checkpoint::open(&signed, &[key]).map_err(|error| error.to_string()));
    opened.map_err(refused)
}

fn write_manifest(dir: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    let path = dir.join(MANIFEST);
    let text = serde_json::to_string_pretty(manifest)
        .map_err(|error| BackupError::Io { path: path.clone(), source: error.into() })?;
    let digest = files::write_new(&path, text.as_bytes())?;
    files::write_new(&dir.join(MANIFEST_SUM), manifest_sum(&digest).as_bytes()).map(drop)
}

fn manifest_sum(digest: &Recorded) -> String {
    format!("{}  {MANIFEST}\n", digest.sha256)
}
