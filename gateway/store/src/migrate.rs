//! Moving a stopped gateway from SQLite to PostgreSQL, whole: messages, deliveries, idempotency keys, adapters' state and the audit
//! log, each under its number and each entry in its place, so that what was signed about it before holds afterwards.
//!
//! The original is only read; it gets another name when the copy has been compared with it. Whoever is interrupted before that
//! begins again where the copy ends.

pub(crate) mod batch;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use gatepost_audit::{TileEdge, leaf_hash};
use gatepost_core::MessageId;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::mpsc;

use crate::audit_log::{AuditLog, LogFault};
use crate::backend::CommitError;
use crate::clock::Source;
use crate::data_dir::{DataDir, DataDirError};
use crate::keyring::source::SealKeysFrom;
use crate::open::{Encryption, Engines, KEYS_IN_MEMORY, OpenError, vault};
use crate::ops::StoreError;
use crate::postgres::copy::{Copy, CopyError, Origin};
use crate::postgres::{self, probe};
use crate::reader;
use crate::sqlite::{self, Original};
pub use batch::Part;
use batch::Stage;
pub use postgres::copy::Begun;

/// Rows of one transaction, unless a test wants few.
pub const BATCH_ROWS: usize = 1000;
/// Entries of the copied log that are read at a time.
const PAGE_ENTRIES: u64 = 16_384;

pub struct Migration {
    /// Has the SQLite database, and keeps the keys and the audit log's files.
    pub data_dir: PathBuf,
    /// The audit log's origin: the gateway's name.
    pub origin: String,
    /// `postgres://…`; may hold a password.
    pub url: String,
    pub engines: Engines,
    pub seal_keys: SealKeysFrom,
    /// Rows of one transaction: [`BATCH_ROWS`].
    pub batch_rows: usize,
}

/// What a migration is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Copying(Part),
    /// Entries of the copied log are read back and compared.
    Verifying,
}

/// How far a step has come, in numbers or rows of its part.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub step: Step,
    pub done: u64,
    pub all: u64,
}

#[derive(Clone, Debug)]
pub enum Migrated {
    /// An earlier run had moved everything.
    Before,
    Now(Moved),
}

/// What the new database has.
#[derive(Clone, Debug)]
pub struct Moved {
    pub begun: Begun,
    pub counts: Counts,
    /// Of the audit log.
    pub entries: u64,
    /// The root of its tree.
    pub root: gatepost_audit::Hash,
    /// What has become of the old database.
    pub kept: PathBuf,
}

/// How much there is of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub queues: i64,
    pub messages: i64,
    pub payloads: i64,
    pub keys: i64,
    pub deliveries: i64,
    pub ready: i64,
    pub in_lanes: i64,
    pub leased: i64,
    pub stuck: i64,
    pub expiring: i64,
    pub details: i64,
    pub replies: i64,
    pub states: i64,
}

impl Counts {
    /// In the order in which both databases count.
    pub(crate) fn each_mut(&mut self) -> [&mut i64; 13] {
        [
            &mut self.queues,
            &mut self.messages,
            &mut self.payloads,
            &mut self.keys,
            &mut self.deliveries,
            &mut self.ready,
            &mut self.in_lanes,
            &mut self.leased,
            &mut self.stuck,
            &mut self.expiring,
            &mut self.details,
            &mut self.replies,
            &mut self.states,
        ]
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("{0} has no SQLite database to move")]
    NoData(PathBuf),
    #[error("a gateway runs on {0}: stop it first")]
    Running(PathBuf),
    /// What is to be moved cannot be opened, or not be trusted.
    #[error(transparent)]
    Original(OpenError),
    #[error(
        "{0}: nothing damaged is copied. `gatepost doctor --repair NEW` saves what is sound into a new directory, which can be moved"
    )]
    Damaged(StoreError),
    #[error(
        "message {0} has deliveries that stand apart, as `doctor --repair` leaves them where it has found some in the log alone: such a \
         message cannot be moved"
    )]
    Scattered(MessageId),
    #[error(transparent)]
    Log(LogFault),
    /// What it is to be moved to cannot be used.
    #[error(transparent)]
    Database(OpenError),
    #[error("the database is another gateway's: it was written with other keys. Name an empty one")]
    Foreign,
    #[error("a gateway has already written to the database: name an empty one")]
    InUse,
    #[error(
        "the database has a finished copy of this gateway, which has run on SQLite since: name an empty one, or remove the copy there \
         with `DROP SCHEMA gatepost CASCADE` if no node has worked on it"
    )]
    OfAnotherTime,
    #[error(
        "the clock of the database's server is {seconds} seconds behind the newest time in the messages: time would stand still there. \
         Set the clocks right, or wait"
    )]
    ClockBehind { seconds: i64 },
    #[error("the copy does not have what it should: {0}")]
    Unequal(String),
    /// At the caller's word, between two batches.
    #[error("interrupted")]
    Interrupted,
}

impl From<StoreError> for MigrateError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt { .. } => Self::Damaged(error),
            error => Self::Original(error.into()),
        }
    }
}

impl From<CommitError> for MigrateError {
    fn from(error: CommitError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<LogFault> for MigrateError {
    fn from(fault: LogFault) -> Self {
        Self::Log(fault)
    }
}

impl From<DataDirError> for MigrateError {
    fn from(error: DataDirError) -> Self {
        match error {
            DataDirError::InUse(dir) => Self::Running(dir),
            error => Self::Original(error.into()),
        }
    }
}

impl From<OpenError> for MigrateError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Log(fault) => Self::Log(fault),
            OpenError::Store(error) => error.into(),
            error => Self::Original(error),
        }
    }
}

impl From<CopyError> for MigrateError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Node(postgres::NodeError::KeyForeign) => Self::Foreign,
            CopyError::Node(error) => Self::Database(error.into()),
            CopyError::InUse => Self::InUse,
            CopyError::OfAnotherTime => Self::OfAnotherTime,
            CopyError::ClockBehind(micros) => Self::ClockBehind { seconds: micros / 1_000_000 },
        }
    }
}

/// Moves everything, or goes on where an earlier run ended. `progress` is told after each batch, and may stop it there.
pub async fn migrate(
    migration: Migration,
    progress: impl FnMut(Progress) -> ControlFlow<()> + Send + 'static,
) -> Result<Migrated, MigrateError> {
    let data_dir = DataDir::new(&migration.data_dir);
    if !data_dir.database().exists() {
        let before = data_dir.moved().exists();
        return if before { Ok(Migrated::Before) } else { Err(MigrateError::NoData(migration.data_dir)) };
    }
    let _lock = data_dir.lock()?;
    let keys = data_dir.keys(&migration.origin, &migration.seal_keys)?;
    let connect = postgres::options(&probe::address(&migration.url).map_err(MigrateError::Database)?);
    probe::fit(&connect, migration.engines).await.map_err(MigrateError::Database)?;
    sqlite::check_library()?;
    sqlite::check_wal(&data_dir)?;
    let vault = vault(&keys, Encryption::On);
    let opened = sqlite::open_database(&data_dir.database(), &vault, Source::Machine, KEYS_IN_MEMORY)?;
    let (mark, log_key, now) = (vault.key_mark(), keys.signer.verifier().to_string(), opened.clock.now());
    let entries = opened.memory.leaf_count;
    let original = Original::new(opened, vault, &data_dir, migration.batch_rows)?;
    let root = verified_root(&data_dir, keys.signer, entries).await?;
    let origin = Origin { mark, log_key, entries, root, now };
    let work = tokio::task::spawn_blocking(move || copy(&data_dir, original, &connect, &origin, progress));
    let moved =
        work.await.map_err(|error| MigrateError::Database(OpenError::Postgres(error.to_string())))??;
    Ok(Migrated::Now(moved))
}

/// The root of the whole tree, of which the last checkpoint signs the beginning.
async fn verified_root(
    data_dir: &DataDir,
    signer: gatepost_audit::SignerKey,
    entries: u64,
) -> Result<gatepost_audit::Hash, MigrateError> {
    let failed = |error: sqlx::Error| StoreError::Database(error.to_string());
    let pool = sqlite::readers(&data_dir.database()).await.map_err(failed)?;
    let (chores, _) = mpsc::channel(1);
    let source = reader::Source::sqlite(pool.clone());
    let mut log = AuditLog::open(data_dir.audit(), source, signer, Arc::default(), chores).await?;
    log.verify(entries).await?;
    pool.close().await;
    Ok(log.root())
}

/// Copies, compares, and gives the old database its new name. Blocks.
fn copy(
    data_dir: &DataDir,
    original: Original,
    connect: &PgConnectOptions,
    origin: &Origin,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Moved, MigrateError> {
    let (mut copy, begun) = Copy::open(connect, origin)?;
    // Before anything that needs them; what was sealed for an earlier try has its own there.
    copy.keep_keys(&original.trees()?)?;
    let ends = original.ends()?;
    while let Stage::Copying(part, through) = copy.stage() {
        if tell(&mut progress, part, through, &ends).is_break() {
            return Err(MigrateError::Interrupted);
        }
        let batch = original.next(part, through)?;
        let is_over = batch.rows.is_empty();
        let next = if is_over { Stage::after(part) } else { Stage::Copying(part, batch.through) };
        if next == Stage::Done {
            break;
        }
        copy.write(&batch, next)?;
    }
    let counts = original.counts()?;
    if copy.stage() != Stage::Done {
        // Nothing is left but to look whether all of it is there.
        compare(&mut copy, &counts, origin, &mut progress)?;
        copy.finish(origin)?;
    }
    copy.close();
    original.close()?;
    data_dir.move_database()?;
    Ok(Moved { begun, counts, entries: origin.entries, root: origin.root, kept: data_dir.moved() })
}

fn tell(
    progress: &mut impl FnMut(Progress) -> ControlFlow<()>,
    part: Part,
    through: i64,
    ends: &HashMap<&'static str, i64>,
) -> ControlFlow<()> {
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let end = ends.get(part.as_str()).copied().unwrap_or(0);
    progress(Progress { step: Step::Copying(part), done: number(through), all: number(end) })
}

/// Looks whether the copy has as much of everything, and the same entries in the same places: their tree has the root of the
/// original's, which extends the last checkpoint.
fn compare(
    copy: &mut Copy,
    expected: &Counts,
    origin: &Origin,
    progress: &mut impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), MigrateError> {
    let reading = |error: StoreError| MigrateError::Database(error.into());
    let found = copy.counts().map_err(reading)?;
    if found != *expected {
        return Err(MigrateError::Unequal(format!("{found:?} instead of {expected:?}")));
    }
    let mut edge = TileEdge::new();
    let mut full = Vec::new();
    while edge.size() < origin.entries {
        let told = Progress { step: Step::Verifying, done: edge.size(), all: origin.entries };
        if progress(told).is_break() {
            return Err(MigrateError::Interrupted);
        }
        let before = edge.size();
        for run in copy.entries(before, PAGE_ENTRIES).map_err(reading)? {
            let leaves = run.leaves().map_err(|_| gap(run.first))?;
            for (index, leaf) in leaves {
                if index != edge.size() {
                    return Err(gap(edge.size()));
                }
                edge.push(leaf_hash(leaf), &mut full);
            }
            full.clear();
        }
        if edge.size() == before {
            return Err(gap(before));
        }
    }
    if edge.size() != origin.entries || edge.root() != origin.root {
        return Err(MigrateError::Unequal("its audit log is another one".to_owned()));
    }
    Ok(())
}

fn gap(index: u64) -> MigrateError {
    MigrateError::Unequal(format!("entry {index} of the audit log is not there"))
}
