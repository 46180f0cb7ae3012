//! What a group needs of the database before it is decided: the deliveries it names, and the idempotency keys.

use std::collections::{HashMap, HashSet};

use gatepost_core::{DeliveryId, MessageId, Timestamp};

use super::Writer;
use super::accept::{KnownKey, KnownKeys};
use super::commit::{CommitError, classify};
use super::refuse::refused;
use crate::digest::Digests;
use crate::ops::{Accepted, AcceptedDelivery, StoreError};
use crate::row::{Row, bytes, get, state_name};
use crate::seal::Index;
use crate::sql;
use crate::store::Op;

/// When the keys that memory does not know are looked up in their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyLookup {
    /// By the commit, which fails when one is there.
    InCommit,
    Before,
}

/// What the reads before a turn found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) rows: HashMap<DeliveryId, Row>,
    pub(super) keys: KnownKeys,
}

impl Writer {
    /// Reads the deliveries and keys that the group names and memory does not hold.
    pub(super) async fn find(&mut self, ops: &[Op], lookup: KeyLookup) -> Result<Found, CommitError> {
        let mut ids: HashSet<DeliveryId> = HashSet::new();
        let mut keys: HashSet<Index> = HashSet::new();
        for op in ops {
            match op {
                Op::Settle { settle, digests, .. } => {
                    ids.extend(settle.items.iter().map(|item| item.delivery));
                    keys.extend(digests.iter().map(|digests: &Digests| digests.key));
                }
                Op::Accept { digests, .. } => keys.extend(digests.iter().map(|digests| digests.key)),
                Op::Operate { delivery, .. } => drop(ids.insert(*delivery)),
                Op::Lease(..)
                | Op::SessionOpen { .. }
                | Op::SessionEnd { .. }
                | Op::QueuePause { .. }
                | Op::QueueTrip { .. }
                | Op::Configure { .. }
                | Op::AcceptedBefore { .. }
                | Op::Note(..) => {}
            }
        }
        ids.retain(|id| !self.memory.hot.contains_key(id));
        let rows = self.load_deliveries(&ids).await?;
        let mut messages: Vec<i64> = keys.iter().filter_map(|key| self.memory.keys.message_of(key)).collect();
        if lookup == KeyLookup::Before {
            keys.retain(|key| self.memory.keys.message_of(key).is_none());
            messages.extend(self.look_up(&keys).await?);
        }
        let mut known = HashMap::with_capacity(messages.len());
        for message in messages {
            known.extend(self.known_key(message).await?);
        }
        Ok(Found { rows, keys: known })
    }

    /// What a message was answered when it was handed in before with the same content.
    pub(super) async fn accepted_before(
        &mut self,
        key: Index,
        fingerprint: Index,
    ) -> Result<Option<Accepted>, StoreError> {
        let message = match self.memory.keys.message_of(&key) {
            Some(message) => Some(message),
            None => self.look_up(&HashSet::from([key])).await?.pop(),
        };
        let Some(message) = message else { return Ok(None) };
        let known = self.known_key(message).await?.map(|(_, known)| known);
        Ok(known.filter(|known| known.fingerprint == fingerprint).map(|known| Accepted {
            id: known.message,
            duplicate: true,
            deliveries: known.deliveries,
        }))
    }

    async fn load_deliveries(
        &mut self,
        ids: &HashSet<DeliveryId>,
    ) -> Result<HashMap<DeliveryId, Row>, CommitError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let joined: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        let query = sqlx::query(sql::DELIVERIES_BY_ID).bind(joined).bind(ids.len() as i64);
        let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
        rows.iter().map(|row| Row::load(row).map(|row| (row.id, row)).map_err(refused)).collect()
    }

    /// The messages of those keys that are in the index.
    async fn look_up(&mut self, keys: &HashSet<Index>) -> Result<Vec<i64>, CommitError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let joined: Vec<u8> = keys.iter().flatten().copied().collect();
        let query = sqlx::query(sql::KEYS_FIND).bind(joined).bind(keys.len() as i64);
        let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
        rows.iter().map(|row| get(row, "message").map_err(refused)).collect()
    }

    /// What is known of the key that a message used; `None` when its window has passed.
    async fn known_key(&mut self, seq: i64) -> Result<Option<(Index, KnownKey)>, CommitError> {
        let query = sqlx::query(sql::KEY_OF_MESSAGE).bind(seq);
        let row = query.fetch_one(&mut self.connection).await.map_err(|error| classify(&error))?;
        let accepted_at = Timestamp::from_micros(get(&row, "accepted_at").map_err(refused)?);
        let age = self.now().since(accepted_at);
        if age >= self.dedup_window {
            return Ok(None);
        }
        let key = KnownKey {
            fingerprint: bytes(&row, "fingerprint", seq).map_err(refused)?,
            message: MessageId::from_bytes(bytes(&row, "id", seq).map_err(refused)?),
            deliveries: self.deliveries_of(seq).await?,
        };
        tracing::debug!(message = %key.message, age_s = age.as_secs(), "a known idempotency key");
        Ok(Some((bytes(&row, "dedup", seq).map_err(refused)?, key)))
    }

    /// The deliveries of a message that is handed in again.
    async fn deliveries_of(&mut self, seq: i64) -> Result<Vec<AcceptedDelivery>, CommitError> {
        let query = sqlx::query(sql::DELIVERIES_OF_MESSAGE).bind(seq);
        let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
        let describe = |row: &sqlx::sqlite::SqliteRow| -> Result<AcceptedDelivery, StoreError> {
            let queue: i64 = get(row, "queue")?;
            let name = self.memory.queues.get(&queue).map(|queue| queue.setup.name.clone());
            Ok(AcceptedDelivery {
                id: DeliveryId::from_bytes(bytes(row, "id", seq)?),
                destination: name.unwrap_or_default(),
                state: state_name(get(row, "state")?).unwrap_or("unknown"),
            })
        };
        rows.iter().map(|row| describe(row).map_err(refused)).collect()
    }
}
