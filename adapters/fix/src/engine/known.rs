//! Outcomes that the gateway has not taken yet, because the delivery's lease had ended before they came.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Verdict;

/// Most of them. Beyond that the oldest is forgotten; its delivery has been resolved by a person long since.
const KNOWN_MAX: usize = 1000;

/// By the delivery's id, which begins with the time at which it was made.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<Uuid, Verdict>);

impl Known {
    /// Gives the one that had to make room, if one had to.
    pub(super) fn insert(&mut self, delivery: Uuid, verdict: Verdict) -> Option<Uuid> {
        self.0.insert(delivery, verdict);
        if self.0.len() > KNOWN_MAX { self.0.pop_first().map(|(oldest, _)| oldest) } else { None }
    }

    pub(super) fn contains(&self, delivery: Uuid) -> bool {
        self.0.contains_key(&delivery)
    }

    pub(super) fn take(&mut self, delivery: Uuid) -> Option<Verdict> {
        self.0.remove(&delivery)
    }
}
