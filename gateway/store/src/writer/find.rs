//! What a group needs of the database before it is decided: the deliveries it names, and the idempotency keys.

use std::collections::{HashMap, HashSet};

use gatepost_core::DeliveryId;

use super::Writer;
use super::accept::{KnownKey, KnownKeys, identity};
use super::commit::{CommitError, classify};
use super::refuse::refused;
use crate::ops::{AcceptedDelivery, StoreError};
use crate::row::{Row, bytes, get, state_name};
use crate::seal::Index;
use crate::sql;
use crate::store::Op;

/// What the reads before a turn found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) rows: HashMap<DeliveryId, Row>,
    pub(super) keys: KnownKeys,
}

impl Writer {
    /// Reads the deliveries and keys that the group names and memory does not hold.
    pub(super) async fn find(&mut self, ops: &[Op]) -> Result<Found, CommitError> {
        let mut ids: HashSet<DeliveryId> = HashSet::new();
        let mut keys: HashSet<Index> = HashSet::new();
        for op in ops {
            match op {
                Op::Settle(settle, _) => {
                    ids.extend(settle.items.iter().map(|item| item.delivery));
                    let emitted = settle.emit.iter().map(|emit| &emit.message);
                    keys.extend(emitted.map(|message| identity(&self.vault, &settle.consumer, message).key));
                }
                Op::Accept(accept, _) => {
                    let sender = accept.permit.sender();
                    keys.extend(
                        accept.messages.iter().map(|message| identity(&self.vault, sender, message).key),
                    );
                }
                Op::Operate { delivery, .. } => drop(ids.insert(*delivery)),
                Op::Lease(..)
                | Op::SessionOpen { .. }
                | Op::SessionEnd { .. }
                | Op::QueuePause { .. }
                | Op::QueueTrip { .. }
                | Op::Configure { .. }
                | Op::Note(..) => {}
            }
        }
        ids.retain(|id| !self.memory.hot.contains_key(id));
        let rows = self.load_deliveries(&ids).await?;
        let keys = self.load_keys(&keys).await?;
        Ok(Found { rows, keys })
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

    async fn load_keys(&mut self, keys: &HashSet<Index>) -> Result<KnownKeys, CommitError> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let joined: Vec<u8> = keys.iter().flatten().copied().collect();
        let query = sqlx::query(sql::DEDUP_FIND).bind(joined).bind(keys.len() as i64);
        let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
        let now = self.now();
        let mut known = HashMap::with_capacity(rows.len());
        for row in rows {
            let seq: i64 = get(&row, "message").map_err(refused)?;
            let accepted_at =
                gatepost_core::Timestamp::from_micros(get(&row, "accepted_at").map_err(refused)?);
            if now.since(accepted_at) >= self.dedup_window {
                continue;
            }
            let key = KnownKey {
                fingerprint: bytes(&row, "fingerprint", seq).map_err(refused)?,
                message: gatepost_core::MessageId::from_bytes(bytes(&row, "id", seq).map_err(refused)?),
                accepted_at,
                deliveries: self.deliveries_of(seq).await?,
            };
            tracing::debug!(message = %key.message, age_s = now.since(key.accepted_at).as_secs(), "a known idempotency key");
            known.insert(bytes(&row, "key", seq).map_err(refused)?, key);
        }
        Ok(known)
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
