//! The writer: one thread that owns the one connection which writes.
//!
//! It drains what waits, decides it against memory and a few reads, commits it in one call, and answers all of it
//! afterwards (group commit; no timers while there is work). Where the database can be left to its work, the next group is decided
//! meanwhile. Between commits it sweeps what time has ended.

mod accept;
mod ahead;
mod bulk;
mod candidates;
mod cold;
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
mod needs;
mod outcome;
mod piecemeal;
mod pieces;
mod purge;
mod recall;
mod refuse;
mod rehome;
mod settle;
mod shred;
#[cfg(test)]
mod sim;
mod turn;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gatepost_core::principal::Actor;
use gatepost_core::{DeliveryId, LeaseToken, Timestamp};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc, watch};

pub(crate) use ahead::UnderWay;
use bulk::Bulk;
#[cfg(test)]
pub(crate) use cold::fetch;
use group::{GROUP_BYTES_MAX, payload_bytes};
pub use health::Health;
pub(crate) use keys::Keys;
pub(crate) use memory::{Counts, Memory, Queue};
pub(crate) use needs::{Holds, Lanes};
#[cfg(test)]
pub(crate) use piecemeal::Sizes;
pub(crate) use piecemeal::{Piece, Piecemeal};
#[cfg(test)]
pub(crate) use sim::at_commit as sim_at_commit;
pub(crate) use turn::{Detail, DetailBody, MessageRow, Reply, Touched, Turn};

use crate::backend::{Backend, CommitError, Tended};
use crate::call::Op;
use crate::clock::Clock;
use crate::hints::Hints;
use crate::leaves::Handed;
use crate::ops::{QueueKind, QueueRow, QueueStats, StoreError};
use crate::random::Random;
use crate::recent::Recent;
use crate::seal::Vault;

/// Most operations in one commit.
const OPS_PER_COMMIT_MAX: usize = 512;
/// Operations that may wait for the writer before senders wait themselves.
pub(crate) const OPS_WAITING_MAX: usize = 4096;
/// How long a queue counts as consumed after it was asked for deliveries.
const CONSUMER_STAYS: Duration = Duration::from_millis(700);
/// How often time is looked at, on average.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// By how much of it the next look may come earlier or later, so that the nodes of a database do not ask it in step.
const SWEEP_JITTER: f64 = 0.2;
/// Most deliveries that one sweep ends in one commit.
const SWEEP_DELIVERIES_MAX: u32 = 500;
/// Most commits of one sweep, so that a flood that expires at once does not keep callers waiting.
const SWEEP_COMMITS_MAX: usize = 4;
/// How long turns follow each other without a break in which the database is tended.
const TEND_INTERVAL: Duration = Duration::from_millis(100);

/// Requests to the writer from the store's own background work.
pub(crate) enum Chore {
    /// Leaves below this index stand in durable files.
    LeavesFiled { below: u64 },
    /// Another node has written something of these queues that may be this one's to lease.
    Woken { queues: Vec<i64> },
}

pub(crate) struct Writer<B> {
    pub(crate) database: B,
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
    /// When each queue was asked for deliveries last.
    pub(crate) asked: HashMap<i64, Timestamp>,
    pub(crate) under_way: Option<UnderWay>,
    pub(crate) piecemeal: Piecemeal,
    /// The next turn is decided before the last one has come about, where the database can.
    pub(crate) decides_ahead: bool,
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
pub(crate) struct WriterThread<B> {
    thread: Option<JoinHandle<B>>,
    stop: Option<watch::Sender<bool>>,
}

impl<B: Backend> WriterThread<B> {
    /// Lets the writer do what was asked of it and gives its database back; `None` if it did not end well.
    pub(crate) async fn stop(mut self) -> Option<B> {
        let (thread, stop) = (self.thread.take()?, self.stop.take()?);
        let joined = tokio::task::spawn_blocking(move || {
            stop.send_replace(true);
            thread.join()
        });
        joined.await.ok()?.ok()
    }
}

impl<B> Drop for WriterThread<B> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has said itself what went wrong, if anything.
            drop(thread.join());
        }
    }
}

/// Leases that time does not end: whoever held them has said in time what became of them.
pub(crate) type Reported = HashSet<(DeliveryId, LeaseToken)>;

/// What the writer does next.
enum Next {
    Sweep,
    Chore(Chore),
    Ops,
    /// Large messages, whose turn it is.
    Bulk,
    /// Pieces of large messages, while nobody else asks for anything.
    Pieces,
    /// Nothing more is to be asked.
    Close,
    End,
}

impl<B: Backend> Writer<B> {
    /// Starts the writer's thread. A runtime of its own wakes it, so that nothing else waits behind its disk.
    pub(crate) fn start(
        self,
        ops: mpsc::Receiver<Op>,
        chores: mpsc::Receiver<Chore>,
    ) -> std::io::Result<WriterThread<B>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || self.run(&runtime, ops, chores, stopped))?;
        Ok(WriterThread { thread: Some(thread), stop: Some(stop) })
    }

    /// Runs until it is told to stop, or every handle of the store is gone, and what was asked for is done. Only waiting is
    /// asynchronous.
    fn run(
        mut self,
        runtime: &Runtime,
        mut ops: mpsc::Receiver<Op>,
        mut chores: mpsc::Receiver<Chore>,
        mut stop: watch::Receiver<bool>,
    ) -> B {
        let mut sweep = runtime.block_on(async { tokio::time::interval(SWEEP_INTERVAL) });
        let mut drained = Vec::with_capacity(OPS_PER_COMMIT_MAX);
        let mut bulk = Bulk::new(Instant::now());
        // Whoever opens a store without a configuration sees what is in it.
        self.publish_queues();
        let (mut looks_at, mut tended_at) = (Instant::now(), Instant::now());
        let pieces_bell = self.database.pieces_bell();
        loop {
            self.pieces_beside(ops.is_closed());
            if self.under_way.is_some() {
                let is_time_to_tend = tended_at.elapsed() >= TEND_INTERVAL || self.database.has_left_notes();
                let others_wait = !chores.is_empty() || stop.has_changed().unwrap_or(true);
                if is_time_to_tend || others_wait || Instant::now() >= looks_at {
                    self.settle_under_way();
                } else {
                    self.gather(&mut ops, &mut drained);
                }
                // What has just come about may have left something to be made ready, before anybody asks what is.
                let has_left_notes = self.under_way.is_none() && self.database.has_left_notes();
                if (is_time_to_tend || has_left_notes) && self.condition == Condition::Working {
                    self.tend();
                    tended_at = Instant::now();
                }
            }
            // Whoever asks no more gets what was asked for.
            let closing = ops.is_closed();
            let at_once = |time| if closing { Instant::now() } else { time };
            let turn = bulk.turn().map(at_once);
            let pieces = self.piecemeal.due(Instant::now()).map(at_once);
            let beside = self.piecemeal.is_written_beside();
            let next = async {
                if turn.is_some_and(|turn| turn <= Instant::now()) {
                    return Next::Bulk;
                }
                if !drained.is_empty() {
                    return Next::Ops;
                }
                // A timer would take a millisecond for what is due already.
                let now = Instant::now();
                let others_wait = !ops.is_empty() || !chores.is_empty() || stop.has_changed().unwrap_or(true);
                if pieces.is_some_and(|due| due <= now) && now < looks_at && !others_wait {
                    return Next::Pieces;
                }
                tokio::select! {
                    biased;
                    _ = sweep.tick() => Next::Sweep,
                    Some(chore) = chores.recv() => Next::Chore(chore),
                    // Nothing new is taken; what was asked before is still done.
                    stopped = stop.changed(), if !ops.is_closed() => match stopped {
                        Ok(()) => Next::Close,
                        Err(_) => Next::End,
                    },
                    () = at(turn) => Next::Bulk,
                    () = pieces_bell.notified(), if beside => Next::Pieces,
                    count = ops.recv_many(&mut drained, OPS_PER_COMMIT_MAX) => match count {
                        // Closed meanwhile.
                        0 if turn.is_some() => Next::Bulk,
                        0 if pieces.is_some() => Next::Pieces,
                        0 if beside => {
                            pieces_bell.notified().await;
                            Next::Pieces
                        }
                        0 => Next::End,
                        _ => Next::Ops,
                    },
                    // Behind all others: pieces ride along with what they ask for.
                    () = at(pieces) => Next::Pieces,
                }
            };
            let mut wrote = false;
            match runtime.block_on(next) {
                Next::Sweep => {
                    self.look_at_time(&bulk);
                    let pause = self.until_next_look();
                    sweep.reset_after(pause);
                    looks_at = Instant::now() + pause;
                }
                Next::Chore(chore) => self.chore(chore),
                Next::Close => ops.close(),
                Next::End => return self.database,
                Next::Bulk => {
                    wrote = true;
                    let began = Instant::now();
                    self.group(bulk.take(GROUP_BYTES_MAX));
                    self.whole_ops();
                    while drained.len() < OPS_PER_COMMIT_MAX
                        && let Ok(op) = ops.try_recv()
                    {
                        drained.push(op);
                    }
                    self.part(&mut drained, &mut bulk);
                    bulk.ended(Instant::now(), began.elapsed(), !drained.is_empty());
                }
                // Where they are written beside the turns that has its own place.
                Next::Pieces if self.database.writes_beside() => {}
                Next::Pieces => {
                    wrote = true;
                    self.pieces_alone(closing);
                }
                Next::Ops => {
                    self.part(&mut drained, &mut bulk);
                    self.groups_with_pieces(std::mem::take(&mut drained));
                    drained.reserve(OPS_PER_COMMIT_MAX);
                    wrote = true;
                }
            }
            if wrote && self.condition == Condition::Working && self.under_way.is_none() {
                self.tend();
                tended_at = Instant::now();
            }
            if self.condition == Condition::Lost {
                self.database.abandon();
                return self.database;
            }
        }
    }

    /// Takes what is large out of what has come.
    fn part(&mut self, ops: &mut Vec<Op>, bulk: &mut Bulk<Op>) {
        self.piecemeal.part(ops);
        bulk.part(ops, payload_bytes);
    }

    fn until_next_look(&mut self) -> Duration {
        // Without random numbers nothing can be leased either; the look goes on.
        let random = self.random.jitter().unwrap_or(0.5);
        SWEEP_INTERVAL.mul_f64(1.0 - SWEEP_JITTER + 2.0 * SWEEP_JITTER * random)
    }

    /// What time alone does: leases and messages that run out, the disk, the WAL, retention.
    fn look_at_time(&mut self, bulk: &Bulk<Op>) {
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
            let reported = self.reported(bulk);
            self.sweep(&reported);
            self.purge_some();
        }
        self.drop_pieces();
        if let Err(error) = self.tell_damage() {
            self.failed(&error);
        }
        self.memory.forget_batches();
        self.health.set_wal_bytes(self.database.log_bytes());
        self.tend();
    }

    /// Leases of which the outcome has come and waits for its turn.
    fn reported(&self, bulk: &Bulk<Op>) -> Reported {
        let in_bulk = bulk.waiting().filter_map(|op| match op {
            Op::Settle { settle, .. } => Some(settle),
            _ => None,
        });
        let items = self.piecemeal.outcomes().chain(in_bulk).flat_map(|settle| &settle.items);
        items.filter_map(|item| Some((item.delivery, item.token?))).collect()
    }

    fn tend(&mut self) {
        let consumed = if self.database.asks_who_consumes() { self.consumed() } else { Vec::new() };
        match self.database.tend(&mut self.memory, &self.vault, &consumed) {
            Ok(tended) => self.tended(&tended),
            Err(error) => self.failed(&error),
        }
        self.health.set_right(self.instance_epoch, self.database.right_until());
    }

    fn tended(&mut self, tended: &Tended) {
        if tended.took_leases
            && self.own_leases_ended
            && let Err(error) = self.end_others_leases()
        {
            self.failed(&error);
        }
        if tended.queues_changed || tended.took_leases {
            self.publish_queues();
        }
        for id in &tended.changed {
            if let Some(queue) = self.memory.queues.get(id) {
                self.hints.queue_changed(&queue.setup.name);
            }
        }
    }

    fn woken(&mut self, queues: &[i64]) {
        if !matches!(self.condition, Condition::Working | Condition::Full) {
            return;
        }
        let consumed = self.consumed();
        if !consumed.iter().any(|queue| queues.contains(queue)) {
            return;
        }
        match self.database.look(&self.memory, &consumed) {
            Ok(changed) => self.tended(&Tended { changed, ..Tended::default() }),
            Err(error) => self.failed(&error),
        }
    }

    /// Queues that somebody waits for, or has asked for a moment ago.
    fn consumed(&mut self) -> Vec<i64> {
        let now = self.now();
        self.asked.retain(|_, at| now.since(*at) < CONSUMER_STAYS);
        let awaited = self.memory.queues.values().filter(|queue| self.hints.is_awaited(&queue.setup.name));
        let mut consumed: Vec<i64> =
            awaited.map(|queue| queue.id).chain(self.asked.keys().copied()).collect();
        consumed.sort_unstable();
        consumed.dedup();
        consumed
    }

    fn chore(&mut self, chore: Chore) {
        match chore {
            Chore::Woken { queues } => self.woken(&queues),
            // The next bundle's word covers this one's leaves too.
            Chore::LeavesFiled { .. } if matches!(self.condition, Condition::Broken(_)) => {}
            Chore::LeavesFiled { below } => {
                if let Err(error) = self.database.leaves_filed(below) {
                    self.failed(&error);
                }
            }
        }
    }

    /// Takes note of a failure; what was asked for has been answered with it.
    fn failed(&mut self, error: &CommitError) {
        if matches!(error, CommitError::Broken(_) | CommitError::Fenced(_) | CommitError::Lost(_)) {
            // What of them is there is found, and removed, when the database is opened anew.
            self.give_up_pieces(&StoreError::from(error.clone()), |_| true);
        }
        match error {
            // Only a database that has been opened anew is sound again: memory may be behind it.
            CommitError::Full if matches!(self.condition, Condition::Broken(_)) => {}
            CommitError::Full => {
                if self.condition != Condition::Full {
                    tracing::error!("the disk is full: accepting stops, settling goes on from the reserve");
                    self.database.release_reserve();
                }
                self.condition = Condition::Full;
                self.health.set_obstacle(Some("the disk is full".to_owned()));
            }
            CommitError::Broken(text) | CommitError::Fenced(text) => {
                tracing::error!(error = %text, "the database failed; it is opened anew");
                self.condition = Condition::Broken(text.clone());
                self.health.set_obstacle(Some(format!("the database failed: {text}")));
            }
            CommitError::Lost(text) => {
                tracing::error!(error = %text, "the database lost what it was given: only a new start can repair it");
                self.condition = Condition::Lost;
            }
            CommitError::Stale(text) => {
                tracing::debug!(text, "others have written meanwhile");
                if let Err(error) = self.catch_up() {
                    self.failed(&error);
                }
            }
            CommitError::Refused(text) => tracing::error!(error = %text, "a commit was refused"),
        }
    }

    fn look_for_space(&mut self) {
        match self.database.has_space() {
            Ok(true) => {
                tracing::info!("accepting resumes");
                self.condition = Condition::Working;
                self.health.set_obstacle(None);
            }
            Ok(false) => {}
            Err(error) => self.failed(&error),
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Begins a turn that may be committed: with its numbers, and the time at which everything in it happens.
    fn number(&mut self) -> Result<Timestamp, CommitError> {
        let told = self.database.number(&mut self.memory)?;
        Ok(told.unwrap_or_else(|| self.now()))
    }

    /// The row that operators see of a queue.
    fn queue_row(memory: &mut Memory, id: i64, now: Timestamp) -> Option<QueueRow> {
        let queue = memory.queues.get(&id).filter(|queue| queue.setup.kind != QueueKind::Sender)?;
        let rates = memory.rates.entry(id).or_default().per_second(now);
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
        let senders = self.memory.queues.values().filter_map(memory::Queue::sender_row);
        self.health.update_senders(senders.collect());
    }
}

/// Never, if there is no time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

fn unavailable(condition: &Condition) -> Option<StoreError> {
    match condition {
        Condition::Working | Condition::Full => None,
        Condition::Broken(text) => Some(StoreError::ReadOnly(text.clone())),
        Condition::Lost => Some(StoreError::Stopping),
    }
}
