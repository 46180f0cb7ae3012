//! Bringing memory in line with the database: at start, after a failure, and when the configuration changes.

use std::collections::HashMap;
use std::time::Duration;

use gatepost_core::Timestamp;
use gatepost_core::delivery::Event;
use gatepost_core::queue::{QueueControl, Trip, TripReason};
use rusqlite::{Connection, params};

use super::candidates::WINDOW_MAX;
use super::commit::{CommitError, at_commit, begin, commit, roll_back};
use super::group::Outcome;
use super::keys::Keys;
use super::memory::{Counts, Memory, Queue};
use super::turn::Turn;
use super::{Condition, Writer, unavailable};
use crate::database::{self, Cells, rows};
use crate::ops::{QueueKind, QueueSetup, Session, StoreError, UNROUTED};
use crate::row::Row;
use crate::seal::Place;
use crate::sql;

/// Keys read in one go at start, so that the start needs little memory.
const KEYS_PER_READ: i64 = 4096;

/// Reads everything that memory holds. Queues have no policy until they are configured.
pub(crate) fn load_memory(connection: &Connection, keys_in_memory: usize) -> Result<Memory, StoreError> {
    let [leaf_count, keyed] = rows(connection, sql::STORE_LOAD, [], |mut cells| {
        let (_clock, _epoch): (i64, i64) = (cells.take()?, cells.take()?);
        Ok([cells.take::<i64>()?, cells.take()?])
    })?
    .pop()
    .unwrap_or_default();
    let [last_seq, last_pos] =
        rows(connection, sql::SEQUENCES_LOAD, [], |mut cells| Ok([cells.take::<i64>()?, cells.take()?]))?
            .pop()
            .unwrap_or_default();
    let mut memory = Memory {
        leaf_count: Place { table: "store", column: "leaf_count", row: 0 }.count(leaf_count)?,
        committed_at: Timestamp::default(),
        fresh: Default::default(),
        next_seq: last_seq + 1,
        next_pos: last_pos + 1,
        keys: load_keys(connection, keyed, keys_in_memory)?,
        queues: HashMap::new(),
        by_name: HashMap::new(),
        hot: HashMap::new(),
        batches: HashMap::new(),
        rates: HashMap::new(),
    };
    for queue in rows(connection, sql::QUEUES_LOAD, [], load_queue)? {
        memory.by_name.insert(queue.setup.name.clone(), queue.id);
        memory.queues.insert(queue.id, queue);
    }
    for row in rows(connection, sql::DELIVERIES_LEASED, [], Row::load)? {
        if let Some(trip) = memory.queues.get_mut(&row.queue).and_then(|queue| queue.control.trip.as_mut())
            && row.delivery.state.in_flight()
        {
            // Which delivery was the probe is not stored; whatever is leased while tripped may be it.
            trip.probe.get_or_insert(row.id);
        }
        memory.install(row);
    }
    Ok(memory)
}

/// The keys that are not in their index yet, from the messages that used them.
fn load_keys(connection: &Connection, keyed: i64, most: usize) -> Result<Keys, StoreError> {
    let mut keys = Keys::new(keyed, most);
    let mut after = keyed;
    loop {
        let read = rows(connection, sql::KEYS_LOAD, params![after, KEYS_PER_READ], |mut cells| {
            let message: i64 = cells.take()?;
            Ok((cells.take()?, message))
        })?;
        let Some((_, last)) = read.last() else { return Ok(keys) };
        after = *last;
        keys.add(read);
    }
}

fn load_queue(mut cells: Cells<'_>) -> Result<Queue, StoreError> {
    let id: i64 = cells.take()?;
    let place = |column| Place { table: "queue", column, row: id };
    let name: String = cells.take()?;
    let kind = cells.take_text()?.and_then(kind_of).ok_or_else(|| place("kind").corrupt())?;
    let paused_since = time(&mut cells)?;
    let trip = match (time(&mut cells)?, cells.take_text()?, cells.take::<i64>()?, time(&mut cells)?) {
        (Some(since), Some(reason), failures, Some(probe_due)) => Some(Trip {
            since,
            reason: TripReason::from_name(reason).ok_or_else(|| place("trip_reason").corrupt())?,
            failures: u32::try_from(failures).map_err(|_| place("trip_failures").corrupt())?,
            probe_due,
            probe: None,
        }),
        (None, None, _, None) => None,
        // Half a breaker must not read as none.
        _ => return Err(place("trip_reason").corrupt()),
    };
    let control = QueueControl {
        paused_since,
        trip,
        idle_before: Duration::from_micros(place("idle_before").count(cells.take()?)?),
        idle_since: time(&mut cells)?,
    };
    // Read as zero, every session that was ever ended would be the present one again.
    let session = place("session").count(cells.take()?)?;
    let counts = Counts {
        waiting: cells.take()?,
        leased: cells.take()?,
        sending: cells.take()?,
        sent: cells.take()?,
        in_doubt: cells.take()?,
        held: cells.take()?,
        dead: cells.take()?,
        suspects: cells.take()?,
        held_lanes: cells.take()?,
        bytes: cells.take()?,
    };
    let setup = QueueSetup { name, kind, policy: Default::default() };
    Ok(Queue { id, setup, control, session, counts })
}

fn time(cells: &mut Cells<'_>) -> Result<Option<Timestamp>, StoreError> {
    Ok(cells.take::<Option<i64>>()?.map(Timestamp::from_micros))
}

fn kind_of(name: &str) -> Option<QueueKind> {
    [QueueKind::Adapter, QueueKind::ExternalAdapter, QueueKind::Inbox, QueueKind::Builtin, QueueKind::Removed]
        .into_iter()
        .find(|kind| kind.as_str() == name)
}

impl Writer {
    /// Puts the configuration's queues in force, all of them or none. A queue that has left it keeps its deliveries and serves
    /// nobody.
    pub(crate) fn configure(&mut self, mut setups: Vec<QueueSetup>) -> Result<(), StoreError> {
        if let Some(error) = unavailable(&self.condition) {
            return Err(error);
        }
        setups.push(QueueSetup {
            name: UNROUTED.to_owned(),
            kind: QueueKind::Builtin,
            policy: Default::default(),
        });
        let mut configured = self.try_configure(&setups);
        if configured == Err(CommitError::Full) {
            self.failed(&CommitError::Full);
            // The reserve is free now.
            configured = self.try_configure(&setups);
        }
        if let Err(error) = configured {
            self.failed(&error);
            return Err(error.into());
        }
        self.publish_queues();
        for setup in &setups {
            self.hints.queue_changed(&setup.name);
        }
        Ok(())
    }

    /// One transaction. Memory has the new queues while it is decided, and the old ones again if it fails.
    fn try_configure(&mut self, setups: &[QueueSetup]) -> Result<(), CommitError> {
        let before = (self.memory.queues.clone(), self.memory.by_name.clone(), self.own_leases_ended);
        begin(&self.connection)?;
        let configured = self.configure_open(setups);
        if configured.is_err() {
            (self.memory.queues, self.memory.by_name, self.own_leases_ended) = before;
        }
        roll_back(&self.connection)?;
        configured
    }

    fn configure_open(&mut self, setups: &[QueueSetup]) -> Result<(), CommitError> {
        let windows = self.windows();
        let to_end = self.leases_to_end();
        for setup in setups {
            self.put_queue(setup.clone())?;
        }
        let left = |queue: &&Queue| setups.iter().all(|setup| setup.name != queue.setup.name);
        let removed: Vec<QueueSetup> =
            self.memory.queues.values().filter(left).map(|queue| queue.setup.clone()).collect();
        for setup in removed {
            self.put_queue(QueueSetup { kind: QueueKind::Removed, ..setup })?;
        }
        self.end_leases(&to_end, &windows)
    }

    fn put_queue(&mut self, setup: QueueSetup) -> Result<(), CommitError> {
        match self.memory.by_name.get(&setup.name).copied() {
            Some(id) => {
                self.execute(sql::QUEUE_KIND, params![id, setup.kind.as_str()])?;
                if let Some(queue) = self.memory.queues.get_mut(&id) {
                    queue.setup = setup;
                }
            }
            None => {
                let id = self.memory.queues.keys().max().copied().unwrap_or(0) + 1;
                self.execute(sql::QUEUE_ADD, params![id, setup.name, setup.kind.as_str()])?;
                self.memory.by_name.insert(setup.name.clone(), id);
                let queue = Queue {
                    id,
                    setup,
                    control: QueueControl::default(),
                    session: 0,
                    counts: Counts::default(),
                };
                self.memory.queues.insert(id, queue);
            }
        }
        Ok(())
    }

    /// How wide the lanes of each queue may have been until now; at start nobody knows.
    fn windows(&self) -> HashMap<i64, u32> {
        let width =
            |queue: &Queue| if self.own_leases_ended { queue.setup.policy.window } else { WINDOW_MAX };
        self.memory.queues.values().map(|queue| (queue.id, width(queue))).collect()
    }

    /// The queues whose leases do not outlive the gateway, by the configuration that the leases were given under; none but once.
    fn leases_to_end(&mut self) -> Vec<i64> {
        if std::mem::replace(&mut self.own_leases_ended, true) {
            return Vec::new();
        }
        let queues = self.memory.queues.values();
        let mut to_end: Vec<i64> =
            queues.filter(|queue| queue.leases_end_with_gateway()).map(|queue| queue.id).collect();
        to_end.sort_unstable();
        to_end
    }

    /// Ends leases that did not outlive the gateway; they cost nothing. Only once the queues have their policies: it is the policy
    /// that says whether what had begun is held for a person. Lanes whose window has become narrower are brought in line. This
    /// commits what is open.
    fn end_leases(&mut self, queues: &[i64], windows: &HashMap<i64, u32>) -> Result<(), CommitError> {
        let now = self.clock.now();
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        let narrower: HashMap<i64, u32> = windows
            .iter()
            .filter(|(id, before)| {
                self.memory.queues.get(id).is_some_and(|now| now.setup.policy.window < **before)
            })
            .map(|(id, before)| (*id, *before))
            .collect();
        turn.width_before = narrower.values().copied().max().unwrap_or(1);
        let leased = self.memory.hot.values().filter(|row| narrower.contains_key(&row.queue));
        turn.lanes.extend(leased.filter_map(|row| Some((row.queue, row.lane?))));
        for queue in queues {
            turn.end_leases(*queue, Event::SessionEnded)?;
        }
        commit(&self.connection, &turn)?;
        let committed = Outcome::of(turn);
        self.install(Some(committed), 0);
        Ok(())
    }

    /// A write of its own, outside any turn.
    pub(super) fn execute(
        &self,
        statement: &'static str,
        params: impl rusqlite::Params,
    ) -> Result<usize, CommitError> {
        let execute = || Ok(self.connection.prepare_cached(statement)?.execute(params)?);
        // Within a transaction it is that one's commit which counts.
        if self.connection.is_autocommit() { at_commit(execute) } else { execute() }
    }

    /// What an adapter's new session starts from.
    pub(crate) fn session(&mut self, adapter: &str, epoch: u64) -> Result<Session, StoreError> {
        let place = Place { table: "adapter_state", column: "value", row: 0 };
        let state = rows(&self.connection, sql::ADAPTER_STATE_LOAD, params![adapter], |mut cells| {
            let (key, sealed): (String, Vec<u8>) = (cells.take()?, cells.take()?);
            Ok((key, self.vault.open(&sealed, place)?.to_vec()))
        })?;
        Ok(Session { epoch, state })
    }

    /// Opens the database anew after a failure and goes on if it is sound.
    pub(crate) fn reopen(&mut self) {
        match self.try_reopen() {
            Ok(()) => {
                tracing::info!("the database is sound again: the store goes on");
                self.condition = Condition::Working;
                self.health.set_obstacle(None);
                self.publish_queues();
                // A commit that was said to have failed may be on the disk all the same, with leaves that are to be signed.
                self.health.set_audit_size(self.memory.leaf_count);
                self.leaves_added.notify_one();
            }
            Err(text) => {
                tracing::error!(error = %text, "the database is still unusable; the store stays read-only");
                self.health.set_obstacle(Some(format!("the database failed: {text}")));
                self.condition = Condition::Broken(text);
            }
        }
    }

    fn try_reopen(&mut self) -> Result<(), String> {
        let connection = database::connect(&self.database).map_err(|error| error.to_string())?;
        database::quick_check(&connection)?;
        let mut memory = load_memory(&connection, self.keys_in_memory).map_err(|error| error.to_string())?;
        let in_force: HashMap<i64, QueueSetup> =
            self.memory.queues.values().map(|queue| (queue.id, queue.setup.clone())).collect();
        let mut other = false;
        for queue in memory.queues.values_mut() {
            let kind = in_force.get(&queue.id).map(|setup| setup.kind);
            other |= kind.unwrap_or(QueueKind::Removed) != queue.setup.kind;
            if let Some(setup) = in_force.get(&queue.id) {
                queue.setup = setup.clone();
            }
        }
        self.connection = connection;
        self.memory = memory;
        if other && self.own_leases_ended {
            // A configuration whose commit was said to have failed is in the tables all the same; it is not in force.
            let listed = in_force.into_values().filter(|setup| setup.kind != QueueKind::Removed);
            let listed: Vec<QueueSetup> = listed.collect();
            self.try_configure(&listed).map_err(|error| StoreError::from(error).to_string())?;
        }
        Ok(())
    }
}
