//! The writer: one thread that owns the one connection which writes.
//!
//! It drains what waits, decides it against memory and a few reads, commits it in one call, and answers all of it
//! afterwards (group commit; no timers while there is work). Between commits it sweeps what time has ended.

mod accept;
mod backfill;
mod candidates;
mod cold;
mod commit;
mod control;
mod damage;
mod find;
mod group;
mod health;
mod keys;
pub(crate) mod leaf;
mod lease;
mod load;
mod memory;
mod purge;
mod refuse;
mod rehome;
mod settle;
#[cfg(test)]
mod sim;
mod turn;
mod writeback;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use gatepost_core::Timestamp;
use gatepost_core::principal::Actor;
use rusqlite::Connection;
use tokio::sync::{Notify, mpsc, watch};

pub(crate) use backfill::{Backfill, BackfillError};
pub(crate) use commit::{StoreRow, execute_summed};
pub use health::Health;
pub(crate) use load::{load_memory, load_store};
pub(crate) use memory::Memory;
pub(crate) use turn::DetailBody;

use crate::call::Op;
use crate::clock::Clock;
use crate::data_dir::DataDir;
use crate::database::{self, CheckpointMode, Checkpointed, CommitError};
use crate::hints::Hints;
use crate::leaves::Handed;
use crate::ops::{QueueRow, QueueStats, StoreError};
use crate::random::Random;
use crate::recent::Recent;
use crate::seal::Vault;

/// Most operations in one commit.
const OPS_PER_COMMIT_MAX: usize = 512;
/// Operations that may wait for the writer before senders wait themselves.
pub(crate) const OPS_WAITING_MAX: usize = 4096;
/// How often time is looked at while nothing else happens.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// Most deliveries that one sweep ends in one commit.
const SWEEP_DELIVERIES_MAX: usize = 500;
/// Most commits of one sweep, so that a flood that expires at once does not keep callers waiting.
const SWEEP_COMMITS_MAX: usize = 4;
/// The disk is taken for usable again when this much is free beside the reserve.
const FREE_BYTES_TO_RESUME: u64 = 2 * crate::data_dir::RESERVE_BYTES;

/// Requests to the writer from the store's own background work.
pub(crate) enum Chore {
    /// Leaves below this index stand in durable files.
    LeavesFiled { below: u64 },
    /// What became of bringing a part of the WAL into the database.
    Backfilled(Result<(), BackfillError>),
}

pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) data_dir: DataDir,
    pub(crate) clock: Clock,
    pub(crate) instance_epoch: u32,
    pub(crate) memory: Memory,
    pub(crate) vault: Vault,
    pub(crate) random: Random,
    pub(crate) gateway: Actor,
    pub(crate) hints: Arc<Hints>,
    pub(crate) health: Arc<Health>,
    /// Rung after each commit that added leaves.
    pub(crate) leaves_added: Arc<Notify>,
    pub(crate) leaves_handed: Arc<Handed>,
    pub(crate) recent: Arc<Recent>,
    pub(crate) dedup_window: Duration,
    pub(crate) payload_retention: Duration,
    pub(crate) keys_in_memory: usize,
    pub(crate) condition: Condition,
    pub(crate) purge: purge::Purge,
    /// Whether what the last checkpoint that did not fail brought into the database is durable there.
    pub(crate) wal: Checkpointed,
    /// Without it the writer checkpoints alone.
    pub(crate) backfill: Option<Backfill>,
    /// The leases that did not outlive the gateway's last run have been ended, which happens once, with the first configuration.
    pub(crate) own_leases_ended: bool,
}

/// Whether the writer can work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Working,
    /// The disk is full: settling goes on from the reserve, accepting does not.
    Full,
    /// The database failed and is not open.
    Broken(String),
    /// The database failed so that only a new start repairs it; the writer ends.
    Lost,
}

/// The running writer. Dropped without [`WriterThread::stop`], it ends where it stands.
pub(crate) struct WriterThread {
    thread: Option<JoinHandle<Connection>>,
    stop: Option<watch::Sender<bool>>,
}

impl WriterThread {
    /// Lets the writer do what was asked of it and gives its connection back; `None` if it did not end well.
    pub(crate) async fn stop(mut self) -> Option<Connection> {
        let (thread, stop) = (self.thread.take()?, self.stop.take()?);
        let joined = tokio::task::spawn_blocking(move || {
            stop.send_replace(true);
            thread.join()
        });
        joined.await.ok()?.ok()
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has said itself what went wrong, if anything.
            drop(thread.join());
        }
    }
}

impl Writer {
    /// Starts the writer's thread. A runtime of its own wakes it, so that nothing else waits behind its disk.
    pub(crate) fn start(
        self,
        ops: mpsc::Receiver<Op>,
        chores: mpsc::Receiver<Chore>,
    ) -> std::io::Result<WriterThread> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || runtime.block_on(self.run(ops, chores, stopped)))?;
        Ok(WriterThread { thread: Some(thread), stop: Some(stop) })
    }

    /// Runs until it is told to stop, or every handle of the store is gone, and what was asked for is done.
    pub(crate) async fn run(
        mut self,
        mut ops: mpsc::Receiver<Op>,
        mut chores: mpsc::Receiver<Chore>,
        mut stop: watch::Receiver<bool>,
    ) -> Connection {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut drained = Vec::with_capacity(OPS_PER_COMMIT_MAX);
        loop {
            tokio::select! {
                biased;
                _ = sweep.tick() => self.look_at_time(),
                Some(chore) = chores.recv() => self.chore(chore),
                // Nothing new is taken; what was asked before is still done.
                stopped = stop.changed(), if !ops.is_closed() => match stopped {
                    Ok(()) => ops.close(),
                    Err(_) => return self.connection,
                },
                count = ops.recv_many(&mut drained, OPS_PER_COMMIT_MAX) => {
                    if count == 0 {
                        return self.connection;
                    }
                    self.groups(std::mem::take(&mut drained));
                    drained.reserve(OPS_PER_COMMIT_MAX);
                    if self.condition == Condition::Working {
                        self.tend_the_wal();
                    }
                }
            }
            if self.condition == Condition::Lost {
                return self.leave_the_wal();
            }
        }
    }

    /// Gives up the connection so that closing it does not do what a new start must.
    fn leave_the_wal(self) -> Connection {
        let leave = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        if let Err(error) = self.connection.set_db_config(leave, true) {
            tracing::error!(%error, "SQLite does not leave the WAL as it is");
        }
        self.connection
    }

    /// What time alone does: leases and messages that run out, the disk, the WAL, retention.
    fn look_at_time(&mut self) {
        match &self.condition {
            Condition::Broken(_) => self.reopen(),
            Condition::Full => self.look_for_space(),
            Condition::Working | Condition::Lost => {}
        }
        if matches!(self.condition, Condition::Broken(_) | Condition::Lost) {
            return;
        }
        // Before the first configuration nobody knows the policies by which time ends things.
        if self.own_leases_ended {
            self.sweep();
            self.purge_some();
        }
        if let Err(error) = self.tell_damage() {
            self.failed(&error);
        }
        self.memory.forget_batches();
        let wal = self.data_dir.wal().metadata().map_or(0, |metadata| metadata.len());
        self.health.set_wal_bytes(wal);
        self.tend_the_wal();
    }

    /// The larger part of the WAL is brought into the database beside the writer, the rest here.
    fn tend_the_wal(&mut self) {
        match &mut self.backfill {
            Some(backfill) => backfill.tend(database::wal_pages()),
            None if database::wal_is_long() => self.checkpoint_the_wal(),
            None => {}
        }
    }

    fn backfilled(&mut self, done: Result<(), BackfillError>) {
        if let Some(backfill) = &mut self.backfill {
            backfill.ended();
        }
        match done {
            Ok(()) => self.wal = Checkpointed::Whole,
            Err(BackfillError::Checkpoint(error)) => return self.checkpoint_failed(error.into()),
            Err(error @ BackfillError::Sync(_)) => {
                self.wal = Checkpointed::Partly;
                return self.checkpoint_failed(CommitError::Broken(error.to_string()));
            }
        }
        let open = matches!(self.condition, Condition::Working | Condition::Full);
        if open && database::wal_is_long() {
            self.checkpoint_the_wal();
        }
    }

    /// Brings the WAL into the database. A checkpoint that failed is simply made again: it starts where the last good one ended.
    /// Unless that one could not be whole: then pages that it wrote may be among those that the failed sync has lost, and only
    /// a start, which reads the whole WAL, writes them anew.
    fn checkpoint_the_wal(&mut self) {
        let checkpoint = || database::checkpoint(&self.connection, CheckpointMode::Passive);
        match gatepost_faults::during("store.wal_checkpoint", checkpoint) {
            Ok(brought) => self.wal = brought.how,
            Err(error) => self.checkpoint_failed(error.into()),
        }
    }

    fn checkpoint_failed(&mut self, error: CommitError) {
        if matches!(error, CommitError::Broken(_)) && self.wal == Checkpointed::Partly {
            tracing::error!(?error, "the database lost what it was given: only a new start can repair it");
            self.condition = Condition::Lost;
        } else {
            self.failed(&error);
        }
    }

    fn chore(&mut self, chore: Chore) {
        match chore {
            Chore::Backfilled(done) => self.backfilled(done),
            // The next bundle's word covers this one's leaves too.
            Chore::LeavesFiled { .. } if matches!(self.condition, Condition::Broken(_)) => {}
            Chore::LeavesFiled { below } => {
                let below = i64::try_from(below).unwrap_or(i64::MAX);
                if let Err(error) = self.execute(crate::sql::LEAVES_DROP, rusqlite::params![below]) {
                    self.failed(&error);
                }
            }
        }
    }

    /// Takes note of a failure; what was asked for has been answered with it.
    fn failed(&mut self, error: &CommitError) {
        match error {
            // Only a database that has been opened anew is sound again: memory may be behind it.
            CommitError::Full if matches!(self.condition, Condition::Broken(_)) => {}
            CommitError::Full => {
                if self.condition != Condition::Full {
                    tracing::error!("the disk is full: accepting stops, settling goes on from the reserve");
                    if let Err(error) = self.data_dir.release_reserve() {
                        tracing::error!(%error, "the reserve cannot be released");
                    }
                }
                self.condition = Condition::Full;
                self.health.set_obstacle(Some("the disk is full".to_owned()));
            }
            CommitError::Broken(text) => {
                tracing::error!(error = %text, "the database failed; it is opened anew");
                self.condition = Condition::Broken(text.clone());
                self.health.set_obstacle(Some(format!("the database failed: {text}")));
            }
            CommitError::Refused(text) => tracing::error!(error = %text, "a commit was refused"),
        }
    }

    fn look_for_space(&mut self) {
        let free = free_bytes(self.data_dir.root());
        if free < FREE_BYTES_TO_RESUME {
            return;
        }
        if let Err(error) = self.data_dir.keep_reserve() {
            tracing::warn!(%error, "the reserve cannot be set aside yet");
            return;
        }
        tracing::info!(free_bytes = free, "the disk has space again: accepting resumes");
        self.condition = Condition::Working;
        self.health.set_obstacle(None);
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The row that operators see of a queue.
    fn queue_row(memory: &mut Memory, id: i64, now: Timestamp) -> Option<QueueRow> {
        let rates = memory.rates.entry(id).or_default().per_second(now);
        let queue = memory.queues.get(&id)?;
        let count = |value: i64| u64::try_from(value).unwrap_or(0);
        let counts = &queue.counts;
        let stats = QueueStats {
            waiting: count(counts.waiting),
            leased: count(counts.leased),
            sending: count(counts.sending),
            in_doubt: count(counts.in_doubt),
            held: count(counts.held),
            dead: count(counts.dead),
            oldest: None,
            oldest_ready: None,
            held_lanes: count(counts.held_lanes),
            paused: queue.control.paused_since.is_some(),
            tripped: queue.control.trip.map(|trip| trip.reason),
            accepted_per_s: rates.0,
            settled_per_s: rates.1,
        };
        Some(QueueRow { name: queue.setup.name.clone(), kind: queue.setup.kind, stats })
    }

    fn publish_queues(&mut self) {
        let now = self.now();
        let ids: Vec<i64> = self.memory.queues.keys().copied().collect();
        let rows = ids.into_iter().filter_map(|id| Self::queue_row(&mut self.memory, id, now));
        self.health.set_queues(rows.map(|row| (row.name.clone(), row)).collect());
    }
}

/// Free bytes of the file system that holds `path`, for those without privileges; 0 when it cannot be asked.
fn free_bytes(path: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |stat| stat.blocks_available() * stat.fragment_size())
}

fn unavailable(condition: &Condition) -> Option<StoreError> {
    match condition {
        Condition::Working | Condition::Full => None,
        Condition::Broken(text) => Some(StoreError::ReadOnly(text.clone())),
        Condition::Lost => Some(StoreError::Stopping),
    }
}
