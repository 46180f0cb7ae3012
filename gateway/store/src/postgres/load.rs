//! What the writer's memory holds, from the tables.

use std::collections::HashMap;
use std::time::Duration;

use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::queue::QueueControl;
use gatepost_core::{MessageId, Timestamp};
use sqlx::postgres::PgRow;

use super::partitions::RUN_BYTES;
use super::row::Cells;
use super::{LeaseGroups, Postgres, sql};
use crate::backend::Attributes;
use crate::keyring::WrappedTree;
use crate::ops::{QueueKind, QueueSetup, StoreError};
use crate::recent::RecentMessage;
use crate::row::{form_of, trip};
use crate::seal::{InPieces, Owner, Place, Salt, Vault};
use crate::writer::{Counts, Keys, Memory, Queue};

impl Postgres {
    /// Reads everything that memory holds. Queues have no policy until they are configured.
    pub(super) fn load_memory(&mut self, vault: &Vault) -> Result<Memory, StoreError> {
        let mut memory = Memory {
            leaf_count: 0,
            run_bytes: RUN_BYTES,
            fresh: Default::default(),
            next_seq: 0,
            next_pos: 0,
            // They stand in their index from the beginning: each node has to find those of the others.
            keys: Keys::new(i64::MAX, 0),
            queues: HashMap::new(),
            by_name: HashMap::new(),
            hot: HashMap::new(),
            is_shared: true,
            batches: HashMap::new(),
            rates: HashMap::new(),
            damage: Default::default(),
            unclaimed: Default::default(),
        };
        self.known.forget();
        for row in self.connection.rows(sqlx::query(sql::KEYRING_LOAD))? {
            vault.learn(&tree(&row)?)?;
        }
        for row in self.connection.rows(sqlx::query(sql::ADAPTER_STATES))? {
            state(&row, vault)?;
        }
        for (queue, version) in self.load_queues()? {
            self.versions.insert(queue.id, version);
            memory.by_name.insert(queue.setup.name.clone(), queue.id);
            memory.queues.insert(queue.id, queue);
        }
        self.load_leases(&mut memory)?;
        Ok(memory)
    }

    /// Queues, each with the version of its row.
    pub(super) fn load_queues(&mut self) -> Result<Vec<(Queue, i64)>, StoreError> {
        self.read_through = i64::MAX;
        // What others have done to the queues may have a larger number.
        self.spare = None;
        self.connection.rows(sqlx::query(sql::QUEUES_LOAD))?.iter().map(queue).collect()
    }

    fn load_leases(&mut self, memory: &mut Memory) -> Result<(), StoreError> {
        let leased = self.load_rows(sqlx::query(sql::DELIVERIES_LEASED).bind(self.node()))?;
        self.leases = LeaseGroups::default();
        for row in memory.damage.sound(leased)? {
            if let Some(trip) =
                memory.queues.get_mut(&row.queue).and_then(|queue| queue.control.trip.as_mut())
                && row.delivery.state.in_flight()
            {
                // Which delivery was the probe is not stored; whatever is leased while tripped may be it.
                trip.probe.get_or_insert(row.id);
            }
            memory.install(row);
        }
        for row in self.connection.rows(sqlx::query(sql::LEASES_LOAD).bind(self.node()))? {
            let mut cells = Cells::new(&row);
            let (group, positions): (i64, Vec<i64>) = (cells.take()?, cells.take()?);
            let stands = |pos: &i64| memory.hot.values().any(|row| row.pos == *pos);
            let standing: Vec<i64> = positions.into_iter().filter(stands).collect();
            if standing.is_empty() {
                self.leases.over.push(group);
            }
            standing.into_iter().for_each(|pos| self.leases.lease(pos, group));
        }
        Ok(())
    }
}

/// A tree of data keys.
pub(crate) fn tree(row: &PgRow) -> Result<WrappedTree, StoreError> {
    let mut cells = Cells::new(row);
    let place = Place { table: "keyring", column: "tree", row: cells.take()? };
    Ok(WrappedTree {
        tree: place.count(place.row)?,
        key: u32::try_from(cells.take::<i32>()?).map_err(|_| place.corrupt())?,
        body: cells.take()?,
    })
}

/// A value of an adapter's state as it is stored.
pub(super) fn sealed_state(row: &PgRow) -> Result<Vec<u8>, StoreError> {
    let mut cells = Cells::new(row);
    let (_adapter, _key) = (cells.take::<&str>()?, cells.take::<&str>()?);
    cells.take()
}

/// Key and value of an adapter's state.
pub(super) fn state(row: &PgRow, vault: &Vault) -> Result<(String, Vec<u8>), StoreError> {
    let mut cells = Cells::new(row);
    let (adapter, key, sealed): (String, String, Vec<u8>) = (cells.take()?, cells.take()?, cells.take()?);
    let row = format!("{adapter}/{key}");
    let owner = Owner::State { adapter: &adapter, key: &key };
    let corrupt = |_| StoreError::Corrupt { table: "adapter_state", column: "value", row };
    let place = Place { table: "adapter_state", column: "value", row: 0 };
    let value = vault.open(&sealed, owner, place).map_err(corrupt)?.to_vec();
    Ok((key, value))
}

/// A row of [`sql::MESSAGE_ATTRIBUTES`] or [`sql::PURGE_READ`].
pub(super) fn attributes(row: &PgRow) -> Result<Attributes, StoreError> {
    let mut cells = Cells::new(row);
    let seq = cells.take()?;
    let message = cells.take_bytes(Place { table: "message", column: "id", row: seq })?;
    Ok(Attributes { seq, message, sealed: cells.take()? })
}

/// A queue and the version of its row.
fn queue(row: &PgRow) -> Result<(Queue, i64), StoreError> {
    let mut cells = Cells::new(row);
    let id = i64::from(cells.take::<i32>()?);
    let place = |column| Place { table: "queue", column, row: id };
    let name: String = cells.take()?;
    let kind = QueueKind::from_name(cells.take()?).ok_or_else(|| place("kind").corrupt())?;
    let version = cells.take()?;
    let paused_since = cells.take_time()?;
    let trip = trip(cells.take_time()?, cells.take()?, cells.take()?, cells.take_time()?, place)?;
    let control = QueueControl {
        paused_since,
        trip,
        idle_before: Duration::from_micros(place("idle_before").count(cells.take()?)?),
        idle_since: cells.take_time()?,
    };
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
    Ok((Queue { id, setup, control, session, newest_session: session, counts }, version))
}

/// A row of [`sql::MESSAGES_SMALL`]; `None` if it is damaged, or has its payload in pieces: a reader puts these together.
pub(super) fn message(row: &PgRow) -> Result<Option<(MessageId, RecentMessage)>, StoreError> {
    let mut cells = Cells::new(row);
    let place = Place { table: "message", column: "id", row: 0 };
    let (id, accepted_at) = (cells.take_bytes(place)?, Timestamp::from_micros(cells.take()?));
    let (kind, name) = (ActorKind::from_name(cells.take()?), cells.take::<&str>()?);
    let (form, size) = (form_of(i64::from(cells.take::<i16>()?)), u64::try_from(cells.take::<i64>()?));
    let (Some(kind), Some(form), Ok(size)) = (kind, form, size) else { return Ok(None) };
    let attributes: Vec<u8> = cells.take()?;
    let salt = Salt::from_stored(cells.take_bytes(Place { column: "salt", ..place })?);
    let data: Vec<u8> = cells.take()?;
    if InPieces::is(&data) {
        return Ok(None);
    }
    let sender = Actor::new(kind, name);
    let (attributes, data) = (attributes.into(), data.into());
    let message = RecentMessage { sender, accepted_at, form, size, salt, attributes, data };
    Ok(Some((MessageId::from_bytes(id), message)))
}
