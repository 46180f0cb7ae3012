//! Sequence numbers: the part of a session's state that every message changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most epochs before this one of which it is remembered what was confirmed.
const EARLIER_MAX: usize = 64;

/// How far a reset within a session is that this side has begun ([`super::reset`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Renewal {
    /// To be done once the partner has confirmed what it was sent.
    Wanted,
    /// Our Logon with ResetSeqNumFlag may have left: whether the partner has begun anew is not known until it says so.
    Asked,
}

/// Where a session stands. Kept in the adapter's state, written before any byte that depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Numbers {
    /// Grows by one with every reset, so that a pair of epoch and sequence number never comes twice.
    pub(crate) epoch: u64,
    /// MsgSeqNum (34) of the next message that leaves.
    pub(crate) next_out: u64,
    /// MsgSeqNum (34) that the next message from the partner must have.
    pub(crate) next_in: u64,
    /// The partner has processed everything of ours through this number.
    pub(crate) confirmed: u64,
    /// Messages of this epoch through this number are kept no more.
    #[serde(default)]
    pub(crate) forgotten: u64,
    /// When the schedule's window began in which this epoch began, seconds since 1970; none without a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) window: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) renewal: Option<Renewal>,
    /// The last moment of `reset_at` that has been dealt with, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reset_at: Option<i64>,
    /// What the partner had confirmed of earlier epochs that deliveries still wait behind, by epoch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) earlier: BTreeMap<u64, u64>,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            epoch: 1,
            next_out: 1,
            next_in: 1,
            confirmed: 0,
            forgotten: 0,
            window: None,
            renewal: None,
            reset_at: None,
            earlier: BTreeMap::new(),
        }
    }
}

impl Numbers {
    /// Both directions begin at 1 again, in a new epoch.
    pub(crate) fn reset(&mut self, window: Option<i64>) {
        let mut earlier = std::mem::take(&mut self.earlier);
        earlier.insert(self.epoch, self.confirmed);
        if earlier.len() > EARLIER_MAX {
            // What waits behind it counts as unconfirmed from now on, and may be sent again, marked.
            earlier.pop_first();
        }
        *self = Self {
            epoch: self.epoch + 1,
            window: window.or(self.window),
            reset_at: self.reset_at,
            earlier,
            ..Self::default()
        };
    }

    /// The partner has processed the message of this epoch and number.
    pub(crate) fn has_confirmed(&self, epoch: u64, seq: u64) -> bool {
        let confirmed = if epoch == self.epoch { Some(&self.confirmed) } else { self.earlier.get(&epoch) };
        confirmed.is_some_and(|confirmed| seq <= *confirmed)
    }

    /// The number of the last message that has been given one.
    pub(crate) fn last_out(&self) -> u64 {
        self.next_out - 1
    }
}
