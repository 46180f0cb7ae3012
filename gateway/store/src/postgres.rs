//! The store on PostgreSQL, which several nodes share.
//!
//! A node's right to write is its row in table `node`: every transaction locks it and looks at its deadline. Nothing is held
//! while anything else than the database is waited for.

mod ahead;
mod buckets;
mod commit;
mod connection;
pub(crate) mod copy;
mod erase;
mod known;
mod lanes;
mod leases;
mod load;
mod node;
pub(crate) mod partitions;
mod pieces;
#[cfg(test)]
mod plans;
pub(crate) mod probe;
mod retention;
pub(crate) mod row;
pub(crate) mod scratch;
mod sequencer;
pub(crate) mod sql;
mod turn;
mod wakeup;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::time::Duration;

use gatepost_core::{DeliveryId, MessageId, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use commit::day_of;
pub(crate) use connection::options;
pub(crate) use node::{Node, NodeError, is_in_use, open, readers};
pub(crate) use sequencer::Sequencer;
pub(crate) use sql::MIGRATIONS;
pub(crate) use wakeup::{Bell, Wakeups};

use crate::backend::{
    Adds, Attributes, Backend, CommitError, EraseFind, Erasing, KeyUse, More, Need, Put, Read, Ready, Sent,
    Tended, ToErase, ToMove,
};
use crate::clock::Clock;
use crate::data_dir::DataDir;
use crate::keyring::{Locator, WrappedTree};
use crate::ops::{QueueKind, StoreError};
use crate::recent::{MESSAGE_BYTES_MAX, RecentMessage};
use crate::row::Row;
use crate::seal::{Index, Place, Salt, Vault, locator_of};
use crate::writer::{Holds, Lanes, Memory, Piece, Queue, Turn};
use ahead::Ahead;
use buckets::{Buckets, Sharing};
use commit::{queue_id, whole};
use connection::Connection;
use known::Known;
use leases::LeaseGroups;
use pieces::Pieces;
use row::Cells;
use turn::{Drawn, Unopened};

/// Bits of a number below those of its turn.
const TURN_BITS: u32 = 20;
/// Most positions looked at for a part of a queue, whosever they are, so that nobody waits long for the writer.
const POSITIONS_MAX: i64 = 10_000;
/// What is looked at of a bucket for a lease: so many times its share of what was asked for, and at least so many.
const SHARE_SLACK: u32 = 2;
const SHARE_MIN: u32 = 4;
/// Turns that look for what others have written, after one that has met with it: what is handed in again comes in crowds.
const WARY_TURNS: u32 = 64;
/// How often a node renews its lease.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// How often a node looks after the others, and at what they have done to the queues: at most; an idle one with the writer's look at
/// time, whose shortest pause this is.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Roles in table `role`: who numbers the audit log, who looks after retention, and, with its name, who runs an adapter that runs
/// once.
pub(crate) const ROLE_SEQUENCER: &str = "sequencer";
const ROLE_RETENTION: &str = "retention";
pub(crate) const ROLE_OF_ADAPTER: &str = "adapter:";

/// Buckets that this node owns, by queue.
type Owned = HashMap<i64, Buckets>;

pub(crate) struct Postgres {
    connection: Connection,
    vault: Vault,
    clock: Clock,
    data_dir: DataDir,
    name: String,
    epoch: Arc<AtomicI32>,
    dedup_window: Duration,
    /// Of the turn that is decided now.
    number: i64,
    /// When the newest was that was committed. Of those that failed the time may have been a leap of this host's clock.
    newest: Timestamp,
    /// A number that came with the beginning of the open transaction, or with what a turn has read, and that nobody has taken yet.
    drawn: Option<Drawn>,
    /// Largest number that anything has which was read in the open transaction.
    read_through: i64,
    is_open: bool,
    unopened: Option<Unopened>,
    known: Known,
    /// The number that this node has drawn last, if nobody has taken it yet.
    spare: Option<i64>,
    /// The turn goes by a number that was drawn before: which one will have been drawn last when it is written, if nobody else does.
    last_drawn: Option<i64>,
    /// … and so it must be: the turn has to be behind all that others have done.
    must_be_newest: bool,
    ahead: Ahead,
    /// The turn's time is of this host's clock.
    by_own_clock: bool,
    /// What has used the keys of the turn's messages was looked for.
    keys_are_known: bool,
    /// What a turn without a transaction makes sure of when it is written.
    held: Holds,
    /// When buckets have changed hands last.
    handed_over_at: Instant,
    /// Turns that look, before they are written, for what others have written: some, once one has met with it.
    wary: u32,
    owned: Owned,
    sharing: Sharing,
    /// A turn has left a note of a lane that may be this node's own, and nobody has looked since.
    left_notes: bool,
    /// For the other nodes.
    bell: Arc<Bell>,
    /// There was no other when this one looked last.
    is_alone: bool,
    /// Of the queues' rows, as they were read or written last.
    versions: HashMap<i64, i64>,
    leases: LeaseGroups,
    renewed_at: Instant,
    watched_at: Option<Instant>,
    partitions: partitions::Partitions,
    retention: retention::Retention,
    pieces: Pieces,
}

impl Postgres {
    /// Ends the node in good order: whoever comes next need not wait for its lease to run out.
    pub(crate) fn close(mut self) {
        if let Err(error) = self.leave() {
            tracing::warn!(?error, "the node could not say that it leaves");
        }
        self.connection.close();
    }

    fn buckets(&self, queue: i64) -> Vec<i16> {
        self.owned.get(&queue).copied().unwrap_or_default().list()
    }

    fn version(&self, queue: i64) -> i64 {
        self.versions.get(&queue).copied().unwrap_or(0)
    }
}

impl Backend for Postgres {
    fn begin(&mut self, holds: &Holds) -> Result<(), CommitError> {
        self.keys_are_known = true;
        self.open_transaction(holds)
    }

    fn begin_turn(&mut self, holds: &Holds, adds: Adds) -> Result<(), CommitError> {
        self.begin_unopened(holds, adds)
    }

    fn roll_back(&mut self) -> Result<(), CommitError> {
        (self.unopened, self.held) = (None, Holds::default());
        if std::mem::take(&mut self.is_open) {
            // Where that fails there is no connection any more, and so no transaction.
            self.connection.script("ROLLBACK".to_owned())?;
        }
        Ok(())
    }

    fn number(&mut self, memory: &mut Memory) -> Result<Option<Timestamp>, CommitError> {
        self.draw(memory)
    }

    fn places_leaves(&self) -> bool {
        false
    }

    fn catch_up(&mut self, memory: &mut Memory, vault: &Vault) -> Result<(), CommitError> {
        let fresh = self.load_memory(vault)?;
        memory.catch_up(fresh);
        Ok(())
    }

    fn commit(&mut self, turn: &Turn<'_>) -> Result<i64, CommitError> {
        self.commit_turn(turn)
    }

    fn send(&mut self, turn: &Turn<'_>) -> Result<Sent, CommitError> {
        self.send_turn(turn)
    }

    fn ended(&mut self) -> Result<(), CommitError> {
        self.end_of_sent()
    }

    fn wait_or<T>(&mut self, other: impl Future<Output = T>) -> Option<T> {
        self.connection.wait_or(other)
    }

    fn push(&mut self) {
        self.connection.push();
    }

    fn queue_put(&mut self, queue: &Queue, put: Put) -> Result<(), CommitError> {
        match put {
            Put::Add => {
                let statement = sqlx::query(sql::QUEUE_ADD)
                    .bind(queue_id(queue.id))
                    .bind(queue.setup.name.as_str())
                    .bind(queue.setup.kind.as_str());
                self.connection.execute(statement)?;
                self.versions.insert(queue.id, 1);
            }
            Put::Change => {
                let version = self.version(queue.id);
                commit::change_queue(&mut self.connection, queue, version)?;
                *self.versions.entry(queue.id).or_default() += 1;
            }
        }
        if queue.setup.kind == QueueKind::Sender {
            return Ok(());
        }
        let buckets = sqlx::query(sql::BUCKETS_ADD).bind(queue_id(queue.id)).bind(i32::from(row::BUCKETS));
        self.connection.execute(buckets).map(drop)
    }

    fn writes_beside(&self) -> bool {
        true
    }

    fn pieces_start(&mut self, pieces: &[Piece<'_>]) {
        self.start_pieces(pieces);
    }

    fn pieces_ended(&mut self) -> Option<Result<(), CommitError>> {
        self.end_of_pieces()
    }

    fn pieces_bell(&self) -> Arc<Notify> {
        self.pieces.bell()
    }

    fn pieces_claimed(&mut self, claimed: &HashSet<MessageId>) {
        self.forget_pieces(claimed);
    }

    fn pieces_drop(&mut self, message: &MessageId) -> Result<More, CommitError> {
        self.drop_some_pieces(message)
    }

    fn deliveries(&mut self, ids: &[DeliveryId]) -> Result<Read<Row>, CommitError> {
        let ids: Vec<&[u8]> = ids.iter().map(|id| id.as_bytes().as_slice()).collect();
        self.load_rows(sqlx::query(sql::DELIVERIES_BY_ID).bind(ids))
    }

    fn deliveries_at(&mut self, positions: &[i64]) -> Result<Read<Row>, CommitError> {
        let read = self.load_rows(sqlx::query(sql::DELIVERIES_BY_POS).bind(positions.to_vec()))?;
        let mut found: HashMap<i64, Row> = HashMap::with_capacity(read.len());
        for row in read {
            let row = row?;
            found.insert(row.pos, row);
        }
        let missing = |pos: i64| Place { table: "delivery", column: "pos", row: pos }.corrupt();
        Ok(positions.iter().map(|pos| found.remove(pos).ok_or_else(|| missing(*pos))).collect())
    }

    fn ready(&mut self, ready: Ready, now: Timestamp, most: u32) -> Result<Vec<(i64, i64)>, CommitError> {
        let queue = match ready {
            Ready::Any { queue } => queue,
            Ready::Suspect { queue } => {
                let (plain, lock) = (sql::DELIVERIES_READY_SUSPECT, sql::DELIVERIES_READY_SUSPECT_LOCK);
                let statement = sqlx::query(if self.is_open { lock } else { plain })
                    .bind(queue_id(queue))
                    .bind(self.buckets(queue))
                    .bind(now.as_micros())
                    .bind(i64::from(most));
                let found = self.entries(statement)?;
                return Ok(found.into_iter().map(|(pos, due, _)| (pos, due)).collect());
            }
        };
        if !self.is_open
            && let Some(known) = self.known.ready(queue, now, most)
        {
            return Ok(known);
        }
        let buckets = self.buckets(queue);
        // Deliveries are spread over the buckets at random. Only where they are not is it worth to look at all of each.
        let of_each = SHARE_MIN.max(SHARE_SLACK * most.div_ceil(buckets.len().max(1) as u32)).min(most);
        let mut look = |of_each: u32| {
            let text = if self.is_open { sql::DELIVERIES_READY_LOCK } else { sql::DELIVERIES_READY };
            let statement = sqlx::query(text)
                .bind(queue_id(queue))
                .bind(buckets.as_slice())
                .bind(now.as_micros())
                .bind(i64::from(most))
                .bind(i64::from(of_each));
            if self.is_open { self.entries(statement) } else { self.entries_and_number(statement) }
        };
        let found = look(of_each)?;
        let mut of_bucket = [0; row::BUCKETS as usize];
        for (.., bucket) in &found {
            of_bucket[usize::try_from(*bucket).unwrap_or(0) % of_bucket.len()] += 1;
        }
        let is_all = found.len() >= most as usize || of_bucket.iter().all(|found| *found < of_each);
        let found = if is_all { found } else { look(most)? };
        let found: Vec<(i64, i64)> = found.into_iter().map(|(pos, due, _)| (pos, due)).collect();
        // Under locks, what others have locked is passed over.
        if found.len() < most as usize && !self.is_open {
            self.known.found(queue, &found);
        } else {
            self.known.found_more(queue);
        }
        Ok(found)
    }

    fn ready_next(&mut self, queue: i64, now: Timestamp) -> Result<Option<i64>, CommitError> {
        if let Some(next) = self.known.next(queue, now) {
            return Ok(next);
        }
        let statement = sqlx::query(sql::READY_NEXT)
            .bind(queue_id(queue))
            .bind(self.buckets(queue))
            .bind(now.as_micros());
        let next = match self.connection.row(statement)? {
            Some(row) => Cells::new(&row).take()?,
            None => None,
        };
        self.known.found_next(queue, next);
        Ok(next)
    }

    fn lane(&mut self, queue: i64, lane: &Index, most: u32) -> Result<Read<Row>, CommitError> {
        let statement = sqlx::query(sql::DELIVERIES_OF_LANE)
            .bind(queue_id(queue))
            .bind(lane.as_slice())
            .bind(i64::from(most));
        self.load_rows(statement)
    }

    fn leased_of(&mut self, queue: i64) -> Result<Read<Row>, CommitError> {
        self.load_rows(sqlx::query(sql::DELIVERIES_LEASED_OF).bind(queue_id(queue)))
    }

    fn lanes_in_flight(&mut self, memory: &Memory, lanes: &Lanes) -> Result<Read<Row>, CommitError> {
        self.hold_lanes(lanes)?;
        self.read_in_flight(memory, lanes)
    }

    fn lanes_to_lease(&mut self, queue: i64, lanes: Vec<Index>) -> Result<Vec<Index>, CommitError> {
        self.share_lanes(queue, lanes)
    }

    fn lane_stuck(
        &mut self,
        queue: i64,
        lane: &Index,
        after: i64,
        through: i64,
    ) -> Result<bool, CommitError> {
        let statement = sqlx::query(sql::LANE_STUCK)
            .bind(queue_id(queue))
            .bind(lane.as_slice())
            .bind(through)
            .bind(after);
        Ok(self.connection.row(statement)?.is_some())
    }

    fn past_expiry(&mut self, now: Timestamp, most: u32) -> Result<Read<Row>, CommitError> {
        let past = |sql| sqlx::query(sql).bind(now.as_micros()).bind(i64::from(most));
        loop {
            let rows = self.load_rows(past(sql::DELIVERIES_PAST_EXPIRY))?;
            // What does not wait any more stands before those that do.
            if !rows.is_empty() || self.connection.execute(past(sql::EXPIRY_DROP))? == 0 {
                return Ok(rows);
            }
        }
    }

    fn to_move(&mut self, queue: i64, after: i64, most: u32) -> Result<ToMove, CommitError> {
        let newest = self.position(sqlx::query(sql::POSITION_NEWEST))?.unwrap_or(0);
        let last = self.position(sqlx::query(sql::POSITION_AFTER).bind(after).bind(POSITIONS_MAX))?;
        let last = last.unwrap_or(newest);
        let statement = sqlx::query(sql::DELIVERIES_TO_MOVE)
            .bind(queue_id(queue))
            .bind(after)
            .bind(i64::from(most))
            .bind(POSITIONS_MAX);
        let rows: Vec<Row> = self.load_rows(statement)?.into_iter().collect::<Result<_, _>>()?;
        let through = rows.last().filter(|_| rows.len() == most as usize).map_or(last, |row| row.pos);
        Ok(ToMove { rows, through, more: through < newest })
    }

    fn keys_used(
        &mut self,
        _: &Memory,
        keys: &[Index],
        need: Need,
    ) -> Result<Option<Vec<KeyUse>>, CommitError> {
        if need == Need::AtCommit {
            if self.wary == 0 {
                self.keys_are_known = false;
                return Ok(None);
            }
            self.wary -= 1;
        }
        self.keys_are_known = true;
        let keys: Vec<&[u8]> = keys.iter().map(Index::as_slice).collect();
        let rows = self.connection.rows(sqlx::query(sql::KEYS_USED).bind(keys))?;
        self.read_through = if rows.is_empty() { self.read_through } else { i64::MAX };
        let mut used: Vec<KeyUse> = Vec::new();
        for row in &rows {
            let place = Place { table: "dedup", column: "message", row: 0 };
            let mut cells = Cells::new(row);
            let (key, fingerprint) = (cells.take_bytes(place)?, cells.take_bytes(place)?);
            let message = MessageId::from_bytes(cells.take_bytes(place)?);
            let accepted_at = Timestamp::from_micros(cells.take()?);
            if used.last().is_none_or(|last| last.key != key) {
                used.push(KeyUse { key, fingerprint, message, accepted_at, deliveries: Vec::new() });
            }
            let delivery = cells.take_opt_bytes(place)?.map(DeliveryId::from_bytes);
            let (queue, state) = (cells.take::<Option<i32>>()?, cells.take::<Option<i16>>()?);
            if let (Some(delivery), Some(queue), Some(state), Some(used)) =
                (delivery, queue, state, used.last_mut())
            {
                used.deliveries.push((delivery, i64::from(queue), i64::from(state)));
            }
        }
        Ok(Some(used))
    }

    fn attributes(&mut self, seq: i64) -> Result<Option<Attributes>, CommitError> {
        let row = self.connection.row(sqlx::query(sql::MESSAGE_ATTRIBUTES).bind(seq))?;
        Ok(row.map(|row| load::attributes(&row)).transpose()?)
    }

    fn messages_small(
        &mut self,
        seqs: &[i64],
        found: &mut dyn FnMut(MessageId, RecentMessage) -> More,
    ) -> Result<(), StoreError> {
        let most = i64::try_from(MESSAGE_BYTES_MAX).unwrap_or(i64::MAX);
        let statement = sqlx::query(sql::MESSAGES_SMALL).bind(seqs.to_vec()).bind(most);
        for row in self.connection.rows(statement)? {
            if let Ok(Some((id, message))) = load::message(&row)
                && found(id, message) == More::No
            {
                break;
            }
        }
        Ok(())
    }

    fn adapter_state(&mut self, adapter: &str, vault: &Vault) -> Result<Vec<(String, Vec<u8>)>, CommitError> {
        let rows = self.connection.rows(sqlx::query(sql::ADAPTER_STATE_LOAD).bind(adapter))?;
        let sealed: Vec<Vec<u8>> = rows.iter().map(load::sealed_state).collect::<Result<_, _>>()?;
        self.know(sealed.iter().filter_map(|sealed| locator_of(sealed)))?;
        Ok(rows.iter().map(|row| load::state(row, vault)).collect::<Result<_, _>>()?)
    }

    /// By who has the right to write: the seal key that they are wrapped with is destroyed when nobody else has.
    fn keyring_add(&mut self, trees: &[WrappedTree]) -> Result<(), CommitError> {
        self.sent_has_come_about()?;
        self.begin(&Holds::default())?;
        let added = commit::add_trees(&mut self.connection, trees);
        self.end(added)
    }

    fn keyring_put(&mut self, trees: &[WrappedTree]) -> Result<(), CommitError> {
        commit::put_trees(&mut self.connection, trees)
    }

    fn keyring_hold(&mut self, trees: &BTreeSet<u64>) -> Result<(), CommitError> {
        let trees: Vec<i64> = trees.iter().copied().map(whole).collect();
        self.learn(sqlx::query(sql::KEYRING_HOLD).bind(trees))
    }

    fn keyring_follow(&mut self) -> Result<(), CommitError> {
        self.learn(sqlx::query(sql::KEYRING_FOLLOW))
    }

    fn keyring_oldest(&mut self) -> Result<Option<u32>, CommitError> {
        self.sent_has_come_about()?;
        let found = self.position(sqlx::query(sql::KEYRING_OLDEST))?;
        Ok(found.and_then(|key| u32::try_from(key).ok()))
    }

    fn has_others(&mut self) -> Result<bool, CommitError> {
        self.sent_has_come_about()?;
        for row in self.connection.rows(sqlx::query(sql::NODES))? {
            let mut cells = Cells::new(&row);
            let (node, is_over): (i32, bool) = (cells.take()?, cells.take()?);
            if node != self.node() && !is_over {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn to_erase(&mut self, what: &EraseFind, after: i64, most: u32) -> Result<ToErase, CommitError> {
        self.find_to_erase(what, after, most)
    }

    fn erase(&mut self, messages: &[Erasing]) -> Result<(), CommitError> {
        self.erase_messages(messages)
    }

    fn purge_content(&mut self, now: Timestamp, age: Duration, _: &Vault) -> Result<u64, CommitError> {
        self.content_step(now, age)
    }

    fn purge_keys(&mut self, now: Timestamp, age: Duration, _: i64) -> Result<(), CommitError> {
        self.keys_step(now, age)
    }

    /// Rows stay for the other nodes, each of which has files of its own, and for those that are to come.
    fn leaves_filed(&mut self, _: u64) -> Result<(), CommitError> {
        Ok(())
    }

    fn has_left_notes(&self) -> bool {
        self.left_notes
    }

    fn asks_who_consumes(&self) -> bool {
        self.balance_is_due()
    }

    fn tend(&mut self, memory: &mut Memory, vault: &Vault, consumed: &[i64]) -> Result<Tended, CommitError> {
        self.renew()?;
        self.partitions.tend(&mut self.connection, self.clock.now())?;
        let mut tended = Tended::default();
        if self.watched_at.is_none_or(|at| at.elapsed() >= WATCH_INTERVAL) {
            self.watched_at = Some(Instant::now());
            tended.took_leases = self.take_places(memory, vault)?;
            tended.queues_changed = self.follow_queues(memory)?;
            self.look_for_pieces(memory)?;
            // Where something is written all the time, that takes them along.
            if !self.leases.over.is_empty() {
                self.connection.execute(sqlx::query(sql::LEASES_DROP).bind(&self.leases.over))?;
                self.leases.over.clear();
            }
        }
        if self.balance_is_due() && self.has_to_balance(consumed) {
            tended.changed = self.look(memory, consumed)?;
        }
        Ok(tended)
    }

    fn look(&mut self, memory: &Memory, consumed: &[i64]) -> Result<Vec<i64>, CommitError> {
        let mut changed = self.balance(memory, consumed)?;
        changed.extend(self.ready_waits(consumed)?);
        Ok(changed)
    }

    fn claim(&mut self, adapter: &str) -> Result<bool, CommitError> {
        self.begin(&Holds::default())?;
        let claimed = self.claim_open(&format!("{ROLE_OF_ADAPTER}{adapter}"));
        self.end(claimed)
    }

    fn give_up(&mut self, adapter: &str) -> Result<(), CommitError> {
        let statement =
            sqlx::query(sql::ROLE_GIVE_UP).bind(format!("{ROLE_OF_ADAPTER}{adapter}")).bind(self.node());
        self.connection.execute(statement).map(drop)
    }

    fn right_until(&self) -> Option<Instant> {
        Some(self.renewed_at + node::RIGHT)
    }

    fn consume(&mut self, memory: &Memory, queue: i64) -> Result<(), CommitError> {
        self.take_share(memory, queue)
    }

    fn follow(&mut self, memory: &mut Memory) -> Result<(), CommitError> {
        self.follow_queues(memory).map(drop)
    }

    fn log_bytes(&self) -> u64 {
        0
    }

    fn release_reserve(&mut self) {}

    /// Nobody but the server knows: the next one who accepts will see.
    fn has_space(&mut self) -> Result<bool, CommitError> {
        Ok(true)
    }

    fn reopen(&mut self, vault: &Vault, _: usize) -> Result<Memory, String> {
        let text = |error: CommitError| StoreError::from(error).to_string();
        self.is_open = false;
        self.connection.reopen().map_err(text)?;
        self.come_back().map_err(text)?;
        let mut memory = self.load_memory(vault).map_err(|error| error.to_string())?;
        self.find_pieces(&mut memory).map_err(text)?;
        Ok(memory)
    }

    fn instance_epoch(&self, _: u32) -> u32 {
        self.node().cast_unsigned()
    }

    fn abandon(&mut self) {}
}

impl Postgres {
    /// Commits the open transaction if what was done in it went well, and ends it otherwise.
    fn end<T>(&mut self, done: Result<T, CommitError>) -> Result<T, CommitError> {
        let ended = done.and_then(|done| self.connection.script("COMMIT".to_owned()).map(|()| done));
        match ended {
            Ok(done) => {
                self.is_open = false;
                Ok(done)
            }
            Err(error) => {
                self.roll_back()?;
                Err(error)
            }
        }
    }

    /// Takes over what others have done to the queues: brakes, sessions, counts.
    fn follow_queues(&mut self, memory: &mut Memory) -> Result<bool, CommitError> {
        let mut changed = false;
        for (read, version) in self.load_queues()? {
            changed |= self.versions.insert(read.id, version) != Some(version);
            match memory.queues.get_mut(&read.id) {
                Some(known) => {
                    changed |= known.counts != read.counts;
                    let mut read = read;
                    read.keep_own(known);
                    // A sender may have been met before its row was.
                    memory.by_name.insert(read.setup.name.clone(), read.id);
                    *known = read;
                }
                None => {
                    changed = true;
                    memory.by_name.insert(read.setup.name.clone(), read.id);
                    memory.queues.insert(read.id, read);
                }
            }
        }
        Ok(changed)
    }

    /// Consumed queues of which something is ready: hints may be lost, and so may whoever gave them.
    fn ready_waits(&mut self, consumed: &[i64]) -> Result<Vec<i64>, CommitError> {
        let owned = consumed.iter().flat_map(|queue| {
            self.buckets(*queue).into_iter().map(|bucket| (queue_id(*queue), bucket)).collect::<Vec<_>>()
        });
        let (queues, buckets): (Vec<i32>, Vec<i16>) = owned.unzip();
        if queues.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.clock.now().as_micros();
        let rows =
            self.connection.rows(sqlx::query(sql::READY_WAITS).bind(queues).bind(buckets).bind(now))?;
        let ids: Result<Vec<i32>, _> = rows.iter().map(|row| Cells::new(row).take()).collect();
        Ok(ids?.into_iter().map(i64::from).collect())
    }

    fn load_rows(&mut self, statement: connection::Statement<'_>) -> Result<Read<Row>, CommitError> {
        let rows: Read<Row> = self.connection.rows(statement)?.iter().map(row::load).collect();
        let salts: Vec<Salt> = rows.iter().flatten().filter_map(|row| row.salt).collect();
        self.know(salts.iter().filter_map(Salt::locator))?;
        let newest = rows.iter().flatten().filter_map(|row| row.leaves.last_chunk::<8>());
        let newest = newest.map(|number| i64::from_be_bytes(*number)).max().unwrap_or(0);
        self.read_through = self.read_through.max(newest);
        Ok(rows)
    }

    /// Makes sure that these data keys can be computed: other nodes have trees of their own.
    fn know(&mut self, locators: impl Iterator<Item = Locator>) -> Result<(), CommitError> {
        let unknown: BTreeSet<u64> =
            locators.map(|locator| locator.tree).filter(|tree| !self.vault.knows(*tree)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let unknown: Vec<i64> = unknown.into_iter().map(whole).collect();
        self.learn(sqlx::query(sql::KEYRING_TREES).bind(unknown))
    }

    /// Takes in trees as they are stored.
    fn learn(&mut self, trees: connection::Statement<'_>) -> Result<(), CommitError> {
        for row in self.connection.rows(trees)? {
            self.vault.learn(&load::tree(&row)?)?;
        }
        Ok(())
    }

    /// Positions, the times at which they are due, and their buckets.
    fn entries(&mut self, statement: connection::Statement<'_>) -> Result<Vec<(i64, i64, i16)>, CommitError> {
        let rows = self.connection.rows(statement)?;
        rows.iter()
            .map(|row| {
                let mut cells = Cells::new(row);
                Ok((cells.take()?, cells.take()?, cells.take()?))
            })
            .collect()
    }

    /// As [`Postgres::entries`], behind a row with the number of a turn that is decided on them.
    fn entries_and_number(
        &mut self,
        statement: connection::Statement<'_>,
    ) -> Result<Vec<(i64, i64, i16)>, CommitError> {
        let rows = self.connection.rows(statement)?;
        let Some((first, entries)) = rows.split_first() else { return Ok(Vec::new()) };
        let drawn = Drawn::read(&mut Cells::new(first))?;
        self.clock.follow(drawn.now);
        (self.drawn, self.spare) = (Some(drawn), None);
        entries
            .iter()
            .map(|row| {
                let mut cells = Cells::new(row);
                Ok((cells.take()?, cells.take()?, cells.take()?))
            })
            .collect()
    }

    fn position(&mut self, statement: connection::Statement<'_>) -> Result<Option<i64>, CommitError> {
        let row = self.connection.row(statement)?;
        row.map_or(Ok(None), |row| Ok(Cells::new(&row).take()?))
    }
}
