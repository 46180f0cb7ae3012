//! Opening the store: directory, lock, keys, database, audit log; each is checked before anything is served.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use gatepost_audit::{Checkpoint, Event as LeafEvent, empty_root, write_checkpoint};
use gatepost_core::principal::{Actor, ActorKind};
use rusqlite::Connection;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::audit_log::{AuditLog, LogFault};
use crate::clock::{Clock, Source};
use crate::data_dir::{DataDir, DataDirError, Keys};
use crate::hints::Hints;
use crate::ops::{AuditNote, StoreError};
use crate::random::Random;
use crate::reader::Reader;
use crate::recent::Recent;
use crate::seal::Vault;
use crate::sql;
use crate::sqlite::wal::{self, WalState};
use crate::sqlite::{Backfill, Sqlite, StoreRow, connection, execute_summed};
use crate::store::Store;
use crate::writer::{Condition, Health, Memory, OPS_WAITING_MAX, Writer, WriterThread};

/// The first SQLite without the WAL-reset corruption bug, as `sqlite3_libversion_number` says it.
const SQLITE_VERSION_MIN: i32 = 3_051_003;
/// See [`Options::keys_in_memory`]: with the run that is on its way, a few MiB at most.
pub const KEYS_IN_MEMORY: usize = 32_768;
const READERS: u32 = 3;
/// Longest that a reader may hold a snapshot; the WAL cannot be reset while one is held.
pub(crate) const READER_WAIT: Duration = Duration::from_secs(5);

const REPAIR: &str = "`gatepost doctor --repair NEW` saves what is sound into a new directory";

pub struct Options {
    pub data_dir: PathBuf,
    /// The audit log's origin: the gateway's name. Fixed once the log exists.
    pub origin: String,
    pub dedup_window: Duration,
    pub payload_retention: Duration,
    /// Idempotency keys kept in memory before they are moved into their index; [`KEYS_IN_MEMORY`] unless a test wants few.
    pub keys_in_memory: usize,
    /// Go on from a log that does not extend its last checkpoint, at an operator's word.
    pub adopt: Option<Adopt>,
}

/// An operator's decision to go on from the log as it is.
#[derive(Clone, Debug)]
pub struct Adopt {
    pub operator: String,
    /// Where the reason is, in a form that fits an entry: `sha256:` and the digest of the text that says it.
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(
        "this program is linked with SQLite {0}, which can corrupt a database; 3.51.3 or later is needed"
    )]
    SqliteTooOld(String),
    #[error(
        "the data was not written with the key keys/store.key: it is damaged or another gateway's; restore the right one"
    )]
    KeyForeign,
    #[error("the write-ahead log {path} is damaged {at}: what stands behind that was committed. {REPAIR}")]
    Wal { path: PathBuf, at: String },
    #[error("the database {path}: {text}")]
    Database { path: PathBuf, text: String },
    #[error("the database does not keep what was asked of it: {0}")]
    Setting(String),
    #[error(
        "the database has migration {found}, this program knows {known}: it was written by a newer version"
    )]
    Newer { found: i64, known: i64 },
    #[error(
        "{0}. If you know why, `gatepost audit adopt --reason TEXT` goes on from the log as it is and records that"
    )]
    Log(#[from] LogFault),
    #[error("the store: {0}")]
    Store(#[from] StoreError),
}

/// The store's tasks; `stop` ends them in order.
pub struct StoreTask {
    writer: WriterThread<Sqlite>,
    audit: JoinHandle<()>,
    stop_audit: watch::Sender<bool>,
    pool: SqlitePool,
    /// The data directory was created by this start.
    pub created: bool,
    /// Closed after every connection, since that costs the process its locks on the file.
    _database_file: Arc<File>,
    _lock: File,
}

impl StoreTask {
    /// Waits until the writer has done what was asked, signs the last checkpoint and closes the database.
    pub async fn stop(self) {
        let writer = self.writer.stop().await;
        let _ = self.stop_audit.send(true);
        if let Err(error) = self.audit.await {
            tracing::error!(%error, "the audit log's task did not end well");
        }
        // The writer's connection closes last: the last one brings the WAL into the database, and readers cannot.
        self.pool.close().await;
        match writer.map(|database| database.connection.close()) {
            Some(Ok(())) => {}
            Some(Err((_, error))) => tracing::error!(%error, "the database did not close well"),
            None => tracing::error!("the writer did not end well"),
        }
    }
}

/// Opens the store, creating the data directory where there is none.
pub async fn open(options: Options) -> Result<(Store, StoreTask), OpenError> {
    check_sqlite()?;
    let data_dir = DataDir::new(&options.data_dir);
    data_dir.create()?;
    let lock = data_dir.lock()?;
    let keys = data_dir.keys(&options.origin)?;
    let database = data_dir.database();
    let created = !database.exists();
    if created {
        // Before the first leaf can exist there is a checkpoint that it extends. One that is there already stays: if it signs
        // entries, then a database has been lost, and the start must end there.
        if !data_dir.audit().join("checkpoint").exists() {
            sign_empty(&data_dir, &keys)?;
        }
        data_dir.create_database()?;
    }
    check_wal(&data_dir)?;
    if let Err(error) = data_dir.keep_reserve() {
        tracing::warn!(%error, "no reserve could be set aside for a full disk");
    }
    let fail = |text: String| OpenError::Database { path: database.clone(), text };
    let vault = Vault::new(&keys.store);
    let Opened { connection, clock, instance_epoch, memory } =
        open_database(&database, &vault, Source::Machine, options.keys_in_memory)?;
    let pool = readers(&database).await.map_err(|error| fail(error.to_string()))?;

    let health = Arc::new(Health::default());
    // Told by the log itself: a start that was killed half way may have made the database already.
    let first = memory.leaf_count == 0;
    health.set_audit_size(memory.leaf_count);
    let (chores_in, chores) = mpsc::channel(16);
    let database_file = Arc::new(File::open(&database).map_err(|error| fail(error.to_string()))?);
    let backfill = Backfill::start(&data_dir, Arc::clone(&database_file));
    let backfill = backfill.map_err(|error| fail(error.to_string()))?;
    let mut audit =
        AuditLog::open(data_dir.audit(), pool.clone(), keys.signer, Arc::clone(&health), chores_in).await?;
    let verified = audit.verify(memory.leaf_count).await;
    let adopted = settle_verdict(&mut audit, verified, &options, &data_dir, memory.leaf_count).await?;
    audit.sign().await?;

    let hints = Arc::new(Hints::default());
    let recent = Arc::new(Recent::default());
    let grown = Arc::new(Notify::new());
    let reader = Reader::new(
        pool.clone(),
        vault.clone(),
        data_dir.audit(),
        Arc::clone(&audit.published),
        Arc::clone(&health),
        clock,
    );
    let writer = Writer {
        database: Sqlite::new(connection, data_dir, Some(backfill)),
        clock,
        instance_epoch,
        memory,
        vault: vault.clone(),
        random: Random::new(),
        gateway: Actor::new(ActorKind::Gateway, options.origin.clone()),
        hints: Arc::clone(&hints),
        health: Arc::clone(&health),
        leaves_added: Arc::clone(&grown),
        leaves_handed: Arc::clone(&audit.handed),
        recent: Arc::clone(&recent),
        dedup_window: options.dedup_window,
        payload_retention: options.payload_retention,
        keys_in_memory: options.keys_in_memory,
        condition: Condition::Working,
        purge: Default::default(),
        own_leases_ended: false,
    };
    let (ops_in, ops) = mpsc::channel(OPS_WAITING_MAX);
    let (stop_audit, audit_stopped) = watch::channel(false);
    let store = Store::new(ops_in, reader, vault, clock, hints, health, recent);
    let task = StoreTask {
        writer: writer.start(ops, chores).map_err(|error| fail(error.to_string()))?,
        audit: tokio::spawn(audit.run(grown, audit_stopped)),
        stop_audit,
        pool,
        created,
        _database_file: database_file,
        _lock: lock,
    };
    note_start(&store, &options, first, adopted).await?;
    Ok((store, task))
}

/// The database as the writer takes it over.
pub(crate) struct Opened {
    pub(crate) connection: Connection,
    pub(crate) clock: Clock,
    pub(crate) instance_epoch: u32,
    pub(crate) memory: Memory,
}

/// Opens the database, brings it up to date, counts this start and reads what the writer keeps in memory.
pub(crate) fn open_database(
    database: &Path,
    vault: &Vault,
    time: Source,
    keys_in_memory: usize,
) -> Result<Opened, OpenError> {
    let fail = |error: rusqlite::Error| OpenError::Database {
        path: database.to_path_buf(),
        text: error.to_string(),
    };
    let connection = connection::connect(database).map_err(fail)?;
    read_back(&connection)?;
    empty_the_wal(&connection, database)?;
    migrate(&connection, database)?;
    let (clock, instance_epoch) = start_clock(&connection, vault, time)?;
    let memory = crate::sqlite::load_memory(&connection, vault, keys_in_memory)?;
    Ok(Opened { connection, clock, instance_epoch, memory })
}

async fn note_start(store: &Store, options: &Options, first: bool, adopted: bool) -> Result<(), StoreError> {
    let gateway = Actor::new(ActorKind::Gateway, options.origin.clone());
    let mut notes = Vec::new();
    if first {
        notes.push(AuditNote::new(LeafEvent::LogOpened, gateway.clone()));
    }
    if let (true, Some(adopt)) = (adopted, &options.adopt) {
        let operator = Actor::new(ActorKind::Operator, adopt.operator.clone());
        let mut note = AuditNote::new(LeafEvent::AuditAdopted, operator);
        note.target = Some(adopt.reason.clone());
        notes.push(note);
    }
    notes.push(AuditNote::new(LeafEvent::GatewayStarted, gateway));
    store.audit_note(notes).await
}

/// A log that does not verify stops the start, unless an operator adopts it; then the refused checkpoint is kept.
async fn settle_verdict(
    audit: &mut AuditLog,
    verdict: Result<(), LogFault>,
    options: &Options,
    data_dir: &DataDir,
    size: u64,
) -> Result<bool, OpenError> {
    let Err(fault) = verdict else { return Ok(false) };
    if options.adopt.is_none()
        || matches!(fault, LogFault::EntryMissing(_) | LogFault::EntryDamaged(_) | LogFault::Tiles(_))
    {
        return Err(fault.into());
    }
    let refused = data_dir.audit().join("checkpoint");
    if refused.exists() {
        let kept = data_dir.audit().join(format!("checkpoint.refused-{size}"));
        std::fs::rename(&refused, &kept).map_err(|source| DataDirError::Io { path: kept, source })?;
    }
    audit.adopt(size).await?;
    Ok(true)
}

/// The version of SQLite that this program is linked with.
pub fn sqlite_version() -> String {
    String::from_utf8_lossy(libsqlite3_sys::SQLITE_VERSION.to_bytes()).into_owned()
}

fn check_sqlite() -> Result<(), OpenError> {
    if libsqlite3_sys::SQLITE_VERSION_NUMBER < SQLITE_VERSION_MIN {
        return Err(OpenError::SqliteTooOld(sqlite_version()));
    }
    Ok(())
}

/// Before SQLite sees it: it would take a damaged log for one that ends early, and write its own.
fn check_wal(data_dir: &DataDir) -> Result<(), OpenError> {
    let path = data_dir.wal();
    let at = match wal::state(&path).map_err(|source| DataDirError::Io { path: path.clone(), source })? {
        WalState::Whole => return Ok(()),
        WalState::HeaderDamaged => "in its header".to_owned(),
        WalState::FrameDamaged(frame) => format!("at frame {frame}"),
    };
    Err(OpenError::Wal { path, at })
}

pub(crate) fn sign_empty(data_dir: &DataDir, keys: &Keys) -> Result<(), OpenError> {
    let checkpoint = Checkpoint { origin: keys.signer.name().to_owned(), size: 0, root: empty_root() };
    let text = checkpoint.sign(&keys.signer).map_err(|error| LogFault::Write(error.to_string()))?;
    Ok(write_checkpoint(&data_dir.audit(), &text).map_err(|error| LogFault::Write(error.to_string()))?)
}

pub(crate) async fn readers(database: &Path) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::from_str("sqlite://")?
        .filename(database)
        .read_only(true)
        .busy_timeout(READER_WAIT)
        .pragma("cell_size_check", "ON")
        .pragma("mmap_size", "0");
    SqlitePoolOptions::new().max_connections(READERS).acquire_timeout(READER_WAIT).connect_with(options).await
}

/// Settings on which the promise rests are read back, not believed.
fn read_back(connection: &Connection) -> Result<(), OpenError> {
    let settings = connection::settings(connection).map_err(|error| OpenError::Setting(error.to_string()))?;
    for (name, found) in settings {
        let kept = match name {
            "journal_mode" => found == "wal",
            "synchronous" => found == connection::synchronous().1,
            "foreign_keys" => found == "1",
            "mmap_size" => found.is_empty() || found == "0",
            _ => true,
        };
        if !kept {
            return Err(OpenError::Setting(format!("PRAGMA {name} is {found:?}")));
        }
    }
    Ok(())
}

/// After a sync that failed, the system shows bytes of the WAL that never reach the disk, and calls later syncs good. So before
/// anybody is told anything, whatever can be read of the WAL is brought into the database: that is written and synced anew.
fn empty_the_wal(connection: &Connection, database: &Path) -> Result<(), OpenError> {
    let emptied = connection::checkpoint(connection, connection::CheckpointMode::Truncate);
    match emptied.map(|brought| brought.how) {
        Ok(connection::Checkpointed::Whole) => Ok(()),
        Ok(connection::Checkpointed::Partly) => {
            let text = "another program reads it and keeps the WAL from being emptied".to_owned();
            Err(OpenError::Database { path: database.to_path_buf(), text })
        }
        Err(error) => Err(OpenError::Database { path: database.to_path_buf(), text: error.to_string() }),
    }
}

pub(crate) fn migrate(connection: &Connection, database: &Path) -> Result<(), OpenError> {
    let fail = |error: rusqlite::Error| OpenError::Database {
        path: database.to_path_buf(),
        text: error.to_string(),
    };
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
    let known = sql::MIGRATIONS.last().map_or(0, |(version, _)| *version);
    if found > known {
        return Err(OpenError::Newer { found, known });
    }
    for (version, text) in sql::MIGRATIONS.iter().filter(|(version, _)| *version > found) {
        // One transaction with its number: killed half way, a migration has not happened.
        let script = format!("BEGIN IMMEDIATE;\n{text}\nPRAGMA user_version = {version};");
        connection.execute_batch(&script).map_err(fail)?;
        gatepost_faults::point("store.in_migration");
        connection.execute_batch("COMMIT").map_err(fail)?;
        gatepost_faults::point("store.after_migration");
    }
    Ok(())
}

/// Counts this start and begins store time behind everything written before.
fn start_clock(connection: &Connection, vault: &Vault, time: Source) -> Result<(Clock, u32), OpenError> {
    let found = crate::sqlite::load_store(connection)?;
    let newest = found.as_ref().map_or(0, |store| store.clock);
    let clock = Clock::start(time, gatepost_core::Timestamp::from_micros(newest));
    let key_mark = vault.key_mark();
    let store = match found {
        Some(store) if store.key_mark != key_mark => {
            return Err(OpenError::KeyForeign);
        }
        Some(store) => StoreRow {
            instance_epoch: store.instance_epoch.saturating_add(1),
            clock: newest.max(clock.now().as_micros()),
            ..store
        },
        None => {
            StoreRow { clock: clock.now().as_micros(), instance_epoch: 1, leaf_count: 0, keyed: 0, key_mark }
        }
    };
    let started = connection
        .prepare_cached(sql::STORE_START)
        .and_then(|mut start| store.with_columns(|columns| execute_summed(&mut start, columns, &[])));
    started.map_err(crate::backend::CommitError::from).map_err(StoreError::from)?;
    Ok((clock, store.instance_epoch))
}
