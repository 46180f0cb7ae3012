//! Who leases what: a queue's deliveries are shared out in buckets among the nodes that have a consumer of it.
//!
//! A bucket has one owner, who alone says what is ready in its lanes and leases it. It changes hands by its owner's own word,
//! between two of its transactions, or when its owner's lease is over. So nothing that the owner decides has to be checked against
//! another node; and what others write for its lanes they leave it a note of, in the same commit.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::commit::{Lane, advance, queue_id};
use super::row::{BUCKETS, Cells, bucket_of_lane};
use super::{Owned, Postgres, WATCH_INTERVAL, sql};
use crate::backend::{Backend as _, CommitError};
use crate::seal::{Index, Place};
use crate::writer::{Holds, Memory, Queue};

/// Lanes that others have changed, brought in line in one transaction.
const LANES_MAX: i64 = 1000;
/// Deliveries of a lane that may have come to stand before one that was ready: so many may be accepted by other nodes at the
/// same time.
const LANE_SLACK: u32 = 64;

/// A set of a queue's buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Buckets(u64);

impl Buckets {
    pub(super) fn has(self, bucket: i16) -> bool {
        self.0 & bit(bucket) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn list(self) -> Vec<i16> {
        (0..i16::from(BUCKETS)).filter(|bucket| self.has(*bucket)).collect()
    }

    fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Those that are a node's, of all nodes that consume. Each node reckons the same (rendezvous hashing): one that comes takes
    /// its share from every other, one that goes leaves its own to them.
    fn of(node: i32, consumers: &BTreeSet<i32>) -> Self {
        let weight = |node: i32, bucket: i16| {
            let mut of = [0; 6];
            of[..4].copy_from_slice(&node.to_be_bytes());
            of[4..].copy_from_slice(&bucket.to_be_bytes());
            (xxh3_64(&of), node)
        };
        let is_its = |bucket: &i16| {
            consumers.iter().max_by_key(|other| weight(**other, *bucket)).is_some_and(|best| *best == node)
        };
        (0..i16::from(BUCKETS)).filter(is_its).collect()
    }
}

impl FromIterator<i16> for Buckets {
    fn from_iter<T: IntoIterator<Item = i16>>(buckets: T) -> Self {
        Self(buckets.into_iter().fold(0, |set, bucket| set | bit(bucket)))
    }
}

fn bit(bucket: i16) -> u64 {
    1 << (bucket.rem_euclid(i16::from(BUCKETS)))
}

/// What this node knows of who consumes what.
#[derive(Default)]
pub(super) struct Sharing {
    /// Queues that it is noted as a consumer of; `None` when only the database knows.
    noted: Option<BTreeSet<i64>>,
    looked_at: Option<Instant>,
}

impl Sharing {
    /// Of a node that has just come.
    pub(super) fn new() -> Self {
        Self { noted: Some(BTreeSet::new()), looked_at: None }
    }

    fn notes(&self, queue: i64) -> bool {
        self.noted.as_ref().is_some_and(|noted| noted.contains(&queue))
    }
}

impl Postgres {
    /// Somebody here asks for deliveries of a queue: if that is new, the node takes its share of the buckets at once.
    pub(super) fn take_share(&mut self, memory: &Memory, queue: i64) -> Result<(), CommitError> {
        if self.sharing.notes(queue) {
            return Ok(());
        }
        let mut consumed: Vec<i64> = self.sharing.noted.iter().flatten().copied().collect();
        consumed.push(queue);
        self.balance(memory, &consumed).map(drop)
    }

    /// Whether it is time to look again.
    pub(super) fn balance_is_due(&self) -> bool {
        self.left_notes || self.sharing.looked_at.is_none_or(|at| at.elapsed() >= WATCH_INTERVAL)
    }

    /// Whether there is anything to share out.
    pub(super) fn has_to_balance(&self, consumed: &[i64]) -> bool {
        let has_nothing =
            self.sharing.noted.as_ref().is_some_and(BTreeSet::is_empty) && self.owned.is_empty();
        !(consumed.is_empty() && has_nothing)
    }

    /// Brings what this node owns in line with who consumes what; the queues in which that changed something.
    pub(super) fn balance(&mut self, memory: &Memory, consumed: &[i64]) -> Result<Vec<i64>, CommitError> {
        self.known.forget();
        self.begin(&Holds::default())?;
        let balanced = self.balance_open(memory, consumed);
        let balanced = self.end(balanced);
        if balanced.is_err() {
            self.sharing = Sharing::default();
        }
        balanced
    }

    fn balance_open(&mut self, memory: &Memory, consumed: &[i64]) -> Result<Vec<i64>, CommitError> {
        let consumed: BTreeSet<i64> = consumed.iter().copied().collect();
        if self.sharing.noted.is_none() {
            self.owned = self.load_owned()?;
        }
        self.note_consumers(&consumed)?;
        let consumers = self.consumers()?;
        let mut changed = Vec::new();
        let known: BTreeSet<i64> = consumed.iter().chain(self.owned.keys()).copied().collect();
        for queue in known {
            let nodes = consumers.get(&queue).filter(|_| consumed.contains(&queue));
            let share = nodes.map_or_else(Buckets::default, |nodes| Buckets::of(self.node(), nodes));
            let owned = self.owned.get(&queue).copied().unwrap_or_default();
            let surplus = owned.without(share);
            if !surplus.is_empty() {
                self.release(queue, surplus)?;
            }
            let missing = share.without(owned);
            let taken = if missing.is_empty() { Buckets::default() } else { self.acquire(queue, missing)? };
            if !(surplus.is_empty() && taken.is_empty()) {
                self.handed_over_at = Instant::now();
            }
            let owned = Buckets(owned.without(surplus).0 | taken.0);
            if owned.is_empty() {
                self.owned.remove(&queue);
            } else {
                self.owned.insert(queue, owned);
            }
            if !taken.is_empty() {
                changed.push(queue);
            }
        }
        changed.extend(self.take_notes(memory)?);
        self.sharing.noted = Some(consumed);
        self.sharing.looked_at = Some(Instant::now());
        self.left_notes = false;
        Ok(changed)
    }

    fn note_consumers(&mut self, consumed: &BTreeSet<i64>) -> Result<(), CommitError> {
        if self.sharing.noted.as_ref() == Some(consumed) {
            return Ok(());
        }
        let queues: Vec<i32> = consumed.iter().map(|queue| queue_id(*queue)).collect();
        let node = self.node();
        self.connection.execute(sqlx::query(sql::CONSUMERS_DROP).bind(node).bind(queues.clone()))?;
        self.connection.execute(sqlx::query(sql::CONSUMERS_ADD).bind(node).bind(queues)).map(drop)
    }

    fn load_owned(&mut self) -> Result<Owned, CommitError> {
        let mut owned = Owned::new();
        for row in self.connection.rows(sqlx::query(sql::BUCKETS_OWNED).bind(self.node()))? {
            let mut cells = Cells::new(&row);
            let (queue, bucket): (i32, i16) = (cells.take()?, cells.take()?);
            owned.entry(i64::from(queue)).or_default().0 |= bit(bucket);
        }
        Ok(owned)
    }

    /// The nodes that consume each queue.
    fn consumers(&mut self) -> Result<BTreeMap<i64, BTreeSet<i32>>, CommitError> {
        let mut consumers: BTreeMap<i64, BTreeSet<i32>> = BTreeMap::new();
        for row in self.connection.rows(sqlx::query(sql::CONSUMERS))? {
            let mut cells = Cells::new(&row);
            let (queue, node): (i32, i32) = (cells.take()?, cells.take()?);
            consumers.entry(i64::from(queue)).or_default().insert(node);
        }
        Ok(consumers)
    }

    fn release(&mut self, queue: i64, buckets: Buckets) -> Result<(), CommitError> {
        let statement =
            sqlx::query(sql::BUCKETS_RELEASE).bind(queue_id(queue)).bind(self.node()).bind(buckets.list());
        self.connection.execute(statement).map(drop)
    }

    /// Takes those that nobody owns.
    fn acquire(&mut self, queue: i64, buckets: Buckets) -> Result<Buckets, CommitError> {
        let statement =
            sqlx::query(sql::BUCKETS_ACQUIRE).bind(queue_id(queue)).bind(self.node()).bind(buckets.list());
        let taken = self.connection.rows(statement)?;
        Ok(taken.iter().map(|row| Cells::new(row).take()).collect::<Result<Buckets, _>>()?)
    }

    /// Looks who is ready in the lanes of which others have left a note; their queues.
    pub(super) fn take_notes(&mut self, memory: &Memory) -> Result<Vec<i64>, CommitError> {
        let owned = self
            .owned
            .iter()
            .flat_map(|(queue, buckets)| buckets.list().into_iter().map(|bucket| (queue_id(*queue), bucket)));
        let (queues, buckets): (Vec<i32>, Vec<i16>) = owned.unzip();
        if queues.is_empty() {
            return Ok(Vec::new());
        }
        let statement = sqlx::query(sql::LANES_CHANGED_TAKE).bind(queues).bind(buckets).bind(LANES_MAX);
        let mut changed: BTreeSet<(i64, Index)> = BTreeSet::new();
        for row in self.connection.rows(statement)? {
            let mut cells = Cells::new(&row);
            let queue = i64::from(cells.take::<i32>()?);
            let place = Place { table: "lane_changed", column: "lane", row: queue };
            changed.insert((queue, cells.take_bytes(place)?));
        }
        let lanes: Vec<Lane<'_>> = changed
            .iter()
            .map(|(queue, name)| {
                let of = memory.queues.get(queue);
                let width = of.map_or(1, |of| of.setup.policy.window.max(1));
                let session = of.map_or(0, |of| of.session);
                let succeeds = of.is_some_and(Queue::succeeds_itself);
                Lane { queue: *queue, name, width, widest: width + LANE_SLACK, session, succeeds }
            })
            .collect();
        advance(&mut self.connection, &lanes, &self.owned)?;
        debug_assert!(changed.iter().all(|(queue, lane)| {
            self.owned.get(queue).is_some_and(|owned| owned.has(bucket_of_lane(lane)))
        }));
        let mut queues: Vec<i64> = changed.into_iter().map(|(queue, _)| queue).collect();
        queues.dedup();
        Ok(queues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_has_one_owner_and_a_node_that_goes_moves_only_its_own() {
        let nodes: BTreeSet<i32> = [-7, 1, 2_000_000_000].into();
        let shares: Vec<Buckets> = nodes.iter().map(|node| Buckets::of(*node, &nodes)).collect();
        for bucket in 0..i16::from(BUCKETS) {
            assert_eq!(shares.iter().filter(|share| share.has(bucket)).count(), 1, "bucket {bucket}");
        }
        assert!(shares.iter().all(|share| share.list().len() > 8), "{shares:?}");
        let left: BTreeSet<i32> = [-7, 1].into();
        for node in &left {
            let before = Buckets::of(*node, &nodes);
            assert!(before.without(Buckets::of(*node, &left)).is_empty(), "what it had it keeps");
        }
        assert_eq!(Buckets::of(1, &[1].into()).list().len(), usize::from(BUCKETS));
    }
}
