//! Messages that have left, or are about to: what a partner may ask for again, and which deliveries still wait for proof.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use bytes::Bytes;
use gatepost_adapter::Lease;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::message::Tag;

/// Which message: its epoch and its sequence number.
pub(crate) type Place = (u64, u64);

/// A sent message as it is kept for the case that the partner asks for it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// As it left the first time.
    pub(crate) bytes: Bytes,
    /// When it must not be sent any more, milliseconds since 1970.
    pub(crate) expires: Option<i64>,
    /// The delivery that still waits for proof.
    pub(crate) pending: Option<Pending>,
}

/// The delivery behind a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pending {
    /// The newest one: what settles it, also in a later session of the adapter.
    pub(crate) lease: Lease,
    /// The gateway's id of the message, which what comes in reply is correlated with.
    pub(crate) message: String,
    /// What the partner's answer will name: the field and its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) business_id: Option<BusinessId>,
    #[serde(default, skip_serializing_if = "Query::is_none")]
    pub(crate) query: Query,
}

/// Longest business id that is looked for, bytes: longer ones are no ids.
pub(super) const BUSINESS_ID_BYTES_MAX: usize = 256;
/// What a delivery that waits costs in the adapter's state besides its key and ids, bytes; rather too much.
pub(super) const PENDING_OVERHEAD_BYTES: usize = 280;
/// In front of a message stands when it expires.
const EXPIRY_BYTES_MAX: usize = 21;

impl Pending {
    fn bytes(&self) -> usize {
        let name = self.business_id.as_ref().map_or(0, BusinessId::bytes);
        PENDING_OVERHEAD_BYTES + self.message.len() + name
    }
}

/// Whether the partner has been asked about it by name, and has said that it does not know it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Query {
    #[default]
    None,
    Asked,
    Unknown,
}

impl Query {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// A field that a business answer repeats, like ClOrdID (11), and its value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct BusinessId(pub(crate) Tag, pub(crate) String);

impl BusinessId {
    /// As JSON.
    pub(super) fn bytes(&self) -> usize {
        serde_json::json!(self).to_string().len()
    }
}

/// The messages of one session that are kept. Those of earlier epochs only as long as a delivery waits behind them.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    records: BTreeMap<Place, Record>,
    by_delivery: HashMap<Uuid, Place>,
    by_business_id: HashMap<BusinessId, Place>,
    /// Those that no delivery waits behind.
    free: BTreeSet<Place>,
    /// Of a key in the adapter's state.
    key_bytes: usize,
    bytes: usize,
    /// Of all that have ever come.
    bytes_ever: u64,
    /// What stands through here is older than what is to be kept; never goes back.
    horizon: Place,
    /// How many stand behind it, and what they cost.
    newer: usize,
    newer_bytes: usize,
}

impl Outbox {
    pub(crate) fn new(session: &str) -> Self {
        Self { key_bytes: super::keys::bytes_max(session), ..Self::default() }
    }

    /// What a message of this length costs in the adapter's state.
    pub(crate) fn cost(&self, message: usize) -> usize {
        self.key_bytes + EXPIRY_BYTES_MAX + message
    }

    /// The same of a delivery that waits behind it.
    fn cost_of_pending(&self, pending: &Pending) -> usize {
        self.key_bytes + pending.bytes()
    }

    fn cost_of(&self, record: &Record) -> usize {
        let pending = record.pending.as_ref().map_or(0, |pending| self.cost_of_pending(pending));
        self.cost(record.bytes.len()) + pending
    }

    /// The same of one that is to be sent; rather too much, since its names are not known yet.
    pub(crate) fn cost_of_new(&self, message: usize, id: &str) -> usize {
        let pending = PENDING_OVERHEAD_BYTES + id.len() + BUSINESS_ID_BYTES_MAX;
        self.cost(message) + self.key_bytes + pending
    }

    pub(crate) fn insert(&mut self, place: Place, record: Record) {
        self.remove(place);
        match &record.pending {
            Some(pending) => {
                self.by_delivery.insert(pending.lease.delivery, place);
                if let Some(id) = &pending.business_id {
                    self.by_business_id.insert(id.clone(), place);
                }
            }
            None => drop(self.free.insert(place)),
        }
        let cost = self.cost_of(&record);
        self.bytes += cost;
        self.bytes_ever += cost as u64;
        if place > self.horizon {
            self.newer += 1;
            self.newer_bytes += cost;
        }
        self.records.insert(place, record);
    }

    pub(crate) fn get(&self, place: Place) -> Option<&Record> {
        self.records.get(&place)
    }

    pub(crate) fn remove(&mut self, place: Place) -> Option<Record> {
        self.settle(place);
        let record = self.records.remove(&place)?;
        self.free.remove(&place);
        let cost = self.cost_of(&record);
        self.bytes -= cost;
        if place > self.horizon {
            self.newer -= 1;
            self.newer_bytes -= cost;
        }
        Some(record)
    }

    /// Of all messages together, and of the deliveries that wait behind them.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The same of all that have ever been here.
    pub(crate) fn bytes_ever(&self) -> u64 {
        self.bytes_ever
    }

    /// The delivery waits no more; the message stays.
    pub(crate) fn settle(&mut self, place: Place) -> Option<Pending> {
        let pending = self.records.get_mut(&place)?.pending.take()?;
        self.free.insert(place);
        let cost = self.cost_of_pending(&pending);
        self.bytes -= cost;
        if place > self.horizon {
            self.newer_bytes -= cost;
        }
        if self.by_delivery.get(&pending.lease.delivery) == Some(&place) {
            self.by_delivery.remove(&pending.lease.delivery);
        }
        if let Some(id) = &pending.business_id
            && self.by_business_id.get(id) == Some(&place)
        {
            self.by_business_id.remove(id);
        }
        Some(pending)
    }

    /// A newer lease of the same delivery.
    pub(crate) fn renew(&mut self, place: Place, lease: &Lease) -> Option<&Pending> {
        let pending = self.records.get_mut(&place)?.pending.as_mut()?;
        lease.clone_into(&mut pending.lease);
        Some(pending)
    }

    /// Whether a message of this epoch is kept.
    pub(crate) fn holds(&self, epoch: u64) -> bool {
        self.records.range((epoch, 0)..=(epoch, u64::MAX)).next().is_some()
    }

    pub(crate) fn set_query(&mut self, place: Place, query: Query) -> Option<&Pending> {
        let pending = self.records.get_mut(&place)?.pending.as_mut()?;
        pending.query = query;
        Some(pending)
    }

    pub(crate) fn place_of(&self, delivery: Uuid) -> Option<Place> {
        self.by_delivery.get(&delivery).copied()
    }

    pub(crate) fn answered_by(&self, id: &BusinessId) -> Option<Place> {
        self.by_business_id.get(id).copied()
    }

    /// How many deliveries wait for proof.
    pub(crate) fn pending(&self) -> usize {
        self.records.len() - self.free.len()
    }

    /// Deliveries that wait for proof, of messages from `first` through `last`; the first `most` of them.
    pub(crate) fn pending_within(&self, first: Place, last: Place, most: usize) -> Vec<Place> {
        if first > last {
            return Vec::new();
        }
        let waiting = self.records.range(first..=last).filter(|(_, record)| record.pending.is_some());
        waiting.map(|(place, _)| *place).take(most).collect()
    }

    /// Messages of epochs before `epoch` that deliveries still wait behind: the first `most` from `from` on.
    pub(crate) fn orphans(&self, from: Place, epoch: u64, most: usize) -> Vec<Place> {
        self.records
            .range(from.min((epoch, 0))..(epoch, 0))
            .filter(|(_, record)| record.pending.is_some())
            .map(|(place, _)| *place)
            .take(most)
            .collect()
    }

    /// A new epoch has begun: only what a delivery waits behind is kept of earlier ones. Gives the rest, and what each costs.
    pub(crate) fn begin_epoch(&mut self, epoch: u64) -> Vec<(Place, usize)> {
        let places = self.free.range(..(epoch, 0)).copied().collect();
        self.let_go(places)
    }

    /// Lets go of all but the newest `keep` messages and `keep_bytes`, of those through `confirmed` that nobody waits behind. Gives them, and
    /// what each costs.
    pub(crate) fn prune(
        &mut self,
        keep: usize,
        keep_bytes: usize,
        (epoch, confirmed): Place,
    ) -> Vec<(Place, usize)> {
        while self.newer > keep || self.newer_bytes > keep_bytes {
            let behind = (Bound::Excluded(self.horizon), Bound::Unbounded);
            let Some((place, record)) = self.records.range(behind).next() else { break };
            let cost = self.cost_of(record);
            self.horizon = *place;
            self.newer -= 1;
            self.newer_bytes -= cost;
        }
        let last = self.horizon.min((epoch, confirmed));
        let places = self.free.range((epoch, 0)..=last.max((epoch, 0))).copied().collect();
        self.let_go(places)
    }

    /// Lets go of the oldest messages until what is kept costs `bytes` less, of those through `confirmed` that nobody waits behind, wherever
    /// they stand.
    pub(crate) fn make_room(&mut self, bytes: usize, (epoch, confirmed): Place) -> Vec<(Place, usize)> {
        let mut freed = 0;
        let mut places = Vec::new();
        for place in self.free.range((epoch, 0)..=(epoch, confirmed)) {
            if freed >= bytes {
                break;
            }
            freed += self.records.get(place).map_or(0, |record| self.cost_of(record));
            places.push(*place);
        }
        self.let_go(places)
    }

    fn let_go(&mut self, places: Vec<Place>) -> Vec<(Place, usize)> {
        let gone = places.into_iter().filter_map(|place| {
            let record = self.remove(place)?;
            Some((place, self.cost_of(&record)))
        });
        gone.collect()
    }

    /// The messages from `first` through `last` of an epoch; none where that is backwards.
    pub(crate) fn within(&self, epoch: u64, first: u64, last: u64) -> impl Iterator<Item = (u64, &Record)> {
        // A range that ends before it begins would panic.
        let end = last.saturating_add(1).max(first);
        self.records.range((epoch, first)..(epoch, end)).map(|((_, seq), record)| (*seq, record))
    }
}
