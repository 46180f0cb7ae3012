//! What a group needs of the database before it is decided: the deliveries it names, and the idempotency keys.

use std::collections::{HashMap, HashSet};

use gatepost_core::{DeliveryId, MessageId, Timestamp};
use rusqlite::params;

use super::Writer;
use super::accept::{KnownKey, KnownKeys};
use crate::call::Op;
use crate::database::{Cells, CommitError, rows};
use crate::ops::{Accepted, AcceptedDelivery, StoreError};
use crate::row::{DELIVERY_COLUMNS, INDEXED_COLUMNS, MESSAGE_COLUMNS, Row, state_name};
use crate::seal::{Index, Place};
use crate::sql;

/// What the reads before a turn found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) rows: HashMap<DeliveryId, Row>,
    pub(super) keys: KnownKeys,
}

impl Writer {
    /// Reads the deliveries and keys that the group names and memory does not hold.
    pub(super) fn find(&mut self, ops: &[Op]) -> Result<Found, CommitError> {
        let mut found = Found::default();
        let mut ids: HashSet<DeliveryId> = HashSet::new();
        for op in ops {
            match op {
                Op::Settle { settle, prepared, .. } => {
                    ids.extend(settle.items.iter().map(|item| item.delivery));
                    self.find_keys(prepared.iter().map(|prepared| prepared.key), &mut found.keys)?;
                }
                Op::Accept { prepared, .. } => {
                    self.find_keys(prepared.iter().map(|prepared| prepared.key), &mut found.keys)?;
                }
                Op::Operate { delivery, .. } => drop(ids.insert(*delivery)),
                Op::Lease(..)
                | Op::Damaged { .. }
                | Op::SessionOpen { .. }
                | Op::SessionEnd { .. }
                | Op::QueuePause { .. }
                | Op::QueueTrip { .. }
                | Op::Configure { .. }
                | Op::Move { .. }
                | Op::AcceptedBefore { .. }
                | Op::Note(..) => {}
            }
        }
        for id in ids.into_iter().filter(|id| !self.memory.hot.contains_key(id)) {
            let read = rows(&self.connection, sql::DELIVERY_BY_ID, params![id.as_bytes()], |cells| {
                Ok(Row::load(cells))
            })?;
            let row = self.memory.damage.sound(read)?;
            found.rows.extend(row.into_iter().map(|row| (row.id, row)));
        }
        Ok(found)
    }

    fn find_keys(&self, keys: impl Iterator<Item = Index>, known: &mut KnownKeys) -> Result<(), CommitError> {
        for key in keys {
            if let Some(seq) = self.message_of(&key)?
                && let Some(found) = self.known_key(&key, seq)?
            {
                known.insert(key, found);
            }
        }
        Ok(())
    }

    /// What a message was answered when it was handed in before with the same content.
    pub(super) fn accepted_before(
        &self,
        key: Index,
        fingerprint: Index,
    ) -> Result<Option<Accepted>, StoreError> {
        let Some(seq) = self.message_of(&key)? else { return Ok(None) };
        let known = self.known_key(&key, seq)?.filter(|known| known.fingerprint == fingerprint);
        Ok(known.map(|known| Accepted { id: known.message, duplicate: true, deliveries: known.deliveries }))
    }

    /// The message that used a key last.
    fn message_of(&self, key: &Index) -> Result<Option<i64>, CommitError> {
        if let Some(seq) = self.memory.keys.message_of(key) {
            return Ok(Some(seq));
        }
        Ok(rows(&self.connection, sql::KEY_FIND, params![key], |mut cells| cells.take())?.pop())
    }

    /// What is known of the key that a message used; `None` when its window has passed.
    fn known_key(&self, key: &Index, seq: i64) -> Result<Option<KnownKey>, CommitError> {
        let found = rows(&self.connection, sql::KEY_OF_MESSAGE, params![seq], |cells| used_key(cells, key))?;
        let Some(&(fingerprint, id, accepted_at)) = found.first() else {
            return Err(Place { table: "dedup", column: "message", row: seq }.corrupt().into());
        };
        let age = self.now().since(Timestamp::from_micros(accepted_at));
        if age >= self.dedup_window {
            return Ok(None);
        }
        let message = MessageId::from_bytes(id);
        tracing::debug!(%message, age_s = age.as_secs(), "a known idempotency key");
        Ok(Some(KnownKey { fingerprint, message, deliveries: self.deliveries_of(seq)? }))
    }

    /// The deliveries of a message that is handed in again.
    fn deliveries_of(&self, seq: i64) -> Result<Vec<AcceptedDelivery>, CommitError> {
        rows(&self.connection, sql::DELIVERIES_OF_MESSAGE, params![seq], |mut cells| {
            let sound = cells.next_hold(DELIVERY_COLUMNS)?;
            let pos = cells.take()?;
            if !sound {
                return Err(Place { table: "delivery", column: "sum", row: pos }.corrupt());
            }
            let (id, _message, queue): (_, i64, _) = (cells.take()?, cells.take()?, cells.take()?);
            let (_lane, state): (Option<Index>, _) = (cells.take()?, cells.take()?);
            let name = self.memory.queues.get(&queue).map(|queue| queue.setup.name.clone());
            Ok(AcceptedDelivery {
                id: DeliveryId::from_bytes(id),
                destination: name.unwrap_or_default(),
                state: state_name(state).unwrap_or("unknown"),
            })
        })
    }
}

/// Fingerprint, id and time of the message that used `key`, if it did and both its sums say so.
fn used_key(mut cells: Cells<'_>, key: &Index) -> Result<(Index, [u8; 16], i64), StoreError> {
    let indexed = cells.next_hold(INDEXED_COLUMNS)?;
    let (seq, dedup): (i64, Index) = (cells.take()?, cells.take()?);
    let place = |column| Place { table: "message", column, row: seq };
    if !indexed {
        return Err(place("sum_indexed").corrupt());
    }
    if dedup != *key {
        return Err(Place { table: "dedup", ..place("message") }.corrupt());
    }
    let fingerprint = cells.take()?;
    for _ in ["subject", "key", "correlation"] {
        cells.take::<Option<Index>>()?;
    }
    let _sum: i64 = cells.take()?;
    if !cells.next_hold(MESSAGE_COLUMNS)? {
        return Err(place("sum").corrupt());
    }
    let _seq: i64 = cells.take()?;
    Ok((fingerprint, cells.take()?, cells.take()?))
}
