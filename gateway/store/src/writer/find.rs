//! What a group needs of the database before it is decided: the deliveries it names, and the idempotency keys.

use std::collections::{HashMap, HashSet};

use gatepost_core::DeliveryId;

use super::Writer;
use super::accept::{KnownKey, KnownKeys};
use super::lease::batch_index;
use crate::backend::{Backend, CommitError, KeyUse, Need};
use crate::call::Op;
use crate::ops::{Accepted, AcceptedDelivery, LeaseRequest, StoreError};
use crate::row::{Row, state_name};
use crate::seal::Index;

/// What the reads before a turn found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) rows: HashMap<DeliveryId, Row>,
    /// `None` if it was not looked for.
    pub(super) keys: Option<KnownKeys>,
}

impl<B: Backend> Writer<B> {
    /// Reads the deliveries and keys that the group names and memory does not hold, or not for sure.
    pub(super) fn find(&mut self, ops: &[Op], need: Need) -> Result<Found, CommitError> {
        let mut ids: HashSet<DeliveryId> = HashSet::new();
        let mut keys: Vec<Index> = Vec::new();
        // Given again to whoever asks for the same again, if it stands.
        let mut given: HashSet<DeliveryId> = HashSet::new();
        for op in ops {
            match op {
                Op::Settle { settle, prepared, .. } => {
                    ids.extend(settle.items.iter().map(|item| item.delivery));
                    keys.extend(prepared.iter().map(|prepared| prepared.key));
                }
                Op::Accept { prepared, .. } => {
                    keys.extend(prepared.iter().map(|prepared| prepared.key));
                }
                Op::Operate { delivery, .. } => drop(ids.insert(*delivery)),
                Op::Lease(request, _) if self.memory.is_shared => given.extend(self.given(request)),
                Op::Lease(..)
                | Op::Damaged { .. }
                | Op::SessionOpen { .. }
                | Op::SessionEnd { .. }
                | Op::QueuePause { .. }
                | Op::QueueTrip { .. }
                | Op::Configure { .. }
                | Op::Move { .. }
                | Op::AcceptedBefore { .. }
                | Op::Claim { .. }
                | Op::Rewrap { .. }
                | Op::SealKeyOldest { .. }
                | Op::Erase { .. }
                | Op::Yield { .. }
                | Op::Note(..) => {}
            }
        }
        let believes_memory = need == Need::AtCommit || !self.memory.is_shared;
        let is_known = |id: &DeliveryId| believes_memory && self.memory.hot.contains_key(id);
        ids.retain(|id| !is_known(id));
        ids.extend(given);
        let ids: Vec<DeliveryId> = ids.into_iter().collect();
        let read = if ids.is_empty() { Vec::new() } else { self.database.deliveries(&ids)? };
        let rows = self.memory.damage.sound(read)?;
        for row in &rows {
            // Another node may have had its say.
            if self.memory.hot.contains_key(&row.id) {
                self.memory.install(row.clone());
            }
        }
        let rows = rows.into_iter().map(|row| (row.id, row)).collect();
        Ok(Found { rows, keys: self.known_keys(&keys, need)? })
    }

    /// What memory knows to have been given to an earlier call with the same `request_id`.
    fn given(&self, request: &LeaseRequest) -> Vec<DeliveryId> {
        let batch = batch_index(&self.vault, request).and_then(|batch| self.memory.batches.get(&batch));
        batch.into_iter().flatten().map(|(id, _)| *id).collect()
    }

    /// What a message was answered when it was handed in before with the same content.
    pub(super) fn accepted_before(
        &mut self,
        key: Index,
        fingerprint: Index,
    ) -> Result<Option<Accepted>, StoreError> {
        let known = self.known_keys(&[key], Need::Sure)?.and_then(|mut known| known.remove(&key));
        let known = known.filter(|known| known.fingerprint == fingerprint);
        Ok(known.map(|known| Accepted { id: known.message, duplicate: true, deliveries: known.deliveries }))
    }

    /// What is known of those of the keys whose window has not passed; `None` if it was not looked for.
    fn known_keys(&mut self, keys: &[Index], need: Need) -> Result<Option<KnownKeys>, CommitError> {
        if keys.is_empty() {
            return Ok(Some(KnownKeys::new()));
        }
        let (now, mut known) = (self.now(), KnownKeys::new());
        let Some(all_used) = self.database.keys_used(&self.memory, keys, need)? else { return Ok(None) };
        for used in all_used {
            let age = now.since(used.accepted_at);
            if age < self.dedup_window {
                tracing::debug!(message = %used.message, age_s = age.as_secs(), "a known idempotency key");
                known.insert(used.key, self.known_key(used));
            }
        }
        Ok(Some(known))
    }

    fn known_key(&self, used: KeyUse) -> KnownKey {
        let describe = |(id, queue, state): (DeliveryId, i64, i64)| {
            let name = self.memory.queues.get(&queue).map(|queue| queue.setup.name.clone());
            let state = state_name(state).unwrap_or("unknown");
            AcceptedDelivery { id, destination: name.unwrap_or_default(), state }
        };
        let deliveries = used.deliveries.into_iter().map(describe).collect();
        KnownKey { fingerprint: used.fingerprint, message: used.message, deliveries }
    }
}
