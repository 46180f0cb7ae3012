//! A node among others: how it comes, renews its right to write, leaves, and takes the place of one that is gone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use gatepost_core::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{Connection as _, PgPool, Row as _};
use tokio::time::Instant;

use super::buckets::Sharing;
use super::connection::Connection;
use super::partitions::Partitions;
use super::pieces::Pieces;
use super::row::Cells;
use super::{Bell, MIGRATIONS, Owned, Postgres, RENEW_INTERVAL, ROLE_RETENTION, ROLE_SEQUENCER, copy, sql};
use crate::backend::{Backend as _, CommitError};
use crate::clock::Clock;
use crate::data_dir::DataDir;
use crate::ops::StoreError;
use crate::random;
use crate::seal::Vault;
use crate::writer::{Holds, Memory};

/// For how long a node may write after it has renewed its lease.
pub(super) const LEASE: Duration = Duration::from_micros(LEASE_MICROS.cast_unsigned());
const LEASE_MICROS: i64 = 5_000_000;
/// For how long it believes so itself: it lets go of what it runs before another can take it.
pub(super) const RIGHT: Duration = Duration::from_millis(4500);

/// Held while migrations are applied; any number that nobody else's program uses.
const MIGRATION_LOCK: i64 = 0x6761_7465_706f_7374;
/// What a node has besides its leases, in the order in which it is taken from it.
const HAD: [&str; 6] = [
    sql::BUCKETS_FREE,
    sql::CONSUMERS_FREE,
    sql::ROLES_FREE,
    sql::COUNTS_CLOSE,
    sql::COUNTS_DROP,
    sql::NODE_DROP,
];
/// Connections that read.
const READERS: u32 = 6;
/// Longest that a reader waits for one of them.
const READER_WAIT: Duration = Duration::from_secs(5);

/// What a node is opened with.
pub(crate) struct Node {
    pub(crate) options: PgConnectOptions,
    pub(crate) data_dir: DataDir,
    /// For people.
    pub(crate) name: String,
    /// The audit log's public key, which all nodes share.
    pub(crate) log_key: String,
    pub(crate) dedup_window: Duration,
    pub(crate) vault: Vault,
}

/// The database as the writer takes it over.
pub(crate) struct Opened {
    pub(crate) database: Postgres,
    pub(crate) clock: Clock,
    pub(crate) memory: Memory,
    /// Leaves of the audit log that have their place.
    pub(crate) size: u64,
    /// Nothing was ever written to the log.
    pub(crate) first: bool,
}

/// What is wrong with a database that answers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the data was written with another key")]
    KeyForeign,
    #[error("the database has migration {found}, this program knows {known}")]
    Newer { found: i64, known: i64 },
    #[error("the database holds an unfinished copy of a gateway")]
    CopyUnfinished,
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

impl From<CommitError> for NodeError {
    fn from(error: CommitError) -> Self {
        Self::Store(error.into())
    }
}

/// Connects, brings the tables up to date and registers this start as a node. Blocks.
pub(crate) fn open(node: Node) -> Result<Opened, NodeError> {
    let mut connection = Connection::open(&node.options)?;
    migrate(&mut connection)?;
    let (mark, log_key) = (node.vault.key_mark().to_vec(), node.log_key.as_str());
    connection.execute(sqlx::query(sql::STORE_ADD).bind(mark).bind(log_key).bind(0_i64))?;
    for role in [ROLE_SEQUENCER, ROLE_RETENTION] {
        connection.execute(sqlx::query(sql::ROLE_ADD).bind(role))?;
    }
    let clock = check_store(&mut connection, &node)?;
    if copy::is_unfinished(&mut connection)? {
        return Err(NodeError::CopyUnfinished);
    }
    let mut partitions = Partitions::default();
    partitions.tend(&mut connection, clock.now())?;
    let mut database = Postgres {
        vault: node.vault.clone(),
        connection,
        clock: clock.clone(),
        data_dir: node.data_dir,
        name: node.name,
        epoch: Arc::default(),
        dedup_window: node.dedup_window,
        number: 0,
        newest: clock.now(),
        drawn: None,
        read_through: 0,
        is_open: false,
        unopened: None,
        known: Default::default(),
        spare: None,
        must_be_newest: false,
        last_drawn: None,
        ahead: Default::default(),
        by_own_clock: false,
        keys_are_known: true,
        held: Holds::default(),
        handed_over_at: Instant::now(),
        wary: 0,
        owned: Owned::new(),
        sharing: Sharing::new(),
        left_notes: false,
        bell: Arc::default(),
        is_alone: false,
        versions: Default::default(),
        leases: Default::default(),
        renewed_at: Instant::now(),
        watched_at: None,
        partitions,
        retention: Default::default(),
        pieces: Pieces::new(node.options),
    };
    database.connection.be_quick();
    database.come()?;
    let mut memory = database.load_memory(&node.vault)?;
    database.find_pieces(&mut memory)?;
    let (size, first) = database.log_size()?;
    Ok(Opened { database, clock, memory, size, first })
}

/// Whether a gateway has used the database before.
pub(crate) async fn is_in_use(options: &PgConnectOptions) -> Result<bool, NodeError> {
    let database = |error: sqlx::Error| NodeError::from(super::connection::commit_error(error));
    let mut open = PgConnection::connect_with(options).await.map_err(database)?;
    let row = sqlx::raw_sql("SELECT to_regclass('gatepost.store') IS NOT NULL").fetch_one(&mut open).await;
    let found = row.and_then(|row| row.try_get(0)).map_err(database)?;
    drop(open.close().await);
    Ok(found)
}

/// Connections for everybody who only reads.
pub(crate) fn readers(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new().max_connections(READERS).acquire_timeout(READER_WAIT).connect_lazy_with(options)
}

pub(super) fn migrate(connection: &mut Connection) -> Result<(), NodeError> {
    connection.script(format!(
        "SET client_min_messages = error; CREATE SCHEMA IF NOT EXISTS gatepost; SET client_min_messages = warning; \
         SELECT pg_advisory_lock({MIGRATION_LOCK}); \
         CREATE TABLE IF NOT EXISTS gatepost.migration (version bigint PRIMARY KEY)"
    ))?;
    let migrated = migrate_locked(connection);
    connection.script(format!("SELECT pg_advisory_unlock({MIGRATION_LOCK})"))?;
    migrated
}

fn migrate_locked(connection: &mut Connection) -> Result<(), NodeError> {
    let row = connection.script_row("SELECT coalesce(max(version), 0) FROM gatepost.migration".to_owned())?;
    let found: i64 = row.map_or(Ok(0), |row| Cells::new(&row).take())?;
    let known = MIGRATIONS.last().map_or(0, |(version, _)| *version);
    if found > known {
        return Err(NodeError::Newer { found, known });
    }
    for (version, text) in MIGRATIONS.iter().filter(|(version, _)| *version > found) {
        // One transaction with its number: killed half way, a migration has not happened.
        connection.script(format!("BEGIN;\n{text}\n;INSERT INTO migration (version) VALUES ({version})"))?;
        gatepost_faults::point("store.in_migration");
        connection.script("COMMIT".to_owned())?;
        gatepost_faults::point("store.after_migration");
    }
    Ok(())
}

/// Store time, if the database is one of ours.
fn check_store(connection: &mut Connection, node: &Node) -> Result<Clock, NodeError> {
    let row = connection.row(sqlx::query(sql::STORE_LOOK))?;
    let row = row.ok_or_else(|| StoreError::Database("table store is empty".to_owned()))?;
    let mut cells = Cells::new(&row);
    let (store_key, found): (Vec<u8>, String) = (cells.take()?, cells.take()?);
    if store_key != node.vault.key_mark() || found != node.log_key {
        return Err(NodeError::KeyForeign);
    }
    Ok(Clock::following(Timestamp::from_micros(cells.take()?)))
}

impl Postgres {
    /// The node that this is now, for who is not the writer.
    pub(crate) fn epoch(&self) -> Arc<AtomicI32> {
        Arc::clone(&self.epoch)
    }

    pub(crate) fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    pub(super) fn node(&self) -> i32 {
        self.epoch.load(Ordering::Relaxed)
    }

    fn log_size(&mut self) -> Result<(u64, bool), StoreError> {
        let row = self.connection.row(sqlx::query(sql::LOG_SIZE))?;
        let row = row.ok_or_else(|| StoreError::Database("table store is empty".to_owned()))?;
        let mut cells = Cells::new(&row);
        let size = u64::try_from(cells.take::<i64>()?).unwrap_or(0);
        Ok((size, size == 0 && cells.take::<bool>()?))
    }

    /// Registers this start. Whoever held the data directory before is gone: this process holds its lock now.
    fn come(&mut self) -> Result<(), NodeError> {
        let path = self.data_dir.node();
        let before = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        self.register()?;
        if let Some(before) = before {
            self.take_place(before)?;
        }
        std::fs::write(&path, format!("{}\n", self.node()))
            .map_err(|source| NodeError::Io { path, source })?;
        self.take_leases_of_nobody()?;
        Ok(())
    }

    fn register(&mut self) -> Result<(), CommitError> {
        let random: [u8; 4] = random::of_thread().map_err(|error| CommitError::Broken(error.to_string()))?;
        let epoch = i32::from_be_bytes(random);
        let asked_at = Instant::now();
        let statement = sqlx::query(sql::NODE_ADD)
            .bind(epoch)
            .bind(self.name.as_str())
            .bind(env!("CARGO_PKG_VERSION"))
            .bind(LEASE_MICROS);
        if self.connection.execute(statement)? != 1 {
            return Err(CommitError::Refused("a gateway is being copied into the database".to_owned()));
        }
        self.epoch.store(epoch, Ordering::Relaxed);
        self.renewed_at = asked_at;
        self.owned.clear();
        self.handed_over_at = Instant::now();
        self.sharing = Sharing::new();
        Ok(())
    }

    /// After a failure: as the same node if it still is one, else as a new one.
    pub(super) fn come_back(&mut self) -> Result<(), CommitError> {
        let before = self.node();
        if self.try_renew()? {
            return Ok(());
        }
        self.register()?;
        self.take_place(before)?;
        self.take_leases_of_nobody()
    }

    pub(super) fn renew(&mut self) -> Result<(), CommitError> {
        if self.renewed_at.elapsed() < RENEW_INTERVAL {
            return Ok(());
        }
        if self.try_renew()? {
            return Ok(());
        }
        Err(CommitError::Broken("this node's lease is over".to_owned()))
    }

    /// Whether it still was this node's.
    fn try_renew(&mut self) -> Result<bool, CommitError> {
        let asked_at = Instant::now();
        let statement = sqlx::query(sql::NODE_RENEW).bind(self.node()).bind(LEASE_MICROS);
        let renewed = self.connection.execute(statement)? == 1;
        if renewed {
            self.renewed_at = asked_at;
            self.connection.execute(sqlx::query(sql::CLOCK_NOTE).bind(self.newest.as_micros()))?;
        }
        Ok(renewed)
    }

    /// Takes over what a node had that is gone; nothing if it has left nothing. It waits for what that one still has under way.
    fn take_place(&mut self, gone: i32) -> Result<(), CommitError> {
        self.begin(&Holds::default())?;
        let taken = self.connection.row(sqlx::query(sql::NODE_LOCK).bind(gone));
        let taken = taken.and_then(|_| self.take_place_open(gone));
        self.end(taken)
    }

    /// Takes the places of nodes whose lease is over; whether there were leases among what they had.
    pub(super) fn take_places(&mut self, memory: &mut Memory, vault: &Vault) -> Result<bool, CommitError> {
        let mut took = false;
        let nodes = self.connection.rows(sqlx::query(sql::NODES))?;
        self.is_alone = nodes.len() == 1;
        for row in nodes {
            let mut cells = Cells::new(&row);
            let (gone, over): (i32, bool) = (cells.take()?, cells.take()?);
            if !over {
                continue;
            }
            if gone == self.node() {
                return Err(CommitError::Broken("this node's lease is over".to_owned()));
            }
            self.begin(&Holds::default())?;
            let taken = self.take_place_if_over(gone);
            took |= self.end(taken)?;
        }
        if took {
            self.catch_up(memory, vault)?;
        }
        Ok(took)
    }

    /// Takes a role that is nobody's, or whose holder's lease is over.
    pub(super) fn claim_open(&mut self, role: &str) -> Result<bool, CommitError> {
        self.connection.execute(sqlx::query(sql::ROLE_ADD).bind(role))?;
        let Some(row) = self.connection.row(sqlx::query(sql::ROLE_LOOK).bind(role))? else {
            return Ok(false);
        };
        let mut cells = Cells::new(&row);
        let (holder, stands): (Option<i32>, bool) = (cells.take()?, cells.take()?);
        if holder == Some(self.node()) {
            return Ok(true);
        }
        if holder.is_some() && stands {
            return Ok(false);
        }
        self.connection.execute(sqlx::query(sql::ROLE_TAKE).bind(role).bind(self.node()))?;
        Ok(true)
    }

    fn take_place_if_over(&mut self, gone: i32) -> Result<bool, CommitError> {
        let locked = self.connection.row(sqlx::query(sql::NODE_LOCK_OVER).bind(gone))?;
        if locked.is_none() {
            return Ok(false);
        }
        tracing::warn!(node = gone, "a node's lease is over: this one takes its place");
        self.take_place_open(gone).map(|()| true)
    }

    fn take_place_open(&mut self, gone: i32) -> Result<(), CommitError> {
        self.connection.execute(sqlx::query(sql::LEASES_TAKE).bind(gone).bind(self.node()))?;
        for statement in HAD {
            self.connection.execute(sqlx::query(statement).bind(gone))?;
        }
        Ok(())
    }

    /// Of nodes that left.
    fn take_leases_of_nobody(&mut self) -> Result<(), CommitError> {
        for row in self.connection.rows(sqlx::query(sql::LEASES_OF_NOBODY))? {
            let gone: i32 = Cells::new(&row).take()?;
            self.connection.execute(sqlx::query(sql::LEASES_TAKE).bind(gone).bind(self.node()))?;
        }
        Ok(())
    }

    /// Gives up everything but the leases, which the next start takes.
    pub(super) fn leave(&mut self) -> Result<(), CommitError> {
        let gone = self.node();
        self.connection.script("BEGIN".to_owned())?;
        self.is_open = true;
        let left = self.connection.row(sqlx::query(sql::NODE_LOCK).bind(gone));
        let left = left.and_then(|_| {
            HAD.iter().try_for_each(|had| self.connection.execute(sqlx::query(*had).bind(gone)).map(drop))
        });
        self.end(left)
    }
}
