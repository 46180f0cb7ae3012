//! Opening the store: directory, lock, keys, database, audit log; each is checked before anything is served.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gatepost_audit::{Checkpoint, Event as LeafEvent, empty_root, write_checkpoint};
use gatepost_core::principal::{Actor, ActorKind};
use sqlx::{PgPool, SqlitePool};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::audit_log::{AuditLog, LogFault};
use crate::backend::Backend;
use crate::clock::{Clock, Source};
use crate::data_dir::{DataDir, DataDirError, Keys};
use crate::hints::Hints;
use crate::keyring::Keyring;
use crate::keyring::source::SealKeysFrom;
use crate::ops::{AuditNote, StoreError};
use crate::postgres::probe::{self, Unfit, Watch};
use crate::postgres::{self, Node, NodeError, Postgres, Sequencer, Wakeups};
use crate::prepared::Remains;
use crate::random::Random;
use crate::reader::{self, Reader};
use crate::recent::Recent;
use crate::seal::Vault;
use crate::sqlite::{self, Backfill, Sqlite};
use crate::store::{Places, Store, preparing};
use crate::writer::{Chore, Condition, Health, Memory, OPS_WAITING_MAX, Piecemeal, Writer, WriterThread};

/// See [`Options::keys_in_memory`]: with the run that is on its way, a few MiB at most.
pub const KEYS_IN_MEMORY: usize = 32_768;
const REPAIR: &str = "`gatepost doctor --repair NEW` saves what is sound into a new directory";

pub struct Options {
    pub data_dir: PathBuf,
    pub database: Database,
    /// The audit log's origin: the gateway's name. Fixed once the log exists.
    pub origin: String,
    pub dedup_window: Duration,
    pub payload_retention: Duration,
    /// What is sealed from now on is encrypted; what is there already opens either way.
    pub encryption: Encryption,
    /// Where the key is that data keys are wrapped with.
    pub seal_keys: SealKeysFrom,
    /// Idempotency keys kept in memory before they are moved into their index; [`KEYS_IN_MEMORY`] unless a test wants few.
    pub keys_in_memory: usize,
    /// Go on from a log that does not extend its last checkpoint, at an operator's word.
    pub adopt: Option<Adopt>,
}

/// Whether what is sealed is encrypted at rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    #[default]
    On,
    Off,
}

/// Where messages are kept. Keys and the audit log's files are in the data directory in any case.
#[derive(Clone)]
pub enum Database {
    /// A file in the data directory.
    Sqlite,
    /// Shared with other nodes.
    Postgres {
        /// `postgres://…`; may hold a password.
        url: String,
        /// What people call this node.
        node: String,
        engines: Engines,
    },
}

/// Which engines a shared database may be kept by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engines {
    #[default]
    Postgres,
    /// What resembles it too, at an operator's word and without a promise.
    Alike,
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
    #[error("the address of the PostgreSQL database is none: {0}")]
    Url(String),
    #[error(
        "the database is used by another gateway, or by another node of this one whose directory `keys` has not been copied here"
    )]
    KeysElsewhere,
    #[error(
        "the database server {server} is on another machine, and {how}: end the address with \
         `?sslmode=verify-full&sslrootcert=/path/of/its/authority.pem` (a certificate of a public authority needs no sslrootcert)"
    )]
    Unverified { server: String, how: &'static str },
    #[error("the PostgreSQL server will not do:\n{0}")]
    Unfit(Unfit),
    #[error(
        "the messages are in {0}, and the configuration says PostgreSQL: `gatepost migrate --to postgres` brings them there; to begin \
         without them, move that file away"
    )]
    NotMoved(PathBuf),
    #[error(
        "the messages were moved to PostgreSQL, and what was here is {0}: set `postgres` in [store], or another `data_dir`"
    )]
    Moved(PathBuf),
    #[error(
        "the database holds an unfinished copy of this gateway: run `gatepost migrate --to postgres` again where its gatepost.db is, \
         and it goes on"
    )]
    CopyUnfinished,
    #[error("PostgreSQL: {0}")]
    Postgres(String),
    #[error("the store: {0}")]
    Store(#[from] StoreError),
}

/// The store's tasks; `stop` ends them in order.
pub struct StoreTask {
    running: Running,
    audit: JoinHandle<()>,
    stop_audit: watch::Sender<bool>,
    /// The data directory was created by this start.
    pub created: bool,
    _lock: File,
}

/// What is particular to a database.
enum Running {
    Sqlite {
        writer: WriterThread<Sqlite>,
        pool: SqlitePool,
        /// Closed after every connection, since that costs the process its locks on the file.
        file: Arc<File>,
    },
    Postgres {
        writer: WriterThread<Postgres>,
        pool: PgPool,
        sequencer: JoinHandle<()>,
        watch: JoinHandle<()>,
        wakeups: JoinHandle<()>,
        stop_tasks: watch::Sender<bool>,
    },
}

impl StoreTask {
    /// Waits until the writer has done what was asked, signs the last checkpoint and closes the database.
    pub async fn stop(self) {
        let Self { running, audit, stop_audit, .. } = self;
        let end_audit = async {
            let _ = stop_audit.send(true);
            if let Err(error) = audit.await {
                tracing::error!(%error, "the audit log's task did not end well");
            }
        };
        match running {
            Running::Sqlite { writer, pool, file } => {
                let writer = writer.stop().await;
                end_audit.await;
                // The writer's connection closes last: the last one brings the WAL into the database, and readers cannot.
                pool.close().await;
                match writer.map(Sqlite::close) {
                    Some(Ok(())) => {}
                    Some(Err(error)) => tracing::error!(%error, "the database did not close well"),
                    None => tracing::error!("the writer did not end well"),
                }
                drop(file);
            }
            Running::Postgres { writer, pool, sequencer, watch, wakeups, stop_tasks } => {
                let writer = writer.stop().await;
                // What was committed last gets its place before the last checkpoint.
                let _ = stop_tasks.send(true);
                if let Err(error) = sequencer.await {
                    tracing::error!(%error, "the audit log's sequencer did not end well");
                }
                for (task, of) in [(watch, "watch over the database"), (wakeups, "words to other nodes")] {
                    if let Err(error) = task.await {
                        tracing::error!(%error, "the {of} did not end well");
                    }
                }
                end_audit.await;
                pool.close().await;
                match writer {
                    Some(database) => drop(tokio::task::spawn_blocking(move || database.close()).await),
                    None => tracing::error!("the writer did not end well"),
                }
            }
        }
    }
}

/// A database as the writer takes it over.
struct Opened<B> {
    database: B,
    clock: Clock,
    instance_epoch: u32,
    memory: Memory,
    source: reader::Source,
    /// Leaves of the audit log that have their place.
    size: u64,
    /// Nothing was ever written to the log.
    first: bool,
    remains: Remains,
}

/// What every database is opened with.
struct Ground {
    data_dir: DataDir,
    vault: Vault,
    health: Arc<Health>,
    chores: (mpsc::Sender<Chore>, mpsc::Receiver<Chore>),
    created: bool,
    lock: File,
}

/// Opens the store, creating the data directory where there is none.
pub async fn open(options: Options) -> Result<(Store, StoreTask), OpenError> {
    match &options.database {
        Database::Sqlite => open_sqlite(&options).await,
        Database::Postgres { url, node, engines } => open_postgres(&options, url, node, *engines).await,
    }
}

async fn open_sqlite(options: &Options) -> Result<(Store, StoreTask), OpenError> {
    sqlite::check_library()?;
    let data_dir = DataDir::new(&options.data_dir);
    data_dir.create()?;
    let lock = data_dir.lock()?;
    let keys = data_dir.keys(&options.origin, &options.seal_keys)?;
    let path = data_dir.database();
    let created = !path.exists();
    if created && data_dir.moved().exists() {
        return Err(OpenError::Moved(data_dir.moved()));
    }
    if created {
        begin_log(&data_dir, &keys)?;
        data_dir.create_database()?;
    }
    sqlite::check_wal(&data_dir)?;
    if let Err(error) = data_dir.keep_reserve() {
        tracing::warn!(%error, "no reserve could be set aside for a full disk");
    }
    let fail = |text: String| OpenError::Database { path: path.clone(), text };
    let vault = vault(&keys, options.encryption);
    let opened = sqlite::open_database(&path, &vault, Source::Machine, options.keys_in_memory)?;
    let pool = sqlite::readers(&path).await.map_err(|error| fail(error.to_string()))?;
    let file = Arc::new(File::open(&path).map_err(|error| fail(error.to_string()))?);
    let backfill = Backfill::start(&data_dir, Arc::clone(&file)).map_err(|error| fail(error.to_string()))?;
    let size = opened.memory.leaf_count;
    let opened = Opened {
        database: Sqlite::new(opened.connection, data_dir.clone(), Some(backfill)),
        clock: opened.clock,
        instance_epoch: opened.instance_epoch,
        memory: opened.memory,
        source: reader::Source::sqlite(pool.clone()),
        size,
        // Told by the log itself: a start that was killed half way may have made the database already.
        first: size == 0,
        remains: Remains::Within,
    };
    let ground = Ground { data_dir, vault, health: Arc::default(), chores: mpsc::channel(16), created, lock };
    let assembled = assemble(options, ground, opened, keys, Arc::default()).await?;
    assembled.start(options, |writer| Ok(Running::Sqlite { writer, pool, file })).await
}

async fn open_postgres(
    options: &Options,
    url: &str,
    node: &str,
    engines: Engines,
) -> Result<(Store, StoreTask), OpenError> {
    let data_dir = DataDir::new(&options.data_dir);
    data_dir.create()?;
    let lock = data_dir.lock()?;
    if data_dir.database().exists() {
        return Err(OpenError::NotMoved(data_dir.database()));
    }
    let connect = postgres::options(&probe::address(url)?);
    let durability = probe::fit(&connect, engines).await?;
    let source = data_dir.seal_key_source(&options.seal_keys);
    let has_keys = data_dir.store_key().exists()
        && data_dir.audit_key().exists()
        && !source.load().unwrap_or_default().is_empty();
    if !has_keys && !data_dir.node().exists() && postgres::is_in_use(&connect).await? {
        return Err(OpenError::KeysElsewhere);
    }
    let keys = data_dir.keys(&options.origin, &options.seal_keys)?;
    let is_new = !data_dir.node().exists();
    // What was moved from here brought its log along.
    let created = is_new && !data_dir.moved().exists();
    if is_new {
        begin_log(&data_dir, &keys)?;
    }
    let vault = vault(&keys, options.encryption);
    let node = Node {
        options: connect.clone(),
        data_dir: data_dir.clone(),
        name: node.to_owned(),
        log_key: keys.signer.verifier().to_string(),
        dedup_window: options.dedup_window,
        vault: vault.clone(),
    };
    let opened = tokio::task::spawn_blocking(move || postgres::open(node)).await;
    let opened = opened.map_err(|error| OpenError::Postgres(error.to_string()))??;
    let pool = postgres::readers(connect.clone());
    let (epoch, bell) = (opened.database.epoch(), opened.database.bell());
    let opened = Opened {
        instance_epoch: opened.database.instance_epoch(0),
        database: opened.database,
        clock: opened.clock,
        memory: opened.memory,
        source: reader::Source::postgres(pool.clone()),
        size: opened.size,
        first: opened.first,
        remains: Remains::Apart,
    };
    let ground = Ground { data_dir, vault, health: Arc::default(), chores: mpsc::channel(16), created, lock };
    ground.health.set_durability(durability);
    let chores = ground.chores.0.clone();
    let added: Arc<Notify> = Arc::default();
    let assembled = assemble(options, ground, opened, keys, Arc::clone(&added)).await?;
    let (stop_tasks, stopped) = watch::channel(false);
    let watch = Watch { options: connect.clone(), health: Arc::clone(&assembled.writer.health) };
    let wakeups = Wakeups { pool: pool.clone(), epoch: Arc::clone(&epoch), bell, chores };
    let sequencer = Sequencer {
        options: connect,
        epoch,
        health: Arc::clone(&assembled.writer.health),
        added,
        grown: Arc::clone(&assembled.grown),
    };
    let start = |writer| {
        let watch = tokio::spawn(watch.run(stopped.clone()));
        let wakeups = tokio::spawn(wakeups.run(stopped.clone()));
        let sequencer = tokio::spawn(sequencer.run(stopped));
        Ok(Running::Postgres { writer, pool, sequencer, watch, wakeups, stop_tasks })
    };
    assembled.start(options, start).await
}

impl From<NodeError> for OpenError {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::KeyForeign => Self::KeyForeign,
            NodeError::CopyUnfinished => Self::CopyUnfinished,
            NodeError::Newer { found, known } => Self::Newer { found, known },
            NodeError::Io { path, source } => DataDirError::Io { path, source }.into(),
            NodeError::Store(error) => Self::Postgres(error.to_string()),
        }
    }
}

/// The vault of a data directory's keys.
pub(crate) fn vault(keys: &Keys, encryption: Encryption) -> Vault {
    Vault::with_keyring(&keys.store, Keyring::new(Arc::clone(&keys.seal)), encryption == Encryption::On)
}

/// Before the first leaf can exist there is a checkpoint that it extends. One that is there already stays: if it signs entries,
/// then a database has been lost, and the start must end there.
fn begin_log(data_dir: &DataDir, keys: &Keys) -> Result<(), OpenError> {
    if data_dir.audit().join("checkpoint").exists() { Ok(()) } else { sign_empty(data_dir, keys) }
}

/// A store of which nothing runs yet.
struct Assembled<B> {
    store: Store,
    writer: Writer<B>,
    ops: mpsc::Receiver<crate::call::Op>,
    chores: mpsc::Receiver<Chore>,
    audit: AuditLog,
    /// Rings the audit log.
    grown: Arc<Notify>,
    first: bool,
    adopted: bool,
    created: bool,
    lock: File,
}

/// Checks the audit log and puts everything together. `added` is rung after each commit that added leaves; where leaves have
/// their place with their commit, that is the audit log's own bell.
async fn assemble<B: Backend>(
    options: &Options,
    ground: Ground,
    opened: Opened<B>,
    keys: Keys,
    added: Arc<Notify>,
) -> Result<Assembled<B>, OpenError> {
    let Ground { data_dir, vault, health, chores: (chores_in, chores), created, lock } = ground;
    let Opened { database, clock, instance_epoch, memory, source, size, first, remains } = opened;
    health.set_audit_size(size);
    let mut audit =
        AuditLog::open(data_dir.audit(), source.clone(), keys.signer, Arc::clone(&health), chores_in).await?;
    let verified = audit.verify(size).await;
    let adopted = settle_verdict(&mut audit, verified, options, &data_dir, size).await?;
    audit.sign().await?;
    let grown = if database.places_leaves() { Arc::clone(&added) } else { Arc::default() };
    let (hints, recent) = (Arc::new(Hints::default()), Arc::new(Recent::default()));
    let (published, audit_dir) = (Arc::clone(&audit.published), data_dir.audit());
    let reader = Reader::new(source, vault.clone(), audit_dir, published, Arc::clone(&health), clock.clone());
    let piecemeal = Piecemeal::of(database.writes_beside());
    let writer = Writer {
        database,
        clock: clock.clone(),
        instance_epoch,
        memory,
        vault: vault.clone(),
        random: Random::new(),
        gateway: Actor::new(ActorKind::Gateway, options.origin.clone()),
        hints: Arc::clone(&hints),
        health: Arc::clone(&health),
        leaves_added: added,
        leaves_handed: Arc::clone(&audit.handed),
        recent: Arc::clone(&recent),
        dedup_window: options.dedup_window,
        payload_retention: options.payload_retention,
        keys_in_memory: options.keys_in_memory,
        condition: Condition::Working,
        asked: Default::default(),
        under_way: None,
        piecemeal,
        decides_ahead: true,
        own_leases_ended: false,
    };
    let (ops_in, ops) = mpsc::channel(OPS_WAITING_MAX);
    let store = Store {
        ops: ops_in,
        reader,
        vault,
        seal_keys: keys.source,
        rotation: Arc::default(),
        clock,
        hints,
        health,
        recent,
        remains,
        preparing: preparing(),
        preparing_outcomes: preparing(),
        places: Places::new(),
    };
    Ok(Assembled { store, writer, ops, chores, audit, grown, first, adopted, created, lock })
}

impl<B: Backend> Assembled<B> {
    async fn start(
        self,
        options: &Options,
        running: impl FnOnce(WriterThread<B>) -> Result<Running, OpenError>,
    ) -> Result<(Store, StoreTask), OpenError> {
        let (stop_audit, audit_stopped) = watch::channel(false);
        let writer = self.writer.start(self.ops, self.chores);
        let writer = writer.map_err(|error| StoreError::Database(error.to_string()))?;
        let task = StoreTask {
            running: running(writer)?,
            audit: tokio::spawn(self.audit.run(self.grown, audit_stopped)),
            stop_audit,
            created: self.created,
            _lock: self.lock,
        };
        note_start(&self.store, options, self.first, self.adopted).await?;
        self.store.seal_keys_settle(Actor::new(ActorKind::Gateway, options.origin.clone())).await?;
        Ok((self.store, task))
    }
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

pub(crate) fn sign_empty(data_dir: &DataDir, keys: &Keys) -> Result<(), OpenError> {
    let checkpoint = Checkpoint { origin: keys.signer.name().to_owned(), size: 0, root: empty_root() };
    let text = checkpoint.sign(&keys.signer).map_err(|error| LogFault::Write(error.to_string()))?;
    Ok(write_checkpoint(&data_dir.audit(), &text).map_err(|error| LogFault::Write(error.to_string()))?)
}
