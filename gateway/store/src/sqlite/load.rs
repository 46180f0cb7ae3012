//! What the writer's memory holds, from the tables.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use gatepost_core::Timestamp;
use gatepost_core::queue::QueueControl;
use rusqlite::{Connection, params};

use super::commit::StoreRow;
use super::connection::{Cells, rows};
use super::pieces;
use super::row::{self, INDEXED_COLUMNS, KEYRING_COLUMNS, QUEUE_COLUMNS, STORE_COLUMNS};
use crate::keyring::WrappedTree;
use crate::ops::{QueueKind, QueueSetup, StoreError};
use crate::row::trip;
use crate::seal::{Owner, Place, Vault};
use crate::sql;
use crate::writer::{Counts, Keys, Memory, Queue};

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
        run_bytes: usize::MAX,
        fresh: Default::default(),
        next_seq: last_seq + 1,
        next_pos: last_pos + 1,
        keys: Keys::new(keyed, keys_in_memory),
        queues: HashMap::new(),
        by_name: HashMap::new(),
        hot: HashMap::new(),
        is_shared: false,
        batches: HashMap::new(),
        rates: HashMap::new(),
        damage: Default::default(),
        unclaimed: pieces::ahead(connection)?.into(),
    };
    load_keys(connection, &mut memory)?;
    load_keyring(connection, vault)?;
    check_states(connection, vault)?;
    for queue in rows(connection, sql::QUEUES_LOAD, [], load_queue)? {
        memory.by_name.insert(queue.setup.name.clone(), queue.id);
        memory.queues.insert(queue.id, queue);
    }
    for row in
        memory.damage.sound(rows(connection, sql::DELIVERIES_LEASED, [], |cells| Ok(row::load(cells)))?)?
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

/// The trees of data keys, each of which stands there twice.
fn load_keyring(connection: &Connection, vault: &Vault) -> Result<(), StoreError> {
    stored_trees(connection)?.iter().try_for_each(|stored| vault.learn(stored))
}

/// Of each tree the one that is what was written; an error if there is none.
pub(super) fn stored_trees(connection: &Connection) -> Result<Vec<WrappedTree>, StoreError> {
    let mut found: BTreeMap<u64, Result<WrappedTree, StoreError>> = BTreeMap::new();
    let stored = rows(connection, sql::KEYRING_LOAD, [], |mut cells| {
        let sound = cells.next_hold(KEYRING_COLUMNS)?;
        let place = Place { table: "keyring", column: "sum", row: cells.take()? };
        let mut read = || {
            let tree = place.count(place.row)?;
            let key = u32::try_from(cells.take::<i64>()?).map_err(|_| place.corrupt())?;
            Ok(WrappedTree { tree, key, body: cells.take()? })
        };
        Ok((place.row, if sound { read() } else { Err(place.corrupt()) }))
    })?;
    for (number, stored) in stored {
        // A damaged number is nobody's twin.
        let kept = found.entry(number.unsigned_abs()).or_insert(Err(StoreError::DataKeyUnknown { tree: 0 }));
        if kept.is_err() {
            *kept = stored;
        }
    }
    found.into_values().collect()
}

/// The keys that are not in their index yet, from the messages that used them.
fn load_keys(connection: &Connection, memory: &mut Memory) -> Result<(), StoreError> {
    let mut after = memory.keys.keyed();
    loop {
        let page = params![after, KEYS_PER_READ];
        let mut last = after;
        let read = rows(connection, sql::KEYS_LOAD, page, |mut cells| {
            let sound = cells.next_hold_with_added(INDEXED_COLUMNS)?;
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
pub(super) fn open_state(
    cells: &mut Cells<'_>,
    vault: &Vault,
) -> Result<(String, String, Vec<u8>), StoreError> {
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
    let kind = cells.take_text()?.and_then(QueueKind::from_name).ok_or_else(|| place("kind").corrupt())?;
    let paused_since = time(&mut cells)?;
    let trip = trip(time(&mut cells)?, cells.take_text()?, cells.take()?, time(&mut cells)?, place)?;
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
    let setup = QueueSetup { name, kind, sessions: Default::default(), policy: Default::default() };
    Ok(Queue { id, setup, control, session, newest_session: session, counts })
}

fn time(cells: &mut Cells<'_>) -> Result<Option<Timestamp>, StoreError> {
    Ok(cells.take::<Option<i64>>()?.map(Timestamp::from_micros))
}
