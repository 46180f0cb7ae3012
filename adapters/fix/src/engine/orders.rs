//! Orders that live on after their deliveries were settled: reports on them come for hours, and each says which of our messages
//! it belongs to.
//!
//! An order ends with the report that says so (filled, canceled, expired, rejected, replaced). What has no such end, like a
//! request for market data, is forgotten when there is no room for it: the oldest first.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::Place;
use super::outbox::BusinessId;

/// Most of one session.
const ORDERS_MAX: usize = 10_000;
/// What one costs in the adapter's state besides its key and ids, bytes; rather too much.
const OVERHEAD_BYTES: usize = 48;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    /// The gateway's id of the message.
    pub(super) message: String,
    /// What reports on it will name.
    pub(super) business_id: BusinessId,
}

/// By the message that began each of them.
#[derive(Debug, Default)]
pub(super) struct Orders {
    all: BTreeMap<Place, Order>,
    by_id: HashMap<BusinessId, Place>,
    /// Of a key in the adapter's state.
    key_bytes: usize,
    bytes: usize,
}

impl Orders {
    pub(super) fn new(session: &str) -> Self {
        Self { key_bytes: super::keys::bytes_max(session), ..Self::default() }
    }

    fn cost_of(&self, order: &Order) -> usize {
        self.key_bytes + OVERHEAD_BYTES + order.message.len() + order.business_id.bytes()
    }

    /// A second order of the same name takes the place of the first, which is given back.
    pub(super) fn insert(&mut self, place: Place, order: Order) -> Option<Place> {
        let before = self.by_id.insert(order.business_id.clone(), place).filter(|before| *before != place);
        if let Some(before) = before
            && let Some(order) = self.all.remove(&before)
        {
            self.bytes -= self.cost_of(&order);
        }
        self.bytes += self.cost_of(&order);
        if let Some(again) = self.all.insert(place, order) {
            self.bytes -= self.cost_of(&again);
        }
        before
    }

    /// The oldest one, if there are more than there is room for.
    pub(super) fn forget_one(&mut self, bytes_max: usize) -> Option<Place> {
        let full = self.all.len() > ORDERS_MAX || self.bytes > bytes_max;
        let oldest = full.then(|| self.all.first_key_value().map(|(place, _)| *place))??;
        self.remove(oldest).then_some(oldest)
    }

    pub(super) fn get(&self, place: Place) -> Option<&Order> {
        self.all.get(&place)
    }

    pub(super) fn named(&self, id: &BusinessId) -> Option<Place> {
        self.by_id.get(id).copied()
    }

    /// `false`: it was not there.
    pub(super) fn remove(&mut self, place: Place) -> bool {
        let Some(order) = self.all.remove(&place) else { return false };
        self.bytes -= self.cost_of(&order);
        self.by_id.remove(&order.business_id);
        true
    }
}
