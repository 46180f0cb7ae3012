//! Bringing memory in line with the database: at start, after a failure, and when the configuration changes.

use std::collections::HashMap;
use std::time::Duration;

use gatepost_core::Timestamp;
use gatepost_core::delivery::Event;
use gatepost_core::queue::{QueueControl, Trip, TripReason};
use rusqlite::{Connection, params};

use super::candidates::WINDOW_MAX;
use super::commit::{StoreRow, at_commit, begin, change_queue, commit, roll_back};
use super::group::Outcome;
use super::keys::Keys;
use super::memory::{Counts, Memory, Queue};
use super::turn::Turn;
use super::{Condition, Writer, unavailable};
use crate::database::{self, Cells, CommitError, rows};
use crate::ops::{QueueKind, QueueSetup, Session, StoreError, UNROUTED};
use crate::row::{INDEXED_COLUMNS, QUEUE_COLUMNS, Row, STORE_COLUMNS};
use crate::seal::{Owner, Place, Vault};
use crate::sql;

/// Keys read in one go at start, so that the start needs little memory.
const KEYS_PER_READ: i64 = 4096;

/// Reads everything that memory holds. Queues have no policy until they are configured.
pub(crate) fn load_memory(
    connection: &Connection,
    vault: &Vault,
    keys_in_memory: usize,
) -> Result<Memory, StoreError> {
    let (leaf_count, keyed) = load_store(connection)?.map_or((0, 0), |store| (store.leaf_count, store.keyed));
    let [last_seq, last_pos] =
        rows(connection, sql::SEQUENCES_LOAD, [], |mut cells| Ok([cells.take::<i64>()?, cells.take()?]))?
            .pop()
            .unwrap_or_default();
    let mut memory = Memory {
        leaf_count,
        committed_at: Timestamp::default(),
        fresh: Default::default(),
        next_seq: last_seq + 1,
        next_pos: last_pos + 1,
        keys: Keys::new(keyed, keys_in_memory),
        queues: HashMap::new(),
        by_name: HashMap::new(),
        hot: HashMap::new(),
        batches: HashMap::new(),
        rates: HashMap::new(),
        damage: Default::default(),
    };
    load_keys(connection, &mut memory)?;
    check_states(connection, vault)?;
    for queue in rows(connection, sql::QUEUES_LOAD, [], load_queue)? {
        memory.by_name.insert(queue.setup.name.clone(), queue.id);
        memory.queues.insert(queue.id, queue);
    }
    for row in
        memory.damage.sound(rows(connection, sql::DELIVERIES_LEASED, [], |cells| Ok(Row::load(cells)))?)?
    {
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
fn load_keys(connection: &Connection, memory: &mut Memory) -> Result<(), StoreError> {
    let mut after = memory.keys.keyed();
    loop {
        let page = params![after, KEYS_PER_READ];
        let mut last = after;
        let read = rows(connection, sql::KEYS_LOAD, page, |mut cells| {
            let sound = cells.next_hold(INDEXED_COLUMNS)?;
            let message: i64 = cells.take()?;
            last = message;
            if !sound {
                return Ok(Err(Place { table: "message", column: "sum_indexed", row: message }.corrupt()));
            }
            Ok(Ok((cells.take()?, message)))
        })?;
        if read.is_empty() {
            return Ok(());
        }
        after = last;
        let sound = memory.damage.sound(read)?;
        memory.keys.add(sound);
    }
}

/// The store's own row; `None` before the first start.
pub(crate) fn load_store(connection: &Connection) -> Result<Option<StoreRow>, StoreError> {
    let loaded = rows(connection, sql::STORE_LOAD, [], |mut cells| {
        let sound = cells.next_hold(STORE_COLUMNS)?;
        let place = Place { table: "store", column: "sum", row: cells.take()? };
        if !sound {
            return Err(place.corrupt());
        }
        let (clock, epoch, leaf_count, keyed) =
            (cells.take()?, cells.take::<i64>()?, cells.take::<i64>()?, cells.take()?);
        Ok(StoreRow {
            clock,
            instance_epoch: u32::try_from(epoch).unwrap_or(u32::MAX),
            leaf_count: u64::try_from(leaf_count).unwrap_or(0),
            keyed,
            key_mark: cells.take()?,
        })
    })?;
    Ok(loaded.into_iter().next())
}

/// Opens every value of the adapters' states: one that stands under another name by a flipped bit would simply be missing when
/// its adapter asks for it.
fn check_states(connection: &Connection, vault: &Vault) -> Result<(), StoreError> {
    rows(connection, sql::ADAPTER_STATES, [], |mut cells| open_state(&mut cells, vault).map(drop))?;
    Ok(())
}

/// Adapter, key and value.
fn open_state(cells: &mut Cells<'_>, vault: &Vault) -> Result<(String, String, Vec<u8>), StoreError> {
    let (adapter, key, sealed): (String, String, Vec<u8>) = (cells.take()?, cells.take()?, cells.take()?);
    let row = format!("{adapter}/{key}");
    let owner = Owner::State { adapter: &adapter, key: &key };
    let corrupt = |_| StoreError::Corrupt { table: "adapter_state", column: "value", row };
    let place = Place { table: "adapter_state", column: "value", row: 0 };
    let value = vault.open(&sealed, owner, place).map_err(corrupt)?.to_vec();
    Ok((adapter, key, value))
}

fn load_queue(mut cells: Cells<'_>) -> Result<Queue, StoreError> {
    let sound = cells.next_hold(QUEUE_COLUMNS)?;
    let id: i64 = cells.take()?;
    let place = |column| Place { table: "queue", column, row: id };
    if !sound {
        return Err(place("sum").corrupt());
    }
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
        // At start nobody knows.
        let windows = self.windows(self.own_leases_ended);
        let mut configured = self.try_configure(&setups, &windows);
        if configured == Err(CommitError::Full) {
            self.failed(&CommitError::Full);
            // The reserve is free now.
            configured = self.try_configure(&setups, &windows);
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
    fn try_configure(
        &mut self,
        setups: &[QueueSetup],
        windows: &HashMap<i64, u32>,
    ) -> Result<(), CommitError> {
        let before = (self.memory.queues.clone(), self.memory.by_name.clone(), self.own_leases_ended);
        begin(&self.connection)?;
        let configured = self.configure_open(setups, windows);
        if configured.is_err() {
            (self.memory.queues, self.memory.by_name, self.own_leases_ended) = before;
        }
        roll_back(&self.connection)?;
        configured
    }

    fn configure_open(
        &mut self,
        setups: &[QueueSetup],
        windows: &HashMap<i64, u32>,
    ) -> Result<(), CommitError> {
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
        self.end_leases(&to_end, windows)
    }

    fn put_queue(&mut self, setup: QueueSetup) -> Result<(), CommitError> {
        match self.memory.by_name.get(&setup.name).copied() {
            Some(id) => {
                let Some(queue) = self.memory.queues.get(&id) else { return Ok(()) };
                let queue = Queue { setup, ..queue.clone() };
                self.write_queue(sql::QUEUE_CHANGE, &queue)?;
                self.memory.queues.insert(id, queue);
            }
            None => {
                let id = self.memory.queues.keys().max().copied().unwrap_or(0) + 1;
                let queue = Queue {
                    id,
                    setup,
                    control: QueueControl::default(),
                    session: 0,
                    counts: Counts::default(),
                };
                self.write_queue(sql::QUEUE_ADD, &queue)?;
                self.memory.by_name.insert(queue.setup.name.clone(), id);
                self.memory.queues.insert(id, queue);
            }
        }
        Ok(())
    }

    /// How wide the lanes of each queue may have been until now.
    fn windows(&self, known: bool) -> HashMap<i64, u32> {
        let width = |queue: &Queue| if known { queue.setup.policy.window } else { WINDOW_MAX };
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
    /// that says whether what had begun is held for a person. Lanes whose window is another one now are brought in line. This
    /// commits what is open.
    fn end_leases(&mut self, queues: &[i64], windows: &HashMap<i64, u32>) -> Result<(), CommitError> {
        let now = self.clock.now();
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        // As wide as can be: nobody knows how wide.
        let is_other = |id: &i64, before: u32| {
            let now = self.memory.queues.get(id).map(|queue| queue.setup.policy.window);
            now.is_some_and(|now| now != before || before == WINDOW_MAX)
        };
        let others: HashMap<i64, u32> = windows
            .iter()
            .filter(|(id, before)| is_other(id, **before))
            .map(|(id, before)| (*id, *before))
            .collect();
        turn.width_before = others.values().copied().max().unwrap_or(1);
        let leased = self.memory.hot.values().filter(|row| others.contains_key(&row.queue));
        turn.lanes.extend(leased.filter_map(|row| Some((row.queue, row.lane?))));
        for queue in queues {
            turn.end_leases(*queue, Event::SessionEnded)?;
        }
        commit(&self.connection, &turn)?;
        let committed = Outcome::of(turn);
        self.install(Some(committed), 0);
        Ok(())
    }

    fn write_queue(&self, statement: &'static str, queue: &Queue) -> Result<(), CommitError> {
        if change_queue(&mut self.connection.prepare_cached(statement)?, queue)? != 1 {
            let id = queue.id;
            return Err(Place { table: "queue", column: "name", row: id }.corrupt().into());
        }
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
        let state = rows(&self.connection, sql::ADAPTER_STATE_LOAD, params![adapter], |mut cells| {
            let (_adapter, key, value) = open_state(&mut cells, &self.vault)?;
            Ok((key, value))
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
        let connection = database::connect(&self.data_dir.database()).map_err(|error| error.to_string())?;
        database::quick_check(&connection)?;
        let mut memory =
            load_memory(&connection, &self.vault, self.keys_in_memory).map_err(|error| error.to_string())?;
        let in_force: HashMap<i64, QueueSetup> =
            self.memory.queues.values().map(|queue| (queue.id, queue.setup.clone())).collect();
        for queue in memory.queues.values_mut() {
            if let Some(setup) = in_force.get(&queue.id) {
                queue.setup = setup.clone();
            }
        }
        self.connection = connection;
        let before = std::mem::replace(&mut self.memory, memory);
        self.memory.damage.told_before(before.damage);
        if self.own_leases_ended {
            // A configuration whose commit was said to have failed may be in the tables all the same, and in their lanes; it is
            // not in force.
            let listed = in_force.into_values().filter(|setup| setup.kind != QueueKind::Removed);
            let listed: Vec<QueueSetup> = listed.collect();
            let windows = self.windows(false);
            self.try_configure(&listed, &windows).map_err(|error| StoreError::from(error).to_string())?;
        }
        Ok(())
    }
}
