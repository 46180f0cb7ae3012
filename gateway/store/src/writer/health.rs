//! What the writer shows of itself to everybody else, without a lock on its way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::durability::{Durability, DurabilityCell};
use crate::ops::{AdapterRole, QueueRow, SenderRow};

/// Damaged rows that are named; of more, the rest is only logged.
const DAMAGED_MAX: usize = 1000;

/// Counters and state of the writer. Cheap to read at any time.
#[derive(Default)]
pub struct Health {
    commits: AtomicU64,
    operations: AtomicU64,
    commit_micros: AtomicU64,
    accepted: AtomicU64,
    settled: AtomicU64,
    audit_size: AtomicU64,
    checkpoint_size: AtomicU64,
    wal_bytes: AtomicU64,
    obstacle: Mutex<Option<String>>,
    damaged: Mutex<BTreeSet<(&'static str, String)>>,
    audit_obstacle: Mutex<Option<String>>,
    queues: RwLock<HashMap<String, QueueRow>>,
    senders: RwLock<BTreeMap<String, SenderRow>>,
    durability: DurabilityCell,
    oldest_snapshot: Mutex<Option<Duration>>,
    right: Mutex<Right>,
}

/// This gateway's right to write, among several nodes.
#[derive(Clone, Copy, Default)]
struct Right {
    node: u32,
    /// `None`: nobody can take it away.
    until: Option<Instant>,
}

impl Health {
    /// Whether what was claimed is still this gateway's. It says so a little earlier than anybody else may take it.
    pub fn role_stands(&self, role: AdapterRole) -> bool {
        let right = *self.right.lock().unwrap_or_else(PoisonError::into_inner);
        right.node == role.node && right.until.is_none_or(|until| Instant::now() < until)
    }

    /// This gateway's number among the nodes of its database.
    pub(crate) fn node(&self) -> u32 {
        self.right.lock().unwrap_or_else(PoisonError::into_inner).node
    }

    pub(crate) fn set_right(&self, node: u32, until: Option<Instant>) {
        *self.right.lock().unwrap_or_else(PoisonError::into_inner) = Right { node, until };
    }

    /// `Err` says why messages are not accepted.
    pub fn accepting(&self) -> Result<(), String> {
        self.obstacle.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    /// Rows found damaged since start, by table and number.
    pub fn damaged(&self) -> Vec<(&'static str, String)> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(crate) fn damage_found(&self, table: &'static str, row: &str) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if damaged.len() < DAMAGED_MAX {
            damaged.insert((table, row.to_owned()));
        }
    }

    /// `Err` says why the audit log's files are not written; what has been committed waits for them in the database.
    pub fn signing(&self) -> Result<(), String> {
        self.audit_obstacle.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Operations that commits carried.
    pub fn ops(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Time spent in commit calls, microseconds in all.
    pub fn commit_micros(&self) -> u64 {
        self.commit_micros.load(Ordering::Relaxed)
    }

    /// Deliveries accepted since start.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Deliveries that have ended since start.
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Relaxed)
    }

    /// Leaves in the audit log.
    pub fn audit_size(&self) -> u64 {
        self.audit_size.load(Ordering::Relaxed)
    }

    /// Leaves that the newest checkpoint covers.
    pub fn checkpoint_size(&self) -> u64 {
        self.checkpoint_size.load(Ordering::Relaxed)
    }

    pub fn wal_bytes(&self) -> u64 {
        self.wal_bytes.load(Ordering::Relaxed)
    }

    /// What commits were worth at the last look.
    pub fn durability(&self) -> Durability {
        self.durability.read()
    }

    /// What each sender has handed in and is not settled, by name; also of those that have left the configuration.
    pub fn senders(&self) -> Vec<SenderRow> {
        self.senders.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// How long the oldest of whoever keeps PostgreSQL from removing dead rows has done so; of SQLite, nothing.
    pub fn oldest_snapshot(&self) -> Option<Duration> {
        *self.oldest_snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn queue_rows(&self) -> Vec<QueueRow> {
        self.queues.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn set_queues(&self, rows: HashMap<String, QueueRow>) {
        *self.queues.write().unwrap_or_else(PoisonError::into_inner) = rows;
    }

    pub(crate) fn update_queues(&self, rows: impl Iterator<Item = QueueRow>) {
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            queues.insert(row.name.clone(), row);
        }
    }

    pub(crate) fn update_senders(&self, rows: Vec<SenderRow>) {
        if rows.is_empty() {
            return;
        }
        let mut senders = self.senders.write().unwrap_or_else(PoisonError::into_inner);
        senders.extend(rows.into_iter().map(|row| (row.sender.clone(), row)));
    }

    pub(crate) fn committed(&self, operations: u64, micros: u64, accepted: u64, settled: u64) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.operations.fetch_add(operations, Ordering::Relaxed);
        self.commit_micros.fetch_add(micros, Ordering::Relaxed);
        self.accepted.fetch_add(accepted, Ordering::Relaxed);
        self.settled.fetch_add(settled, Ordering::Relaxed);
    }

    pub(crate) fn set_audit_size(&self, size: u64) {
        self.audit_size.store(size, Ordering::Relaxed);
    }

    pub(crate) fn set_checkpoint_size(&self, size: u64) {
        self.checkpoint_size.store(size, Ordering::Relaxed);
    }

    pub(crate) fn set_wal_bytes(&self, bytes: u64) {
        self.wal_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_durability(&self, durability: Durability) {
        self.durability.set(durability);
    }

    pub(crate) fn set_oldest_snapshot(&self, held: Duration) {
        *self.oldest_snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    pub(crate) fn set_obstacle(&self, obstacle: Option<String>) {
        *self.obstacle.lock().unwrap_or_else(PoisonError::into_inner) = obstacle;
    }

    pub(crate) fn set_audit_obstacle(&self, obstacle: Option<String>) {
        *self.audit_obstacle.lock().unwrap_or_else(PoisonError::into_inner) = obstacle;
    }
}
