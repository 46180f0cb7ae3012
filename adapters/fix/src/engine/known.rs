//! Outcomes that the gateway has not taken yet, because the delivery's lease had ended before they came.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Verdict;

/// Most of them. Beyond that, and where there is no room for more, the oldest is forgotten; its delivery has been resolved by a person long
/// since.
const KNOWN_MAX: usize = 1000;

/// By the delivery's id, which begins with the time at which it was made; with what each costs in the adapter's state.
#[derive(Debug, Default)]
pub(super) struct Known {
    all: BTreeMap<Uuid, (Verdict, usize)>,
    bytes: usize,
}

impl Known {
    pub(super) fn insert(&mut self, delivery: Uuid, verdict: Verdict, bytes: usize) {
        self.take(delivery);
        self.all.insert(delivery, (verdict, bytes));
        self.bytes += bytes;
    }

    /// The oldest one and what it costs, if there are more than there is room for. The last one stays.
    pub(super) fn forget_one(&mut self, bytes_max: usize) -> Option<(Uuid, usize)> {
        let full = self.all.len() > KNOWN_MAX || self.bytes > bytes_max && self.all.len() > 1;
        let (oldest, (_, bytes)) = full.then(|| self.all.pop_first())??;
        self.bytes -= bytes;
        Some((oldest, bytes))
    }

    pub(super) fn contains(&self, delivery: Uuid) -> bool {
        self.all.contains_key(&delivery)
    }

    pub(super) fn take(&mut self, delivery: Uuid) -> Option<Verdict> {
        let (verdict, bytes) = self.all.remove(&delivery)?;
        self.bytes -= bytes;
        Some(verdict)
    }
}
