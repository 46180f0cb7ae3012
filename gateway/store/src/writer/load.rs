//! Bringing memory in line with the database: at start, after a failure, and when the configuration changes.

use std::collections::HashMap;
use std::time::Duration;

use gatepost_core::Timestamp;
use gatepost_core::delivery::Event;
use gatepost_core::queue::{QueueControl, Trip, TripReason};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};

use super::candidates::WINDOW_MAX;
use super::commit::classify;
use super::group::turn_parts;
use super::keys::Keys;
use super::memory::{Counts, Memory, Queue};
use super::turn::Turn;
use super::{Condition, Writer};
use crate::ops::{QueueKind, QueueSetup, Session, StoreError, UNROUTED};
use crate::row::{Row, bytes, get};
use crate::seal::{Index, Place};
use crate::sql;

/// Keys read in one go at start, so that the start needs little memory.
const KEYS_PER_READ: i64 = 4096;

/// Reads everything that memory holds. Queues have no policy until they are configured.
pub(crate) async fn load_memory(
    connection: &mut SqliteConnection,
    keys_in_memory: usize,
) -> Result<Memory, StoreError> {
    let database = |error: sqlx::Error| StoreError::Database(error.to_string());
    let store = sqlx::query(sql::STORE_LOAD).fetch_one(&mut *connection).await.map_err(database)?;
    let sequences = sqlx::query(sql::SEQUENCES_LOAD).fetch_one(&mut *connection).await.map_err(database)?;
    let keyed: i64 = get(&store, "keyed")?;
    let mut memory = Memory {
        leaf_count: u64::try_from(get::<i64>(&store, "leaf_count")?).unwrap_or(0),
        next_seq: sequences.try_get::<i64, _>(0).map_err(database)? + 1,
        next_pos: sequences.try_get::<i64, _>(1).map_err(database)? + 1,
        keys: load_keys(connection, keyed, keys_in_memory).await?,
        queues: HashMap::new(),
        by_name: HashMap::new(),
        hot: HashMap::new(),
        batches: HashMap::new(),
        rates: HashMap::new(),
    };
    for row in sqlx::query(sql::QUEUES_LOAD).fetch_all(&mut *connection).await.map_err(database)? {
        let queue = load_queue(&row)?;
        memory.by_name.insert(queue.setup.name.clone(), queue.id);
        memory.queues.insert(queue.id, queue);
    }
    for row in sqlx::query(sql::DELIVERIES_LEASED).fetch_all(&mut *connection).await.map_err(database)? {
        let row = Row::load(&row)?;
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
async fn load_keys(connection: &mut SqliteConnection, keyed: i64, most: usize) -> Result<Keys, StoreError> {
    let mut keys = Keys::new(keyed, most);
    let mut after = keyed;
    loop {
        let query = sqlx::query(sql::KEYS_LOAD).bind(after).bind(KEYS_PER_READ);
        let rows = query
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| StoreError::Database(error.to_string()))?;
        let read: Vec<(Index, i64)> = rows
            .iter()
            .map(|row| {
                let seq: i64 = get(row, "seq")?;
                Ok((bytes(row, "dedup", seq)?, seq))
            })
            .collect::<Result<_, StoreError>>()?;
        let Some((_, last)) = read.last() else { return Ok(keys) };
        after = *last;
        keys.add(read);
    }
}

fn load_queue(row: &SqliteRow) -> Result<Queue, StoreError> {
    let id: i64 = get(row, "id")?;
    let place = |column| Place { table: "queue", column, row: id };
    let time = |column: &'static str| -> Result<Option<Timestamp>, StoreError> {
        Ok(get::<Option<i64>>(row, column)?.map(Timestamp::from_micros))
    };
    let trip = match (time("trip_since")?, get::<Option<&str>>(row, "trip_reason")?, time("trip_due")?) {
        (Some(since), Some(reason), Some(probe_due)) => Some(Trip {
            since,
            reason: TripReason::from_name(reason).ok_or_else(|| place("trip_reason").corrupt())?,
            failures: u32::try_from(get::<i64>(row, "trip_failures")?).unwrap_or(u32::MAX),
            probe_due,
            probe: None,
        }),
        _ => None,
    };
    let control = QueueControl {
        paused_since: time("paused_since")?,
        trip,
        idle_before: Duration::from_micros(u64::try_from(get::<i64>(row, "idle_before")?).unwrap_or(0)),
        idle_since: time("idle_since")?,
    };
    let counts = Counts {
        waiting: get(row, "waiting")?,
        leased: get(row, "leased")?,
        sending: get(row, "sending")?,
        sent: get(row, "sent")?,
        in_doubt: get(row, "in_doubt")?,
        held: get(row, "held")?,
        dead: get(row, "dead")?,
        suspects: get(row, "suspects")?,
        held_lanes: get(row, "held_lanes")?,
        bytes: get(row, "bytes")?,
    };
    let kind = kind_of(get(row, "kind")?).ok_or_else(|| place("kind").corrupt())?;
    let setup = QueueSetup { name: get::<String>(row, "name")?, kind, policy: Default::default() };
    let session = u64::try_from(get::<i64>(row, "session")?).unwrap_or(0);
    Ok(Queue { id, setup, control, session, counts })
}

fn kind_of(name: &str) -> Option<QueueKind> {
    [QueueKind::Adapter, QueueKind::ExternalAdapter, QueueKind::Inbox, QueueKind::Builtin, QueueKind::Removed]
        .into_iter()
        .find(|kind| kind.as_str() == name)
}

impl Writer {
    /// Puts the configuration's queues in force. A queue that has left it keeps its deliveries and serves nobody.
    pub(crate) async fn configure(&mut self, mut setups: Vec<QueueSetup>) -> Result<(), StoreError> {
        setups.push(QueueSetup {
            name: UNROUTED.to_owned(),
            kind: QueueKind::Builtin,
            policy: Default::default(),
        });
        let windows = self.windows();
        let to_end = self.leases_to_end();
        for setup in setups.clone() {
            self.put_queue(setup).await?;
        }
        self.end_leases(&to_end, &windows).await?;
        let kept: Vec<&str> = setups.iter().map(|setup| setup.name.as_str()).collect();
        let removed: Vec<Queue> = self
            .memory
            .queues
            .values()
            .filter(|queue| !kept.contains(&queue.setup.name.as_str()))
            .cloned()
            .collect();
        for mut queue in removed {
            queue.setup.kind = QueueKind::Removed;
            self.put_queue(queue.setup).await?;
        }
        self.publish_queues();
        for name in kept {
            self.hints.queue_changed(name);
        }
        Ok(())
    }

    async fn put_queue(&mut self, setup: QueueSetup) -> Result<(), StoreError> {
        let database = |error: sqlx::Error| StoreError::from(classify(&error));
        match self.memory.by_name.get(&setup.name).copied() {
            Some(id) => {
                sqlx::query(sql::QUEUE_KIND)
                    .bind(id)
                    .bind(setup.kind.as_str())
                    .execute(&mut self.connection)
                    .await
                    .map_err(database)?;
                if let Some(queue) = self.memory.queues.get_mut(&id) {
                    queue.setup = setup;
                }
            }
            None => {
                let id = self.memory.queues.keys().max().copied().unwrap_or(0) + 1;
                sqlx::query(sql::QUEUE_ADD)
                    .bind(id)
                    .bind(setup.name.as_str())
                    .bind(setup.kind.as_str())
                    .execute(&mut self.connection)
                    .await
                    .map_err(database)?;
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
        queues.filter(|queue| queue.leases_end_with_gateway()).map(|queue| queue.id).collect()
    }

    /// Ends leases that did not outlive the gateway; they cost nothing. Only once the queues have their policies: it is the policy
    /// that says whether what had begun is held for a person. Lanes whose window has become narrower are brought in line.
    async fn end_leases(&mut self, queues: &[i64], windows: &HashMap<i64, u32>) -> Result<(), StoreError> {
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
        let parts = turn_parts(turn);
        self.finish(parts, 0).await?;
        Ok(())
    }

    /// What an adapter's new session starts from.
    pub(crate) async fn session(&mut self, adapter: &str, epoch: u64) -> Result<Session, StoreError> {
        let database = |error: sqlx::Error| StoreError::Database(error.to_string());
        let query = sqlx::query(sql::ADAPTER_STATE_LOAD).bind(adapter);
        let rows = query.fetch_all(&mut self.connection).await.map_err(database)?;
        let mut state = Vec::with_capacity(rows.len());
        for row in &rows {
            let place = Place { table: "adapter_state", column: "value", row: 0 };
            let value = self.vault.open(get(row, "value")?, place)?.to_vec();
            state.push((get(row, "key")?, value));
        }
        Ok(Session { epoch, state })
    }

    /// Opens the database anew after a failure and goes on if it is sound.
    pub(crate) async fn reopen(&mut self) {
        match self.try_reopen().await {
            Ok(()) => {
                tracing::info!("the database is sound again: the store goes on");
                self.condition = Condition::Working;
                self.health.set_obstacle(None);
                self.publish_queues();
            }
            Err(text) => {
                tracing::error!(error = %text, "the database is still unusable; the store stays read-only");
                self.health.set_obstacle(Some(format!("the database failed: {text}")));
                self.condition = Condition::Broken(text);
            }
        }
    }

    async fn try_reopen(&mut self) -> Result<(), String> {
        let mut connection = crate::open::connect(&self.database).await.map_err(|error| error.to_string())?;
        crate::open::quick_check(&mut connection).await?;
        let mut memory =
            load_memory(&mut connection, self.keys_in_memory).await.map_err(|error| error.to_string())?;
        let setups: HashMap<i64, QueueSetup> =
            self.memory.queues.values().map(|queue| (queue.id, queue.setup.clone())).collect();
        for (id, setup) in setups {
            if let Some(queue) = memory.queues.get_mut(&id) {
                queue.setup = setup;
            }
        }
        self.connection = connection;
        self.memory = memory;
        Ok(())
    }
}
