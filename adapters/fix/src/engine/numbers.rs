//! Sequence numbers: the part of a session's state that every message changes.

use serde::{Deserialize, Serialize};

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
}

impl Default for Numbers {
    fn default() -> Self {
        Self { epoch: 1, next_out: 1, next_in: 1, confirmed: 0, forgotten: 0, window: None }
    }
}

impl Numbers {
    /// Both directions begin at 1 again, in a new epoch.
    pub(crate) fn reset(&mut self, window: Option<i64>) {
        *self = Self { epoch: self.epoch + 1, window: window.or(self.window), ..Self::default() };
    }

    /// The number of the last message that has been given one.
    pub(crate) fn last_out(&self) -> u64 {
        self.next_out - 1
    }
}
